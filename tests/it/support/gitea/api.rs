//! The routes below `/api/v1`.

use std::sync::Arc;

use axum::{body::to_bytes, extract::Request, response::Response};
use http::{HeaderValue, header};
use serde_json::{Value, json};

use super::{Caller, Host, USER, run_git, said, shown};

/// What the real one gives at once at most, made smaller so that lists have pages.
const AT_ONCE: usize = 3;

impl Host {
    pub(super) async fn api(self: Arc<Self>, path: &str, request: Request) -> Response {
        let parts: Vec<String> = path.split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (method, caller) = (request.method().to_string(), self.caller(request.headers()));
        let (page, limit) = page(request.uri().query().unwrap_or_default());
        let body = to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (&caller, parts.as_slice()) {
            (Caller::Stranger, _) => return said(401, "invalid username, password or token"),
            (Caller::Nobody, _) => return said(401, "token is required"),
            // No token makes tokens.
            (Caller::Token(_), ["users", _, "tokens", ..]) => return said(401, "auth required"),
            (Caller::Token(token), _) if !token.scopes.iter().any(|scope| scope.ends_with(":repository")) => {
                return said(403, "token does not have at least one of required scope(s)");
            }
            _ => {}
        }
        match (method.as_str(), parts.as_slice()) {
            (_, ["users", user, "tokens", rest @ ..]) if *user == USER => {
                self.tokens(&method, rest, &body, (page, limit))
            }
            ("POST", ["user", "repos"]) => self.create(USER, &body).await,
            ("POST", ["orgs", org, "repos"]) if self.orgs.contains(*org) => self.create(org, &body).await,
            ("POST", ["admin", "users", user, "repos"]) => self.create(user, &body).await,
            (_, ["repos", owner, name, rest @ ..]) => {
                let full = format!("{owner}/{name}");
                if !self.known().repositories.contains_key(&full) {
                    return said(404, "The target couldn't be found.");
                }
                self.repository(&method, owner, name, rest, &body, (page, limit)).await
            }
            _ => said(404, "The target couldn't be found."),
        }
    }

    fn tokens(&self, method: &str, rest: &[&str], body: &Value, at: (usize, usize)) -> Response {
        match (method, rest) {
            ("GET", []) => {
                let shown = |t: &super::Token| json!({"name": t.name, "sha1": "", "scopes": t.scopes});
                listed(self.known().tokens.iter().map(shown).collect(), at, false)
            }
            ("POST", []) => {
                let name = body["name"].as_str().unwrap_or_default();
                if self.known().tokens.iter().any(|token| token.name == name) {
                    return said(400, "access token name has been used already");
                }
                let texts = |list: &Value| -> Vec<String> {
                    list.as_array().into_iter().flatten().filter_map(|t| t.as_str().map(str::to_owned)).collect()
                };
                let bound = body["repositories"].as_array().filter(|_| self.binds).into_iter().flatten();
                let bound = bound.map(|r| format!("{}/{}", r["owner"].as_str().unwrap(), r["name"].as_str().unwrap()));
                let token = self.make_token(name, texts(&body["scopes"]), bound.collect());
                let eight = &token.sha1[token.sha1.len() - 8..];
                shown(201, &json!({"id": 1, "name": token.name, "sha1": token.sha1, "token_last_eight": eight}))
            }
            ("DELETE", [name]) => {
                let mut known = self.known();
                let before = known.tokens.len();
                known.tokens.retain(|token| token.name != *name);
                if known.tokens.len() < before { nothing() } else { said(404, "The target couldn't be found.") }
            }
            _ => said(405, "Method Not Allowed"),
        }
    }

    async fn create(&self, owner: &str, body: &Value) -> Response {
        let name = body["name"].as_str().unwrap_or_default();
        let branch = body["default_branch"].as_str().unwrap_or("main");
        match self.make_repository(owner, name, branch).await {
            Some(()) => shown(201, &json!({"name": name, "full_name": format!("{owner}/{name}"), "empty": true})),
            None => said(409, "The repository with the same name already exists."),
        }
    }

    async fn repository(
        &self,
        method: &str,
        owner: &str,
        name: &str,
        rest: &[&str],
        body: &Value,
        at: (usize, usize),
    ) -> Response {
        let full = format!("{owner}/{name}");
        match (method, rest) {
            ("GET", []) => {
                let branch = self.known().repositories[&full].default_branch.clone();
                shown(200, &json!({"name": name, "full_name": full, "default_branch": branch}))
            }
            ("DELETE", []) => {
                self.known().repositories.remove(&full);
                std::fs::remove_dir_all(self.place(owner, name)).expect("it is there");
                nothing()
            }
            ("GET", ["branches"]) => {
                let format = "--format=%(refname:lstrip=2) %(objectname)";
                let refs = run_git(&self.place(owner, name), &["for-each-ref", format, "refs/heads/"]).await.ok();
                let lines = refs.lines().filter_map(|line| line.split_once(' '));
                listed(lines.map(|(name, sha)| json!({"name": name, "commit": {"id": sha}})).collect(), at, true)
            }
            ("GET", ["branches", branch @ ..]) => {
                let branch = branch.join("/");
                let sha = self.commit(owner, name, &format!("refs/heads/{branch}")).await;
                found(sha.map(|sha| json!({"name": branch, "commit": {"id": sha}, "protected": false})))
            }
            ("GET", ["tags", tag @ ..]) => {
                let tag = tag.join("/");
                let sha = self.commit(owner, name, &format!("refs/tags/{tag}")).await;
                found(sha.map(|sha| json!({"name": tag, "commit": {"sha": sha}})))
            }
            ("GET", ["git", "commits", sha]) => {
                let sha = self.commit(owner, name, sha).await;
                found(sha.map(|sha| json!({"sha": sha})))
            }
            (_, ["branch_protections", rule @ ..]) => self.protections(method, owner, name, rule, body),
            (_, ["pulls", rest @ ..]) => self.pulls(method, (owner, name), rest, body).await,
            _ => said(404, "The target couldn't be found."),
        }
    }

    fn protections(&self, method: &str, owner: &str, name: &str, rule: &[&str], body: &Value) -> Response {
        let full = format!("{owner}/{name}");
        let response = {
            let mut known = self.known();
            let rules = &mut known.repositories.get_mut(&full).expect("it is there").protected;
            match (method, rule) {
                ("GET", []) => {
                    let all: Vec<_> =
                        rules.iter().map(|rule| json!({"rule_name": rule, "branch_name": rule})).collect();
                    return shown(200, &json!(all));
                }
                ("POST", []) => {
                    let rule = body["rule_name"].as_str().unwrap_or_default().to_owned();
                    if rules.contains(&rule) {
                        return said(403, "Branch protection already exist");
                    }
                    rules.push(rule.clone());
                    shown(201, &json!({"rule_name": rule}))
                }
                ("DELETE", [rule]) => {
                    rules.retain(|own| own != rule);
                    nothing()
                }
                _ => return said(405, "Method Not Allowed"),
            }
        };
        self.protect(owner, name);
        response
    }
}

/// One page; with a link to the next one where the real one gives links.
fn listed(all: Vec<Value>, (page, limit): (usize, usize), links: bool) -> Response {
    let limit = limit.min(AT_ONCE);
    let (total, begin) = (all.len(), (page - 1) * limit);
    let some: Vec<Value> = all.into_iter().skip(begin).take(limit).collect();
    let has_next = begin + some.len() < total;
    let mut response = shown(200, &json!(some));
    response.headers_mut().insert("x-total-count", total.into());
    if links && has_next {
        response.headers_mut().insert(header::LINK, HeaderValue::from_static("<http://gitea/?page=2>; rel=\"next\""));
    }
    response
}

fn found(value: Option<Value>) -> Response {
    value.map_or_else(|| said(404, "The target couldn't be found."), |value| shown(200, &value))
}

pub fn nothing() -> Response {
    let mut response = shown(204, &Value::Null);
    *response.body_mut() = axum::body::Body::empty();
    response
}

fn page(query: &str) -> (usize, usize) {
    let number = |name: &str| {
        let pair = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        pair.and_then(|text| text.parse().ok())
    };
    (number("page").unwrap_or(1).max(1), number("limit").unwrap_or(30))
}

fn decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at(2);
        decoded.push(char::from(u8::from_str_radix(code, 16).expect("an escaped byte")));
        decoded.push_str(rest);
    }
    decoded
}

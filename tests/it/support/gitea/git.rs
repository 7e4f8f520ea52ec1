//! Repositories, and git's conversation over HTTP: `git http-backend` does the talking.

use std::{os::unix::fs::PermissionsExt as _, process::Stdio, sync::Arc};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{Caller, Host, Repository, Token, run_git, said};

/// Gitea's own hook refuses the whole push.
const PRE_RECEIVE: &str = r#"#!/bin/sh
while read -r old new ref; do
    while read -r pattern; do
        case "$ref" in
        refs/heads/$pattern)
            echo "Gitea: Not allowed to push to protected branch ${ref#refs/heads/}" >&2
            exit 1
            ;;
        esac
    done < protected
done
"#;

impl Host {
    /// None where there is one already.
    pub(super) async fn make_repository(&self, owner: &str, name: &str, branch: &str) -> Option<()> {
        let full = format!("{owner}/{name}");
        let repository = Repository { default_branch: branch.to_owned(), ..Repository::default() };
        {
            let mut known = self.known();
            if known.repositories.contains_key(&full) {
                return None;
            }
            known.repositories.insert(full, repository);
        }
        let place = self.place(owner, name);
        std::fs::create_dir_all(&place).expect("our own folder");
        run_git(&place, &["init", "--quiet", "--bare", &format!("--initial-branch={branch}")]).await.ok();
        for (key, value) in [("http.receivepack", "true"), ("uploadpack.allowAnySHA1InWant", "true")] {
            run_git(&place, &["config", key, value]).await.ok();
        }
        let hook = place.join("hooks/pre-receive");
        std::fs::create_dir_all(place.join("hooks")).expect("our own folder");
        std::fs::write(&hook, PRE_RECEIVE).expect("our own folder");
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).expect("our own file");
        std::fs::write(place.join("protected"), "").expect("our own folder");
        Some(())
    }

    pub(super) fn protect(&self, owner: &str, name: &str) {
        let known = self.known();
        let rules = known.repositories.get(&format!("{owner}/{name}")).map(|r| r.protected.clone()).unwrap_or_default();
        let lines: String = rules.iter().map(|rule| format!("{rule}\n")).collect();
        std::fs::write(self.place(owner, name).join("protected"), lines).expect("our own folder");
    }

    pub(super) async fn git(self: Arc<Self>, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        let full = path.split_once(".git/").map_or("", |(full, _)| full.trim_start_matches('/')).to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let pushes = path.ends_with("/git-receive-pack") || query.contains("git-receive-pack");
        let caller = self.caller(request.headers());
        match caller {
            Caller::Account => {}
            Caller::Token(token) if may(&token, &full, pushes) => {}
            Caller::Token(_) => return said(403, "token does not have the scope"),
            Caller::Nobody | Caller::Stranger => {
                let mut response = said(401, "Unauthorized");
                let ask = HeaderValue::from_static("Basic realm=\"Gitea\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
                return response;
            }
        }
        if !self.known().repositories.contains_key(&full) {
            return said(404, "Not found.");
        }
        self.backend(&path, &query, request).await
    }

    async fn backend(&self, path: &str, query: &str, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let mut command = Command::new("git");
        command
            .arg("http-backend")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_PROJECT_ROOT", self.root.path())
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REMOTE_USER", "somebody")
            .env("PATH_INFO", path)
            .env("QUERY_STRING", query)
            .env("REQUEST_METHOD", head.method.as_str())
            .env("CONTENT_TYPE", header("content-type"))
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("GIT_PROTOCOL", header("git-protocol"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("git is installed");
        let mut stdin = child.stdin.take().expect("it is piped");
        let body = to_bytes(body, 64 << 20).await.unwrap_or_default();
        let feed = async move {
            let _stopped_reading = stdin.write_all(&body).await;
            drop(stdin);
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        parse(&output.expect("it ran").stdout)
    }
}

fn may(token: &Token, full: &str, pushes: bool) -> bool {
    let has = |scope: &str| token.scopes.iter().any(|own| own == scope || own == "all");
    let scoped = has("write:repository") || (!pushes && has("read:repository"));
    scoped && (token.repositories.is_empty() || token.repositories.iter().any(|own| own == full))
}

/// A CGI answer.
fn parse(output: &[u8]) -> Response {
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let mut response = Response::new(Body::from(output[end + 4..].to_vec()));
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        if name == "Status" {
            let status = value.split(' ').next().and_then(|code| code.parse().ok());
            *response.status_mut() = status.and_then(|code| StatusCode::from_u16(code).ok()).expect("a status");
        } else {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header's name");
            response.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header's value"));
        }
    }
    response
}

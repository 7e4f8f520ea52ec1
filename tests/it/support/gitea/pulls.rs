//! Pull requests, as far as a merge needs them.

use axum::response::Response;
use serde_json::{Value, json};

use super::{Host, run_git, said, shown};

#[derive(Clone)]
pub struct Pull {
    head: String,
    base: String,
    title: String,
    state: &'static str,
    /// The real one looks at a new one in the background.
    is_looked_at: bool,
}

impl Pull {
    pub fn shown(&self) -> (String, String) {
        (self.state.to_owned(), self.title.clone())
    }
}

impl Host {
    pub(super) async fn pulls(&self, method: &str, at: (&str, &str), rest: &[&str], body: &Value) -> Response {
        let full = format!("{}/{}", at.0, at.1);
        match (method, rest) {
            ("POST", []) => self.open(&full, body),
            ("POST", [number, "merge"]) => {
                let Some(index) = self.index(&full, number) else { return said(404, "not found") };
                self.merge(at, &full, index, body).await
            }
            ("PATCH", [number]) => {
                let Some(index) = self.index(&full, number) else { return said(404, "not found") };
                let mut known = self.known();
                let pull = &mut known.repositories.get_mut(&full).expect("it is there").pulls[index];
                if pull.state == "open" {
                    pull.state = "closed";
                }
                shown(201, &json!({"number": index + 1, "state": pull.state}))
            }
            ("GET", [base, head @ ..]) if !head.is_empty() => {
                let (head, known) = (head.join("/"), self.known());
                let mut all = known.repositories[&full].pulls.iter();
                let index = all.position(|pull| pull.head == head && pull.base == *base && pull.state == "open");
                index.map_or_else(|| said(404, "not found"), |index| shown(200, &json!({"number": index + 1})))
            }
            _ => said(404, "not found"),
        }
    }

    fn index(&self, full: &str, number: &str) -> Option<usize> {
        let index = number.parse::<usize>().ok()?.checked_sub(1)?;
        (index < self.known().repositories[full].pulls.len()).then_some(index)
    }

    fn open(&self, full: &str, body: &Value) -> Response {
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let mut known = self.known();
        let is_looked_at = known.looks_at_once;
        let pull = Pull { head: text("head"), base: text("base"), title: text("title"), state: "open", is_looked_at };
        let pulls = &mut known.repositories.get_mut(full).expect("it is there").pulls;
        if pulls.iter().any(|one| one.state == "open" && (&one.head, &one.base) == (&pull.head, &pull.base)) {
            return said(409, "pull request already exists for these targets");
        }
        pulls.push(pull);
        shown(201, &json!({"number": pulls.len(), "state": "open"}))
    }

    async fn merge(&self, (owner, name): (&str, &str), full: &str, index: usize, body: &Value) -> Response {
        let pull = {
            let mut known = self.known();
            let pull = &mut known.repositories.get_mut(full).expect("it is there").pulls[index];
            if !std::mem::replace(&mut pull.is_looked_at, true) {
                return said(405, "Please try again later");
            }
            pull.clone()
        };
        if pull.state != "open" {
            return said(405, "");
        }
        if body["Do"] != "fast-forward-only" {
            return said(405, "merge is not allowed an allowed merge style for this repository");
        }
        let branch = |name: &str| format!("refs/heads/{name}");
        let head = self.commit(owner, name, &branch(&pull.head)).await;
        let base = self.commit(owner, name, &branch(&pull.base)).await;
        let (Some(head), Some(base)) = (head, base) else { return said(404, "not found") };
        if body["head_commit_id"] != head.as_str() {
            return said(409, "head out of date");
        }
        let place = self.place(owner, name);
        if !run_git(&place, &["merge-base", "--is-ancestor", &base, &head]).await.success {
            // So the real one answers where it cannot go forward.
            return said(500, "Not possible to fast-forward, aborting.");
        }
        if !run_git(&place, &["update-ref", &branch(&pull.base), &head, &base]).await.success {
            return said(409, "merge push out of date");
        }
        if body["delete_branch_after_merge"] == true {
            run_git(&place, &["update-ref", "-d", &branch(&pull.head)]).await.ok();
        }
        self.known().repositories.get_mut(full).expect("it is there").pulls[index].state = "merged";
        shown(200, &Value::Null)
    }
}

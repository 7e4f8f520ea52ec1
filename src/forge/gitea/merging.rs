//! Merges: made in the copy, moved by a push that holds only while everything is where it was
//! seen. Where the branch is protected, against the checkouts' tokens and so against this
//! account, the very commit goes in by a pull request, fast-forward.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::{
    super::{Move, git::GitError},
    GiteaHost,
    mirror::{Push, Pushed},
};

/// The host looks at a new pull request in the background: it is asked again meanwhile.
const LOOKS: u32 = 40;
const LOOK: Duration = Duration::from_millis(250);

/// What came of asking for a merge.
enum Asked {
    Merged,
    /// It is not looked at yet, or cannot go in.
    NotNow,
    /// Something has moved.
    Moved,
}

impl GiteaHost {
    /// Whether the commit, or one before it, is missing in the branch `base`. Not where there is no such branch.
    pub async fn has_beyond(&self, project: &str, sha: &str, base: &str) -> Result<bool, GitError> {
        let Some(base) = self.branch(project, base).await? else { return Ok(false) };
        Ok(!self.has(project, &base, sha).await?)
    }

    /// Whether the host has a commit of this id, in a branch or not.
    pub async fn knows(&self, project: &str, sha: &str) -> Result<bool, GitError> {
        self.mirror().ensure(project, &[sha]).await?;
        self.mirror().has(project, sha).await
    }

    /// Whether `later` has the commit `earlier`. Not where the host has lost one of them.
    pub async fn has(&self, project: &str, later: &str, earlier: &str) -> Result<bool, GitError> {
        self.mirror().ensure(project, &[later, earlier]).await?;
        for commit in [later, earlier] {
            if !self.mirror().has(project, commit).await? {
                return Ok(false);
            }
        }
        self.copies().has(project, later, earlier).await
    }

    /// What `head` changes since it left `base`: the first `most` bytes, and whether there are more.
    pub async fn diff(&self, project: &str, base: &str, head: &str, most: usize) -> Result<(Vec<u8>, bool), GitError> {
        self.mirror().ensure(project, &[base, head]).await?;
        self.copies().diff(project, base, head, most).await
    }

    /// A commit with both as parents, in the copy alone; `None` where they conflict.
    pub async fn join(&self, project: &str, onto: &str, head: &str, message: &str) -> Result<Option<String>, GitError> {
        self.mirror().ensure(project, &[onto, head]).await?;
        self.copies().join(project, onto, head, message).await
    }

    /// Moves a branch; says whether it did: not where anything is elsewhere by now.
    pub async fn move_while(&self, project: &str, what: Move<'_>) -> Result<bool, GitError> {
        let (onto, other) = (format!("refs/heads/{}", what.branch), format!("refs/heads/{}", what.while_at.0));
        let (from, to, at) = (what.from, what.to, what.while_at.1);
        self.mirror().ensure(project, &[from, to, at]).await?;
        let leases = || vec![format!("{onto}:{from}"), format!("{other}:{at}")];
        let push =
            Push { specs: vec![format!("{to}:{onto}"), format!("{at}:{other}")], leases: leases(), within: None };
        match self.mirror().push(project, push).await? {
            Pushed::Done => return Ok(true),
            Pushed::Stale => return Ok(false),
            Pushed::Declined(why) => tracing::debug!(why, project.id = project, "a merge goes by a pull request"),
        }
        // Where both still are as they were seen, the commit goes up under a name of its own.
        let name = format!("rdev/merge/{to}");
        let mut specs = vec![format!("{from}:{onto}"), format!("{at}:{other}")];
        specs.push(format!("+{to}:refs/heads/{name}"));
        match self.mirror().push(project, Push { specs, leases: leases(), within: None }).await? {
            Pushed::Done => {}
            Pushed::Stale => return Ok(false),
            Pushed::Declined(why) => return Err(GitError::Refused(format!("a branch for a merge: {why}"))),
        }
        let merged = self.by_request(project, &what, &name).await;
        if !matches!(merged, Ok(true)) {
            let gone = Push { specs: vec![format!(":refs/heads/{name}")], ..Push::default() };
            if let Err(error) = self.mirror().push(project, gone).await {
                tracing::warn!(%error, project.id = project, branch = name, "the branch of a merge is left");
            }
        }
        merged
    }

    async fn by_request(&self, project: &str, what: &Move<'_>, name: &str) -> Result<bool, GitError> {
        let number = self.request(project, what, name).await?;
        let mut why = GitError::Refused(format!("pull request {number} of {project} cannot be merged"));
        for _ in 0..LOOKS {
            match self.ask_for_merge(project, &number, what.to).await {
                Ok(Asked::Merged) => return Ok(true),
                Ok(Asked::Moved) => break,
                // The base may have moved on, and then it never can.
                Ok(Asked::NotNow) if self.branch(project, what.branch).await?.as_deref() != Some(what.from) => break,
                Ok(Asked::NotNow) => tokio::time::sleep(LOOK).await,
                Err(error) => {
                    why = error;
                    break;
                }
            }
        }
        // An answer that was lost, or somebody else with the same commit.
        let now = self.branch(project, what.branch).await?;
        if now.as_deref() == Some(what.to) {
            return Ok(true);
        }
        let path = ["repos", self.owner(), project, "pulls", &number];
        self.api().send(Method::PATCH, &path, &json!({"state": "closed"})).await?;
        if now.as_deref() == Some(what.from) { Err(why) } else { Ok(false) }
    }

    /// The number of the pull request, also where there is one from before.
    async fn request(&self, project: &str, what: &Move<'_>, name: &str) -> Result<String, GitError> {
        let title = format!("Merge {} into {}", what.while_at.0, what.branch);
        let body = json!({"head": name, "base": what.branch, "title": title, "body": "Reviewed and merged by rdev."});
        let path = ["repos", self.owner(), project, "pulls"];
        let mut answer = self.api().send(Method::POST, &path, &body).await?;
        if answer.status == 409 {
            let named: Vec<&str> = path.into_iter().chain([what.branch]).chain(name.split('/')).collect();
            answer = self.api().read(&named, &[]).await?;
        }
        match answer.json()?.get("number").and_then(Value::as_u64) {
            Some(number) if answer.status < 300 => Ok(number.to_string()),
            _ => Err(answer.unfit("a pull request")),
        }
    }

    async fn ask_for_merge(&self, project: &str, number: &str, head: &str) -> Result<Asked, GitError> {
        let path = ["repos", self.owner(), project, "pulls", number, "merge"];
        let body = json!({"Do": "fast-forward-only", "head_commit_id": head, "delete_branch_after_merge": true});
        let answer = self.api().send(Method::POST, &path, &body).await?;
        match answer.status {
            200 => Ok(Asked::Merged),
            405 if answer.says("not allowed") => Err(answer.unfit("a merge")),
            405 => Ok(Asked::NotNow),
            409 => Ok(Asked::Moved),
            _ => Err(answer.unfit("a merge")),
        }
    }
}

//! Diffs and merges, in the repository itself: trees and commits are made without a work tree, and
//! nobody sees them before a ref is moved. A ref is moved in one transaction with the look at what
//! it depends on, and only from where it was seen to be; nothing is ever forced.

use std::time::Duration;

use super::{
    super::git::{GitError, branch_ref},
    EmbeddedHost,
    branches::is_contention,
};

/// For what reads much of a repository.
const LIMIT: Duration = Duration::from_mins(2);
const TRIES: u32 = 5;
/// The id of a tree and its newline fit into it.
const TREE: usize = 128;

/// A branch that is to be moved, and what must hold when it is.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    pub branch: &'a str,
    pub from: &'a str,
    pub to: &'a str,
    /// This branch is at this commit.
    pub while_at: (&'a str, &'a str),
}

impl EmbeddedHost {
    /// Whether the commit, or one before it, is missing in the branch `base`. Not where there is no such branch.
    pub async fn has_beyond(&self, project: &str, sha: &str, base: &str) -> Result<bool, GitError> {
        let Some(base) = self.branch(project, base).await? else { return Ok(false) };
        let args = ["rev-list", "--max-count=1", sha, &format!("^{base}"), "--"];
        Ok(!self.run(project)?.args(args).deadline(LIMIT).text().await?.is_empty())
    }

    /// Whether the repository has an object of this id, in a branch or not.
    pub async fn knows(&self, project: &str, sha: &str) -> Result<bool, GitError> {
        Ok(self.run(project)?.args(["cat-file", "-e", sha]).maybe().await?.is_some())
    }

    /// Whether `later` has the commit `earlier`.
    pub async fn has(&self, project: &str, later: &str, earlier: &str) -> Result<bool, GitError> {
        let args = ["merge-base", "--is-ancestor", earlier, later];
        Ok(self.run(project)?.args(args).deadline(LIMIT).maybe().await?.is_some())
    }

    /// What `head` changes since it left `base`: the first `most` bytes, and whether there are more.
    pub async fn diff(&self, project: &str, base: &str, head: &str, most: usize) -> Result<(Vec<u8>, bool), GitError> {
        let fork = self.fork(project, base, head).await?;
        let from = fork.as_deref().unwrap_or(base);
        let args = ["diff", "--no-color", "--no-ext-diff", "--no-textconv", "--find-renames", from, head, "--"];
        self.run(project)?.args(args).deadline(LIMIT).first(most).await
    }

    /// A commit with both as parents, in no branch yet; `None` where they conflict.
    pub async fn join(&self, project: &str, onto: &str, head: &str, message: &str) -> Result<Option<String>, GitError> {
        if self.fork(project, onto, head).await?.is_none() {
            return Ok(None);
        }
        // Of a conflict's files, which may be any number, nobody reads the names.
        let args = ["merge-tree", "--write-tree", "--no-messages", "--name-only", onto, head];
        let finished = self.run(project)?.args(args).deadline(LIMIT).keep(TREE).finish().await?;
        if finished.status.code() == Some(1) {
            return Ok(None);
        }
        let tree = String::from_utf8_lossy(&finished.into_output()?).trim().to_owned();
        let args = ["commit-tree", &tree, "-p", onto, "-p", head, "-F", "-"];
        self.run(project)?.args(args).stdin(message).text().await.map(Some)
    }

    /// Moves a branch; says whether it did: not where anything is elsewhere by now.
    pub async fn move_while(&self, project: &str, what: Move<'_>) -> Result<bool, GitError> {
        let (Some(full), Some(other)) = (branch_ref(what.branch), branch_ref(what.while_at.0)) else {
            return Ok(false);
        };
        let (from, to, at) = (what.from, what.to, what.while_at.1);
        let script = format!("verify {other} {at}\nupdate {full} {to} {from}\n");
        let mut tries = 1;
        loop {
            let update = self.run(project)?.args(["update-ref", "--stdin"]).stdin(script.as_str());
            let Err(error) = update.ok().await else { return Ok(true) };
            let holds = self.branch(project, what.branch).await?.as_deref() == Some(from)
                && self.branch(project, what.while_at.0).await?.as_deref() == Some(at);
            if !holds {
                return Ok(false);
            }
            if tries == TRIES || !is_contention(&error) {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(50) * tries).await;
            tries += 1;
        }
    }

    /// The commit that both began from.
    async fn fork(&self, project: &str, a: &str, b: &str) -> Result<Option<String>, GitError> {
        self.run(project)?.args(["merge-base", a, b]).deadline(LIMIT).maybe().await
    }
}

//! The worktree of a commit under review: detached, of the project's clone, with the clone's
//! credential, which only reads. Making it begins with removing what was left of it.

use super::{CLONE_LIMIT, STEP_LIMIT, Workspaces, clone_url, done};
use crate::error::Result;

/// $1 worktree, $2 workspace, $3 name. What a build left read-only goes as well.
const REMOVE: &str = r#"
if test -e "$1"; then
    chmod -R u+w -- "$1" 2>/dev/null || true
    rm -rf -- "$1"
fi
cd "$2" || exit 0
rm -rf -- ".git/worktrees/$3"
git worktree prune
"#;

/// After [`REMOVE`]: $4 commit, $5 base of the URL, $6 URL.
const ADD: &str = r#"
git cat-file -e "$4^{tree}" 2>/dev/null ||
    with_credential "$5" workspace fetch --quiet --no-tags --no-write-fetch-head "$6" "$4"
git -c core.hooksPath=/dev/null worktree add --quiet --force --detach "$1" "$4"
"#;

impl Workspaces {
    /// Where it is.
    pub fn review_path(&self, project: &str, review: &str) -> String {
        format!("{}/{}", self.runtime.paths(project).sessions, name(review))
    }

    /// A fresh one of the commit.
    ///
    /// # Errors
    /// Those of git.
    pub async fn add_review(&self, project: &str, review: &str, sha: &str, base: &str) -> Result<()> {
        let workspace = self.runtime.paths(project).workspace;
        let (path, name, url) = (self.review_path(project, review), name(review), clone_url(base, project));
        let words = [&path, &workspace, &name, sha, base, &url];
        let output = self.script(project, &format!("{REMOVE}{ADD}"), &words, &[], CLONE_LIMIT).await?;
        done("the worktree of a review could not be made", &output)
    }

    /// Also when there is none, or half of one.
    ///
    /// # Errors
    /// When something of it could not be removed.
    pub async fn remove_review(&self, project: &str, review: &str) -> Result<()> {
        let workspace = self.runtime.paths(project).workspace;
        let (path, name) = (self.review_path(project, review), name(review));
        let output = self.script(project, REMOVE, &[&path, &workspace, &name], &[], STEP_LIMIT).await?;
        done("the worktree of a review could not be removed", &output)
    }
}

fn name(review: &str) -> String {
    format!("review-{review}")
}

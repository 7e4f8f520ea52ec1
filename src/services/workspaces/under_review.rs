//! The worktree of a commit under review: detached, of the project's clone, with the clone's
//! credential, which only reads. Each attempt has one of its own, so whoever is late with an attempt
//! that is over touches nobody else's. Making one begins with removing those of attempts before.

use super::{CLONE_LIMIT, STEP_LIMIT, Workspaces, done};
use crate::error::Result;

/// $1 folder, $2 workspace, $3 name before its number, $4 first and $5 last number; one without a number counts
/// as 0. What a build left read-only goes as well; what a link leads to stays.
const REMOVE: &str = r#"
is_meant() {
    number=${1##*/"$3"}
    case "$number" in "") number=0 ;; -*) number=${number#-} ;; *) return 1 ;; esac
    case "$number" in "" | *[!0-9]*) return 1 ;; esac
    test "$number" -ge "$4" && test "$number" -le "$5"
}
for tree in "$1/$3"*; do
    is_meant "$tree" "$2" "$3" "$4" "$5" || continue
    test ! -d "$tree" || test -L "$tree" || chmod -R u+w -- "$tree" 2>/dev/null || true
    rm -rf -- "$tree"
done
cd "$2" || exit 0
for known in ".git/worktrees/$3"*; do
    is_meant "$known" "$2" "$3" "$4" "$5" || continue
    rm -rf -- "$known"
done
git worktree prune
"#;

/// After [`REMOVE`]: $6 commit, $7 base of the URL, $8 URL. A replacement that somebody has put into the clone does
/// not stand in for what is reviewed.
const ADD: &str = r#"
export GIT_NO_REPLACE_OBJECTS=1
git cat-file -e "$6^{tree}" 2>/dev/null ||
    with_credential "$7" workspace fetch --quiet --no-tags --no-write-fetch-head "$8" "$6"
git -c core.hooksPath=/dev/null worktree add --quiet --force --detach "$1/$3-$5" "$6"
"#;

impl Workspaces {
    /// Where that of an attempt is.
    pub fn review_path(&self, project: &str, review: &str, attempt: i64) -> String {
        format!("{}/{}-{attempt}", self.runtime.paths(project).sessions, name(review))
    }

    /// A fresh one of the commit.
    ///
    /// # Errors
    /// Those of git.
    pub async fn add_review(&self, project: &str, review: &str, attempt: i64, sha: &str, base: &str) -> Result<()> {
        let paths = self.runtime.paths(project);
        let (name, number, url) = (name(review), attempt.to_string(), self.clone_url(base, project));
        let words = [&paths.sessions, &paths.workspace, &name, "0", &number, sha, base, &url];
        let output = self.script(project, &format!("{REMOVE}{ADD}"), &words, &[], CLONE_LIMIT).await?;
        done("the worktree of a review could not be made", &output)
    }

    /// Those of the attempts up to this one, also when there is none, or half of one.
    ///
    /// # Errors
    /// When something of it could not be removed.
    pub async fn remove_review(&self, project: &str, review: &str, attempt: i64) -> Result<()> {
        self.remove_reviews(project, review, 0, attempt).await
    }

    /// That of this attempt alone.
    ///
    /// # Errors
    /// Likewise.
    pub async fn remove_review_of(&self, project: &str, review: &str, attempt: i64) -> Result<()> {
        self.remove_reviews(project, review, attempt, attempt).await
    }

    async fn remove_reviews(&self, project: &str, review: &str, first: i64, last: i64) -> Result<()> {
        let paths = self.runtime.paths(project);
        let (name, first, last) = (name(review), first.to_string(), last.to_string());
        let words = [&paths.sessions, &paths.workspace, &name, &first, &last];
        let output = self.script(project, REMOVE, &words.map(String::as_str), &[], STEP_LIMIT).await?;
        done("the worktree of a review could not be removed", &output)
    }
}

fn name(review: &str) -> String {
    format!("review-{review}")
}

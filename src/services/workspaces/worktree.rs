//! The worktree of a session: a branch of the project's clone, with the credential that pushes to
//! it. What people left in the clone (branches that are in the way, locks of gits that were killed)
//! must not keep a session from being made, nor what they left in the worktree from being removed.

use super::{
    CLONE_LIMIT, LARGE, STEP_LIMIT, Workspaces, done, says,
    spare::{FROM_SPARE, SPARE},
};
use crate::error::Result;

/// A session's worktree.
pub struct Worktree<'a> {
    pub project: &'a str,
    pub path: &'a str,
    pub branch: &'a str,
    pub session: &'a str,
}

/// One that was made.
pub struct Added {
    /// There are many files, so a spare saves time.
    pub is_large: bool,
    /// It was the spare.
    pub was_spare: bool,
}

/// After [`FROM_SPARE`]: $1 workspace, $2 worktree, $3 branch, $4 session, $5 base, $6 URL, $7 commit; the token on standard input.
/// The commit is fetched only where the clone lacks it, and where no spare can be taken all cores write its files. What belongs to the
/// branch is configured for the worktree alone, so that nothing of it is left in the clone. A second try is
/// made after clearing up.
const ADD: &str = r#"
umask 077
mkdir -p "$HOME/.rdev/sessions"
cat > "$HOME/.rdev/sessions/$4"
umask 022
cd "$1"
own=".git/worktrees/$4"
free_locks .git/HEAD .git/packed-refs ".git/refs/heads/$3" ".git/refs/remotes/origin/$3"
has_commit() { git rev-list --quiet --objects "$1" --not --all 2>/dev/null; }
bring() {
    if has_commit "$2"; then git update-ref "refs/remotes/origin/$1" "$2"; else
        with_credential "$3" "sessions/$5" fetch --quiet --no-tags "$4" "+refs/heads/$1:refs/remotes/origin/$1"
    fi
}
let_go() {
    test "$(git symbolic-ref --quiet HEAD || true)" != "$1" || git update-ref --no-deref HEAD "$(git rev-parse HEAD)"
}
set_here() { git config --file "$own/config.worktree" "$@"; }
files() {
    if from_spare "$@"; then
        echo spare
        return
    fi
    make_way
    git -c core.hooksPath=/dev/null -c checkout.workers=0 \
        worktree add --quiet --force --no-track -B "$3" "$2" "refs/remotes/origin/$3"
}
make() {
    bring "$3" "$7" "$5" "$6" "$4" &&
        let_go "refs/heads/$3" &&
        files "$@" &&
        set_here "credential.$5.helper" "" &&
        set_here --add "credential.$5.helper" "$(helper "sessions/$4")" &&
        set_here push.default current &&
        set_here "branch.$3.remote" origin &&
        set_here "branch.$3.merge" "refs/heads/$3"
}
clear_up() {
    rm -rf -- "$2" "$own"
    git worktree prune
    with_credential "$5" "sessions/$4" fetch --quiet --prune --no-tags "$6" "+refs/heads/*:refs/remotes/origin/*" || true
    git for-each-ref --format="%(refname)" refs/heads | while read -r ref; do
        name=${ref#refs/heads/}
        case "$3/" in "$name/") continue ;; "$name"/*) ;; *) case "$name" in "$3"/*) ;; *) continue ;; esac ;; esac
        let_go "$ref"
        git update-ref "refs/rdev-kept/$4/$name" "$ref"
        git update-ref --no-deref -d "$ref"
    done
}
if ! make "$@" 2>/dev/null; then
    clear_up "$@"
    make "$@"
fi
! is_large "$own/index" || echo large
"#;

/// $1 workspace, $2 worktree, $3 branch, $4 session. Whatever is left is removed. It goes from its place in one
/// step: half of one would look like work that deletes the other half. What cannot be removed now is tried
/// with the next one.
const REMOVE: &str = r#"
folder=$(dirname "$2")
sweep() {
    for place in "$folder"/*.gone; do
        rm -rf -- "$place" 2>/dev/null && continue
        chmod -R u+rwX -- "$place" 2>/dev/null || true
        rm -rf -- "$place" || true
    done
}
if test -e "$2" || test -L "$2"; then
    chmod u+rwx "$folder" 2>/dev/null || true
    sweep
    mv -- "$2" "$2.gone"
fi
rm -f "$HOME/.rdev/sessions/$4"
sweep
cd "$1" || exit 0
# One that was killed in the making is locked, and a prune would spare it.
rm -rf -- ".git/worktrees/$4"
free_locks .git/packed-refs ".git/refs/heads/$3"
git worktree prune || true
git update-ref -d "refs/heads/$3" || true
"#;

impl Workspaces {
    /// `sha` is what the branch is at on the git host.
    ///
    /// # Errors
    /// Those of git.
    pub async fn add_worktree(&self, worktree: &Worktree<'_>, sha: &str, base: &str, token: &str) -> Result<Added> {
        let workspace = self.runtime.paths(worktree.project).workspace;
        let url = self.clone_url(base, worktree.project);
        let words = [&workspace, worktree.path, worktree.branch, worktree.session, base, &url, sha];
        let script = format!("{SPARE}{FROM_SPARE}{ADD}");
        let output = self.script(worktree.project, &script, &words, token.as_bytes(), CLONE_LIMIT).await?;
        done("the session's worktree could not be made", &output)?;
        Ok(Added { is_large: says(&output, LARGE), was_spare: says(&output, "spare") })
    }

    /// Also when there is none, or half of one.
    ///
    /// # Errors
    /// When something of it could not be removed.
    pub async fn remove_worktree(&self, worktree: &Worktree<'_>) -> Result<()> {
        let workspace = self.runtime.paths(worktree.project).workspace;
        let words = [&workspace, worktree.path, worktree.branch, worktree.session];
        let output = self.script(worktree.project, REMOVE, &words, &[], STEP_LIMIT).await?;
        done("the session's worktree could not be removed", &output)
    }
}

//! The git side of a project's place: its clone, the worktrees of sessions, the
//! credentials in them, and the rescue of work that is not in a branch. Everything here
//! runs inside the place, confined as its commands are; scripts get their words as
//! arguments, never pasted in, and secrets by standard input.

mod under_review;

use std::time::Duration;

use crate::{
    domain::session::Rescue,
    error::{Error, Result},
    runtime::{Place, Run, RunOutput},
};

/// For a clone of a large repository.
const CLONE_LIMIT: Duration = Duration::from_secs(100);
const STEP_LIMIT: Duration = Duration::from_mins(1);

/// What git asks for a credential, confined to this server's address. The token is in a file of
/// its own, so a new address needs no new token.
const HELPER: &str = r#"
# with_credential BASE NAME WORD...: git with this server's credential of that name, hooks off.
with_credential() {
    base=$1; name=$2; shift 2
    git -c core.hooksPath=/dev/null -c gc.auto=0 -c credential.helper= -c "credential.$base.helper=" \
        -c "credential.$base.helper=$(helper "$name")" "$@"
}
helper() { printf '!f() { test "$1" = get && printf "username=rdev\\npassword=%%s\\n" "$(cat "$HOME/.rdev/%s")"; }; f' "$1"; }
# free_locks FILE...: a git that was killed leaves its locks, which would be in everybody's way for good; no
# living one holds one of these for seconds.
free_locks() {
    for lock in "$@"; do
        for _ in 1 2 3; do
            test -e "$lock.lock" || break
            mark=$(mktemp)
            sleep 2
            test ! "$lock.lock" -ot "$mark" || rm -f -- "$lock.lock" || true
            rm -f -- "$mark"
        done
    done
}
"#;

/// $1 URL, $2 branch, $3 workspace, $4 base of the URL; the token on standard input.
const CLONE: &str = r#"
umask 077
mkdir -p "$HOME/.rdev/sessions"
cat > "$HOME/.rdev/workspace"
umask 022
free_locks "$HOME/.gitconfig"
git config --global --get-all safe.directory >/dev/null 2>&1 || git config --global safe.directory '*'
cd "$HOME"
rm -rf -- "$3"
mkdir -p "$(dirname "$3")/sessions"
git -c credential.helper= -c "credential.$4.helper=$(helper workspace)" clone --quiet --branch "$2" -- "$1" "$3"
cd "$3"
git config extensions.worktreeConfig true
git config user.name rdev
git config user.email rdev@localhost
git config "credential.$4.helper" ""
git config --add "credential.$4.helper" "$(helper workspace)"
"#;

/// $1 URL, $2 workspace, $3 base before, $4 base now.
const READDRESS: &str = r#"
cd "$2"
free_locks .git/config
git remote set-url origin "$1"
for file in .git/config .git/worktrees/*/config.worktree; do
    test -f "$file" || continue
    free_locks "$file"
    name=workspace
    case "$file" in .git/worktrees/*) name=sessions/$(basename "$(dirname "$file")") ;; esac
    git config --file "$file" --remove-section "credential.$3" 2>/dev/null || true
    git config --file "$file" --remove-section "credential.$4" 2>/dev/null || true
    git config --file "$file" "credential.$4.helper" ""
    git config --file "$file" --add "credential.$4.helper" "$(helper "$name")"
done
"#;

/// $1 workspace, $2 worktree, $3 branch, $4 session, $5 base, $6 URL; the token on standard input.
const ADD_WORKTREE: &str = r#"
umask 077
mkdir -p "$HOME/.rdev/sessions"
cat > "$HOME/.rdev/sessions/$4"
umask 022
cd "$1"
free_locks .git/config .git/HEAD .git/packed-refs ".git/refs/heads/$3" ".git/refs/remotes/origin/$3"
git worktree prune
with_credential "$5" "sessions/$4" fetch --quiet --no-tags "$6" "+refs/heads/$3:refs/remotes/origin/$3"
test "$(git symbolic-ref --quiet HEAD || true)" != "refs/heads/$3" || git checkout --quiet --detach
git -c core.hooksPath=/dev/null worktree add --quiet --force -B "$3" "$2" "refs/remotes/origin/$3"
cd "$2"
git config --worktree "credential.$5.helper" ""
git config --worktree --add "credential.$5.helper" "$(helper "sessions/$4")"
git config --worktree push.default current
git branch --quiet --set-upstream-to="origin/$3" "$3"
"#;

/// $1 workspace, $2 worktree, $3 branch, $4 session. Whatever is left is removed.
const REMOVE_WORKTREE: &str = r#"
rm -f "$HOME/.rdev/sessions/$4"
rm -rf -- "$2"
cd "$1" || exit 0
# One that was killed in the making is locked, and a prune would spare it.
rm -rf -- ".git/worktrees/$4"
free_locks .git/packed-refs ".git/refs/heads/$3"
git worktree prune
git update-ref -d "refs/heads/$3" || true
"#;

/// $1 worktree, $2 branch, $3 rescue branch, $4 `look` or `push`, $5 session, $6 base, $7 URL. Says `gone`, `clean`, `dirty`
/// or the commit that was pushed. The index of the user is left alone, no hook runs, and the worktree's own
/// idea of its origin does not matter.
const RESCUE: &str = r#"
cd "$1" 2>/dev/null || { echo gone; exit 0; }
quiet="git -c core.hooksPath=/dev/null -c gc.auto=0"
shared=$(git rev-parse --git-common-dir)
free_locks "$shared/packed-refs" "$shared/refs/remotes/origin/$2" "$shared/refs/rdev-rescue/$5"
with_credential "$6" "sessions/$5" fetch --quiet --no-tags "$7" "+refs/heads/$2:refs/remotes/origin/$2" || true
head=$(git rev-parse --verify --quiet HEAD || true)
index=$(mktemp)
trap 'rm -f "$index"' EXIT
cp "$(git rev-parse --git-path index)" "$index" 2>/dev/null || rm -f "$index"
GIT_INDEX_FILE="$index" $quiet add --all --ignore-errors . 2>/dev/null || true
tree=$(GIT_INDEX_FILE="$index" git write-tree)
parents=""
dirty=no
test -n "$head" && parents="-p $head"
test -n "$head" && test "$tree" = "$(git rev-parse "$head^{tree}")" || dirty=yes
published() { test -z "$(git rev-list --max-count=1 "$1" --not --remotes=origin)"; }
ahead=no
if test -n "$head" && ! published "$head"; then ahead=yes; fi
mine=$(git rev-parse --verify --quiet "refs/heads/$2" || true)
if test -n "$mine" && test "$mine" != "$head" && ! published "$mine"; then
    ahead=yes
    dirty=yes
    parents="$parents -p $mine"
fi
if test "$dirty" = no && test "$ahead" = no; then echo clean; exit 0; fi
if test "$4" = look; then echo dirty; exit 0; fi
commit=$head
if test "$dirty" = yes; then
    commit=$(git commit-tree "$tree" $parents -m "Work that was in the session when it ended")
fi
git update-ref "refs/rdev-rescue/$5" "$commit"
with_credential "$6" "sessions/$5" push --quiet --no-verify --force "$7" "$commit:refs/heads/$3"
git update-ref -d "refs/rdev-rescue/$5"
echo "$commit"
"#;

/// Clones, worktrees and credentials. Cheap to clone.
#[derive(Clone)]
pub struct Workspaces {
    runtime: Place,
}

/// A session's worktree.
pub struct Worktree<'a> {
    pub project: &'a str,
    pub path: &'a str,
    pub branch: &'a str,
    pub session: &'a str,
}

impl Workspaces {
    pub fn new(runtime: Place) -> Self {
        Self { runtime }
    }

    pub fn runtime(&self) -> &Place {
        &self.runtime
    }

    /// Makes the project's place and clones into it.
    ///
    /// # Errors
    /// Those of git, as an internal error; what was made is left for [`Workspaces::remove`].
    pub async fn provision(&self, project: &str, branch: &str, base: &str, token: &str) -> Result<()> {
        self.runtime.prepare(project).await?;
        let workspace = self.runtime.paths(project).workspace;
        let url = clone_url(base, project);
        let output =
            self.script(project, CLONE, &[&url, branch, &workspace, base], token.as_bytes(), CLONE_LIMIT).await?;
        done("the workspace could not be cloned", &output)
    }

    /// # Errors
    /// When something of it could not be removed.
    pub async fn remove(&self, project: &str) -> Result<()> {
        self.runtime.remove(project).await
    }

    /// Follows this server to a new address.
    ///
    /// # Errors
    /// Those of git.
    pub async fn readdress(&self, project: &str, before: &str, now: &str) -> Result<()> {
        let workspace = self.runtime.paths(project).workspace;
        let url = clone_url(now, project);
        let output = self.script(project, READDRESS, &[&url, &workspace, before, now], &[], STEP_LIMIT).await?;
        done("the workspace could not be told the server's address", &output)
    }

    /// # Errors
    /// Those of git.
    pub async fn add_worktree(&self, worktree: &Worktree<'_>, base: &str, token: &str) -> Result<()> {
        let workspace = self.runtime.paths(worktree.project).workspace;
        let url = clone_url(base, worktree.project);
        let words = [&workspace, worktree.path, worktree.branch, worktree.session, base, &url];
        let output = self.script(worktree.project, ADD_WORKTREE, &words, token.as_bytes(), CLONE_LIMIT).await?;
        done("the session's worktree could not be made", &output)
    }

    /// Also when there is none, or half of one.
    ///
    /// # Errors
    /// When something of it could not be removed.
    pub async fn remove_worktree(&self, worktree: &Worktree<'_>) -> Result<()> {
        let workspace = self.runtime.paths(worktree.project).workspace;
        let words = [&workspace, worktree.path, worktree.branch, worktree.session];
        let output = self.script(worktree.project, REMOVE_WORKTREE, &words, &[], STEP_LIMIT).await?;
        done("the session's worktree could not be removed", &output)
    }

    /// Whether the worktree holds work that is in no branch of the git host.
    ///
    /// # Errors
    /// Those of git.
    pub async fn is_dirty(&self, worktree: &Worktree<'_>, base: &str) -> Result<bool> {
        let rescue = rescue_branch(worktree.session);
        let url = clone_url(base, worktree.project);
        let words = [worktree.path, worktree.branch, &rescue, "look", worktree.session, base, &url];
        let output = self.script(worktree.project, RESCUE, &words, &[], STEP_LIMIT).await?;
        done("the session's work could not be looked at", &output)?;
        Ok(output.stdout.trim() == "dirty")
    }

    /// Pushes such work to the session's rescue branch. `None` when there is none.
    /// A rescue that fails is an answer too, it must not hold up the end.
    pub async fn rescue(&self, worktree: &Worktree<'_>, base: &str) -> Option<Rescue> {
        let branch = rescue_branch(worktree.session);
        let url = clone_url(base, worktree.project);
        let words = [worktree.path, worktree.branch, &branch, "push", worktree.session, base, &url];
        let failed = |error: String| Some(Rescue { branch: None, sha: None, error: Some(error) });
        let output = match self.script(worktree.project, RESCUE, &words, &[], STEP_LIMIT).await {
            Ok(output) => output,
            Err(error) => {
                tracing::warn!(%error, session.id = worktree.session, "a rescue could not be run");
                return failed("the work could not be pushed".into());
            }
        };
        match (output.code, output.stdout.trim()) {
            (Some(0), "clean" | "gone") => None,
            (Some(0), sha) => Some(Rescue { branch: Some(branch), sha: Some(sha.to_owned()), error: None }),
            _ => failed(format!(
                "the work could not be pushed: {}; the project's clone keeps it as refs/rdev-rescue/{}",
                last_line(&output.stderr),
                worktree.session
            )),
        }
    }

    async fn script(
        &self,
        project: &str,
        script: &str,
        words: &[&str],
        stdin: &[u8],
        timeout: Duration,
    ) -> Result<RunOutput> {
        let whole = format!("set -eu\n{HELPER}{script}");
        let fixed = ["sh", "-c", whole.as_str(), "rdev"];
        let argv = fixed.iter().chain(words).map(|&word| word.to_owned()).collect();
        let env = [("GIT_TERMINAL_PROMPT", "0"), ("GIT_ADVICE", "0")];
        let run = Run {
            argv,
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            cwd: "/".into(),
            stdin: stdin.to_vec(),
            timeout,
        };
        self.runtime.run(project, run).await
    }
}

/// The branch that a session's work is rescued to.
pub fn rescue_branch(session: &str) -> String {
    format!("rdev/rescue/{session}")
}

/// The git URL of a project under `base`, without credentials.
pub fn clone_url(base: &str, project: &str) -> String {
    format!("{base}/git/{project}.git")
}

fn done(what: &str, output: &RunOutput) -> Result<()> {
    match output.code {
        Some(0) => Ok(()),
        _ => Err(Error::internal(format!("{what}: {}", output.stderr.trim()))),
    }
}

fn last_line(text: &str) -> &str {
    text.trim().lines().last().unwrap_or("git said nothing")
}

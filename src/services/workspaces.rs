//! The git side of a project's place: its clone, the worktrees of sessions, the
//! credentials in them, and the rescue of work that is not in a branch. Everything here
//! runs inside the place, confined as its commands are; scripts get their words as
//! arguments, never pasted in, and secrets by standard input.

mod rescue;
mod spare;
mod under_review;
mod worktree;

use std::time::Duration;

pub use self::{
    rescue::rescue_branch,
    worktree::{Added, Worktree},
};
use crate::{
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
! is_large .git/index || echo large
"#;

/// As [`CLONE`], into a folder that stays what it is: what is in it is never removed, and another repository there is
/// an error.
const ADOPT: &str = r#"
umask 077
mkdir -p "$HOME/.rdev/sessions"
cat > "$HOME/.rdev/workspace"
umask 022
git config --global --get-all safe.directory >/dev/null 2>&1 || git config --global safe.directory '*'
cd "$3"
git init --quiet .
before=$(git config --get rdev.base || true)
origin=$(git remote get-url origin 2>/dev/null || true)
case "$origin" in
"") git remote add origin "$1" ;;
"$1") ;;
"$before"/*) git remote set-url origin "$1" ;;
*) echo "$3 holds another repository: $origin" >&2; exit 1 ;;
esac
git config rdev.base "$4"
git config extensions.worktreeConfig true
git config user.name rdev
git config user.email rdev@localhost
test -z "$before" || git config --remove-section "credential.$before" 2>/dev/null || true
git config --remove-section "credential.$4" 2>/dev/null || true
git config "credential.$4.helper" ""
git config --add "credential.$4.helper" "$(helper workspace)"
grep -qx '/\.rdev/' .git/info/exclude 2>/dev/null || { mkdir -p .git/info; echo '/.rdev/' >> .git/info/exclude; }
with_credential "$4" workspace fetch --quiet origin
git rev-parse --verify --quiet HEAD >/dev/null || git checkout --quiet -B "$2" --track "origin/$2"
! is_large .git/index || echo large
"#;

/// $1 workspace, $2 URL: the SHA-256 of the credential, where all is as [`ADOPT`] leaves it.
const LOOK: &str = r#"
cd "$1" 2>/dev/null || exit 0
test -d .git && test "$(git remote get-url origin 2>/dev/null)" = "$2" || exit 0
git rev-parse --verify --quiet HEAD >/dev/null || exit 0
sha256sum < "$HOME/.rdev/workspace" 2>/dev/null | cut -c 1-64
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

/// Clones, worktrees and credentials. Cheap to clone.
#[derive(Clone)]
pub struct Workspaces {
    runtime: Place,
    /// What stands in a clone URL between the host and the repository.
    folder: String,
}

impl Workspaces {
    pub fn new(runtime: Place, folder: String) -> Self {
        Self { runtime, folder }
    }

    /// The git URL of a project under `base`, without credentials.
    pub fn clone_url(&self, base: &str, project: &str) -> String {
        format!("{base}{}/{project}.git", self.folder)
    }

    pub fn runtime(&self) -> &Place {
        &self.runtime
    }

    /// Makes the project's place and clones into it. Answers whether there are many files, so that a spare worktree
    /// saves time.
    ///
    /// # Errors
    /// Those of git, as an internal error; what was made is left for [`Workspaces::remove`].
    pub async fn provision(&self, project: &str, branch: &str, base: &str, token: &str) -> Result<bool> {
        self.runtime.prepare(project).await?;
        let paths = self.runtime.paths(project);
        let url = self.clone_url(base, project);
        let script = if paths.fixed { ADOPT } else { CLONE };
        let words = [&url, branch, &paths.workspace, base];
        let script = format!("{}{script}", spare::SPARE);
        let output = self.script(project, &script, &words, token.as_bytes(), CLONE_LIMIT).await?;
        done("the workspace could not be cloned", &output).map(|()| says(&output, LARGE))
    }

    /// The SHA-256, in hexadecimal digits, of the credential that a whole workspace reads with.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn look(&self, project: &str, base: &str) -> Result<Option<String>> {
        let workspace = self.runtime.paths(project).workspace;
        let output = self.script(project, LOOK, &[&workspace, &self.clone_url(base, project)], &[], STEP_LIMIT).await?;
        done("the workspace could not be looked at", &output)?;
        Ok(Some(output.stdout.trim().to_owned()).filter(|hash| !hash.is_empty()))
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
        let url = self.clone_url(now, project);
        let output = self.script(project, READDRESS, &[&url, &workspace, before, now], &[], STEP_LIMIT).await?;
        done("the workspace could not be told the server's address", &output)
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

/// What a script says of a tree of many files.
const LARGE: &str = "large";

fn says(output: &RunOutput, word: &str) -> bool {
    output.stdout.lines().any(|line| line == word)
}

fn done(what: &str, output: &RunOutput) -> Result<()> {
    match output.code {
        Some(0) => Ok(()),
        _ => Err(Error::internal(format!("{what}: {}", output.stderr.trim()))),
    }
}

//! The rescue of work that a session leaves unpushed. Whatever people did to the worktree: it is
//! looked at through the clone's own record of it, so that it may be gone, or have lost its `.git`,
//! and what was committed is found all the same. Nothing of theirs is changed on the way but the
//! permissions of what could not be read.

use super::{STEP_LIMIT, Workspaces, Worktree};
use crate::{domain::session::Rescue, error::Result, runtime::RunOutput};

/// $1 worktree, $2 branch, $3 rescue branch, $4 `look` or `push`, $5 session, $6 base, $7 URL, $8 workspace. Says
/// `clean`, `dirty` or the commit that was pushed. Exit code 3: the commit is there and could not be pushed.
///
/// Rescued are the files as they are, what is committed and not pushed, on other branches of the session too, and
/// what it stashed. Where one commit has all of that it is the very commit; else one whose parents they are.
const RESCUE: &str = r#"
worktree=$1 branch=$2 rescue=$3 what=$4 session=$5 site=$6 url=$7 clone=$8
export GIT_AUTHOR_NAME=rdev GIT_AUTHOR_EMAIL=rdev@localhost GIT_COMMITTER_NAME=rdev GIT_COMMITTER_EMAIL=rdev@localhost
export GIT_DIR="$clone/.git"
own="$GIT_DIR/worktrees/$session"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tracked="refs/remotes/origin/$branch"
free_locks "$GIT_DIR/packed-refs" "$GIT_DIR/$tracked" "$GIT_DIR/refs/rdev-rescue/$session"
talk() { with_credential "$site" "sessions/$session" "$@"; }
commit_of() { git rev-parse --verify --quiet "$1^{commit}" || true; }
head_name="refs/heads/$branch"
if test -f "$own/HEAD"; then
    GIT_DIR=$own head_name=HEAD
elif ! git rev-parse --git-dir >/dev/null 2>&1; then
    # The clone is gone: another one, of this branch alone.
    (unset GIT_DIR && git init --quiet --bare "$scratch/clone")
    GIT_DIR="$scratch/clone"
    talk fetch --quiet --no-tags "$url" "+refs/heads/$branch:refs/heads/$branch"
fi

# What the git host has. A branch that is gone there holds nothing.
if ! talk fetch --quiet --no-tags "$url" "+refs/heads/$branch:$tracked" 2>/dev/null; then
    code=0
    talk ls-remote --exit-code "$url" "refs/heads/$branch" >/dev/null 2>&1 || code=$?
    test "$code" != 2 || git update-ref -d "$tracked"
fi

# keep COMMIT: unless it is pushed, or part of what is kept already.
kept=""
keep() {
    test -n "$1" || return 0
    new=$(git rev-list --max-count=1 "$1" --not --remotes=origin $kept 2>/dev/null || echo "$1")
    test -z "$new" || kept="$kept $1"
}
head=$(commit_of "$head_name")
keep "$head"
keep "$(commit_of "refs/heads/$branch")"
was_here() { grep -q "^[0-9a-f]* $1 " "$own/logs/HEAD"; }
if test -f "$own/logs/HEAD"; then
    for tip in $(git for-each-ref --format="%(objectname)" refs/heads); do
        if was_here "$tip"; then keep "$tip"; fi
    done
    since=$(sed -n '1s/^[^>]*> \([0-9]*\) .*/\1/p' "$own/logs/HEAD")
    while read -r stash when said; do
        case "$said" in "WIP on $branch: "* | "On $branch: "*) ;; *) continue ;; esac
        test "$when" -lt "${since:-0}" || keep "$stash"
    done <<LIST
$(git log --walk-reflogs --format="%H %ct %gs" refs/stash -- 2>/dev/null || true)
LIST
fi

# The files, by an index of our own.
was=""
test -z "$head" || was=$(git rev-parse "$head^{tree}")
add() {
    code=0
    git -c core.fsmonitor=false -c core.safecrlf=false add --all --ignore-errors . 2>/dev/null || code=$?
}
anew() {
    rm -f "$GIT_INDEX_FILE" "$GIT_INDEX_FILE.lock"
    test -z "$head" || git read-tree "$head"
}
files() {
    export GIT_WORK_TREE="$worktree" GIT_INDEX_FILE="$scratch/index"
    cd "$worktree"
    cp "$own/index" "$GIT_INDEX_FILE" 2>/dev/null || anew
    add
    if test "$code" != 0 && test "$what" = push; then
        chmod -R u+rwX . 2>/dev/null || true
        add
    fi
    if test "$code" -gt 1; then anew; add; fi
    if test "$code" -gt 1; then one_by_one; fi
    inner
    git write-tree
}
# Where a filter fails, the file as it is.
one_by_one() {
    git ls-files -z --deleted | git update-index -z --remove --stdin || true
    git ls-files -z --modified --others --exclude-standard | xargs -0 -r -n 1 sh -c '
        git add -- "$1" 2>/dev/null && exit
        test -f "$1" && blob=$(git hash-object -w --no-filters -- "$1") &&
            git update-index --add --cacheinfo "100644,$blob,$1"' sh || true
}
# Repositories inside: their commits cannot come along, their files can.
inner() {
    {
        git -c core.quotePath=false diff-index --cached --raw --no-renames "${head:-$(git mktree </dev/null)}" |
            grep "^:[0-7]* 160000 " | cut -f 2-
        git -c core.quotePath=false diff-files --raw | grep "^:160000 " | cut -f 2-
        git -c core.quotePath=false ls-files --others --exclude-standard --directory | sed -n 's|/$||p'
    } | sort -u | while IFS= read -r path; do
        test -e "$worktree/$path/.git" || continue
        rm -f "$scratch/inner"
        tree=$(
            export GIT_WORK_TREE="$worktree/$path" GIT_INDEX_FILE="$scratch/inner"
            cd "$GIT_WORK_TREE" && add && git write-tree
        ) || continue
        git update-index --force-remove -- "$path"
        git read-tree --prefix="$path/" "$tree" || true
    done
}
tree=$was
if test -d "$worktree"; then tree=$(files); fi
if test "$tree" = "$was" && test -z "$kept"; then echo clean; exit 0; fi
if test "$what" = look; then echo dirty; exit 0; fi

commit=""
if test "$tree" = "$was"; then case "${kept# }" in *" "*) ;; *) commit=${kept# } ;; esac; fi
if test -z "$commit"; then
    test -n "$tree" || tree=$(git mktree </dev/null)
    parents=""
    test -z "$head" || parents="-p $head"
    for one in $kept; do test "$one" = "$head" || parents="$parents -p $one"; done
    commit=$(git commit-tree "$tree" $parents -m "Work that was in the session when it ended")
fi
git update-ref "refs/rdev-rescue/$session" "$commit"
for pause in 0 1 2 4 8 16; do
    sleep "$pause"
    if talk push --quiet --no-verify --force "$url" "$commit:refs/heads/$rescue" 2>"$scratch/said"; then
        git update-ref -d "refs/rdev-rescue/$session"
        echo "$commit"
        exit 0
    fi
done
cat "$scratch/said" >&2
exit 3
"#;
/// What the script says by it.
const KEPT: i32 = 3;

impl Workspaces {
    /// Whether the worktree holds work that is in no branch of the git host. Where that cannot be
    /// found out, it may.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn is_dirty(&self, worktree: &Worktree<'_>, base: &str) -> Result<bool> {
        let output = self.run_rescue(worktree, base, "look").await?;
        if output.code != Some(0) {
            tracing::warn!(session.id = worktree.session, said = output.stderr, "a session's work cannot be looked at");
        }
        Ok(output.code != Some(0) || output.stdout.trim() == "dirty")
    }

    /// Pushes such work to the session's rescue branch. `None` when there is none.
    /// A rescue that fails is an answer too, it must not hold up the end.
    pub async fn rescue(&self, worktree: &Worktree<'_>, base: &str) -> Option<Rescue> {
        let failed = |error: String| Some(Rescue { branch: None, sha: None, error: Some(error) });
        let output = match self.run_rescue(worktree, base, "push").await {
            Ok(output) => output,
            Err(error) => {
                tracing::warn!(%error, session.id = worktree.session, "a rescue could not be run");
                return failed("the work could not be pushed".into());
            }
        };
        let kept = format!("the project's clone keeps it as refs/rdev-rescue/{}", worktree.session);
        let said = last_line(&output.stderr);
        match (output.code, output.stdout.trim()) {
            (Some(0), "clean") => None,
            (Some(0), sha) => {
                let branch = rescue_branch(worktree.session);
                Some(Rescue { branch: Some(branch), sha: Some(sha.to_owned()), error: None })
            }
            (Some(KEPT), _) => failed(format!("the work could not be pushed: {said}; {kept}")),
            (Some(_), _) => failed(format!("the work could not be committed: {said}")),
            (None, _) => failed(format!("the work could not be pushed in time; if it was committed by then, {kept}")),
        }
    }

    async fn run_rescue(&self, worktree: &Worktree<'_>, base: &str, what: &str) -> Result<RunOutput> {
        let workspace = self.runtime.paths(worktree.project).workspace;
        let (rescue, url) = (rescue_branch(worktree.session), self.clone_url(base, worktree.project));
        let words = [worktree.path, worktree.branch, &rescue, what, worktree.session, base, &url, &workspace];
        self.script(worktree.project, RESCUE, &words, &[], STEP_LIMIT).await
    }
}

/// The branch that a session's work is rescued to.
pub fn rescue_branch(session: &str) -> String {
    format!("rdev/rescue/{session}")
}

fn last_line(text: &str) -> &str {
    text.trim().lines().last().unwrap_or("git said nothing")
}

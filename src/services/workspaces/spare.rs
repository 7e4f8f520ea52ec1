//! The spare: a worktree that is made before anybody asks for a session, since making one takes as long as writing
//! all its files. It is detached, at the tip of the default branch; a session takes it by renames, and a checkout
//! writes what differs alone. Making it gives way to whoever needs the disk now.
//!
//! What says that it is whole is a marker, `.git/rdev-spare`, put there by a rename when all is done. Whoever renames
//! the marker has the spare, so no two can; what no marker names is half of one, and goes with the next that is made.
//! Folders go by a rename as well: of a taker and a remover one finds nothing there any more, and a session that finds
//! nothing, or not what it expects, is made the long way.

use std::time::Duration;

use super::{STEP_LIMIT, Workspaces, done};
use crate::error::Result;

/// Nobody waits for it.
const LIMIT: Duration = Duration::from_mins(5);

/// What making, taking and asking for one share. An index of some hundred files is as large as that.
pub(super) const SPARE: &str = r#"
is_large() { test "$(wc -c < "$1")" -ge 30000; }
is_spare() { case "${1#spare-}" in "$1" | "" | *[!0-9]*) return 1 ;; esac; }
# What decides how a commit's files are written.
likeness() {
    {
        git config --list | grep -v -E "^(branch|credential|remote|rdev|safe|user)[.]"
        cat .git/info/attributes .git/info/sparse-checkout "$HOME/.config/git/attributes"
    } 2>/dev/null | git hash-object --stdin
}
make_way() { rm -f .git/worktrees/spare-*/making; }
"#;

/// Words and functions of the session's script, in whose workspace it runs. What somebody has changed or left in the
/// spare goes: nothing comes from there into a session.
pub(super) const FROM_SPARE: &str = r#"
from_spare() {
    marker=.git/rdev-spare.$4 name="" commit="" like=""
    test ! -e "$2" && test ! -e "$own" && mv .git/rdev-spare "$marker" 2>/dev/null || return 1
    { read -r name && read -r commit && read -r like; } < "$marker" || name=""
    rm -f -- "$marker"
    is_spare "$name" && test ! -e .git/config.worktree && test "$like" = "$(likeness)" || return 1
    test "$(cat ".git/worktrees/$name/HEAD")" = "$commit" || return 1
    changed=$(git -c core.quotePath=false diff-tree -r --name-only "$commit" "refs/remotes/origin/$3") || return 1
    case "$changed" in *.gitattributes* | *.gitmodules*) return 1 ;; esac
    spare=$(dirname "$2")/$name
    mv ".git/worktrees/$name" "$own" 2>/dev/null || return 1
    if mv "$spare" "$2" 2>/dev/null; then
        if become "$@"; then return 0; fi
        mv "$2" "$spare.gone"
    fi
    rm -rf -- "$own"
    return 1
}
become() {
    read -r _ at < "$2/.git" && echo "gitdir: ${at%/*}/$4" > "$2/.git" &&
        read -r at < "$own/gitdir" && echo "${at%/*/*}/${2##*/}/.git" > "$own/gitdir" &&
        rm -f "$own/ORIG_HEAD" "$own/logs/HEAD" &&
        (
            cd "$2" &&
                git -c core.hooksPath=/dev/null -c checkout.workers=0 checkout --quiet --force --no-track \
                    --ignore-other-worktrees -B "$3" "refs/remotes/origin/$3" &&
                git clean -ffdxq
        ) && rm -f "$own/locked"
}
"#;

/// $1 workspace, $2 folder of worktrees, $3 number, $4 commit, $5 base of the URL, $6 URL. Exit code 75: it gave way.
///
/// Each attempt has a name of its own, so whoever is late with one touches nobody else's; it is locked, so no prune
/// takes it. There is none of a tree that is written by filters, in part, or with other repositories in it, nor where
/// room is short. Git takes for changed what is not older than its index: a second lies between the two.
const PREPARE: &str = r#"
folder=$2 number=$3 commit=$4 name=spare-$3
worktree=$folder/$name own=.git/worktrees/$name
umask 022
cd "$1"
mkdir -p "$folder"
discard() {
    test ! -e "$folder/$1" || mv -- "$folder/$1" "$folder/$1.gone" || true
    rm -rf -- ".git/worktrees/$1"
}
there=""
{ read -r there && read -r _ && read -r like; } 2>/dev/null < .git/rdev-spare || there=""
if ! { is_spare "$there" && test -e "$folder/$there/.git" && test "$like" = "$(likeness)"; }; then
    rm -f .git/rdev-spare
    there=""
fi
for each in "$folder"/spare-* .git/worktrees/spare-*; do
    each=${each##*/}
    is_spare "$each" && test "$each" != "$there" && test "${each#spare-}" -lt "$number" || continue
    discard "$each"
done
for each in "$folder"/spare-*.gone; do
    rm -rf -- "$each" || true
done
test -z "$there" || exit 0
git cat-file -e "$commit^{tree}" 2>/dev/null ||
    with_credential "$5" workspace fetch --quiet --no-tags --no-write-fetch-head "$6" "$commit"

is_worth_it() {
    git ls-tree -r -l "$commit" | {
        files=0 kilobytes=0
        while read -r _ _ _ size _; do
            test "$size" != - || exit 1
            files=$((files + 1)) kilobytes=$((kilobytes + size / 1024 + 4))
        done
        test "$files" -ge 300 || exit 1
        df -Pk "$folder" | tail -n 1 | {
            read -r _ _ _ free _
            test "$free" -gt $((4 * kilobytes + 1048576))
        }
    }
}
is_plain() {
    test ! -e .git/config.worktree && test "$(git config --bool core.sparseCheckout)" != true &&
        ! git grep -q "filter=" "$commit" -- .gitattributes "**/.gitattributes" &&
        ! grep -q "filter=" .git/info/attributes 2>/dev/null
}
is_plain && is_worth_it || exit 0

like=$(likeness)
trap 'discard "$name"; rm -rf -- "$worktree.gone"' EXIT
git -c core.hooksPath=/dev/null worktree add --quiet --force --no-checkout --lock --detach "$worktree" "$commit"
: > "$own/making"
(cd "$worktree" && exec git -c core.hooksPath=/dev/null reset --quiet --hard --no-recurse-submodules) &
writer=$!
while kill -0 "$writer" 2>/dev/null; do
    test -e "$own/making" || kill -9 "$writer" 2>/dev/null || true
    sleep 0.1 2>/dev/null || sleep 1
done
code=0
wait "$writer" || code=$?
test -e "$own/making" || exit 75
test "$code" = 0 || exit 1
sleep 1
(cd "$worktree" && git update-index -q --refresh --force-write-index)
printf "%s\n" "$name" "$commit" "$like" > "$own/marker"
rm "$own/making" 2>/dev/null || exit 75
trap - EXIT
mv -f "$own/marker" .git/rdev-spare
"#;
const GAVE_WAY: i32 = 75;

/// $1 workspace: tells whoever is making one to stop.
const MAKE_WAY: &str = r#"
cd "$1" 2>/dev/null || exit 0
make_way
"#;

impl Workspaces {
    /// Makes the spare of a project, from this commit, unless there is one, or it is not worth it. False: it gave way
    /// to a session, so there is none now. `number` is larger than those of attempts before.
    ///
    /// # Errors
    /// Those of git.
    pub async fn prepare_spare(&self, project: &str, number: i64, sha: &str, base: &str) -> Result<bool> {
        let paths = self.runtime.paths(project);
        let (number, url) = (number.to_string(), self.clone_url(base, project));
        let words = [&paths.workspace, &paths.sessions, &number, sha, base, &url];
        let output = self.script(project, &format!("{SPARE}{PREPARE}"), &words, &[], LIMIT).await?;
        if output.code == Some(GAVE_WAY) {
            return Ok(false);
        }
        done("a spare worktree could not be made", &output).map(|()| true)
    }

    /// Whoever is making one stops within moments.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn stop_spare(&self, project: &str) -> Result<()> {
        let workspace = self.runtime.paths(project).workspace;
        let output = self.script(project, &format!("{SPARE}{MAKE_WAY}"), &[&workspace], &[], STEP_LIMIT).await?;
        done("whoever makes a spare worktree could not be told to stop", &output)
    }
}

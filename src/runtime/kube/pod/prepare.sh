# The folders of rdev's own in the workspace. They are a repository of their own, so that the workspace's `git clean`
# and `git status` leave them alone. Says `git` where there is one.
umask 022
mkdir -p "$rdev_workspace/.rdev/home" "$rdev_workspace/.rdev/sessions" 2>/dev/null || {
    echo "a folder $rdev_workspace that can be written to" >&2
    exit 96
}
for rdev_tool in cat head ls mkdir mkfifo mv rm setsid sleep tr dd; do
    command -v "$rdev_tool" >/dev/null 2>&1 || {
        echo "the program $rdev_tool" >&2
        exit 96
    }
done
if command -v git >/dev/null 2>&1; then
    test -e "$rdev_workspace/.rdev/.git" || git init -q "$rdev_workspace/.rdev" >&2 || exit 1
    echo git
fi

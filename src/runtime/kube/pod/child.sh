# The command's own process, until it becomes the command. It waits for its parent to have stopped.
read -r rdev_go <go
umask 022
rdev_failed=$PWD/failed
trap 'printf "%s\n" "$rdev_what" >"$rdev_failed"' EXIT
rdev_what="its environment cannot be set"
. ./env
rdev_what="the folder that it is to run in cannot be entered"
. ./argv
rdev_what="the program is not there or cannot be run: $1"
exec "$@"

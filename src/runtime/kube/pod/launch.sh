# Writes down what is to run and starts its supervisor, once, however often it is asked. $rdev_env, $rdev_argv,
# $rdev_vars and $rdev_in are the contents of files; $rdev_ours, $rdev_supervise and $rdev_child are scripts.

rdev_refuse() {
    printf '%s\n' "$1" >&2
    exit 96
}

# put NAME CONTENT: whole or not at all. Whoever asks again writes the same.
rdev_put() {
    printf '%s\n' "$2" >"$rdev_dir/$1.$$" && mv "$rdev_dir/$1.$$" "$rdev_dir/$1" || rdev_refuse "room in $rdev_root"
}

for rdev_tool in cat dd head ls mkdir mkfifo mv rm setsid sleep tr; do
    command -v "$rdev_tool" >/dev/null 2>&1 || rdev_refuse "the program $rdev_tool"
done
test -r /proc/uptime && test -r "/proc/$$/stat" || rdev_refuse "a readable /proc"
# A request that was held up somewhere comes when all is over.
test ! -e "$rdev_gone" || exit 0
umask 077
mkdir -p "$rdev_root/commands" "$rdev_root/gone" 2>/dev/null || rdev_refuse "a folder $rdev_root that can be written to"

if test ! -e "$rdev_dir/started"; then
    # Too late to begin.
    test "$rdev_in_time" = yes || exit 95
    mkdir -p "$rdev_dir" || rdev_refuse "room in $rdev_root"
    rdev_put env "$rdev_env"
    rdev_put argv "$rdev_argv"
    rdev_put vars "$rdev_vars"
    rdev_put child "$rdev_child"
    test -z "${rdev_script+x}" || rdev_put script "$rdev_script"
    printf '%s' "$rdev_in" >"$rdev_dir/in.$$" && mv "$rdev_dir/in.$$" "$rdev_dir/in" || rdev_refuse "room in $rdev_root"
    rdev_put supervise "rdev_root=$rdev_root rdev_key=$rdev_key
$rdev_ours
$rdev_supervise"
    setsid sh "$rdev_dir/supervise" </dev/null >/dev/null 2>&1 &
fi
rdev_tries=0
while test ! -e "$rdev_dir/supervisor" && test ! -e "$rdev_gone"; do
    rdev_tries=$((rdev_tries + 1))
    test "$rdev_tries" -le 300 || rdev_refuse "a supervisor that starts: $(cat "$rdev_dir/log" 2>/dev/null)"
    rdev_nap 0.01
done
exit 0

# Words that all scripts of this folder share. POSIX sh; of programs, what coreutils or busybox have.
# $rdev_root is the folder of this installation in the container, $rdev_key the command's name there.

rdev_dir=$rdev_root/commands/$rdev_key
rdev_gone=$rdev_root/gone/$rdev_key

# Fields of /proc/N/stat from the third on (the name before them may hold anything): $rdev_stat.
rdev_stat() {
    rdev_stat=
    { read -r rdev_stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    rdev_stat=${rdev_stat##*) }
}

# A process that cannot be mistaken for a later one of its number: "PID START".
rdev_name() {
    rdev_stat "$1" || return 1
    set -- "$1" $rdev_stat
    rdev_name="$1 ${21}"
}

# Whether the process that was named in this file lives.
rdev_lives() {
    { read -r rdev_pid rdev_start <"$1"; } 2>/dev/null || return 1
    rdev_stat "$rdev_pid" || return 1
    set -- $rdev_stat
    case $1 in Z | X) return 1 ;; esac
    test "${20}" = "$rdev_start"
}

# Hundredths of a second, of a clock that nobody sets.
rdev_now() {
    read -r rdev_now rdev_rest </proc/uptime
    case $rdev_now in
    0.*) rdev_now=$((1${rdev_now#0.} - 100)) ;;
    *) rdev_now=${rdev_now%.*}${rdev_now#*.} ;;
    esac
}

# Some sleeps know whole seconds alone.
rdev_nap() {
    sleep "$1" 2>/dev/null || sleep 1
}

# Bytes in a file: $rdev_size.
rdev_size() {
    set -- $(ls -ln "$1" 2>/dev/null)
    rdev_size=${5:-0}
}

# Kills once whatever carries the command's marks: its group, its session, its environment. $rdev_main is the first
# process of the command, $rdev_since when it began. Counts in $rdev_left what was there to kill.
rdev_kill() {
    rdev_left=0
    rdev_leader=$rdev_main
    # A later process under the number of one that is gone is not the command's.
    if rdev_name "$rdev_main" && test "$rdev_name" != "$rdev_main $rdev_since"; then rdev_leader=-; fi
    for rdev_each in /proc/[0-9]*; do
        rdev_each=${rdev_each#/proc/}
        rdev_stat "$rdev_each" || continue
        set -- $rdev_stat
        case $1 in Z | X) continue ;; esac
        test "${20}" -ge "$rdev_since" || continue
        if test "$3" = "$rdev_leader" || test "$4" = "$rdev_leader" || rdev_marked "$rdev_each"; then
            kill -KILL "$rdev_each" 2>/dev/null && rdev_left=$((rdev_left + 1))
        fi
    done
}

# Whether both marks are whole variables of the process's environment.
rdev_marked() {
    tr '\0\n' '\n\001' <"/proc/$1/environ" 2>/dev/null | {
        found=0
        while IFS= read -r line; do
            case $line in "$rdev_mark_command" | "$rdev_mark_project") found=$((found + 1)) ;; esac
        done
        test "$found" -ge 2
    }
}

# Until nothing is left, or for five seconds.
rdev_kill_all() {
    rdev_now
    rdev_patience=$((rdev_now + 500))
    while rdev_kill && test "$rdev_left" -gt 0; do
        rdev_now
        test "$rdev_now" -lt "$rdev_patience" || return 1
        rdev_nap 0.01
    done
}

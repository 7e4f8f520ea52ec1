# Stays with one command until its end, whoever asks for it meanwhile. The file `exit` comes last and whole; the file
# `supervisor` names this process, so that everybody sees whether it lives.

umask 077
cd "$rdev_dir" || exit 1
. ./vars
rdev_name $$ || exit 1
echo "$rdev_name" >"supervisor.$$"
if ! mkdir started 2>/dev/null; then
    rm -f "supervisor.$$"
    exit 0
fi
if test -e "$rdev_gone"; then
    rm -rf "$rdev_dir"
    exit 0
fi
exec 2>log
# Whoever sees the supervisor can read what its command writes.
: >out && : >err
mv "supervisor.$$" supervisor
rdev_reader_out=
rdev_reader_err=

# finish TERMINATION CODE SIGNAL [MESSAGE]
rdev_finish() {
    test -z "$rdev_reader_out" || kill -KILL "$rdev_reader_out" "$rdev_reader_err" 2>/dev/null
    rdev_now
    { echo "$1 $2 $3 $rdev_now"; test -z "${4-}" || printf '%s\n' "$4"; } >"$rdev_dir/exit.new"
    mv "$rdev_dir/exit.new" "$rdev_dir/exit"
    exit 0
}

# One reader for each output: it writes on even when the command's own end of the pipe is somewhere else.
mkfifo o e go && test -e out && test -e err || rdev_finish start_failed - - "the supervisor cannot use $rdev_dir"
(
    test "$rdev_limit" = 0 || ulimit -f $((rdev_limit / 512 + 1))
    exec cat <o >>out
) &
rdev_reader_out=$!
(
    test "$rdev_limit" = 0 || ulimit -f $((rdev_limit / 512 + 1))
    exec cat <e >>err
) &
rdev_reader_err=$!

# The command's parent stops itself, so that no shell takes the dead command away before how it ended was read.
sh -c '
    setsid sh ./child <"$1" >o 2>e &
    echo $! >main.new
    mv main.new main
    kill -STOP $$
    wait $!
    echo $? >code
' rdev "$rdev_stdin" &
rdev_parent=$!
rdev_name "$rdev_parent" && echo "$rdev_name" >parent
while rdev_stat "$rdev_parent"; do
    case $rdev_stat in T*) break ;; esac
    rdev_nap 0.01
done
{ read -r rdev_main <main && rdev_name "$rdev_main"; } || rdev_finish start_failed - - "the command's first process died"
rdev_since=${rdev_name#* }
echo "$rdev_name" >main.new && mv main.new main
echo >go

rdev_cause=
# blame CAUSE: the first one counts. TERM now, KILL after the grace.
rdev_blame() {
    test -z "$rdev_cause" || return 0
    rdev_cause=$1
    rdev_now
    rdev_kill_at=$((rdev_now + rdev_grace))
    if test "$rdev_grace" -gt 0; then kill -TERM "-$rdev_main" 2>/dev/null; fi
}

rdev_now
rdev_deadline=$((rdev_now + rdev_timeout))
rdev_began=$rdev_now
rdev_measured=$rdev_now
rdev_given_up=
while :; do
    rdev_stat "$rdev_main" || break
    case $rdev_stat in Z* | X*) break ;; esac
    if test -e end; then
        read -r rdev_asked <end
        rdev_blame "${rdev_asked:-cancelled}"
    fi
    rdev_now
    test "$rdev_now" -lt "$rdev_deadline" || rdev_blame timeout
    if test "$rdev_limit" -gt 0 && test $((rdev_now - rdev_measured)) -ge 30; then
        rdev_measured=$rdev_now
        rdev_size out
        rdev_sum=$rdev_size
        rdev_size err
        test $((rdev_sum + rdev_size)) -le "$rdev_limit" || rdev_blame output_limit
    fi
    if test -n "$rdev_cause" && test "$rdev_now" -ge "$rdev_kill_at"; then
        kill -KILL "-$rdev_main" 2>/dev/null
        if test "$rdev_now" -ge $((rdev_kill_at + 1000)); then
            rdev_given_up=yes
            break
        fi
    fi
    if test $((rdev_now - rdev_began)) -lt 100; then
        rdev_nap 0.02
    elif test $((rdev_now - rdev_began)) -lt 1000; then
        rdev_nap 0.1
    else
        rdev_nap 0.25
    fi
done

# How it ended, as the kernel says it: in the last field of a dead process's line, for those who may see it. Nought
# there is said to others too, so they are told from us by their ids and their powers.
rdev_code=-
rdev_signal=-
rdev_ids() {
    rdev_ids=
    while IFS= read -r line; do
        case $line in Uid:* | Gid:* | CapPrm:*) rdev_ids="$rdev_ids $line" ;; esac
    done 2>/dev/null <"/proc/$1/status"
}
rdev_seen=no
if rdev_stat "$rdev_main"; then
    set -- $rdev_stat
    rdev_ids $$
    rdev_own=$rdev_ids
    rdev_ids "$rdev_main"
    if test "$rdev_own" = "$rdev_ids" && test $# -ge 50; then
        rdev_seen=yes
        rdev_word=${50}
        if test $((rdev_word & 127)) -gt 0; then
            rdev_signal=$((rdev_word & 127))
        else
            rdev_code=$((rdev_word >> 8 & 255))
        fi
    fi
fi

rdev_kill_all
kill -CONT "$rdev_parent" 2>/dev/null
test -n "$rdev_given_up" || wait "$rdev_parent" 2>/dev/null
# What the pipes still hold is read. Only what erased all marks can keep one open.
rdev_now
rdev_patience=$((rdev_now + 500))
while rdev_now && test "$rdev_now" -lt "$rdev_patience"; do
    rdev_open=
    for rdev_each in "$rdev_reader_out" "$rdev_reader_err"; do
        if rdev_stat "$rdev_each"; then
            case $rdev_stat in Z*) ;; *) rdev_open=yes ;; esac
        fi
    done
    test -n "$rdev_open" || break
    rdev_nap 0.01
done

if test "$rdev_seen" = no && { read -r rdev_told <code; } 2>/dev/null && test "$rdev_told" -le 128; then
    rdev_code=$rdev_told
fi
rdev_size out
rdev_sum=$rdev_size
rdev_size err
if test "$rdev_limit" -gt 0 && test $((rdev_sum + rdev_size)) -gt "$rdev_limit"; then rdev_cause=output_limit; fi
if test -n "$rdev_cause"; then
    rdev_finish "$rdev_cause" "$rdev_code" -
elif test -e failed; then
    rdev_finish start_failed - - "$(cat failed)"
elif test "$rdev_signal" != -; then
    rdev_finish signal - "$rdev_signal"
elif test "$rdev_code" != -; then
    rdev_finish exit "$rdev_code" -
else
    rdev_finish supervisor_lost - - "how the command ended cannot be seen"
fi

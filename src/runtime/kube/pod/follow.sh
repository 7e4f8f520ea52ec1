# Shows what a command did, from $rdev_out and $rdev_err bytes on, until its end: `o N` or `e N` and so many bytes,
# `t` where there was nothing for a while, `m TEXT` for each line of what there is to say of the end, and last
# `x TERMINATION CODE SIGNAL AGE`.

cd "$rdev_dir" 2>/dev/null || {
    if test -e "$rdev_gone"; then echo "x forgotten - - 0"; else echo "x missing - - 0"; fi
    exit 0
}
# A shell that cannot open what `exec` names ends at once.
test -e out && test -e err || { echo "x unborn - - 0"; exit 0; }
exec 3<out 4<err
dd bs=1 skip="$rdev_out" count=0 <&3 2>/dev/null
dd bs=1 skip="$rdev_err" count=0 <&4 2>/dev/null

# show LETTER FROM SIZE: at most 1 MiB; how much in $rdev_shown.
rdev_show() {
    rdev_shown=$(($3 - $2))
    test "$rdev_shown" -gt 0 || return 1
    test "$rdev_shown" -le 1048576 || rdev_shown=1048576
    echo "$1 $rdev_shown"
    rdev_blocks=$((rdev_shown / 65536))
    rdev_odd=$((rdev_shown % 65536))
    test "$rdev_blocks" = 0 || dd bs=65536 count="$rdev_blocks" 2>/dev/null
    test "$rdev_odd" = 0 || dd bs="$rdev_odd" count=1 2>/dev/null
}

rdev_lost() {
    . ./vars
    if { read -r rdev_main rdev_since <main; } 2>/dev/null && test -n "$rdev_since"; then rdev_kill_all; fi
    if rdev_lives parent; then kill -KILL "$rdev_pid"; fi
}

# Until it is sure: a supervisor that is not seen for so many looks is gone.
rdev_unseen=0
rdev_quiet=0
rdev_over=
while :; do
    if test -e exit; then rdev_over=yes; fi
    rdev_any=
    set -- $(ls -ln out err 2>/dev/null)
    rdev_size_err=$5
    # `ls` sorts: err comes first, and each line has nine words.
    shift 9
    rdev_size_out=$5
    if rdev_show o "$rdev_out" "$rdev_size_out" <&3; then
        rdev_out=$((rdev_out + rdev_shown))
        rdev_any=yes
    fi
    if rdev_show e "$rdev_err" "$rdev_size_err" <&4; then
        rdev_err=$((rdev_err + rdev_shown))
        rdev_any=yes
    fi
    if test -n "$rdev_any"; then
        rdev_quiet=0
        continue
    fi
    if test -n "$rdev_over"; then
        { read -r rdev_termination rdev_code rdev_signal rdev_at; } <exit
        {
            read -r rdev_first
            while IFS= read -r rdev_line; do printf 'm %s\n' "$rdev_line"; done
        } <exit
        rdev_now
        echo "x $rdev_termination $rdev_code $rdev_signal $((rdev_now - rdev_at))"
        exit 0
    fi
    if test -e exit; then
        :
    elif rdev_lives supervisor; then
        rdev_unseen=0
    else
        rdev_unseen=$((rdev_unseen + 1))
        if test "$rdev_unseen" -gt 5; then
            # What it wrote before it died is still to be shown.
            if test "$rdev_unseen" -gt 6; then echo "x lost - - 0"; exit 0; fi
            rdev_lost
            rdev_nap 0.2
        fi
    fi
    rdev_quiet=$((rdev_quiet + 1))
    if test "$rdev_quiet" -lt 20; then rdev_nap 0.02; elif test "$rdev_quiet" -lt 100; then rdev_nap 0.1; else rdev_nap 0.25; fi
    # Whoever listens sees that the line lives.
    if test $((rdev_quiet % 20)) = 0; then echo t || exit 0; fi
done

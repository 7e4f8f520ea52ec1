# A helper, to its end. $rdev_limit is how long it may take, in seconds; $rdev_in is what it reads.
rdev_guard=
if command -v timeout >/dev/null 2>&1; then rdev_guard="timeout -s KILL $rdev_limit"; fi
cd -- "$rdev_cwd" || exit 126
printf '%s' "$rdev_in" | $rdev_guard "$@"
exit $?

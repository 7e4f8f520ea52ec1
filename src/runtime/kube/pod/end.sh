# Asks the supervisor for the command's end; the first reason stands.
if cd "$rdev_dir" 2>/dev/null && test ! -e exit && test ! -e end; then
    echo "$rdev_why" >"end.$$" && mv "end.$$" end
fi
exit 0

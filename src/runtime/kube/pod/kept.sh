# Names of the commands of which something is kept.
cd "$rdev_root/commands" 2>/dev/null || exit 0
for rdev_each in *; do
    case $rdev_each in *[!0-9]*) ;; *) echo "$rdev_each" ;; esac
done

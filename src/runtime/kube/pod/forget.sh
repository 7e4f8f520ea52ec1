# Nothing is left but that it was.
umask 077
mkdir -p "$rdev_root/gone" && : >"$rdev_gone" && rm -rf "$rdev_dir"

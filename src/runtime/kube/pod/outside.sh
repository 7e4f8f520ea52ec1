# Whether $rdev_below leads out of $rdev_whole, links followed: says `outside`. What is not there is not.
cd -P -- "$rdev_whole" 2>/dev/null || exit 0
rdev_top=$(pwd -P)
cd -P -- "$rdev_below" 2>/dev/null || exit 0
case $(pwd -P)/ in "$rdev_top"/*) ;; *) echo outside ;; esac

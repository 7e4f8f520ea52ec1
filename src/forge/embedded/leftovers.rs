//! What a git that was ended leaves in a repository: since 2.38 it does not remove the
//! incoming objects of a push on a signal, and killed outright it leaves the lock file
//! of the ref it was at, which blocks that ref for good.

use std::{fs, path::Path, time::Duration};

/// No git holds the lock of a ref for as long as that.
const LOCK_AGE: Duration = Duration::from_mins(10);

/// To be called while no push into the repository is under way.
pub fn remove(repository: &Path) {
    for entry in fs::read_dir(repository.join("objects")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if (name.starts_with("tmp_objdir-") || name.starts_with("incoming-"))
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, "the objects of a broken-off push are left over");
        }
    }
    remove_old_locks(&repository.join("refs"));
    remove_if_old(&repository.join("packed-refs.lock"));
}

fn remove_old_locks(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_old_locks(&path);
        } else if path.extension().is_some_and(|extension| extension == "lock") {
            remove_if_old(&path);
        }
    }
}

fn remove_if_old(path: &Path) {
    let changed = path.metadata().and_then(|data| data.modified());
    if changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LOCK_AGE)) {
        let _ = fs::remove_file(path);
    }
}

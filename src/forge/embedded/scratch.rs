//! Repositories on their way in or out. Each has a lock beside it that lives as long
//! as the process that works on it, so that what a killed server left behind is told
//! from what another one is busy with.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{super::git::GitError, io_error};

/// A folder of our own under `tmp`; removed on drop unless it was published.
pub struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// An empty folder.
    pub fn new(tmp: &Path) -> Result<Self, GitError> {
        let make = || {
            let name = Uuid::new_v4().simple().to_string();
            let lock_path = tmp.join(format!("{name}.lock"));
            let lock = File::create_new(&lock_path)?;
            lock.lock()?;
            let path = tmp.join(name);
            fs::create_dir(&path)?;
            Ok(Self { path, lock_path, _lock: lock })
        };
        make().map_err(|error| io_error("a temporary folder for a repository", error))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the folder to `place`, at once and for good, unless something is there.
    pub fn publish(self, place: &Path) -> Result<(), GitError> {
        // Onto a folder that is not empty, which a repository never is, rename fails.
        match fs::rename(&self.path, place) {
            Ok(()) => sync_parent(place).map_err(|error| io_error("storing a repository", error)),
            Err(error) if is_taken(&error) => Err(GitError::Exists),
            Err(error) => Err(io_error("storing a repository", error)),
        }
    }

    /// Moves what is at `place` here, to be removed. Nothing there is fine.
    pub fn bury(self, place: &Path) -> Result<Self, GitError> {
        match fs::rename(place, &self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing a repository", error)),
            _ => sync_parent(place).map(|()| self).map_err(|error| io_error("removing a repository", error)),
        }
    }

    pub fn remove(self) -> Result<(), GitError> {
        remove_all(&self.path).map_err(|error| io_error("removing a repository", error))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.path) {
            // The lock file stays, and so the next start tries again.
            tracing::warn!(%error, path = %self.path.display(), "a temporary folder is left over");
            return;
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Removes what servers that are gone have left in `tmp`.
pub fn sweep(tmp: &Path) {
    let Ok(entries) = fs::read_dir(tmp) else {
        return;
    };
    for lock_path in entries.flatten().map(|entry| entry.path()) {
        if lock_path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        // Between its creation and its lock a lock is free for an instant: leave young ones alone.
        let old = |file: &File| file.metadata()?.modified()?.elapsed().map_err(io::Error::other);
        let Ok(lock) = File::open(&lock_path) else {
            continue;
        };
        let settled = old(&lock).is_ok_and(|age| age.as_secs() >= 5);
        if settled && lock.try_lock().is_ok() {
            let path = lock_path.with_extension("");
            drop(Scratch { path, lock_path, _lock: lock });
        }
    }
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_taken(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

//! Which processes on this machine still live: a locked file each, in the data directory.
//!
//! The kernel lets go of the lock whatever a process dies of, so a lease need not be waited for where this file can be
//! seen. It says nothing about processes on other machines; there the lease alone counts.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{DataDir, ensure_folder, fault};

/// Held as long as the process lives: keep it in a value that is dropped last.
#[derive(Debug)]
pub struct ProcessLock {
    _held: File,
}

impl ProcessLock {
    /// To be taken before the id is shown to anyone else.
    ///
    /// # Errors
    /// The file cannot be made, the id is not made of letters, digits and `-`, or another process goes by it.
    pub fn take(dir: &DataDir, process_id: &str) -> Result<Self, String> {
        let file = lock_file(dir, process_id).ok_or_else(|| format!("{process_id:?} is no process id"))?;
        ensure_folder(&folder(dir), 0o700)?;
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if let Some(mut held) = try_take(&file).map_err(|e| fault("lock", &file, &e))? {
                // For people who look: the lock is what counts.
                writeln!(held, "{}", std::process::id()).map_err(|e| fault("write", &file, &e))?;
                return Ok(Self { _held: held });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(fault("lock", &file, &"another process holds it"))
    }

    /// Whether the process has ended: `None` when there is no trace of it here, so it may live on another machine.
    #[must_use]
    pub fn is_dead(dir: &DataDir, process_id: &str) -> Option<bool> {
        let file = File::open(lock_file(dir, process_id)?).ok()?;
        match file.try_lock_shared() {
            Ok(()) => Some(true),
            Err(TryLockError::WouldBlock) => Some(false),
            Err(TryLockError::Error(_)) => None,
        }
    }

    /// Removes the files of processes that have ended, and says whose they were: `is_dead` no longer knows them.
    #[must_use]
    pub fn sweep(dir: &DataDir) -> Vec<String> {
        let Ok(entries) = fs::read_dir(folder(dir)) else { return Vec::new() };
        entries.flatten().filter_map(|entry| sweep_one(dir, entry.file_name().to_str()?)).collect()
    }
}

fn sweep_one(dir: &DataDir, name: &str) -> Option<String> {
    let id = name.strip_suffix(".lock")?;
    let path = lock_file(dir, id)?;
    let file = File::open(&path).ok()?;
    file.try_lock().ok()?;
    fs::remove_file(&path).ok()?;
    Some(id.to_owned())
}

/// None: someone looks at the file right now, or swept it before it was locked.
fn try_take(file: &PathBuf) -> std::io::Result<Option<File>> {
    let held = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(file)?;
    match held.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    let own = held.metadata()?.ino();
    Ok(fs::metadata(file).is_ok_and(|found| found.ino() == own).then_some(held))
}

fn folder(dir: &DataDir) -> PathBuf {
    dir.path().join("processes")
}

fn lock_file(dir: &DataDir, id: &str) -> Option<PathBuf> {
    let safe = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    safe.then(|| folder(dir).join(format!("{id}.lock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(above: &tempfile::TempDir) -> DataDir {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(above.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        DataDir::open(&above.path().join("d")).expect("opens")
    }

    #[test]
    fn a_process_is_alive_while_its_lock_is_held() {
        let above = tempfile::tempdir().expect("temporary directory");
        let dir = opened(&above);
        assert_eq!(ProcessLock::is_dead(&dir, "p1"), None);
        let held = ProcessLock::take(&dir, "p1").expect("taken");
        assert_eq!(ProcessLock::is_dead(&dir, "p1"), Some(false));
        assert_eq!(ProcessLock::sweep(&dir), Vec::<String>::new());
        drop(held);
        assert_eq!(ProcessLock::is_dead(&dir, "p1"), Some(true));
    }

    #[test]
    fn what_has_ended_is_dead_until_it_is_swept() {
        let above = tempfile::tempdir().expect("temporary directory");
        let dir = opened(&above);
        drop(ProcessLock::take(&dir, "p1").expect("taken"));
        assert_eq!(ProcessLock::is_dead(&dir, "p1"), Some(true));
        assert_eq!(ProcessLock::sweep(&dir), vec!["p1".to_owned()]);
        assert_eq!(ProcessLock::is_dead(&dir, "p1"), None);
    }

    #[test]
    fn an_id_cannot_lead_out_of_the_folder() {
        let above = tempfile::tempdir().expect("temporary directory");
        let dir = opened(&above);
        assert!(ProcessLock::take(&dir, "../secret").is_err());
        assert_eq!(ProcessLock::is_dead(&dir, "../.lock"), None);
    }
}

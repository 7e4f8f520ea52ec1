//! Where things lie on this machine: the data directory, and the place of its big folders.
//!
//! The two are one folder, unless rdev runs as root and other users cannot enter the data directory (it lies under
//! `/root`, say): the database and the commands run as other users, so what they need then goes to `/var/lib/rdev`,
//! and a note in the data directory remembers where. Nothing here knows what the folders are filled with.

mod files;
mod place;
mod process_lock;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use sha2::{Digest, Sha256};

pub(crate) use files::{ensure_folder, fault, sync_folder, write_private};
pub use place::{can_enter, database_user};
pub use process_lock::ProcessLock;

const SECRET_BYTES: usize = 32;

/// An opened data directory. All paths are absolute and canonical.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
    place: PathBuf,
}

impl DataDir {
    /// Creates the directory where it is missing and finds out where its big folders go. May be called by several
    /// processes at once; all get the same answer.
    ///
    /// # Errors
    /// A sentence for the operator: the directory cannot be made or entered, or its note leads nowhere.
    pub fn open(path: &Path) -> Result<Self, String> {
        place::make_folders(path)?;
        let path = path.canonicalize().map_err(|e| fault("open the data directory", path, &e))?;
        let _guard = guard(&path)?;
        let place = match place::noted(&path)? {
            Some(place) => place,
            None if geteuid().is_root() => place::choose(&path)?,
            None => path.clone(),
        };
        Ok(Self { path, place })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds git/, workspaces/, homes/, tmp/, commands/ and postgres/.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The place, when it is not the data directory itself: to be told to the operator.
    #[must_use]
    pub fn relocated(&self) -> Option<&Path> {
        (self.place != self.path).then_some(self.place.as_path())
    }

    #[must_use]
    pub fn git(&self) -> PathBuf {
        self.place.join("git")
    }

    #[must_use]
    pub fn workspaces(&self) -> PathBuf {
        self.place.join("workspaces")
    }

    #[must_use]
    pub fn homes(&self) -> PathBuf {
        self.place.join("homes")
    }

    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.place.join("tmp")
    }

    #[must_use]
    pub fn commands(&self) -> PathBuf {
        self.place.join("commands")
    }

    /// The embedded server's folder; what lies in it is `database::embedded`'s affair.
    #[must_use]
    pub fn postgres(&self) -> PathBuf {
        self.place.join("postgres")
    }

    #[must_use]
    pub fn admin_key_file(&self) -> PathBuf {
        self.path.join("admin.key")
    }

    /// Creates the folders of the place. As root, those in which other users have something below may be passed
    /// through (0711), never listed; everything else is 0700.
    ///
    /// # Errors
    /// A sentence that names the folder which cannot be made.
    pub fn ensure(&self) -> Result<(), String> {
        let passable = if geteuid().is_root() { 0o711 } else { 0o700 };
        for folder in [self.workspaces(), self.homes(), self.tmp(), self.postgres()] {
            ensure_folder(&folder, passable)?;
        }
        for folder in [self.git(), self.commands()] {
            ensure_folder(&folder, 0o700)?;
        }
        Ok(())
    }

    /// The data directory's secret: made at the first call, the same ever after and for every process.
    ///
    /// # Errors
    /// The file cannot be read or written, or does not hold what was once put there. It is never made anew then: what
    /// was sealed with it could not be opened again.
    pub fn secret(&self) -> Result<[u8; SECRET_BYTES], String> {
        let file = self.path.join("secret");
        let _guard = guard(&self.path)?;
        let kept = match fs::read(&file) {
            Ok(kept) => kept,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut fresh = [0; SECRET_BYTES];
                rand::fill(&mut fresh);
                write_private(&file, &fresh).map_err(|e| fault("write", &file, &e))?;
                return Ok(fresh);
            }
            Err(e) => return Err(fault("read", &file, &e)),
        };
        <[u8; SECRET_BYTES]>::try_from(kept.as_slice()).map_err(|_| {
            format!(
                "{} holds {} bytes instead of {SECRET_BYTES}: restore it from a backup; remove it only if nothing that \
                 was sealed with it is needed any more",
                file.display(),
                kept.len()
            )
        })
    }
}

/// 16 hexadecimal digits that stand for a path where it is too long, or too telling, to be used itself.
#[must_use]
pub fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_bytes());
    let first = digest.first_chunk().expect("a digest has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(*first))
}

/// Only one process at a time decides about a data directory.
fn guard(path: &Path) -> Result<File, String> {
    let file = path.join(".lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&file);
    open.and_then(|lock| lock.lock().map(|()| lock)).map_err(|e| {
        format!(
            "cannot write in the data directory {}: {e}. Start rdev as the user who owns it, or name another one \
             (RDEV_DATA_DIR)",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_fresh_directory_is_its_own_place_where_others_may_enter() {
        let above = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(above.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let opened = DataDir::open(&above.path().join("a/b")).expect("opens");
        assert_eq!(opened.relocated(), None);
        opened.ensure().expect("folders");
        let mode = |path: &Path| fs::metadata(path).expect("exists").mode() & 0o777;
        assert_eq!(mode(&opened.git()), 0o700);
        assert_eq!(mode(&opened.workspaces()), if geteuid().is_root() { 0o711 } else { 0o700 });
        assert_eq!(mode(opened.path()), if geteuid().is_root() { 0o711 } else { 0o700 });
    }

    #[test]
    fn a_note_is_honoured_and_one_that_leads_nowhere_refused() {
        let above = tempfile::tempdir().expect("temporary directory");
        let elsewhere = tempfile::tempdir().expect("temporary directory");
        fs::write(above.path().join("place"), format!("{}\n", elsewhere.path().display())).expect("note");
        let opened = DataDir::open(above.path()).expect("opens");
        assert_eq!(opened.relocated(), Some(elsewhere.path()));
        drop(elsewhere);
        let refused = DataDir::open(above.path()).expect_err("leads nowhere");
        assert!(refused.contains("bring it back"), "{refused}");
    }

    #[test]
    fn all_who_ask_at_once_get_one_secret() {
        let above = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(above.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let opened = DataDir::open(&above.path().join("d")).expect("opens");
        let secrets: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| opened.secret().expect("secret"))).collect();
            asking.into_iter().map(|thread| thread.join().expect("joins")).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0] && *secret != [0; 32]));
        let kept = fs::metadata(opened.path().join("secret")).expect("exists");
        assert_eq!(kept.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_secret_is_refused_and_kept() {
        let above = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(above.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let opened = DataDir::open(&above.path().join("d")).expect("opens");
        fs::write(opened.path().join("secret"), b"short").expect("written");
        assert!(opened.secret().expect_err("refused").contains("5 bytes instead of 32"));
        assert_eq!(fs::read(opened.path().join("secret")).expect("kept"), b"short");
    }
}

//! The files of one embedded server: lock, password, socket, and what it is started with.
//!
//! The folder itself belongs to rdev; what the server writes (`data`, the socket's folder) belongs to its user, so
//! nothing that a taken-over server could have planted is opened with rdev's rights. How the data come to be is told
//! in `initdb`; which processes run on them is not looked at here.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid};

use super::POLL;
use crate::data_dir::{can_enter, ensure_folder, fault, short_hash};
use crate::database::postgres_child::Account;

/// What a path has to leave free for `/.s.PGSQL.5432` and the closing zero in the kernel's 108 bytes.
const LONGEST_SOCKET_DIR: usize = 108 - 1 - "/.s.PGSQL.65535".len();
/// Given on the command line, so that they hold whatever version of rdev made the files. Failed statements go to the
/// log without their text and details, which may hold what is secret.
const SETTINGS: [&str; 22] = [
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "max_connections=100",
    "shared_buffers=128MB",
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
    "wal_compression=on",
    "max_wal_size=1GB",
    "jit=off",
    "max_parallel_workers_per_gather=0",
    "max_logical_replication_workers=0",
    "timezone=UTC",
    "log_timezone=UTC",
    "lc_messages=C",
    "logging_collector=off",
    "log_destination=stderr",
    "log_checkpoints=off",
    "log_error_verbosity=terse",
    "log_min_error_statement=panic",
    "log_line_prefix=%m [%p] ",
    "update_process_title=on",
];

#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    socket_dir: PathBuf,
}

/// What a server says of itself in `postmaster.pid`.
#[derive(Debug, PartialEq, Eq)]
pub struct Status {
    pub pid: u32,
    pub port: u16,
    pub socket_dir: PathBuf,
    ready: bool,
}

impl Status {
    /// Whether it says that it is ready, and answers.
    pub fn accepts(&self) -> bool {
        self.ready && UnixStream::connect(self.socket_dir.join(format!(".s.PGSQL.{}", self.port))).is_ok()
    }
}

impl Cluster {
    /// Makes the folder and the socket's, and checks that the account can use both.
    pub fn open(dir: &Path, account: &Account) -> Result<Self, String> {
        ensure_folder(dir, if account.other().is_some() { 0o711 } else { 0o700 })?;
        let dir = dir.canonicalize().map_err(|e| fault("open", dir, &e))?;
        if let Some(user) = account.other().filter(|user| !can_enter(&dir, user.uid, user.gid)) {
            return Err(format!(
                "PostgreSQL does not run as root, and the user {} that it would run as cannot enter {}: name a data \
                 directory that others can enter (RDEV_DATA_DIR), or set DATABASE_URL",
                user.name,
                dir.display()
            ));
        }
        Ok(Self { socket_dir: socket_dir_for(&dir, account)?, dir })
    }

    /// Held by the rdev that owns the server, for as long as it lives.
    pub fn lock(&self) -> Result<File, String> {
        let path = lock_file(&self.dir);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| fault("open", &path, &e))?;
        // `is_locked` holds it for an instant, too.
        let deadline = Instant::now() + Duration::from_millis(250);
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(POLL),
                Err(TryLockError::WouldBlock) => return Err(taken(&self.dir, &mut file)),
                Err(TryLockError::Error(e)) => return Err(fault("lock", &path, &e)),
            }
        }
        let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        noted.map_err(|e| fault("write", &path, &e))?;
        Ok(file)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// What the server's processes show in their titles.
    pub fn name(&self) -> String {
        format!("rdev-{}", short_hash(&self.dir))
    }

    pub fn status(&self) -> Option<Status> {
        status(&self.data())
    }

    /// The version that made the data, if there are any.
    pub fn major(&self) -> Result<Option<u32>, String> {
        let data = self.data();
        let empty =
            fs::read_dir(&data).map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |mut e| e.next().is_none());
        if empty {
            return Ok(None);
        }
        let file = data.join("PG_VERSION");
        let text = fs::read_to_string(&file).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => owned_by_another(&data),
            _ => format!("{} is no database of PostgreSQL: {}: {e}", data.display(), file.display()),
        })?;
        let major =
            text.trim().parse().map_err(|_| format!("{} says {text:?}, which is no version", file.display()))?;
        Ok(Some(major))
    }

    pub fn arguments(&self, port: u16) -> Vec<std::ffi::OsString> {
        let mut args = vec!["-D".into(), self.data().into_os_string()];
        let mut sockets = std::ffi::OsString::from("unix_socket_directories=");
        sockets.push(&self.socket_dir);
        let named = [format!("port={port}").into(), sockets, format!("cluster_name={}", self.name()).into()];
        for setting in SETTINGS.iter().map(|setting| (*setting).into()).chain(named) {
            args.extend(["-c".into(), setting]);
        }
        args
    }

    /// Sockets of a server that is gone; the caller knows that none runs.
    pub fn clear_socket(&self) {
        for entry in fs::read_dir(&self.socket_dir).into_iter().flatten().flatten() {
            if entry.file_name().as_bytes().starts_with(b".s.PGSQL.") {
                // Failing, it shows when the server starts.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// After the last stop: a folder outside of the data directory is not left lying about.
    pub fn remove_far_socket_dir(&self) {
        if !self.socket_dir.starts_with(&self.dir) {
            // Fails as it should when something is in it.
            let _ = fs::remove_dir(&self.socket_dir);
        }
    }
}

/// What the server on this data says of itself, if there is one, or was.
pub fn status(data: &Path) -> Option<Status> {
    parse_status(&fs::read_to_string(data.join("postmaster.pid")).ok()?)
}

/// Whether an rdev owns the server of this folder right now.
pub fn is_locked(dir: &Path) -> Result<bool, String> {
    let path = lock_file(dir);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(format!("{}: run this as the user that rdev runs as", fault("open", &path, &e))),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(fault("lock", &path, &e)),
    }
}

pub fn read_password(dir: &Path) -> Result<Option<String>, String> {
    let file = password_file(dir);
    match fs::read_to_string(&file) {
        Ok(password) => Ok(Some(password).filter(|password| !password.is_empty())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fault("read", &file, &e)),
    }
}

fn parse_status(text: &str) -> Option<Status> {
    let lines: Vec<&str> = text.lines().collect();
    Some(Status {
        pid: lines.first()?.trim().parse().ok()?,
        port: lines.get(3)?.trim().parse().ok()?,
        socket_dir: PathBuf::from(lines.get(4)?),
        ready: lines.get(7).is_some_and(|line| line.trim() == "ready"),
    })
}

fn lock_file(dir: &Path) -> PathBuf {
    dir.join("lock")
}

pub fn password_file(dir: &Path) -> PathBuf {
    dir.join("password")
}

fn taken(dir: &Path, lock: &mut File) -> String {
    let mut holder = String::new();
    // Without it the sentence is still true.
    let _ = lock.read_to_string(&mut holder);
    format!(
        "another rdev (process {}) runs the database in {}: stop it first, give this one a data directory of its own \
         (RDEV_DATA_DIR), or give both one DATABASE_URL",
        holder.trim(),
        dir.display()
    )
}

pub fn owned_by_another(data: &Path) -> String {
    let owner = fs::metadata(data).ok().and_then(|found| User::from_uid(found.uid().into()).ok().flatten());
    let owner = owner.map_or_else(|| "another user".to_owned(), |user| format!("the user {}", user.name));
    format!("the database in {} belongs to {owner}: start rdev as that user, or as root", data.display())
}

/// In the folder itself, unless the path is too long for a socket or would need quoting in a setting.
fn socket_dir_for(dir: &Path, account: &Account) -> Result<PathBuf, String> {
    let near = dir.join("run");
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
    let bytes = near.as_os_str().as_bytes();
    if bytes.len() <= LONGEST_SOCKET_DIR && bytes.iter().all(plain) {
        ensure_folder(&near, 0o700)?;
        give(&near, account)?;
        return Ok(near);
    }
    let far = if geteuid().is_root() && Path::new("/run").is_dir() {
        Path::new("/run").join(format!("rdev-{}", short_hash(dir)))
    } else {
        Path::new("/tmp").join(format!("rdev-{}-{}", geteuid(), short_hash(dir)))
    };
    make_far(&far, account)?;
    Ok(far)
}

/// Where everybody can write, somebody else may have been there first.
fn make_far(far: &Path, account: &Account) -> Result<(), String> {
    match DirBuilder::new().mode(0o700).create(far) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(far).map_err(|e| fault("open", far, &e))?;
            if !found.is_dir() || ![geteuid().as_raw(), account.uid().as_raw()].contains(&found.uid()) {
                return Err(format!("{} is not rdev's own folder, but has to be one: remove it", far.display()));
            }
        }
        Err(e) => return Err(fault("make the folder", far, &e)),
    }
    ensure_folder(far, 0o700)?;
    give(far, account)
}

pub fn give(path: &Path, account: &Account) -> Result<(), String> {
    let Some(user) = account.other() else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .map_err(|e| fault(&format!("give the user {}", user.name), path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_when_it_says_so() {
        let file = "41\n/d/data\n1700000000\n5432\n/d/run\n\n  1234 5\nready   \n";
        let status = parse_status(file).expect("status");
        assert_eq!((status.pid, status.port, status.socket_dir.as_path()), (41, 5432, Path::new("/d/run")));
        assert!(status.ready);
        assert!(!parse_status(&file.replace("ready ", "starting")).expect("status").ready);
        assert_eq!(parse_status("41\n/d/data\n"), None, "half written");
    }

    #[test]
    fn a_socket_fits_into_the_kernels_108_bytes() {
        let longest = "x".repeat(LONGEST_SOCKET_DIR) + "/.s.PGSQL.65535";
        assert_eq!(longest.len(), 107);
    }
}

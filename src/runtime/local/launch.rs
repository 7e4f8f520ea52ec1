//! The server's handle on a command that may outlive it: start it, ask for its end, see how it is.
//!
//! The rule: the command's directory is the only connection, so that any server process can take up what another one
//! started. Everything here is quick and blocking, and waits for nobody.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{errno::Errno, fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};

pub use super::leftovers::end_leftovers;
use super::spec::{Exit, Reason, Spec, file};

/// Starts `exe supervise dir` for this command and returns when it runs. `dir` is made if it is not there.
///
/// # Errors
/// `AlreadyExists` when a command was started in `dir` before: a directory is good for one start. Otherwise what the
/// file system said; then nothing runs.
pub fn start(exe: &Path, dir: &Path, spec: &Spec, stdin: Option<&[u8]>) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let lock = take_lock(&dir)?;
    if [file::OUT, file::EXIT].iter().any(|name| dir.join(name).exists()) {
        return Err(started_before(&dir));
    }
    write(&dir.join(file::SPEC), &serde_json::to_vec(spec)?)?;
    if let Some(stdin) = stdin {
        write(&dir.join(file::STDIN), stdin)?;
    }
    let orders = make_orders(&dir)?;
    let mut supervisor = Command::new(exe)
        .arg("supervise")
        .arg(&dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(lock))
        .stdout(Stdio::from(orders))
        .stderr(Stdio::null())
        .spawn()?;
    // So that it leaves no zombie in a server that lives longer. Nothing depends on this thread.
    let reap = move || {
        let _ = supervisor.wait();
    };
    let _ = thread::Builder::new().name("reap".into()).stack_size(64 * 1024).spawn(reap);
    Ok(())
}

/// Asks for the command's end: TERM, and KILL after its grace. False when there is no supervisor to ask any more.
///
/// # Errors
/// What the file system said, other than that nobody is there.
pub fn cancel(dir: &Path, reason: Reason) -> io::Result<bool> {
    if exit(dir).is_some() || !alive(dir) {
        return Ok(false);
    }
    let orders = OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(dir.join(file::CTL));
    let mut orders = match orders {
        Ok(orders) => orders,
        Err(error) if is_gone(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    match orders.write_all(format!("cancel {}\n", reason.as_str()).as_bytes()) {
        // Full of the same, and not read yet.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// Whether the command has a supervisor: from the moment [`start`] was called until `exit.json` is there, or the
/// supervisor was killed.
#[must_use]
pub fn alive(dir: &Path) -> bool {
    match File::open(dir.join(file::LOCK)) {
        Ok(lock) => lock.try_lock_shared().is_err(),
        // What cannot be asked is not declared dead.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// How it ended, once it has. Look here again after [`alive`] said no.
#[must_use]
pub fn exit(dir: &Path) -> Option<Exit> {
    serde_json::from_slice(&fs::read(dir.join(file::EXIT)).ok()?).ok()
}

/// Opened before the supervisor exists and inherited by it: there is no moment at which it lives without its lock.
fn take_lock(dir: &Path) -> io::Result<File> {
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join(file::LOCK))?;
    // Somebody who only looks holds it for a moment.
    for _ in 0..50 {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(started_before(dir))
}

/// Likewise: an order that is given at once is kept for the supervisor to read.
fn make_orders(dir: &Path) -> io::Result<File> {
    let path = dir.join(file::CTL);
    match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content)
}

fn started_before(dir: &Path) -> io::Error {
    let message = format!("a command was started in {} before: use another directory", dir.display());
    io::Error::new(io::ErrorKind::AlreadyExists, message)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENXIO as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_a_lock_or_with_a_free_one_has_no_supervisor() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(!alive(dir.path()));
        assert!(!cancel(dir.path(), Reason::Cancelled).expect("cancel"));
        let lock = take_lock(dir.path()).expect("lock");
        assert!(alive(dir.path()));
        drop(lock);
        assert!(!alive(dir.path()));
        assert_eq!(exit(dir.path()), None);
    }
}

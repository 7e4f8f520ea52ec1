//! The embedded PostgreSQL: the system's own programs, started below the data directory and ended with rdev.
//!
//! A server never outlives its rdev: it is ended in order (`stop`), by the kernel when rdev is killed, and what still
//! hangs on is ended by the next start, before anything touches its files. It listens on a unix socket alone, which
//! its user and root can reach. As root it runs as another user, since PostgreSQL refuses root. Everything here blocks:
//! call it from a thread that may.

mod binaries;
mod cluster;
mod initdb;
mod left_behind;
mod server_log;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use binaries::Binaries;
use cluster::{Cluster, Status};

use super::postgres_child::{Account, Launcher};

const PORT: u16 = 5432;
const ROLE: &str = "rdev";
const DATABASE: &str = "rdev";
/// Recovery after a crash reads at most `max_wal_size` back; nothing on the way to "ready" takes as long as this.
const START_DEADLINE: Duration = Duration::from_mins(5);
const JOIN_DEADLINE: Duration = Duration::from_mins(1);
const FAST_STOP: Duration = Duration::from_secs(20);
const HARD_STOP: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
const LOG_LIMIT: u64 = 32 << 20;

/// What a client needs in order to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectInfo {
    pub socket_dir: PathBuf,
    pub port: u16,
    pub user: String,
    pub password: String,
    pub database: String,
}

impl fmt::Debug for ConnectInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectInfo")
            .field("socket_dir", &self.socket_dir)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// A running server that this process owns. Dropping it stops it.
#[derive(Debug)]
pub struct Embedded {
    cluster: Cluster,
    binaries: Binaries,
    launcher: Launcher,
    info: ConnectInfo,
    server: Mutex<Child>,
    _lock: File,
}

impl Embedded {
    /// Starts the server of this folder, which is made when it is missing, and returns when it accepts connections.
    /// `exe` is this program, or any other that hands the arguments after `postgres-child` to [`super::child_main`].
    ///
    /// # Errors
    /// A text for the operator, sometimes of several lines: what stands in the way and what to do about it.
    pub fn start(dir: &Path, bin_dir: Option<&Path>, exe: &Path) -> Result<Self, String> {
        let account = Account::choose()?;
        let cluster = Cluster::open(dir, &account)?;
        let lock = cluster.lock()?;
        let binaries = Binaries::find(bin_dir, cluster.major()?)?;
        let launcher = Launcher::new(exe, account)?;
        cluster.rotate_log()?;
        left_behind::end_all(&cluster, launcher.account().uid())?;
        let password = cluster.prepare(&binaries, &launcher)?;
        let info = ConnectInfo {
            socket_dir: cluster.socket_dir().to_owned(),
            port: PORT,
            user: ROLE.to_owned(),
            password,
            database: DATABASE.to_owned(),
        };
        let server = Mutex::new(launch(&cluster, &binaries, &launcher)?);
        Ok(Self { cluster, binaries, launcher, info, server, _lock: lock })
    }

    /// How to connect to a server that another rdev runs on this folder; waits for one that is just starting. None
    /// when no rdev is there.
    ///
    /// # Errors
    /// There is one, but its folder is another user's, or it does not come up.
    pub fn join(dir: &Path) -> Result<Option<ConnectInfo>, String> {
        let deadline = Instant::now() + JOIN_DEADLINE;
        while cluster::is_locked(dir)? {
            if let Some(status) = cluster::status(&dir.join("data")).filter(Status::accepts) {
                return Ok(Some(ConnectInfo {
                    socket_dir: status.socket_dir,
                    port: status.port,
                    user: ROLE.to_owned(),
                    password: cluster::read_password(dir)?.ok_or_else(|| gone(dir, "has no password file"))?,
                    database: DATABASE.to_owned(),
                }));
            }
            if Instant::now() > deadline {
                return Err(gone(dir, "does not become ready"));
            }
            std::thread::sleep(POLL * 4);
        }
        Ok(None)
    }

    #[must_use]
    pub fn info(&self) -> &ConnectInfo {
        &self.info
    }

    /// Whether the server has ended by itself. To be asked now and then: it keeps the log from filling the disk, too.
    #[must_use]
    pub fn exited(&self) -> bool {
        self.cluster.trim_log(LOG_LIMIT);
        !is_running(&mut self.server())
    }

    /// Starts the server again if it has ended; whether it did. The connection information stays the same.
    ///
    /// # Errors
    /// It does not start any more; may be tried again.
    pub fn restart_if_dead(&self) -> Result<bool, String> {
        let mut server = self.server();
        if is_running(&mut server) {
            return Ok(false);
        }
        left_behind::end_all(&self.cluster, self.launcher.account().uid())?;
        *server = launch(&self.cluster, &self.binaries, &self.launcher)?;
        Ok(true)
    }

    /// Ends the server and waits for it: open transactions are rolled back, everything committed is on disk.
    pub fn stop(self) {
        drop(self);
    }

    fn server(&self) -> MutexGuard<'_, Child> {
        // A panic elsewhere leaves the handle itself sound.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        end(&mut self.server());
        self.cluster.remove_far_socket_dir();
    }
}

fn gone(dir: &Path, what: &str) -> String {
    format!("the database server of another rdev in {} {what}: restart that rdev", dir.display())
}

fn launch(cluster: &Cluster, binaries: &Binaries, launcher: &Launcher) -> Result<Child, String> {
    let log = cluster.log()?;
    let seen = log.metadata().map_or(0, |found| found.len());
    cluster.clear_socket();
    let mut command = launcher.command(&binaries.postgres(), Signal::SIGINT);
    command.args(cluster.arguments(PORT));
    command.stdout(log.try_clone().map_err(|e| format!("cannot duplicate the log's handle: {e}"))?).stderr(log);
    let mut server = launcher.spawn(command)?;
    match await_ready(cluster, &mut server) {
        Ok(()) => Ok(server),
        Err(why) => {
            end(&mut server);
            Err(format!("{why}; its log ({}) ends with:\n{}", cluster.log_file().display(), cluster.log_tail(seen)))
        }
    }
}

fn await_ready(cluster: &Cluster, server: &mut Child) -> Result<(), String> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        match server.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Err(format!("the embedded PostgreSQL ended while it was starting ({status})")),
            Err(e) => return Err(format!("cannot watch the embedded PostgreSQL: {e}")),
        }
        if cluster.status().is_some_and(|status| status.pid == server.id() && status.accepts()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("the embedded PostgreSQL was not ready after {} s", START_DEADLINE.as_secs()));
        }
        std::thread::sleep(POLL);
    }
}

/// A fast stop, then an immediate one, then no more asking.
fn end(server: &mut Child) {
    for (signal, patience) in [(Signal::SIGINT, FAST_STOP), (Signal::SIGQUIT, HARD_STOP), (Signal::SIGKILL, HARD_STOP)]
    {
        if !is_running(server) {
            return;
        }
        // It was running a moment ago and is not reaped, so the id is still its own.
        let _ = kill(Pid::from_raw(server.id().cast_signed()), signal);
        let deadline = Instant::now() + patience;
        while is_running(server) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
}

fn is_running(server: &mut Child) -> bool {
    matches!(server.try_wait(), Ok(None))
}

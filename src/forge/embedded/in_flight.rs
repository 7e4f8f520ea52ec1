//! What is being served right now, so that it can be ended: when its client is gone,
//! when nothing moves any more, when its credential dies, when its repository goes.
//!
//! Servers that share the folder cannot end each other's pushes. For them there is a
//! lock file for each owner: a push holds it (shared) from before it asks whether it
//! may until its process has ended. Who takes it alone, after the credential died,
//! knows that no push which was allowed before is still at work.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{super::git::GitError, hook::PushContext, io_error};

const WAIT_FOR_OTHERS: Duration = Duration::from_secs(15);
const DAY: Duration = Duration::from_hours(24);

/// One request that a git process works on.
pub struct Running {
    pub project: String,
    /// Only what pushes has one.
    pub context: Option<PushContext>,
    /// Cancelled to end the process.
    pub stop: CancellationToken,
    ended_by_us: CancellationToken,
    done: CancellationToken,
    allowed: Mutex<Option<File>>,
    began: Instant,
    last_moved: AtomicU64,
}

impl Running {
    pub fn owner(&self) -> Option<Uuid> {
        self.context.as_ref().and_then(PushContext::owner)
    }

    /// Bytes went one way or the other.
    pub fn moved(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_moved.store(now, Relaxed);
    }

    /// Returns once nothing has moved for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_moved.load(Relaxed));
            let left = (last + limit).saturating_sub(self.began.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Whether it was ended from here, and not by its client.
    pub fn was_ended(&self) -> bool {
        self.ended_by_us.is_cancelled()
    }
}

pub struct InFlight {
    running: Mutex<HashMap<Uuid, Arc<Running>>>,
    locks: PathBuf,
}

impl InFlight {
    pub fn new(locks: PathBuf) -> Self {
        sweep(&locks);
        Self { running: Mutex::default(), locks }
    }

    /// Enters a request; the id is a secret that its hook proves itself with.
    pub fn begin(&self, project: &str, context: Option<PushContext>) -> (Uuid, Arc<Running>) {
        let running = Arc::new(Running {
            project: project.to_owned(),
            context,
            stop: CancellationToken::new(),
            ended_by_us: CancellationToken::new(),
            done: CancellationToken::new(),
            allowed: Mutex::default(),
            began: Instant::now(),
            last_moved: AtomicU64::new(0),
        });
        let id = Uuid::new_v4();
        self.map().insert(id, running.clone());
        (id, running)
    }

    pub fn find(&self, id: Uuid) -> Option<Arc<Running>> {
        self.map().get(&id).cloned()
    }

    /// To be called when the process has ended.
    pub fn finished(&self, id: Uuid) {
        if let Some(running) = self.map().remove(&id) {
            drop(lock(&running.allowed).take());
            running.done.cancel();
        }
    }

    /// Ends those that `which` picks, and returns when their processes have ended.
    pub async fn end(&self, which: impl Fn(&Running) -> bool) {
        let picked: Vec<_> = self.map().values().filter(|running| which(running)).cloned().collect();
        for running in &picked {
            running.ended_by_us.cancel();
            running.stop.cancel();
        }
        join_all(picked.iter().map(|running| running.done.cancelled())).await;
    }

    /// Enters the push among those that may move refs, see the module. To be called
    /// before it is asked whether it may.
    pub async fn enter(&self, running: &Arc<Running>) -> io::Result<()> {
        let Some(path) = running.owner().map(|owner| self.lock_path(owner)) else {
            return Ok(());
        };
        if lock(&running.allowed).is_some() {
            return Ok(());
        }
        let shared = tokio::task::spawn_blocking(move || take(&path, File::lock_shared));
        let shared = shared.await.map_err(io::Error::other)??;
        *lock(&running.allowed) = Some(shared);
        Ok(())
    }

    /// Returns when no push of `owner` that was allowed until now is at work, in any server.
    pub async fn wait_for_allowed(&self, owner: Uuid) -> Result<(), GitError> {
        let what = "waiting for the pushes under way";
        let path = self.lock_path(owner);
        let deadline = Instant::now() + WAIT_FOR_OTHERS;
        while path.exists() {
            match take(&path, |file| file.try_lock().map_err(io::Error::from)) {
                Ok(_alone) => return fs::remove_file(&path).or_else(|e| ignore_missing(what, e)),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(io_error(what, error));
                }
                Err(_) if Instant::now() > deadline => {
                    return Err(GitError::Timeout { what: what.into(), after: WAIT_FOR_OTHERS });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Ok(())
    }

    /// Held by every push into the project, from before its start until its process has
    /// ended: see [`InFlight::undisturbed`].
    pub async fn share(&self, project: &str) -> io::Result<File> {
        let path = self.locks.join(format!("project-{project}.lock"));
        let taken = tokio::task::spawn_blocking(move || take(&path, File::lock_shared));
        taken.await.map_err(io::Error::other)?
    }

    /// Runs `work` if no server on this folder has a push into the project under way,
    /// and keeps new ones waiting meanwhile.
    pub async fn undisturbed(&self, project: &str, work: impl FnOnce() + Send + 'static) {
        let path = self.locks.join(format!("project-{project}.lock"));
        let run = move || {
            if let Ok(_alone) = take(&path, |file| file.try_lock().map_err(io::Error::from)) {
                work();
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(run).await {
            tracing::warn!(%error, "a repository could not be tidied");
        }
    }

    fn lock_path(&self, owner: Uuid) -> PathBuf {
        self.locks.join(format!("owner-{owner}.lock"))
    }

    fn map(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Running>>> {
        lock(&self.running)
    }
}

/// The locked file that has the name `path` when this returns: a lock on one that was
/// removed meanwhile would be seen by nobody.
fn take(path: &Path, how: impl Fn(&File) -> io::Result<()>) -> io::Result<File> {
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        how(&file)?;
        if file.metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

fn ignore_missing(what: &str, error: io::Error) -> Result<(), GitError> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(io_error(what, error)),
    }
}

/// Removes the lock files that nobody has used for a day.
fn sweep(locks: &Path) {
    for path in fs::read_dir(locks).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_lock = path.extension().is_some_and(|extension| extension == "lock");
        let age = path.metadata().and_then(|data| data.modified());
        let old = age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > DAY));
        if is_lock && old && take(&path, |file| file.try_lock().map_err(io::Error::from)).is_ok() {
            let _ = fs::remove_file(&path);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The durable core: work that some process must carry through, whatever dies.
//!
//! A task is a row. A process owns it through its lease, and every claim issues a fence that
//! every later write of that attempt names. Claims and ends go in batches. This module knows
//! tasks, not what they mean; who performs them is handed in by kind, crew by crew.

mod crew;
mod group;
mod keeper;
mod lease;
mod ready;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    database::{Conn, Db, DbError},
    domain::task::Hands,
    error::{Error, Kind},
    metrics::Metrics,
    store,
};

pub use self::{
    crew::{Crew, Free, Perform, Room},
    group::Group,
    keeper::keep,
    lease::{Lease, bury},
    ready::{CHANNEL, Ready},
};
pub use crate::domain::task::{Claimed, Lane, NewTask};

/// Ends written by one statement, at most.
const ENDS: usize = 512;

/// Where tasks are put in and finished. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    db: Db,
    lease: Lease,
    metrics: Metrics,
    pub ready: Ready,
    /// Rings when something was given back or put in for later.
    look: Arc<Notify>,
    given_back: Arc<Mutex<Vec<(Claimed, Duration)>>>,
    ends: Group<(i64, i64), bool>,
    hands: Hands,
    /// Something may have been lost on the way: it is looked for soon.
    doubts: Arc<AtomicBool>,
    /// Attempts under way in this process.
    pub attempts: TaskTracker,
}

impl Queue {
    /// The queue and the writer of its ends.
    pub fn new(db: Db, lease: Lease, metrics: Metrics) -> (Self, impl Future<Output = ()> + Send) {
        let writer = db.clone();
        let (ends, writing) = Group::new(ENDS, move |items: &[(i64, i64)]| {
            let (ids, fences): (Vec<i64>, Vec<i64>) = items.iter().copied().unzip();
            let db = writer.clone();
            async move {
                let gone = store::tasks::finish_all(&mut db.conn().await?, &ids, &fences).await?;
                let gone: std::collections::HashSet<i64> = gone.into_iter().collect();
                Ok(ids.iter().map(|id| gone.contains(id)).collect())
            }
        });
        let queue = Self {
            db,
            lease,
            metrics,
            ready: Ready::default(),
            look: Arc::default(),
            given_back: Arc::default(),
            ends,
            hands: Hands::default(),
            doubts: Arc::default(),
            attempts: TaskTracker::new(),
        };
        (queue, writing)
    }

    /// Puts a task in that this process performs itself, from the moment of the commit.
    ///
    /// # Errors
    /// Those of the database; `task_once` where that subject has such a task; [`stale`] when this
    /// process has just lost its lease.
    pub async fn insert_owned(&self, tx: &mut Conn, kind: &'static str, subject: &str) -> Result<Claimed, OwnedError> {
        let task = NewTask::work(kind, subject);
        let claimed = store::tasks::insert_owned(tx, &task, self.lease.id()).await.map_err(OwnedError::Db)?;
        let mut claimed = claimed.ok_or(OwnedError::Stale)?;
        self.hands.take(&mut claimed);
        Ok(claimed)
    }

    /// This process may own a task that nobody in it knows of.
    fn doubt(&self) {
        self.doubts.store(true, Ordering::Release);
    }

    /// Puts a task in for whoever comes first. Call [`Queue::wake`] after the commit.
    ///
    /// # Errors
    /// Those of the database; `task_once` where that subject has such a task.
    pub async fn insert(&self, tx: &mut Conn, task: &NewTask) -> Result<(), DbError> {
        store::tasks::insert(tx, task).await.map(drop)
    }

    /// Something was put in and is committed.
    pub fn wake(&self, lane: Lane, queue: &str) {
        self.ready.mark_and_tell(lane, queue);
    }

    /// Something was put in for later and is committed.
    pub fn wake_later(&self) {
        self.look.notify_one();
    }

    /// Ends a task that leaves nothing else to write, together with others.
    ///
    /// # Errors
    /// [`stale`] when another process has it by now.
    pub async fn done(&self, task: &Claimed) -> Result<(), Error> {
        if self.ends.put((task.id, task.fence)).await? { Ok(()) } else { Err(stale()) }
    }

    /// Ends the task in the transaction of what it did.
    ///
    /// # Errors
    /// [`stale`] when another process has it by now: roll back and let go.
    pub async fn finish(&self, tx: &mut Conn, task: &Claimed) -> Result<(), Error> {
        fresh(store::tasks::finish(tx, task.id, task.fence).await?)
    }

    /// Makes sure that the task is still ours for the rest of this transaction.
    ///
    /// # Errors
    /// As [`Queue::finish`].
    pub async fn hold(&self, tx: &mut Conn, task: &Claimed) -> Result<(), Error> {
        fresh(store::tasks::hold(tx, task.id, task.fence).await?)
    }

    /// Lets the task go in this transaction, to be claimed again after `delay`.
    ///
    /// # Errors
    /// As [`Queue::finish`].
    pub async fn put_back(&self, tx: &mut Conn, task: &Claimed, delay: Duration) -> Result<(), Error> {
        fresh(put_back(tx, task, delay).await?)
    }

    /// Lets go of a task that could not be carried through now: it is claimed again after
    /// `delay`, here or elsewhere. Never fails: it is written down as often as that takes.
    pub fn give_back(&self, task: &Claimed, delay: Duration) {
        self.given_back.lock().unwrap_or_else(PoisonError::into_inner).push((task.clone(), delay));
        self.look.notify_one();
    }

    /// Cancelled when this process may no longer act on what it claimed.
    pub fn standing(&self) -> CancellationToken {
        self.lease.standing()
    }

    /// Whether what this process claimed is certainly still its own: asked before something goes out.
    pub fn is_sure(&self) -> bool {
        self.lease.is_sure()
    }

    /// Whether this is an orderly stop, in which what ends soon may end.
    pub fn wraps_up(&self) -> bool {
        self.lease.wraps_up()
    }

    pub fn process(&self) -> Uuid {
        self.lease.id()
    }

    /// Tells the metrics how many tasks there are.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn measure(&self) -> Result<(), DbError> {
        let depths = store::tasks::depths(&mut self.db.conn().await?).await?;
        self.metrics.queue_depth(&depths);
        Ok(())
    }

    /// Whether another process is at work on this database.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn has_company(&self) -> Result<bool, DbError> {
        store::processes::others_live(&mut self.db.conn().await?, self.lease.id()).await
    }

    /// Writes down what was given back; what cannot be written now is kept.
    async fn write_given_back(&self) {
        let given = std::mem::take(&mut *self.given_back.lock().unwrap_or_else(PoisonError::into_inner));
        if given.is_empty() {
            return;
        }
        let ids: Vec<i64> = given.iter().map(|(task, _)| task.id).collect();
        let fences: Vec<i64> = given.iter().map(|(task, _)| task.fence).collect();
        let delays: Vec<f64> = given.iter().map(|(_, delay)| delay.as_secs_f64()).collect();
        let back = async { store::tasks::put_back_all(&mut self.db.conn().await?, &ids, &fences, &delays).await };
        if let Err(error) = back.await {
            tracing::debug!(%error, count = given.len(), "tasks are not given back yet");
            self.given_back.lock().unwrap_or_else(PoisonError::into_inner).extend(given);
            return;
        }
        for (task, _) in given.iter().filter(|(_, delay)| delay.is_zero()) {
            if let Some(lane) = Lane::of(task.lane) {
                self.ready.mark_and_tell(lane, &task.queue);
            }
        }
    }
}

fn fresh(ours: bool) -> Result<(), Error> {
    if ours { Ok(()) } else { Err(stale()) }
}

async fn put_back(c: &mut Conn, task: &Claimed, delay: Duration) -> Result<bool, DbError> {
    if delay.is_zero() {
        return store::tasks::release(c, task.id, task.fence).await;
    }
    store::tasks::defer(c, task.id, task.fence, delay.as_secs_f64()).await
}

/// Why a task could not be put in as this process's own.
#[derive(Debug)]
pub enum OwnedError {
    Db(DbError),
    /// The lease is gone.
    Stale,
}

impl OwnedError {
    /// Name of the constraint that refused the row.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Db(error) => error.constraint(),
            Self::Stale => None,
        }
    }
}

impl From<OwnedError> for Error {
    fn from(error: OwnedError) -> Self {
        match error {
            OwnedError::Db(error) => error.into(),
            OwnedError::Stale => Self::unavailable("the database", "this process has lost its lease"),
        }
    }
}

/// A write under an old fence was refused.
pub fn stale() -> Error {
    Error::new(Kind::Unavailable, "UPSTREAM_UNAVAILABLE", "another process has taken this over, try again shortly")
}

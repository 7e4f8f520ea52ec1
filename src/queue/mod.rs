//! The durable core: work that some process must carry through, whatever dies.
//!
//! A task is a row. A process owns it through its lease, and every claim issues a fence
//! that every later write of that attempt names. This module knows tasks, not what they
//! mean; who performs them is handed in by kind.

mod lease;
mod worker;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::{
    database::{Conn, Db, DbError},
    error::{Error, Kind},
    metrics::Metrics,
    store,
};

pub use crate::domain::task::Claimed;
pub use lease::{LEASE, Lease};
pub use worker::{Perform, Worker};

/// Where tasks are put in and finished. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    db: Db,
    lease: Lease,
    metrics: Metrics,
    wake: Arc<Notify>,
    given_back: Arc<Mutex<Vec<(Claimed, Duration)>>>,
    /// Attempts under way in this process.
    pub attempts: TaskTracker,
}

impl Queue {
    pub fn new(db: Db, lease: Lease, metrics: Metrics) -> Self {
        Self { db, lease, metrics, wake: Arc::default(), given_back: Arc::default(), attempts: TaskTracker::new() }
    }

    /// Puts a task in that this process performs itself, from the moment of the commit.
    ///
    /// # Errors
    /// Those of the database; `task_once` where that subject has such a task.
    pub async fn insert_owned(&self, tx: &mut Conn, kind: &str, subject: &str) -> Result<Claimed, DbError> {
        store::tasks::insert(tx, Uuid::now_v7(), kind, subject, Some(self.lease.id())).await
    }

    /// Puts a task in for whoever comes first. Call [`Queue::wake`] after the commit.
    ///
    /// # Errors
    /// As [`Queue::insert_owned`].
    pub async fn insert(&self, tx: &mut Conn, kind: &str, subject: &str) -> Result<Claimed, DbError> {
        store::tasks::insert(tx, Uuid::now_v7(), kind, subject, None).await
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ends the task in the transaction of what it did.
    ///
    /// # Errors
    /// [`stale`] when another process has it by now: roll back and let go.
    pub async fn finish(&self, tx: &mut Conn, task: &Claimed) -> Result<(), Error> {
        if store::tasks::finish(tx, task.id, task.fence).await? { Ok(()) } else { Err(stale()) }
    }

    /// Lets go of a task that could not be carried through now: it is claimed again after
    /// `delay`, here or elsewhere. Never fails: the claimer writes it down, as often as it takes.
    pub fn give_back(&self, task: &Claimed, delay: Duration) {
        self.given_back.lock().unwrap_or_else(PoisonError::into_inner).push((task.clone(), delay));
        self.wake.notify_one();
    }

    /// Writes down what was given back; what cannot be written now is kept.
    async fn put_back_all(&self) {
        let given = std::mem::take(&mut *self.given_back.lock().unwrap_or_else(PoisonError::into_inner));
        for (task, delay) in given {
            let back = async {
                store::tasks::put_back(&mut self.db.conn().await?, task.id, task.fence, delay.as_secs_f64()).await
            };
            if let Err(error) = back.await {
                tracing::debug!(%error, task.kind, task.subject, "a task is not given back yet");
                self.given_back.lock().unwrap_or_else(PoisonError::into_inner).push((task, delay));
            }
        }
    }

    /// Makes sure that the task is still ours for the rest of this transaction.
    ///
    /// # Errors
    /// As [`Queue::finish`].
    pub async fn hold(&self, tx: &mut Conn, task: &Claimed) -> Result<(), Error> {
        if store::tasks::hold(tx, task.id, task.fence).await? { Ok(()) } else { Err(stale()) }
    }

    /// Cancelled when this process may no longer act on what it claimed.
    pub fn standing(&self) -> CancellationToken {
        self.lease.standing()
    }

    pub fn process(&self) -> Uuid {
        self.lease.id()
    }

    /// Tells how many tasks there are.
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
        store::tasks::other_processes_live(&mut self.db.conn().await?, self.lease.id()).await
    }
}

/// A write under an old fence was refused.
pub fn stale() -> Error {
    Error::new(Kind::Unavailable, "UPSTREAM_UNAVAILABLE", "another process has taken this over, try again shortly")
}

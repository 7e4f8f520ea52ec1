//! The one claimer of a process: takes what is due in batches and hands each task to
//! whoever performs its kind, in an attempt of its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;

use super::{Claimed, LEASE, Queue};
use crate::{database::DbError, store};

/// Most that is claimed at once.
const BATCH: i64 = 64;
/// The poll is the truth, a wake-up a hint; jittered so that processes do not march in step.
const POLL_MS: std::ops::Range<u64> = 500..1000;
/// Owners that may die in a row with a task before it is put aside.
const DEATHS: i32 = 10;

/// Whoever performs tasks of a kind. An attempt that ends without having finished or put
/// back its task leaves it to be claimed again once its process is gone.
pub trait Perform: Send + Sync + 'static {
    fn kinds(&self) -> &'static [&'static str];

    /// Carries the task through, or stops soon after `stop`.
    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()>;

    /// The task is put aside because its owners kept dying.
    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, ()>;
}

/// The claimer.
pub struct Worker {
    queue: Queue,
    performers: HashMap<&'static str, Arc<dyn Perform>>,
}

impl Worker {
    pub fn new(queue: Queue, performers: Vec<Arc<dyn Perform>>) -> Self {
        let by_kind = performers.into_iter().flat_map(|p| p.kinds().iter().map(move |kind| (*kind, p.clone())));
        Self { queue, performers: by_kind.collect() }
    }

    /// Claims until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let kinds: Vec<String> = self.performers.keys().map(|&kind| kind.to_owned()).collect();
        while !stop.is_cancelled() {
            self.queue.put_back_all().await;
            let full = match self.claim(&kinds).await {
                Ok(count) => count == BATCH,
                Err(error) => {
                    tracing::debug!(%error, "could not look for tasks");
                    false
                }
            };
            if full {
                continue;
            }
            let pause = Duration::from_millis(rand::rng().random_range(POLL_MS));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.queue.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Claims and starts what is due; answers how many.
    async fn claim(&self, kinds: &[String]) -> Result<i64, DbError> {
        let standing = self.queue.standing();
        if standing.is_cancelled() {
            return Ok(0);
        }
        let mut conn = self.queue.db.conn().await?;
        let owner = self.queue.process();
        let claimed = store::tasks::claim(&mut conn, owner, kinds, BATCH, LEASE.as_secs_f64()).await?;
        drop(conn);
        let count = claimed.len();
        for task in claimed {
            self.queue.metrics.claimed(&task.kind, task.waited);
            self.start(task, standing.child_token());
        }
        Ok(i64::try_from(count).unwrap_or(BATCH))
    }

    fn start(&self, task: Claimed, stop: CancellationToken) {
        let Some(performer) = self.performers.get(task.kind.as_str()).cloned() else { return };
        let queue = self.queue.clone();
        self.queue.attempts.spawn(async move {
            if task.deaths < DEATHS {
                tracing::debug!(task.kind, task.subject, task.attempt, "performing");
                return performer.perform(task, stop).await;
            }
            performer.parked(task.clone()).await;
            if let Err(error) = park(&queue, &task).await {
                tracing::warn!(%error, task.kind, task.subject, "a task could not be put aside");
            }
        });
    }
}

async fn park(queue: &Queue, task: &Claimed) -> Result<bool, DbError> {
    let reason = format!("{DEATHS} processes in a row died while they performed it");
    store::tasks::park(&mut queue.db.conn().await?, task.id, task.fence, &reason).await
}

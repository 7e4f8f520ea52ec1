//! Tasks put in one by one, each in a transaction, by the process that carries them out.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use rdev::{
    database::Db,
    error::Result,
    queue::{Claimed, Lane, NewTask, Perform, Queue},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        super::{
            Bench,
            support::{eventually, stats::milliseconds},
        },
        pickup::{Beat, TASKS, WARM},
    },
    Core, NOOP, migrated,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// From before the transaction to the first line of the attempt, in ms.
pub async fn pickup(bench: &Bench) -> Vec<f64> {
    let db = migrated(&bench.fresh().await).await;
    let mut core = Core::new(db.clone()).await;
    let stamp = Arc::new(Stamp { queue: core.queue.clone(), clock: Instant::now(), times: Mutex::default() });
    core.start(stamp.clone());
    let mut beat = Beat::new();
    for _ in 0..WARM + TASKS {
        beat.next().await;
        tokio::spawn(put_in(db.clone(), core.queue.clone(), stamp.clock.elapsed()));
    }
    let all = (WARM + TASKS) as usize;
    let times = eventually("the last task", PATIENCE, || async {
        let times = stamp.times.lock().unwrap_or_else(PoisonError::into_inner);
        (times.len() == all).then(|| times[WARM as usize..].to_vec())
    });
    let times = times.await;
    core.stop().await;
    times
}

/// The task's subject is the moment at which this began.
async fn put_in(db: Db, queue: Queue, began: Duration) {
    let task = NewTask::work(NOOP, &began.as_nanos().to_string());
    let mut tx = db.begin().await.expect("a transaction");
    queue.insert(&mut tx, &task).await.expect("an insert");
    tx.commit().await.expect("a commit");
    queue.wake(Lane::Work, &task.queue);
}

struct Stamp {
    queue: Queue,
    clock: Instant,
    times: Mutex<Vec<f64>>,
}

impl Perform for Stamp {
    fn kinds(&self) -> &'static [&'static str] {
        &[NOOP]
    }

    fn perform(self: Arc<Self>, task: Claimed, _stop: CancellationToken) -> BoxFuture<'static, ()> {
        async move {
            let began = Duration::from_nanos(task.subject.parse().expect("a time"));
            let took = milliseconds(self.clock.elapsed().saturating_sub(began));
            self.times.lock().unwrap_or_else(PoisonError::into_inner).push(took);
            self.queue.done(&task).await.expect("the task is ours");
        }
        .boxed()
    }

    fn parked(self: Arc<Self>, _task: Claimed) -> BoxFuture<'static, Result<()>> {
        async { Ok(()) }.boxed()
    }
}

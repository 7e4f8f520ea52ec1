//! Tasks that wait already, each ended by itself, as a performer does that leaves nothing to write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use futures::{FutureExt as _, future::BoxFuture};
use rdev::{
    error::Result,
    queue::{Claimed, Perform, Queue},
};
use sqlx::{Connection as _, PgConnection, query, query_scalar};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    super::{super::Bench, rows, tasks::Drained},
    Core, FILL, NOOP, migrated,
};

pub async fn tasks(bench: &Bench, tasks: u32) -> Drained {
    let url = bench.fresh().await;
    drain(&url, tasks).await
}

/// On a database that nobody has used.
pub async fn drain(url: &str, tasks: u32) -> Drained {
    let db = migrated(url).await;
    let mut conn = PgConnection::connect(url).await.expect("a connection");
    query(FILL).bind(i64::from(tasks)).execute(&mut conn).await.expect("tasks");
    for statement in ["checkpoint", "vacuum analyze task"] {
        query(statement).execute(&mut conn).await.expect("an administrator");
    }
    let mut core = Core::new(db).await;
    let noop =
        Arc::new(Noop { queue: core.queue.clone(), left: AtomicU32::new(tasks), carried_out: Notify::default() });
    let before = rows::wal(&mut conn).await;
    let begun = Instant::now();
    core.start(noop.clone());
    noop.carried_out.notified().await;
    let took = begun.elapsed().as_secs_f64();
    let wal = (rows::wal(&mut conn).await - before) / f64::from(tasks);
    let left: i64 = query_scalar("select count(*) from task").fetch_one(&mut conn).await.expect("a number");
    assert_eq!(left, 0, "every task is carried out");
    core.stop().await;
    Drained { per_second: f64::from(tasks) / took, wal, hot: rows::hot_share(url, tasks).await }
}

struct Noop {
    queue: Queue,
    left: AtomicU32,
    carried_out: Notify,
}

impl Perform for Noop {
    fn kinds(&self) -> &'static [&'static str] {
        &[NOOP]
    }

    fn perform(self: Arc<Self>, task: Claimed, _stop: CancellationToken) -> BoxFuture<'static, ()> {
        async move {
            self.queue.done(&task).await.expect("the task is ours");
            if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.carried_out.notify_one();
            }
        }
        .boxed()
    }

    fn parked(self: Arc<Self>, _task: Claimed) -> BoxFuture<'static, Result<()>> {
        async { Ok(()) }.boxed()
    }
}

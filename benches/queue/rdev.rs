//! rdev's side: the core as a process uses it, with performers that do nothing, and the
//! server itself where the way in or out is measured.

mod drain;
mod pickup;
mod webhooks;

use std::{str::FromStr as _, sync::Arc};

use rdev::{
    database::{Db, MIGRATIONS, news},
    metrics::Metrics,
    queue::{self, Crew, Free, Lane, Lease, Perform, Queue},
};
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Bench,
        support::{
            client::Load,
            server::{DataDir, Server},
        },
    },
    jobs::post_jobs,
};

pub use self::{
    drain::{drain, tasks},
    pickup::pickup,
    webhooks::webhooks,
};

/// Kind of the tasks that nothing is to be done in.
pub const NOOP: &str = "noop";
/// Connections of a process.
const POOL: u32 = 20;
/// `$1` of them, ready.
pub const FILL: &str = "insert into task (lane, queue, kind, subject)
    select 0, '', 'noop', n::text from generate_series(1, $1::bigint) n";

/// The upstream keeps the first jobs for ever, so that nothing but taking in is measured.
pub async fn jobs(bench: &Bench) -> Load {
    let (url, data) = (bench.fresh().await, DataDir::new());
    let upstream = Server::floor(&["upstream"]);
    let upstream = format!("http://{}", upstream.address);
    let rdev = Server::rdev_with(&url, &data, &[("RDEV_OLLAMA_URL", &upstream), ("RDEV_WORKERS", "1")]);
    post_jobs(&rdev).await
}

/// A pool of a process on a database with rdev's tables.
pub async fn migrated(url: &str) -> Db {
    let db = Db::new(PgConnectOptions::from_str(url).expect("a URL"), POOL);
    MIGRATIONS.run(db.pool()).await.expect("migrations");
    db
}

/// What of a process carries out its own work.
struct Core {
    db: Db,
    queue: Queue,
    stop: CancellationToken,
    background: JoinSet<()>,
}

impl Core {
    /// Registered, and not at work yet.
    async fn new(db: Db) -> Self {
        let (lease, stop, mut background) = (Lease::new(1), CancellationToken::new(), JoinSet::new());
        lease.register(&db).await.expect("a process");
        let (queue, writing) = Queue::new(db.clone(), lease.clone(), Metrics::new());
        background.spawn(writing);
        let (kept, kept_stop) = (db.clone(), stop.clone());
        background.spawn(async move { lease.keep(kept, kept_stop).await });
        Self { db, queue, stop, background }
    }

    /// Begins to claim, to look, and to tell others what was put in.
    fn start(&mut self, performer: Arc<dyn Perform>) {
        let crew = Crew::new(self.queue.clone(), Lane::Work, Arc::new(Free::default()), vec![performer]);
        let ready = self.queue.ready.clone();
        let (me, some) = (self.queue.process(), ready.some_to_tell.clone());
        let tell = news::tell(self.db.clone(), queue::CHANNEL, me, some, move || ready.news(), self.stop.clone());
        self.background.spawn(crew.run(self.stop.clone()));
        self.background.spawn(queue::keep(self.queue.clone(), self.stop.clone()));
        self.background.spawn(tell);
    }

    /// After what is under way; its connections end too.
    async fn stop(mut self) {
        self.queue.attempts.close();
        self.queue.attempts.wait().await;
        self.stop.cancel();
        self.background.shutdown().await;
        self.db.close().await;
    }
}

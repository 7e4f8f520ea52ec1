//! Tasks that wait already are carried out; nothing is to be done in any of them. The floor
//! is the least that claims and finishes durably: one loop claims, another deletes what the
//! first has claimed, a statement and a commit a batch each.

use std::time::Instant;

use serde_json::json;
use sqlx::{Connection as _, PgConnection, query, query_scalar};
use tokio::sync::mpsc;

use super::{
    super::{Bench, ROUNDS},
    rdev, rows,
    table::{Line, Target},
};

/// Claimed and deleted at once: the first is what the target refers to, the second as many as rdev's core takes.
const BATCHES: [i64; 2] = [64, 256];
/// Batches that are claimed and not deleted yet, at most.
const AHEAD: usize = 2;

pub const TABLE: &str = "create table task (
        id bigint generated always as identity primary key,
        lane smallint not null,
        run_at timestamptz not null default clock_timestamp(),
        owner bigint,
        payload text not null
    ) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0)";
pub const INDEX: &str = "create index task_due on task (lane, run_at)";
pub const CLAIM: &str = "update task set owner = 1 where id = any(array(
        select id from task where lane = 0 and run_at <= now() and owner is null
        order by run_at limit $1 for update skip locked
    )) returning id";
const FINISH: &str = "delete from task where id = any($1)";

/// What was seen while tasks were carried out.
#[derive(Clone, Copy)]
pub struct Drained {
    pub per_second: f64,
    /// Bytes of the write-ahead log a task.
    pub wal: f64,
    /// The share of claims that were HOT updates.
    pub hot: f64,
}

pub async fn measure(bench: &Bench) {
    let tasks = tasks();
    let mut rates = BATCHES.map(|batch| Line::new(format!("{tasks} no-op tasks (floor by the {batch})"), "/s"));
    let mut wal = Line::new("no-op tasks, WAL a task, claim and finish", "B");
    let mut hot = Line::new("no-op tasks, share of claims that are HOT", "");
    for _ in 0..ROUNDS {
        for (line, batch) in rates.iter_mut().zip(BATCHES) {
            let floor = floor(&bench.fresh().await, tasks, batch).await;
            line.floor(floor.per_second);
            if batch == BATCHES[0] {
                wal.floor(floor.wal);
                hot.floor(floor.hot);
            }
        }
        let peer = peer(bench, tasks).await;
        let rdev = rdev::tasks(bench, tasks).await;
        for line in &mut rates {
            line.peer(peer.map(|peer| peer.0));
            line.rdev(rdev.per_second);
        }
        wal.peer(peer.map(|peer| peer.1));
        wal.rdev(rdev.wal);
        hot.rdev(rdev.hot);
    }
    rates[0].print(&[Target::OfFloor(0.6), Target::OfPeer(1.0)]);
    rates[1].print(&[]);
    wal.print(&[]);
    hot.print(&[]);
}

fn tasks() -> u32 {
    std::env::var("RDEV_BENCH_TASKS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

/// Tasks a second, and bytes of the write-ahead log a task.
async fn peer(bench: &Bench, tasks: u32) -> Result<(f64, f64), &'static str> {
    let peers = bench.peers.as_ref().map_err(|why| *why)?;
    // As its own page on performance has it; other numbers made no difference on two cores.
    let wanted = json!({"tasks": tasks, "batch": 500, "concurrency": 24, "pool": 25});
    let seen = peers.graphile("drain", &bench.fresh().await, &wanted).await;
    let number = |name: &str| seen[name].as_f64().expect("a number");
    Ok((number("per_second"), number("wal")))
}

async fn floor(url: &str, tasks: u32, batch: i64) -> Drained {
    let mut claiming = PgConnection::connect(url).await.expect("a connection");
    let finishing = PgConnection::connect(url).await.expect("a connection");
    fill(&mut claiming, tasks).await;
    let before = rows::wal(&mut claiming).await;
    let begun = Instant::now();
    let (claimed, batches) = mpsc::channel(AHEAD);
    let finisher = tokio::spawn(finish(finishing, batches));
    loop {
        let ids: Vec<i64> = query_scalar(CLAIM).bind(batch).fetch_all(&mut claiming).await.expect("a claim");
        if ids.is_empty() {
            break;
        }
        claimed.send(ids).await.expect("the finisher lives");
    }
    drop(claimed);
    let carried_out = finisher.await.expect("the finisher");
    let took = begun.elapsed().as_secs_f64();
    let wal = (rows::wal(&mut claiming).await - before) / f64::from(tasks);
    assert_eq!(carried_out, u64::from(tasks), "every task is carried out once");
    claiming.close().await.expect("an end");
    Drained { per_second: f64::from(tasks) / took, wal, hot: rows::hot_share(url, tasks).await }
}

async fn fill(conn: &mut PgConnection, tasks: u32) {
    for statement in [TABLE, INDEX] {
        query(statement).execute(&mut *conn).await.expect("a table");
    }
    let fill = "insert into task (lane, payload) select 0, '{\"kind\":\"noop\"}' from generate_series(1, $1)";
    query(fill).bind(i64::from(tasks)).execute(&mut *conn).await.expect("tasks");
    // The checkpoint first: pages that vacuum touches are then in the log before the clock runs.
    for statement in ["checkpoint", "vacuum analyze task"] {
        query(statement).execute(&mut *conn).await.expect("an administrator");
    }
}

/// Deletes batch after batch; answers how many tasks that were.
async fn finish(mut conn: PgConnection, mut batches: mpsc::Receiver<Vec<i64>>) -> u64 {
    let mut finished = 0;
    while let Some(ids) = batches.recv().await {
        finished += query(FINISH).bind(&ids).execute(&mut conn).await.expect("a delete").rows_affected();
    }
    finished
}

//! How soon a task starts after it was put in: 100 a second for 10 s, from before the call
//! that puts it in to the first line of its body. The floor inserts, wakes its claimer in
//! memory, and claims what is there. The peer does both in one process too; of its plain
//! settings and its local queue the better value counts.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;
use sqlx::{Connection as _, PgConnection, postgres::PgPoolOptions, query, query_as};
use tokio::sync::Notify;

use super::{
    super::{
        Bench, ROUNDS,
        support::stats::{milliseconds, percentile},
    },
    rdev,
    table::{Line, Target},
    tasks,
};

pub const RATE: u32 = 100;
pub const TASKS: u32 = 1000;
/// Carried out before, so that every statement is prepared.
pub const WARM: u32 = 50;

pub async fn measure(bench: &Bench) {
    let mut p50 = Line::new(format!("pick-up at {RATE}/s, p50"), "ms");
    let mut p99 = Line::new(format!("pick-up at {RATE}/s, p99"), "ms");
    for _ in 0..ROUNDS {
        let times = floor(&bench.fresh().await).await;
        p50.floor(percentile(&times, 0.5));
        p99.floor(percentile(&times, 0.99));
        let seen = peer(bench).await;
        p50.peer(seen.map(|seen| seen.0));
        p99.peer(seen.map(|seen| seen.1));
        let times = rdev::pickup(bench).await;
        p50.rdev(percentile(&times, 0.5));
        p99.rdev(percentile(&times, 0.99));
    }
    p50.print(&[Target::NoMoreThanPeer(1.0)]);
    p99.print(&[Target::NoMoreThanPeer(1.0)]);
}

async fn peer(bench: &Bench) -> Result<(f64, f64), &'static str> {
    let peers = bench.peers.as_ref().map_err(|why| *why)?;
    let mut best = (f64::MAX, f64::MAX);
    for batch in [0, 500] {
        let wanted = json!({"tasks": TASKS, "rate": RATE, "warm": WARM, "batch": batch});
        let seen = peers.graphile("pickup", &bench.fresh().await, &wanted).await;
        let number = |name: &str| seen[name].as_f64().expect("a number");
        best = (best.0.min(number("p50")), best.1.min(number("p99")));
    }
    Ok(best)
}

/// Waits for the moments at which tasks are put in, `RATE` a second.
pub struct Beat {
    every: tokio::time::Interval,
}

impl Beat {
    pub fn new() -> Self {
        let mut every = tokio::time::interval(Duration::from_secs(1) / RATE);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        Self { every }
    }

    pub async fn next(&mut self) {
        self.every.tick().await;
    }
}

async fn floor(url: &str) -> Vec<f64> {
    let pool = PgPoolOptions::new().max_connections(8).test_before_acquire(false).connect(url).await.expect("a pool");
    for statement in [tasks::TABLE, tasks::INDEX] {
        query(statement).execute(&pool).await.expect("a table");
    }
    let times = Arc::new(Mutex::new(Vec::new()));
    let wake = Arc::new(Notify::new());
    let clock = Instant::now();
    let claimer = tokio::spawn(claim(url.to_owned(), clock, wake.clone(), times.clone()));
    let mut beat = Beat::new();
    for _ in 0..WARM + TASKS {
        beat.next().await;
        let (pool, wake) = (pool.clone(), wake.clone());
        tokio::spawn(async move {
            let put_in = clock.elapsed().as_nanos().to_string();
            let insert = query("insert into task (lane, payload) values (0, $1)").bind(put_in).execute(&pool);
            insert.await.expect("an insert");
            wake.notify_one();
        });
    }
    claimer.await.expect("the claimer");
    let times = times.lock().expect("no panic");
    times[WARM as usize..].to_vec()
}

async fn claim(url: String, clock: Instant, wake: Arc<Notify>, times: Arc<Mutex<Vec<f64>>>) {
    let mut claiming = PgConnection::connect(&url).await.expect("a connection");
    let sql = format!("{}, payload", tasks::CLAIM);
    let mut left = (WARM + TASKS) as usize;
    while left > 0 {
        let claim = query_as::<_, (i64, String)>(sqlx::AssertSqlSafe(sql.as_str())).bind(64_i64);
        let claimed = claim.fetch_all(&mut claiming).await.expect("a claim");
        if claimed.is_empty() {
            wake.notified().await;
            continue;
        }
        left -= claimed.len();
        for (_, put_in) in claimed {
            let times = times.clone();
            tokio::spawn(async move {
                let put_in = Duration::from_nanos(put_in.parse().expect("a time"));
                times.lock().expect("no panic").push(milliseconds(clock.elapsed().saturating_sub(put_in)));
            });
        }
    }
    // The last bodies run beside this one.
    while times.lock().expect("no panic").len() < (WARM + TASKS) as usize {
        tokio::task::yield_now().await;
    }
}

//! The durable core: no-op tasks carried out, jobs put in, how soon a task starts, webhooks
//! sent, what a backlog costs. Beside each stand a floor, which is the least that does the
//! same durably, and where there is npm graphile-worker as somebody would tune it: all on the
//! same PostgreSQL, each with a database of its own.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench is not the product, and its numbers are small"
)]

mod support;
mod queue {
    pub mod backlog;
    pub mod jobs;
    pub mod pickup;
    pub mod rdev;
    pub mod rows;
    pub mod table;
    pub mod tasks;
    pub mod webhooks;
}

use std::time::Duration;

use queue::{backlog, jobs, pickup, table, tasks, webhooks};
use sqlx::query;
use support::{Role, block_on, peer::Peers, postgres::Postgres, role, wanted};

const ROUNDS: usize = 3;
const DATABASE: &str = "measured";

fn main() {
    match role() {
        Role::Floor(arguments) => match arguments[0].as_str() {
            "jobs" => block_on(jobs::floor(&arguments[1])),
            "upstream" => block_on(jobs::upstream()),
            "receiver" => block_on(webhooks::receive()),
            other => panic!("no such floor: {other}"),
        },
        Role::Measure => block_on(measure()),
        Role::Nothing => {}
    }
}

async fn measure() {
    let bench = Bench { peers: Peers::install().await, postgres: Postgres::start().await };
    println!("{ROUNDS} rounds, medians; client, server and database share the cores; the peer is graphile-worker");
    let (busy, commit) = (busy().await * 100.0, bench.postgres.commit_time().await);
    println!("others keep the cores {busy:.0} % busy; a commit of one row takes {commit:.3} ms");
    table::head();
    if wanted("tasks") {
        tasks::measure(&bench).await;
    }
    if wanted("jobs") {
        jobs::measure(&bench).await;
    }
    if wanted("pick-up") {
        pickup::measure(&bench).await;
    }
    if wanted("webhooks") {
        webhooks::measure(&bench).await;
    }
    if wanted("backlog") {
        backlog::measure(&bench).await;
    }
}

/// The share of the cores' time that others use, over 2 s.
async fn busy() -> f64 {
    let read = || {
        let stat = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
        let numbers = stat.lines().next().expect("a line").split_whitespace().skip(1).take(8);
        let ticks = numbers.map(|number| number.parse::<f64>().expect("ticks")).collect::<Vec<_>>();
        (ticks.iter().sum::<f64>(), ticks[3] + ticks[4])
    };
    let before = read();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = read();
    1.0 - (after.1 - before.1) / (after.0 - before.0)
}

/// What all measurements use.
struct Bench {
    postgres: Postgres,
    /// Or why there are none.
    peers: Result<Peers, &'static str>,
}

impl Bench {
    /// The URL of a database that nobody has used.
    async fn fresh(&self) -> String {
        let mut conn = self.postgres.connect().await;
        for statement in ["drop database if exists measured with (force)", "create database measured", "checkpoint"] {
            query(statement).execute(&mut conn).await.expect("an administrator");
        }
        self.postgres.url(DATABASE)
    }
}

//! What sagas cost that sleep for an hour, beside a server that has none: processor time of the
//! server and of PostgreSQL while nobody asks anything, memory, and how many others are carried
//! through meanwhile.

use std::time::Duration;

use serde_json::json;
use sqlx::{Connection as _, PgConnection, query, query_scalar};

use super::{
    super::{
        Bench, ROUNDS,
        support::{
            eventually,
            server::{DataDir, Server},
            stats,
        },
    },
    http,
    table::{Line, Target},
    three::CLIENTS,
};

const ASLEEP: usize = 10_000;
const IDLE: Duration = Duration::from_secs(10);
const SETTLED: Duration = Duration::from_secs(2);
const WARM: Duration = Duration::from_millis(500);
const TIME: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_mins(1);

/// A database and the data directory of its server, which is started anew for each measurement.
struct Site {
    url: String,
    data: DataDir,
}

pub async fn measure(bench: &Bench) {
    let floor = "(floor: none)";
    let mut rate = Line::new(format!("3-step sagas by HTTP beside {ASLEEP} asleep {floor}"), "/s");
    let mut own = Line::new(format!("{ASLEEP} asleep, processor of rdev in {} s {floor}", IDLE.as_secs()), "s");
    let mut postgres = Line::new(format!("{ASLEEP} asleep, processor of PostgreSQL {floor}"), "s");
    let mut memory = Line::new(format!("{ASLEEP} asleep, memory of rdev after a start {floor}"), "MB");
    let mut made = Line::new("memory of the rdev that made them", "MB");
    let empty = Site { url: bench.fresh().await, data: DataDir::new() };
    let full = Site { url: bench.fresh_named("asleep").await, data: DataDir::new() };
    made.rdev(full.fall_asleep().await);
    let (with, without) = (full.idle().await, empty.idle().await);
    own.floor(without.own);
    own.rdev(with.own);
    postgres.floor(without.postgres);
    postgres.rdev(with.postgres);
    memory.floor(without.megabytes);
    memory.rdev(with.megabytes);
    for _ in 0..ROUNDS {
        rate.floor(empty.rate().await);
        rate.rdev(full.rate().await);
    }
    rate.print(&[Target::OfFloor(0.9)]);
    for line in [own, postgres, memory, made] {
        line.print(&[]);
    }
}

/// Used while nobody asked anything, in seconds of a core.
struct Idle {
    own: f64,
    postgres: f64,
    megabytes: f64,
}

impl Site {
    /// Answers the memory of the server that made them, in MB.
    async fn fall_asleep(&self) -> f64 {
        let server = Server::rdev(&self.url, &self.data);
        let body = json!({"name": "asleep", "steps": [
            {"name": "rest", "action": "wait.sleep", "config": {"duration": "1h"}},
            {"name": "go on", "action": "noop"},
        ]});
        http::make(&server, &body, CLIENTS, ASLEEP).await;
        let mut conn = PgConnection::connect(&self.url).await.expect("a connection");
        let sql = "select count(*) from task_later where kind = 'saga.run'";
        let asleep = async || {
            let mut conn = PgConnection::connect(&self.url).await.ok()?;
            let count: i64 = query_scalar(sql).fetch_one(&mut conn).await.ok()?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            usize::try_from(count).is_ok_and(|count| count >= ASLEEP).then_some(())
        };
        eventually("all are asleep", PATIENCE, asleep).await;
        for statement in ["vacuum analyze", "checkpoint"] {
            query(statement).execute(&mut conn).await.expect("an administrator");
        }
        stats::resident(server.pid()) / 1e6
    }

    async fn idle(&self) -> Idle {
        let server = Server::rdev(&self.url, &self.data);
        let mut conn = PgConnection::connect(&self.url).await.expect("a connection");
        let backend: i32 = query_scalar("select pg_backend_pid()").fetch_one(&mut conn).await.expect("a process");
        let postmaster = parent(u32::try_from(backend).expect("a process")).expect("it lives");
        tokio::time::sleep(SETTLED).await;
        let before = (stats::cpu(server.pid()), with_children(postmaster));
        tokio::time::sleep(IDLE).await;
        let after = (stats::cpu(server.pid()), with_children(postmaster));
        Idle { own: after.0 - before.0, postgres: after.1 - before.1, megabytes: stats::resident(server.pid()) / 1e6 }
    }

    async fn rate(&self) -> f64 {
        let server = Server::rdev(&self.url, &self.data);
        http::carry(&server, CLIENTS, WARM).await;
        http::carry(&server, CLIENTS, TIME).await
    }
}

/// Processor time of a process and of its children, those included that it has waited for.
fn with_children(pid: u32) -> f64 {
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let family = pids.filter(|one| *one == pid || parent(*one) == Some(pid));
    family.map(|one| time_of(one).unwrap_or_default()).sum()
}

/// None of one that has just ended: its parent counts it then.
fn time_of(pid: u32) -> Option<f64> {
    let alive = std::path::Path::new("/proc").join(pid.to_string()).join("stat").exists();
    alive.then(|| stats::cpu(pid))
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces; what follows it does not.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

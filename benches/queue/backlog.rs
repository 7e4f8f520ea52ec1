//! What a backlog costs: the claim of 64 tasks where there are no others, where a million of
//! the same queue stand behind them, and where many wait for their time; and what is left of
//! a million tasks that were carried out in one go.

use std::time::Instant;

use rdev::{
    database::Db,
    queue::{Claimed, Lane, Lease},
    store,
};
use sqlx::{Connection as _, PgConnection, query};

use super::{
    super::{
        Bench, ROUNDS,
        support::stats::{median, milliseconds},
    },
    rdev::{FILL, drain, migrated},
    rows,
    table::{Line, Target},
};

const CLAIMED: i32 = 64;
const CLAIMS: usize = 200;
const READY: u32 = 1_000_000;
const LATER: u32 = 100_000;
/// `$1` of them, due in an hour.
const FILL_LATER: &str = "insert into task_later (id, run_at, attempt, lane, priority, queue, kind, subject)
    select nextval('task_id_seq'), now() + interval '1 hour', 0, 0, 4, '', 'noop', 'later ' || n
    from generate_series(1, $1::bigint) n";

pub async fn measure(bench: &Bench) {
    let floor = "(floor: no others)";
    let mut ready = Line::new(format!("claim of {CLAIMED}, {READY} ready {floor}"), "ms");
    let mut later = Line::new(format!("claim of {CLAIMED}, {LATER} for later {floor}"), "ms");
    for _ in 0..ROUNDS {
        let alone = claims(bench, None).await;
        ready.floor(alone);
        later.floor(alone);
        ready.rdev(claims(bench, Some((FILL, READY))).await);
        later.rdev(claims(bench, Some((FILL_LATER, LATER))).await);
    }
    ready.print(&[Target::NoMoreThanFloor(2.0)]);
    later.print(&[Target::NoMoreThanFloor(2.0)]);
    carried_out(bench).await;
}

/// How long a claim takes, in ms, at p50.
async fn claims(bench: &Bench, behind: Option<(&'static str, u32)>) -> f64 {
    let url = bench.fresh().await;
    let db = migrated(&url).await;
    let mut admin = PgConnection::connect(&url).await.expect("a connection");
    if let Some((sql, count)) = behind {
        query(sql).bind(i64::from(count)).execute(&mut admin).await.expect("tasks");
    }
    for statement in ["checkpoint", "vacuum analyze"] {
        query(statement).execute(&mut admin).await.expect("an administrator");
    }
    let lease = Lease::new(1);
    lease.register(&db).await.expect("a process");
    // Nobody renews it here.
    let live = query("update process set expires_at = now() + interval '1 hour'");
    live.execute(&mut admin).await.expect("a lease");
    let mut times = Vec::with_capacity(CLAIMS);
    for turn in 0..CLAIMS {
        if behind.is_none_or(|(_, count)| count != READY) {
            put_in(&mut admin, turn).await;
        }
        let begun = Instant::now();
        let claimed = claim(&db, &lease).await;
        times.push(milliseconds(begun.elapsed()));
        assert_eq!(claimed.len(), CLAIMED as usize);
        finish(&db, &claimed).await;
    }
    db.close().await;
    median(&times)
}

async fn put_in(admin: &mut PgConnection, turn: usize) {
    let sql = "insert into task (kind, subject) select 'noop', $1 || n from generate_series(1, $2::bigint) n";
    query(sql).bind(format!("{turn} ")).bind(i64::from(CLAIMED)).execute(admin).await.expect("tasks");
}

async fn claim(db: &Db, lease: &Lease) -> Vec<Claimed> {
    let mut conn = db.conn().await.expect("a connection");
    let (queues, rooms, total) = ([String::new()], [CLAIMED], i64::from(CLAIMED));
    store::tasks::claim(&mut conn, lease.id(), Lane::Work, &queues, &rooms, total).await.expect("a claim")
}

async fn finish(db: &Db, claimed: &[Claimed]) {
    let (ids, fences): (Vec<i64>, Vec<i64>) = claimed.iter().map(|task| (task.id, task.fence)).unzip();
    let mut conn = db.conn().await.expect("a connection");
    let gone = store::tasks::finish_all(&mut conn, &ids, &fences).await.expect("ends");
    assert_eq!(gone.len(), ids.len());
}

/// Once: it takes a while.
async fn carried_out(bench: &Bench) {
    let mut rate = Line::new(format!("{READY} no-op tasks"), "/s");
    let mut dead = Line::new("rows of task that are dead then", "");
    let mut size = Line::new("size of task then, indexes included", "MB");
    let url = bench.fresh().await;
    rate.rdev(drain(&url, READY).await.per_second);
    let left = rows::left(&url, READY).await;
    dead.rdev(left.dead);
    size.rdev(left.megabytes);
    for line in [rate, dead, size] {
        line.print(&[]);
    }
}

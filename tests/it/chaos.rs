//! Everything dies while jobs run: processes are killed, frozen and stopped, and the database
//! crashes. Nothing that was promised is lost, and nothing is done twice.
//!
//! `RDEV_TEST_CHAOS_JOBS`, `_KILLS` and `_SECONDS` make it larger.

mod audit;
mod clients;
pub mod fleet;
mod models;
mod moments;
mod wire;

use std::time::{Duration, Instant};

use sqlx::Row as _;

use self::{
    audit::audit,
    clients::{Clients, Receivers, Submitted},
    fleet::{Fleet, Home},
    models::Models,
    wire::Wire,
};
use super::support::{
    Ground,
    cluster::{Cluster, rows},
    eventually,
};

const CLIENTS: u32 = 4;
/// A lease is 15 s long.
const FROZEN: Duration = Duration::from_secs(18);
/// All is at rest so long after the last fault.
const REST: Duration = Duration::from_mins(1);

struct Sizes {
    jobs: u32,
    kills: u32,
    seconds: u32,
}

impl Sizes {
    fn from_environment() -> Self {
        let number = |name: &str, default| {
            let told = std::env::var(format!("RDEV_TEST_CHAOS_{name}")).ok();
            told.map_or(default, |text| text.parse().expect("a number"))
        };
        Self { jobs: number("JOBS", 150), kills: number("KILLS", 4), seconds: number("SECONDS", 30) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_is_done_twice_whatever_dies() {
    let sizes = Sizes::from_environment();
    let (cluster, models, receivers) = (Cluster::start().await, Models::start().await, Receivers::start().await);
    let homes = [Home::Shared, Home::Own, Home::Shared];
    let mut fleet = Fleet::start(&cluster.url(), models.url(), &homes).await;
    let clients = Clients::new(&fleet, &receivers);
    let pause = Duration::from_secs(sizes.seconds.into()) * CLIENTS / sizes.jobs;
    let submitting: Vec<_> =
        (0..CLIENTS).map(|_| tokio::spawn(clients.clone().submit_all(sizes.jobs, pause))).collect();
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;

    let held = freeze_one_with_jobs(&mut fleet, &clients, &models, &sizes).await;
    let later = sizes.kills - sizes.kills / 2;
    let span = Duration::from_secs(sizes.seconds.into()).saturating_sub(began.elapsed());
    crash_the_database(&cluster).await;
    for _ in 0..later {
        tokio::time::sleep(span / (later + 1)).await;
        kill_the_busiest(&mut fleet).await;
    }
    fleet.stop(0).await;
    fleet.launch(0).await;

    let last_fault = Instant::now();
    clients.stop();
    for client in submitting {
        client.await.expect("every client is answered");
    }
    rest(&fleet, &cluster.url(), last_fault).await;
    let rested = last_fault.elapsed();
    let summary = audit(&fleet, &cluster.url(), &models, &receivers, &clients).await;
    assert!(summary.rescued >= held.len() && summary.completed > summary.jobs / 2, "{summary:?}");
    eprintln!("at rest {rested:?} after the last fault, in all {:?}: {summary:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_the_database_does_what_it_cannot_say() {
    let (ground, models, receivers) = (Ground::new().await, Models::start().await, Receivers::start().await);
    let wire = Wire::before(&ground.db).await;
    let fleet = Fleet::start(&wire.url(&ground.db), models.url(), &[Home::Own, Home::Own]).await;
    let clients = Clients::new(&fleet, &receivers);
    wire.lose_one_in(50);
    clients.stop();
    let submitting: Vec<_> =
        (0..CLIENTS).map(|_| tokio::spawn(clients.clone().submit_all(60, Duration::from_millis(100)))).collect();
    for client in submitting {
        client.await.expect("every client is answered");
    }
    wire.lose_one_in(0);
    rest(&fleet, &ground.db.url, Instant::now()).await;
    let summary = audit(&fleet, &ground.db.url, &models, &receivers, &clients).await;
    eprintln!("{} answers lost: {summary:?}", wire.lost());
    assert!(wire.lost() > 20, "{}", wire.lost());
}

/// One that runs jobs is frozen until these have ended elsewhere; meanwhile others are killed. When it
/// goes on, its jobs are answered, and it may not say so. Answers those jobs.
async fn freeze_one_with_jobs(fleet: &mut Fleet, clients: &Clients, models: &Models, sizes: &Sizes) -> Vec<Submitted> {
    let (frozen, held) = hold_jobs(fleet, clients).await;
    fleet.freeze(frozen).await;
    let since = Instant::now();
    models.held.open();
    let kills = sizes.kills / 2;
    // Early, so that whoever rescues the frozen one's jobs lives.
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_secs(8) / kills).await;
        kill_the_busiest(fleet).await;
    }
    let awake = (0..fleet.len()).find(|n| !fleet.is_frozen(*n)).expect("two of them");
    for one in &held {
        let path = format!("/jobs/{}", one.job);
        eventually("the end of a frozen process's job", async || {
            let job = fleet.api(awake).get(&path).await;
            (job.status == 200 && job.json()["state"] == "completed").then_some(())
        })
        .await;
    }
    tokio::time::sleep(FROZEN.saturating_sub(since.elapsed())).await;
    fleet.thaw(frozen);
    fleet.stale_write_refused(frozen).await;
    held
}

/// Jobs under way that cannot end yet, all of the same process: that one, and those.
async fn hold_jobs(fleet: &Fleet, clients: &Clients) -> (usize, Vec<Submitted>) {
    let mut held: Vec<(usize, Submitted)> = Vec::new();
    for _ in 0..2 * fleet.len() {
        let one = clients.submit_held().await;
        let runner = eventually("a held job that runs", async || fleet.runner_of(&one.job).await).await;
        held.push((runner, one));
    }
    let most = |n: &usize| held.iter().filter(|(runner, _)| runner == n).count();
    let chosen = (0..fleet.len()).max_by_key(most).expect("some");
    (chosen, held.into_iter().filter(|(runner, _)| *runner == chosen).map(|(_, one)| one).collect())
}

async fn kill_the_busiest(fleet: &mut Fleet) {
    let busy = fleet.busy().await;
    let awake = |n: &usize| !fleet.is_frozen(*n);
    let chosen = busy.into_iter().map(|(n, _)| n).find(awake).or_else(|| (0..fleet.len()).find(awake));
    let chosen = chosen.expect("one that is awake");
    fleet.kill(chosen).await;
    fleet.launch(chosen).await;
}

async fn crash_the_database(cluster: &Cluster) {
    cluster.crash();
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.come_back().await;
}

/// Waits until nothing is left to do, and nobody is remembered who is dead.
async fn rest(fleet: &Fleet, database: &str, since: Instant) {
    let sql = "select (select count(*) from job where completed_at is null),
                      (select count(*) from delivery where status = 'pending'),
                      (select count(*) from task) + (select count(*) from task_later),
                      (select count(*) from process)";
    loop {
        let found = rows(database, sql).await;
        let left: Vec<i64> = (0..4).map(|n| found[0].get(n)).collect();
        if left == [0, 0, 0, fleet.len() as i64] {
            return;
        }
        if since.elapsed() > REST {
            let left = format!("jobs, webhooks, tasks, processes: {left:?}");
            panic!("not at rest after {REST:?}: {left}\n{}\n{}", remains(fleet, database).await, fleet.complaints());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// All that should not be there any more.
async fn remains(fleet: &Fleet, database: &str) -> String {
    let mut told = String::new();
    for (what, sql) in [
        ("process", "select p::text from process p"),
        ("task", "select t::text from task t"),
        ("task for later", "select t::text from task_later t"),
        ("job", "select row(id, state, model, attempt, failures, sequence)::text from job where completed_at is null"),
        (
            "webhook",
            "select row(id, job_id, sequence, status, retries, next_attempt_at)::text from delivery where status = 'pending'",
        ),
    ] {
        let found = rows(database, sql).await;
        told.extend(found.iter().take(20).map(|row| format!("{what}: {}\n", row.get::<String, _>(0))));
    }
    let stuck = rows(database, "select id from job where completed_at is null limit 3").await;
    told.extend(stuck.iter().map(|row| fleet.said_about(row.get(0))));
    told
}

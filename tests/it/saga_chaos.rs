//! Sagas while everything dies: processes are killed, frozen and stopped, and each step is done once,
//! what may have been done is undone once, and what is told of it is what the receiver saw.
//!
//! `RDEV_TEST_SEED` makes the same sagas and faults again; `RDEV_TEST_CHAOS_SAGAS`, `_KILLS` and
//! `_SECONDS` make the story larger.

mod audit;
mod effects;
mod knocking;
mod people;
mod plans;
mod receiver;
mod storm;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::join_all;
use sqlx::Row as _;

use self::{audit::audit, knocking::Knocking, people::People, receiver::Receiver, storm::Storm};
use super::{
    chaos::fleet::{Fleet, Home},
    support::{Ground, cluster::rows, sink::lock},
};

/// Who make sagas.
const MAKERS: usize = 4;
/// All is at rest so long after the last fault.
const REST: Duration = Duration::from_mins(1);

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Told where a test fails: the seed of all that is left to chance.
fn seed() -> u64 {
    let seed = from_environment("RDEV_TEST_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    eprintln!("RDEV_TEST_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_is_done_once_and_undone_once_whatever_dies() {
    let size = |name: &str, default| from_environment(&format!("RDEV_TEST_CHAOS_{name}")).unwrap_or(default);
    let (sagas, kills, seconds) = (size("SAGAS", 200), size("KILLS", 7), size("SECONDS", 22));
    let seed = seed();
    let plans = Arc::new(plans::plans(seed, usize::try_from(sagas).expect("a number of sagas")));
    let (ground, receiver) = (Ground::new().await, Receiver::start(plans.clone()).await);
    let mut fleet = Fleet::start(&ground.db.url, "", &[Home::Shared, Home::Own, Home::Shared]).await;
    let people = People::new(Knocking::new(&fleet.key, &fleet.doors), plans.clone(), &receiver.url);
    let span = Duration::from_secs(seconds);
    let pause = span * u32::try_from(MAKERS).expect("few") / u32::try_from(sagas).expect("not so many");
    let over = Arc::new(Mutex::new(None::<Instant>));
    let looking = {
        let (people, over) = (people.clone(), over.clone());
        tokio::spawn(async move { people.look_after(|| *lock(&over), REST).await })
    };
    let making: Vec<_> = (0..MAKERS).map(|n| tokio::spawn(people.clone().make(n, MAKERS, pause))).collect();

    let began = Instant::now();
    let mut storm = Storm::new(seed, &ground.db.url);
    storm.rage(&mut fleet, kills, span).await;
    for maker in join_all(making).await {
        maker.expect("every maker is answered");
    }
    people.have_interrupted().await;
    let calm = Instant::now();
    *lock(&over) = Some(calm);
    if let Err(error) = looking.await {
        panic!("{error}\n{}\n{}", remains(&ground.db.url).await, storm.told());
    }
    rest(&fleet, &ground.db.url, calm).await;
    let (calm, rested) = (calm - began, calm.elapsed());
    let summary = audit(&fleet, &ground.db.url, &plans, &people, &receiver, &storm).await;
    eprintln!("calm after {calm:?}, at rest {rested:?} later, in all {:?}: {summary:?}", began.elapsed());
    summary.proves_something();
}

/// Waits until nobody works at anything, and nobody is remembered who is dead.
async fn rest(fleet: &Fleet, database: &str, since: Instant) {
    let sql = "select (select count(*) from task) + (select count(*) from task_later), (select count(*) from process)";
    loop {
        let found = rows(database, sql).await;
        let left: (i64, i64) = (found[0].get(0), found[0].get(1));
        if left == (0, fleet.len() as i64) {
            return;
        }
        let patient = since.elapsed() < REST;
        assert!(patient, "tasks and processes: {left:?}\n{}\n{}", remains(database).await, fleet.complaints());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// All that should not be there any more.
async fn remains(database: &str) -> String {
    let mut told = String::new();
    for (what, sql) in [
        ("process", "select p::text from process p"),
        ("task", "select t::text from task t"),
        ("task for later", "select t::text from task_later t"),
        ("parked", "select t::text from task_parked t"),
        (
            "saga",
            "select row(id, name, status, version, halting, stop_by, wake_at)::text from saga
             where status not in ('completed', 'compensated', 'cancelled', 'failed')",
        ),
    ] {
        let found = rows(database, sql).await;
        told.extend(found.iter().take(20).map(|row| format!("{what}: {}\n", row.get::<String, _>(0))));
    }
    told
}

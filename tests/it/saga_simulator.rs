//! Sagas through thousands of seeded histories: processes that crash, stop, lose their lease and
//! their answers between any two steps, receivers in every mood, and people who ask whatever may
//! be asked at any time. The decisions are the domain's own; time is the simulation's. A seed
//! replays its history: `RDEV_TEST_SEED=17`; `RDEV_TEST_HISTORIES` is how many there are.

mod attempt;
mod book;
mod checks;
mod database;
mod drive;
mod history;
mod people;
mod plans;
mod process;
mod rules;
mod world;

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use rdev::domain::saga::{Happening, Saga, SagaStatus};

use self::{
    database::Flaw,
    history::History,
    world::{Away, World},
};

type Millis = i64;
type Tally = BTreeMap<&'static str, u64>;

const HISTORIES: u64 = 2_000;
/// What the histories must have seen to prove anything.
const SEEN: &[&str] = &[
    "answers lost",
    "asked and told nobody",
    "compensations failed",
    "concluded",
    "crashes",
    "cut off too often",
    "given up",
    "leases lost",
    "notes",
    "notes refused",
    "orderly stops",
    "refused",
    "sagas cancelled",
    "sagas compensated",
    "sagas completed",
    "sagas failed",
    "sagas stuck",
    "stale decisions",
    "steps put off",
    "steps resumed",
    "steps skipped",
    "steps unknown",
    "turns passed",
    "writes under an old fence",
];

#[test]
fn sagas_keep_their_promises_whatever_dies() {
    let (histories, first) = (from_environment("RDEV_TEST_HISTORIES"), from_environment("RDEV_TEST_SEED"));
    let seeds = match (histories, first) {
        (None, Some(seed)) => seed..seed + 1,
        (histories, first) => first.unwrap_or(0)..first.unwrap_or(0) + histories.unwrap_or(HISTORIES),
    };
    let enough = seeds.end - seeds.start >= HISTORIES;
    let mut total = Tally::new();
    for seed in seeds {
        let tally = live_through(seed, None).unwrap_or_else(|breach| panic!("RDEV_TEST_SEED={seed}: {breach}"));
        for (what, n) in tally {
            *total.entry(what).or_default() += n;
        }
    }
    println!("{total:#?}");
    if enough {
        let missing: Vec<_> = SEEN.iter().filter(|what| !total.contains_key(**what)).collect();
        assert!(missing.is_empty(), "no history has seen {missing:?}");
        assert!(total["moves"] >= 1_000_000, "{} moves", total["moves"]);
    }
}

#[test]
fn a_seed_replays() {
    assert_eq!(live_through(7, None), live_through(7, None));
    assert_ne!(live_through(7, None), live_through(8, None));
}

#[test]
fn a_driver_that_ignores_versions_is_caught() {
    caught(Flaw::WritesWithoutTheVersion, &["told was", "it was"]);
}

#[test]
fn each_broken_rule_is_caught() {
    caught(Flaw::WritesUnderAnOldFence, &["old fence"]);
    caught(Flaw::ForgetsTheTask, &["it has 0 tasks"]);
    caught(Flaw::SkipsTheNoteRule, &["made its own twice"]);
    caught(Flaw::BeginsTooEarly, &["sent again after a cut-off", "what it did is there"]);
    caught(Flaw::ForgetsWhatEnded, &["stuck"]);
    caught(Flaw::CutsNothing, &["was done when it was", "at once"]);
    caught(Flaw::LeavesTheSuperseded, &["was done when it was", "at once"]);
    caught(Flaw::IsDeafToQuietChanges, &["was due at"]);
    caught(Flaw::GivesUpUnwritten, &["it has 0 tasks"]);
    caught(Flaw::TakesOutOfTurn, &["its turn is Waits"]);
    caught(Flaw::PassesTheTurnQuietly, &["it has 0 tasks"]);
    caught(Flaw::MissesADependency, &["which it needs, is not done", "is not out of the way"]);
    caught(Flaw::MissesACompensation, &["is not undone"]);
    caught(Flaw::TellsNotEverything, &["told was", "it was"]);
    caught(Flaw::StoresNotEverything, &["changed unseen", "it was"]);
    caught(Flaw::HalfRefuses, &["was refused and changed something"]);
}

#[test]
fn a_long_chain_that_needs_nobody_is_decided_in_few_bounded_steps() {
    let mut saga = Saga::new(Arc::new(plans::idle(200)));
    let mut happening = Happening::Taken;
    for decision in 1.. {
        let changes = saga.decide(happening, time(0), 0.5);
        assert!(changes.transitions.len() <= 300, "{} at once", changes.transitions.len());
        if !changes.more {
            assert_eq!((saga.status, decision), (SagaStatus::Completed, 2));
            return;
        }
        happening = Happening::Look;
    }
}

/// Some history shows the flaw, and by what it breaks.
#[track_caller]
fn caught(flaw: Flaw, by: &[&str]) {
    let found = (0..5 * HISTORIES).find_map(|seed| live_through(seed, Some(flaw)).err());
    let breach = found.unwrap_or_else(|| panic!("{flaw:?} was not noticed"));
    let first = breach.lines().next().unwrap_or_default();
    assert!(by.iter().any(|by| first.contains(by)), "{flaw:?}: {breach}");
}

/// The whole history of a seed: what it has seen, or what it broke.
fn live_through(seed: u64, flaw: Option<Flaw>) -> Result<Tally, String> {
    let mut history = History::new(seed, flaw);
    if history.unfold().is_ok() {
        return Ok(std::mem::take(&mut history.world.db.seen.tally));
    }
    // Once more, now that there is something to tell.
    let mut history = History::new(seed, flaw);
    history.world.trace.is_kept = true;
    let breach = history.unfold().expect_err("a seed replays");
    Err(history.world.story(&breach))
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// As the engine takes it.
fn time(at: Millis) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::milliseconds(1_900_000_000_000 + at)
}

/// Rounded up: nobody looks before it is due.
fn millis(at: DateTime<Utc>) -> Millis {
    let exact = at - time(0);
    exact.num_milliseconds() + i64::from(exact.subsec_nanos() % 1_000_000 > 0)
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

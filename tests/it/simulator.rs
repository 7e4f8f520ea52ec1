//! Jobs and webhooks through thousands of seeded histories: processes that crash, freeze, stop
//! and lose answers between any two steps, a database that restarts, clients that cancel, and
//! receivers in every mood. The decisions are the domain's own; time is the simulation's. A seed
//! replays its history: `RDEV_TEST_SEED=17`; `RDEV_TEST_HISTORIES` is how many there are.

mod attempt;
mod checks;
mod database;
mod process;

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rdev::domain;

use self::{
    database::{Database, Flaw},
    process::{Actor, After, Process},
};

/// Milliseconds.
type Millis = u64;
type Tally = BTreeMap<&'static str, u64>;

const HISTORIES: u64 = 300;
/// Steps until the faults stop; what is left then comes to rest by itself.
const STORM: u32 = 2_600;
const REST_WITHIN: Millis = 300_000;
/// What the histories must have seen to prove anything.
const SEEN: &[&str] = &[
    "answers lost",
    "buried",
    "cancelled while running",
    "completed",
    "crashes",
    "databases restarted",
    "delivered",
    "failed for good",
    "given back",
    "orderly stops",
    "parked",
    "proven dead",
    "redelivered",
    "released unanswered",
    "rescues",
    "retries",
    "started anew",
    "stopped by a 410",
    "taken over while running",
    "thawed with the lease gone",
    "webhook retries",
    "webhooks given up",
    "writes under an old fence",
];

#[test]
fn nothing_is_lost_or_done_twice_whatever_dies() {
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
        assert!(total["steps"] >= 500_000, "{} steps", total["steps"]);
    }
}

#[test]
fn a_seed_replays() {
    assert_eq!(live_through(7, None), live_through(7, None));
    assert_ne!(live_through(7, None), live_through(8, None));
}

#[test]
fn a_queue_that_finishes_by_id_alone_is_caught() {
    caught(Flaw::FinishesByIdAlone, "old fence");
}

#[test]
fn each_broken_rule_is_caught() {
    caught(Flaw::BuriesWithoutTheLease, "was buried alive");
    caught(Flaw::BuriesAfterARestart, "was buried alive");
    caught(Flaw::BuriesNobody, "is not elsewhere after");
    caught(Flaw::CountsWhatWasGivenBack, "claims count");
    caught(Flaw::ForgetsTheNextWebhook, "it has 0 tasks");
    caught(Flaw::SendsOnAfterA410, "after a 410");
    caught(Flaw::ReleaseKeepsTheFence, "old fence");
    caught(Flaw::RecordsByTaskAlone, "old fence");
    caught(Flaw::RedeliveryKeepsTheTask, "asked for since");
    caught(Flaw::ForgetsUnansweredClaims, "stuck");
    caught(Flaw::DropsWhatItCannotAppend, "stuck");
    caught(Flaw::ParksWithoutFailing, "it has 0 tasks");
}

/// Some history shows the flaw, and by what it breaks.
#[track_caller]
fn caught(flaw: Flaw, by: &str) {
    let found = (0..10 * HISTORIES).find_map(|seed| live_through(seed, Some(flaw)).err());
    let breach = found.unwrap_or_else(|| panic!("{flaw:?} was not noticed"));
    assert!(breach.contains(by), "{flaw:?}: {breach}");
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// No answer came: it was not done, or it was and nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Away;

/// What processes act on.
struct World {
    db: Database,
    rng: SmallRng,
    /// Faults happen.
    stormy: bool,
    /// Whoever stepped dies of it.
    kills: bool,
    /// An answer did not come in this step.
    failed: bool,
    leases: u64,
    temper: Temper,
}

/// How bad a history's days are.
#[derive(Clone, Copy)]
struct Temper {
    /// Chances that a transaction is not made, that its answer is lost, that a job kills.
    refused: f64,
    lost: f64,
    deadly: f64,
}

const FAIR: Temper = Temper { refused: 0.004, lost: 0.006, deadly: 0.01 };
const FOUL: Temper = Temper { refused: 0.04, lost: 0.03, deadly: 0.3 };

/// A place where a process runs, with its data directory.
struct Place {
    process: Option<Process>,
    starts_at: Millis,
    frozen_until: Millis,
    /// Those that died here, as their locks prove.
    graves: Vec<u64>,
    slots: usize,
}

struct History {
    world: World,
    places: Vec<Place>,
    /// Jobs still to be asked for.
    jobs: u32,
    /// Who stepped when, the last few.
    trace: Vec<(Millis, usize, Actor)>,
    due: Vec<(Millis, Actor)>,
}

/// The whole history of a seed: what it has seen, or what it broke.
fn live_through(seed: u64, flaw: Option<Flaw>) -> Result<Tally, String> {
    let mut history = History::new(seed, flaw);
    history.unfold().map_err(|breach| {
        let last: Vec<_> = history.trace.iter().rev().take(25).collect();
        format!("{breach}\nat {} ms, last steps, newest first (ms, place, who): {last:?}", history.world.db.now)
    })?;
    Ok(std::mem::take(&mut history.world.db.seen.tally))
}

impl History {
    fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let db = Database::new(flaw);
        let rng = SmallRng::seed_from_u64(seed);
        let temper = if seed % 4 == 3 { FOUL } else { FAIR };
        let mut world = World { db, rng, stormy: true, kills: false, failed: false, leases: 0, temper };
        let places = (0..world.within(2..5)).map(|_| {
            let slots = usize::try_from(world.within(1..5)).unwrap_or(1);
            Place { process: None, starts_at: 0, frozen_until: 0, graves: Vec::new(), slots }
        });
        let places = places.collect();
        Self { world, places, jobs: 30, trace: Vec::new(), due: Vec::new() }
    }

    fn unfold(&mut self) -> Result<(), String> {
        for _ in 0..STORM {
            self.interfere();
            self.step()?;
        }
        self.calm_down();
        let until = self.world.db.now + REST_WITHIN;
        while !self.world.db.is_quiet() {
            if self.world.db.now > until {
                return Err(self.world.db.unrest());
            }
            self.step()?;
        }
        self.world.db.check_end()
    }

    /// Somebody takes a step, whoever comes first among those who could.
    fn step(&mut self) -> Result<(), String> {
        let (mut ready, mut soonest) = (Vec::new(), Millis::MAX);
        let now = self.world.db.now;
        for (n, place) in self.places.iter().enumerate() {
            let Some(process) = &place.process else {
                soonest = soonest.min(place.starts_at);
                continue;
            };
            process.due(&mut self.due);
            for (at, actor) in self.due.drain(..) {
                let at = at.max(place.frozen_until);
                soonest = soonest.min(at);
                if at <= now {
                    ready.push((n, actor));
                }
            }
        }
        for n in 0..self.places.len() {
            self.start_where_due(n);
        }
        if ready.is_empty() {
            self.world.db.now = soonest.clamp(now + 1, now + 1_000);
            return self.check();
        }
        let (n, actor) = ready[self.world.index(ready.len())];
        self.trace.push((now, n, actor));
        let place = &mut self.places[n];
        let after = place.process.as_mut().map_or(After::Lives, |process| process.step(actor, &mut self.world));
        self.world.db.seen.count("steps");
        if let Some(process) = place.process.as_mut().filter(|_| std::mem::take(&mut self.world.failed)) {
            process.idle_since = None;
        }
        if after == After::Left {
            place.process = None;
            place.starts_at = now + self.world.within(0..8_000);
        }
        if after == After::Died || std::mem::take(&mut self.world.kills) {
            self.crash(n);
        }
        self.world.db.now += self.world.within(0..30);
        self.check()
    }

    fn check(&mut self) -> Result<(), String> {
        let now = self.world.db.now;
        for place in &mut self.places {
            let Some(process) = &mut place.process else { continue };
            let well = place.frozen_until <= now && process.has_room() && self.world.db.lives(process.lease);
            process.idle_since = well.then(|| process.idle_since.unwrap_or(now));
        }
        let idle_since = self.places.iter().filter_map(|place| place.process.as_ref()?.idle_since).min();
        self.world.db.check(idle_since)
    }

    fn start_where_due(&mut self, n: usize) {
        let now = self.world.db.now;
        let place = &mut self.places[n];
        if place.process.is_none() && place.starts_at <= now {
            let proven = std::mem::take(&mut place.graves);
            place.process = Some(Process::start(self.world.new_lease(), place.slots, proven, now));
        }
    }

    /// What may happen between any two steps.
    fn interfere(&mut self) {
        let n = self.world.index(self.places.len());
        let now = self.world.db.now;
        let here = self.places[n].process.is_some() && self.places[n].frozen_until <= now;
        match self.world.within(0..2_000) {
            0..14 if here => self.crash(n),
            14..28 if here => self.freeze(n),
            28..34 if here && self.places[n].process.as_mut().is_some_and(|process| process.stop(now)) => {
                self.world.db.seen.count("orderly stops");
            }
            34..36 => {
                let away = self.world.within(0..25_000);
                self.world.db.restart(away);
                self.world.db.seen.count("databases restarted");
            }
            40..90 if self.jobs > 0 && !self.world.db.is_away() => {
                self.jobs -= 1;
                let (hook, deadly) = (self.world.chance(0.8), self.world.chance(self.world.temper.deadly));
                let priority = i16::try_from(self.world.within(0..10)).unwrap_or(4);
                self.world.db.submit(hook, deadly, priority);
            }
            90..102 if !self.world.db.jobs.is_empty() => {
                let job = self.world.index(self.world.db.jobs.len());
                self.world.asked_by_client(|db| db.cancel(job));
            }
            102..110 if !self.world.db.deliveries.is_empty() => {
                let delivery = self.world.index(self.world.db.deliveries.len());
                self.world.asked_by_client(|db| db.redeliver(delivery));
            }
            _ => {}
        }
    }

    /// Its memory is gone. What it held is told to the witness.
    fn crash(&mut self, n: usize) {
        let now = self.world.db.now;
        let (place, db) = (&mut self.places[n], &mut self.world.db);
        let Some(process) = place.process.take() else { return };
        db.seen.count("crashes");
        db.seen.died(process.lease);
        let held: Vec<_> = db.owned_by(process.lease).map(|id| (id, db.tasks[&id].fence)).collect();
        for (task, fence) in held {
            db.seen.orphaned(task, fence, now);
        }
        db.seen.died(process.locked);
        place.graves.push(process.locked);
        let pause = if self.world.chance(0.6) { 0..500 } else { 0..30_000 };
        place.starts_at = now + self.world.within(pause);
        if self.world.chance(0.3) {
            // On another machine: nothing there proves a death.
            place.graves.clear();
        }
    }

    fn freeze(&mut self, n: usize) {
        let now = self.world.db.now;
        let long = self.world.chance(0.6);
        let pause = if long { 15_000..40_000 } else { 100..15_000 };
        self.places[n].frozen_until = now + self.world.within(pause);
        if self.places[n].process.as_ref().is_some_and(|process| process.is_overdue(self.places[n].frozen_until)) {
            self.world.db.seen.count("thawed with the lease gone");
        }
    }

    /// No more faults: all is up, or soon.
    fn calm_down(&mut self) {
        (self.world.stormy, self.world.kills) = (false, false);
        let soon = self.world.db.now + 2_000;
        for place in &mut self.places {
            place.starts_at = place.starts_at.min(soon);
        }
    }
}

impl World {
    /// To the database and back.
    fn ask<T>(&mut self, transaction: impl FnOnce(&mut Database) -> T) -> Result<T, Away> {
        if self.db.is_away() || (self.stormy && self.chance(self.temper.refused)) {
            self.failed = true;
            return Err(Away);
        }
        let answer = transaction(&mut self.db);
        if self.stormy && self.chance(self.temper.lost) {
            self.db.seen.count("answers lost");
            self.kills = self.chance(0.4);
            self.failed = true;
            return Err(Away);
        }
        Ok(answer)
    }

    /// By way of some process, whose fate is no matter of this.
    fn asked_by_client(&mut self, transaction: impl FnOnce(&mut Database)) {
        let _the_client_asks_again_or_not = self.ask(transaction);
        (self.kills, self.failed) = (false, false);
    }

    fn new_lease(&mut self) -> u64 {
        self.leases += 1;
        self.leases
    }

    fn chance(&mut self, p: f64) -> bool {
        self.rng.random_bool(p)
    }

    fn unit(&mut self) -> f64 {
        self.rng.random_range(0.0..1.0)
    }

    fn within(&mut self, range: std::ops::Range<Millis>) -> Millis {
        self.rng.random_range(range)
    }

    fn index(&mut self, len: usize) -> usize {
        self.rng.random_range(0..len)
    }
}

//! The receivers of webhooks, by origin: how many calls each has under way, and its breaker.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::{
    domain::{
        breaker::{self, Rules},
        clock::Clock,
    },
    outward::{self, Circuit},
    queue::Room,
};

/// Calls at once to one receiver.
const AT_ONCE: usize = 4;
/// Claimed for one receiver, those that wait for their turn included: the next is at hand when one ends.
const HELD: usize = 6;
/// For one that was never heard of, and for one that failed the last time: it may hang.
const HELD_UNPROVEN: usize = 4;
/// Claimed in all: a thousand receivers may hang at once.
const TOTAL: usize = 4096;
/// Receivers that are remembered although nothing is under way to them.
const REMEMBERED: usize = 4096;
/// What one that is not called any more did so long ago is forgotten.
const FORGOTTEN_AFTER: TimeDelta = TimeDelta::minutes(5);

pub struct Receivers {
    known: Mutex<HashMap<String, Receiver>>,
    held: AtomicUsize,
    freed: Notify,
    clock: Clock,
}

struct Receiver {
    held: usize,
    called_at: DateTime<Utc>,
    /// It answered the last time, as one does that is in order.
    proven: bool,
    turns: Arc<Semaphore>,
    circuit: Circuit,
}

/// The right to call a receiver once, now.
pub struct Turn<'a> {
    receivers: &'a Receivers,
    origin: String,
    turn: outward::Turn,
    _among_few: OwnedSemaphorePermit,
}

impl Receivers {
    pub fn new(clock: Clock) -> Self {
        Self { known: Mutex::default(), held: AtomicUsize::new(0), freed: Notify::new(), clock }
    }

    /// One more was claimed for it; over, or let go of, when the place is dropped.
    pub fn enter(self: &Arc<Self>, origin: &str) -> Place {
        self.with(origin, |receiver| receiver.held += 1);
        self.held.fetch_add(1, Ordering::AcqRel);
        Place { receivers: self.clone(), origin: origin.to_owned() }
    }

    /// Waits for a place; `None` where its breaker holds calls back.
    pub async fn turn(&self, origin: &str) -> Option<Turn<'_>> {
        let turns = self.with(origin, |receiver| receiver.turns.clone());
        let place = turns.acquire_owned().await.ok()?;
        let now = self.clock.now();
        let turn = self.with(origin, |receiver| {
            receiver.called_at = now;
            receiver.circuit.turn()
        });
        Some(Turn { receivers: self, origin: origin.to_owned(), turn: turn.ok()?, _among_few: place })
    }

    /// Those that have failed lately.
    pub fn circuits(&self) -> Vec<(String, breaker::Snapshot)> {
        let known = self.lock();
        let shown = known.values().map(|receiver| receiver.circuit.shown());
        let mut found: Vec<_> = shown.filter(|(_, snapshot)| snapshot.failures > 0).collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    fn with<T>(&self, origin: &str, look: impl FnOnce(&mut Receiver) -> T) -> T {
        let now = self.clock.now();
        let mut known = self.lock();
        if known.len() > REMEMBERED && !known.contains_key(origin) {
            let lately = |receiver: &Receiver| receiver.called_at + FORGOTTEN_AFTER > now;
            known.retain(|_, one| one.held > 0 || (!one.circuit.is_untroubled() && lately(one)));
        }
        look(known.entry(origin.to_owned()).or_insert_with(|| Receiver {
            held: 0,
            called_at: now,
            proven: false,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            circuit: Circuit::new(format!("webhook {origin}"), Rules::RECEIVER, self.clock.clone()),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Receiver>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among what is claimed for a receiver.
pub struct Place {
    receivers: Arc<Receivers>,
    origin: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.receivers.with(&self.origin, |receiver| receiver.held = receiver.held.saturating_sub(1));
        self.receivers.held.fetch_sub(1, Ordering::AcqRel);
        self.receivers.freed.notify_one();
    }
}

impl Room for Receivers {
    fn total(&self) -> usize {
        TOTAL.saturating_sub(self.held.load(Ordering::Acquire))
    }

    fn of(&self, queues: &[String]) -> Vec<usize> {
        let known = self.lock();
        let room = |origin: &String| {
            let Some(receiver) = known.get(origin) else { return HELD_UNPROVEN };
            let most = if receiver.proven { HELD } else { HELD_UNPROVEN };
            if receiver.circuit.is_closed() {
                return most.saturating_sub(receiver.held);
            }
            usize::from(receiver.circuit.would_probe() && receiver.held == 0)
        };
        queues.iter().map(room).collect()
    }

    fn freed(&self) -> &Notify {
        &self.freed
    }
}

impl Turn<'_> {
    /// The call was made, and the receiver answered as one does that is in order, or not.
    pub fn went(self, well: bool) {
        self.receivers.with(&self.origin, |receiver| receiver.proven = well);
        self.turn.went(well);
    }
}

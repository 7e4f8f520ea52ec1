//! The circuit of one server: its breaker, and how it was found last. Whoever calls takes a turn, and
//! tells afterwards how it went. What counts as a failure is the caller's to say.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::{
    breaker::{Breaker, Permit, Rules, Snapshot, State},
    clock::Clock,
};

/// While a probe is out nobody knows when the next call may go: it is soon over, either way.
pub const PROBED: TimeDelta = TimeDelta::seconds(1);

/// Cheap to clone.
#[derive(Clone)]
pub struct Circuit(Arc<Inner>);

struct Inner {
    name: String,
    clock: Clock,
    standing: Mutex<Standing>,
}

struct Standing {
    breaker: Breaker,
    /// As it was found last.
    up: Option<bool>,
}

/// The right to call the server once, now. Dropped without a word it says nothing.
pub struct Turn {
    circuit: Circuit,
    permit: Option<Permit>,
}

/// The server is left alone: when it may be called, and how long that is from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOff {
    pub until: DateTime<Utc>,
    pub after: Duration,
}

impl Circuit {
    /// The name holds no address, unless a user gave it: everybody sees it.
    pub fn new(name: impl Into<String>, rules: Rules, clock: Clock) -> Self {
        let standing = Mutex::new(Standing { breaker: Breaker::new(rules), up: None });
        Self(Arc::new(Inner { name: name.into(), clock, standing }))
    }

    /// # Errors
    /// When to ask again.
    pub fn turn(&self) -> Result<Turn, PutOff> {
        let now = self.0.clock.now();
        let mut standing = self.standing();
        match standing.breaker.may_call(now) {
            Ok(permit) => Ok(Turn { circuit: self.clone(), permit: Some(permit) }),
            Err(next) => {
                let due = standing.breaker.snapshot(now).next_attempt_at.unwrap_or(next);
                let until = if due > now { due } else { now + PROBED };
                Err(PutOff { until, after: (until - now).to_std().unwrap_or_default() })
            }
        }
    }

    /// Whether it is open and the next call, now, would be the probe.
    pub fn would_probe(&self) -> bool {
        self.standing().breaker.would_probe(self.0.clock.now())
    }

    pub fn is_closed(&self) -> bool {
        self.snapshot().state == State::Closed
    }

    /// Nothing is known against the server.
    pub fn is_untroubled(&self) -> bool {
        self.standing().breaker.is_untroubled()
    }

    pub fn snapshot(&self) -> Snapshot {
        self.standing().breaker.snapshot(self.0.clock.now())
    }

    /// Its name, and how it stands.
    pub fn shown(&self) -> (String, Snapshot) {
        (self.0.name.clone(), self.snapshot())
    }

    /// As the server was found last; `None` before anything is known.
    pub fn is_up(&self) -> Option<bool> {
        self.standing().up
    }

    /// The log hears of it where that is news.
    pub fn found(&self, up: bool) {
        let before = self.standing().up.replace(up);
        let name = &self.0.name;
        match (before, up) {
            (Some(true) | None, false) => tracing::warn!(upstream = name, "a server that rdev needs is out of reach"),
            (Some(false), true) => tracing::info!(upstream = name, "a server that rdev needs is back"),
            _ => {}
        }
    }

    /// A panic while the lock was held leaves nothing half-done here.
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// The server answered as one does that is in order, or not.
    pub fn went(mut self, well: bool) {
        let Some(permit) = self.permit.take() else { return };
        let now = self.circuit.0.clock.now();
        let mut standing = self.circuit.standing();
        if well {
            standing.breaker.succeeded(permit, now);
        } else {
            standing.breaker.failed(permit, now);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.circuit.standing().breaker.release(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).expect("a time"))
    }

    fn circuit() -> Circuit {
        Circuit::new("server", Rules::UPSTREAM, clock())
    }

    fn failing(circuit: &Circuit, times: usize) {
        for _ in 0..times {
            circuit.turn().expect("it may be called").went(false);
        }
    }

    #[test]
    fn one_that_keeps_failing_is_put_off_to_its_probe() {
        let circuit = circuit();
        failing(&circuit, 5);
        let until = circuit.0.clock.now() + TimeDelta::seconds(30);
        assert_eq!(circuit.turn().err(), Some(PutOff { until, after: Duration::from_secs(30) }));
        assert_eq!(circuit.shown().1.next_attempt_at, Some(until));
        assert!(!circuit.would_probe() && !circuit.is_closed() && !circuit.is_untroubled());
    }

    #[test]
    fn while_it_is_probed_others_look_again_soon() {
        let circuit = circuit();
        failing(&circuit, 5);
        circuit.0.clock.advance(TimeDelta::seconds(30));
        assert!(circuit.would_probe());
        let probe = circuit.turn().expect("the probe");
        assert_eq!(circuit.turn().err().map(|off| off.after), Some(Duration::from_secs(1)));
        probe.went(true);
        assert!(circuit.turn().is_ok() && circuit.is_closed());
    }

    #[test]
    fn a_turn_that_was_dropped_lets_the_next_one_go() {
        let circuit = circuit();
        failing(&circuit, 5);
        circuit.0.clock.advance(TimeDelta::seconds(30));
        drop(circuit.turn().expect("the probe"));
        circuit.turn().expect("the probe was given up").went(true);
    }

    #[test]
    fn each_has_its_own_thresholds() {
        let patient = Circuit::new("patient", Rules::RECEIVER, clock());
        failing(&patient, 9);
        assert!(patient.is_closed());
        failing(&patient, 1);
        assert_eq!(patient.snapshot().state, State::Open);
    }

    #[test]
    fn how_it_was_found_last_is_remembered() {
        let circuit = circuit();
        assert_eq!(circuit.is_up(), None);
        circuit.found(false);
        assert_eq!(circuit.is_up(), Some(false));
        circuit.found(true);
        assert_eq!(circuit.is_up(), Some(true));
    }
}

//! The breaker of the git host: one, for all that is asked of it, by its API and by git.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::super::git::GitError;
use crate::domain::{
    breaker::{Breaker, Permit, Rules, Snapshot},
    clock::Clock,
};

/// While a probe is out nobody knows when the next call may go: it is soon over, either way.
const PROBED: Duration = Duration::from_secs(1);

pub struct Circuit {
    standing: Mutex<Standing>,
    clock: Clock,
}

struct Standing {
    breaker: Breaker,
    /// As it was found last.
    up: Option<bool>,
}

/// The right to ask the host once, now. Dropped without a word it says nothing.
pub struct Turn<'a> {
    circuit: &'a Circuit,
    permit: Option<Permit>,
}

impl Circuit {
    pub fn new(clock: Clock) -> Self {
        Self { standing: Mutex::new(Standing { breaker: Breaker::new(Rules::UPSTREAM), up: None }), clock }
    }

    pub fn turn(&self) -> Result<Turn<'_>, GitError> {
        let now = self.clock.now();
        match self.standing().breaker.may_call(now) {
            Ok(permit) => Ok(Turn { circuit: self, permit: Some(permit) }),
            Err(next) => Err(GitError::PutOff((next - now).to_std().unwrap_or(PROBED).max(PROBED))),
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        self.standing().breaker.snapshot(self.clock.now())
    }

    /// `None` before anything is known.
    pub fn is_up(&self) -> Option<bool> {
        self.standing().up
    }

    /// A panic while the lock was held leaves nothing half-done here.
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// The host answered as one does that is in order, or not.
    pub fn went(mut self, well: bool) {
        let now = self.circuit.clock.now();
        let Some(permit) = self.permit.take() else { return };
        let mut standing = self.circuit.standing();
        if well {
            standing.breaker.succeeded(permit, now);
        } else {
            standing.breaker.failed(permit, now);
        }
        match (standing.up.replace(well), well) {
            (Some(true) | None, false) => tracing::warn!("the git host is out of reach"),
            (Some(false), true) => tracing::info!("the git host is back"),
            _ => {}
        }
    }

    /// As it went; what the host says no to is an answer too.
    pub fn over<T>(self, outcome: &Result<T, GitError>) {
        self.went(!matches!(outcome, Err(GitError::Away(_))));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.circuit.standing().breaker.release(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;

    fn circuit() -> Circuit {
        Circuit::new(Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).expect("a time")))
    }

    #[test]
    fn a_host_that_keeps_failing_is_put_off_and_probed_once() {
        let circuit = circuit();
        for _ in 0..5 {
            circuit.turn().expect("it may be asked").went(false);
        }
        assert!(matches!(circuit.turn().err(), Some(GitError::PutOff(after)) if after == Duration::from_secs(30)));
        circuit.clock.advance(TimeDelta::seconds(30));
        let probe = circuit.turn().expect("the probe");
        assert!(matches!(circuit.turn().err(), Some(GitError::PutOff(_))), "others wait for the probe");
        drop(probe);
        circuit.turn().expect("the probe was given up").went(true);
        assert_eq!(circuit.is_up(), Some(true));
    }

    #[test]
    fn a_no_is_an_answer() {
        let circuit = circuit();
        for _ in 0..10 {
            circuit.turn().expect("it may be asked").over::<()>(&Err(GitError::Refused("no".into())));
        }
        assert_eq!(circuit.snapshot().failures, 0);
        circuit.turn().expect("it may be asked").over::<()>(&Err(GitError::Away("gone".into())));
        assert_eq!(circuit.snapshot().failures, 1);
    }
}

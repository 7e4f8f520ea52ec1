//! The circuit of the git host: one, for all that is asked of it, by its API and by git.

use super::super::git::GitError;
use crate::{
    domain::{breaker::Rules, clock::Clock},
    outward::{Circuit, Turn},
};

pub fn circuit(clock: Clock) -> Circuit {
    Circuit::new("git_host", Rules::UPSTREAM, clock)
}

pub fn turn(circuit: &Circuit) -> Result<Turn, GitError> {
    circuit.turn().map_err(|put_off| GitError::PutOff(put_off.after))
}

/// As it went with git; what the host says no to is an answer too.
pub fn over<T>(circuit: &Circuit, turn: Turn, outcome: &Result<T, GitError>) {
    let well = !matches!(outcome, Err(GitError::Away(_)));
    turn.went(well);
    circuit.found(well);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::DateTime;

    use super::*;

    fn any_circuit() -> Circuit {
        circuit(Clock::manual(DateTime::from_timestamp(1_800_000_000, 0).expect("a time")))
    }

    fn ended(circuit: &Circuit, outcome: GitError) {
        over::<()>(circuit, turn(circuit).expect("it may be asked"), &Err(outcome));
    }

    #[test]
    fn a_host_that_keeps_failing_is_put_off() {
        let circuit = any_circuit();
        for _ in 0..5 {
            ended(&circuit, GitError::Away("gone".into()));
        }
        assert!(matches!(turn(&circuit).err(), Some(GitError::PutOff(after)) if after == Duration::from_secs(30)));
        assert_eq!(circuit.is_up(), Some(false));
    }

    #[test]
    fn a_no_is_an_answer() {
        let circuit = any_circuit();
        for _ in 0..10 {
            ended(&circuit, GitError::Refused("no".into()));
        }
        assert_eq!((circuit.snapshot().failures, circuit.is_up()), (0, Some(true)));
    }
}

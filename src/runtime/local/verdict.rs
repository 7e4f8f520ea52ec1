//! How a command ended, out of what was seen: reports from inside, and causes from outside.
//!
//! The rule: nothing is made up. An exit code or a signal is one that the kernel reported; the first cause for an end is
//! the one that counts; a sandbox that never said that the command runs has not started it.

use super::{
    spec::{Exit, Termination, now_ms},
    wire::Report,
};

#[derive(Debug, Default)]
pub(super) struct Verdict {
    started: bool,
    end: Option<Report>,
    cause: Option<(Termination, Option<String>)>,
    /// What stderr said before the command ran: the sandbox's own words.
    complaint: Vec<u8>,
}

pub(super) fn start_failed(started_at_ms: u64, message: String) -> Exit {
    Exit {
        termination: Termination::StartFailed,
        exit_code: None,
        signal: None,
        message: Some(message),
        started_at_ms,
        ended_at_ms: now_ms(),
    }
}

/// How much of a complaint is worth telling.
const COMPLAINT: usize = 1000;

impl Verdict {
    /// Whether the command still goes on and nothing wants its end.
    pub fn is_open(&self) -> bool {
        self.end.is_none() && self.cause.is_none()
    }

    pub fn started(&mut self) {
        self.started = true;
    }

    /// Its end, from inside.
    pub fn report(&mut self, end: Report) {
        self.end = Some(end);
    }

    /// Why it is ended, from outside.
    pub fn blame(&mut self, termination: Termination, message: Option<String>) {
        self.cause.get_or_insert((termination, message));
    }

    pub fn overhear(&mut self, stderr: &[u8]) {
        if !self.started {
            let room = COMPLAINT.saturating_sub(self.complaint.len());
            self.complaint.extend(stderr.iter().take(room));
        }
    }

    pub fn exit(self, started_at_ms: u64) -> Exit {
        let killed = "the command's sandbox was killed from outside, and the command with it";
        let (exit_code, signal, own) = match self.end {
            Some(Report::Failed(message)) => return start_failed(started_at_ms, message),
            Some(Report::Ended { exit_code: None, signal }) => (None, signal, (Termination::Signal, None)),
            Some(Report::Ended { exit_code, signal }) => (exit_code, signal, (Termination::Exit, None)),
            _ if self.cause.is_some() => (None, None, (Termination::StartFailed, None)),
            _ if self.started => (None, Some("KILL".to_owned()), (Termination::Signal, Some(killed.to_owned()))),
            _ => {
                let complaint = String::from_utf8_lossy(&self.complaint);
                return start_failed(started_at_ms, format!("the sandbox did not start: {}", complaint.trim()));
            }
        };
        let (termination, message) = self.cause.unwrap_or(own);
        Exit { termination, exit_code, signal, message, started_at_ms, ended_at_ms: now_ms() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(exit_code: Option<i32>, signal: Option<&str>) -> Report {
        Report::Ended { exit_code, signal: signal.map(str::to_owned) }
    }

    #[test]
    fn an_end_of_its_own_is_an_exit_or_a_signal() {
        for (report, termination) in
            [(ended(Some(137), None), Termination::Exit), (ended(None, Some("KILL")), Termination::Signal)]
        {
            let mut verdict = Verdict::default();
            verdict.started();
            verdict.report(report);
            assert_eq!(verdict.exit(0).termination, termination);
        }
    }

    #[test]
    fn the_first_cause_counts_and_the_code_is_the_one_it_gave() {
        let mut verdict = Verdict::default();
        verdict.started();
        verdict.blame(Termination::Timeout, None);
        verdict.blame(Termination::Cancelled, None);
        verdict.report(ended(Some(3), None));
        let exit = verdict.exit(0);
        assert_eq!((exit.termination, exit.exit_code), (Termination::Timeout, Some(3)));
    }

    #[test]
    fn a_sandbox_that_dies_before_it_starts_says_why() {
        let mut verdict = Verdict::default();
        verdict.overhear(b"bwrap: no namespaces\n");
        let exit = verdict.exit(0);
        assert_eq!(exit.termination, Termination::StartFailed);
        assert!(exit.message.expect("message").ends_with("bwrap: no namespaces"));
    }

    #[test]
    fn a_sandbox_that_dies_later_took_the_command_with_it_and_no_code_is_made_up() {
        let mut verdict = Verdict::default();
        verdict.started();
        let exit = verdict.exit(0);
        assert_eq!((exit.termination, exit.exit_code), (Termination::Signal, None));
        assert_eq!(exit.signal.as_deref(), Some("KILL"));
    }
}

//! A circuit breaker: whom calls keep failing is left alone for a while, then asked once. A
//! pure machine; the caller hands the time in and says what counts as a failure.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};

/// A probe that nobody reports on is forgotten after so long.
const PROBE_LIFE: TimeDelta = TimeDelta::minutes(10);

/// When it opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Failures in a row that open it.
    pub in_a_row: u32,
    /// Or half of at least so many calls within so long.
    pub half_of: Option<(usize, TimeDelta)>,
    pub open_for: TimeDelta,
    /// It doubles up to this each time that the probe fails.
    pub open_for_max: TimeDelta,
}

impl Rules {
    /// Servers that rdev depends on.
    pub const UPSTREAM: Self = Self {
        in_a_row: 5,
        half_of: Some((20, TimeDelta::seconds(30))),
        open_for: TimeDelta::seconds(30),
        open_for_max: TimeDelta::minutes(5),
    };
    /// Receivers of webhooks.
    pub const RECEIVER: Self =
        Self { in_a_row: 10, half_of: None, open_for: TimeDelta::seconds(30), open_for_max: TimeDelta::seconds(30) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Closed,
    HalfOpen,
    Open,
}

impl State {
    pub fn text(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// As the metric shows it.
    pub fn number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// How it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub state: State,
    /// In a row.
    pub failures: u32,
    pub opened_at: Option<DateTime<Utc>>,
    pub next_attempt_at: Option<DateTime<Utc>>,
}

/// The right to make one call. It is reported on, or released.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a probe that is not reported on keeps others waiting"]
pub struct Permit {
    /// Number of the opening that it probes; of a closed breaker 0.
    probes: u64,
}

#[derive(Debug, Clone)]
pub struct Breaker {
    rules: Rules,
    failures: u32,
    /// The calls of the last while: when, and whether they failed.
    recent: VecDeque<(DateTime<Utc>, bool)>,
    opened: Option<Opened>,
    openings: u64,
}

#[derive(Debug, Clone, Copy)]
struct Opened {
    number: u64,
    at: DateTime<Utc>,
    length: TimeDelta,
    probing_since: Option<DateTime<Utc>>,
}

impl Breaker {
    pub fn new(rules: Rules) -> Self {
        Self { rules, failures: 0, recent: VecDeque::new(), opened: None, openings: 0 }
    }

    /// A permit, or when to ask again.
    ///
    /// # Errors
    /// The time of the next probe.
    pub fn may_call(&mut self, now: DateTime<Utc>) -> Result<Permit, DateTime<Utc>> {
        let would = self.would_probe(now);
        let Some(opened) = &mut self.opened else { return Ok(Permit { probes: 0 }) };
        if !would {
            return Err(opened.next());
        }
        opened.probing_since = Some(now);
        Ok(Permit { probes: opened.number })
    }

    /// Whether it is open and its next call, now, would be the probe.
    pub fn would_probe(&self, now: DateTime<Utc>) -> bool {
        self.opened.is_some_and(|opened| now >= opened.next())
    }

    pub fn succeeded(&mut self, permit: Permit, now: DateTime<Utc>) {
        match self.opened {
            // A call from before the opening says nothing about now.
            Some(opened) if permit.probes != opened.number => return,
            _ => self.opened = None,
        }
        self.failures = 0;
        self.remember(now, false);
        if permit.probes > 0 {
            self.recent.clear();
        }
    }

    pub fn failed(&mut self, permit: Permit, now: DateTime<Utc>) {
        if let Some(opened) = self.opened {
            if permit.probes == opened.number {
                self.failures = self.failures.saturating_add(1);
                self.open(now, (opened.length * 2).min(self.rules.open_for_max));
            }
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.remember(now, true);
        if self.failures >= self.rules.in_a_row || self.half_failed() {
            self.open(now, self.rules.open_for);
        }
    }

    /// The call was given up before anything was learnt.
    pub fn release(&mut self, permit: Permit) {
        if let Some(opened) = self.opened.as_mut().filter(|opened| opened.number == permit.probes) {
            opened.probing_since = None;
        }
    }

    pub fn snapshot(&self, now: DateTime<Utc>) -> Snapshot {
        let state = match self.opened {
            None => State::Closed,
            Some(opened) if opened.probing_since.is_some() || now >= opened.next() => State::HalfOpen,
            Some(_) => State::Open,
        };
        let next = self.opened.map(|opened| opened.at + opened.length);
        let opened_at = self.opened.map(|opened| opened.at);
        Snapshot { state, failures: self.failures, opened_at, next_attempt_at: next }
    }

    /// Nothing is known against it.
    pub fn is_untroubled(&self) -> bool {
        self.opened.is_none() && self.failures == 0
    }

    fn open(&mut self, now: DateTime<Utc>, length: TimeDelta) {
        self.openings += 1;
        self.opened = Some(Opened { number: self.openings, at: now, length, probing_since: None });
        self.recent.clear();
    }

    fn remember(&mut self, now: DateTime<Utc>, failed: bool) {
        let Some((_, window)) = self.rules.half_of else { return };
        self.recent.push_back((now, failed));
        while self.recent.front().is_some_and(|(at, _)| *at + window < now) || self.recent.len() > 1000 {
            self.recent.pop_front();
        }
    }

    fn half_failed(&self) -> bool {
        let Some((least, _)) = self.rules.half_of else { return false };
        let failed = self.recent.iter().filter(|(_, failed)| *failed).count();
        self.recent.len() >= least && failed * 2 >= self.recent.len()
    }
}

impl Opened {
    /// When the next probe may go.
    fn next(&self) -> DateTime<Utc> {
        let due = self.at + self.length;
        self.probing_since.map_or(due, |since| (since + PROBE_LIFE).max(due))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time")
    }

    fn opened(rules: Rules) -> Breaker {
        let mut breaker = Breaker::new(rules);
        for _ in 0..rules.in_a_row {
            let permit = breaker.may_call(at(0)).expect("closed");
            breaker.failed(permit, at(0));
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_probe_closes_it() {
        let mut breaker = opened(Rules::RECEIVER);
        assert_eq!(breaker.may_call(at(29)), Err(at(30)));
        let probe = breaker.may_call(at(30)).expect("the probe");
        assert!(breaker.may_call(at(30)).is_err(), "one probe at a time");
        breaker.succeeded(probe, at(31));
        assert_eq!(breaker.snapshot(at(31)).state, State::Closed);
    }

    #[test]
    fn each_failed_probe_doubles_the_pause_up_to_its_most() {
        let mut breaker = opened(Rules::UPSTREAM);
        let mut now = 0;
        for length in [30, 60, 120, 240, 300, 300] {
            assert_eq!(breaker.snapshot(at(now)).next_attempt_at, Some(at(now + length)));
            now += length;
            let probe = breaker.may_call(at(now)).expect("the probe");
            breaker.failed(probe, at(now));
        }
    }

    #[test]
    fn half_of_twenty_within_half_a_minute_open_it() {
        let mut breaker = Breaker::new(Rules::UPSTREAM);
        for n in 0..20 {
            let permit = breaker.may_call(at(n)).expect("closed");
            if n % 2 == 0 { breaker.succeeded(permit, at(n)) } else { breaker.failed(permit, at(n)) }
        }
        assert_eq!(breaker.snapshot(at(20)).state, State::Open);
    }

    #[test]
    fn a_probe_that_was_given_up_lets_the_next_one_go() {
        let mut breaker = opened(Rules::RECEIVER);
        let probe = breaker.may_call(at(30)).expect("the probe");
        breaker.release(probe);
        assert!(breaker.may_call(at(31)).is_ok());
        assert!(breaker.may_call(at(32)).is_err());
        assert!(breaker.may_call(at(31 + 600)).is_ok(), "one that nobody reports on is forgotten");
    }

    #[test]
    fn a_call_from_before_the_opening_says_nothing() {
        let mut breaker = Breaker::new(Rules::RECEIVER);
        let early = breaker.may_call(at(0)).expect("closed");
        for _ in 0..10 {
            let permit = breaker.may_call(at(0)).expect("closed");
            breaker.failed(permit, at(0));
        }
        breaker.succeeded(early, at(1));
        assert_eq!(breaker.snapshot(at(1)).state, State::Open);
    }

    proptest! {
        #[test]
        fn an_open_one_is_asked_by_one_probe_alone(calls in proptest::collection::vec((0..40i64, 0..3u8), 0..200)) {
            let mut breaker = Breaker::new(Rules::RECEIVER);
            let mut now = 0;
            for (later, outcome) in calls {
                now += later;
                let before = breaker.snapshot(at(now));
                match breaker.may_call(at(now)) {
                    Err(next) => prop_assert!(next > at(now) && before.state != State::Closed),
                    Ok(permit) => {
                        if before.state != State::Closed {
                            prop_assert!(before.next_attempt_at.is_some_and(|next| next <= at(now)));
                            prop_assert!(breaker.may_call(at(now)).is_err());
                        }
                        match outcome {
                            0 => breaker.succeeded(permit, at(now)),
                            1 => breaker.failed(permit, at(now)),
                            _ => breaker.release(permit),
                        }
                    }
                }
            }
        }
    }
}

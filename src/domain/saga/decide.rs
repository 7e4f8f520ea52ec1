//! What becomes of a saga when something happens: it is taken up, an attempt ends, time
//! passes. Running forwards is here; running backwards in `undoing.rs`.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use super::{
    AT_ONCE, Begin, CUT_OFFS_MAX, Changes, Entry, OnFailure, Outcome, Performs, Retry, Saga, SagaStatus, StepStatus,
    Transition, outcome::words, plan::resolved, retry,
};

/// Steps that need nobody are carried out so many in one decision, at most.
const AT_A_TIME: usize = 128;

/// What can befall a saga.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// A process has taken it. What is found under way died with the one before.
    Taken,
    /// Time has passed, or somebody changed it.
    Look,
    /// An attempt of a step is over.
    Ended { step: usize, attempt: i32, outcome: Outcome, note: Option<Value> },
    /// An attempt of a compensation is over.
    UndoEnded { step: usize, attempt: i32, outcome: Outcome },
    /// It killed every process that took it.
    GivenUp(String),
}

/// A decision in the making.
pub(super) struct Deciding {
    pub now: DateTime<Utc>,
    /// Chance, in `0.0..1.0`.
    pub unit: f64,
    pub changes: Changes,
    /// Whether attempts may begin: only in the hands of who makes them.
    pub may_begin: bool,
    /// Whether a saga that fails may turn back by itself.
    pub may_turn_back: bool,
    pub left: usize,
}

impl Deciding {
    pub fn new(now: DateTime<Utc>, unit: f64, may_begin: bool) -> Self {
        Self { now, unit, changes: Changes::default(), may_begin, may_turn_back: true, left: AT_A_TIME }
    }
}

impl Saga {
    /// Changes the saga; answers what is to be written down and done. Nothing where nothing changed.
    pub fn decide(&mut self, happening: Happening, now: DateTime<Utc>, unit: f64) -> Changes {
        self.meet(happening, Deciding::new(now, unit, true))
    }

    /// As [`Saga::decide`], by somebody who makes no further attempts: those are left to the next.
    pub fn conclude(&mut self, happening: Happening, now: DateTime<Utc>, unit: f64) -> Changes {
        self.meet(happening, Deciding::new(now, unit, false))
    }

    fn meet(&mut self, happening: Happening, mut d: Deciding) -> Changes {
        match happening {
            Happening::Taken => self.taken(&mut d),
            Happening::Look => {}
            Happening::Ended { step, attempt, outcome, note } => {
                let one = &mut self.steps[step];
                // One that was given up has nothing to say any more; whatever else there is goes on.
                if one.status == StepStatus::Running && one.attempt == attempt {
                    one.note = note.or_else(|| one.note.take());
                    self.ended(step, outcome, &mut d);
                }
            }
            Happening::UndoEnded { step, attempt, outcome } => self.undo_ended(step, attempt, outcome, &mut d),
            Happening::GivenUp(why) => {
                // Nobody is left to do anything about it.
                d.may_begin = false;
                d.may_turn_back = false;
                self.given_up(&why, &mut d);
            }
        }
        self.go_on(&mut d);
        d.changes
    }

    /// What time has brought, and then whatever can begin or end.
    pub(super) fn go_on(&mut self, d: &mut Deciding) {
        self.times(d);
        if matches!(self.status, SagaStatus::Running | SagaStatus::Waiting) {
            self.forwards(d);
        }
        if self.status == SagaStatus::Compensating {
            self.backwards(d);
        }
        let steps = &self.steps;
        let goes_on = |begin: &Begin| {
            let one = &steps[begin.step];
            begin.undo || (one.status == StepStatus::Running && one.attempt == begin.attempt)
        };
        d.changes.begin.retain(goes_on);
        d.changes.any |= !d.changes.steps.is_empty() || !d.changes.transitions.is_empty() || !d.changes.log.is_empty();
    }

    fn taken(&mut self, d: &mut Deciding) {
        if self.status == SagaStatus::Pending {
            self.deadline = self.plan.timeout.map(|timeout| d.now + timeout);
            self.to(SagaStatus::Running, d);
        }
        let running = |at: &usize| self.steps[*at].status == StepStatus::Running;
        let found: Vec<usize> = self.derived.under_way.iter().copied().filter(running).collect();
        for step in found {
            let goes_on = self.steps[step].note.is_some() || self.plan.steps[step].nature.resumes;
            if goes_on && self.stop_by.is_none() {
                self.resume(step, d);
            } else {
                self.ended(step, Outcome::CutOff("the process that ran it died".into()), d);
            }
        }
        self.undo_taken(d);
    }

    /// Goes on with an attempt that wrote down what it had made.
    fn resume(&mut self, step: usize, d: &mut Deciding) {
        match self.resolved(step) {
            Ok(config) => d.changes.begin.push(self.begin_of(step, config)),
            Err(error) => {
                self.steps[step].doubtful = true;
                self.fail(step, error, d);
            }
        }
    }

    pub(super) fn ended(&mut self, step: usize, outcome: Outcome, d: &mut Deciding) {
        self.log_attempt(step, &outcome, d);
        let stopping = self.stop_by.is_some();
        let nature = self.plan.steps[step].nature;
        let one = &mut self.steps[step];
        if matches!(outcome, Outcome::Done(_) | Outcome::Failed { .. }) {
            one.cut_offs = 0;
        }
        match outcome {
            Outcome::Broken(why) => {
                one.doubtful = true;
                one.cut_offs = one.cut_offs.max(1);
                if self.plan.steps[step].idempotent {
                    self.failed(step, why, Retry::After(None), d);
                } else {
                    self.doubt(step, why, d);
                }
            }
            Outcome::Done(output) => self.complete(step, output, d),
            Outcome::Failed { error, retry, partly } => {
                one.doubtful |= partly;
                self.failed(step, error, retry, d);
            }
            Outcome::CutOff(why) => {
                one.doubtful |= nature.leaves_doubt || one.note.is_some();
                one.cut_offs += 1;
                if one.doubtful && (stopping || !self.plan.steps[step].idempotent) {
                    self.doubt(step, why, d);
                } else if stopping {
                    self.drop_step(step, d);
                } else if one.cut_offs >= CUT_OFFS_MAX {
                    self.fail(step, format!("{CUT_OFFS_MAX} attempts in a row were cut off, the last: {why}"), d);
                } else {
                    let due = after_cut_off(&self.plan.steps[step].policy, one.cut_offs, d);
                    self.retry_at(step, due, why, false, d);
                }
            }
            Outcome::PutOff { why, .. } if stopping && (one.doubtful || one.note.is_some()) => self.doubt(step, why, d),
            Outcome::PutOff { .. } if stopping => self.drop_step(step, d),
            Outcome::PutOff { until, why } => {
                one.attempt -= 1;
                one.doubtful |= one.note.is_some();
                self.retry_at(step, until, why, false, d);
            }
        }
    }

    /// A failure: the next attempt by policy, or the end.
    fn failed(&mut self, step: usize, error: String, retry: Retry, d: &mut Deciding) {
        let (one, policy) = (&mut self.steps[step], &self.plan.steps[step].policy);
        one.failures += 1;
        match retry {
            Retry::After(asked) if self.stop_by.is_none() && one.failures <= policy.retries() => {
                let n = u32::try_from(one.failures).unwrap_or(1);
                let pause = retry::raised(policy.delay(n, d.unit), asked);
                self.retry_at(step, later(d.now, pause), error, true, d);
            }
            _ => self.fail(step, error, d),
        }
    }

    fn retry_at(&mut self, step: usize, due: DateTime<Utc>, error: String, counts: bool, d: &mut Deciding) {
        let one = &mut self.steps[step];
        one.due_at = Some(due);
        one.retry_count += i32::from(counts);
        one.error = Some(error);
        self.step_to(step, StepStatus::Retrying, d);
    }

    fn complete(&mut self, step: usize, output: Value, d: &mut Deciding) {
        let one = &mut self.steps[step];
        one.output = Some(output).filter(|output| !output.is_null());
        one.error = None;
        self.step_to(step, StepStatus::Completed, d);
        self.out_of_the_way(step);
    }

    /// Who waits for this step waits no more.
    pub(super) fn out_of_the_way(&mut self, step: usize) {
        self.derived.open -= 1;
        let plan = self.plan.clone();
        for next in &plan.steps[step].needed_by {
            self.derived.blocked[*next] -= 1;
            if self.derived.blocked[*next] == 0 && self.steps[*next].status == StepStatus::Pending {
                self.derived.ready.insert(*next);
            }
        }
    }

    pub(super) fn fail(&mut self, step: usize, error: String, d: &mut Deciding) {
        self.steps[step].error = Some(error);
        self.halting |= self.status != SagaStatus::Compensating;
        self.step_to(step, StepStatus::Failed, d);
    }

    /// Nobody knows whether it had its effect.
    pub(super) fn doubt(&mut self, step: usize, error: String, d: &mut Deciding) {
        self.steps[step].error = Some(error);
        self.steps[step].doubtful = true;
        self.halting |= self.status != SagaStatus::Compensating;
        self.step_to(step, StepStatus::Unknown, d);
    }

    /// It is not wanted any more, and did nothing.
    pub(super) fn drop_step(&mut self, step: usize, d: &mut Deciding) {
        self.step_to(step, StepStatus::Cancelled, d);
    }

    pub(super) fn forwards(&mut self, d: &mut Deciding) {
        if !self.halting && self.stop_by.is_none() && d.may_begin {
            self.begin_ready(d);
        }
        if !self.derived.under_way.is_empty() {
            let waits = |at: &usize| self.steps[*at].status == StepStatus::Waiting;
            let only_waits = self.derived.under_way.iter().all(waits) && !d.changes.more;
            let can_begin = !self.derived.ready.is_empty() && !self.halting && self.stop_by.is_none();
            let status = if only_waits && !can_begin { SagaStatus::Waiting } else { SagaStatus::Running };
            return self.to(status, d);
        }
        if self.status == SagaStatus::Waiting {
            self.to(SagaStatus::Running, d);
        }
        if self.stop_by.is_some() {
            self.stop_by = None;
            self.completed_at = Some(d.now);
            return self.to(SagaStatus::Cancelled, d);
        }
        if self.derived.open == 0 {
            self.completed_at = Some(d.now);
            self.error = None;
            return self.to(SagaStatus::Completed, d);
        }
        if self.halting || self.derived.ready.is_empty() {
            self.has_failed(d);
        } else {
            self.to(SagaStatus::Running, d);
        }
    }

    fn has_failed(&mut self, d: &mut Deciding) {
        self.error = self.first_failure().or_else(|| self.error.take());
        self.to(SagaStatus::Failed, d);
        if self.plan.on_failure == OnFailure::Compensate && d.may_turn_back {
            self.turn_back(d);
        }
    }

    pub(super) fn first_failure(&self) -> Option<String> {
        self.steps.iter().zip(&self.plan.steps).find_map(|(step, planned)| match step.status {
            StepStatus::Failed | StepStatus::Unknown => {
                Some(format!("step \"{}\": {}", planned.name, step.error.as_deref().unwrap_or("failed")))
            }
            _ => None,
        })
    }

    fn begin_ready(&mut self, d: &mut Deciding) {
        while let Some(step) = self.derived.ready.first().copied() {
            if self.halting || self.at_work() >= AT_ONCE {
                return;
            }
            if d.left == 0 {
                d.changes.more = true;
                return;
            }
            d.left -= 1;
            self.derived.ready.remove(&step);
            self.start(step, d);
        }
    }

    /// Steps under way that take somebody's time.
    fn at_work(&self) -> usize {
        self.derived.under_way.iter().filter(|at| self.steps[**at].status != StepStatus::Waiting).count()
    }

    fn start(&mut self, step: usize, d: &mut Deciding) {
        let plan = self.plan.clone();
        let planned = &plan.steps[step];
        // One that may have had its effect is not decided on anew.
        let may_skip = !self.steps[step].doubtful;
        if may_skip && planned.when.as_ref().is_some_and(|when| !when.holds(&self.values(None))) {
            self.step_to(step, StepStatus::Skipped, d);
            return self.out_of_the_way(step);
        }
        let config = match self.resolved(step) {
            Ok(config) => config,
            Err(error) => return self.fail(step, error, d),
        };
        self.steps[step].started_at = Some(d.now);
        match planned.nature.performs {
            Performs::Instantly(output) => {
                self.begin(step, d);
                let outcome = as_object(&config, output).map_or_else(Outcome::never, Outcome::Done);
                self.ended(step, outcome, d);
            }
            Performs::Waits { until, .. } => match as_object(&config, |members| until(members, d.now)) {
                Err(error) => self.fail(step, error, d),
                Ok(due) => {
                    let patience = planned.timeout.map(|timeout| d.now + timeout);
                    let one = &mut self.steps[step];
                    one.due_at = due.into_iter().chain(patience).min();
                    one.attempt += 1;
                    one.attempt_at = Some(d.now);
                    self.step_to(step, StepStatus::Waiting, d);
                }
            },
            Performs::Attempts => self.attempt(step, config, d),
        }
    }

    /// The next attempt of a step that had one before.
    pub(super) fn again(&mut self, step: usize, d: &mut Deciding) {
        match self.resolved(step) {
            Ok(config) => self.attempt(step, config, d),
            Err(error) => self.fail(step, error, d),
        }
    }

    fn attempt(&mut self, step: usize, config: Value, d: &mut Deciding) {
        self.begin(step, d);
        let begin = self.begin_of(step, config);
        d.changes.begin.push(begin);
    }

    fn begin(&mut self, step: usize, d: &mut Deciding) {
        let one = &mut self.steps[step];
        one.attempt += 1;
        one.attempt_at = Some(d.now);
        one.due_at = None;
        // What an attempt made of which nobody knows the end is the next one's to go on with.
        if !one.doubtful {
            one.note = None;
        }
        self.step_to(step, StepStatus::Running, d);
    }

    fn begin_of(&self, step: usize, config: Value) -> Begin {
        let (planned, one) = (&self.plan.steps[step], &self.steps[step]);
        Begin {
            step,
            attempt: one.attempt,
            undo: false,
            itself: false,
            action: planned.action.clone(),
            config,
            output: None,
            key: self.plan.key(step, one.generation),
            note: one.note.clone(),
        }
    }

    pub(super) fn resolved(&self, step: usize) -> Result<Value, String> {
        let planned = &self.plan.steps[step];
        resolved(&planned.config, planned.nature.verbatim, &self.values(None))
    }

    pub(super) fn log_attempt(&self, step: usize, outcome: &Outcome, d: &mut Deciding) {
        let one = &self.steps[step];
        let (word, error) = words(outcome);
        d.changes.log.push(Entry {
            step: Some(step),
            attempt: Some(one.attempt),
            started_at: one.attempt_at.unwrap_or(d.now),
            ended_at: Some(d.now),
            outcome: word,
            error,
            by: None,
        });
    }

    /// Changes the status of the saga, where it is another one.
    pub(super) fn to(&mut self, status: SagaStatus, d: &mut Deciding) {
        let previous = std::mem::replace(&mut self.status, status);
        if previous != status {
            let error = self.error.clone().filter(|_| matches!(status, SagaStatus::Failed | SagaStatus::Stuck));
            d.changes.transitions.push(Transition::Saga { status, previous, at: d.now, error });
        }
    }

    pub(super) fn step_to(&mut self, step: usize, status: StepStatus, d: &mut Deciding) {
        let one = &mut self.steps[step];
        let previous = std::mem::replace(&mut one.status, status);
        d.changes.steps.insert(step);
        if previous == status {
            return;
        }
        match status {
            StepStatus::Running | StepStatus::Retrying | StepStatus::Waiting => {
                self.derived.under_way.insert(step);
            }
            _ => {
                if self.derived.under_way.remove(&step) && self.status == SagaStatus::Compensating {
                    self.derived.settled.push(step);
                }
            }
        }
        match status {
            StepStatus::Completed
            | StepStatus::Failed
            | StepStatus::Unknown
            | StepStatus::Skipped
            | StepStatus::Cancelled => {
                one.completed_at = Some(d.now);
                one.due_at = None;
            }
            StepStatus::Compensating | StepStatus::Compensated | StepStatus::CompensationFailed => {}
            _ => one.completed_at = None,
        }
        let backwards =
            matches!(status, StepStatus::Compensating | StepStatus::Compensated | StepStatus::CompensationFailed);
        let undo = one.undo.as_ref().filter(|_| backwards);
        let attempt = undo.map_or(one.attempt, |undo| undo.attempts);
        let told = undo.map_or(&one.error, |undo| &undo.error);
        let tells = matches!(
            status,
            StepStatus::Failed | StepStatus::Unknown | StepStatus::Retrying | StepStatus::CompensationFailed
        );
        let error = told.clone().filter(|_| tells);
        d.changes.transitions.push(Transition::Step { step, status, previous, attempt, at: d.now, error });
    }
}

/// The first time at once: it was no fault of the other side's.
pub(super) fn after_cut_off(policy: &retry::RetryPolicy, cut_offs: i32, d: &Deciding) -> DateTime<Utc> {
    let n = u32::try_from(cut_offs - 1).unwrap_or(0);
    if n == 0 { d.now } else { later(d.now, policy.delay(n, d.unit)) }
}

pub(super) fn later(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(pause).ok().and_then(|pause| now.checked_add_signed(pause)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// A config is an object, also where none was given.
pub(super) fn as_object<T>(
    config: &Value,
    look: impl FnOnce(&serde_json::Map<String, Value>) -> Result<T, String>,
) -> Result<T, String> {
    match config {
        Value::Object(members) => look(members),
        Value::Null => look(&serde_json::Map::new()),
        _ => Err("config must be an object".into()),
    }
}

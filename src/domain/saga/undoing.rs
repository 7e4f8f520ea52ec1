//! Running backwards: what completed, or may have, is undone in reverse order of dependency,
//! each step when all that depended on it are out of the way.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    AT_ONCE, Begin, CUT_OFFS_MAX, Entry, Outcome, Performs, Retry, Saga, SagaStatus, StepStatus, Undo, UndoState,
    UndoStatus,
    decide::{Deciding, after_cut_off, as_object, later},
    outcome::words,
    plan::resolved,
    reference, retry,
};

impl Saga {
    /// Begins to compensate. What is under way has been asked to stop.
    pub(super) fn turn_back(&mut self, d: &mut Deciding) {
        for step in 0..self.steps.len() {
            self.recall(step, d);
        }
        if self.status == SagaStatus::Stuck {
            self.error = self.first_failure();
        }
        self.completed_at = None;
        self.deadline = None;
        self.halting = false;
        self.to(SagaStatus::Compensating, d);
        self.derive_undoing();
    }

    /// One that was to be tried again, and may have had its effect, is as unknown as before.
    pub(super) fn recall(&mut self, step: usize, d: &mut Deciding) {
        if self.steps[step].status == StepStatus::Pending && self.steps[step].doubtful {
            self.doubt(step, "its result was never known".into(), d);
        }
    }

    /// What follows from the rest while compensating.
    pub(super) fn derive_undoing(&mut self) {
        let count = self.steps.len();
        self.derived.undo_ready.clear();
        self.derived.settled.clear();
        self.derived.left = count;
        for step in 0..count {
            self.derived.unclear[step] = self.plan.steps[step].needed_by.len();
        }
        let ends: Vec<usize> = (0..count).filter(|step| self.derived.unclear[*step] == 0).collect();
        self.unblocked(ends);
    }

    /// Nothing that needed these steps is in their way any more.
    fn unblocked(&mut self, mut steps: Vec<usize>) {
        while let Some(step) = steps.pop() {
            if self.steps[step].status.is_under_way() {
                continue;
            }
            if self.is_to_be_undone(step) {
                if self.steps[step].status != StepStatus::Compensating {
                    self.derived.undo_ready.insert(step);
                }
                continue;
            }
            self.derived.left -= 1;
            let plan = self.plan.clone();
            for need in &plan.steps[step].needs {
                self.derived.unclear[*need] -= 1;
                if self.derived.unclear[*need] == 0 {
                    steps.push(*need);
                }
            }
        }
    }

    /// It completed or may have, and there is something to do about it.
    fn is_to_be_undone(&self, step: usize) -> bool {
        let may_have = match self.steps[step].status {
            StepStatus::Completed | StepStatus::Unknown | StepStatus::Compensating | StepStatus::CompensationFailed => {
                true
            }
            StepStatus::Failed => self.steps[step].doubtful,
            _ => false,
        };
        may_have && self.plan.steps[step].undo.is_some()
    }

    pub(super) fn backwards(&mut self, d: &mut Deciding) {
        let settled = std::mem::take(&mut self.derived.settled);
        self.unblocked(settled.into_iter().filter(|step| self.derived.unclear[*step] == 0).collect());
        if d.may_begin {
            self.undo_due(d);
            self.undo_ready(d);
        }
        if self.derived.under_way.is_empty() {
            self.stop_by = None;
        }
        if self.derived.left == 0 {
            self.completed_at = Some(d.now);
            return self.to(SagaStatus::Compensated, d);
        }
        let idle = self.derived.undoing.is_empty() && self.derived.under_way.is_empty();
        // A compensation has used up its retries: no other begins.
        if idle && self.halting {
            self.is_stuck(d);
        }
    }

    fn is_stuck(&mut self, d: &mut Deciding) {
        let first = self.steps.iter().zip(&self.plan.steps).find_map(|(step, planned)| {
            let undo = step.undo.as_ref().filter(|_| step.status == StepStatus::CompensationFailed)?;
            Some(format!("compensation of \"{}\": {}", planned.name, undo.error.as_deref().unwrap_or("failed")))
        });
        self.error = first.or_else(|| self.error.take());
        self.to(SagaStatus::Stuck, d);
    }

    fn undo_ready(&mut self, d: &mut Deciding) {
        while let Some(step) = self.derived.undo_ready.last().copied() {
            if self.halting || self.derived.undoing.len() >= AT_ONCE {
                return;
            }
            if d.left == 0 {
                d.changes.more = true;
                return;
            }
            d.left -= 1;
            self.derived.undo_ready.remove(&step);
            self.steps[step].undo = Some(UndoState {
                status: UndoStatus::Running,
                attempts: self.steps[step].undo.as_ref().map_or(0, |undo| undo.attempts),
                failures: 0,
                cut_offs: 0,
                due_at: None,
                attempt_at: None,
                error: None,
            });
            self.derived.undoing.insert(step);
            self.begin_undo(step, d);
        }
    }

    fn undo_due(&mut self, d: &mut Deciding) {
        let due = |at: &usize| {
            let undo = self.steps[*at].undo.as_ref();
            undo.is_some_and(|undo| undo.due_at.is_some_and(|at| at <= d.now))
        };
        let due: Vec<usize> = self.derived.undoing.iter().copied().filter(due).collect();
        for step in due {
            if self.steps[step].undo.as_ref().is_some_and(|undo| undo.status == UndoStatus::Running) {
                self.undo_over(step, Outcome::Done(Value::Null), d);
            } else {
                self.begin_undo(step, d);
            }
        }
    }

    fn begin_undo(&mut self, step: usize, d: &mut Deciding) {
        if let Some(undo) = &mut self.steps[step].undo {
            undo.status = UndoStatus::Running;
            undo.attempts += 1;
            undo.attempt_at = Some(d.now);
            undo.due_at = None;
        }
        self.step_to(step, StepStatus::Compensating, d);
        match self.undo_of(step).and_then(|begin| self.carry_out(step, begin, d)) {
            Ok(Some(begin)) => d.changes.begin.push(begin),
            Ok(None) => {}
            Err(error) => self.undo_over(step, Outcome::never(error), d),
        }
    }

    /// What needs nobody is carried out here; what only waits has a time. The rest is somebody's to make.
    fn carry_out(&mut self, step: usize, begin: Begin, d: &mut Deciding) -> Result<Option<Begin>, String> {
        match self.performs_undo(step) {
            Performs::Attempts => Ok(Some(begin)),
            Performs::Instantly(output) => {
                let output = as_object(&begin.config, output)?;
                self.undo_over(step, Outcome::Done(output), d);
                Ok(None)
            }
            Performs::Waits { until, .. } => {
                let due = as_object(&begin.config, |members| until(members, d.now))?;
                if let Some(undo) = &mut self.steps[step].undo {
                    undo.due_at = Some(due.unwrap_or(d.now));
                }
                Ok(None)
            }
        }
    }

    fn performs_undo(&self, step: usize) -> Performs {
        match &self.plan.steps[step].undo {
            Some(Undo::By { nature, .. }) => nature.performs,
            Some(Undo::Itself) | None => Performs::Attempts,
        }
    }

    /// It waits for a time, in nobody's hands.
    pub(super) fn undo_waits(&self, step: usize) -> bool {
        matches!(self.performs_undo(step), Performs::Waits { .. })
    }

    fn undo_of(&self, step: usize) -> Result<Begin, String> {
        let (planned, one) = (&self.plan.steps[step], &self.steps[step]);
        let (action, config, verbatim) = match &planned.undo {
            Some(Undo::By { action, config, nature }) => {
                (action, config.as_ref().unwrap_or(&planned.config), nature.verbatim)
            }
            Some(Undo::Itself) | None => (&planned.action, &planned.config, planned.nature.verbatim),
        };
        let known = if one.output.is_some() { config.clone() } else { reference::without_output(config) };
        let config = resolved(&known, verbatim, &self.values(Some(step)))?;
        Ok(Begin {
            step,
            attempt: one.undo.as_ref().map_or(1, |undo| undo.attempts),
            undo: true,
            itself: matches!(planned.undo, Some(Undo::Itself)),
            action: action.clone(),
            config,
            output: one.output.clone(),
            key: self.plan.undo_key(step, one.generation),
            note: one.note.clone(),
        })
    }

    /// Compensations that were under way died with their process: they are idempotent.
    pub(super) fn undo_taken(&mut self, d: &mut Deciding) {
        let runs = |at: &usize| self.steps[*at].undo.as_ref().is_some_and(|undo| undo.status == UndoStatus::Running);
        let found = self.derived.undoing.iter().copied().filter(runs).filter(|step| !self.undo_waits(*step));
        for step in found.collect::<Vec<_>>() {
            self.undo_over(step, Outcome::CutOff("the process that ran it died".into()), d);
        }
    }

    pub(super) fn undo_ended(&mut self, step: usize, attempt: i32, outcome: Outcome, d: &mut Deciding) {
        let current = self.steps[step].undo.as_ref();
        if current.is_some_and(|undo| undo.status == UndoStatus::Running && undo.attempts == attempt) {
            self.undo_over(step, outcome, d);
        }
    }

    fn undo_over(&mut self, step: usize, outcome: Outcome, d: &mut Deciding) {
        let policy = self.plan.steps[step].policy.clone();
        let Some(undo) = &mut self.steps[step].undo else { return };
        let (word, error) = words(&outcome);
        d.changes.log.push(Entry {
            step: Some(step),
            attempt: Some(undo.attempts),
            started_at: undo.attempt_at.unwrap_or(d.now),
            ended_at: Some(d.now),
            outcome: match word {
                "completed" => "compensated",
                "failed" => "compensation_failed",
                other => other,
            },
            error,
            by: None,
        });
        match outcome {
            Outcome::Done(_) => self.undone(step, d),
            Outcome::Broken(error) => self.undo_failed(step, error, Retry::After(None), d),
            Outcome::Failed { error, retry, .. } => self.undo_failed(step, error, retry, d),
            Outcome::CutOff(why) => {
                undo.cut_offs += 1;
                if undo.cut_offs >= CUT_OFFS_MAX {
                    let why = format!("{CUT_OFFS_MAX} attempts in a row were cut off, the last: {why}");
                    return self.not_undone(step, why, d);
                }
                let due = after_cut_off(&policy, undo.cut_offs, d);
                self.undo_again(step, due, why, d);
            }
            Outcome::PutOff { until, why } => {
                undo.attempts -= 1;
                self.undo_again(step, until, why, d);
            }
        }
    }

    fn undo_failed(&mut self, step: usize, error: String, retry: Retry, d: &mut Deciding) {
        let policy = &self.plan.steps[step].policy;
        let Some(undo) = &mut self.steps[step].undo else { return };
        undo.cut_offs = 0;
        undo.failures += 1;
        match retry {
            Retry::After(asked) if undo.failures <= policy.retries() => {
                let n = u32::try_from(undo.failures).unwrap_or(1);
                let due = later(d.now, retry::raised(policy.delay(n, d.unit), asked));
                self.undo_again(step, due, error, d);
            }
            _ => self.not_undone(step, error, d),
        }
    }

    fn undo_again(&mut self, step: usize, due: DateTime<Utc>, why: String, d: &mut Deciding) {
        if let Some(undo) = &mut self.steps[step].undo {
            undo.status = UndoStatus::Retrying;
            undo.due_at = Some(due);
            undo.error = Some(why);
        }
        d.changes.steps.insert(step);
    }

    fn undone(&mut self, step: usize, d: &mut Deciding) {
        if let Some(undo) = &mut self.steps[step].undo {
            undo.status = UndoStatus::Completed;
            undo.due_at = None;
            undo.error = None;
        }
        self.derived.undoing.remove(&step);
        self.step_to(step, StepStatus::Compensated, d);
        self.unblocked(vec![step]);
    }

    fn not_undone(&mut self, step: usize, error: String, d: &mut Deciding) {
        if let Some(undo) = &mut self.steps[step].undo {
            undo.status = UndoStatus::Failed;
            undo.due_at = None;
            undo.error = Some(error);
        }
        self.halting = true;
        self.derived.undoing.remove(&step);
        self.step_to(step, StepStatus::CompensationFailed, d);
    }

    pub(super) fn undo_given_up(&mut self, why: &str, d: &mut Deciding) {
        self.error = Some(why.to_owned());
        for step in self.derived.undoing.clone() {
            d.changes.cut.push((step, true));
            self.not_undone(step, why.to_owned(), d);
        }
        self.halting = true;
    }
}

//! What time brings: retries and waits that are due, a deadline, the end of patience with what was
//! asked to stop; and what it means that nobody will go on with a saga.

use chrono::{DateTime, Utc};

use super::{
    GRACE, Outcome, Performs, Saga, SagaStatus, StepStatus,
    decide::{Deciding, as_object},
};

impl Saga {
    /// What has come due.
    pub(super) fn times(&mut self, d: &mut Deciding) {
        if !self.status.is_at_work() {
            return;
        }
        let is_forwards = self.status != SagaStatus::Compensating;
        if is_forwards && self.stop_by.is_none() && self.deadline.is_some_and(|at| at <= d.now) {
            self.time_is_up("the saga timed out", d);
        }
        if self.stop_by.is_some_and(|at| at <= d.now) {
            self.patience_is_over(d);
        }
        if !is_forwards || self.stop_by.is_some() || !d.may_begin {
            return;
        }
        let due: Vec<usize> = self.derived.under_way.iter().copied().filter(|at| self.is_due(*at, d.now)).collect();
        for step in due {
            match self.steps[step].status {
                StepStatus::Retrying => self.again(step, d),
                StepStatus::Waiting => self.wait_is_over(step, d),
                _ => {}
            }
        }
    }

    fn is_due(&self, step: usize, now: DateTime<Utc>) -> bool {
        self.steps[step].due_at.is_some_and(|at| at <= now)
    }

    fn wait_is_over(&mut self, step: usize, d: &mut Deciding) {
        let outcome = match (self.resolved(step), self.plan.steps[step].nature.performs) {
            (Err(error), _) => Outcome::never(error),
            (Ok(config), Performs::Waits { until, over, .. }) => {
                let began = self.steps[step].attempt_at.unwrap_or(d.now);
                // The step's own limit may be shorter than what it waits for.
                let asked = as_object(&config, |members| until(members, began)).ok().flatten();
                match asked {
                    Some(at) if at <= d.now => {
                        as_object(&config, |members| Ok(over(members))).unwrap_or_else(Outcome::never)
                    }
                    _ => Outcome::never("timed out"),
                }
            }
            (Ok(_), _) => return,
        };
        self.answered(step, outcome, d);
    }

    /// A wait has come to its end.
    pub(super) fn answered(&mut self, step: usize, outcome: Outcome, d: &mut Deciding) {
        self.steps[step].due_at = None;
        self.ended(step, outcome, d);
    }

    /// Nothing goes on. What is in flight may have had its effect.
    fn time_is_up(&mut self, why: &str, d: &mut Deciding) {
        self.deadline = None;
        self.error = Some(why.to_owned());
        for step in self.derived.under_way.clone() {
            if self.steps[step].status == StepStatus::Running {
                self.log_attempt(step, &Outcome::CutOff(why.to_owned()), d);
                d.changes.cut.push((step, false));
                self.steps[step].doubtful = true;
                self.steps[step].cut_offs += 1;
                if !self.plan.steps[step].idempotent {
                    self.doubt(step, why.to_owned(), d);
                    continue;
                }
            }
            if self.steps[step].doubtful {
                self.steps[step].cut_offs = self.steps[step].cut_offs.max(1);
            }
            self.fail(step, why.to_owned(), d);
        }
        self.halting = true;
    }

    pub(super) fn given_up(&mut self, why: &str, d: &mut Deciding) {
        match self.status {
            SagaStatus::Pending | SagaStatus::Running | SagaStatus::Waiting => {
                self.to(SagaStatus::Running, d);
                self.time_is_up(why, d);
            }
            SagaStatus::Compensating => {
                self.patience_is_over(d);
                self.undo_given_up(why, d);
            }
            _ => {}
        }
    }

    /// Asks what is under way to end: what only waits ends now, an attempt in flight has its grace.
    pub(super) fn stop(&mut self, d: &mut Deciding) {
        self.stop_by = self.stop_by.or(Some(d.now + GRACE));
        for step in self.derived.under_way.clone() {
            let one = &self.steps[step];
            if one.status == StepStatus::Running {
                continue;
            }
            if one.doubtful {
                let why = one.error.clone().unwrap_or_else(|| "stopped before its result was known".into());
                self.doubt(step, why, d);
            } else {
                self.drop_step(step, d);
            }
        }
    }

    fn patience_is_over(&mut self, d: &mut Deciding) {
        for step in self.derived.under_way.clone() {
            let why = "it was still under way when its saga was stopped";
            self.log_attempt(step, &Outcome::CutOff(why.into()), d);
            d.changes.cut.push((step, false));
            self.doubt(step, why.into(), d);
        }
    }
}

//! What people ask of a saga: retry, roll back, skip, cancel, abandon, approve. Each is decided
//! at once and starts nothing by itself; whoever drives the saga takes it from there.

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::{Changes, Entry, Outcome, Performs, Saga, SagaStatus, StepStatus, decide::Deciding};

#[derive(Debug, Clone, PartialEq)]
pub enum Control {
    /// Every step that failed, once more.
    Retry,
    Rollback,
    RetryStep(usize),
    SkipStep(usize),
    Cancel {
        compensate: bool,
        reason: Option<String>,
    },
    Abandon {
        reason: String,
    },
    Answer {
        step: usize,
        approve: bool,
        comment: Option<String>,
    },
}

/// It may not do this now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub status: SagaStatus,
    pub step_status: Option<StepStatus>,
}

impl Saga {
    /// Changes the saga as somebody asks. Without its turn (another saga of its key is at work) a saga
    /// that is to go on waits for it as pending.
    ///
    /// # Errors
    /// Where its state does not allow it; nothing has changed then.
    pub fn control(
        &mut self,
        asked: &Control,
        by: Uuid,
        now: DateTime<Utc>,
        has_turn: bool,
    ) -> Result<Changes, Refused> {
        if !self.allows(asked) {
            let step_status = asked.step().map(|step| self.steps[step].status);
            return Err(Refused { status: self.status, step_status });
        }
        let mut d = Deciding::new(now, 0.5, false);
        d.changes.any = true;
        d.changes.log.push(Entry {
            step: asked.step(),
            attempt: None,
            started_at: now,
            ended_at: Some(now),
            outcome: asked.word(),
            error: asked.said(),
            by: Some(by),
        });
        match asked {
            Control::Retry => {
                self.retry_count += 1;
                let fell = |at: &usize| matches!(self.steps[*at].status, StepStatus::Failed | StepStatus::Unknown);
                let fallen: Vec<usize> = (0..self.steps.len()).filter(fell).collect();
                for step in fallen {
                    self.renew(step, &mut d);
                }
                self.resume_forwards(has_turn, &mut d);
            }
            Control::RetryStep(step) => {
                self.renew(*step, &mut d);
                self.resume_forwards(has_turn, &mut d);
            }
            Control::SkipStep(step) => self.skip(*step, has_turn, &mut d),
            Control::Rollback => self.roll_back(&mut d),
            Control::Cancel { compensate, reason } => self.cancel(*compensate, reason.as_deref(), &mut d),
            Control::Abandon { reason } => {
                self.error = Some(reason.clone());
                self.completed_at = Some(now);
                self.to(SagaStatus::Cancelled, &mut d);
            }
            Control::Answer { step, approve, comment } => self.answer(*step, *approve, comment.as_deref(), by, &mut d),
        }
        self.derive();
        self.go_on(&mut d);
        Ok(d.changes)
    }

    fn allows(&self, asked: &Control) -> bool {
        use SagaStatus::{Completed, Failed, Pending, Running, Stuck, Waiting};
        let status = self.status;
        let is_stopping = self.stop_by.is_some();
        let goes = matches!(status, Running | Waiting) && !is_stopping;
        let step = asked.step().map(|step| self.steps[step].status);
        match asked {
            Control::Retry => status == Failed,
            Control::Rollback => matches!(status, Failed | Running | Waiting | Stuck | Completed),
            Control::RetryStep(_) => {
                (goes || status == Failed)
                    && matches!(step, Some(StepStatus::Failed | StepStatus::Unknown | StepStatus::Skipped))
            }
            Control::SkipStep(_) => {
                (goes || matches!(status, Failed | Pending))
                    && matches!(step, Some(StepStatus::Failed | StepStatus::Unknown | StepStatus::Pending))
            }
            Control::Cancel { .. } => matches!(status, Pending | Running | Waiting | Failed | Stuck),
            Control::Abandon { .. } => status == Stuck,
            Control::Answer { step: at, .. } => {
                let performs = self.plan.steps[*at].nature.performs;
                let answerable = matches!(performs, Performs::Waits { answerable: true, .. });
                goes && answerable && step == Some(StepStatus::Waiting)
            }
        }
    }

    /// A step is to be done once more: under the same key where nobody knows what the last one did.
    fn renew(&mut self, step: usize, d: &mut Deciding) {
        let retries = self.plan.steps[step].policy.retries();
        let one = &mut self.steps[step];
        // The other side said no: not only was it not reached any more.
        let is_certain = one.status == StepStatus::Failed && one.cut_offs == 0 && one.failures <= retries;
        if (is_certain || !one.doubtful) && one.attempt > 0 {
            one.generation += 1;
        }
        if !one.doubtful {
            one.note = None;
        }
        one.failures = 0;
        one.cut_offs = 0;
        one.retry_count = 0;
        one.error = None;
        one.output = None;
        self.step_to(step, StepStatus::Pending, d);
    }

    fn resume_forwards(&mut self, has_turn: bool, d: &mut Deciding) {
        self.halting = false;
        if self.status != SagaStatus::Failed {
            return;
        }
        self.error = None;
        if has_turn {
            self.deadline = self.plan.timeout.map(|timeout| d.now + timeout);
        }
        self.to(if has_turn { SagaStatus::Running } else { SagaStatus::Pending }, d);
    }

    fn skip(&mut self, step: usize, has_turn: bool, d: &mut Deciding) {
        let was_fallen = self.steps[step].status != StepStatus::Pending;
        self.step_to(step, StepStatus::Skipped, d);
        self.steps[step].error = None;
        if was_fallen {
            self.resume_forwards(has_turn, d);
        }
    }

    fn roll_back(&mut self, d: &mut Deciding) {
        let was_going = matches!(self.status, SagaStatus::Running | SagaStatus::Waiting);
        self.turn_back(d);
        if was_going {
            self.stop(d);
        }
    }

    fn cancel(&mut self, compensate: bool, reason: Option<&str>, d: &mut Deciding) {
        if let Some(reason) = reason {
            self.error = Some(reason.to_owned());
        }
        for step in 0..self.steps.len() {
            self.recall(step, d);
            if self.steps[step].status == StepStatus::Pending {
                self.drop_step(step, d);
            }
        }
        match self.status {
            SagaStatus::Running | SagaStatus::Waiting if !compensate => self.stop(d),
            SagaStatus::Running | SagaStatus::Waiting | SagaStatus::Failed | SagaStatus::Stuck if compensate => {
                self.roll_back(d);
            }
            // It was at work before, and waits for its turn to go on.
            SagaStatus::Pending if compensate && self.steps.iter().any(|step| step.attempt > 0) => self.roll_back(d),
            _ => {
                self.completed_at = Some(d.now);
                self.to(SagaStatus::Cancelled, d);
            }
        }
    }

    fn answer(&mut self, step: usize, approve: bool, comment: Option<&str>, by: Uuid, d: &mut Deciding) {
        let outcome = if approve {
            let mut output = json!({"decision": "approve", "by": by});
            if let Some(comment) = comment {
                output["comment"] = comment.into();
            }
            Outcome::Done(output)
        } else {
            Outcome::never(comment.map_or_else(|| "rejected".to_owned(), |comment| format!("rejected: {comment}")))
        };
        self.answered(step, outcome, d);
    }
}

impl Control {
    fn step(&self) -> Option<usize> {
        match self {
            Self::RetryStep(step) | Self::SkipStep(step) | Self::Answer { step, .. } => Some(*step),
            _ => None,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Retry | Self::RetryStep(_) => "retry",
            Self::Rollback => "rollback",
            Self::SkipStep(_) => "skip",
            Self::Cancel { .. } => "cancel",
            Self::Abandon { .. } => "abandon",
            Self::Answer { approve: true, .. } => "approve",
            Self::Answer { .. } => "reject",
        }
    }

    fn said(&self) -> Option<String> {
        match self {
            Self::Cancel { reason, .. } => reason.clone(),
            Self::Abandon { reason } => Some(reason.clone()),
            Self::Answer { comment, .. } => comment.clone(),
            _ => None,
        }
    }
}

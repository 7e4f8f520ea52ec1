//! What changes of a saga, as it is kept, and what follows from it and is not kept.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Plan, SagaStatus, StepStatus, reference::Values};

#[derive(Debug, Clone)]
pub struct Saga {
    pub plan: Arc<Plan>,
    pub status: SagaStatus,
    /// A step has failed and nobody has decided what now: none begins.
    pub halting: bool,
    /// It is being stopped; what is under way is given up then.
    pub stop_by: Option<DateTime<Utc>>,
    /// Its time is up then.
    pub deadline: Option<DateTime<Utc>>,
    /// Calls of retry.
    pub retry_count: i32,
    pub error: Option<String>,
    pub completed_at: Option<DateTime<Utc>>,
    pub steps: Vec<Step>,
    pub(super) derived: Derived,
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub status: StepStatus,
    /// Names its idempotency key.
    pub generation: i32,
    /// Attempts begun.
    pub attempt: i32,
    /// Failures since its retries began, and attempts cut off in a row.
    pub failures: i32,
    pub cut_offs: i32,
    /// An attempt of this generation was cut off, and none succeeded.
    pub doubtful: bool,
    /// Retries that were made, by policy.
    pub retry_count: i32,
    pub output: Option<Value>,
    pub error: Option<String>,
    /// Of its next attempt, or the end of its wait.
    pub due_at: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    /// When the present attempt began.
    pub attempt_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    /// What its attempt wrote down on the way.
    pub note: Option<Value>,
    pub undo: Option<UndoState>,
}

/// Where a compensation stands.
#[derive(Debug, Clone, PartialEq)]
pub struct UndoState {
    pub status: UndoStatus,
    pub attempts: i32,
    pub failures: i32,
    pub cut_offs: i32,
    pub due_at: Option<DateTime<Utc>>,
    pub attempt_at: Option<DateTime<Utc>>,
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum UndoStatus {
    Running,
    Retrying,
    Completed,
    Failed,
}

impl UndoStatus {
    pub fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// What follows from the rest, so that a decision about one step does not look at all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Derived {
    /// How many of a step's needs are not done.
    pub blocked: Vec<usize>,
    /// Pending, and nothing stands in their way.
    pub ready: BTreeSet<usize>,
    pub under_way: BTreeSet<usize>,
    /// Steps that are not done.
    pub open: usize,
    /// How many of those that needed a step are not yet out of its compensation's way.
    pub unclear: Vec<usize>,
    /// To be undone, and nothing stands in their way.
    pub undo_ready: BTreeSet<usize>,
    /// Compensations under way.
    pub undoing: BTreeSet<usize>,
    /// Came to rest after the saga had turned back, and not looked at yet.
    pub settled: Vec<usize>,
    /// Steps that are not out of the way of compensations.
    pub left: usize,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            status: StepStatus::Pending,
            generation: 0,
            attempt: 0,
            failures: 0,
            cut_offs: 0,
            doubtful: false,
            retry_count: 0,
            output: None,
            error: None,
            due_at: None,
            started_at: None,
            attempt_at: None,
            completed_at: None,
            note: None,
            undo: None,
        }
    }
}

impl Saga {
    /// One that nobody has begun.
    pub fn new(plan: Arc<Plan>) -> Self {
        let steps = vec![Step::default(); plan.steps.len()];
        let mut saga = Self {
            plan,
            status: SagaStatus::Pending,
            halting: false,
            stop_by: None,
            deadline: None,
            retry_count: 0,
            error: None,
            completed_at: None,
            steps,
            derived: Derived::default(),
        };
        saga.derive();
        saga
    }

    /// Works out anew what follows from the rest; whoever sets fields calls it.
    pub fn derive(&mut self) {
        let count = self.steps.len();
        let mut derived = Derived { blocked: vec![0; count], unclear: vec![0; count], ..Derived::default() };
        for (at, (step, planned)) in self.steps.iter().zip(&self.plan.steps).enumerate() {
            derived.blocked[at] = planned.needs.iter().filter(|need| !self.steps[**need].status.is_done()).count();
            if step.status == StepStatus::Pending && derived.blocked[at] == 0 {
                derived.ready.insert(at);
            }
            if step.status.is_under_way() {
                derived.under_way.insert(at);
            }
            if step.status == StepStatus::Compensating {
                derived.undoing.insert(at);
            }
            derived.open += usize::from(!step.status.is_done());
        }
        self.derived = derived;
        if self.status == SagaStatus::Compensating {
            self.derive_undoing();
        }
    }

    /// The step that it is at: the first under way, else the first that failed.
    pub fn current_step(&self) -> Option<usize> {
        let first = self.derived.under_way.first().or_else(|| self.derived.undoing.first());
        let stands_out = |step: &Step| {
            matches!(step.status, StepStatus::Failed | StepStatus::Unknown | StepStatus::CompensationFailed)
        };
        first.copied().or_else(|| {
            let at_rest = matches!(self.status, SagaStatus::Failed | SagaStatus::Stuck);
            if at_rest { self.steps.iter().position(stands_out) } else { None }
        })
    }

    /// Attempts are under way that only this process knows the end of.
    pub fn is_busy(&self) -> bool {
        self.attempting() > 0 || self.undo_attempting() > 0
    }

    /// Whether this very attempt is under way.
    pub fn is_attempting(&self, step: usize, attempt: i32, undo: bool) -> bool {
        let one = &self.steps[step];
        if undo {
            return one.undo.as_ref().is_some_and(|undo| {
                one.status == StepStatus::Compensating && undo.status == UndoStatus::Running && undo.attempts == attempt
            });
        }
        one.status == StepStatus::Running && one.attempt == attempt
    }

    /// When something is to be decided although nothing happens.
    pub fn next_due(&self) -> Option<DateTime<Utc>> {
        if !self.status.is_at_work() {
            return None;
        }
        let forwards = self.derived.under_way.iter().filter_map(|at| self.steps[*at].due_at);
        let undo = |at: &usize| self.steps[*at].undo.as_ref().and_then(|undo| undo.due_at);
        let backwards = self.derived.undoing.iter().filter_map(undo);
        let is_forwards = self.status != SagaStatus::Compensating && self.stop_by.is_none();
        let own = self.stop_by.into_iter().chain(self.deadline.filter(|_| is_forwards));
        forwards.chain(backwards).chain(own).min()
    }

    pub(super) fn attempting(&self) -> usize {
        self.derived.under_way.iter().filter(|at| self.steps[**at].status == StepStatus::Running).count()
    }

    pub(super) fn undo_attempting(&self) -> usize {
        let runs = |at: &&usize| {
            let undo = self.steps[**at].undo.as_ref();
            undo.is_some_and(|undo| undo.status == UndoStatus::Running) && !self.undo_waits(**at)
        };
        self.derived.undoing.iter().filter(runs).count()
    }

    /// What references find, seen from a step.
    pub(super) fn values(&self, own: Option<usize>) -> Seen<'_> {
        Seen { saga: self, own }
    }
}

/// Variables and outputs, as references see them.
pub(super) struct Seen<'a> {
    saga: &'a Saga,
    own: Option<usize>,
}

impl Values for Seen<'_> {
    fn var(&self, name: &str) -> Option<&str> {
        self.saga.plan.vars.get(name).map(String::as_str)
    }

    fn step(&self, name: &str) -> Option<&Value> {
        self.saga.plan.position(name).and_then(|at| self.saga.steps[at].output.as_ref())
    }

    fn output(&self) -> Option<&Value> {
        self.own.and_then(|at| self.saga.steps[at].output.as_ref())
    }
}

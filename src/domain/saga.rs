//! A saga: a graph of steps, each with a compensation for what it did. The whole mind of the
//! engine is here and pure: state, what happened, now -> what changes and what begins.
//!
//! `plan.rs` is what never changes, `state.rs` what does, `changes.rs` what a decision says.
//! `decide.rs` takes what happens and runs a saga forwards, `undoing.rs` backwards, and
//! `control.rs` holds what people ask for. The rest is what a definition may say.

pub mod changes;
pub mod check;
pub mod condition;
mod control;
mod decide;
pub mod fields;
pub mod graph;
mod outcome;
pub mod plan;
pub mod reference;
pub mod retry;
pub mod spec;
pub mod state;
#[cfg(test)]
mod tests;
mod times;
mod undoing;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    changes::{Begin, Changes, Entry, Transition},
    control::{Control, Refused},
    decide::Happening,
    outcome::{Outcome, Retry},
    plan::{Nature, Performs, Plan, PlannedStep, Undo},
    state::{Saga, Step, UndoState, UndoStatus},
};

/// Steps at work at once, and so compensations.
pub const AT_ONCE: usize = 16;
/// Attempts that may be cut off in a row.
pub const CUT_OFFS_MAX: i32 = 10;
/// What an attempt under way gets when its saga is stopped.
pub const GRACE: chrono::TimeDelta = chrono::TimeDelta::seconds(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum SagaStatus {
    Pending,
    Running,
    /// Only timers and approvals are left.
    Waiting,
    Completed,
    Failed,
    Compensating,
    Compensated,
    /// A compensation has used up its retries.
    Stuck,
    Cancelled,
}

impl SagaStatus {
    pub fn text(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Compensating => "compensating",
            Self::Compensated => "compensated",
            Self::Stuck => "stuck",
            Self::Cancelled => "cancelled",
        }
    }

    /// Something is done, or waited for.
    pub fn is_at_work(self) -> bool {
        matches!(self, Self::Running | Self::Waiting | Self::Compensating)
    }

    /// Its events end here, though a completed one may still be rolled back.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Compensated | Self::Cancelled)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    Pending,
    Running,
    /// Waits for its next attempt.
    Retrying,
    /// For a time or an approval.
    Waiting,
    Completed,
    Failed,
    /// An attempt was cut off before its result was known.
    Unknown,
    Skipped,
    Compensating,
    Compensated,
    CompensationFailed,
    Cancelled,
}

impl StepStatus {
    pub fn text(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Skipped => "skipped",
            Self::Compensating => "compensating",
            Self::Compensated => "compensated",
            Self::CompensationFailed => "compensation_failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Begun and not yet decided.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Running | Self::Retrying | Self::Waiting)
    }

    /// Those that depend on it may begin.
    pub fn is_done(self) -> bool {
        matches!(self, Self::Completed | Self::Skipped)
    }
}

/// What becomes of a saga whose step has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    #[default]
    Stop,
    Compensate,
}

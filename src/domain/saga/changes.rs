//! What a decision says: what is to be written down, in one transaction, and what begins or
//! ends once that is durable.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{SagaStatus, StepStatus};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Anything at all was decided.
    pub any: bool,
    /// Positions of the steps that are other than before.
    pub steps: BTreeSet<usize>,
    /// In their order, as listeners hear them.
    pub transitions: Vec<Transition>,
    pub log: Vec<Entry>,
    /// Attempts to be made.
    pub begin: Vec<Begin>,
    /// Attempts under way that are given up: the step, and whether it is a compensation's.
    pub cut: Vec<(usize, bool)>,
    /// There is more to decide at once; it was kept apart so that no write becomes too large.
    pub more: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Transition {
    Saga {
        status: SagaStatus,
        previous: SagaStatus,
        at: DateTime<Utc>,
        error: Option<String>,
    },
    Step {
        step: usize,
        status: StepStatus,
        previous: StepStatus,
        /// Of the step, or of its compensation.
        attempt: i32,
        at: DateTime<Utc>,
        error: Option<String>,
    },
}

/// One line of a saga's log: an attempt, or what somebody asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub step: Option<usize>,
    pub attempt: Option<i32>,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub outcome: &'static str,
    pub error: Option<String>,
    pub by: Option<Uuid>,
}

/// An attempt to be made, by whoever holds the saga.
#[derive(Debug, Clone, PartialEq)]
pub struct Begin {
    pub step: usize,
    pub attempt: i32,
    /// It compensates,
    pub undo: bool,
    /// and does so by the undo of the step's own action.
    pub itself: bool,
    pub action: String,
    /// Resolved.
    pub config: Value,
    /// What the step gave, for its compensation.
    pub output: Option<Value>,
    /// Stable over the attempts.
    pub key: String,
    /// What an earlier process wrote down in this very attempt.
    pub note: Option<Value>,
}

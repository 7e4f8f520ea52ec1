//! What never changes of a saga: its steps in the order given, what they depend on, how each
//! is performed and undone.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    OnFailure,
    condition::Condition,
    outcome::Outcome,
    reference::{self, Values},
    retry::RetryPolicy,
};

/// What an action is to the engine.
#[derive(Debug, Clone, Copy)]
pub struct Nature {
    pub performs: Performs,
    /// Where the step does not say.
    pub idempotent: bool,
    /// An attempt that was cut off may have had its effect all the same. False where the effect
    /// is written down in one transaction with the attempt.
    pub leaves_doubt: bool,
    /// It only looks on: whoever comes after a process that died goes on as if nothing had been.
    pub resumes: bool,
    pub undoes_itself: bool,
    /// A member of its config that is handed on as it stands: references in it are somebody else's.
    pub verbatim: Option<&'static str>,
}

/// How an action is carried out. Configs are resolved when they are handed in.
#[derive(Debug, Clone, Copy)]
pub enum Performs {
    /// By nobody: its output follows from its config.
    Instantly(fn(&Map<String, Value>) -> Result<Value, String>),
    /// Time or a person does it.
    Waits {
        /// Until when at most.
        until: WaitsUntil,
        /// What it means that the time has come.
        over: fn(&Map<String, Value>) -> Outcome,
        /// A person may decide.
        answerable: bool,
    },
    /// In attempts, outside of the engine.
    Attempts,
}

/// From a config and the present time: when a wait ends; none where only a person ends it.
pub type WaitsUntil = fn(&Map<String, Value>, DateTime<Utc>) -> Result<Option<DateTime<Utc>>, String>;

#[derive(Debug, Clone)]
pub struct Plan {
    pub id: Uuid,
    pub steps: Vec<PlannedStep>,
    pub vars: std::collections::BTreeMap<String, String>,
    pub on_failure: OnFailure,
    /// From when it begins to be at work.
    pub timeout: Option<TimeDelta>,
}

#[derive(Debug, Clone)]
pub struct PlannedStep {
    pub name: String,
    pub action: String,
    pub nature: Nature,
    /// Positions of the steps that it waits for, and of those that wait for it.
    pub needs: Vec<usize>,
    pub needed_by: Vec<usize>,
    /// With its references.
    pub config: Value,
    pub when: Option<Condition>,
    pub undo: Option<Undo>,
    pub policy: RetryPolicy,
    /// Of one attempt, or of one wait.
    pub timeout: Option<TimeDelta>,
    pub idempotent: bool,
}

/// How a step is undone.
#[derive(Debug, Clone)]
pub enum Undo {
    /// By its own action.
    Itself,
    By {
        action: String,
        /// With its references; the step's own where there is none.
        config: Option<Value>,
        nature: Nature,
    },
}

/// A config with its references replaced by what they stand for.
///
/// # Errors
/// One that stands for nothing.
pub(super) fn resolved(config: &Value, verbatim: Option<&str>, values: &dyn Values) -> Result<Value, String> {
    let taken = verbatim.and_then(|name| Some((name, config.get(name)?.clone())));
    let Some((name, kept)) = taken else {
        return reference::resolve(config, values).map_err(|error| error.below("config").to_string());
    };
    let mut rest = config.clone();
    if let Some(members) = rest.as_object_mut() {
        members.remove(name);
    }
    let mut rest = reference::resolve(&rest, values).map_err(|error| error.below("config").to_string())?;
    rest[name] = kept;
    Ok(rest)
}

impl Plan {
    pub fn position(&self, name: &str) -> Option<usize> {
        self.steps.iter().position(|step| step.name == name)
    }

    /// Sent with each attempt of a step, the same for all of one generation.
    pub fn key(&self, step: usize, generation: i32) -> String {
        format!("{}-{step}-{generation}", self.id)
    }

    /// As [`Plan::key`], of the compensation.
    pub fn undo_key(&self, step: usize, generation: i32) -> String {
        format!("{}-{step}-{generation}-undo", self.id)
    }
}

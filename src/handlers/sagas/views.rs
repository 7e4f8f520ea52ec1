//! A saga, its steps and its log as clients see them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    domain::saga::{OnFailure, SagaStatus, Step, StepStatus, UndoStatus, retry::RetryPolicy, spec::StepSpec},
    services::sagas::{Row, Whole},
};

/// A saga as clients see it.
#[derive(Serialize, ToSchema)]
pub struct SagaView {
    id: Uuid,
    name: String,
    status: SagaStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_step: Option<String>,
    /// Calls of retry.
    retry_count: i32,
    max_retries: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_id: Option<String>,
    on_failure: OnFailure,
    created_by: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition_version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency_key: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<DateTime<Utc>>,
    /// Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<StepView>>,
    /// Outputs of steps, by name. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    outputs: Option<Map<String, Value>>,
}

#[derive(Serialize, ToSchema)]
pub struct StepView {
    id: Uuid,
    name: String,
    status: StepStatus,
    action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    depends_on: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compensate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    compensate_config: Option<Map<String, Value>>,
    /// Retries by policy.
    retry_count: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    output: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<DateTime<Utc>>,
    /// As given; values of `secret_headers` are masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    config: Option<Map<String, Value>>,
    retry_policy: RetryPolicy,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    idempotent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    when: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compensation: Option<CompensationView>,
}

#[derive(Serialize, ToSchema)]
pub struct CompensationView {
    status: UndoStatus,
    attempts: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl SagaView {
    pub fn brief(row: Row) -> Self {
        Self {
            id: row.id,
            name: row.name,
            status: row.status,
            current_step: row.current_step,
            retry_count: row.retry_count,
            max_retries: row.max_retries,
            error: row.error,
            project_id: row.project_id,
            on_failure: row.on_failure,
            created_by: row.created_by,
            definition: row.definition,
            definition_version: row.definition_version,
            concurrency_key: row.concurrency_key,
            created_at: row.created_at,
            updated_at: row.updated_at,
            completed_at: row.completed_at,
            steps: None,
            outputs: None,
        }
    }

    pub fn of(whole: &Whole) -> Self {
        let parts = whole.specs.iter().zip(&whole.steps).zip(&whole.idempotent).enumerate();
        let steps = parts.map(|(n, ((spec, step), idempotent))| StepView::of(&whole.row, n, spec, step, *idempotent));
        let outputs = whole.outputs();
        Self {
            steps: Some(steps.collect()),
            outputs: Some(outputs).filter(|outputs| !outputs.is_empty()),
            ..Self::brief(whole.row.clone())
        }
    }
}

impl StepView {
    fn of(row: &Row, n: usize, spec: &StepSpec, step: &Step, idempotent: bool) -> Self {
        let shown = spec.masked();
        let undo = step.undo.as_ref();
        let default_policy = || RetryPolicy::with_max_retries(i64::from(row.max_retries));
        let undo_due = undo.filter(|undo| undo.status == UndoStatus::Retrying).and_then(|undo| undo.due_at);
        Self {
            id: step_id(row.id, n),
            name: shown.name,
            status: step.status,
            action: shown.action,
            depends_on: shown.depends_on,
            compensate: shown.compensate.filter(|action| !action.is_empty()),
            compensate_config: shown.compensate_config,
            retry_count: step.retry_count,
            output: step.output.clone(),
            error: step.error.clone(),
            started_at: step.started_at,
            completed_at: step.completed_at,
            config: shown.config,
            retry_policy: shown.retry_policy.unwrap_or_else(default_policy),
            timeout: shown.timeout,
            idempotent,
            when: shown.when,
            next_attempt_at: step.due_at.filter(|_| step.status == StepStatus::Retrying).or(undo_due),
            compensation: undo.map(|undo| CompensationView {
                status: undo.status,
                attempts: undo.attempts,
                error: undo.error.clone(),
            }),
        }
    }
}

/// The saga's id, moved on by the step's position: no two sagas are that near to one another.
fn step_id(saga: Uuid, n: usize) -> Uuid {
    const RANDOM: u128 = (1 << 62) - 1;
    let number = saga.as_u128();
    let moved = (number & RANDOM).wrapping_add(n as u128 + 1) & RANDOM;
    Uuid::from_u128((number & !RANDOM) | moved)
}

#[derive(Serialize, ToSchema)]
pub struct LogView {
    pub entries: Vec<EntryView>,
}

/// An attempt, or what somebody asked for.
#[derive(Serialize, ToSchema)]
pub struct EntryView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    pub started_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<DateTime<Utc>>,
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Id of the key that asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Uuid>,
}

impl EntryView {
    /// Attempts that have begun and not ended.
    pub fn under_way(spec: &StepSpec, step: &Step) -> Vec<Self> {
        let open = |attempt: i32, started_at: Option<DateTime<Utc>>, outcome: &str| Self {
            step: Some(spec.name.clone()),
            attempt: Some(attempt),
            started_at: started_at.unwrap_or_default(),
            ended_at: None,
            outcome: outcome.to_owned(),
            error: None,
            by: None,
        };
        let runs = matches!(step.status, StepStatus::Running | StepStatus::Waiting);
        let attempt = runs.then(|| open(step.attempt, step.attempt_at, step.status.text()));
        let undo = step.undo.as_ref().filter(|undo| undo.status == UndoStatus::Running);
        let undoing = undo.map(|undo| open(undo.attempts, undo.attempt_at, StepStatus::Compensating.text()));
        attempt.into_iter().chain(undoing).collect()
    }
}

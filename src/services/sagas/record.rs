//! How sagas are kept: rows into the state that is decided on, and what was decided into rows,
//! events and lines of the log.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{Error, Registry, Result, Row, StepSpec};
use crate::{
    domain::{
        durations,
        saga::{
            Changes, Nature, Performs, Plan, PlannedStep, Saga, SagaStatus, Step, StepStatus, Transition, Undo,
            UndoState, condition::Condition, graph::Graph, retry::RetryPolicy,
        },
    },
    metrics::Metrics,
    store::sagas::{LogRow, PlanRow, StepRow, Then, Write},
    streams::record,
};

/// A saga in hand: as it is decided on, and as it was found.
pub struct Held {
    pub row: Row,
    pub saga: Saga,
}

/// An action that this server does not know (any more): its attempts fail.
const UNKNOWN: Nature = Nature {
    performs: Performs::Attempts,
    idempotent: true,
    leaves_doubt: false,
    resumes: false,
    undoes_itself: false,
    verbatim: None,
};

impl Held {
    pub fn of(row: Row, plan: &PlanRow, touched: Vec<StepRow>, actions: &Registry) -> Result<Self> {
        let plan = Arc::new(planned(&row, plan, actions)?);
        let mut saga = Saga::new(plan);
        saga.status = row.status;
        saga.halting = row.halting;
        saga.stop_by = row.stop_by;
        saga.deadline = row.deadline;
        saga.retry_count = row.retry_count;
        saga.error.clone_from(&row.error);
        saga.completed_at = row.completed_at;
        saga.steps = steps(saga.steps.len(), touched)?;
        saga.derive();
        Ok(Self { row, saga })
    }

    /// What is to be written of a decision.
    pub fn write(&self, changes: &Changes, now: DateTime<Utc>, task: Option<(i64, i64)>, then: Then) -> Write {
        let mut row = self.row.clone();
        row.status = self.saga.status;
        row.halting = self.saga.halting;
        row.stop_by = self.saga.stop_by;
        row.deadline = self.saga.deadline;
        row.retry_count = self.saga.retry_count;
        row.error = self.saga.error.as_deref().map(plain);
        row.completed_at = self.saga.completed_at;
        row.current_step = self.saga.current_step().map(|step| self.saga.plan.steps[step].name.clone());
        row.updated_at = now;
        row.wake_at = if matches!(then, Then::Later(_)) { self.saga.next_due() } else { None };
        let mut events = Vec::new();
        for change in &changes.transitions {
            let (event, data) = self.event(change);
            events.extend(record::json(event, &data, false));
        }
        let ends = changes.transitions.iter().any(|change| matches!(change, Transition::Saga { .. }))
            && self.saga.status.is_end();
        let last = ends.then(|| {
            let data = json!({"saga_id": row.id, "status": self.saga.status.text()});
            Bytes::from(record::json("complete", &data, true))
        });
        let count = changes.transitions.len() + usize::from(last.is_some());
        Write {
            steps: changes.steps.iter().map(|step| step_row(&row, *step, &self.saga.steps[*step])).collect(),
            log: changes.log.iter().map(log_row).collect(),
            events: events.into(),
            count: i64::try_from(count).unwrap_or(i64::MAX),
            last,
            task,
            then,
            row,
        }
    }

    /// The write is durable.
    pub fn written(&mut self, write: &Write) {
        let row = Row { version: write.row.version + 1, log_n: write.row.log_n + lines(write), ..write.row.clone() };
        self.row = row;
    }

    fn event(&self, change: &Transition) -> (&'static str, Value) {
        let id = self.row.id;
        match change {
            Transition::Saga { status, previous, at, error } => {
                let data =
                    json!({"saga_id": id, "status": status.text(), "previous": previous.text(), "at": stamp(*at)});
                ("saga", with_error(data, error.as_deref()))
            }
            Transition::Step { step, status, previous, attempt, at, error } => {
                let mut data = json!({
                    "saga_id": id,
                    "step": self.saga.plan.steps[*step].name,
                    "status": status.text(),
                    "previous": previous.text(),
                    "at": stamp(*at),
                });
                if *attempt > 0 {
                    data["attempt"] = (*attempt).into();
                }
                ("step", with_error(data, error.as_deref()))
            }
        }
    }

    /// Tells the metrics what has come about.
    pub fn measure(&self, changes: &Changes, metrics: &Metrics) {
        for change in &changes.transitions {
            match change {
                Transition::Saga { status, .. } if !status.is_at_work() => metrics.saga(status.text()),
                Transition::Step { step, status: StepStatus::Retrying, .. } => {
                    metrics.saga_step_retried(&self.saga.plan.steps[*step].action);
                }
                _ => {}
            }
        }
        for entry in &changes.log {
            if let (Some(step), Some(_), Some(ended)) = (entry.step, entry.attempt, entry.ended_at) {
                let took = (ended - entry.started_at).to_std().unwrap_or_default();
                metrics.saga_step(&self.saga.plan.steps[step].action, entry.outcome, took);
            }
        }
    }
}

/// What a project's activity is told of.
pub fn activities(changes: &Changes) -> Vec<&'static str> {
    let told = |change: &Transition| match change {
        Transition::Saga { status: SagaStatus::Running, previous: SagaStatus::Pending, .. } => Some("saga.started"),
        Transition::Saga { status: SagaStatus::Completed, .. } => Some("saga.completed"),
        Transition::Saga { status: SagaStatus::Failed, .. } => Some("saga.failed"),
        Transition::Saga { status: SagaStatus::Compensated, .. } => Some("saga.compensated"),
        _ => None,
    };
    changes.transitions.iter().filter_map(told).collect()
}

fn lines(write: &Write) -> i32 {
    i32::try_from(write.log.len()).unwrap_or(0)
}

fn with_error(mut data: Value, error: Option<&str>) -> Value {
    if let Some(error) = error {
        data["error"] = error.into();
    }
    data
}

fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// As the database takes it.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn log_row(entry: &crate::domain::saga::Entry) -> LogRow {
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    LogRow {
        step: entry.step.map(number),
        attempt: entry.attempt,
        started_at: entry.started_at,
        ended_at: entry.ended_at,
        by: entry.by,
        outcome: entry.outcome.to_owned(),
        error: entry.error.as_deref().map(plain),
    }
}

fn step_row(row: &Row, n: usize, step: &Step) -> StepRow {
    let undo = step.undo.as_ref();
    StepRow {
        saga_id: row.id,
        n: i32::try_from(n).unwrap_or(i32::MAX),
        generation: step.generation,
        attempt: step.attempt,
        failures: step.failures,
        cut_offs: step.cut_offs,
        retry_count: step.retry_count,
        undo_attempts: undo.map(|undo| undo.attempts),
        undo_failures: undo.map(|undo| undo.failures),
        undo_cut_offs: undo.map(|undo| undo.cut_offs),
        doubtful: step.doubtful,
        due_at: step.due_at,
        started_at: step.started_at,
        attempt_at: step.attempt_at,
        completed_at: step.completed_at,
        undo_due_at: undo.and_then(|undo| undo.due_at),
        undo_at: undo.and_then(|undo| undo.attempt_at),
        status: step.status,
        undo_status: undo.map(|undo| undo.status),
        error: step.error.as_deref().map(plain),
        undo_error: undo.and_then(|undo| undo.error.as_deref()).map(plain),
        note: step.note.as_ref().map(Value::to_string),
        output: step.output.as_ref().map(Value::to_string),
    }
}

/// All steps of a saga: those that were touched, and the others as they begin.
pub fn steps(count: usize, touched: Vec<StepRow>) -> Result<Vec<Step>> {
    let mut steps = vec![Step::default(); count];
    for row in touched {
        let at = usize::try_from(row.n).unwrap_or(usize::MAX);
        if let Some(step) = steps.get_mut(at) {
            *step = step_of(row)?;
        }
    }
    Ok(steps)
}

fn step_of(row: StepRow) -> Result<Step> {
    let json = |text: Option<String>| -> Result<Option<Value>> {
        text.map(|text| serde_json::from_str(&text)).transpose().map_err(Error::internal)
    };
    let undo = row.undo_status.map(|status| UndoState {
        status,
        attempts: row.undo_attempts.unwrap_or(0),
        failures: row.undo_failures.unwrap_or(0),
        cut_offs: row.undo_cut_offs.unwrap_or(0),
        due_at: row.undo_due_at,
        attempt_at: row.undo_at,
        error: row.undo_error,
    });
    Ok(Step {
        status: row.status,
        generation: row.generation,
        attempt: row.attempt,
        failures: row.failures,
        cut_offs: row.cut_offs,
        doubtful: row.doubtful,
        retry_count: row.retry_count,
        output: json(row.output)?,
        error: row.error,
        due_at: row.due_at,
        started_at: row.started_at,
        attempt_at: row.attempt_at,
        completed_at: row.completed_at,
        note: json(row.note)?,
        undo,
    })
}

fn planned(row: &Row, plan: &PlanRow, actions: &Registry) -> Result<Plan> {
    let specs: Vec<StepSpec> = serde_json::from_str(&plan.steps).map_err(Error::internal)?;
    let vars: BTreeMap<String, String> = serde_json::from_str(&plan.vars).map_err(Error::internal)?;
    let graph = Graph::of(&specs).map_err(|cyclic| Error::internal(cyclic.cycle.join(" -> ")))?;
    let mut steps = Vec::with_capacity(specs.len());
    for (at, spec) in specs.into_iter().enumerate() {
        steps.push(planned_step(row, spec, graph.needs(at).to_vec(), graph.needed_by(at).to_vec(), actions)?);
    }
    let timeout = plan.timeout_ms.map(TimeDelta::milliseconds);
    Ok(Plan { id: row.id, steps, vars, on_failure: row.on_failure, timeout })
}

fn planned_step(
    row: &Row,
    spec: StepSpec,
    needs: Vec<usize>,
    needed_by: Vec<usize>,
    actions: &Registry,
) -> Result<PlannedStep> {
    let nature = actions.get(&spec.action).map_or(UNKNOWN, |action| action.nature());
    let when = spec.condition().map(Condition::parse).transpose().map_err(|error| Error::internal(error.message))?;
    let undo = match (spec.compensate, spec.compensate_config) {
        (Some(action), config) if !action.is_empty() => Some(Undo::By {
            nature: actions.get(&action).map_or(UNKNOWN, |action| action.nature()),
            action,
            config: config.map(Value::Object),
        }),
        _ => nature.undoes_itself.then_some(Undo::Itself),
    };
    let timeout = spec.timeout.as_deref().filter(|text| !text.is_empty()).map(durations::parse_positive);
    let timeout = timeout.transpose().map_err(Error::internal)?;
    Ok(PlannedStep {
        name: spec.name,
        action: spec.action,
        nature,
        needs,
        needed_by,
        config: Value::Object(spec.config.unwrap_or_default()),
        when,
        undo,
        policy: spec.retry_policy.unwrap_or_else(|| RetryPolicy::with_max_retries(i64::from(row.max_retries))),
        timeout: timeout.and_then(|timeout| TimeDelta::from_std(timeout).ok()),
        idempotent: spec.idempotent.unwrap_or(nature.idempotent),
    })
}

//! A change of a job's state, written down: the row, the events of its log, the webhooks, in
//! the transaction of whoever changes it. The job's row is held.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Chunk, Conn, Job, Jobs, Owner, Result, Unshown, record, store};
use crate::domain::{
    artifact::{self, Artifact},
    delivery::Event,
    job::{self, Change, Happening, JobState, Moves},
};

/// With what a job ends.
#[derive(Default, Clone)]
pub struct Ending {
    /// The final object, as JSON.
    pub result: Option<Vec<u8>>,
    pub artifacts: Vec<Artifact>,
    pub error: Option<String>,
}

/// What is told once the change is durable.
#[must_use = "tell it after the commit"]
pub struct Told {
    unshown: Unshown,
    receiver: Option<String>,
}

impl Told {
    /// What else the same transaction wrote.
    pub fn join(&mut self, unshown: Unshown) {
        self.unshown.extend(unshown);
    }
}

impl Jobs {
    pub(super) fn decide(&self, job: &Job, happening: Happening) -> Option<Moves> {
        let most = i32::try_from(self.inner.parts.failures_max).unwrap_or(i32::MAX);
        job::decide(job.standing(), happening, most)
    }

    /// Writes the moves down; `job` becomes what it is afterwards.
    pub(super) async fn apply(&self, tx: &mut Conn, job: &mut Job, moves: &Moves, ending: Ending) -> Result<Told> {
        let now = self.inner.parts.clock.now();
        job.state = moves.now.state;
        job.attempt = moves.now.attempt;
        job.failures = moves.now.failures;
        if moves.now.started && job.started_at.is_none() {
            job.started_at = Some(now);
        }
        if job.state.is_ended() {
            job.completed_at = Some(now);
            job.error.clone_from(&ending.error);
        }
        let mut told = Told { unshown: Unshown::default(), receiver: None };
        let last = Last::of(job, &ending, &self.inner.parts.public_url);
        for change in &moves.changes {
            self.record(tx, job, change, &mut told).await?;
            let last = Some(&last).filter(|_| change.state.is_ended());
            self.put_webhook(tx, job, change, now, last, &mut told).await?;
        }
        if job.state.is_ended() {
            for (n, one) in (1..).zip(&ending.artifacts) {
                store::jobs::insert_artifact(tx, &job.id, n, &one.name, &one.content_type, &one.data).await?;
            }
            store::jobs::end(tx, job, ending.result.as_deref()).await?;
            self.inner.parts.metrics.job_ended(job.state.text());
        } else {
            store::jobs::set(tx, job).await?;
        }
        Ok(told)
    }

    /// After the commit.
    pub fn tell(&self, told: Told) {
        self.inner.parts.streams.show(told.unshown);
        if let Some(origin) = told.receiver {
            self.inner.parts.webhooks.wake(&origin);
        }
    }

    async fn record(&self, tx: &mut Conn, job: &Job, change: &Change, told: &mut Told) -> Result<()> {
        let owner = Owner::new(job.stream, &job.id);
        let mut data = state_event(change.state, Some(change.previous), change.attempt);
        let last = change.state.is_ended();
        if let Some(error) = job.error.as_ref().filter(|_| last) {
            data["error"] = error.as_str().into();
        }
        let mut bodies = vec![record::json(if last { "complete" } else { "state" }, &data, last)];
        if change.resets {
            bodies.push(record::json("reset", &json!({"attempt": change.attempt}), false));
        }
        for body in bodies {
            if let Some(n) = store::streams::append_one(tx, owner.key, &body, last).await? {
                told.unshown.add(Chunk::own(owner.clone(), n, n, body.into()));
            }
        }
        Ok(())
    }

    async fn put_webhook(
        &self,
        tx: &mut Conn,
        job: &mut Job,
        change: &Change,
        now: DateTime<Utc>,
        last: Option<&Last>,
        told: &mut Told,
    ) -> Result<()> {
        if job.webhook_url.is_none() {
            return Ok(());
        }
        let event = Event {
            id: Uuid::now_v7(),
            job_id: &job.id,
            state: change.state,
            previous_state: Some(change.previous),
            timestamp: now,
            model: &job.model,
            attempt: change.attempt,
            sequence: job.sequence,
            result: last.and_then(|last| last.result.as_ref()),
            error: last.and(job.error.as_deref()),
            artifacts: last.map_or(&[], |last| &last.artifacts),
        };
        told.receiver = self.inner.parts.webhooks.put(tx, job, &event).await?;
        job.sequence += 1;
        Ok(())
    }
}

/// What the last webhook says beyond the others; large artifacts by absolute URL.
struct Last {
    result: Option<Value>,
    artifacts: Vec<Value>,
}

impl Last {
    fn of(job: &Job, ending: &Ending, base: &str) -> Self {
        let view = |one: &Artifact| {
            let url = format!("{base}/jobs/{}/artifacts/{}", job.id, one.name);
            artifact::view(&one.name, &one.content_type, one.data.len(), Some(&one.data), &url)
        };
        Self {
            result: ending.result.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok()),
            artifacts: ending.artifacts.iter().map(view).collect(),
        }
    }
}

/// Data of a `state` event.
pub fn state_event(state: JobState, previous: Option<JobState>, attempt: i32) -> Value {
    json!({"state": state.text(), "previous_state": previous.map_or("", JobState::text), "attempt": attempt})
}

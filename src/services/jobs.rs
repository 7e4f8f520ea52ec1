//! Jobs for models: taken only when they are durable, looked at, waited for, cancelled. What
//! runs them is `jobs/running.rs`; how a change is written down, `jobs/states.rs`.

mod reviewed;
mod running;
mod states;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use ulid::{Generator, Ulid};
use uuid::Uuid;

use super::{receipts::Answer, webhooks::Webhooks};
use crate::{
    database::{Conn, Db},
    domain::{
        artifact, chat,
        clock::Clock,
        delivery::Event,
        job::{Happening, Job, JobState},
        key::Key,
        scopes::Scope,
        task::{Lane, NewTask},
    },
    error::{Error, Kind, Result},
    metrics::Metrics,
    models::Upstreams,
    queue::Queue,
    store::{
        self,
        deliveries::Row as Delivery,
        jobs::{Filter, NewJob, NewWebhook, Whose},
    },
    streams::{Chunk, Found, Owner, Streams, Unshown, record},
};

pub use self::{
    running::{Runner, Seats},
    states::{Ending, Told},
};
pub use crate::store::jobs::ArtifactRow;

pub const RUN_TASK: &str = "job.run";
/// Carries a job out that is a review.
pub const REVIEW_TASK: &str = "review.run";

/// A job that nobody tells the end of is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// When to ask again where somebody has to change the configuration first.
const UNCONFIGURED: Duration = Duration::from_mins(1);
/// Jobs removed by one statement.
const REMOVED_AT_ONCE: i64 = 100;

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    /// For what works on tasks.
    pub core: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub metrics: Metrics,
    pub upstreams: Upstreams,
    pub webhooks: Webhooks,
    pub public_url: String,
    /// The server stops: nobody waits any longer.
    pub stop: CancellationToken,
    /// How long an ended job is kept.
    pub ttl: Duration,
    /// Of one attempt.
    pub timeout: Duration,
    /// Failures after which a job has failed.
    pub failures_max: u32,
}

#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    ids: Mutex<Generator>,
}

/// What a client asks for.
pub struct Submission {
    pub model: String,
    pub priority: i16,
    pub webhook_url: Option<String>,
    /// The request as it came.
    pub payload: bytes::Bytes,
}

/// A job with what a client sees of it beside its row.
pub struct Whole {
    pub job: Job,
    pub result: Option<Box<RawValue>>,
    pub artifacts: Vec<ArtifactRow>,
}

impl Jobs {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(Inner { parts, ids: Mutex::new(Generator::new()) }) }
    }

    /// Takes a job. It is durable, with its task and its first webhook, before this answers.
    ///
    /// # Errors
    /// 503 without an upstream, 404 for a model that none has, 400 for a webhook URL that is not allowed.
    pub async fn submit(&self, caller: &Key, new: Submission, answer: Answer<String>) -> Result<String> {
        let parts = &self.inner.parts;
        if !parts.upstreams.is_configured() {
            return Err(no_upstream());
        }
        let target = match &new.webhook_url {
            None => None,
            Some(url) => Some(parts.webhooks.check(url).await?),
        };
        if !parts.upstreams.knows(&new.model).await? {
            return Err(Error::not_found("model not found"));
        }
        let (id, now) = (self.next_id(), parts.clock.now());
        let task = run_task(&id, &new.model, new.priority);
        let first = record::json("state", &states::state_event(JobState::Queued, None, 0), false);
        let hook = target.as_ref().map(|target| (Uuid::now_v7(), target, target.origin()));
        let event = hook.as_ref().map(|(hook, ..)| Event {
            id: *hook,
            job_id: &id,
            state: JobState::Queued,
            previous_state: None,
            timestamp: now,
            model: &new.model,
            attempt: 0,
            sequence: 0,
            result: None,
            error: None,
            artifacts: &[],
        });
        let body = event.map(|event| event.body()).unwrap_or_default();
        let hook_task = hook.as_ref().map(|(hook, target, _)| Webhooks::task(target, *hook));
        let webhook = hook.as_ref().zip(hook_task.as_ref()).map(|((hook, target, origin), task)| NewWebhook {
            id: *hook,
            url: target.url().as_str(),
            origin,
            body: &body,
            task,
        });
        let job = NewJob {
            id: &id,
            created_by: caller.id,
            model: &new.model,
            priority: new.priority,
            payload: &new.payload,
            created_at: now,
            event: &first,
            task: &task,
            webhook,
        };
        self.insert(&job, &answer).await?;
        parts.queue.wake(Lane::Jobs, &task.queue);
        if let Some((.., origin)) = &hook {
            parts.webhooks.wake(origin);
        }
        Ok(id)
    }

    /// One statement is one transaction; a stored answer goes with it.
    async fn insert(&self, job: &NewJob<'_>, answer: &Answer<String>) -> Result<()> {
        let parts = &self.inner.parts;
        if !answer.has_slot() {
            store::jobs::insert(&mut parts.db.conn().await?, job).await?;
            return Ok(());
        }
        let mut tx = parts.db.begin().await?;
        store::jobs::insert(&mut tx, job).await?;
        answer.keep(&mut tx, &job.id.to_owned()).await?;
        Ok(tx.commit().await?)
    }

    /// Increasing within this process, inside one millisecond too.
    fn next_id(&self) -> String {
        let mut ids = self.inner.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.generate().unwrap_or_else(|_| Ulid::generate()).to_string()
    }

    /// The job, where the caller may read it.
    ///
    /// # Errors
    /// "job not found"; 403 without the scope.
    pub async fn get(&self, caller: &Key, id: &str) -> Result<Job> {
        let parts = &self.inner.parts;
        let found = store::jobs::find(&mut parts.db.conn().await?, id, self.past()).await?;
        let is_review = |job: &Job| {
            let seen = job.project_id.as_deref().is_some_and(|project| caller.sees(project));
            seen && caller.may(&[Scope::ProjectsRead])
        };
        if let Some(job) = found.as_ref().filter(|job| is_review(job)) {
            return Ok(job.clone());
        }
        needs(caller, Scope::JobsRead)?;
        found.filter(|job| is_own(caller, job)).ok_or_else(|| Error::not_found("job not found"))
    }

    /// The job, where the caller may change it.
    ///
    /// # Errors
    /// "job not found".
    pub async fn get_own(&self, caller: &Key, id: &str) -> Result<Job> {
        let found = store::jobs::find(&mut self.inner.parts.db.conn().await?, id, self.past()).await?;
        found.filter(|job| is_own(caller, job)).ok_or_else(|| Error::not_found("job not found"))
    }

    /// With its result and its artifacts.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn whole(&self, job: Job) -> Result<Whole> {
        let mut conn = self.inner.parts.db.conn().await?;
        self.whole_with(&mut conn, job).await
    }

    async fn whole_with(&self, c: &mut Conn, job: Job) -> Result<Whole> {
        if !job.state.is_ended() {
            return Ok(Whole { job, result: None, artifacts: Vec::new() });
        }
        let inline = i64::try_from(artifact::INLINE_MAX).unwrap_or(i64::MAX);
        let result = store::jobs::result(c, &job.id).await?;
        let result = result.map(|bytes| serde_json::from_slice(&bytes)).transpose().map_err(Error::internal)?;
        let artifacts = store::jobs::artifacts(c, &job.id, inline).await?;
        Ok(Whole { job, result, artifacts })
    }

    /// The job when it has ended, or as it is when `patience` is over.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn wait(&self, job: Job, patience: Duration) -> Result<Job> {
        let parts = &self.inner.parts;
        let until = tokio::time::Instant::now() + patience;
        let live = parts.streams.hub.join(job.stream);
        let mut bell = live.listen();
        let mut job = job;
        while !job.state.is_ended() && tokio::time::Instant::now() < until {
            let look = until.min(tokio::time::Instant::now() + LOOK);
            tokio::select! {
                () = parts.stop.cancelled() => return Ok(job),
                _rung_or_not = tokio::time::timeout_at(look, bell.changed()) => {}
            }
            bell.mark_unchanged();
            let found = store::jobs::find(&mut parts.db.conn().await?, &job.id, self.past()).await?;
            job = found.ok_or_else(|| Error::not_found("job not found"))?;
        }
        Ok(job)
    }

    /// Newest first, one more than `limit` where there are more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list(
        &self,
        caller: &Key,
        state: Option<JobState>,
        model: Option<&str>,
        before: Option<&str>,
        limit: i64,
    ) -> Result<Vec<Job>> {
        let whose = match (&caller.project_ids, caller.is_admin()) {
            (None, true) => Whose::All,
            (Some(projects), true) => Whose::OfAndProjects(caller.id, projects),
            (_, false) => Whose::Of(caller.id),
        };
        let models = model.map(|name| {
            let full = chat::model_name(name).into_owned();
            let short = full.strip_suffix(":latest").map(str::to_owned);
            std::iter::once(full).chain(short).collect()
        });
        let filter = Filter { whose, state, models };
        let mut conn = self.inner.parts.db.conn().await?;
        Ok(store::jobs::list(&mut conn, &filter, before, limit + 1, self.past()).await?)
    }

    /// Cancels it, wherever it runs: its worker hears of it by its log. One that ended stays as it is.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn cancel(&self, job: &Job, by: Option<Uuid>) -> Result<Job> {
        let parts = &self.inner.parts;
        let mut tx = parts.core.begin().await?;
        let mut job = store::jobs::lock(&mut tx, &job.id).await?.ok_or_else(|| Error::not_found("job not found"))?;
        let Some(moves) = self.decide(&job, Happening::Cancelled) else { return Ok(job) };
        let mut told = self.apply(&mut tx, &mut job, &moves, states::Ending::default()).await?;
        if job.project_id.is_some() {
            told.join(self.cancel_review(&mut tx, &job, by).await?);
        } else {
            store::tasks::cancel(&mut tx, RUN_TASK, &job.id).await?;
        }
        tx.commit().await?;
        self.tell(told);
        Ok(job)
    }

    /// Content type and bytes of an artifact.
    ///
    /// # Errors
    /// "artifact not found".
    pub async fn artifact(&self, job: &Job, name: &str) -> Result<(String, Vec<u8>)> {
        let found = store::jobs::artifact(&mut self.inner.parts.db.conn().await?, &job.id, name).await?;
        found.ok_or_else(|| Error::not_found("artifact not found"))
    }

    /// Its log, for whoever listens.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn log(&self, job: &Job) -> Result<Found> {
        let found = store::streams::find_by_key(&mut self.inner.parts.db.conn().await?, job.stream).await?;
        found.ok_or_else(|| Error::not_found("stream not found"))
    }

    /// # Errors
    /// Those of the database.
    pub async fn deliveries(&self, job: &Job) -> Result<Vec<Delivery>> {
        self.inner.parts.webhooks.of_job(job).await
    }

    /// # Errors
    /// "delivery not found".
    pub async fn redeliver(&self, job: &Job, id: Uuid, answer: &Answer<()>) -> Result<()> {
        self.inner.parts.webhooks.redeliver(job, id, async |tx| answer.keep(tx, &()).await).await
    }

    /// Removes jobs whose time is up.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn sweep(&self) -> Result<()> {
        loop {
            let mut tx = self.inner.parts.db.begin().await?;
            let past = store::jobs::lock_past(&mut tx, self.past(), REMOVED_AT_ONCE).await?;
            if past.is_empty() {
                return Ok(());
            }
            let gone = store::jobs::delete(&mut tx, &past).await?;
            tx.commit().await?;
            if gone == 0 {
                return Ok(());
            }
        }
    }

    /// Keeps the inventory of upstreams current.
    pub async fn refresh_inventory(&self) {
        self.inner.parts.upstreams.refresh_stale().await;
    }

    /// Whoever ended before this is shown no more.
    fn past(&self) -> DateTime<Utc> {
        let ttl = TimeDelta::from_std(self.inner.parts.ttl).unwrap_or(TimeDelta::MAX);
        self.inner.parts.clock.now().checked_sub_signed(ttl).unwrap_or(DateTime::UNIX_EPOCH)
    }
}

/// It made the job, or sees all of them.
fn is_own(caller: &Key, job: &Job) -> bool {
    let in_sight = match &job.project_id {
        None => !caller.is_bound(),
        Some(project) => caller.sees(project),
    };
    job.created_by == caller.id || (caller.is_admin() && in_sight)
}

/// The task that runs a job.
fn run_task(id: &str, model: &str, priority: i16) -> NewTask {
    let queue = chat::model_name(model).into_owned();
    NewTask { lane: Lane::Jobs, queue, priority, kind: RUN_TASK, subject: id.to_owned() }
}

fn needs(caller: &Key, scope: Scope) -> Result<()> {
    if caller.may(&[scope]) {
        return Ok(());
    }
    Err(Error::forbidden("this key lacks a scope that the route needs").detail("required_any", vec![scope.name()]))
}

/// The whole of `/api` and the taking of jobs need one.
pub fn no_upstream() -> Error {
    Error::new(Kind::Unavailable, "UPSTREAM_UNAVAILABLE", "no model upstream configured").retry_after(UNCONFIGURED)
}

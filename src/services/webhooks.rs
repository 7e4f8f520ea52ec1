//! State webhooks: written with the change that they tell of, sent at least once, a job's in
//! order. Each receiver has its own few calls at once and its own breaker, so that a slow or a
//! dead one delays nobody else.

mod receivers;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::receivers::{Place, Receivers};
use crate::{
    database::{Conn, Db},
    domain::{
        backoff, breaker,
        clock::Clock,
        delivery::{self, Attempt, DeliveryStatus, Event, Fate},
        egress::Target,
        job::Job,
        signing::Secrets,
        task::PRIORITY,
    },
    egress::{ANSWER_MAX, Call, Egress, Failure},
    error::{Error, Result},
    metrics::Metrics,
    queue::{Claimed, Group, Lane, NewTask, Perform, Queue, Room},
    store::{
        self,
        deliveries::{Outcome, Outgoing},
    },
};

pub const DELIVER_TASK: &str = "webhook.deliver";

/// An attempt takes so long at most, connecting and reading included.
const ATTEMPT: Duration = Duration::from_secs(15);
/// Outcomes written by one transaction, at most.
const OUTCOMES: usize = 128;
/// Where an attempt could not even be begun.
const AGAIN: Duration = Duration::from_secs(1);

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub metrics: Metrics,
    pub egress: Egress,
    pub secrets: Option<Secrets>,
    /// Before the first retry.
    pub backoff: Duration,
}

#[derive(Clone)]
pub struct Webhooks {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    receivers: Arc<Receivers>,
    outcomes: Group<Arc<Outcome>, bool>,
}

impl Webhooks {
    /// The service and the writer of its outcomes.
    pub fn new(parts: Parts) -> (Self, impl Future<Output = ()> + Send) {
        let (db, queue) = (parts.db.clone(), parts.queue.clone());
        let (outcomes, writing) = Group::new(OUTCOMES, move |items: &[Arc<Outcome>]| {
            let (db, queue, items) = (db.clone(), queue.clone(), items.to_vec());
            async move { write(&db, &queue, &items).await }
        });
        let receivers = Arc::new(Receivers::new(parts.clock.clone()));
        (Self { inner: Arc::new(Inner { parts, receivers, outcomes }) }, writing)
    }

    /// What is checked of a receiver's URL before a job is taken.
    ///
    /// # Errors
    /// 400 that begins "`state_webhook_url` is not allowed".
    pub async fn check(&self, url: &str) -> Result<Target> {
        let refused = |why| Error::invalid(format!("state_webhook_url is not allowed: {why}"));
        self.inner.parts.egress.check(url).await.map_err(refused)
    }

    /// The task that delivers.
    pub fn task(target: &Target, delivery: Uuid) -> NewTask {
        let (lane, queue) = (Lane::Webhooks, target.origin());
        NewTask { lane, queue, priority: PRIORITY, kind: DELIVER_TASK, subject: delivery.to_string() }
    }

    /// Puts a webhook in with the change of state that it tells of. The job is held.
    /// Call [`Webhooks::wake`] after the commit.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put(&self, tx: &mut Conn, job: &Job, event: &Event<'_>) -> Result<Option<String>> {
        let Some(url) = job.webhook_url.as_deref() else { return Ok(None) };
        let origin = Target::parse(url).map(|target| target.origin()).unwrap_or_default();
        let status = if job.webhook_gone { DeliveryStatus::Failed } else { DeliveryStatus::Pending };
        let new = store::deliveries::New {
            id: event.id,
            job_id: &job.id,
            sequence: event.sequence,
            state: event.state.text(),
            url,
            origin: &origin,
            status,
            body: &event.body(),
        };
        store::deliveries::insert(tx, &new, DELIVER_TASK).await?;
        Ok(Some(origin))
    }

    pub fn wake(&self, origin: &str) {
        self.inner.parts.queue.wake(Lane::Webhooks, origin);
    }

    /// By sequence.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn of_job(&self, job: &Job) -> Result<Vec<store::deliveries::Row>> {
        Ok(store::deliveries::of_job(&mut self.inner.parts.db.conn().await?, &job.id).await?)
    }

    /// Sends one once more, whatever became of it.
    ///
    /// # Errors
    /// Not found where the job has no such delivery.
    pub async fn redeliver(&self, job: &Job, id: Uuid, keep: impl AsyncFnOnce(&mut Conn) -> Result<()>) -> Result<()> {
        let parts = &self.inner.parts;
        let mut tx = parts.db.begin().await?;
        store::jobs::lock(&mut tx, &job.id).await?.ok_or_else(|| Error::not_found("job not found"))?;
        let origin = store::deliveries::renew(&mut tx, &job.id, id).await?;
        let queue = origin.ok_or_else(|| Error::not_found("delivery not found"))?;
        // An attempt under way is of before: what becomes of it says nothing about this one.
        let subject = id.to_string();
        store::tasks::cancel(&mut tx, DELIVER_TASK, &subject).await?;
        store::deliveries::release_one(&mut tx, &job.id, id, DELIVER_TASK).await?;
        keep(&mut tx).await?;
        tx.commit().await?;
        self.wake(&queue);
        Ok(())
    }

    /// The breakers of receivers that have failed lately.
    pub fn circuits(&self) -> Vec<(String, breaker::Snapshot)> {
        self.inner.receivers.circuits()
    }

    pub fn room(&self) -> Arc<dyn Room> {
        self.inner.receivers.clone()
    }

    /// Sends what was claimed together: read together, sent each in its own time.
    async fn deliver(self, tasks: Vec<(Claimed, Place)>, stop: CancellationToken) {
        let queue = &self.inner.parts.queue;
        let ids: Vec<Uuid> = tasks.iter().filter_map(|(task, _)| task.subject.parse().ok()).collect();
        let read = async { store::deliveries::outgoing(&mut self.inner.parts.db.conn().await?, &ids).await };
        let mut outgoing: HashMap<String, Outgoing> = match read.await {
            Ok(outgoing) => outgoing.into_iter().map(|one| (one.id.to_string(), one)).collect(),
            Err(error) => {
                tracing::warn!(%error, "webhooks could not be read, again shortly");
                return tasks.iter().for_each(|(task, _)| queue.give_back(task, AGAIN));
            }
        };
        for (task, place) in tasks {
            let (this, stop, one) = (self.clone(), stop.clone(), outgoing.remove(&task.subject));
            queue.attempts.spawn(async move {
                match one {
                    Some(one) => this.attempt(&task, one, stop).await,
                    // Removed, or sent by the task that was before this one.
                    None => drop(this.inner.parts.queue.done(&task).await),
                }
                drop(place);
            });
        }
    }

    /// One attempt, from the receiver's turn to the record of what became of it.
    async fn attempt(&self, task: &Claimed, outgoing: Outgoing, stop: CancellationToken) {
        let inner = &self.inner;
        let turn = tokio::select! {
            () = stop.cancelled() => None,
            turn = inner.receivers.turn(&task.queue) => turn,
        };
        let Some(turn) = turn else { return inner.parts.queue.give_back(task, Duration::ZERO) };
        if !inner.parts.queue.is_sure() {
            drop(turn);
            return inner.parts.queue.give_back(task, Duration::ZERO);
        }
        let at = inner.parts.clock.now();
        let began = std::time::Instant::now();
        let outcome = tokio::select! {
            () = stop.cancelled() => return inner.parts.queue.give_back(task, Duration::ZERO),
            outcome = self.send(&outgoing, at) => outcome,
        };
        turn.went(!matches!(outcome, delivery::Outcome::Failed(_)) && !is_server_error(&outcome));
        let recorded = self.outcome(task, &outgoing, outcome, at, began.elapsed());
        match inner.outcomes.put(Arc::new(recorded)).await {
            Ok(true) => {}
            Ok(false) => inner.parts.metrics.stale_write(DELIVER_TASK),
            Err(error) => tracing::debug!(%error, "an attempt was not recorded: it will be made again"),
        }
    }

    async fn send(&self, outgoing: &Outgoing, at: DateTime<Utc>) -> delivery::Outcome {
        let parts = &self.inner.parts;
        let target = match Target::parse(&outgoing.url) {
            Ok(target) => target,
            Err(refused) => return delivery::Outcome::Refused(refused.to_string()),
        };
        let headers = headers(outgoing, parts.secrets.as_ref(), at);
        let body = Bytes::from(outgoing.body.clone());
        let call = Call { method: Method::POST, target, headers, body, timeout: ATTEMPT, answer_max: ANSWER_MAX };
        match parts.egress.call(call).await {
            Ok(answer) => {
                let asked = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                let retry_after = asked.and_then(|text| backoff::retry_after(text, at));
                delivery::Outcome::Status { code: answer.status, retry_after }
            }
            Err(Failure::Refused(why)) => delivery::Outcome::Refused(why.to_string()),
            Err(failure) => delivery::Outcome::Failed(failure.to_string()),
        }
    }

    fn outcome(
        &self,
        task: &Claimed,
        outgoing: &Outgoing,
        outcome: delivery::Outcome,
        at: DateTime<Utc>,
        took: Duration,
    ) -> Outcome {
        let parts = &self.inner.parts;
        let retries = u32::try_from(outgoing.retries).unwrap_or(0);
        let fate = delivery::decide(&outcome, retries, parts.backoff, rand::random());
        let (status, again) = match fate {
            Fate::Delivered => (DeliveryStatus::Delivered, None),
            Fate::RetryAfter(pause) => (DeliveryStatus::Pending, Some(pause)),
            Fate::GivenUp { .. } | Fate::Gone => (DeliveryStatus::Failed, None),
        };
        parts.metrics.webhook(if again.is_some() { "retried" } else { status.text() });
        Outcome {
            task: task.id,
            fence: task.fence,
            delivery: outgoing.id,
            job_id: outgoing.job_id.clone(),
            attempt: Attempt::new(at, &outcome, took),
            status,
            again_in_s: again.map(|pause| pause.as_secs_f64()),
            next_attempt_at: again.map(|pause| at + TimeDelta::from_std(took + pause).unwrap_or_default()),
            gone: matches!(outcome, delivery::Outcome::Status { code: 410, .. }),
        }
    }
}

impl Perform for Webhooks {
    fn kinds(&self) -> &'static [&'static str] {
        &[DELIVER_TASK]
    }

    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        self.perform_all(vec![task], stop)
    }

    fn perform_all(self: Arc<Self>, tasks: Vec<Claimed>, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let enter = |task: Claimed| {
            let place = self.inner.receivers.enter(&task.queue);
            (task, place)
        };
        let tasks = tasks.into_iter().map(enter).collect();
        (*self).clone().deliver(tasks, stop).boxed()
    }

    fn in_batches(&self) -> bool {
        true
    }

    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, Result<()>> {
        async move {
            match task.subject.parse() {
                Ok(id) => self.give_up(&task, id).await,
                Err(_) => Ok(()),
            }
        }
        .boxed()
    }
}

impl Webhooks {
    /// Its senders kept dying.
    async fn give_up(&self, task: &Claimed, id: Uuid) -> Result<()> {
        let parts = &self.inner.parts;
        let found = store::deliveries::outgoing(&mut parts.db.conn().await?, &[id]).await?;
        let Some(outgoing) = found.into_iter().next() else { return Ok(()) };
        let at = parts.clock.now();
        let died = "the processes that sent it kept dying".to_owned();
        let outcome = self.outcome(task, &outgoing, delivery::Outcome::Refused(died), at, Duration::ZERO);
        self.inner.outcomes.put(Arc::new(outcome)).await.map(drop)
    }
}

fn is_server_error(outcome: &delivery::Outcome) -> bool {
    matches!(outcome, delivery::Outcome::Status { code, .. } if *code >= 500)
}

fn headers(outgoing: &Outgoing, secrets: Option<&Secrets>, at: DateTime<Utc>) -> HeaderMap {
    let (id, timestamp) = (outgoing.id.to_string(), at.timestamp());
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| {
        let value = HeaderValue::from_str(value).expect("ids, numbers and base64 are a header's characters");
        headers.insert(HeaderName::from_static(name), value);
    };
    put("content-type", "application/json");
    put("webhook-id", &id);
    put("webhook-timestamp", &timestamp.to_string());
    if let Some(secrets) = secrets {
        let signatures = secrets.sign(&id, timestamp, &outgoing.body);
        put("webhook-signature", &signatures.standard);
        put("x-foreman-signature", &signatures.foreman);
    }
    headers
}

/// Writes outcomes down, each with the end of its task, and lets the next webhooks of their jobs go.
async fn write(db: &Db, queue: &Queue, outcomes: &[Arc<Outcome>]) -> Result<Vec<bool>> {
    let jobs: Vec<String> = outcomes.iter().map(|outcome| outcome.job_id.clone()).collect();
    let ended: Vec<String> =
        outcomes.iter().filter(|one| one.again_in_s.is_none()).map(|one| one.job_id.clone()).collect();
    let mut tx = db.begin().await?;
    store::jobs::lock_all(&mut tx, &jobs).await?;
    let ours = store::deliveries::record(&mut tx, outcomes).await?;
    for gone in outcomes.iter().filter(|one| one.gone && ours.contains(&(one.task, one.fence))) {
        store::deliveries::forsake(&mut tx, &gone.job_id, gone.delivery).await?;
    }
    let next = store::deliveries::release_next(&mut tx, &ended, DELIVER_TASK).await?;
    tx.commit().await?;
    for origin in next {
        queue.wake(Lane::Webhooks, &origin);
    }
    if ended.len() < outcomes.len() {
        queue.wake_later();
    }
    Ok(outcomes.iter().map(|outcome| ours.contains(&(outcome.task, outcome.fence))).collect())
}

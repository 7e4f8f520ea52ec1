//! Running a job: claimed, sent to an upstream that has the model, its tokens stored as they
//! come and then shown, its end written down with the end of its task. Whoever lost the claim
//! (a frozen process, a cancelled job) can write nothing any more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Happening, Job, Jobs, Owner, RUN_TASK, Result, record, states::Ending, store};
use crate::{
    domain::{
        artifact, chat,
        job::{Retry, Then},
        stream::{Append, Piece},
        task::{DEATHS_MAX, Lane},
    },
    models::{CallError, ChatStream, Seat, Step, Upstreams},
    queue::{Claimed, Perform, Room, stale},
    streams::Fenced,
};

/// Pause before a step that failed is taken again.
const RETRY: Duration = Duration::from_millis(300);
/// Pause before another attempt where this one could not even begin.
const LATER: Duration = Duration::from_secs(1);

/// Runs jobs.
pub struct Runner {
    jobs: Jobs,
}

/// A claim that has become a running job.
struct Run {
    job: Job,
    task: Claimed,
    payload: Vec<u8>,
    /// Number of the last event of its log that this run knows.
    n: AtomicI64,
}

/// How an attempt ended.
enum Outcome {
    Answered(Value),
    Failed(CallError),
    /// Told to stop, in good order or because the lease is gone.
    Stopped,
    /// Somebody else has it, or it was cancelled.
    Lost,
}

impl Runner {
    pub fn new(jobs: Jobs) -> Self {
        Self { jobs }
    }

    async fn run(&self, task: Claimed, seat: Seat, stop: CancellationToken) {
        let queue = &self.jobs.inner.parts.queue;
        let run = match self.begin(&task).await {
            Ok(Some(run)) => run,
            Ok(None) => {
                let _gone_either_way = queue.done(&task).await;
                return;
            }
            Err(error) => {
                tracing::warn!(%error, job.id = task.subject, "a job could not begin, again shortly");
                return queue.give_back(&task, LATER);
            }
        };
        let outcome = self.attempt(&run, &seat, &stop).await;
        drop(seat);
        let Some((happening, ending)) = self.conclude(&run, outcome) else {
            self.jobs.inner.parts.metrics.stale_write(RUN_TASK);
            tracing::info!(job.id = run.job.id, "this job was cancelled, or another process has it");
            // Unless only an answer of the database was lost: then it begins again.
            return queue.give_back(&run.task, Duration::ZERO);
        };
        self.end(&run, happening, ending, &stop).await;
    }

    /// Marks it running, on the rescue path queued before that; takes its log over.
    async fn begin(&self, task: &Claimed) -> Result<Option<Run>> {
        let parts = &self.jobs.inner.parts;
        let mut tx = parts.core.begin().await?;
        let Some(mut job) = store::jobs::lock(&mut tx, &task.subject).await? else { return Ok(None) };
        let Some(moves) = self.jobs.decide(&job, Happening::Claimed) else { return Ok(None) };
        parts.queue.hold(&mut tx, task).await?;
        let told = self.jobs.apply(&mut tx, &mut job, &moves, Ending::default()).await?;
        let tail = store::streams::take_over(&mut tx, job.stream, task.fence).await?.ok_or_else(stale)?;
        let payload = store::jobs::payload(&mut tx, &job.id).await?.unwrap_or_default();
        tx.commit().await?;
        self.jobs.tell(told);
        Ok(Some(Run { job, task: task.clone(), payload, n: AtomicI64::new(tail.last_n) }))
    }

    /// The conversation with upstream: until its end, the stop, or the loss of the claim.
    async fn attempt(&self, run: &Run, seat: &Seat, stop: &CancellationToken) -> Outcome {
        let body = match chat::for_job(&run.payload) {
            Ok(body) => Bytes::from(body),
            Err(error) => return Outcome::Failed(CallError::never(error.to_string())),
        };
        let conversation = async {
            if !self.jobs.inner.parts.queue.is_sure() {
                return Outcome::Lost;
            }
            let mut stream = match seat.chat(body, self.jobs.inner.parts.timeout).await {
                Ok(stream) => stream,
                Err(error) => return Outcome::Failed(error),
            };
            self.listen(run, &mut stream).await
        };
        tokio::select! {
            () = stop.cancelled() => Outcome::Stopped,
            () = self.loses(run) => Outcome::Lost,
            outcome = conversation => outcome,
        }
    }

    async fn listen(&self, run: &Run, stream: &mut ChatStream<'_>) -> Outcome {
        loop {
            match stream.next().await {
                Ok(Some(Step::Tokens(tokens))) => {
                    if self.store(run, &tokens).await.is_err() {
                        return Outcome::Lost;
                    }
                }
                Ok(Some(Step::Done(answer))) => return Outcome::Answered(answer),
                Ok(None) => return Outcome::Failed(CallError::broken()),
                Err(error) => return Outcome::Failed(error),
            }
        }
    }

    async fn store(&self, run: &Run, tokens: &[String]) -> Result<(), Fenced> {
        let mut data = Vec::new();
        for token in tokens {
            data.extend_from_slice(&record::json("token", &json!({"text": token}), false));
        }
        let events = i64::try_from(tokens.len()).unwrap_or(0);
        let base = run.n.fetch_add(events, Ordering::AcqRel);
        let append = Append {
            owner: Owner::new(run.job.stream, &run.job.id),
            parent: None,
            fence: run.task.fence,
            base,
            out_base: 0,
            err_base: 0,
            pieces: vec![Piece { data: data.into(), events, out_bytes: 0, err_bytes: 0 }],
        };
        self.jobs.inner.parts.streams.writer.append(append).await
    }

    /// Resolves when the claim is no more. An event in its log that is not this run's own is the
    /// sign to look: it was cancelled, or it runs elsewhere.
    async fn loses(&self, run: &Run) {
        let parts = &self.jobs.inner.parts;
        let live = parts.streams.hub.join(run.job.stream);
        let mut bell = live.listen();
        loop {
            let _rings_as_long_as_it_is_held = bell.changed().await;
            if *bell.borrow_and_update() <= run.n.load(Ordering::Acquire) {
                continue;
            }
            // The log of a cancelled job does not ring again: a look that fails is taken again.
            loop {
                let looked =
                    async { store::tasks::is_held(&mut parts.core.conn().await?, run.task.id, run.task.fence).await };
                match looked.await {
                    Ok(true) => break,
                    Ok(false) => return,
                    Err(error) => tracing::debug!(%error, job.id = run.job.id, "a claim could not be looked at"),
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// What the outcome means for the job; nothing where it is not this run's any more.
    fn conclude(&self, run: &Run, outcome: Outcome) -> Option<(Happening, Ending)> {
        let none = Ending::default();
        Some(match outcome {
            Outcome::Lost => return None,
            Outcome::Stopped => (Happening::GivenBack, none),
            Outcome::Answered(answer) => {
                let split = artifact::split_result(answer);
                let result = split.result.to_string().into_bytes();
                (Happening::Answered, Ending { result: Some(result), artifacts: split.artifacts, error: None })
            }
            // The inventory was wrong: another upstream has the model.
            Outcome::Failed(error) if error.model_missing && self.jobs.inner.parts.upstreams.has(&run.job.model) => {
                (Happening::GivenBack, none)
            }
            Outcome::Failed(error) => {
                let retry = error.retry.map(|after| Retry { after, unit: rand::random() });
                (Happening::Failed { retry }, Ending { error: Some(error.message.replace('\0', "")), ..none })
            }
        })
    }

    /// Writes the end down, as often as it takes while the database is away and the claim stands.
    async fn end(&self, run: &Run, happening: Happening, ending: Ending, stop: &CancellationToken) {
        loop {
            match self.try_end(run, happening, &ending).await {
                Ok(()) => return,
                Err(error) if error.hidden_cause().is_none() => {
                    self.jobs.inner.parts.metrics.stale_write(RUN_TASK);
                    return tracing::info!(job.id = run.job.id, "the end of a job was written by another");
                }
                Err(error) => tracing::warn!(%error, job.id = run.job.id, "a job's end is not stored yet"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn try_end(&self, run: &Run, happening: Happening, ending: &Ending) -> Result<()> {
        let parts = &self.jobs.inner.parts;
        let mut tx = parts.core.begin().await?;
        let mut job = store::jobs::lock(&mut tx, &run.job.id).await?.ok_or_else(stale)?;
        let moves = self.jobs.decide(&job, happening).ok_or_else(stale)?;
        match moves.then {
            Then::Again(pause) => parts.queue.put_back(&mut tx, &run.task, pause).await?,
            Then::Run | Then::End => parts.queue.finish(&mut tx, &run.task).await?,
        }
        let told = self.jobs.apply(&mut tx, &mut job, &moves, ending.clone()).await?;
        tx.commit().await?;
        self.jobs.tell(told);
        match moves.then {
            Then::Again(pause) if pause.is_zero() => parts.queue.wake(Lane::Jobs, &run.task.queue),
            Then::Again(_) => parts.queue.wake_later(),
            Then::Run | Then::End => {}
        }
        Ok(())
    }

    /// Its workers kept dying; the task is put aside after this.
    async fn give_up(&self, task: &Claimed) -> Result<()> {
        let parts = &self.jobs.inner.parts;
        let mut tx = parts.core.begin().await?;
        let Some(mut job) = store::jobs::lock(&mut tx, &task.subject).await? else { return Ok(()) };
        let Some(moves) = self.jobs.decide(&job, Happening::Parked) else { return Ok(()) };
        parts.queue.hold(&mut tx, task).await?;
        let error = Some(format!("{DEATHS_MAX} workers in a row died while they ran it"));
        let told = self.jobs.apply(&mut tx, &mut job, &moves, Ending { error, ..Ending::default() }).await?;
        tx.commit().await?;
        self.jobs.tell(told);
        Ok(())
    }
}

impl Perform for Runner {
    fn kinds(&self) -> &'static [&'static str] {
        &[RUN_TASK]
    }

    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let seat = self.jobs.inner.parts.upstreams.seat(&task.queue);
        async move {
            match seat {
                Some(seat) => self.run(task, seat, stop).await,
                None => self.jobs.inner.parts.queue.give_back(&task, RETRY),
            }
        }
        .boxed()
    }

    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, Result<()>> {
        async move { self.give_up(&task).await }.boxed()
    }
}

/// The seats of this process as room for jobs.
pub struct Seats {
    upstreams: Upstreams,
    freed: Arc<Notify>,
}

impl Seats {
    pub fn new(upstreams: Upstreams) -> Self {
        Self { freed: upstreams.freed(), upstreams }
    }
}

impl Room for Seats {
    fn total(&self) -> usize {
        self.upstreams.total_free()
    }

    fn of(&self, queues: &[String]) -> Vec<usize> {
        self.upstreams.room(queues)
    }

    fn freed(&self) -> &Notify {
        &self.freed
    }
}

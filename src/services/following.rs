//! Following a command: from its supervisor's files into its log, whoever started it.
//! The attempt takes the log over under its fence, reads on after the last stored byte,
//! stores in group commits, and at the end writes state, last event and activity in one
//! transaction with the end of its task.

mod pump;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::pump::{Pump, Pumped};
use super::projects::{record_activity, stamp};
use crate::{
    database::Db,
    domain::{
        clock::Clock,
        command::{Command, CommandStatus, EndAsked, Ended, Launch, Termination},
    },
    error::{Error, Kind, Result},
    metrics::Metrics,
    queue::{Claimed, Perform, Queue},
    runtime::{Handle, Place},
    store,
    streams::{Chunk, Owner, Streams, Unshown, record},
};

pub const FOLLOW_TASK: &str = "command.follow";

/// Pause before a step that failed is taken again.
const RETRY: Duration = Duration::from_millis(300);
/// Pause before another attempt is made.
const LATER: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Following {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    clock: Clock,
    queue: Queue,
    streams: Streams,
    runtime: Place,
    metrics: Metrics,
}

impl Following {
    pub fn new(db: Db, clock: Clock, queue: Queue, streams: Streams, runtime: Place, metrics: Metrics) -> Self {
        Self { inner: Arc::new(Inner { db, clock, queue, streams, runtime, metrics }) }
    }

    /// Starts an attempt in the background; `launch` where the command was not started yet.
    pub fn begin(&self, command: Command, task: Claimed, launch: Option<Launch>) {
        let following = self.clone();
        let stop = self.inner.queue.standing().child_token();
        self.inner.queue.attempts.spawn(async move { following.attempt(command, task, launch, stop).await });
    }

    async fn attempt(&self, command: Command, task: Claimed, launch: Option<Launch>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            outcome = self.carry(&command, &task, launch) => match outcome {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::Unavailable && error.hidden_cause().is_none() => {
                    self.inner.metrics.stale_write(FOLLOW_TASK);
                    tracing::info!(command.id = command.command_id, "another process follows this command now");
                    // Unless only an answer of the database was lost: then it is followed again.
                    self.inner.queue.give_back(&task, Duration::ZERO);
                }
                Err(error) => self.give_back(&task, &error),
            }
        }
    }

    /// An attempt that failed here may go well elsewhere, or a little later.
    fn give_back(&self, task: &Claimed, error: &Error) {
        tracing::error!(%error, task.subject, "a command could not be followed, again shortly");
        self.inner.queue.give_back(task, LATER);
    }

    async fn carry(&self, command: &Command, task: &Claimed, launch: Option<Launch>) -> Result<()> {
        let handle = handle(command, launch.as_ref());
        let ended = match self.start(&handle, launch).await? {
            Some(ended) => ended,
            None => tokio::join!(self.pump(command, task, &handle), self.end_if_asked(&handle)).0?,
        };
        self.finish(command, task, &ended).await?;
        self.inner.runtime.forget(&handle).await;
        Ok(())
    }

    /// Its end may have been asked for while it was being started, when there was nobody to ask.
    async fn end_if_asked(&self, handle: &Handle) {
        let asked = async { store::commands::asked_ends(&mut self.inner.db.conn().await?, &[handle.key]).await };
        for (_, reason) in asked.await.unwrap_or_default() {
            if let Err(error) = self.inner.runtime.end(handle, EndAsked::parse(&reason)).await {
                tracing::warn!(%error, command.id = handle.command_id, "a command was not asked to end");
            }
        }
    }

    /// Starts the command where that was not done yet. One that never will is at its end; an error says that
    /// nobody knows, and that the same is to be asked again.
    async fn start(&self, handle: &Handle, launch: Option<Launch>) -> Result<Option<Ended>> {
        let Some(launch) = launch else { return Ok(None) };
        let Err(error) = self.inner.runtime.launch(handle, &launch).await else { return Ok(None) };
        let termination = match error.kind() {
            Kind::Unavailable => return Err(error),
            Kind::Gone => Termination::PodLost,
            Kind::Timeout => Termination::Timeout,
            _ => Termination::StartFailed,
        };
        tracing::info!(%error, command.id = handle.command_id, "a command was not started");
        let message = (termination == Termination::StartFailed).then(|| error.message().to_owned());
        Ok(Some(Ended { message, ..Ended::without_code(termination, self.inner.clock.now()) }))
    }

    /// Copies output until the command's end is known and all of it is stored.
    async fn pump(&self, command: &Command, task: &Claimed, handle: &Handle) -> Result<Ended> {
        let tail = self.persist(|| self.take_over(command.stream, task.fence)).await?;
        let parent = self.parent(command).await?;
        let follow = self.inner.runtime.follow(handle, positive(tail.out_bytes), positive(tail.err_bytes))?;
        let owner = Owner::new(command.stream, &command.command_id);
        let pump = Pump::new(self.inner.streams.writer.clone(), owner, parent, task.fence, &tail);
        match pump.run(follow).await? {
            Pumped::Ended(ended) => Ok(ended),
            Pumped::Fenced => Err(crate::queue::stale()),
        }
    }

    async fn take_over(&self, stream: i64, fence: i64) -> Result<store::streams::Tail> {
        let mut conn = self.inner.db.conn().await?;
        store::streams::take_over(&mut conn, stream, fence).await?.ok_or_else(crate::queue::stale)
    }

    /// The session's log, where the command is in one.
    async fn parent(&self, command: &Command) -> Result<Option<Owner>> {
        let Some(session) = command.session_id else { return Ok(None) };
        let name = session.to_string();
        let mut conn = self.inner.db.conn().await?;
        let log = store::streams::find(&mut conn, &command.project_id, store::streams::Kind::Session, &name).await?;
        Ok(log.map(|log| log.owner))
    }

    /// The end, in one transaction; tried for as long as the database is away.
    async fn finish(&self, command: &Command, task: &Claimed, ended: &Ended) -> Result<()> {
        let unshown = self.persist(|| self.try_finish(command, task, ended)).await?;
        self.inner.streams.show(unshown);
        let took = (ended.at - command.started_at).to_std().unwrap_or_default();
        let status = if ended.status() == CommandStatus::Lost { "lost" } else { ended.termination.text() };
        self.inner.metrics.command_ended(&command.project_id, command.kind.text(), status, took);
        Ok(())
    }

    async fn try_finish(&self, command: &Command, task: &Claimed, ended: &Ended) -> Result<Unshown> {
        let inner = &self.inner;
        let parent = self.parent(command).await?;
        let mut tx = inner.db.begin().await?;
        inner.queue.finish(&mut tx, task).await?;
        store::commands::end(&mut tx, command.stream, ended).await?;
        if let Some(session) = command.session_id {
            store::sessions::touch(&mut tx, session, inner.clock.now()).await?;
        }
        let mut unshown = self.last_event(&mut tx, command, parent, ended).await?;
        let mut data = json!({"type": "command.ended", "id": command.command_id, "at": stamp(&inner.clock),
                              "termination": ended.termination.text(), "exit_code": ended.exit_code});
        if let Some(session) = command.session_id {
            data["session_id"] = session.to_string().into();
        }
        unshown.extend(record_activity(&mut tx, &inner.streams, &command.project_id, &data).await?);
        tx.commit().await?;
        Ok(unshown)
    }

    /// Ends the command's log; in its session's it is an event like any other.
    async fn last_event(
        &self,
        tx: &mut crate::database::Conn,
        command: &Command,
        parent: Option<Owner>,
        ended: &Ended,
    ) -> Result<Unshown> {
        let (name, data) = ended.event(command.started_at);
        let owner = Owner::new(command.stream, &command.command_id);
        let body = record::json(name, &data, true);
        let mut unshown = Unshown::default();
        let Some(n) = store::streams::append_one(tx, owner.key, &body, true).await? else { return Ok(unshown) };
        unshown.add(Chunk::own(owner.clone(), n, n, body.clone().into()));
        if let Some(parent) = parent
            && let Some(at) = store::streams::refer(tx, parent.key, owner.key, n, n).await?
        {
            unshown.add(Chunk::of_command(parent, at, at, body.into(), owner.name));
        }
        Ok(unshown)
    }

    /// Takes a step again while the database is away. A stale fence is no outage.
    async fn persist<T, F: Future<Output = Result<T>>>(&self, step: impl Fn() -> F) -> Result<T> {
        loop {
            match step().await {
                Err(error) if error.hidden_cause().is_some() => {
                    tracing::warn!(%error, "a command's state is not stored yet, again shortly");
                    tokio::time::sleep(RETRY).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn resume(&self, task: Claimed, stop: CancellationToken) -> Result<()> {
        let stream: i64 = task.subject.parse().map_err(Error::internal)?;
        let mut conn = self.inner.db.conn().await?;
        let found = store::commands::find_by_stream(&mut conn, stream).await?;
        let Some(command) = found.filter(|command| command.status == CommandStatus::Running) else {
            store::tasks::finish(&mut conn, task.id, task.fence).await?;
            return Ok(());
        };
        let (launch, asked) = store::commands::launch(&mut conn, stream).await?.unwrap_or_default();
        drop(conn);
        let launch = launch.map(|launch| launch.0);
        if let Some(asked) = asked {
            self.inner.runtime.end(&handle(&command, launch.as_ref()), EndAsked::parse(&asked)).await?;
        }
        self.attempt(command, task, launch, stop).await;
        Ok(())
    }
}

impl Perform for Following {
    fn kinds(&self) -> &'static [&'static str] {
        &[FOLLOW_TASK]
    }

    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        async move {
            let claimed = task.clone();
            if let Err(error) = self.resume(task, stop).await {
                self.give_back(&claimed, &error);
            }
        }
        .boxed()
    }

    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, Result<()>> {
        async move {
            tracing::error!(task.subject, "a command is no longer followed: its followers kept dying");
            Ok(())
        }
        .boxed()
    }
}

fn handle(command: &Command, launch: Option<&Launch>) -> Handle {
    Handle {
        project: command.project_id.clone(),
        command_id: command.command_id.clone(),
        key: command.stream,
        place: launch.and_then(|launch| launch.place.clone()),
    }
}

fn positive(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

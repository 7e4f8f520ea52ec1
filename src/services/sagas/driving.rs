//! Driving sagas: whoever has claimed one decides, writes the decision down, makes the attempts
//! that it asks for, and decides again when one ends, when time has passed, or when somebody else
//! has changed the saga. At rest, or waiting for long, it is in nobody's memory.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    LOOK, Result, Sagas,
    flight::{Flight, Landed},
    in_hand::InHand,
    record::Held,
    room::{Place, Room},
    store, turns,
};
use crate::{
    domain::{
        saga::{Changes, Happening, SagaStatus},
        task::DEATHS_MAX,
    },
    queue::{Claimed, Perform, stale},
    store::sagas::Then,
    streams::hub::Live,
};

/// Pause before a step of this driver that failed is taken again.
const RETRY: Duration = Duration::from_millis(300);
/// Pause before another driver tries where this one could not.
const LATER: Duration = Duration::from_secs(5);
/// Until one that cannot be read is looked at again.
const UNREADABLE: Duration = Duration::from_mins(1);
/// What is left going on outside by attempts that were given up is ended in this time.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// Waits up to this long are waited for in memory.
const SHORT: f64 = 2.0;
/// What attempts that end soon get at an orderly stop.
const WRAP_UP: Duration = Duration::from_secs(5);

/// Carries sagas through.
pub struct Driver {
    sagas: Sagas,
    room: Arc<Room>,
}

/// Why a driver lets go of a saga.
enum Over {
    /// It rests, or waits for a time.
    Rests,
    /// Somebody else has it.
    Lost,
    /// It is given back as it is.
    Given,
    /// What was decided could not be stored.
    Failed,
}

impl Driver {
    pub fn new(sagas: Sagas) -> Self {
        Self { sagas, room: Arc::default() }
    }

    pub fn room(&self) -> Arc<Room> {
        self.room.clone()
    }

    /// Drives what was claimed together: read together, driven each by itself.
    async fn take(self: Arc<Self>, tasks: Vec<(Claimed, Place)>, stop: CancellationToken) {
        let queue = &self.sagas.inner.parts.queue;
        let mut held =
            match self.sagas.load(tasks.iter().filter_map(|(task, _)| task.subject.parse().ok()).collect()).await {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(%error, "sagas could not be read, again shortly");
                    return tasks.iter().for_each(|(task, _)| queue.give_back(task, RETRY));
                }
            };
        for (task, place) in tasks {
            let found = task.subject.parse().ok().and_then(|id: Uuid| held.remove(&id));
            let (this, stop) = (self.clone(), stop.clone());
            queue.attempts.spawn(async move {
                match found {
                    Some(Ok(held)) => this.drive(held, task, stop).await,
                    Some(Err(error)) => {
                        tracing::error!(%error, saga.id = task.subject, "a saga cannot be read");
                        this.sagas.inner.parts.queue.give_back(&task, UNREADABLE);
                    }
                    // Deleted.
                    None => drop(this.sagas.inner.parts.queue.done(&task).await),
                }
                drop(place);
            });
        }
    }

    async fn drive(&self, held: Held, task: Claimed, stop: CancellationToken) {
        let mut drive = Drive {
            sagas: &self.sagas,
            id: held.row.id,
            flight: Flight::default(),
            held,
            task,
            seen: 0,
            live: None,
            in_hand: None,
        };
        match drive.run(&stop).await {
            Over::Rests => {}
            Over::Lost => {
                self.sagas.inner.parts.metrics.stale_write(super::RUN_TASK);
                // Unless only an answer of the database was lost: then it is taken again.
                self.sagas.inner.parts.queue.give_back(&drive.task, Duration::ZERO);
            }
            Over::Given => self.sagas.inner.parts.queue.give_back(&drive.task, Duration::ZERO),
            Over::Failed => self.sagas.inner.parts.queue.give_back(&drive.task, LATER),
        }
    }

    /// Its drivers kept dying; the task is put aside after this.
    async fn give_up(&self, task: &Claimed) -> Result<()> {
        let Ok(id) = task.subject.parse::<Uuid>() else { return Ok(()) };
        let Some(held) = self.sagas.load(vec![id]).await?.remove(&id) else { return Ok(()) };
        let mut held = held?;
        let parts = &self.sagas.inner.parts;
        let why = format!("{DEATHS_MAX} processes in a row died while they drove it");
        let changes = held.saga.decide(Happening::GivenUp(why), parts.clock.now(), rand::random());
        let write = held.write(&changes, parts.clock.now(), Some((task.id, task.fence)), Then::Finish);
        self.sagas.write(&mut held, &changes, write).await?.ok_or_else(stale).map(drop)
    }
}

impl Perform for Driver {
    fn kinds(&self) -> &'static [&'static str] {
        &[super::RUN_TASK]
    }

    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        self.perform_all(vec![task], stop)
    }

    fn perform_all(self: Arc<Self>, tasks: Vec<Claimed>, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let tasks = tasks.into_iter().map(|task| (task, self.room.enter())).collect();
        self.take(tasks, stop).boxed()
    }

    fn in_batches(&self) -> bool {
        true
    }

    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, Result<()>> {
        async move { self.give_up(&task).await }.boxed()
    }
}

/// One saga in the hands of this process.
struct Drive<'a> {
    sagas: &'a Sagas,
    id: Uuid,
    held: Held,
    task: Claimed,
    flight: Flight,
    /// Number of the last event of its log that this driver wrote.
    seen: i64,
    /// Its log, by which others tell that they have changed it.
    live: Option<Arc<Live>>,
    in_hand: Option<InHand>,
}

impl Drive<'_> {
    async fn run(&mut self, stop: &CancellationToken) -> Over {
        let waits = self.held.row.turn == turns::WAITS;
        let mut happening = if waits { Happening::Look } else { Happening::Taken };
        loop {
            let (changes, then) = match self.decide(&happening).await {
                Ok(decided) => decided,
                Err(over) => return over,
            };
            let more = changes.more;
            if !self.begin(changes) {
                return Over::Given;
            }
            if then != Then::Keep {
                let ended = async { while self.flight.landed.next().await.is_some() {} };
                let _in_time_or_not = tokio::time::timeout(CLEAN_UP, ended).await;
                return Over::Rests;
            }
            if more {
                happening = Happening::Look;
                continue;
            }
            happening = match self.next(stop).await {
                Ok(happening) => happening,
                Err(over) => return over,
            };
        }
    }

    /// Gives up and begins attempts, as was decided. False where this process may not begin any.
    fn begin(&mut self, changes: Changes) -> bool {
        let parts = &self.sagas.inner.parts;
        changes.cut.iter().for_each(|(step, undo)| self.flight.cut(*step, *undo));
        if !changes.begin.is_empty() && !parts.queue.is_sure() {
            return false;
        }
        for begin in changes.begin {
            let timeout = self.held.saga.plan.steps[begin.step].timeout;
            let attempt = self.sagas.attempt(&self.held.row, begin, &self.task);
            self.flight.begin(attempt, timeout, &parts.actions);
        }
        true
    }

    /// Decides and writes it down, anew where somebody else has moved the saga.
    async fn decide(&mut self, happening: &Happening) -> Result<(Changes, Then), Over> {
        let parts = &self.sagas.inner.parts;
        loop {
            let now = parts.clock.now();
            let changes = self.meet(happening.clone(), now);
            let then = self.then(&changes);
            if !changes.any && then == Then::Keep {
                return Ok((changes, then));
            }
            let write = self.held.write(&changes, now, Some((self.task.id, self.task.fence)), then);
            match self.sagas.write(&mut self.held, &changes, write).await {
                Ok(Some(last_n)) => {
                    self.seen = self.seen.max(last_n);
                    return Ok((changes, then));
                }
                Ok(None) => self.reload().await?,
                Err(error) => {
                    tracing::warn!(%error, saga.id = %self.id, "a saga's step forward is not stored");
                    return Err(Over::Failed);
                }
            }
        }
    }

    /// Without its turn a saga goes no further, whatever happens.
    fn meet(&mut self, happening: Happening, now: DateTime<Utc>) -> Changes {
        let saga = &mut self.held.saga;
        if self.held.row.turn == turns::WAITS {
            let happening = if happening == Happening::Taken { Happening::Look } else { happening };
            return saga.conclude(happening, now, rand::random());
        }
        let happening = if saga.status == SagaStatus::Pending { Happening::Taken } else { happening };
        saga.decide(happening, now, rand::random())
    }

    /// What becomes of the task after a decision.
    fn then(&self, changes: &Changes) -> Then {
        let saga = &self.held.saga;
        if changes.more || !changes.begin.is_empty() || saga.is_busy() {
            return Then::Keep;
        }
        if !saga.status.is_at_work() || self.held.row.turn == turns::WAITS {
            return Then::Finish;
        }
        let Some(due) = saga.next_due() else { return Then::Finish };
        let delay = (due - self.sagas.inner.parts.clock.now()).as_seconds_f64();
        if delay <= SHORT { Then::Keep } else { Then::Later(delay) }
    }

    /// The saga as it is now, if it is still ours.
    async fn reload(&mut self) -> Result<(), Over> {
        let parts = &self.sagas.inner.parts;
        loop {
            let looked = async {
                let held = store::tasks::is_held(&mut parts.core.conn().await?, self.task.id, self.task.fence).await?;
                let found = self.sagas.load(vec![self.id]).await?.remove(&self.id).transpose()?;
                Ok::<_, crate::error::Error>((held, found))
            };
            match looked.await {
                Ok((true, Some(held))) => {
                    self.held = held;
                    let saga = &self.held.saga;
                    self.flight.keep_only(|step, attempt, undo| saga.is_attempting(step, attempt, undo));
                    return Ok(());
                }
                Ok(_) => return Err(Over::Lost),
                Err(error) => tracing::debug!(%error, saga.id = %self.id, "a saga could not be read again yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits for what happens next.
    async fn next(&mut self, stop: &CancellationToken) -> Result<Happening, Over> {
        let parts = &self.sagas.inner.parts;
        if let Some(Some(landed)) = self.flight.landed.next().now_or_never() {
            return Ok(self.landed(landed));
        }
        let (mut bell, moved) = self.listen();
        loop {
            let told = *bell.borrow_and_update();
            if told > self.seen {
                return self.moved(told).await;
            }
            let due = self.held.saga.next_due().map(|due| (due - parts.clock.now()).to_std().unwrap_or_default());
            let nap = due.map_or(LOOK, |due| due.min(LOOK)).max(Duration::from_millis(1));
            tokio::select! {
                biased;
                Some(landed) = self.flight.landed.next(), if !self.flight.landed.is_empty() => {
                    return Ok(self.landed(landed));
                }
                () = stop.cancelled() => return self.wrap_up().await,
                changed = bell.changed() => drop(changed),
                () = moved.notified() => return self.moved(self.seen).await,
                () = tokio::time::sleep(nap) => {
                    if self.held.saga.next_due().is_some_and(|due| due <= parts.clock.now()) {
                        return Ok(Happening::Look);
                    }
                }
            }
        }
    }

    /// Somebody else has changed the saga.
    async fn moved(&mut self, seen: i64) -> Result<Happening, Over> {
        self.reload().await?;
        self.seen = self.seen.max(seen);
        Ok(Happening::Look)
    }

    fn landed(&mut self, landed: Landed) -> Happening {
        self.flight.forget(&landed);
        happening(landed)
    }

    /// Hears of what others write of this saga; what tells nobody of itself is found by a look at its version.
    fn listen(&mut self) -> (watch::Receiver<i64>, Arc<Notify>) {
        let parts = &self.sagas.inner.parts;
        let stream = self.held.row.stream;
        let live = self.live.get_or_insert_with(|| parts.streams.hub.join(stream));
        let in_hand = self.in_hand.get_or_insert_with(|| self.sagas.inner.in_hand.enter(self.id));
        in_hand.is_at(self.held.row.version);
        (live.listen(), in_hand.bell())
    }

    /// The process stops: attempts that end soon may end, and what becomes of them is written down.
    async fn wrap_up(&mut self) -> Result<Happening, Over> {
        let parts = &self.sagas.inner.parts;
        if !parts.queue.wraps_up() {
            return Err(Over::Lost);
        }
        self.flight.leave_those_that_take_long(&parts.actions);
        let until = tokio::time::Instant::now() + WRAP_UP;
        while !self.flight.landed.is_empty() {
            let Ok(Some(landed)) = tokio::time::timeout_at(until, self.flight.landed.next()).await else { break };
            let now = parts.clock.now();
            let changes = self.held.saga.conclude(happening(landed), now, rand::random());
            if !changes.any {
                continue;
            }
            let write = self.held.write(&changes, now, Some((self.task.id, self.task.fence)), Then::Keep);
            match self.sagas.write(&mut self.held, &changes, write).await {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        Err(Over::Given)
    }
}

fn happening(landed: Landed) -> Happening {
    let Landed { step, attempt, undo, outcome, note } = landed;
    match outcome {
        None => Happening::Look,
        Some(outcome) if undo => Happening::UndoEnded { step, attempt, outcome },
        Some(outcome) => Happening::Ended { step, attempt, outcome, note },
    }
}

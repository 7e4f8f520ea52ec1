//! One crew of a process for each lane: takes what is ready as far as there is room, in
//! batches, and hands it to whoever performs its kind, in attempts of their own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Claimed, Lane, Queue};
use crate::{
    database::DbError,
    domain::task::DEATHS_MAX,
    error::{Error, Result},
    store,
};

/// Queues that one claim looks at, and tasks that it takes, at most.
const QUEUES: usize = 64;
const BATCH: usize = 256;
/// Pause after a claim that failed.
const AGAIN: Duration = Duration::from_millis(300);

/// Whoever performs tasks of a kind. An attempt that ends without having finished or put
/// back its task leaves it to be claimed again once its process is gone.
pub trait Perform: Send + Sync + 'static {
    fn kinds(&self) -> &'static [&'static str];

    /// Carries the task through, or stops soon after `stop`. What takes up room does so before
    /// the future is handed out.
    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()>;

    /// The task is put aside because its owners kept dying; its row is removed once this is done.
    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, Result<()>>;

    /// Tasks that were claimed together; where that saves nothing, each by itself.
    fn perform_all(self: Arc<Self>, tasks: Vec<Claimed>, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let each: Vec<_> = tasks.into_iter().map(|task| self.clone().perform(task, stop.clone())).collect();
        Box::pin(async move { drop(join_all(each).await) })
    }

    /// Whether [`Perform::perform_all`] is worth it.
    fn in_batches(&self) -> bool {
        false
    }
}

/// How much may begin now.
pub trait Room: Send + Sync + 'static {
    /// In all.
    fn total(&self) -> usize;

    /// In each of these queues.
    fn of(&self, queues: &[String]) -> Vec<usize>;

    /// Rings when room became free.
    fn freed(&self) -> &Notify;
}

/// Room without limits of its own.
#[derive(Default)]
pub struct Free(Notify);

impl Room for Free {
    fn total(&self) -> usize {
        BATCH
    }

    fn of(&self, queues: &[String]) -> Vec<usize> {
        vec![BATCH; queues.len()]
    }

    fn freed(&self) -> &Notify {
        &self.0
    }
}

/// A queue that is claimed from.
struct Asked {
    queue: String,
    mark: u64,
    room: usize,
}

/// The claimer of a lane.
pub struct Crew {
    queue: Queue,
    lane: Lane,
    room: Arc<dyn Room>,
    performers: HashMap<&'static str, Arc<dyn Perform>>,
}

impl Crew {
    pub fn new(queue: Queue, lane: Lane, room: Arc<dyn Room>, performers: Vec<Arc<dyn Perform>>) -> Self {
        let by_kind = performers.into_iter().flat_map(|p| p.kinds().iter().map(move |kind| (*kind, p.clone())));
        Self { queue, lane, room, performers: by_kind.collect() }
    }

    /// Claims until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            match self.claim().await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%error, lane = ?self.lane, "could not claim tasks");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.queue.ready.bell(self.lane).notified() => {}
                () = self.room.freed().notified() => {}
            }
        }
    }

    /// Claims and starts what there is room for; whether it is worth looking again at once.
    async fn claim(&self) -> Result<bool, DbError> {
        let standing = self.queue.standing();
        let total = self.room.total().min(BATCH);
        if standing.is_cancelled() || total == 0 {
            return Ok(false);
        }
        let (asked, all_seen) = self.with_room();
        if asked.is_empty() {
            return Ok(false);
        }
        let queues: Vec<String> = asked.iter().map(|one| one.queue.clone()).collect();
        let rooms: Vec<i32> = asked.iter().map(|one| i32::try_from(one.room).unwrap_or(i32::MAX)).collect();
        let owner = self.queue.process();
        let most = i64::try_from(total).unwrap_or(1);
        let mut conn = self.queue.db.conn().await?;
        let claimed = store::tasks::claim(&mut conn, owner, self.lane, &queues, &rooms, most).await;
        drop(conn);
        let mut claimed = claimed.inspect_err(|_| self.queue.doubt())?;
        for task in &mut claimed {
            self.queue.hands.take(task);
        }
        // Cut short by the total, nothing is known about any queue.
        if claimed.len() < total {
            self.forget_exhausted(&asked, &claimed);
        }
        let found = !claimed.is_empty();
        self.start(claimed, &standing);
        Ok(found || !all_seen)
    }

    /// Queues that hold something, from where the last look ended, and whether there are no more. Those
    /// without room are passed over, however many they are.
    fn with_room(&self) -> (Vec<Asked>, bool) {
        let mut seen = 0;
        loop {
            let (ready, known) = self.queue.ready.some(self.lane, QUEUES);
            seen += ready.len();
            let names: Vec<String> = ready.iter().map(|(queue, _)| queue.clone()).collect();
            let rooms = self.room.of(&names);
            let all = ready.into_iter().zip(rooms).map(|((queue, mark), room)| Asked { queue, mark, room });
            let asked: Vec<_> = all.filter(|one| one.room > 0).collect();
            if !asked.is_empty() || seen >= known {
                return (asked, seen >= known);
            }
        }
    }

    /// A queue that gave less than there was room for holds no more.
    fn forget_exhausted(&self, asked: &[Asked], claimed: &[Claimed]) {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for task in claimed {
            *counts.entry(&task.queue).or_default() += 1;
        }
        for Asked { queue, mark, room } in asked {
            if counts.get(queue.as_str()).copied().unwrap_or(0) < *room {
                self.queue.ready.exhausted(self.lane, queue, *mark);
            }
        }
    }

    fn start(&self, claimed: Vec<Claimed>, standing: &CancellationToken) {
        let mut together: HashMap<&'static str, Vec<Claimed>> = HashMap::new();
        for task in claimed {
            self.queue.metrics.claimed(&task.kind, task.waited);
            if task.deaths > 0 {
                self.queue.metrics.rescued(&task.kind);
            }
            let Some((kind, performer)) = self.performers.get_key_value(task.kind.as_str()) else {
                // Of a newer version of this program: whoever knows it takes it.
                self.queue.give_back(&task, Duration::from_secs(5));
                continue;
            };
            if task.is_deadly() {
                self.queue.attempts.spawn(set_aside(self.queue.clone(), performer.clone(), task));
            } else if performer.in_batches() {
                together.entry(kind).or_default().push(task);
            } else {
                tracing::debug!(task.kind, task.subject, task.attempt, "performing");
                self.queue.attempts.spawn(performer.clone().perform(task, standing.child_token()));
            }
        }
        for (kind, tasks) in together {
            let performer = self.performers[kind].clone();
            self.queue.attempts.spawn(performer.perform_all(tasks, standing.child_token()));
        }
    }
}

async fn set_aside(queue: Queue, performer: Arc<dyn Perform>, task: Claimed) {
    let reason = format!("{DEATHS_MAX} processes in a row died while they performed it");
    let parked = async {
        performer.parked(task.clone()).await?;
        store::tasks::park(&mut queue.db.conn().await?, task.id, task.fence, &reason).await?;
        Ok::<_, Error>(())
    };
    match parked.await {
        Ok(()) => tracing::error!(task.kind, task.subject, "{reason}: put aside"),
        Err(error) => {
            // Nobody has it in hand any more, so it is claimed, and put aside, once more.
            tracing::warn!(%error, task.kind, task.subject, "a task could not be put aside");
            queue.doubt();
        }
    }
}

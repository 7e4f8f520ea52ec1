//! The look that every process takes again and again, and the truth behind all hints: what has
//! come due moves to where it is claimed, what dead processes held is free again, and queues
//! with something in them are marked.

use std::{collections::HashSet, sync::atomic::Ordering, time::Duration};

use rand::RngExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Lane, Queue, lease};
use crate::{database::DbError, domain::task::LEASE, store};

/// Jittered, so that processes do not march in step.
const LOOK_MS: std::ops::Range<u64> = 500..1000;
/// Tasks that one statement moves.
const MOVED_AT_ONCE: usize = 1000;
/// Nothing is waited for more finely than this, and no look comes sooner after another.
const FINEST: Duration = Duration::from_millis(10);
/// Queues that are marked by one look, at most.
const QUEUES_MAX: i64 = 100_000;

/// What this process owns and nobody in it has in hand is looked for this often, and soon where there
/// is a doubt.
const CHECK: Duration = Duration::from_mins(1);
/// Longer than any statement may take: what is on its way has arrived.
const ARRIVAL: Duration = Duration::from_secs(12);

/// Looks until `stop`.
pub async fn keep(queue: Queue, stop: CancellationToken) {
    let mut lost = Lost::default();
    let mut poll = Instant::now();
    while !stop.is_cancelled() {
        queue.write_given_back().await;
        if Instant::now() >= poll {
            if let Err(error) = search(&queue, &mut lost).await {
                tracing::debug!(%error, "could not look for tasks");
            }
            poll = Instant::now() + Duration::from_millis(rand::rng().random_range(LOOK_MS));
        }
        let due = move_due(&queue).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "could not look for what is due");
            None
        });
        tokio::time::sleep(FINEST).await;
        let until = due.map_or(poll, |due| poll.min(Instant::now() + due));
        tokio::select! {
            () = stop.cancelled() => {}
            () = queue.look.notified() => {}
            () = queue.ready.search.notified() => poll = Instant::now(),
            () = tokio::time::sleep_until(until) => {}
        }
    }
    queue.write_given_back().await;
}

/// Moves what has come due to where it is claimed. Answers when the next will.
async fn move_due(queue: &Queue) -> Result<Option<Duration>, DbError> {
    let mut conn = queue.db.conn().await?;
    loop {
        let limit = i64::try_from(MOVED_AT_ONCE).unwrap_or(i64::MAX);
        let (moved, count) = store::tasks::move_due(&mut conn, limit).await?;
        for (lane, name) in moved {
            if let Some(lane) = Lane::of(lane) {
                queue.ready.mark_and_tell(lane, &name);
            }
        }
        if count < MOVED_AT_ONCE {
            break;
        }
    }
    let due = store::tasks::next_due_in(&mut conn).await?;
    Ok(due.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))))
}

/// The dead are buried, what waits anywhere is marked, what was lost is found.
async fn search(queue: &Queue, lost: &mut Lost) -> Result<(), DbError> {
    let mut conn = queue.db.conn().await?;
    for process in store::processes::expired(&mut conn, queue.process(), LEASE.as_secs_f64()).await? {
        match lease::bury(&queue.db, process, 1).await {
            Ok(held) => tracing::info!(%process, held, "the lease of a process has run out: its tasks are free"),
            Err(error) => tracing::warn!(%error, %process, "a dead process is not buried yet"),
        }
    }
    for (lane, name) in store::tasks::waiting_queues(&mut conn, QUEUES_MAX).await? {
        if let Some(lane) = Lane::of(lane) {
            queue.ready.mark(lane, &name);
        }
    }
    drop(conn);
    lost.look(queue).await.inspect_err(|_| queue.doubt())
}

/// Tasks that this process owns and nobody in it knows of: the answer to a claim, or to the commit of an
/// insert, never came, or an attempt panicked. They are freed when they are found so twice.
#[derive(Default)]
struct Lost {
    suspected: HashSet<(i64, i64)>,
    next: Option<Instant>,
}

impl Lost {
    async fn look(&mut self, queue: &Queue) -> Result<(), DbError> {
        let now = Instant::now();
        let doubts = self.suspected.is_empty() && queue.doubts.swap(false, Ordering::AcqRel);
        let next = *self.next.get_or_insert(now + CHECK);
        if !doubts && now < next {
            return Ok(());
        }
        let mut conn = queue.db.conn().await?;
        let owned = store::tasks::owned_by(&mut conn, queue.process()).await?;
        let unknown: HashSet<_> = owned.into_iter().filter(|(id, fence)| !queue.hands.holds(*id, *fence)).collect();
        for (id, fence) in unknown.intersection(&self.suspected) {
            if store::tasks::lose(&mut conn, *id, *fence).await? {
                tracing::warn!(task = id, "a task of this process was lost on the way: it is free again");
            }
        }
        self.suspected = unknown.difference(&std::mem::take(&mut self.suspected)).copied().collect();
        self.next = Some(now + if self.suspected.is_empty() { CHECK } else { ARRIVAL });
        Ok(())
    }
}

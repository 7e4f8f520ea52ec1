//! Group commit: whatever waits is written in one statement as soon as none is in
//! flight, all logs of the process together. An append is answered when it is durable,
//! and only then shown.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use super::{Append, Chunk, Hub};
use crate::{
    database::{Db, DbError},
    metrics::Metrics,
    store::{self, streams::StoredAppend},
};

/// Appends that wait at most for the flush under way; more make their senders wait.
const WAITING: usize = 256;
/// Bytes written by one statement, about.
const FLUSH_BYTES: usize = 4 << 20;
/// First pause before a flush that failed is tried again; it doubles.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The newest fence is held by another process: this one must let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced;

struct Waiting {
    append: Append,
    done: oneshot::Sender<Result<(), Fenced>>,
}

/// Handle to the writer of this process. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Waiting>,
}

impl Writer {
    /// The handle and the loop behind it, which ends when all handles are gone.
    pub fn new(db: Db, hub: Hub, metrics: Metrics) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(WAITING);
        (Self { queue }, write(db, hub, metrics, waiting))
    }

    /// Answers when the events are durable, however long the database is away.
    ///
    /// # Errors
    /// [`Fenced`] when somebody else holds the log now: nothing was written.
    pub async fn append(&self, append: Append) -> Result<(), Fenced> {
        let (done, answer) = oneshot::channel();
        if self.queue.send(Waiting { append, done }).await.is_err() {
            return Err(Fenced);
        }
        answer.await.unwrap_or(Err(Fenced))
    }
}

async fn write(db: Db, hub: Hub, metrics: Metrics, mut waiting: mpsc::Receiver<Waiting>) {
    let mut next = None;
    loop {
        let Some(first) = (match next.take() {
            Some(kept) => Some(kept),
            None => waiting.recv().await,
        }) else {
            return;
        };
        let mut logs = HashSet::from([first.append.owner.key]);
        let mut bytes = weight(&first);
        let mut batch = vec![first];
        while bytes < FLUSH_BYTES
            && let Ok(more) = waiting.try_recv()
        {
            // Of one log there may be the last words of an old claim and the first of a new one.
            if !logs.insert(more.append.owner.key) {
                next = Some(more);
                break;
            }
            bytes += weight(&more);
            batch.push(more);
        }
        let began = std::time::Instant::now();
        flush(&db, &hub, batch).await;
        metrics.flushed(began.elapsed());
    }
}

fn weight(waiting: &Waiting) -> usize {
    waiting.append.pieces.iter().map(|piece| piece.data.len()).sum()
}

/// Writes a batch, trying for as long as the database is away: the appends are acknowledged
/// to nobody yet, and the command's own files keep what does not fit in memory. What the database
/// will not have at all is told apart by writing one by one, and refused alone.
async fn flush(db: &Db, hub: &Hub, batch: Vec<Waiting>) {
    let appends: Vec<&Append> = batch.iter().map(|waiting| &waiting.append).collect();
    let mut pause = RETRY;
    let stored = loop {
        match store_all(db, &appends).await {
            Ok(stored) => break stored,
            Err(error) if error.is_outage() => tracing::warn!(%error, "output not stored yet, again shortly"),
            Err(error) if appends.len() == 1 => {
                tracing::error!(%error, "output that the database does not take");
                break Vec::new();
            }
            Err(error) => {
                tracing::warn!(%error, "output is stored one by one");
                for waiting in batch {
                    Box::pin(flush(db, hub, vec![waiting])).await;
                }
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    };
    for Waiting { append, done } in batch {
        let outcome = match stored.iter().find(|one| one.key == append.owner.key) {
            Some(stored) => {
                show(hub, &append, stored.parent_base);
                Ok(())
            }
            None => Err(Fenced),
        };
        let _gone = done.send(outcome);
    }
}

async fn store_all(db: &Db, appends: &[&Append]) -> Result<Vec<StoredAppend>, DbError> {
    store::streams::append_batch(&mut db.conn().await?, appends).await
}

fn show(hub: &Hub, append: &Append, parent_base: Option<i64>) {
    let mut from = append.base + 1;
    let mut parent_from = parent_base.map(|base| base + 1);
    for piece in &append.pieces {
        let to = from + piece.events - 1;
        hub.publish(Arc::new(Chunk::own(append.owner.clone(), from, to, piece.data.clone())));
        if let (Some(parent), Some(at)) = (&append.parent, parent_from) {
            let until = at + piece.events - 1;
            let command = append.owner.name.clone();
            hub.publish(Arc::new(Chunk::of_command(parent.clone(), at, until, piece.data.clone(), command)));
            parent_from = Some(until + 1);
        }
        from = to + 1;
    }
}

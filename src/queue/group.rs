//! Group commit: whatever waits is written together as soon as nothing is in flight, and each
//! who waits hears what became of theirs. Nobody waits for a timer; under load groups grow.

use std::{future::Future, time::Duration};

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Kind, Result};

/// First pause before a write that failed is tried again; it doubles.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Handle to a writer of items. Cheap to clone.
pub struct Group<T, R> {
    items: mpsc::Sender<(T, oneshot::Sender<R>)>,
}

impl<T, R> Clone for Group<T, R> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone() }
    }
}

impl<T: Send + 'static, R: Send + 'static> Group<T, R> {
    /// The handle and the loop behind it, which ends when all handles are gone. `write` takes up
    /// to `most` items and answers for each, in order; while the database is away it is called again.
    pub fn new<F>(
        most: usize,
        write: impl Fn(&[T]) -> F + Send + Sync + 'static,
    ) -> (Self, impl Future<Output = ()> + Send)
    where
        T: Sync,
        F: Future<Output = Result<Vec<R>>> + Send,
    {
        let (items, waiting) = mpsc::channel(most * 2);
        (Self { items }, run(most, write, waiting))
    }

    /// Answers when the item is written, however long the database is away.
    ///
    /// # Errors
    /// When the process stops.
    pub async fn put(&self, item: T) -> Result<R> {
        let stopping = || Error::new(Kind::Unavailable, "UPSTREAM_UNAVAILABLE", "the server is stopping");
        let (done, answer) = oneshot::channel();
        self.items.send((item, done)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

async fn run<T, R, F: Future<Output = Result<Vec<R>>>>(
    most: usize,
    write: impl Fn(&[T]) -> F,
    mut waiting: mpsc::Receiver<(T, oneshot::Sender<R>)>,
) {
    let mut group = Vec::with_capacity(most);
    while waiting.recv_many(&mut group, most).await > 0 {
        let (items, answers): (Vec<T>, Vec<_>) = group.drain(..).unzip();
        for (answer, outcome) in answers.into_iter().zip(write_all(&write, &items).await) {
            // Who gets no outcome hears that there is none.
            let _gone = outcome.map(|outcome| answer.send(outcome));
        }
    }
}

/// Outcomes in the order of the items. What cannot be written at all is found by writing one by
/// one, and keeps nobody else waiting.
async fn write_all<T, R, F: Future<Output = Result<Vec<R>>>>(
    write: &impl Fn(&[T]) -> F,
    items: &[T],
) -> Vec<Option<R>> {
    match write_group(write, items).await {
        Ok(outcomes) => outcomes.into_iter().map(Some).collect(),
        Err(error) if items.len() > 1 => {
            tracing::warn!(%error, "a group is written one by one");
            let mut outcomes = Vec::with_capacity(items.len());
            for item in items {
                let alone = write_group(write, std::slice::from_ref(item)).await;
                outcomes.push(alone.inspect_err(refused).ok().and_then(|mut one| one.pop()));
            }
            outcomes
        }
        Err(error) => {
            refused(&error);
            vec![None]
        }
    }
}

fn refused(error: &Error) {
    tracing::error!(%error, "the database does not take this");
}

/// Tried for as long as the database is away; any other error is the caller's.
async fn write_group<T, R, F: Future<Output = Result<Vec<R>>>>(
    write: &impl Fn(&[T]) -> F,
    items: &[T],
) -> Result<Vec<R>> {
    let mut pause = RETRY;
    loop {
        match write(items).await {
            Err(error) if error.kind() == Kind::Unavailable => {
                tracing::warn!(%error, "not written yet, again shortly");
            }
            outcome => return outcome,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

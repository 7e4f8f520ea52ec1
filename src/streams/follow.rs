//! One subscriber: first the log, then live, without a gap, a repeat or a reorder at the
//! seam, because there is only one source of order, the event's number. A slow reader
//! falls behind in the log; it holds one chunk at most and makes nobody wait.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::{Chunk, Found, Owner, Streams, frame, hub::Live, record};
use crate::{database::DbError, store};

/// Silence after which a heartbeat is sent.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Pause before a log that could not be read is read again.
const RETRY: Duration = Duration::from_millis(300);
/// Rows and, about, bytes read at once for somebody who is behind.
const READ_ROWS: i64 = 512;
const READ_BYTES: i64 = 512 << 10;

/// Where a subscriber begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// After this number.
    After(i64),
    /// With what is new.
    New,
}

/// Resolves when the subscriber may no longer listen, with a last word for it.
pub type Ending = BoxFuture<'static, Option<String>>;

pub struct Follower {
    streams: Streams,
    live: Arc<Live>,
    bell: watch::Receiver<i64>,
    owner: Owner,
    at: i64,
    ended_at: Option<i64>,
    trimmed_to: i64,
    unread: bool,
    greeting: Option<String>,
    done: bool,
    heartbeat: Instant,
    ending: Ending,
    now: fn() -> DateTime<Utc>,
}

enum Wake {
    News,
    Silence,
    End(Option<String>),
}

impl Follower {
    pub fn new(streams: Streams, found: &Found, start: Start, ending: Ending, now: fn() -> DateTime<Utc>) -> Self {
        let live = streams.hub.join(found.owner.key);
        let bell = live.listen();
        let mut hello = json!({"project": found.project, "stream_id": &*found.owner.name});
        if found.project.is_empty() {
            hello = json!({"stream_id": &*found.owner.name});
        }
        let connected = frame::unnumbered("connected", &hello);
        let at = match start {
            // One that has ended has nothing new but its end.
            Start::New if found.ended => found.last_n - 1,
            Start::New => found.last_n,
            // Whoever asks for what comes after the end of an ended log gets its end.
            Start::After(n) if found.ended => n.min(found.last_n - 1),
            Start::After(n) => n,
        };
        Self {
            live,
            bell,
            owner: found.owner.clone(),
            at,
            ended_at: found.ended.then_some(found.last_n),
            trimmed_to: found.trimmed_to,
            unread: true,
            greeting: Some(format!("retry: 2000\n{connected}")),
            done: false,
            heartbeat: Instant::now() + HEARTBEAT,
            ending,
            now,
            streams,
        }
    }

    /// The next bytes for the client; `None` after the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting.into());
        }
        while !self.done {
            if let Some(gap) = self.gap() {
                return Some(gap);
            }
            if let Some(chunk) = self.live.chunk_with(self.at + 1) {
                return Some(self.take(&chunk));
            }
            if self.unread || *self.bell.borrow() > self.at {
                // Boxed: a subscriber lives long and reads rarely, and the way to the database is wide.
                match Box::pin(self.read()).await {
                    Ok(Some(chunk)) => return Some(self.take(&chunk)),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::debug!(%error, "a log could not be read, again shortly");
                        if let Some(word) = self.pause().await {
                            return Some(word);
                        }
                        continue;
                    }
                }
            }
            match self.wait().await {
                Wake::News => self.unread = self.at >= *self.bell.borrow(),
                Wake::Silence => return Some(self.beat()),
                Wake::End(word) => {
                    self.done = true;
                    return word.map(Bytes::from);
                }
            }
        }
        None
    }

    fn gap(&mut self) -> Option<Bytes> {
        if self.at >= self.trimmed_to {
            return None;
        }
        let gap = record::gap(self.at + 1, self.trimmed_to);
        self.at = self.trimmed_to;
        Some(frame::unnumbered("gap", &gap).into())
    }

    fn take(&mut self, chunk: &Chunk) -> Bytes {
        let bytes = chunk.frames_after(self.at);
        self.at = chunk.to;
        self.done = chunk.framed().last;
        self.heartbeat = Instant::now() + HEARTBEAT;
        bytes
    }

    /// Reads on in the log; one subscriber at a time, and what it brings serves the others.
    async fn read(&mut self) -> Result<Option<Arc<Chunk>>, DbError> {
        let live = self.live.clone();
        let _one = live.loading.lock().await;
        if let Some(chunk) = live.chunk_with(self.at + 1) {
            return Ok(Some(chunk));
        }
        let mut conn = self.streams.db().conn().await?;
        let chunks = super::read(&mut conn, &self.owner, self.at, READ_ROWS, READ_BYTES).await?;
        self.unread = false;
        if let Some(first) = chunks.first() {
            live.keep_replayed(&chunks);
            return Ok(Some(first.clone()));
        }
        if self.ended_at.is_none() && self.at > *self.bell.borrow() {
            self.look_for_the_end(&mut conn).await?;
        }
        Ok(None)
    }

    /// For a subscriber that waits past the end: has the log ended meanwhile?
    async fn look_for_the_end(&mut self, conn: &mut crate::database::Conn) -> Result<(), DbError> {
        if let Some(last) = store::streams::ended_at(conn, self.owner.key).await? {
            self.ended_at = Some(last);
            self.at = self.at.min(last - 1);
            self.unread = true;
        }
        Ok(())
    }

    async fn wait(&mut self) -> Wake {
        if self.unread {
            return Wake::News;
        }
        tokio::select! {
            biased;
            word = &mut self.ending => Wake::End(word),
            _ = self.bell.changed() => Wake::News,
            () = tokio::time::sleep_until(self.heartbeat) => Wake::Silence,
        }
    }

    async fn pause(&mut self) -> Option<Bytes> {
        tokio::time::sleep(RETRY).await;
        (Instant::now() >= self.heartbeat).then(|| self.beat())
    }

    fn beat(&mut self) -> Bytes {
        self.heartbeat = Instant::now() + HEARTBEAT;
        let at = (self.now)().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        frame::unnumbered("heartbeat", &json!({"timestamp": at})).into()
    }
}

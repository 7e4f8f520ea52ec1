//! Numbered logs: append, read, follow; and the in-process hub.
//!
//! An event is stored first and shown then. A chunk is a run of events of one log:
//! it is written once, framed once for all subscribers of this process, and never
//! changed. The hub only wakes and keeps the newest chunks; whoever falls behind
//! reads the log. Numbers have no gaps, and only the holder of the newest fence can
//! append to a command's log.

pub mod chunk;
pub mod follow;
pub mod frame;
pub mod hub;
pub mod notify;
pub mod record;
pub mod writer;

use std::sync::Arc;

use serde_json::Value;

use crate::{
    database::{Conn, Db, DbError},
    domain::stream::StoredChunk,
    store,
};

pub use crate::domain::stream::{Append, Found, Key, Owner, Piece};
pub use chunk::Chunk;
pub use follow::{Ending, Follower, Start};
pub use hub::Hub;
pub use writer::{Fenced, Writer};

/// Appends that were made in a transaction and are shown once it has committed.
#[must_use = "show it after the commit"]
#[derive(Default)]
pub struct Unshown(Vec<Arc<Chunk>>);

impl Unshown {
    pub fn add(&mut self, chunk: Chunk) {
        self.0.push(Arc::new(chunk));
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// The logs of this process: the hub and the writer behind one handle.
#[derive(Clone)]
pub struct Streams {
    pub hub: Hub,
    pub writer: Writer,
    db: Db,
}

impl Streams {
    pub fn new(db: Db, hub: Hub, writer: Writer) -> Self {
        Self { hub, writer, db }
    }

    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Appends one event of `owner`'s own log inside the caller's transaction.
    /// The log's row stays locked until that ends, so do this late.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn record(&self, tx: &mut Conn, owner: &Owner, event: &str, data: &Value) -> Result<Unshown, DbError> {
        self.append_json(tx, owner, event, data, false).await
    }

    /// As [`Streams::record`], and it is the last event of that log.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn record_final(
        &self,
        tx: &mut Conn,
        owner: &Owner,
        event: &str,
        data: &Value,
    ) -> Result<Unshown, DbError> {
        self.append_json(tx, owner, event, data, true).await
    }

    async fn append_json(
        &self,
        tx: &mut Conn,
        owner: &Owner,
        event: &str,
        data: &Value,
        last: bool,
    ) -> Result<Unshown, DbError> {
        let body = record::json(event, data, last);
        let Some(n) = store::streams::append_one(tx, owner.key, &body, last).await? else {
            return Ok(Unshown::default());
        };
        let mut shown = Unshown::default();
        shown.add(Chunk::own(owner.clone(), n, n, body.into()));
        Ok(shown)
    }

    /// Shows what a committed transaction appended, to subscribers here and elsewhere.
    pub fn show(&self, unshown: Unshown) {
        for chunk in unshown.0 {
            self.hub.publish(chunk);
        }
    }
}

/// Chunks with what comes after event `after`: so many rows and about so many bytes at most.
///
/// # Errors
/// Those of the database.
pub async fn read(
    conn: &mut Conn,
    owner: &Owner,
    after: i64,
    rows: i64,
    bytes: i64,
) -> Result<Vec<Arc<Chunk>>, DbError> {
    let stored = store::streams::read(conn, owner.key, after, rows, bytes).await?;
    let chunk = |chunk: StoredChunk| match chunk.command {
        None => Chunk::own(owner.clone(), chunk.from, chunk.to, chunk.data.into()),
        Some(command) => Chunk::of_command(owner.clone(), chunk.from, chunk.to, chunk.data.into(), command.into()),
    };
    Ok(stored.into_iter().map(chunk).map(Arc::new).collect())
}

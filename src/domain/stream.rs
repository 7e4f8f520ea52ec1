//! Logs as they are told of between the floors: whose, where they stand, what is put in.

use std::sync::Arc;

use bytes::Bytes;

/// Key of a log in the database.
pub type Key = i64;

/// Whose log it is: what the framing needs to know.
#[derive(Debug, Clone)]
pub struct Owner {
    pub key: Key,
    /// The stream id that clients see.
    pub name: Arc<str>,
}

impl Owner {
    pub fn new(key: Key, name: &str) -> Self {
        Self { key, name: name.into() }
    }
}

/// A log as it was found: what a subscriber needs to begin.
#[derive(Debug, Clone)]
pub struct Found {
    pub owner: Owner,
    pub project: String,
    pub last_n: i64,
    pub trimmed_to: i64,
    pub ended: bool,
}

/// A part of a chunk's worth of events, encoded.
#[derive(Debug, Clone)]
pub struct Piece {
    pub data: Bytes,
    pub events: i64,
    pub out_bytes: i64,
    pub err_bytes: i64,
}

/// Output of a command, to be appended to its log (and shown in its session's).
pub struct Append {
    pub owner: Owner,
    pub parent: Option<Owner>,
    pub fence: i64,
    /// Number of the last event before these.
    pub base: i64,
    /// Totals of bytes before these.
    pub out_base: i64,
    pub err_base: i64,
    pub pieces: Vec<Piece>,
}

/// Events `from..=to` as they are stored; those of a command in its session's log name it.
#[derive(Debug, sqlx::FromRow)]
pub struct StoredChunk {
    #[sqlx(rename = "from_n")]
    pub from: i64,
    #[sqlx(rename = "to_n")]
    pub to: i64,
    pub data: Vec<u8>,
    pub command: Option<String>,
}

//! A run of events of one log, in memory. Framed lazily and once, whoever asks first.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{Owner, frame};

/// Events `from..=to` of `owner`'s log.
pub struct Chunk {
    pub owner: Owner,
    pub from: i64,
    pub to: i64,
    /// The records. Those of a command, where `command` names it.
    pub data: Bytes,
    /// Set in a session's log: the command whose events these are.
    pub command: Option<Arc<str>>,
    framed: OnceLock<Framed>,
}

/// The chunk as server-sent events.
pub struct Framed {
    pub bytes: Bytes,
    /// Where each event ends.
    pub ends: Vec<u32>,
    /// The last event of the log is among them.
    pub last: bool,
}

impl Chunk {
    /// Events of the log's own.
    pub fn own(owner: Owner, from: i64, to: i64, data: Bytes) -> Self {
        Self { owner, from, to, data, command: None, framed: OnceLock::new() }
    }

    /// Events of a command, numbered in its session's log.
    pub fn of_command(owner: Owner, from: i64, to: i64, data: Bytes, command: Arc<str>) -> Self {
        Self { owner, from, to, data, command: Some(command), framed: OnceLock::new() }
    }

    pub fn framed(&self) -> &Framed {
        self.framed.get_or_init(|| frame::sse(self))
    }

    /// The frames of all events after number `after`.
    pub fn frames_after(&self, after: i64) -> Bytes {
        let framed = self.framed();
        let skip = usize::try_from(after - self.from + 1).unwrap_or(0);
        match skip.checked_sub(1) {
            None => framed.bytes.clone(),
            Some(index) => framed.bytes.slice(framed.ends.get(index).map_or(framed.bytes.len(), |end| *end as usize)..),
        }
    }

    /// Roughly what it occupies.
    pub fn weight(&self) -> usize {
        self.data.len() + self.framed.get().map_or(0, |f| f.bytes.len() + f.ends.len() * 4)
    }
}

//! Stored output: the bytes of a command as they came, or its events, read chunk by chunk
//! so that no answer is held in memory as a whole.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::{
    database::Db,
    domain::command::Command,
    error::Result,
    store,
    streams::{
        self, Chunk, Owner, frame,
        record::{self, Record},
    },
};

pub use crate::streams::record::Output;

/// Rows and, about, bytes read at once.
const ROWS_AT_ONCE: i64 = 256;
const BYTES_AT_ONCE: i64 = 256 << 10;

#[derive(Clone)]
pub struct Outputs {
    db: Db,
}

/// Which part of a command's output, as bytes.
pub struct Selection {
    pub only: Option<Output>,
    pub after: i64,
    /// Bytes there are after `after`.
    pub total: u64,
    base: i64,
}

/// Reads on, chunk by chunk, up to where the log stood when the reading began.
pub struct Reader {
    db: Db,
    owner: Owner,
    at: i64,
    until: i64,
    ready: std::collections::VecDeque<Arc<Chunk>>,
}

impl Outputs {
    pub fn new(db: Db) -> Self {
        Self { db }
    }

    /// What there is after event `after`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn select(&self, command: &Command, only: Option<Output>, after: i64) -> Result<Selection> {
        let base = self.bytes_up_to(command, only, after).await?;
        let whole = of(only, command.out_bytes, command.err_bytes);
        Ok(Selection { only, after, total: u64::try_from((whole - base).max(0)).unwrap_or(0), base })
    }

    async fn bytes_up_to(&self, command: &Command, only: Option<Output>, after: i64) -> Result<i64> {
        let mut conn = self.db.conn().await?;
        let before = store::streams::bytes_before(&mut conn, command.stream, after).await?;
        let (at, out, err) = before.unwrap_or_default();
        let mut bytes = of(only, out, err);
        if at < after {
            let owner = Owner::new(command.stream, &command.command_id);
            let rest = streams::read(&mut conn, &owner, at, 1, i64::MAX).await?;
            for chunk in rest {
                let taken = usize::try_from(after - chunk.from + 1).unwrap_or(0);
                bytes += record::iter(&chunk.data).take(taken).map(|r| size_of(&r, only)).sum::<i64>();
            }
        }
        Ok(bytes)
    }

    /// Reads events after number `after`.
    pub fn events(&self, command: &Command, after: i64) -> Reader {
        Reader {
            db: self.db.clone(),
            owner: Owner::new(command.stream, &command.command_id),
            at: after,
            until: command.last_n,
            ready: std::collections::VecDeque::new(),
        }
    }

    /// Reads bytes from `offset` of the selection on; answers also how many to skip of the first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn bytes(&self, command: &Command, selection: &Selection, offset: u64) -> Result<(Reader, u64, i64)> {
        let wanted = selection.base + i64::try_from(offset).unwrap_or(i64::MAX);
        let (stdout, stderr) = (selection.only != Some(Output::Stderr), selection.only != Some(Output::Stdout));
        let mut conn = self.db.conn().await?;
        let skipped = store::streams::skip_to_byte(&mut conn, command.stream, wanted, stdout, stderr).await?;
        let from_chunk = skipped.filter(|(to, ..)| *to > selection.after);
        let (at, reached) = match from_chunk {
            Some((to, out, err)) => (to, of(selection.only, out, err)),
            None => (selection.after, selection.base),
        };
        Ok((self.events(command, at), u64::try_from(wanted - reached).unwrap_or(0), at))
    }
}

impl Outputs {
    /// The last `most` bytes of one output.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn tail(&self, command: &Command, only: Output, most: usize) -> Result<Vec<u8>> {
        let selection = self.select(command, Some(only), 0).await?;
        let first = selection.total.saturating_sub(most as u64);
        let wanted = usize::try_from(selection.total - first).unwrap_or(most);
        let (mut reader, skip, after) = self.bytes(command, &selection, first).await?;
        let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut tail = Vec::with_capacity(wanted);
        while tail.len() < wanted {
            let Some(chunk) = reader.next().await? else { break };
            let bytes = raw(&chunk, after, Some(only));
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            tail.extend(bytes[skipped..].iter().take(wanted - tail.len()));
        }
        Ok(tail)
    }

    /// The data of the last event of a command that has ended: how.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn ending(&self, command: &Command) -> Result<Option<Value>> {
        let Some(chunk) = self.events(command, command.last_n - 1).next().await? else { return Ok(None) };
        let last = record::iter(&chunk.data).last();
        Ok(last.and_then(|record| match record {
            Record::Json { data, .. } => serde_json::from_str(data).ok(),
            Record::Line { .. } => None,
        }))
    }
}

impl Reader {
    /// The next chunk; `None` at the end.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn next(&mut self) -> Result<Option<Arc<Chunk>>> {
        if self.ready.is_empty() && self.at < self.until {
            let chunks =
                streams::read(&mut self.db.conn().await?, &self.owner, self.at, ROWS_AT_ONCE, BYTES_AT_ONCE).await?;
            self.at = chunks.last().map_or(self.until, |last| last.to);
            self.ready.extend(chunks);
        }
        Ok(self.ready.pop_front())
    }
}

/// The bytes of a chunk's lines.
pub fn raw(chunk: &Chunk, after: i64, only: Option<Output>) -> Bytes {
    frame::raw(chunk, after, only).into()
}

/// The events of a chunk, one a line.
pub fn ndjson(chunk: &Chunk, after: i64, only: Option<Output>) -> Bytes {
    frame::ndjson(chunk, after, only).into()
}

fn of(only: Option<Output>, out: i64, err: i64) -> i64 {
    match only {
        None => out + err,
        Some(Output::Stdout) => out,
        Some(Output::Stderr) => err,
    }
}

fn size_of(record: &Record<'_>, only: Option<Output>) -> i64 {
    match record {
        Record::Line { output, partial, bytes } if only.is_none_or(|wanted| wanted == *output) => {
            i64::try_from(bytes.len()).unwrap_or(0) + i64::from(!partial)
        }
        _ => 0,
    }
}

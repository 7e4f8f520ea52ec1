//! From two byte streams to numbered events: lines are split, encoded into chunks and
//! handed to the writer, one batch in flight and the next one growing meanwhile. Memory
//! is bounded: what does not fit waits in the command's own files.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use tokio::time::Instant;

use crate::{
    domain::{command::Ended, lines::LineSplitter},
    error::Result,
    runtime::{Follow, Piece as Bytes},
    store::streams::Tail,
    streams::{
        Append, Fenced, Owner, Piece, Writer,
        record::{self, Output},
    },
};

/// A chunk is closed at about so many bytes, or so many events: what one slow reader holds.
const CHUNK_BYTES: usize = 64 << 10;
const CHUNK_EVENTS: i64 = 1024;
/// Encoded output that may wait for the batch in flight.
const WAITING_BYTES: usize = 2 << 20;
/// How long text waits for its newline before it is shown without.
const PATIENCE: Duration = Duration::from_secs(1);

pub enum Pumped {
    Ended(Ended),
    /// Another process holds the log now.
    Fenced,
}

pub struct Pump {
    writer: Writer,
    owner: Owner,
    parent: Option<Owner>,
    fence: i64,
    base: i64,
    out_base: i64,
    err_base: i64,
    stdout: Side,
    stderr: Side,
    batch: Batch,
}

struct Side {
    lines: LineSplitter,
    /// Since when the text that waits for its newline has waited.
    since: Option<Instant>,
}

#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    bytes: usize,
    data: Vec<u8>,
    events: i64,
    out_bytes: i64,
    err_bytes: i64,
}

impl Pump {
    pub fn new(writer: Writer, owner: Owner, parent: Option<Owner>, fence: i64, tail: &Tail) -> Self {
        let side = || Side { lines: LineSplitter::new(), since: None };
        Self {
            writer,
            owner,
            parent,
            fence,
            base: tail.last_n,
            out_base: tail.out_bytes,
            err_base: tail.err_bytes,
            stdout: side(),
            stderr: side(),
            batch: Batch::default(),
        }
    }

    /// Until the end, or until another process holds the log.
    pub async fn run(mut self, follow: Box<dyn Follow>) -> Result<Pumped> {
        // A stream keeps a read that is under way when something else comes first.
        let mut pieces = Box::pin(stream::unfold(follow, async |mut follow| Some((follow.next().await, follow))));
        let mut in_flight: Option<BoxFuture<'static, Result<(), Fenced>>> = None;
        let mut end = None;
        loop {
            if in_flight.is_none() {
                in_flight = self.send();
            }
            let patience = self.patience();
            let room = end.is_none() && self.batch.bytes < WAITING_BYTES;
            tokio::select! {
                biased;
                stored = landed(&mut in_flight) => {
                    in_flight = None;
                    if stored.is_err() {
                        return Ok(Pumped::Fenced);
                    }
                }
                () = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => self.flush_waiting(),
                piece = pieces.select_next_some(), if room => match piece? {
                    Bytes::Stdout(bytes) => self.stdout.push(&bytes, Output::Stdout, &mut self.batch),
                    Bytes::Stderr(bytes) => self.stderr.push(&bytes, Output::Stderr, &mut self.batch),
                    Bytes::Ended(ended) => {
                        self.stdout.finish(Output::Stdout, &mut self.batch);
                        self.stderr.finish(Output::Stderr, &mut self.batch);
                        end = Some(ended);
                    }
                },
            }
            if in_flight.is_none()
                && self.batch.is_empty()
                && let Some(ended) = end.take()
            {
                return Ok(Pumped::Ended(ended));
            }
        }
    }

    /// Hands what waits to the writer.
    fn send(&mut self) -> Option<BoxFuture<'static, Result<(), Fenced>>> {
        let pieces = self.batch.take();
        if pieces.is_empty() {
            return None;
        }
        let append = Append {
            owner: self.owner.clone(),
            parent: self.parent.clone(),
            fence: self.fence,
            base: self.base,
            out_base: self.out_base,
            err_base: self.err_base,
            pieces,
        };
        for piece in &append.pieces {
            self.base += piece.events;
            self.out_base += piece.out_bytes;
            self.err_base += piece.err_bytes;
        }
        let writer = self.writer.clone();
        Some(async move { writer.append(append).await }.boxed())
    }

    /// When the oldest waiting text is to be shown.
    fn patience(&self) -> Option<Instant> {
        [self.stdout.since, self.stderr.since].into_iter().flatten().min().map(|since| since + PATIENCE)
    }

    fn flush_waiting(&mut self) {
        let late = Instant::now() - PATIENCE;
        for (side, output) in [(&mut self.stdout, Output::Stdout), (&mut self.stderr, Output::Stderr)] {
            if side.since.is_some_and(|since| since <= late) {
                side.flush(output, &mut self.batch);
            }
        }
    }
}

/// Never, while nothing is in flight.
async fn landed(in_flight: &mut Option<BoxFuture<'static, Result<(), Fenced>>>) -> Result<(), Fenced> {
    match in_flight {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

impl Side {
    fn push(&mut self, bytes: &[u8], output: Output, batch: &mut Batch) {
        let mut newlines = false;
        self.lines.push(bytes, &mut |line, partial| {
            newlines |= !partial;
            batch.put(output, partial, line);
        });
        if newlines || !self.lines.has_waiting() {
            self.since = None;
        }
        if self.lines.has_waiting() {
            self.since.get_or_insert_with(Instant::now);
        }
    }

    fn flush(&mut self, output: Output, batch: &mut Batch) {
        self.lines.flush(&mut |line, partial| batch.put(output, partial, line));
        // Bytes of a character that is not whole are held back; they start waiting anew.
        self.since = (self.lines.has_waiting()).then(Instant::now);
    }

    fn finish(&mut self, output: Output, batch: &mut Batch) {
        self.lines.finish(&mut |line, partial| batch.put(output, partial, line));
        self.since = None;
    }
}

impl Batch {
    fn put(&mut self, output: Output, partial: bool, line: &[u8]) {
        record::put_line(&mut self.data, output, partial, line);
        self.events += 1;
        let bytes = i64::try_from(line.len()).unwrap_or(0) + i64::from(!partial);
        match output {
            Output::Stdout => self.out_bytes += bytes,
            Output::Stderr => self.err_bytes += bytes,
        }
        if self.data.len() >= CHUNK_BYTES || self.events >= CHUNK_EVENTS {
            self.close();
        }
    }

    fn close(&mut self) {
        if self.events == 0 {
            return;
        }
        self.bytes += self.data.len();
        self.pieces.push(Piece {
            data: std::mem::take(&mut self.data).into(),
            events: std::mem::take(&mut self.events),
            out_bytes: std::mem::take(&mut self.out_bytes),
            err_bytes: std::mem::take(&mut self.err_bytes),
        });
    }

    fn take(&mut self) -> Vec<Piece> {
        self.close();
        self.bytes = 0;
        std::mem::take(&mut self.pieces)
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.events == 0
    }
}

//! Reading on in what a command wrote: a follower in the container shows it from where we are,
//! and whenever its line breaks another one is opened from there. When the line cannot be opened
//! the cluster is asked whether the container still is the one that the command began in; as long
//! as it does not say no, the command is not given up.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use kube::api::AttachedProcess;
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, SimplexStream, WriteHalf},
    time::timeout,
};

use super::{
    Inner,
    frames::{End, Frame, Frames},
    payload,
    places::Container,
};
use crate::{
    domain::{
        clock::Clock,
        command::{Ended, Termination},
    },
    error::{Error, Result},
    runtime::{Follow, Piece},
};

/// The follower says something every few seconds; a line that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(12);
/// A command whose files are not there yet is about to begin.
const BIRTH: u32 = 50;

pub struct PodFollow {
    inner: Arc<Inner>,
    at: Container,
    key: i64,
    stdout: u64,
    stderr: u64,
    line: Option<Line>,
    /// Lines in a row that brought nothing.
    failures: u32,
    unborn: u32,
    told: bool,
}

struct Line {
    stdout: ReadHalf<SimplexStream>,
    frames: Frames,
    /// That the line broke is said by nothing else: what it brought so far has no end then.
    broken: BoxFuture<'static, ()>,
    /// Both keep the line open.
    _stdin: WriteHalf<SimplexStream>,
    _process: AttachedProcess,
}

impl PodFollow {
    pub(super) fn new(inner: Arc<Inner>, at: Container, key: i64, stdout: u64, stderr: u64) -> Self {
        Self { inner, at, key, stdout, stderr, line: None, failures: 0, unborn: 0, told: false }
    }

    async fn step(&mut self) -> Result<Option<Piece>> {
        let Some(line) = &mut self.line else {
            match self.open().await {
                Ok(line) => self.line = Some(line),
                Err(error) => return self.without_line(&error).await,
            }
            return Ok(None);
        };
        match line.frames.next() {
            Ok(Some(frame)) => return self.frame(frame).await,
            Ok(None) => {}
            Err(said) => {
                tracing::warn!(said, pod = self.at.pod, "a follower said something strange");
                return self.without_line(&Error::internal(said)).await;
            }
        }
        let read = tokio::select! {
            // What came before it broke is read first.
            biased;
            read = timeout(SILENCE, line.stdout.read_buf(&mut line.frames.buffer)) => read,
            () = &mut line.broken => Ok(Ok(0)),
        };
        match read {
            Ok(Ok(1..)) => Ok(None),
            Ok(Ok(0)) => self.without_line(&Error::internal("the line was closed")).await,
            Ok(Err(error)) => self.without_line(&Error::internal(error)).await,
            Err(_) => self.without_line(&Error::internal("the line is silent")).await,
        }
    }

    async fn open(&mut self) -> Result<Line> {
        let text = self.inner.orders.follow(self.key, self.stdout, self.stderr).text();
        let mut process = self.inner.cluster.insisting().exec(&self.at, payload::argv(&text)).await?;
        let (Some(mut stdin), Some(stdout), Some(status)) = (process.stdin(), process.stdout(), process.take_status())
        else {
            return Err(Error::internal("an exec without its streams"));
        };
        stdin.write_all(text.as_bytes()).await.map_err(Error::internal)?;
        let broken = async move {
            if status.await.is_some() {
                std::future::pending::<()>().await;
            }
        };
        Ok(Line { stdout, frames: Frames::default(), broken: broken.boxed(), _stdin: stdin, _process: process })
    }

    async fn frame(&mut self, frame: Frame) -> Result<Option<Piece>> {
        self.failures = 0;
        match frame {
            Frame::Stdout(bytes) => {
                let bytes = bytes.slice(..self.room(bytes.len()));
                self.stdout += bytes.len() as u64;
                Ok(Some(Piece::Stdout(bytes)))
            }
            Frame::Stderr(bytes) => {
                let bytes = bytes.slice(..self.room(bytes.len()));
                self.stderr += bytes.len() as u64;
                Ok(Some(Piece::Stderr(bytes)))
            }
            Frame::Tick => Ok(None),
            Frame::End(end) => self.end(end).await,
        }
    }

    /// Of so many bytes, how many are still stored.
    fn room(&self, length: usize) -> usize {
        match self.inner.orders.output_limit {
            0 => length,
            limit => length.min(usize::try_from(limit.saturating_sub(self.stdout + self.stderr)).unwrap_or(length)),
        }
    }

    async fn end(&mut self, end: End) -> Result<Option<Piece>> {
        let lost = match end.termination.as_str() {
            "unborn" => {
                self.unborn += 1;
                self.line = None;
                tokio::time::sleep(Duration::from_millis(100)).await;
                if self.unborn < BIRTH {
                    return Ok(None);
                }
                true
            }
            "lost" | "missing" | "forgotten" => true,
            _ => false,
        };
        if !lost {
            return Ok(Some(Piece::Ended(ended(end))));
        }
        self.line = None;
        let still = self.inner.still_there(&self.at).await?;
        let termination = if still { Termination::SupervisorLost } else { Termination::PodLost };
        Ok(Some(Piece::Ended(Ended::without_code(termination, Clock::System.now()))))
    }

    /// The line broke, or could not be opened.
    async fn without_line(&mut self, error: &Error) -> Result<Option<Piece>> {
        self.line = None;
        self.failures += 1;
        tracing::debug!(%error, pod = self.at.pod, "a command's line broke");
        if let Ok(false) = self.inner.still_there(&self.at).await {
            return Ok(Some(Piece::Ended(Ended::without_code(Termination::PodLost, Clock::System.now()))));
        }
        tokio::time::sleep(Duration::from_millis(50 << self.failures.min(5))).await;
        Ok(None)
    }
}

impl Follow for PodFollow {
    /// Dropping the future loses nothing: what was read waits in the line.
    fn next(&mut self) -> BoxFuture<'_, Result<Piece>> {
        async move {
            if self.told {
                return std::future::pending().await;
            }
            loop {
                if let Some(piece) = self.step().await? {
                    self.told = matches!(piece, Piece::Ended(_));
                    return Ok(piece);
                }
            }
        }
        .boxed()
    }
}

fn ended(end: End) -> Ended {
    let termination = Termination::parse(&end.termination).unwrap_or(Termination::SupervisorLost);
    let at = Clock::System.now() - chrono::TimeDelta::milliseconds(end.age_ms);
    Ended { termination, exit_code: end.code, signal: end.signal.map(name), message: end.message, at }
}

/// `KILL` of 9.
fn name(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => signal.as_str().trim_start_matches("SIG").to_owned(),
        Err(_) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_what_the_supervisor_said() {
        let end = |termination: &str, code, signal| {
            ended(End { termination: termination.into(), code, signal, age_ms: 0, message: None })
        };
        let killed = end("signal", None, Some(9));
        assert_eq!(
            (killed.termination, killed.exit_code, killed.signal.as_deref()),
            (Termination::Signal, None, Some("KILL"))
        );
        let exited = end("exit", Some(137), None);
        assert_eq!((exited.termination, exited.exit_code, exited.signal), (Termination::Exit, Some(137), None));
        assert_eq!(end("nonsense", None, None).termination, Termination::SupervisorLost);
    }
}

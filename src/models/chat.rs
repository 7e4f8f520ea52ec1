//! A job's conversation: sent once, its tokens given as they come, its end only where upstream
//! said that it is done. The whole attempt has a deadline; dropped, it is cut off at once.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use reqwest::Response;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Seat,
    call::{CallError, refusal},
    report::Report,
};
use crate::domain::chat::{Answer, Wrong};

/// Bytes taken at once of what has arrived already.
const AT_ONCE: usize = 256 * 1024;
/// After its last line an answer's end is waited for so long: then the connection can be used
/// again, and upstream does not take the call for cut off.
const GOODBYE: Duration = Duration::from_millis(50);

pub struct ChatStream<'a> {
    /// Not free before this is over.
    _seat: &'a Seat,
    response: Response,
    report: Report,
    answer: Answer,
    after: Duration,
    deadline: Instant,
    /// What comes after the tokens that were given last.
    end: Option<Result<Value, CallError>>,
    over: bool,
}

/// What a conversation comes to.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// All that arrived together.
    Tokens(Vec<String>),
    /// Upstream's last object with the whole message in it.
    Done(Value),
}

impl Seat {
    /// Begins a conversation that is over after `timeout`, whatever upstream does.
    pub async fn chat(&self, body: Bytes, timeout: Duration) -> Result<ChatStream<'_>, CallError> {
        let deadline = Instant::now() + timeout;
        let mut report = self.report().ok_or_else(CallError::held_back)?;
        let sending = self.inner.upstreams[self.at].send("/api/chat", Some(body));
        let response = match timeout_at(deadline, sending).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                if error.unsent {
                    report.is_away();
                } else {
                    report.failed();
                }
                return Err(CallError::unanswered(&error));
            }
            Err(_) => {
                report.failed();
                return Err(CallError::timeout(timeout));
            }
        };
        if response.status() != 200 {
            return Err(refusal(response, &mut report, &self.inner.clock, deadline).await);
        }
        let answer = Answer::default();
        Ok(ChatStream { _seat: self, response, report, answer, after: timeout, deadline, end: None, over: false })
    }
}

impl ChatStream<'_> {
    /// `None` after the end.
    ///
    /// # Errors
    /// The answer will not become whole.
    pub async fn next(&mut self) -> Result<Option<Step>, CallError> {
        while !self.over {
            if let Some(end) = self.end.take() {
                self.over = true;
                if end.is_ok() {
                    self.part().await;
                }
                return end.map(Step::Done).map(Some);
            }
            let arrived = timeout_at(self.deadline, self.response.chunk()).await;
            let tokens = self.take(arrived);
            if !tokens.is_empty() {
                return Ok(Some(Step::Tokens(tokens)));
            }
        }
        Ok(None)
    }

    fn take(&mut self, arrived: Result<reqwest::Result<Option<Bytes>>, tokio::time::error::Elapsed>) -> Vec<String> {
        let mut tokens = Vec::new();
        let mut taken = 0;
        let mut arrived = Some(arrived);
        while let (None, Some(piece)) = (&self.end, arrived.take()) {
            match piece {
                Ok(Ok(Some(bytes))) => {
                    self.report.begun();
                    taken += bytes.len();
                    self.feed(&bytes, &mut tokens);
                    if taken < AT_ONCE {
                        arrived = self.response.chunk().now_or_never().map(Ok);
                    }
                }
                Ok(Ok(None)) => {
                    // A last line needs no newline; half a line is no nonsense.
                    self.feed(b"\n", &mut tokens);
                    if self.end.as_ref().is_none_or(|end| *end == Err(CallError::wrong(&Wrong::Nonsense))) {
                        self.breaks(CallError::broken());
                    }
                }
                Ok(Err(_)) => self.breaks(CallError::broken()),
                Err(_) => self.breaks(CallError::timeout(self.after)),
            }
        }
        tokens
    }

    fn feed(&mut self, bytes: &[u8], tokens: &mut Vec<String>) {
        match self.answer.feed(bytes) {
            Ok(more) => tokens.extend(more),
            Err(wrong @ Wrong::Nonsense) => return self.breaks(CallError::wrong(&wrong)),
            Err(wrong) => {
                self.report.answered();
                self.end = Some(Err(CallError::wrong(&wrong)));
            }
        }
        if let Some(whole) = self.answer.whole() {
            self.report.chatted();
            self.end = Some(Ok(whole));
        }
    }

    fn breaks(&mut self, error: CallError) {
        self.report.failed();
        self.end = Some(Err(error));
    }

    /// What upstream says after its last line is of no interest, only that it ends.
    async fn part(&mut self) {
        let rest = async { while let Ok(Some(_)) = self.response.chunk().await {} };
        let _in_time_or_not = timeout(GOODBYE, rest).await;
    }
}

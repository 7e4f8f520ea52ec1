//! A chat with one upstream for a job: the request, the tokens as they come, the whole at the
//! end, and what a failure means for another try.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use serde_json::Value;
use tokio::time::Instant;

use super::Seat;
use crate::domain::{
    backoff,
    chat::{Answer, Wrong},
    durations,
};

/// What is kept of an upstream's words about a failure.
const WORDS_MAX: usize = 2 << 10;
/// Most that is read of an answer that is an error.
const ERROR_MAX: usize = 64 << 10;

/// Why an attempt failed, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// For the job's owner: no address in it.
    pub message: String,
    /// Worth another try, after what upstream asks for; `None` where that would fail the same way.
    pub retry: Option<Option<Duration>>,
    /// Upstream does not have the model.
    pub model_missing: bool,
}

/// What came of an answer.
#[derive(Debug, PartialEq)]
pub enum Step {
    Tokens(Vec<String>),
    /// The final object with the whole message.
    Done(Value),
}

/// An answer under way. Dropped, it is cut off at upstream.
pub struct ChatStream<'a> {
    seat: &'a Seat,
    response: reqwest::Response,
    answer: Answer,
    until: Instant,
    timeout: Duration,
    over: bool,
}

impl Seat {
    /// Sends a request that asks for a stream. All of it ends after `timeout`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn chat(&self, body: Bytes, timeout: Duration) -> Result<ChatStream<'_>, CallError> {
        let until = Instant::now() + timeout;
        let url = self.upstreams.url(self.index, "/api/chat");
        let request = self.upstreams.inner.client.post(url).header(header::CONTENT_TYPE, "application/json").body(body);
        let response = match tokio::time::timeout_at(until, request.send()).await {
            Err(_) => return Err(self.unwell(CallError::timeout(timeout))),
            Ok(Err(error)) => return Err(self.unwell(CallError::out_of_reach(&error))),
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            return Err(self.refused(response, until).await);
        }
        Ok(ChatStream { seat: self, response, answer: Answer::default(), until, timeout, over: false })
    }

    async fn refused(&self, mut response: reqwest::Response, until: Instant) -> CallError {
        let status = response.status();
        let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = asked.and_then(|text| backoff::retry_after(text, self.upstreams.inner.clock.now()));
        let mut text = Vec::new();
        while text.len() < ERROR_MAX
            && let Ok(Ok(Some(more))) = tokio::time::timeout_at(until, response.chunk()).await
        {
            text.extend_from_slice(&more);
        }
        self.report(!status.is_server_error());
        let model_missing = status == StatusCode::NOT_FOUND;
        if model_missing {
            self.upstreams.with(self.index, |server| server.models.as_mut().map(|models| models.remove(&self.model)));
        }
        let again = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
        let message = format!("the model upstream answered {}: {}", status.as_u16(), words(&text));
        CallError { message, retry: again.then_some(after), model_missing }
    }

    fn unwell(&self, error: CallError) -> CallError {
        self.report(false);
        error
    }
}

impl ChatStream<'_> {
    /// The next tokens, or the end. `None` after it.
    ///
    /// # Errors
    /// See [`CallError`]. An answer cut off before `"done": true` is one.
    pub async fn next(&mut self) -> Result<Option<Step>, CallError> {
        while !self.over {
            if let Some(whole) = self.answer.whole() {
                return Ok(Some(self.done(whole)));
            }
            let more = match tokio::time::timeout_at(self.until, self.response.chunk()).await {
                Err(_) => return Err(self.seat.unwell(CallError::timeout(self.timeout))),
                Ok(Err(_)) => return Err(self.seat.unwell(CallError::broken())),
                Ok(Ok(more)) => more,
            };
            let fed = self.answer.feed(more.as_deref().unwrap_or(b"\n"));
            let tokens = fed.map_err(|wrong| self.wrong(&wrong))?;
            if !tokens.is_empty() {
                return Ok(Some(Step::Tokens(tokens)));
            }
            if more.is_none() && !self.answer.is_done() {
                return Err(self.seat.unwell(CallError::broken()));
            }
        }
        Ok(None)
    }

    fn done(&mut self, whole: Value) -> Step {
        self.over = true;
        self.seat.report(true);
        let model = self.seat.model.clone();
        self.seat.upstreams.with(self.seat.index, |server| server.loaded.insert(model));
        Step::Done(whole)
    }

    /// It answered, so it is well; its answer is not.
    fn wrong(&self, wrong: &Wrong) -> CallError {
        self.seat.report(true);
        let message = match wrong {
            Wrong::Error(text) => format!("the model upstream reported an error: {}", words(text.as_bytes())),
            other => other.to_string(),
        };
        CallError { message, retry: Some(None), model_missing: false }
    }
}

impl CallError {
    /// Another try would fail the same way.
    pub fn never(message: String) -> Self {
        Self { message, retry: None, model_missing: false }
    }

    /// The answer ended too early.
    pub fn broken() -> Self {
        Self::again("the model upstream broke off its answer".to_owned())
    }

    fn timeout(after: Duration) -> Self {
        Self::again(format!("the model upstream did not finish within {}", durations::format_short(after)))
    }

    fn out_of_reach(error: &reqwest::Error) -> Self {
        tracing::debug!(%error, "a model upstream is out of reach");
        let what = if error.is_connect() { "could not be reached" } else { "broke off the connection" };
        Self::again(format!("the model upstream {what}"))
    }

    fn again(message: String) -> Self {
        Self { message, retry: Some(None), model_missing: false }
    }
}

/// Upstream's own words: the text of an error object, on one line, bounded.
fn words(text: &[u8]) -> String {
    let value: Option<Value> = serde_json::from_slice(text).ok();
    let told = value.as_ref().and_then(|value| value.get("error")?.as_str());
    let text = told.map_or_else(|| String::from_utf8_lossy(text).into_owned(), str::to_owned);
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('\0', "");
    if line.len() > WORDS_MAX {
        line.truncate(line.floor_char_boundary(WORDS_MAX));
        line.push('…');
    }
    if line.is_empty() { "no reason given".to_owned() } else { line }
}

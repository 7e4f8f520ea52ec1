//! A call that failed: what is said of it to users, and whether another attempt may help.

use std::time::Duration;

use reqwest::{Response, header};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{report::Report, upstream::Unanswered};
use crate::domain::{backoff, chat::Wrong, clock::Clock};

/// Bytes of upstream's own words that are passed on.
const WORDS_MAX: usize = 2048;
/// Bytes of a refusal that are read, and for how long.
const REFUSAL_MAX: usize = 64 * 1024;
const REFUSAL_WAIT: Duration = Duration::from_secs(5);

/// Why there is no answer. The message is for users: it holds no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    pub message: String,
    pub retry: Retry,
    /// Upstream has not this model. Another one may have it.
    pub model_missing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Another attempt may help, after what upstream asked for.
    Later(Option<Duration>),
    /// It would fail the same way.
    Never,
}

impl Retry {
    /// What `then` makes of the wait that upstream asked for, where another attempt may help.
    pub fn map<T>(self, then: impl FnOnce(Option<Duration>) -> T) -> Option<T> {
        match self {
            Self::Later(asked) => Some(then(asked)),
            Self::Never => None,
        }
    }
}

impl CallError {
    pub fn never(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: Retry::Never, model_missing: false }
    }

    pub fn later(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: Retry::Later(None), model_missing: false }
    }

    /// The answer ended before it was done.
    pub fn broken() -> Self {
        Self::later("the model upstream's answer broke off before it was done")
    }

    pub(super) fn timeout(after: Duration) -> Self {
        Self::later(format!("the model upstream's answer was not done within {after:?}"))
    }

    pub(super) fn held_back() -> Self {
        Self::later("the model upstream has failed too often, it is left alone for a while")
    }

    /// Before the answer began.
    pub(super) fn unanswered(error: &Unanswered) -> Self {
        let what = if error.unsent { "is out of reach" } else { "did not answer" };
        Self::later(format!("the model upstream {what}: {}", error.why))
    }

    /// What is wrong with the lines of an answer.
    pub(super) fn wrong(wrong: &Wrong) -> Self {
        let message = one_line(&wrong.to_string());
        match wrong {
            Wrong::Error(_) | Wrong::Nonsense => Self::later(message),
            Wrong::TooLong => Self::never(message),
        }
    }
}

/// Another answer than 200: reported, and in upstream's own words.
pub async fn refusal(mut response: Response, report: &mut Report, clock: &Clock, deadline: Instant) -> CallError {
    let status = response.status().as_u16();
    match status {
        404 => report.lacks_model(),
        500.. => report.failed(),
        _ => report.answered(),
    }
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let asked = retry_after.and_then(|value| backoff::retry_after(value, clock.now()));
    let mut said = Vec::new();
    let reading = async {
        while let (true, Ok(Some(chunk))) = (said.len() < REFUSAL_MAX, response.chunk().await) {
            said.extend_from_slice(&chunk);
        }
    };
    // What came counts, however it goes on.
    let _cut_short = timeout_at(deadline.min(Instant::now() + REFUSAL_WAIT), reading).await;
    let words = words(&said);
    let message = format!("the model upstream answered {status}{}{words}", if words.is_empty() { "" } else { ": " });
    let retry = match status {
        408 | 425 | 429 | 500.. => Retry::Later(asked),
        _ => Retry::Never,
    };
    CallError { message, retry, model_missing: status == 404 }
}

/// Ollama's `{"error": …}`, else the text as it is.
fn words(said: &[u8]) -> String {
    let error = serde_json::from_slice::<Value>(said).ok().and_then(|mut said| match said.get_mut("error")?.take() {
        Value::String(text) => Some(text),
        Value::Object(object) => Some(object.get("message")?.as_str()?.to_owned()),
        _ => None,
    });
    one_line(&error.unwrap_or_else(|| String::from_utf8_lossy(said).into_owned()))
}

/// Without line breaks and other controls, and not too long.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty()).collect();
    let mut line = words.join(" ");
    line.truncate(line.floor_char_boundary(WORDS_MAX));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_words_are_one_short_line() {
        assert_eq!(words(br#"{"error":"out of\n\n  memory\u0000"}"#), "out of memory");
        assert_eq!(words(br#"{"error":{"message":"no"}}"#), "no");
        assert_eq!(words(b"404 page\r\nnot found\n"), "404 page not found");
        assert_eq!(words(b""), "");
        let long = words("é".repeat(4000).as_bytes());
        assert_eq!(long.len(), WORDS_MAX);
        assert_eq!(words("aé".repeat(4000).as_bytes()).len(), WORDS_MAX - 1, "no character is cut in two");
    }
}

//! A conversation that is passed on while its client waits: status and bytes as they come. The
//! client's going away cuts upstream off, before the first byte too; upstream's breaking off
//! breaks off here, also where it looks like a clean end.

use std::{io, mem};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::HeaderValue;
use reqwest::Response;
use serde_json::Value;

use super::{
    Upstreams,
    report::Report,
    upstream::{Whole, told},
};
use crate::{
    domain::chat::{asks, model_name},
    error::{Error, Kind, Result},
};

/// A line that is longer is not looked at.
const LINE_MAX: usize = 64 << 20;

/// Upstream's answer, to be passed on.
pub struct Passed {
    pub status: u16,
    pub content_type: Option<HeaderValue>,
    pub retry_after: Option<HeaderValue>,
    /// Of an answer that broke off the last item is an error.
    pub body: BoxStream<'static, io::Result<Bytes>>,
}

impl Upstreams {
    /// Passes a chat on to where its model is. It needs no seat. Where no breaker permits it, it
    /// is tried all the same: whoever waits hears upstream's own words.
    ///
    /// # Errors
    /// No upstream could be reached, or the one that was did not answer.
    pub async fn pass_chat(&self, body: Bytes) -> Result<Passed> {
        let (model, streamed) = asks(&body);
        let model = model_name(&model);
        let mut held_back = Vec::new();
        for at in self.candidates(&model).await {
            let Some(report) = Report::ask(&self.inner, at, &model) else {
                held_back.push(at);
                continue;
            };
            if let Some(passed) = self.try_pass(at, &body, streamed, report).await? {
                return Ok(passed);
            }
        }
        for at in held_back {
            let report = Report::new(&self.inner, at, &model, None);
            if let Some(passed) = self.try_pass(at, &body, streamed, report).await? {
                return Ok(passed);
            }
        }
        Err(Error::unavailable("the model upstream", "no connection to any that may have the model"))
    }

    /// `None` where nothing was sent: another one may be tried.
    async fn try_pass(&self, at: usize, body: &Bytes, streamed: bool, mut report: Report) -> Result<Option<Passed>> {
        match self.inner.upstreams[at].send("/api/chat", Some(body.clone())).await {
            Ok(response) => Ok(Some(pass(response, report, streamed))),
            Err(error) if error.unsent => {
                report.is_away();
                Ok(None)
            }
            Err(error) => {
                report.failed();
                let message = "the model upstream broke off before it answered";
                Err(Error::new(Kind::BadGateway, "UPSTREAM_FAILED", message).cause(error.why))
            }
        }
    }

    /// Where the model is; where nobody is known to have it, those that may come first. A name
    /// that is new is looked up before, where there is a choice.
    pub(super) async fn candidates(&self, model: &str) -> Vec<usize> {
        if self.inner.upstreams.len() > 1 {
            let _or_nobody_can_tell = self.knows(model).await;
        }
        let mut candidates = self.best_first(model);
        if !self.surely_has(model) {
            let all = 0..self.inner.upstreams.len();
            let rest: Vec<usize> = all.filter(|at| !candidates.contains(at)).collect();
            candidates.extend(rest);
        }
        candidates
    }
}

impl From<Whole> for Passed {
    fn from(whole: Whole) -> Self {
        let body = stream::once(async { Ok(whole.body) }).boxed();
        Self { status: whole.status, content_type: whole.content_type, retry_after: whole.retry_after, body }
    }
}

fn pass(response: Response, mut report: Report, streamed: bool) -> Passed {
    let status = response.status().as_u16();
    let [content_type, retry_after] = told(&response);
    match status {
        404 => report.lacks_model(),
        500.. => report.failed(),
        _ => {}
    }
    let tail = (streamed && status == 200).then(Tail::default);
    let passing = Passing { response, report, status, tail, over: false };
    let next = |mut passing: Passing| async { Some((passing.next().await?, passing)) };
    Passed { status, content_type, retry_after, body: stream::unfold(passing, next).boxed() }
}

/// An answer on its way through. Dropped, it is cut off.
struct Passing {
    response: Response,
    report: Report,
    status: u16,
    /// Of an answer in lines.
    tail: Option<Tail>,
    over: bool,
}

impl Passing {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if mem::replace(&mut self.over, true) {
            return None;
        }
        match self.response.chunk().await {
            Ok(Some(bytes)) => {
                self.over = false;
                self.report.begun();
                if let Some(tail) = &mut self.tail {
                    tail.feed(&bytes);
                }
                Some(Ok(bytes))
            }
            Ok(None) if self.tail.as_ref().is_none_or(Tail::is_an_end) => {
                match self.status {
                    200 => self.report.chatted(),
                    500.. => {}
                    _ => self.report.answered(),
                }
                None
            }
            Ok(None) | Err(_) => {
                self.report.failed();
                Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the model upstream broke off")))
            }
        }
    }
}

/// The last line of an answer: it tells whether an end that looks clean is the end.
#[derive(Default)]
struct Tail {
    line: Vec<u8>,
    /// The next byte that is not blank begins a line.
    fresh: bool,
    /// The line is longer than anybody looks at.
    cut: bool,
}

impl Tail {
    fn feed(&mut self, bytes: &[u8]) {
        for (n, piece) in bytes.split(|byte| *byte == b'\n').enumerate() {
            self.fresh |= n > 0;
            let begins = self.fresh || self.line.is_empty();
            if begins && piece.trim_ascii().is_empty() {
                continue;
            }
            if begins {
                self.line.clear();
                (self.fresh, self.cut) = (false, false);
            }
            let room = LINE_MAX - self.line.len();
            self.cut |= piece.len() > room;
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
        }
    }

    /// Whether an answer may end here: it is done, or upstream said why not. What is too long to
    /// be looked at is believed.
    fn is_an_end(&self) -> bool {
        if self.cut {
            return true;
        }
        let Ok(Value::Object(last)) = serde_json::from_slice(self.line.trim_ascii()) else { return false };
        last.get("done") == Some(&Value::Bool(true)) || last.get("error").is_some_and(|error| !error.is_null())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    fn tail(pieces: &[&[u8]]) -> bool {
        let mut tail = Tail::default();
        for piece in pieces {
            tail.feed(piece);
        }
        tail.is_an_end()
    }

    #[test]
    fn the_last_line_tells_whether_the_end_is_one() {
        assert!(tail(&[b"{\"done\":false}\n{\"done\":true}\n \r\n"]));
        assert!(tail(&[b"{\"done\":fal", b"se}\n{\"done\"", b":", b" ", b"true}"]));
        assert!(tail(&[b"{\"error\":\"out of memory\"}\n"]));
        assert!(!tail(&[]));
        assert!(!tail(&[b"{\"error\":null}\n"]));
        assert!(!tail(&[b"{\"done\":true}\n{\"done\":false}\n"]));
        assert!(!tail(&[b"{\"done\":true}\n{\"do"]));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_its_last_line_is_the_same(
            text in r#"((\{"done":(true|false)\}|\{"error":"a b"\}|[ {}a\r])?\n?){0,6}"#,
            cuts in vec(any::<Index>(), 0..8),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(tail(&pieces), tail(&[bytes]));
            let last = text.split('\n').map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
            prop_assert_eq!(tail(&[bytes]), last == r#"{"done":true}"# || last == r#"{"error":"a b"}"#);
        }
    }
}

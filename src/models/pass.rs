//! Passing a client's request on while it waits: status and bytes as they come. A client that
//! goes away cuts upstream off; a stream that upstream breaks off breaks off here too.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::join_all, stream, stream::BoxStream};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::Upstreams;
use crate::{
    domain::chat,
    error::{Error, Result},
};

/// A short question is answered in so long.
const SHORT: Duration = Duration::from_secs(8);
/// Bytes of a last line that are kept to see whether it was an end.
const LINE_MAX: usize = 1 << 20;

/// An answer to pass on.
pub struct Passed {
    pub status: u16,
    pub content_type: Option<HeaderValue>,
    pub retry_after: Option<HeaderValue>,
    pub body: BoxStream<'static, io::Result<Bytes>>,
}

impl Upstreams {
    /// A chat. The headers come when upstream begins to answer, which may take as long as loading
    /// a model does.
    ///
    /// # Errors
    /// 503 where no upstream can be reached.
    pub async fn pass_chat(&self, body: Bytes) -> Result<Passed> {
        let (model, streams) = chat::asks(&body);
        let mut passed = self.send("/api/chat", &model, body).await?;
        if streams && passed.status == StatusCode::OK.as_u16() {
            passed.body = Whole { body: passed.body, line: Vec::new(), ended: false, over: false }.boxed();
        }
        Ok(passed)
    }

    /// # Errors
    /// As [`Upstreams::pass_chat`].
    pub async fn show(&self, body: Bytes) -> Result<Passed> {
        let asked = serde_json::from_slice::<Value>(&body).ok();
        let named = asked.as_ref().and_then(|asked| asked.get("model").or_else(|| asked.get("name"))?.as_str());
        self.send("/api/show", named.unwrap_or_default(), body.clone()).await
    }

    /// The models of all upstreams together; of one, its answer as it came.
    ///
    /// # Errors
    /// As [`Upstreams::pass_chat`].
    pub async fn tags(&self) -> Result<Passed> {
        self.merged("/api/tags").await
    }

    /// The loaded models of all upstreams together.
    ///
    /// # Errors
    /// As [`Upstreams::pass_chat`].
    pub async fn ps(&self) -> Result<Passed> {
        self.merged("/api/ps").await
    }

    /// Of the first upstream that answers.
    ///
    /// # Errors
    /// As [`Upstreams::pass_chat`].
    pub async fn version(&self) -> Result<Passed> {
        let mut last = None;
        for index in 0..self.inner.urls.len() {
            match self.get(index, "/api/version").await {
                Ok(response) => return Ok(pass(response)),
                Err(error) => last = Some(error),
            }
        }
        Err(out_of_reach(last))
    }

    /// To the upstreams that have the model, then to the others, until one takes it.
    async fn send(&self, path: &str, model: &str, body: Bytes) -> Result<Passed> {
        if self.inner.urls.len() > 1 && !self.has(model) {
            self.refresh_for_unknown().await;
        }
        let mut last = None;
        for index in self.in_order(model) {
            let request = self.inner.client.post(self.url(index, path));
            let request = request.header(header::CONTENT_TYPE, "application/json").body(body.clone());
            match request.send().await {
                Ok(response) => return Ok(pass(response)),
                // Nothing was sent: another one may take it.
                Err(error) if error.is_connect() => last = Some(error),
                Err(error) => return Err(out_of_reach(Some(error))),
            }
        }
        Err(out_of_reach(last))
    }

    fn in_order(&self, model: &str) -> Vec<usize> {
        let name = chat::model_name(model);
        let servers = self.servers();
        let mut order: Vec<usize> = (0..servers.len()).collect();
        order.sort_by_key(|index| (!servers[*index].has(&name), !servers[*index].loaded.contains(name.as_ref())));
        order
    }

    async fn merged(&self, path: &str) -> Result<Passed> {
        if self.inner.urls.len() == 1 {
            return self.get(0, path).await.map(pass).map_err(|error| out_of_reach(Some(error)));
        }
        let asked = (0..self.inner.urls.len()).map(|index| async move {
            let bytes = self.get(index, path).await?.error_for_status()?.bytes().await?;
            Ok::<_, reqwest::Error>(serde_json::from_slice::<Value>(&bytes).unwrap_or_default())
        });
        let (mut models, mut heard, mut last): (Vec<Value>, bool, _) = (Vec::new(), false, None);
        for answer in join_all(asked).await {
            match answer {
                Ok(answer) => {
                    heard = true;
                    let listed = answer.get("models").and_then(Value::as_array).cloned().unwrap_or_default();
                    let known = |model: &Value| models.iter().any(|one| one.get("name") == model.get("name"));
                    let new: Vec<Value> = listed.into_iter().filter(|model| !known(model)).collect();
                    models.extend(new);
                }
                Err(error) => last = Some(error),
            }
        }
        if !heard {
            return Err(out_of_reach(last));
        }
        let body = Bytes::from(json!({"models": models}).to_string());
        let content_type = Some(HeaderValue::from_static("application/json"));
        Ok(Passed { status: 200, content_type, retry_after: None, body: stream::once(async { Ok(body) }).boxed() })
    }

    async fn get(&self, index: usize, path: &str) -> std::result::Result<reqwest::Response, reqwest::Error> {
        self.inner.client.get(self.url(index, path)).timeout(SHORT).send().await
    }
}

fn pass(response: reqwest::Response) -> Passed {
    Passed {
        status: response.status().as_u16(),
        content_type: response.headers().get(header::CONTENT_TYPE).cloned(),
        retry_after: response.headers().get(header::RETRY_AFTER).cloned(),
        body: response.bytes_stream().map(|part| part.map_err(io::Error::other)).boxed(),
    }
}

fn out_of_reach(error: Option<reqwest::Error>) -> Error {
    Error::unavailable(
        "the model upstream",
        error.map_or_else(|| "none answered".to_owned(), |error| error.to_string()),
    )
}

/// A stream of lines that is whole only where its last line says so: an upstream that ends the
/// connection in the middle looks like one that is done.
struct Whole {
    body: BoxStream<'static, io::Result<Bytes>>,
    line: Vec<u8>,
    ended: bool,
    over: bool,
}

impl Whole {
    fn look(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() <= LINE_MAX {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                self.close_line();
            }
        }
    }

    fn close_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let is_end = |value: Value| value.get("done") == Some(&Value::Bool(true)) || value.get("error").is_some();
        self.ended = serde_json::from_slice(&line).is_ok_and(is_end);
    }
}

impl Stream for Whole {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let next = futures::ready!(self.body.poll_next_unpin(cx));
        match &next {
            Some(Ok(bytes)) => {
                let bytes = bytes.clone();
                self.look(&bytes);
            }
            Some(Err(_)) => self.over = true,
            None => {
                self.over = true;
                self.close_line();
                if !self.ended {
                    return Poll::Ready(Some(Err(io::Error::other("the model upstream broke off its answer"))));
                }
            }
        }
        Poll::Ready(next)
    }
}

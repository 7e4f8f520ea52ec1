//! Server-sent events, read as a browser reads them.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http::HeaderMap;
use serde_json::Value;

use super::soon;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

impl Event {
    /// The number in the event's id; `None` for `final` and for events without id.
    pub fn number(&self) -> Option<u64> {
        self.id.as_ref()?.rsplit_once(':')?.1.parse().ok()
    }

    pub fn is_last(&self) -> bool {
        self.id.as_ref().is_some_and(|id| id.ends_with(":final"))
    }

    pub fn line(&self) -> &str {
        self.data["line"].as_str().unwrap_or_default()
    }
}

/// An open stream.
pub struct Events {
    pub headers: HeaderMap,
    /// What `retry:` said last.
    pub retry: Option<u64>,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    waiting: BytesMut,
}

impl Events {
    pub fn new(response: reqwest::Response) -> Self {
        let headers = response.headers().clone();
        Self { headers, retry: None, body: Box::pin(response.bytes_stream()), waiting: BytesMut::new() }
    }

    /// The next event; `None` when the server has closed the stream.
    pub async fn try_next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.waiting.windows(2).position(|pair| pair == b"\n\n") {
                let block = self.waiting.split_to(end + 2);
                if let Some(event) = self.parse(std::str::from_utf8(&block).expect("events are UTF-8")) {
                    return Some(event);
                }
            }
            match soon("the next event", self.body.next()).await {
                Some(Ok(bytes)) => self.waiting.extend_from_slice(&bytes),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The next event, `connected` and heartbeats left out.
    pub async fn next(&mut self) -> Event {
        self.next_that(|_| true).await
    }

    /// The next event of this name.
    pub async fn next_named(&mut self, name: &str) -> Event {
        self.next_that(|event| event.name == name).await
    }

    /// The next activity of this type.
    pub async fn activity(&mut self, kind: &str) -> Event {
        self.next_that(|event| event.name == "activity" && event.data["type"] == kind).await
    }

    /// Heartbeats are no progress: the whole of the wait is bounded.
    async fn next_that(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let search = async {
            loop {
                let event = self.try_next().await.expect("the stream goes on");
                if event.name != "heartbeat" && event.name != "connected" && wanted(&event) {
                    return event;
                }
            }
        };
        soon("an event", search).await
    }

    /// Everything until the server closes it; `connected` and heartbeats left out.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let all = async {
            while let Some(event) = self.try_next().await {
                if event.name != "heartbeat" && event.name != "connected" {
                    events.push(event);
                }
            }
        };
        soon("the end of the stream", all).await;
        events
    }

    fn parse(&mut self, block: &str) -> Option<Event> {
        let (mut name, mut id, mut data) = (None, None, None);
        for line in block.lines().filter(|line| !line.is_empty() && !line.starts_with(':')) {
            let (field, value) = line.split_once(':').expect("a field and its value");
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => name = Some(value.to_owned()),
                "id" => id = Some(value.to_owned()),
                "data" => data = Some(serde_json::from_str(value).expect("data is JSON")),
                "retry" => self.retry = value.parse().ok(),
                other => panic!("a field that events do not have: {other}"),
            }
        }
        Some(Event { name: name?, id, data: data.unwrap_or_default() })
    }
}

/// The lines of one output, partial ones joined.
pub fn text_of(events: &[Event], stream: &str) -> String {
    let outputs = events.iter().filter(|event| event.name == "output" && event.data["stream"] == stream);
    outputs.fold(String::new(), |text, event| {
        let end = if event.data["partial"] == true { "" } else { "\n" };
        text + event.line() + end
    })
}

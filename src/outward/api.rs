//! An HTTP API of a server that rdev was told of: each call with a deadline, a bound on the answer and
//! a turn of the server's circuit. What changes nothing when it is done twice is asked again where it
//! failed quickly; nothing else is.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable as _};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::{Client, Request};
use serde_json::Value;
use url::Url;

use super::{
    circuit::{Circuit, PutOff},
    client::{self, Trust},
};

const CONNECT: Duration = Duration::from_secs(5);
/// One who waited so long for nothing is told so.
const AGAIN_WITHIN: Duration = Duration::from_secs(3);
/// Of what a server says of an error.
const WORDS_MAX: usize = 200;

pub struct Api {
    http: Client,
    root: Url,
    bounds: Bounds,
    circuit: Circuit,
}

/// What ends a call.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For a whole answer.
    pub within: Duration,
    /// Bytes of an answer.
    pub answer_max: usize,
}

/// What is asked. Each part of the path is escaped on its own.
pub struct Ask<'a> {
    pub method: Method,
    pub path: &'a [&'a str],
    pub query: &'a [(&'a str, &'a str)],
    pub body: Option<&'a Value>,
    pub login: &'a HeaderValue,
}

/// What the server said, and not because it is out of order.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is none.
pub enum Unanswered {
    /// It was not called.
    PutOff(PutOff),
    /// No connection: nothing was asked.
    Unreachable(String),
    /// Nobody knows whether it did what it was asked.
    Broken(String),
    Timeout(Duration),
    /// A status from 500 on, or too many requests.
    Failing(Answer),
}

impl Api {
    /// `folder` is what stands between the server and its routes. A rustls provider must be installed.
    ///
    /// # Errors
    /// A sentence for whoever starts the program.
    pub fn new(base: &Url, folder: &str, bounds: Bounds, circuit: Circuit) -> Result<Self, String> {
        let mut root = base.clone();
        root.set_path(&format!("{}/{folder}", base.path().trim_end_matches('/')));
        let (http, _) = client::build(CONNECT, Trust::System, |plain| plain)?;
        Ok(Self { http, root, bounds, circuit })
    }

    /// For what changes nothing when it is done twice.
    ///
    /// # Errors
    /// The last failure.
    pub async fn insist(&self, ask: Ask<'_>) -> Result<Answer, Unanswered> {
        let began = Instant::now();
        let policy = ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_max_times(2);
        let worth = |error: &Unanswered| !matches!(error, Unanswered::PutOff(_)) && began.elapsed() < AGAIN_WITHIN;
        let call = || self.call(&ask, self.bounds.within);
        call.retry(policy.with_jitter()).sleep(tokio::time::sleep).when(worth).await
    }

    /// Once: whoever gets no answer may not know what became of it.
    ///
    /// # Errors
    /// The failure.
    pub async fn once(&self, ask: Ask<'_>, within: Duration) -> Result<Answer, Unanswered> {
        self.call(&ask, within).await
    }

    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    async fn call(&self, ask: &Ask<'_>, within: Duration) -> Result<Answer, Unanswered> {
        let request = self.request(ask);
        let turn = self.circuit.turn().map_err(Unanswered::PutOff)?;
        let outcome = tokio::time::timeout(within, self.exchange(request)).await;
        let outcome = outcome.unwrap_or(Err(Unanswered::Timeout(within)));
        // Too many requests is a word of one who is well.
        let well = outcome.as_ref().is_ok_and(|answer| answer.status < 500);
        turn.went(well);
        self.circuit.found(well);
        match outcome? {
            answer if answer.status >= 500 || answer.status == 429 => Err(Unanswered::Failing(answer)),
            answer => Ok(answer),
        }
    }

    fn request(&self, ask: &Ask<'_>) -> Request {
        let json = HeaderValue::from_static("application/json");
        let mut request = Request::new(ask.method.clone(), self.url(ask));
        request.headers_mut().insert(header::AUTHORIZATION, ask.login.clone());
        request.headers_mut().insert(header::ACCEPT, json.clone());
        if let Some(body) = ask.body {
            request.headers_mut().insert(header::CONTENT_TYPE, json);
            *request.body_mut() = Some(body.to_string().into());
        }
        request
    }

    async fn exchange(&self, request: Request) -> Result<Answer, Unanswered> {
        let mut response = self.http.execute(request).await.map_err(broken)?;
        let (status, headers) = (response.status().as_u16(), std::mem::take(response.headers_mut()));
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if chunk.len() > self.bounds.answer_max - body.len() {
                return Err(Unanswered::Broken(format!("its answer is over {} MiB", self.bounds.answer_max >> 20)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }

    fn url(&self, ask: &Ask<'_>) -> Url {
        let mut url = self.root.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(ask.path);
        }
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(ask.query);
        }
        url
    }
}

impl Answer {
    /// The status and what it says of itself, for the log.
    pub fn words(&self) -> String {
        let said: Option<Value> = serde_json::from_slice(&self.body).ok();
        let said = said.as_ref().and_then(|said| said["message"].as_str()).unwrap_or_default();
        let said: String = said.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
        format!("HTTP {} {said}", self.status).trim_end().to_owned()
    }
}

/// A value for `Authorization`, which no log shows.
///
/// # Errors
/// A credential that cannot stand in a header.
pub fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "the credential is no text for a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn broken(error: reqwest::Error) -> Unanswered {
    let is_connect = error.is_connect();
    let why = chain(&error.without_url());
    if is_connect { Unanswered::Unreachable(why) } else { Unanswered::Broken(why) }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(error) = at {
        text = format!("{text}: {error}");
        at = error.source();
    }
    text
}

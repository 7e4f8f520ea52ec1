//! The host's HTTP API: each call with a deadline, a bound on the answer and a turn of the
//! breaker. What changes nothing when it is done twice is asked again where it failed quickly;
//! nothing else is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable as _};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, header};
use reqwest::{Request, redirect};
use serde_json::Value;
use url::Url;

use super::{super::git::GitError, circuit::Circuit};

const CONNECT: Duration = Duration::from_secs(5);
/// For a whole answer.
const WITHIN: Duration = Duration::from_secs(10);
/// One who waited so long for nothing is told so.
const AGAIN_WITHIN: Duration = Duration::from_secs(3);
const ANSWER_MAX: usize = 8 << 20;
/// Of what the host says of an error.
const WORDS_MAX: usize = 200;
const IDLE: Duration = Duration::from_secs(15);

pub struct Client {
    http: reqwest::Client,
    /// Ends in `/api/v1`.
    root: Url,
    /// Basic: the host makes no token for a token.
    login: HeaderValue,
    circuit: Arc<Circuit>,
}

/// What the host said. A status from 500 on is none of these.
pub struct Answer {
    pub status: u16,
    /// Whether it names a next page.
    pub has_next: bool,
    /// How many there are in all, where it says so.
    pub total: Option<usize>,
    pub body: Bytes,
}

impl Client {
    /// A rustls provider must be installed.
    pub fn new(base: &Url, user: &str, password: &str, circuit: Arc<Circuit>) -> Result<Self, String> {
        let mut root = base.clone();
        root.set_path(&format!("{}/api/v1", base.path().trim_end_matches('/')));
        Ok(Self { http: http_client()?, root, login: basic(user, password)?, circuit })
    }

    /// What is at this path; `query` as pairs.
    pub async fn read(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Answer, GitError> {
        self.again(|| self.call(Method::GET, path, query, None, &self.login)).await
    }

    /// Nothing is at this path afterwards: 404 is for the caller to take as done.
    pub async fn remove(&self, path: &[&str]) -> Result<Answer, GitError> {
        self.again(|| self.call(Method::DELETE, path, &[], None, &self.login)).await
    }

    /// Once: whoever gets no answer does not know what became of it.
    pub async fn send(&self, method: Method, path: &[&str], body: &Value) -> Result<Answer, GitError> {
        self.call(method, path, &[], Some(body), &self.login).await
    }

    /// As somebody who has this token.
    pub async fn read_as(&self, token: &str, path: &[&str]) -> Result<Answer, GitError> {
        let login = sensitive(&format!("token {token}")).map_err(GitError::Away)?;
        self.again(|| self.call(Method::GET, path, &[], None, &login)).await
    }

    async fn again<F>(&self, ask: impl Fn() -> F) -> Result<Answer, GitError>
    where
        F: Future<Output = Result<Answer, GitError>>,
    {
        let began = Instant::now();
        let policy = ExponentialBuilder::default().with_min_delay(Duration::from_millis(100)).with_max_times(2);
        let worth = |error: &GitError| matches!(error, GitError::Away(_)) && began.elapsed() < AGAIN_WITHIN;
        ask.retry(policy.with_jitter()).sleep(tokio::time::sleep).when(worth).await
    }

    async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        login: &HeaderValue,
    ) -> Result<Answer, GitError> {
        let mut request = Request::new(method, self.url(path, query));
        request.headers_mut().insert(header::AUTHORIZATION, login.clone());
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(body) = body {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(body.to_string().into());
        }
        let turn = self.circuit.turn()?;
        let outcome = tokio::time::timeout(WITHIN, self.exchange(request)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(GitError::Away(format!("no answer within {WITHIN:?}"))));
        // Too many requests is a word of one who is well.
        turn.went(match &outcome {
            Ok(answer) => answer.status < 500,
            Err(_) => false,
        });
        match outcome? {
            answer if answer.status >= 500 || answer.status == 429 => Err(GitError::Away(answer.words())),
            answer => Ok(answer),
        }
    }

    async fn exchange(&self, request: Request) -> Result<Answer, GitError> {
        let away = |error: reqwest::Error| GitError::Away(chain(&error.without_url()));
        let mut response = self.http.execute(request).await.map_err(away)?;
        let status = response.status().as_u16();
        let links = response.headers().get(header::LINK).and_then(|links| links.to_str().ok()).unwrap_or("");
        let has_next = links.contains("rel=\"next\"");
        let total = response.headers().get("x-total-count").and_then(|total| total.to_str().ok()?.parse().ok());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            if chunk.len() > ANSWER_MAX - body.len() {
                return Err(GitError::Away(format!("its answer is over {} MiB", ANSWER_MAX >> 20)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, has_next, total, body: body.freeze() })
    }

    /// Each part of the path is escaped on its own.
    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.root.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }
}

impl Answer {
    pub fn json(&self) -> Result<Value, GitError> {
        serde_json::from_slice(&self.body).map_err(|error| GitError::Away(format!("its answer is no JSON: {error}")))
    }

    /// An answer that does not fit what was asked.
    pub fn unfit(&self, asked: &str) -> GitError {
        GitError::Refused(format!("{asked}: {}", self.words()))
    }

    /// The status and what it says of itself, for the log.
    fn words(&self) -> String {
        let said: Option<Value> = serde_json::from_slice(&self.body).ok();
        let said = said.as_ref().and_then(|said| said["message"].as_str()).unwrap_or_default();
        let said: String = said.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
        format!("HTTP {} {said}", self.status).trim_end().to_owned()
    }

    pub fn says(&self, words: &str) -> bool {
        String::from_utf8_lossy(&self.body).contains(words)
    }
}

/// The value of an `Authorization` header.
pub fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn sensitive(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "the credential is no text for a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// No proxy and no redirects: the credential goes to the host that was named and nowhere else.
fn http_client() -> Result<reqwest::Client, String> {
    // Without one the builder would panic.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        return Err("no rustls provider is installed".to_owned());
    }
    let builder = || {
        reqwest::Client::builder()
            .user_agent(concat!("rdev/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE)
    };
    // A machine without CA certificates may well have a host without TLS.
    let built = builder().build().or_else(|_| builder().tls_certs_only([]).build());
    built.map_err(|error| format!("no HTTP client: {error}"))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(error) = at {
        text = format!("{text}: {error}");
        at = error.source();
    }
    text
}

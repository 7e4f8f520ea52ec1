//! The host's HTTP API, as whom it is asked, and what its answers say.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, header};
use serde_json::Value;
use url::Url;

use super::super::git::GitError;
use crate::outward::{
    Circuit,
    api::{self, Api, Ask, Bounds, Unanswered, secret},
};

const BOUNDS: Bounds = Bounds { within: Duration::from_secs(10), answer_max: 8 << 20 };

pub struct Client {
    api: Api,
    /// Basic: the host makes no token for a token.
    login: HeaderValue,
}

/// What the host said. A status from 500 on is none of these.
pub struct Answer {
    pub status: u16,
    /// Whether it names a next page.
    pub has_next: bool,
    /// How many there are in all, where it says so.
    pub total: Option<usize>,
    said: api::Answer,
}

impl Client {
    /// A rustls provider must be installed.
    pub fn new(base: &Url, user: &str, password: &str, circuit: Circuit) -> Result<Self, String> {
        Ok(Self { api: Api::new(base, "api/v1", BOUNDS, circuit)?, login: basic(user, password)? })
    }

    /// What is at this path; `query` as pairs.
    pub async fn read(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Answer, GitError> {
        let ask = Ask { method: Method::GET, path, query, body: None, login: &self.login };
        answer(self.api.insist(ask).await)
    }

    /// Nothing is at this path afterwards: 404 is for the caller to take as done.
    pub async fn remove(&self, path: &[&str]) -> Result<Answer, GitError> {
        let ask = Ask { method: Method::DELETE, path, query: &[], body: None, login: &self.login };
        answer(self.api.insist(ask).await)
    }

    /// Once: whoever gets no answer does not know what became of it.
    pub async fn send(&self, method: Method, path: &[&str], body: &Value) -> Result<Answer, GitError> {
        let ask = Ask { method, path, query: &[], body: Some(body), login: &self.login };
        answer(self.api.once(ask, BOUNDS.within).await)
    }

    /// As somebody who has this token.
    pub async fn read_as(&self, token: &str, path: &[&str]) -> Result<Answer, GitError> {
        let login = secret(&format!("token {token}")).map_err(GitError::Away)?;
        let ask = Ask { method: Method::GET, path, query: &[], body: None, login: &login };
        answer(self.api.insist(ask).await)
    }
}

fn answer(outcome: Result<api::Answer, Unanswered>) -> Result<Answer, GitError> {
    let said = outcome.map_err(|error| match error {
        Unanswered::PutOff(put_off) => GitError::PutOff(put_off.after),
        Unanswered::Unreachable(why) | Unanswered::Broken(why) => GitError::Away(why),
        Unanswered::Timeout(after) => GitError::Away(format!("no answer within {after:?}")),
        Unanswered::Failing(answer) => GitError::Away(answer.words()),
    })?;
    let links = said.headers.get(header::LINK).and_then(|links| links.to_str().ok()).unwrap_or("");
    let has_next = links.contains("rel=\"next\"");
    let total = said.headers.get("x-total-count").and_then(|total| total.to_str().ok()?.parse().ok());
    Ok(Answer { status: said.status, has_next, total, said })
}

impl Answer {
    pub fn json(&self) -> Result<Value, GitError> {
        serde_json::from_slice(self.body()).map_err(|error| GitError::Away(format!("its answer is no JSON: {error}")))
    }

    /// An answer that does not fit what was asked.
    pub fn unfit(&self, asked: &str) -> GitError {
        GitError::Refused(format!("{asked}: {}", self.said.words()))
    }

    pub fn says(&self, words: &str) -> bool {
        String::from_utf8_lossy(self.body()).contains(words)
    }

    fn body(&self) -> &Bytes {
        &self.said.body
    }
}

/// The value of an `Authorization` header.
pub fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    secret(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

//! Woodpecker's routes, and what its answers mean. It shows neither a repository nor a right to whoever
//! lacks it: to them there is nothing (404).

use std::time::Duration;

use http::{HeaderValue, Method, header};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Account, CiError, Repository};
use crate::{
    domain::{
        backoff,
        breaker::Rules,
        clock::Clock,
        pipeline::{Pipeline, PipelineStatus, restart_of},
    },
    outward::{
        Circuit,
        api::{Answer, Api, Ask, Bounds, Unanswered, secret},
    },
};

const BOUNDS: Bounds = Bounds { within: Duration::from_secs(5), answer_max: 4 << 20 };
/// A restart fetches the pipeline's config anew.
const RESTART: Duration = Duration::from_secs(15);
/// As many as it gives at once.
const PAGE: usize = 50;
/// Of the list, so that one that never ends is given up.
const PAGES_MAX: usize = 20;
/// Of what it says of an error.
const WORDS_MAX: usize = 200;
/// Of its answer, to find them in.
const READ_MAX: usize = 64 << 10;

pub struct Woodpecker {
    api: Api,
    token: String,
    login: HeaderValue,
    /// Where its pages are.
    pages: String,
    clock: Clock,
}

#[derive(Deserialize)]
struct Found {
    id: i64,
}

#[derive(Deserialize)]
struct Seen {
    number: i64,
    status: String,
    #[serde(default)]
    parent: i64,
    #[serde(default)]
    finished: i64,
}

impl From<Seen> for Pipeline {
    fn from(seen: Seen) -> Self {
        let status = PipelineStatus::parse(&seen.status);
        Self { number: seen.number, parent: seen.parent, status, is_over: status.is_over(seen.finished > 0) }
    }
}

impl Woodpecker {
    pub fn new(account: &Account, clock: Clock) -> Result<Self, String> {
        let circuit = Circuit::new("ci", Rules::UPSTREAM, clock.clone());
        Ok(Self {
            api: Api::new(&account.url, "api", BOUNDS, circuit)?,
            login: secret(&format!("Bearer {}", account.token))
                .map_err(|why| format!("RDEV_WOODPECKER_TOKEN: {why}"))?,
            token: account.token.clone(),
            pages: account.url.as_str().trim_end_matches('/').to_owned(),
            clock,
        })
    }

    pub fn circuit(&self) -> &Circuit {
        self.api.circuit()
    }

    pub fn page(&self, repository: &Repository, number: i64) -> String {
        format!("{}/repos/{}/pipeline/{number}", self.pages, repository.id)
    }

    pub async fn repository(&self, name: &str) -> Result<Repository, CiError> {
        let path: Vec<&str> = ["repos", "lookup"].into_iter().chain(name.split('/')).collect();
        let answer = self.read(&path, &[]).await?;
        let missing = || CiError::NoRepository(name.to_owned());
        let Found { id } = self.understood(&answer, missing)?;
        Ok(Repository { id, name: name.to_owned() })
    }

    pub async fn pipeline(&self, repository: &Repository, number: i64) -> Result<Pipeline, CiError> {
        let (id, number) = (repository.id.to_string(), number.to_string());
        let answer = self.read(&["repos", &id, "pipelines", &number], &[]).await?;
        self.understood(&answer, || CiError::NoPipeline).map(Seen::into)
    }

    pub async fn newest(&self, repository: &Repository) -> Result<i64, CiError> {
        let newest = self.list(repository, 1, 1).await?;
        Ok(newest.iter().map(|one| one.number).max().unwrap_or(0))
    }

    pub async fn restarted(
        &self,
        repository: &Repository,
        number: i64,
        after: i64,
    ) -> Result<Option<Pipeline>, CiError> {
        let mut since = Vec::new();
        for page in 1..=PAGES_MAX {
            let listed = self.list(repository, page, PAGE).await?;
            let is_last = listed.len() < PAGE || listed.iter().any(|one| one.number <= after);
            since.extend(listed);
            if is_last {
                break;
            }
        }
        Ok(restart_of(number, after, &since))
    }

    pub async fn restart(&self, repository: &Repository, number: i64) -> Result<Pipeline, CiError> {
        let (id, number) = (repository.id.to_string(), number.to_string());
        let path = ["repos", id.as_str(), "pipelines", number.as_str()];
        let ask = Ask { method: Method::POST, path: &path, query: &[], body: None, login: &self.login };
        let answer = self.api.once(ask, RESTART).await.map_err(|error| self.unsure(error))?;
        let refused = || CiError::Refused(format!("restarting a pipeline of {}: HTTP 404", repository.name));
        self.understood(&answer, refused).map(Seen::into)
    }

    /// Newest first.
    async fn list(&self, repository: &Repository, page: usize, most: usize) -> Result<Vec<Pipeline>, CiError> {
        let (id, page, most) = (repository.id.to_string(), page.to_string(), most.to_string());
        let answer = self.read(&["repos", &id, "pipelines"], &[("page", &page), ("perPage", &most)]).await?;
        let listed: Vec<Seen> = self.understood(&answer, || CiError::NoRepository(repository.name.clone()))?;
        Ok(listed.into_iter().map(Seen::into).collect())
    }

    async fn read(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Answer, CiError> {
        let ask = Ask { method: Method::GET, path, query, body: None, login: &self.login };
        self.api.insist(ask).await.map_err(|error| self.away(error))
    }

    fn understood<T: DeserializeOwned>(
        &self,
        answer: &Answer,
        missing: impl FnOnce() -> CiError,
    ) -> Result<T, CiError> {
        match answer.status {
            200 => serde_json::from_slice(&answer.body)
                // Its message may quote the answer.
                .map_err(|error| CiError::Nonsense(self.clean(&format!("HTTP 200, and no JSON that fits: {error}")))),
            401 => Err(CiError::Token),
            404 => Err(missing()),
            status @ 300..400 => Err(CiError::Redirect(status)),
            400..500 => Err(CiError::Refused(self.words(answer))),
            _ => Err(CiError::Nonsense(self.words(answer))),
        }
    }

    fn away(&self, error: Unanswered) -> CiError {
        match error {
            Unanswered::PutOff(put_off) => CiError::PutOff(put_off),
            Unanswered::Unreachable(why) | Unanswered::Broken(why) => {
                CiError::Away { why: self.clean(&why), asked: None }
            }
            Unanswered::Timeout(after) => CiError::Away { why: format!("no answer within {after:?}"), asked: None },
            Unanswered::Failing(answer) => {
                let asked = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                let asked = asked.and_then(|text| backoff::retry_after(text, self.clock.now()));
                CiError::Away { why: self.words(&answer), asked }
            }
        }
    }

    /// Of what is not asked twice.
    fn unsure(&self, error: Unanswered) -> CiError {
        match error {
            Unanswered::Broken(why) => CiError::Unsure { why: self.clean(&why), timed_out: false },
            Unanswered::Timeout(after) => {
                CiError::Unsure { why: format!("no answer within {after:?}"), timed_out: true }
            }
            // It refuses those before it looks at them.
            Unanswered::Failing(answer) if answer.status != 429 => {
                CiError::Unsure { why: self.words(&answer), timed_out: false }
            }
            error => self.away(error),
        }
    }

    /// The status, and what it says in plain text or as JSON.
    fn words(&self, answer: &Answer) -> String {
        let said = String::from_utf8_lossy(&answer.body[..answer.body.len().min(READ_MAX)]);
        self.clean(&format!("HTTP {} {}", answer.status, said.trim()))
    }

    /// One short line without the token, whoever repeats it.
    fn clean(&self, said: &str) -> String {
        let said = said.replace(&self.token, "[redacted]");
        said.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
    }
}

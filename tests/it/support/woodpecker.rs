//! A Woodpecker: its API as far as rdev asks for it, with Woodpecker's routes, codes and words. It
//! misbehaves as it is told.
//!
//! Like the real one it shows what a token may not see as if it were not there, lists the newest
//! first, and makes a new pipeline of each restart.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
};
use futures::stream;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

pub const TOKEN: &str = "wp-token-nobody-must-see";

/// Runs for as long as it lives.
pub struct Woodpecker {
    pub url: String,
    address: SocketAddr,
    host: Arc<Host>,
    serving: Mutex<JoinHandle<()>>,
}

/// What a request is met with instead of an answer.
#[derive(Clone)]
pub enum Odd {
    /// Nothing is done, and this is said.
    Says(u16, String),
    /// Nothing is done, and what came as credential is repeated.
    Repeats(u16),
    /// Nothing is done, and another place is named.
    Redirects(String),
    /// A body without an end.
    Endless,
    /// Nothing is done, and nothing is ever said.
    Silent,
    /// It is done, and this is said.
    DoneBut(u16),
    /// It is done, and nothing is ever said.
    DoneSilent,
}

struct Planned {
    method: &'static str,
    path: String,
    odd: Odd,
    left: usize,
}

#[derive(Clone)]
struct Run {
    number: i64,
    parent: i64,
    status: String,
}

struct Repo {
    id: i64,
    /// Newest last.
    runs: Vec<Run>,
    may_push: bool,
}

struct Known {
    token: String,
    repos: BTreeMap<String, Repo>,
    planned: Vec<Planned>,
    asked: Vec<String>,
}

struct Host(Mutex<Known>);

impl Woodpecker {
    pub async fn start() -> Self {
        let known = Known { token: TOKEN.into(), repos: BTreeMap::new(), planned: Vec::new(), asked: Vec::new() };
        let host = Arc::new(Host(Mutex::new(known)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("it listens");
        let serving = Mutex::new(serve(listener, host.clone()));
        Self { url: format!("http://{address}"), address, host, serving }
    }

    /// With the repository `team/p`, and its pipelines 1 to 3, which failed.
    pub async fn with_failures() -> Self {
        let ci = Self::start().await;
        ci.add_repository("team/p");
        for _ in 0..3 {
            ci.add("team/p", "failure");
        }
        ci
    }

    /// The settings with which rdev uses it.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        vec![("RDEV_WOODPECKER_URL", &self.url), ("RDEV_WOODPECKER_TOKEN", TOKEN)]
    }

    pub fn add_repository(&self, name: &str) {
        let mut known = self.host.known();
        let id = 40 + i64::try_from(known.repos.len()).expect("few");
        known.repos.insert(name.to_owned(), Repo { id, runs: Vec::new(), may_push: true });
    }

    /// A pipeline as somebody's push makes it. Answers its number.
    pub fn add(&self, repository: &str, status: &str) -> i64 {
        self.host.add(repository, 0, status)
    }

    pub fn set(&self, repository: &str, number: i64, status: &str) {
        let mut known = self.host.known();
        let repo = known.repos.get_mut(repository).expect("it was added");
        let run = repo.runs.iter_mut().find(|run| run.number == number).expect("it was added");
        status.clone_into(&mut run.status);
    }

    pub fn takes_the_right_to_push(&self, repository: &str) {
        self.host.known().repos.get_mut(repository).expect("it was added").may_push = false;
    }

    pub fn has_token(&self, token: &str) {
        token.clone_into(&mut self.host.known().token);
    }

    /// The numbers of the restarts of a pipeline.
    pub fn restarts(&self, repository: &str, of: i64) -> Vec<i64> {
        let known = self.host.known();
        known.repos[repository].runs.iter().filter(|run| run.parent == of).map(|run| run.number).collect()
    }

    /// The next so many requests of this method whose path holds these words.
    pub fn plan(&self, method: &'static str, path: &str, odd: Odd, times: usize) {
        self.host.known().planned.push(Planned { method, path: path.to_owned(), odd, left: times });
    }

    pub fn behaves(&self) {
        self.host.known().planned.clear();
    }

    /// Requests so far that hold these words, as `METHOD path`.
    pub fn asked(&self, words: &str) -> usize {
        self.host.known().asked.iter().filter(|asked| asked.contains(words)).count()
    }

    /// Nobody listens any more.
    pub fn goes_down(&self) {
        self.serving.lock().unwrap().abort();
        self.plan("", "", Odd::Says(502, "down".into()), usize::MAX);
    }

    /// At the same address.
    pub async fn comes_back(&self) {
        let listener = super::eventually("the port", async || TcpListener::bind(self.address).await.ok()).await;
        self.behaves();
        *self.serving.lock().unwrap() = serve(listener, self.host.clone());
    }
}

impl Drop for Woodpecker {
    fn drop(&mut self) {
        self.serving.lock().unwrap().abort();
    }
}

fn serve(listener: TcpListener, host: Arc<Host>) -> JoinHandle<()> {
    let router = axum::Router::new().fallback(answer).with_state(host);
    tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves until it is ended") })
}

async fn answer(State(host): State<Arc<Host>>, request: Request) -> Response {
    match host.meet(&request) {
        None => host.proceed(&request),
        Some(Odd::Says(status, text)) => said(status, &text),
        Some(Odd::Repeats(status)) => said(status, &format!("you said {}", credential(&request))),
        Some(Odd::Redirects(to)) => {
            let mut response = said(307, "elsewhere");
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&to).expect("a URL"));
            response
        }
        Some(Odd::Endless) => {
            let more = || Ok::<_, Infallible>(Bytes::from(vec![b'['; 64 << 10]));
            Response::new(Body::from_stream(stream::repeat_with(more)))
        }
        Some(Odd::Silent) => std::future::pending().await,
        Some(Odd::DoneBut(status)) => {
            host.proceed(&request);
            said(status, "the gateway has lost the answer")
        }
        Some(Odd::DoneSilent) => {
            host.proceed(&request);
            std::future::pending().await
        }
    }
}

impl Host {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meet(&self, request: &Request) -> Option<Odd> {
        let (method, path) = (request.method().as_str(), request.uri().path());
        let mut known = self.known();
        known.asked.push(format!("{method} {path}"));
        let fits = |one: &Planned| one.left > 0 && (one.method.is_empty() || one.method == method);
        let planned = known.planned.iter_mut().find(|one| fits(one) && path.contains(&one.path))?;
        planned.left -= 1;
        Some(planned.odd.clone())
    }

    fn add(&self, repository: &str, parent: i64, status: &str) -> i64 {
        let mut known = self.known();
        let runs = &mut known.repos.get_mut(repository).expect("it was added").runs;
        let number = runs.last().map_or(1, |run| run.number + 1);
        runs.push(Run { number, parent, status: status.to_owned() });
        number
    }

    fn proceed(&self, request: &Request) -> Response {
        if credential(request) != format!("Bearer {}", self.known().token) {
            return said(401, "User not authorized");
        }
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (request.method().as_str(), parts.as_slice()) {
            ("GET", ["api", "repos", "lookup", name @ ..]) => {
                let known = self.known();
                match known.repos.get(&name.join("/")) {
                    Some(repo) => shown(&json!({"id": repo.id, "full_name": name.join("/"), "active": true})),
                    None => said(404, ""),
                }
            }
            (method, ["api", "repos", id, "pipelines", rest @ ..]) => {
                let name = self.known().repos.iter().find(|(_, r)| r.id.to_string() == *id).map(|(n, _)| n.clone());
                match name {
                    Some(name) => self.pipelines(method, &name, rest, request.uri().query().unwrap_or_default()),
                    None => said(404, ""),
                }
            }
            _ => said(404, "page not found"),
        }
    }

    fn pipelines(&self, method: &str, repository: &str, rest: &[&str], query: &str) -> Response {
        let (runs, may_push) = {
            let known = self.known();
            (known.repos[repository].runs.clone(), known.repos[repository].may_push)
        };
        let find = |number: &str| runs.iter().find(|run| run.number.to_string() == *number);
        match (method, rest) {
            ("GET", []) => {
                let asked = |name: &str| {
                    let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
                    found.and_then(|value| value.parse::<usize>().ok())
                };
                let most = asked("perPage").filter(|n| *n <= 50).unwrap_or(50);
                let skipped = (asked("page").unwrap_or(1) - 1) * most;
                shown(&runs.iter().rev().skip(skipped).take(most).map(Run::shown).collect())
            }
            ("GET", [number]) => find(number).map_or_else(|| said(404, ""), |run| shown(&run.shown())),
            ("POST", [_]) if !may_push => said(404, ""),
            ("POST", [number]) => match find(number) {
                None => said(404, ""),
                Some(run) if run.status == "blocked" => said(400, "cannot restart a pipeline with status blocked"),
                Some(run) => {
                    let parent = run.number;
                    let number = self.add(repository, parent, "pending");
                    shown(&Run { number, parent, status: "pending".into() }.shown())
                }
            },
            _ => said(404, "page not found"),
        }
    }
}

impl Run {
    fn shown(&self) -> Value {
        let is_over = !["created", "pending", "started", "running", "blocked"].contains(&self.status.as_str());
        json!({
            "id": 1000 + self.number,
            "number": self.number,
            "parent": self.parent,
            "status": self.status,
            "event": "push",
            "created": 1_790_000_000,
            "finished": if is_over { 1_790_000_060 } else { 0 },
            "commit": "0123456789abcdef",
            "branch": "main",
        })
    }
}

fn credential(request: &Request) -> String {
    let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

fn said(status: u16, text: &str) -> Response {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

fn shown(body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

//! A Gitea: its API as far as rdev asks for it, with Gitea's routes, codes and words, over real
//! bare repositories that git's own HTTP backend serves. It misbehaves as it is told.
//!
//! Like the real one it makes no token for a token, lists nothing in one piece, looks at a new
//! pull request a little later, and pushes nothing to a protected branch for anybody.

mod api;
mod git;
mod pulls;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::git::git as run_git;

pub const USER: &str = "rdev-bot";
pub const PASSWORD: &str = "correct horse battery";
pub const ORG: &str = "team";

/// Runs for as long as it lives.
pub struct Gitea {
    pub url: String,
    address: SocketAddr,
    host: Arc<Host>,
    serving: Mutex<JoinHandle<()>>,
}

#[derive(Debug, Clone)]
pub struct Token {
    pub name: String,
    pub sha1: String,
    pub scopes: Vec<String>,
    /// Full names; none for all.
    pub repositories: Vec<String>,
}

#[derive(Default)]
struct Repository {
    default_branch: String,
    protected: Vec<String>,
    pulls: Vec<pulls::Pull>,
}

/// What a request is met with instead of an answer.
#[derive(Clone, Copy)]
pub enum Fault {
    /// Nothing is done, and this is said.
    Says(u16),
    /// It is done, and nobody hears of it.
    Mute,
    /// Nothing is done or said for so long.
    Slow(Duration),
    /// It is done, and nothing is said for so long.
    Hangs(Duration),
}

struct Planned {
    method: String,
    path: String,
    fault: Fault,
    left: usize,
}

#[derive(Default)]
struct Known {
    tokens: Vec<Token>,
    repositories: BTreeMap<String, Repository>,
    planned: Vec<Planned>,
    asked: Vec<String>,
    down: bool,
    made: u64,
    password: Option<String>,
    looks_at_once: bool,
}

struct Host {
    root: TempDir,
    /// Forgejo of late: a token may be bound to repositories.
    binds: bool,
    orgs: BTreeSet<String>,
    known: Mutex<Known>,
}

impl Gitea {
    pub async fn start() -> Self {
        Self::of(false).await
    }

    /// One that binds tokens to repositories where that is asked for.
    pub async fn forgejo() -> Self {
        Self::of(true).await
    }

    async fn of(binds: bool) -> Self {
        let root = tempfile::Builder::new().prefix("rdev-gitea.").tempdir().expect("a temporary directory");
        let orgs = [ORG.to_owned()].into();
        let host = Arc::new(Host { root, binds, orgs, known: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("it listens");
        let serving = Mutex::new(serve(listener, host.clone()));
        Self { url: format!("http://{address}"), address, host, serving }
    }

    /// The settings with which rdev uses it.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        vec![
            ("RDEV_GIT_HOST", "gitea"),
            ("RDEV_GITEA_URL", &self.url),
            ("RDEV_GITEA_USER", USER),
            ("RDEV_GITEA_PASSWORD", PASSWORD),
            ("RDEV_GITEA_OWNER", ORG),
        ]
    }

    /// A URL that opens everything, by the account's password.
    pub fn clone_url(&self, project: &str) -> String {
        let password = PASSWORD.replace(' ', "%20");
        format!("http://{USER}:{password}@{}/{ORG}/{project}.git", self.address)
    }

    /// Nobody listens any more.
    pub fn goes_down(&self) {
        self.host.known().down = true;
        self.serving.lock().unwrap().abort();
    }

    /// At the same address.
    pub async fn comes_back(&self) {
        self.host.known().down = false;
        let listener = super::eventually("the port", async || TcpListener::bind(self.address).await.ok()).await;
        *self.serving.lock().unwrap() = serve(listener, self.host.clone());
    }

    /// The next so many requests of this method whose path holds these words.
    pub fn plan(&self, method: &str, path: &str, fault: Fault, times: usize) {
        let (method, path) = (method.to_owned(), path.to_owned());
        self.host.known().planned.push(Planned { method, path, fault, left: times });
    }

    pub fn behaves(&self) {
        self.host.known().planned.clear();
    }

    /// A pull request can be merged when it is made.
    pub fn looks_at_once(&self) {
        self.host.known().looks_at_once = true;
    }

    pub fn has_password(&self, password: &str) {
        self.host.known().password = Some(password.to_owned());
    }

    pub fn tokens(&self) -> Vec<Token> {
        self.host.known().tokens.clone()
    }

    pub fn token(&self, name: &str) -> Option<Token> {
        self.tokens().into_iter().find(|token| token.name == name)
    }

    /// As somebody removed it by hand.
    pub fn drop_token(&self, name: &str) {
        self.host.known().tokens.retain(|token| token.name != name);
    }

    /// As somebody lifted it by hand.
    pub fn unprotect(&self, project: &str) {
        self.host.known().repositories.get_mut(&format!("{ORG}/{project}")).expect("it is there").protected.clear();
        self.host.protect(ORG, project);
    }

    /// As somebody made it by hand.
    pub fn make_token(&self, name: &str) {
        self.host.make_token(name, vec!["write:repository".to_owned()], Vec::new());
    }

    /// Requests to the API so far, as `METHOD path`.
    pub fn asked(&self, words: &str) -> usize {
        self.host.known().asked.iter().filter(|asked| asked.contains(words)).count()
    }

    pub fn protected(&self, project: &str) -> Vec<String> {
        self.host.known().repositories.get(&format!("{ORG}/{project}")).map(|r| r.protected.clone()).unwrap_or_default()
    }

    /// State and title of each pull request.
    pub fn pulls(&self, project: &str) -> Vec<(String, String)> {
        let known = self.host.known();
        let repository = known.repositories.get(&format!("{ORG}/{project}"));
        repository.map(|r| r.pulls.iter().map(pulls::Pull::shown).collect()).unwrap_or_default()
    }

    pub fn has_repository(&self, project: &str) -> bool {
        self.host.place(ORG, project).is_dir()
    }

    /// One that rdev has not made.
    pub async fn make_repository(&self, project: &str) {
        self.host.make_repository(ORG, project, "main").await.expect("there is none yet");
    }

    pub async fn head(&self, project: &str, branch: &str) -> Option<String> {
        self.host.commit(ORG, project, &format!("refs/heads/{branch}")).await
    }

    /// What git says in the repository itself.
    pub async fn git(&self, project: &str, args: &[&str]) -> String {
        run_git(&self.host.place(ORG, project), args).await.ok()
    }
}

impl Drop for Gitea {
    fn drop(&mut self) {
        self.serving.lock().unwrap().abort();
    }
}

fn serve(listener: TcpListener, host: Arc<Host>) -> JoinHandle<()> {
    let router = axum::Router::new().fallback(answer).with_state(host);
    tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves until it is ended") })
}

async fn answer(State(host): State<Arc<Host>>, request: Request) -> Response {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let planned = host.meet(&method, &path);
    let mut response = match planned {
        None => host.clone().proceed(request).await,
        Some(Fault::Says(status)) => said(status, "this was planned"),
        Some(Fault::Mute) => {
            host.clone().proceed(request).await;
            said(502, "the gateway has lost the answer")
        }
        Some(Fault::Slow(pause)) => {
            tokio::time::sleep(pause).await;
            host.clone().proceed(request).await
        }
        Some(Fault::Hangs(pause)) => {
            let done = host.clone().proceed(request).await;
            tokio::time::sleep(pause).await;
            done
        }
    };
    if host.known().down {
        response = said(502, "down");
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

impl Host {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn meet(&self, method: &str, path: &str) -> Option<Fault> {
        let mut known = self.known();
        known.asked.push(format!("{method} {path}"));
        let fits = |planned: &Planned| planned.left > 0 && planned.method == method && path.contains(&planned.path);
        let planned = known.planned.iter_mut().find(|planned| fits(planned))?;
        planned.left -= 1;
        Some(planned.fault)
    }

    fn proceed(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        let path = request.uri().path().strip_prefix("/api/v1/").map(str::to_owned);
        match path {
            _ if self.known().down => async { said(502, "down") }.boxed(),
            Some(path) => async move { self.api(&path, request).await }.boxed(),
            None => self.git(request).boxed(),
        }
    }

    fn place(&self, owner: &str, name: &str) -> PathBuf {
        self.root.path().join(owner).join(format!("{name}.git"))
    }

    fn make_token(&self, name: &str, scopes: Vec<String>, repositories: Vec<String>) -> Token {
        let mut known = self.known();
        known.made += 1;
        let sha1 = format!("{:08x}{}", known.made, uuid::Uuid::new_v4().simple());
        let token = Token { name: name.to_owned(), sha1, scopes, repositories };
        known.tokens.push(token.clone());
        token
    }

    /// Who asks, by password or by token.
    fn caller(&self, headers: &HeaderMap) -> Caller {
        let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
            return Caller::Nobody;
        };
        let known = self.known();
        let by_token = |text: &str| known.tokens.iter().find(|token| token.sha1 == text).cloned();
        let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case("token") || scheme.eq_ignore_ascii_case("bearer") {
            return by_token(rest).map_or(Caller::Stranger, Caller::Token);
        }
        let text = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        let (user, password) = text.split_once(':').unwrap_or((&text, ""));
        if user == USER && password == known.password.as_deref().unwrap_or(PASSWORD) {
            return Caller::Account;
        }
        // Whatever the user: a token is known by itself.
        by_token(password).map_or(Caller::Stranger, Caller::Token)
    }

    async fn commit(&self, owner: &str, name: &str, full: &str) -> Option<String> {
        let place = self.place(owner, name);
        let said = run_git(&place, &["rev-parse", "--verify", "--quiet", &format!("{full}^{{commit}}")]).await;
        said.success.then(|| said.stdout.trim().to_owned())
    }
}

enum Caller {
    Nobody,
    /// With a credential that opens nothing.
    Stranger,
    Account,
    Token(Token),
}

fn said(status: u16, message: &str) -> Response {
    shown(status, &json!({"message": message, "url": "http://gitea.example/api/swagger"}))
}

fn shown(status: u16, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

//! At the door: who calls, whether the route's rule lets them in, what was answered to the
//! same request before, and how long the work may take. The checks come in one order:
//! 401, 429, the project's id, 403, 404 for the project, a stored answer, the body.
//!
//! What is let in runs in a task of its own: a client that goes away, or a deadline that
//! passes, cancels nothing half-way.

use std::{
    net::IpAddr,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::{
    context,
    extract::{self, BodyLimit, Caller, InProject, Once},
    reply::{self, Secrets},
};
use crate::{
    domain::{ids::ProjectId, key::Key, scopes::Scope},
    error::{Error, Kind, Result},
    metrics::Metrics,
    services::{
        keys::Keys,
        limits::{Allowance, Limits},
        projects::Projects,
        receipts::{Receipts, Slot, Taken, redact},
        tickets::{self, Tickets},
    },
};

/// The checks at the door come on top of a route's deadline.
const CHECKS: Duration = Duration::from_secs(2);
/// Largest answer that is read back for an idempotency key.
const ANSWER_MAX: usize = 128 << 20;

/// What a route asks of who comes in.
#[derive(Clone)]
pub struct Rule {
    /// Any one of them suffices; none: any valid key.
    pub scopes: &'static [Scope],
    pub deadline: Duration,
    pub body_limit: usize,
    pub public: bool,
    /// A ticket in the query opens it too.
    pub ticket: bool,
    /// While the database is away it waits so long before the 503.
    pub patience: Duration,
    /// Keys bound to projects are refused.
    pub unbound: bool,
    /// The answer may be asked to wait for an end, on top of the deadline.
    pub waits: bool,
    /// It lives no longer than its client's connection: a conversation with somebody else's server.
    pub passes: bool,
    /// What it answers, where that is no envelope.
    pub answers: &'static str,
}

impl Rule {
    pub const fn any(scopes: &'static [Scope], deadline: Duration) -> Self {
        Self {
            scopes,
            deadline,
            body_limit: BodyLimit::DEFAULT,
            public: false,
            ticket: false,
            unbound: false,
            patience: Duration::ZERO,
            waits: false,
            passes: false,
            answers: "done",
        }
    }

    pub const fn public(deadline: Duration, answers: &'static str) -> Self {
        Self { public: true, answers, ..Self::any(&[], deadline) }
    }

    #[must_use]
    pub const fn body(self, limit: usize) -> Self {
        Self { body_limit: limit, ..self }
    }

    #[must_use]
    pub const fn waits(self) -> Self {
        Self { waits: true, ..self }
    }

    #[must_use]
    pub const fn passes(self) -> Self {
        Self { passes: true, ..self }
    }

    #[must_use]
    pub const fn or_ticket(self) -> Self {
        Self { ticket: true, ..self }
    }

    #[must_use]
    pub const fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    #[must_use]
    pub const fn unbound(self) -> Self {
        Self { unbound: true, ..self }
    }

    #[must_use]
    pub const fn answers(self, what: &'static str) -> Self {
        Self { answers: what, ..self }
    }
}

/// Extra time that a handler asks for, on top of the route's deadline: `wait`.
pub const WAIT_MAX: Duration = Duration::from_mins(1);

/// What the guard needs.
pub struct Door {
    pub keys: Keys,
    pub limits: Limits,
    pub projects: Projects,
    pub receipts: Receipts,
    pub tickets: Tickets,
    pub metrics: Metrics,
    /// Requests under way, which an orderly stop waits for.
    pub requests: TaskTracker,
}

/// Puts the guard before an endpoint.
pub fn guarded<S: Clone + Send + Sync + 'static>(
    endpoint: MethodRouter<S>,
    path: &'static str,
    rule: Rule,
    door: Arc<Door>,
) -> MethodRouter<S> {
    endpoint.layer(axum::middleware::from_fn(move |request: Request, next: axum::middleware::Next| {
        let (door, rule) = (door.clone(), rule.clone());
        async move {
            let started = Instant::now();
            let method = request.method().clone();
            let limit = rule.deadline + asked_wait(&rule) + CHECKS;
            let admitted = tokio::time::timeout(limit, admit(&door, &rule, path, request, next));
            let response = admitted.await.unwrap_or_else(|_| Error::timeout().into_response());
            door.metrics.request(path, &method, response.status(), started.elapsed());
            response
        }
    }))
}

async fn admit(
    door: &Arc<Door>,
    rule: &Rule,
    path: &'static str,
    request: Request,
    next: axum::middleware::Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(BodyLimit(rule.body_limit));
    if rule.public {
        return run(door, rule, next, Request::from_parts(parts, body)).await;
    }
    let identified = patiently(rule.patience, || identify(door, rule, &parts)).await;
    let (key, by_ticket) = match identified {
        Ok(key) => key,
        Err(error) => return refuse_failed(door, &parts, error),
    };
    let allowance = match door.limits.request(key.id, key.rate_limit) {
        Ok(allowance) => allowance,
        Err((error, allowance)) => return with_allowance(error.into_response(), Some(allowance)),
    };
    let outcome = enter(door, rule, path, parts, body, key, next).await;
    let mut response = with_allowance(outcome.unwrap_or_else(IntoResponse::into_response), allowance);
    if by_ticket {
        // A ticket is for pages of any origin.
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    response
}

/// The key behind the request: by `Authorization`, or by a ticket where the route takes one.
async fn identify(door: &Door, rule: &Rule, parts: &Parts) -> Result<(Arc<Key>, bool)> {
    if let Some(credential) = bearer(&parts.headers) {
        let key = door.keys.authenticate(credential, context::current().client).await?;
        return Ok((key, false));
    }
    let ticket = tickets::in_query(parts.uri.query()).filter(|_| rule.ticket);
    let Some(ticket) = ticket else { return Err(Error::unauthenticated()) };
    let id = door.tickets.open(&ticket, &parts.uri)?;
    let key = door.keys.live(id).await?.ok_or_else(Error::unauthenticated)?;
    Ok((key, true))
}

/// The credential of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, credential) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credential.trim())
}

/// A request without a credential is no failed attempt; one with a wrong one is.
fn refuse_failed(door: &Door, parts: &Parts, error: Error) -> Response {
    if error.kind() != Kind::Unauthenticated {
        return error.into_response();
    }
    let tried = parts.headers.contains_key(header::AUTHORIZATION) || tickets::in_query(parts.uri.query()).is_some();
    door.metrics.auth_failure(if tried { "invalid" } else { "missing" });
    let client = context::current().client.filter(|_| tried);
    match door.limits.failure(client) {
        Ok(()) => error.into_response(),
        Err(limited) => limited.into_response(),
    }
}

async fn enter(
    door: &Arc<Door>,
    rule: &Rule,
    path: &'static str,
    mut parts: Parts,
    body: Body,
    key: Arc<Key>,
    next: axum::middleware::Next,
) -> Result<Response> {
    let project = if path.starts_with("/projects/{id}") { Some(project_id(parts.uri.path())?) } else { None };
    if parts.uri.query().is_some_and(|query| query.contains("%00")) {
        return Err(Error::invalid("invalid query").reason("a NUL character is not allowed"));
    }
    check_scopes(rule, &key)?;
    if let Some(id) = project {
        let known = if key.sees(id.as_str()) {
            patiently(rule.patience, || door.projects.find(id.as_str())).await?
        } else {
            None
        };
        let project = known.ok_or_else(|| Error::not_found("project not found"))?;
        parts.extensions.insert(InProject(Arc::new(project)));
    }
    parts.extensions.insert(Caller(key.clone()));
    match idempotency_key(&parts)? {
        None => {
            parts.extensions.insert(Once(None));
            Ok(run(door, rule, next, Request::from_parts(parts, body)).await)
        }
        Some(name) if rule.passes => pass_once(door, rule, &name, parts, body, &key, next).await,
        Some(name) => once(door, rule, &name, parts, body, &key, next).await,
    }
}

/// The segment after `/projects/`. Only what has no need of escapes is an id.
fn project_id(path: &str) -> Result<ProjectId> {
    let text = path.split('/').nth(2).unwrap_or_default();
    ProjectId::parse(text).map_err(|_| Error::invalid("invalid project id"))
}

/// Tries again for a while where the database is away.
pub async fn patiently<T, F: Future<Output = Result<T>>>(patience: Duration, step: impl Fn() -> F) -> Result<T> {
    let until = Instant::now() + patience;
    loop {
        match step().await {
            Err(error) if error.kind() == Kind::Unavailable && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            outcome => return outcome,
        }
    }
}

fn check_scopes(rule: &Rule, key: &Key) -> Result<()> {
    if !key.may(rule.scopes) && !(rule.scopes.is_empty()) {
        let names: Vec<&str> = rule.scopes.iter().map(|scope| scope.name()).collect();
        return Err(Error::forbidden("this key lacks a scope that the route needs").detail("required_any", names));
    }
    if rule.unbound && key.is_bound() {
        return Err(
            Error::forbidden("a key that is bound to projects may not do this").detail("required_any", vec!["admin"])
        );
    }
    Ok(())
}

fn idempotency_key(parts: &Parts) -> Result<Option<String>> {
    let Some(value) = parts.headers.get("idempotency-key").filter(|_| parts.method == Method::POST) else {
        return Ok(None);
    };
    let visible = |text: &str| (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    match value.to_str().ok().filter(|text| visible(text)) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(Error::invalid("Idempotency-Key must be 1 to 255 visible ASCII characters")),
    }
}

/// A conversation that is streamed is never stored; one whole answer is, like any other.
async fn pass_once(
    door: &Arc<Door>,
    rule: &Rule,
    name: &str,
    mut parts: Parts,
    body: Body,
    key: &Key,
    next: axum::middleware::Next,
) -> Result<Response> {
    let mut whole = Request::new(body);
    whole.extensions_mut().insert(BodyLimit(rule.body_limit));
    *whole.headers_mut() = parts.headers.clone();
    let bytes = extract::read(whole).await?;
    let streams = serde_json::from_slice::<Value>(&bytes).is_ok_and(|body| body.get("stream") != Some(&false.into()));
    if !streams {
        return once(door, rule, name, parts, Body::from(bytes), key, next).await;
    }
    parts.extensions.insert(Once(None));
    Ok(run(door, rule, next, Request::from_parts(parts, Body::from(bytes))).await)
}

/// A request that may be a repeat: its first answer is given again.
async fn once(
    door: &Arc<Door>,
    rule: &Rule,
    name: &str,
    mut parts: Parts,
    body: Body,
    key: &Key,
    next: axum::middleware::Next,
) -> Result<Response> {
    let (door, rule, name, key) = (door.clone(), rule.clone(), name.to_owned(), key.id);
    let deadline = rule.deadline + asked_wait(&rule);
    let tracker = door.requests.clone();
    let work = async move {
        let mut whole = Request::new(body);
        whole.extensions_mut().insert(BodyLimit(rule.body_limit));
        *whole.headers_mut() = parts.headers.clone();
        let body: Bytes = extract::read(whole).await?;
        match door.receipts.take(key, parts.method.as_str(), parts.uri.path(), &name, &body).await? {
            Taken::Again(status, answer) => Ok(reply::replay(status, &answer)),
            Taken::First(slot) => {
                parts.extensions.insert(Once(Some(slot.clone())));
                let handled = next.run(Request::from_parts(parts, Body::from(body)));
                let handled = AssertUnwindSafe(handled).catch_unwind().await;
                let response = handled.unwrap_or_else(|_| Error::internal("a handler panicked").into_response());
                Ok(settle(&door, &rule, &slot, response).await)
            }
        }
    };
    Ok(in_a_task(
        &tracker,
        deadline,
        work.map(|outcome: Result<Response>| outcome.unwrap_or_else(IntoResponse::into_response)),
    )
    .await)
}

/// Keeps an answer that its transaction did not keep, or forgets the request. A command's was
/// kept as it began; the first answer to a request that waited tells the end.
async fn settle(door: &Door, rule: &Rule, slot: &Slot, response: Response) -> Response {
    let status = response.status();
    // Kept in a transaction that then failed is not kept; the row knows.
    if slot.is_kept() && status.is_success() && asked_wait(rule).is_zero() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, ANSWER_MAX).await else {
        return Error::internal("an answer could not be read back").into_response();
    };
    let outcome = match answer_to_keep(status, &parts, &bytes) {
        Some(answer) => door.receipts.keep_late(slot, status.as_u16(), &answer).await,
        None => door.receipts.release(slot).await,
    };
    if let Err(error) = outcome {
        tracing::warn!(%error, "an answer to an idempotent request was not kept");
    }
    Response::from_parts(parts, Body::from(bytes))
}

fn answer_to_keep(status: http::StatusCode, parts: &http::response::Parts, bytes: &[u8]) -> Option<Value> {
    let refused = matches!(status.as_u16(), 401 | 403 | 408 | 429);
    if refused || status.is_server_error() {
        return None;
    }
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    if context::current().native {
        return Some(if status.is_success() { json!({"data": value}) } else { value });
    }
    value.as_object_mut()?.remove("meta");
    if let (Some(Secrets(names)), Some(data)) = (parts.extensions.get::<Secrets>(), value.get_mut("data")) {
        redact(data, names);
    }
    Some(value)
}

/// Runs the handler in a task of its own, within the route's deadline.
async fn run(door: &Arc<Door>, rule: &Rule, next: axum::middleware::Next, request: Request) -> Response {
    if rule.passes {
        return next.run(request).await;
    }
    in_a_task(&door.requests, rule.deadline + asked_wait(rule), next.run(request)).await
}

/// Work that neither its client nor its deadline can cut short: past it only the answer is given up.
async fn in_a_task(
    tracker: &TaskTracker,
    deadline: Duration,
    work: impl Future<Output = Response> + Send + 'static,
) -> Response {
    let handled = tracker.spawn(context::within(context::current(), work));
    match tokio::time::timeout(deadline, handled).await {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => Error::internal(panic).into_response(),
        Err(_) => Error::timeout().into_response(),
    }
}

fn asked_wait(rule: &Rule) -> Duration {
    if rule.waits { WAIT_MAX } else { Duration::ZERO }
}

fn with_allowance(mut response: Response, allowance: Option<Allowance>) -> Response {
    if let Some(allowance) = allowance {
        let headers = response.headers_mut();
        headers.insert("x-ratelimit-limit", HeaderValue::from(allowance.limit));
        headers.insert("x-ratelimit-remaining", HeaderValue::from(allowance.remaining));
        headers.insert("x-ratelimit-reset", HeaderValue::from(reply::whole_seconds(allowance.reset)));
    }
    response
}

/// The client's address: the peer's, or, behind trusted proxies, the rightmost that is none of theirs.
pub fn client_address(peer: Option<IpAddr>, headers: &HeaderMap, trusted: &[ipnet::IpNet]) -> Option<IpAddr> {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(&address.to_canonical()));
    let peer = peer.map(|address| address.to_canonical());
    if !peer.as_ref().is_some_and(is_trusted) {
        return peer;
    }
    let forwarded: Vec<&str> =
        headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).collect();
    let mut nearest = peer;
    for text in forwarded.into_iter().rev() {
        let Ok(address) = text.trim().parse::<IpAddr>() else { break };
        nearest = Some(address.to_canonical());
        if !nearest.as_ref().is_some_and(is_trusted) {
            break;
        }
    }
    nearest
}

//! Jobs for models: submit, look at, wait for, listen to, cancel; their artifacts and webhooks.
//! Bodies are bare here.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    describe::{Describe, Operation},
    extract::{
        ArtifactName, BodyLimit, Caller, DeliveryId, JobId, Once, PageQuery, Query, RawBody, contains_nul, cut,
        duration, one_of,
    },
    guard::{Rule, WAIT_MAX, patiently},
    reply::Native,
    routes::{LOOKUP, Routes, STANDARD},
    streams::{Asked, EventsQuery, PATIENCE, event_stream, position},
};
use crate::{
    domain::{
        artifact,
        byte_range::{self, Requested},
        delivery::{Attempt, DeliveryStatus},
        job::{Job, JobState, PRIORITY_MAX},
        scopes::Scope,
        task::PRIORITY,
    },
    error::{Error, Result},
    services::{
        jobs::{Jobs, Submission, Whole},
        receipts::Answer,
        watching::Watching,
    },
};

const READ: &[Scope] = &[Scope::JobsRead];
/// A project's reviews are read by whoever reads the project.
const READ_OR_REVIEW: &[Scope] = &[Scope::JobsRead, Scope::ProjectsRead];
const EXECUTE: &[Scope] = &[Scope::JobsExecute];

#[derive(Clone)]
pub struct Service {
    pub jobs: Jobs,
    pub watching: Watching,
}

pub fn routes(service: Service) -> Routes<Service> {
    let read = || Rule::any(READ_OR_REVIEW, LOOKUP);
    Routes::new("jobs", service)
        .on(&Method::POST, "/jobs", "submit_a_job", Rule::any(EXECUTE, STANDARD).body(BodyLimit::CHAT), submit)
        .on(&Method::GET, "/jobs", "list_jobs", Rule::any(READ, LOOKUP), list)
        .on(&Method::GET, "/jobs/{jid}", "get_a_job", read().waits(), get)
        .on(&Method::DELETE, "/jobs/{jid}", "cancel_a_job", Rule::any(EXECUTE, STANDARD), cancel)
        .on(
            &Method::GET,
            "/jobs/{jid}/artifacts/{name}",
            "get_an_artifact_of_a_job",
            read().answers("the bytes, with the content type that they were stored with"),
            get_artifact,
        )
        .on(
            &Method::GET,
            "/jobs/{jid}/events",
            "listen_to_a_job",
            Rule::any(READ_OR_REVIEW, PATIENCE + LOOKUP)
                .or_ticket()
                .patient(PATIENCE)
                .answers("server-sent events: state, token, reset, complete"),
            events,
        )
        .on(&Method::GET, "/jobs/{jid}/deliveries", "list_webhooks_of_a_job", read(), deliveries)
        .on(
            &Method::POST,
            "/jobs/{jid}/deliveries/{did}/redeliver",
            "send_a_webhook_again",
            Rule::any(EXECUTE, STANDARD).answers("202: it is sent once more"),
            redeliver,
        )
}

/// Ollama's chat request, with what is rdev's own. What is not named here goes to the model as it came.
#[derive(Deserialize, ToSchema)]
struct SubmitJob {
    #[schema(value_type = String)]
    model: Option<String>,
    /// Ollama's messages.
    #[schema(value_type = Vec<Object>)]
    messages: Option<Box<RawValue>>,
    /// Hears of every change of state.
    state_webhook_url: Option<String>,
    /// 0–9, 0 first; default 4.
    #[schema(value_type = Option<i16>)]
    priority: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct Submitted {
    /// A ULID.
    job_id: String,
}

/// A job as a list shows it.
#[derive(Serialize, ToSchema)]
struct JobSummary {
    job_id: String,
    state: JobState,
    model: String,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    /// Counts claims.
    attempt: i32,
    error: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct JobView {
    #[serde(flatten)]
    summary: JobSummary,
    /// Upstream's final object with the whole message, or where it went that was too large.
    #[schema(value_type = Option<Object>)]
    result: Option<Box<RawValue>>,
    /// Small ones with their `data`, large ones with their `url`.
    #[schema(value_type = Vec<Object>)]
    artifacts: Vec<Value>,
}

impl JobSummary {
    fn of(job: Job) -> Self {
        Self {
            job_id: job.id,
            state: job.state,
            model: job.model,
            created_at: job.created_at,
            started_at: job.started_at,
            completed_at: job.completed_at,
            attempt: job.attempt,
            error: job.error,
        }
    }
}

impl JobView {
    fn of(whole: Whole) -> Self {
        let view = |one: &crate::services::jobs::ArtifactRow| {
            let url = format!("/jobs/{}/artifacts/{}", whole.job.id, one.name);
            let size = usize::try_from(one.size).unwrap_or(usize::MAX);
            artifact::view(&one.name, &one.content_type, size, one.data.as_deref(), &url)
        };
        let artifacts = whole.artifacts.iter().map(view).collect();
        Self { summary: JobSummary::of(whole.job), result: whole.result, artifacts }
    }
}

async fn submit(
    State(service): State<Service>,
    Caller(caller): Caller,
    Once(slot): Once,
    RawBody(body): RawBody,
) -> Result<Native<Submitted>> {
    let asked: SubmitJob = read(&body)?;
    let new = asked.submission(body)?;
    let show = |id: &String| serde_json::to_value(Submitted { job_id: id.clone() }).unwrap_or_default();
    let answer = Answer::new(slot, StatusCode::ACCEPTED.as_u16(), &[], show);
    let job_id = service.jobs.submit(&caller, new, answer).await?;
    Ok(Native(StatusCode::ACCEPTED, Submitted { job_id }))
}

/// The text is the one that clients know.
fn read(body: &[u8]) -> Result<SubmitJob> {
    let refuse = || Error::invalid("invalid JSON body");
    // Members that are not looked at would otherwise not be.
    let text = std::str::from_utf8(body).map_err(|error| refuse().reason(error.to_string()))?;
    if !text.trim_start().starts_with('{') {
        return Err(refuse());
    }
    let asked = serde_json::from_slice(body).map_err(|error| refuse().reason(error.to_string()))?;
    if contains_nul(body) && holds_nul(&serde_json::from_slice(body).map_err(|_| refuse())?) {
        return Err(Error::invalid("invalid JSON body: a NUL character is not allowed"));
    }
    Ok(asked)
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(members) => members.iter().any(|(name, member)| name.contains('\0') || holds_nul(member)),
        _ => false,
    }
}

impl SubmitJob {
    fn submission(self, payload: bytes::Bytes) -> Result<Submission> {
        let model = self.model.filter(|model| !model.is_empty());
        let model = model.ok_or_else(|| Error::invalid("model is required"))?;
        match self.messages.as_deref().map(RawValue::get) {
            None | Some("null") => return Err(Error::invalid("messages is required")),
            Some(list) if !list.starts_with('[') => return Err(Error::invalid("messages must be a list")),
            Some(_) => {}
        }
        let priority = match self.priority {
            None | Some(Value::Null) => PRIORITY,
            Some(asked) => asked
                .as_i64()
                .and_then(|n| i16::try_from(n).ok())
                .filter(|n| (0..=PRIORITY_MAX).contains(n))
                .ok_or_else(|| Error::invalid("priority must be a whole number from 0 to 9"))?,
        };
        let webhook_url = self.state_webhook_url.filter(|url| !url.is_empty());
        Ok(Submission { model, priority, webhook_url, payload })
    }
}

#[derive(Deserialize, ToSchema)]
struct WaitQuery {
    /// The answer waits so long for the end, at most `60s`.
    wait: Option<String>,
}

async fn get(
    State(service): State<Service>,
    Caller(caller): Caller,
    JobId(id): JobId,
    Query(query): Query<WaitQuery>,
) -> Result<Native<JobView>> {
    let wait = duration("wait", query.wait.as_deref(), WAIT_MAX)?;
    let mut job = service.jobs.get(&caller, &id).await?;
    if let Some(wait) = wait {
        job = service.jobs.wait(job, wait).await?;
    }
    Ok(Native(StatusCode::OK, JobView::of(service.jobs.whole(job).await?)))
}

#[derive(Deserialize, ToSchema)]
struct ListQuery {
    state: Option<String>,
    model: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

#[derive(Serialize, ToSchema)]
struct JobList {
    jobs: Vec<JobSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

async fn list(
    State(service): State<Service>,
    Caller(caller): Caller,
    Query(query): Query<ListQuery>,
) -> Result<Native<JobList>> {
    let state: Option<JobState> = one_of("state", query.state.as_deref())?;
    let (before, limit) = query.page.parse::<ulid::Ulid>()?;
    let before = before.map(|id| id.to_string());
    let model = query.model.as_deref().filter(|model| !model.is_empty());
    let found = service.jobs.list(&caller, state, model, before.as_deref(), limit).await?;
    let (jobs, next_cursor) = cut(found, limit, |job: &Job| job.id.clone());
    Ok(Native(StatusCode::OK, JobList { jobs: jobs.into_iter().map(JobSummary::of).collect(), next_cursor }))
}

async fn cancel(State(service): State<Service>, Caller(caller): Caller, JobId(id): JobId) -> Result<Native<JobView>> {
    let job = service.jobs.get_own(&caller, &id).await?;
    let job = service.jobs.cancel(&job, Some(caller.id)).await?;
    Ok(Native(StatusCode::OK, JobView::of(service.jobs.whole(job).await?)))
}

/// Headers of a request, for what depends on several of them.
struct Headers(HeaderMap);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Headers {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self> {
        Ok(Self(parts.headers.clone()))
    }
}

impl Describe for Headers {
    fn describe(_: &mut Operation) {}
}

async fn get_artifact(
    State(service): State<Service>,
    Caller(caller): Caller,
    JobId(id): JobId,
    ArtifactName(name): ArtifactName,
    Headers(asked): Headers,
) -> Result<Response> {
    let job = service.jobs.get(&caller, &id).await?;
    let (content_type, data) = service.jobs.artifact(&job, &name).await?;
    let etag = artifact::etag(&data);
    let text = |name| asked.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_same = |list: &str| {
        list.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == etag || tag == "*")
    };
    if text(header::IF_NONE_MATCH).is_some_and(is_same) {
        return Ok(served(StatusCode::NOT_MODIFIED, &content_type, &name, &etag, Vec::new()));
    }
    let total = data.len() as u64;
    let in_time = text(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let range =
        text(header::RANGE).filter(|_| in_time).map_or(Requested::Ignored, |text| byte_range::parse(text, total));
    match range {
        Requested::Ignored => Ok(served(StatusCode::OK, &content_type, &name, &etag, data)),
        Requested::Unsatisfiable => Ok(super::streams::unsatisfiable(total)),
        Requested::Part(range) => {
            let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            let part = data[at(range.first)..=at(range.last)].to_vec();
            let mut response = served(StatusCode::PARTIAL_CONTENT, &content_type, &name, &etag, part);
            let range = HeaderValue::try_from(range.to_string()).expect("digits are a header");
            response.headers_mut().insert(header::CONTENT_RANGE, range);
            Ok(response)
        }
    }
}

/// What a model made is never run by a browser that looks at it.
fn served(status: StatusCode, content_type: &str, name: &str, etag: &str, data: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(data));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let value =
        |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, value(content_type));
    headers.insert(header::CONTENT_DISPOSITION, value(&format!("attachment; filename=\"{name}\"")));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ETAG, value(etag));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

async fn events(
    State(service): State<Service>,
    Caller(caller): Caller,
    JobId(id): JobId,
    asked: Asked,
    Query(query): Query<EventsQuery>,
) -> Result<Response> {
    let job = patiently(PATIENCE, || service.jobs.get(&caller, &id)).await?;
    let found = patiently(PATIENCE, || service.jobs.log(&job)).await?;
    match position(&asked, query.after.as_deref(), &found, true)? {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(start) => Ok(event_stream(service.watching.listen(caller.id, &found, start)?)),
    }
}

#[derive(Serialize, ToSchema)]
struct DeliveryView {
    /// The `webhook-id`.
    id: Uuid,
    sequence: i32,
    state: String,
    url: String,
    #[schema(value_type = String)]
    status: DeliveryStatus,
    #[schema(value_type = Vec<Object>)]
    attempts: Vec<Attempt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<DateTime<Utc>>,
}

#[derive(Serialize, ToSchema)]
struct DeliveryList {
    deliveries: Vec<DeliveryView>,
}

async fn deliveries(
    State(service): State<Service>,
    Caller(caller): Caller,
    JobId(id): JobId,
) -> Result<Native<DeliveryList>> {
    let job = service.jobs.get(&caller, &id).await?;
    let found = service.jobs.deliveries(&job).await?;
    let deliveries = found.into_iter().map(|one| DeliveryView {
        id: one.id,
        sequence: one.sequence,
        state: one.state,
        url: one.url,
        status: one.status,
        attempts: one.attempts.0,
        next_attempt_at: one.next_attempt_at.filter(|_| one.status == DeliveryStatus::Pending),
    });
    Ok(Native(StatusCode::OK, DeliveryList { deliveries: deliveries.collect() }))
}

/// What is sent once more.
#[derive(Serialize, ToSchema)]
struct Redelivered {
    id: Uuid,
    status: &'static str,
}

async fn redeliver(
    State(service): State<Service>,
    Caller(caller): Caller,
    JobId(id): JobId,
    DeliveryId(delivery): DeliveryId,
    Once(slot): Once,
) -> Result<Native<Redelivered>> {
    let shown = move || Redelivered { id: delivery, status: DeliveryStatus::Pending.text() };
    let show = move |(): &()| serde_json::to_value(shown()).unwrap_or_default();
    let answer = Answer::new(slot, StatusCode::ACCEPTED.as_u16(), &[], show);
    let job = service.jobs.get_own(&caller, &id).await?;
    service.jobs.redeliver(&job, delivery, &answer).await?;
    Ok(Native(StatusCode::ACCEPTED, shown()))
}

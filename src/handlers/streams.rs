//! Server-sent events, and the stored output of a command.

use std::time::Duration;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use futures::stream;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    commands::visible,
    describe::{Describe, Operation},
    extract::{Caller, CommandRef, InProject, Query, SessionId},
    guard::{Rule, patiently},
    routes::{LOOKUP, Routes},
};
use crate::{
    domain::{
        byte_range::{self, Requested},
        command::Command,
        event_id::{self, Position},
        key::Key,
        project::Project,
        scopes::Scope,
    },
    error::{Error, Result},
    services::{
        commands::Commands,
        output::{self, Outputs, Reader},
        sessions::Sessions,
        watching::{Listening, Log, Watching},
    },
    streams::{Found, Start, record::Output},
};

const READ: &[Scope] = &[Scope::ProjectsRead];
const READ_SESSION: &[Scope] = &[Scope::SessionsRead, Scope::ProjectsRead];
/// How long a request for a stream waits for a database that is away: a browser would not come back after a 503.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Service {
    pub watching: Watching,
    pub commands: Commands,
    pub sessions: Sessions,
    pub outputs: Outputs,
}

pub fn routes(service: Service) -> Routes<Service> {
    let listen =
        |scopes| Rule::any(scopes, PATIENCE + LOOKUP).or_ticket().patient(PATIENCE).answers("server-sent events");
    let stored = Rule::any(READ_SESSION, LOOKUP).or_ticket().answers("the stored output");
    Routes::new("streams", service)
        .on(&Method::GET, "/projects/{id}/events", "listen_to_a_project_or_a_command", listen(READ), of_project)
        .on(
            &Method::GET,
            "/projects/{id}/sessions/{sid}/events",
            "listen_to_a_session",
            listen(READ_SESSION),
            of_session,
        )
        .on(&Method::GET, "/projects/{id}/commands/{cid}/output", "read_the_output_of_a_command", stored, output)
}

#[derive(Deserialize, ToSchema)]
pub struct EventsQuery {
    /// The command to listen to.
    stream_id: Option<String>,
    /// The number after which to begin.
    pub after: Option<String>,
}

/// Headers that matter to a stream.
pub struct Asked {
    last_event_id: Option<String>,
    headers: HeaderMap,
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Asked {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let last = parts.headers.get("last-event-id");
        let text =
            last.map(|value| value.to_str().map(str::to_owned).map_err(|_| bad_event_id("the event id is malformed")));
        Ok(Self { last_event_id: text.transpose()?.filter(|text| !text.is_empty()), headers: parts.headers.clone() })
    }
}

impl Describe for Asked {
    fn describe(operation: &mut Operation) {
        operation.parameters.push(serde_json::json!({"name": "Last-Event-ID", "in": "header", "required": false,
            "schema": {"type": "string"}, "description": "The id of the last event seen; it wins over `after`."}));
    }
}

async fn of_project(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    asked: Asked,
    Query(query): Query<EventsQuery>,
) -> Result<Response> {
    let log = match query.stream_id.as_deref().filter(|id| !id.is_empty()) {
        None => Log::Project,
        Some(id) => Log::Command(id),
    };
    listen(&service, &caller, &project, &log, &asked, query.after.as_deref()).await
}

async fn of_session(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    SessionId(id): SessionId,
    asked: Asked,
    Query(query): Query<EventsQuery>,
) -> Result<Response> {
    let name = id.to_string();
    patiently(PATIENCE, || service.sessions.get(&project.id, id)).await?;
    let log = match query.stream_id.as_deref().filter(|stream| !stream.is_empty()) {
        None => Log::Session(&name),
        Some(stream) => {
            let command =
                service.commands.get(&project.id, stream).await.map_err(|_| Error::not_found("stream not found"))?;
            if command.session_id != Some(id) {
                return Err(Error::not_found("stream not found"));
            }
            Log::Command(stream)
        }
    };
    listen(&service, &caller, &project, &log, &asked, query.after.as_deref()).await
}

async fn listen(
    service: &Service,
    caller: &Key,
    project: &Project,
    log: &Log<'_>,
    asked: &Asked,
    after: Option<&str>,
) -> Result<Response> {
    let found = patiently(PATIENCE, || service.watching.find(&project.id, log)).await?;
    let found = found.ok_or_else(|| Error::not_found("stream not found"))?;
    let from_start = matches!(log, Log::Command(_));
    match position(asked, after, &found, from_start)? {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(start) => Ok(event_stream(service.watching.listen(caller.id, &found, start)?)),
    }
}

/// Where a reader wants to begin; `None` for one that has seen the end. Without a word, at the start or
/// with what is new.
///
/// # Errors
/// `BAD_EVENT_ID`.
pub fn position(asked: &Asked, after: Option<&str>, found: &Found, from_start: bool) -> Result<Option<Start>> {
    let position = match (&asked.last_event_id, after.filter(|text| !text.is_empty())) {
        (Some(id), _) => Some(event_id::parse(id, &found.owner.name)),
        (None, Some(after)) => Some(event_id::parse_after(after, &found.owner.name)),
        (None, None) => None,
    };
    Ok(match position.transpose().map_err(bad_event_id)? {
        Some(Position::Final) => None,
        Some(Position::After(n)) => Some(Start::After(i64::try_from(n).unwrap_or(i64::MAX))),
        None if from_start => Some(Start::After(0)),
        None => Some(Start::New),
    })
}

pub fn event_stream(listening: Listening) -> Response {
    let body = stream::unfold(listening, |mut listening| async move {
        let bytes = listening.follower.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), listening))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn bad_event_id(error: impl std::fmt::Display) -> Error {
    Error::invalid(error.to_string()).code("BAD_EVENT_ID")
}

#[derive(Deserialize, ToSchema)]
struct OutputQuery {
    /// `stdout` or `stderr`; both when left out.
    stream: Option<String>,
    /// Only what comes after this event.
    after: Option<String>,
}

async fn output(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    CommandRef(id): CommandRef,
    asked: Asked,
    Query(query): Query<OutputQuery>,
) -> Result<Response> {
    let command = visible(&service.commands, &caller, &project, &id, Scope::ProjectsRead).await?;
    let only = match query.stream.as_deref() {
        None | Some("") => None,
        Some("stdout") => Some(Output::Stdout),
        Some("stderr") => Some(Output::Stderr),
        Some(_) => return Err(Error::invalid("stream must be stdout or stderr")),
    };
    let after = match query.after.as_deref().filter(|text| !text.is_empty()) {
        None => 0,
        Some(text) => match event_id::parse_after(text, &command.command_id).map_err(bad_event_id)? {
            Position::After(n) => i64::try_from(n).unwrap_or(i64::MAX).min(command.last_n),
            Position::Final => command.last_n,
        },
    };
    let accept = asked.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if accept.contains("application/x-ndjson") {
        return Ok(events(&service, &command, only, after));
    }
    bytes(&service, &command, only, after, &asked.headers).await
}

fn events(service: &Service, command: &Command, only: Option<Output>, after: i64) -> Response {
    let reader = service.outputs.events(command, after);
    let body = stream::unfold(reader, move |mut reader| async move {
        let chunk = reader.next().await.transpose()?;
        Some((chunk.map(|chunk| output::ndjson(&chunk, after, only)), reader))
    });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

async fn bytes(
    service: &Service,
    command: &Command,
    only: Option<Output>,
    after: i64,
    headers: &HeaderMap,
) -> Result<Response> {
    let selection = service.outputs.select(command, only, after).await?;
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let requested = asked.map_or(Requested::Ignored, |text| byte_range::parse(text, selection.total));
    let (status, first, length) = match requested {
        Requested::Unsatisfiable => return Ok(unsatisfiable(selection.total)),
        Requested::Part(range) => (StatusCode::PARTIAL_CONTENT, range.first, range.len()),
        Requested::Ignored => (StatusCode::OK, 0, selection.total),
    };
    let (reader, skip, after) = service.outputs.bytes(command, &selection, first).await?;
    let mut response = Response::new(Body::from_stream(cut_out(reader, after, only, skip, length)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Requested::Part(range) = requested {
        headers.insert(header::CONTENT_RANGE, HeaderValue::try_from(range.to_string()).expect("digits are a header"));
    }
    Ok(response)
}

/// `length` bytes of what the reader gives, after the first `skip`.
fn cut_out(
    reader: Reader,
    after: i64,
    only: Option<Output>,
    skip: u64,
    length: u64,
) -> impl futures::Stream<Item = Result<bytes::Bytes>> {
    stream::unfold((reader, skip, length), move |(mut reader, mut skip, left)| async move {
        if left == 0 {
            return None;
        }
        let chunk = match reader.next().await.transpose()? {
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(error), (reader, skip, 0))),
        };
        let mut bytes = output::raw(&chunk, after, only);
        let skipped = skip.min(bytes.len() as u64);
        skip -= skipped;
        let _before = bytes.split_to(usize::try_from(skipped).expect("no longer than the bytes"));
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - bytes.len() as u64;
        Some((Ok(bytes), (reader, skip, left)))
    })
}

pub fn unsatisfiable(total: u64) -> Response {
    let error = Error::invalid("the range lies outside of the output").code("RANGE_NOT_SATISFIABLE");
    let mut response = error.into_response();
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    let range = HeaderValue::try_from(byte_range::unsatisfied(total)).expect("digits are a header");
    response.headers_mut().insert(header::CONTENT_RANGE, range);
    response
}

//! `/stream-tickets`: what a browser's `EventSource` carries in place of a header.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, TimeDelta, Utc};
use http::{Method, Uri};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    extract::{Body, Caller},
    guard::Rule,
    reply::{Created, Secrets},
    routes::{LOOKUP, Routes},
};
use crate::{
    domain::{clock::Clock, durations, ids, ids::ProjectId, key::Key, scopes::Scope},
    error::{Error, Result},
    services::{
        jobs::Jobs,
        projects::Projects,
        sagas::Sagas,
        sessions::Sessions,
        tickets::{self, Tickets},
    },
};

const ANY: &[Scope] = &[Scope::ProjectsRead, Scope::SessionsRead, Scope::JobsRead];
const DEFAULT: TimeDelta = TimeDelta::minutes(10);
const MAX: std::time::Duration = std::time::Duration::from_hours(1);

#[derive(Clone)]
pub struct Service {
    pub tickets: Tickets,
    pub projects: Projects,
    pub sessions: Sessions,
    pub jobs: Jobs,
    pub sagas: Sagas,
    pub clock: Clock,
}

pub fn routes(service: Service) -> Routes<Service> {
    Routes::new("streams", service).on(
        &Method::POST,
        "/stream-tickets",
        "get_a_ticket_for_a_stream",
        Rule::any(ANY, LOOKUP),
        create,
    )
}

#[derive(Deserialize, ToSchema)]
struct CreateTicket {
    /// Path and query of a stream.
    path: String,
    /// `10m` when left out, at most `1h`.
    expires_in: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct TicketView {
    ticket: String,
    /// The path with the ticket added.
    url: String,
    expires_at: DateTime<Utc>,
}

struct Reply(TicketView);

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = Created(self.0).into_response();
        response.extensions_mut().insert(Secrets(&["ticket", "url"]));
        response
    }
}

impl super::describe::DescribeReply for Reply {
    fn describe(operation: &mut super::describe::Operation) {
        <Created<TicketView> as super::describe::DescribeReply>::describe(operation);
    }
}

async fn create(State(service): State<Service>, Caller(caller): Caller, body: Body<CreateTicket>) -> Result<Reply> {
    let CreateTicket { path, expires_in } = body.value;
    let life = match expires_in.as_deref().filter(|text| !text.is_empty()) {
        None => DEFAULT,
        Some(text) => durations::parse_positive(text)
            .ok()
            .filter(|life| *life <= MAX)
            .and_then(|life| TimeDelta::from_std(life).ok())
            .ok_or_else(|| Error::invalid("expires_in must be a duration (e.g., 10m), at most 1h"))?,
    };
    check_path(&service, &caller, &path).await?;
    let expires_at = service.clock.now() + life;
    let ticket = service.tickets.issue(caller.id, &path, expires_at);
    let joint = if path.contains('?') { '&' } else { '?' };
    Ok(Reply(TicketView { url: format!("{path}{joint}ticket={ticket}"), ticket, expires_at }))
}

/// A ticket opens what its key may open, and streams alone.
async fn check_path(service: &Service, caller: &Key, path: &str) -> Result<()> {
    let no_stream = || Error::invalid("path must be that of a stream, such as /projects/{id}/events?stream_id=…");
    let uri: Uri = path.parse().map_err(|_| no_stream())?;
    if uri.authority().is_some() || tickets::in_query(uri.query()).is_some() {
        return Err(no_stream());
    }
    let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    if let ["jobs", id, "events"] = parts.as_slice() {
        return if ids::is_ulid(id) {
            service.jobs.get(caller, id).await.map(drop)
        } else {
            Err(Error::not_found("job not found"))
        };
    }
    if let ["sagas", id, "events"] = parts.as_slice() {
        needs(caller, &[Scope::ProjectsRead])?;
        let id = ids::uuid_from_path(id).ok_or_else(|| Error::not_found("saga not found"))?;
        return service.sagas.get(caller, id).await.map(drop);
    }
    let (project, session, scopes): (&str, Option<&str>, &[Scope]) = match parts.as_slice() {
        ["projects", id, "events"] => (id, None, &[Scope::ProjectsRead]),
        ["projects", id, "commands", _, "output"] => (id, None, &[Scope::ProjectsRead, Scope::SessionsRead]),
        ["projects", id, "sessions", sid, "events"] => (id, Some(sid), &[Scope::ProjectsRead, Scope::SessionsRead]),
        _ => return Err(no_stream()),
    };
    let project = ProjectId::parse(project).map_err(|_| Error::invalid("invalid project id"))?;
    needs(caller, scopes)?;
    let known = caller.sees(project.as_str()) && service.projects.find(project.as_str()).await?.is_some();
    if !known {
        return Err(Error::not_found("project not found"));
    }
    if let Some(session) = session {
        let id = ids::uuid_from_path(session).ok_or_else(|| Error::not_found("session not found"))?;
        service.sessions.get(project.as_str(), id).await?;
    }
    Ok(())
}

fn needs(caller: &Key, scopes: &[Scope]) -> Result<()> {
    if caller.may(scopes) {
        return Ok(());
    }
    let names: Vec<&str> = scopes.iter().map(|scope| scope.name()).collect();
    Err(Error::forbidden("this key lacks a scope that the path needs").detail("required_any", names))
}

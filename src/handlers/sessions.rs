//! `/projects/{id}/sessions`.

use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    checkouts::{Checkin, CreateCheckout, Extend, instructions},
    commands::{self, CommandView, ShellCommand},
    extract::{Body, BodyLimit, Caller, InProject, Once, PageQuery, Query, SessionId, cut, one_of},
    guard::Rule,
    reply::{Created, Data, MaybeCreated, Paged},
    routes::{FAST_LOOKUP, ORCHESTRATION, Routes, STANDARD},
};
use crate::{
    domain::{
        scopes::Scope,
        session::{EndReason, OnDirty, Rescue, Session, SessionStatus},
    },
    error::{Error, Result},
    services::{
        checkouts::{Checkouts, expires_in},
        commands::Commands,
        receipts::Answer,
        sessions::{Asked, OpenedSession, Sessions},
    },
};

const READ: &[Scope] = &[Scope::SessionsRead, Scope::ProjectsRead];
const EXECUTE: &[Scope] = &[Scope::SessionsExecute, Scope::ProjectsExecute];
const ADMIN: &[Scope] = &[Scope::Admin];

#[derive(Clone)]
pub struct Service {
    pub sessions: Sessions,
    pub checkouts: Checkouts,
    pub commands: Commands,
    /// Shortest life of a session, and shortest idleness.
    pub min_expires_in: Duration,
}

pub fn routes(service: Service) -> Routes<Service> {
    let exec = Rule::any(EXECUTE, STANDARD).body(BodyLimit::COMMAND).waits();
    Routes::new("sessions", service)
        .on(&Method::GET, "/projects/{id}/sessions", "list_sessions", Rule::any(READ, FAST_LOOKUP), list)
        .on(&Method::POST, "/projects/{id}/sessions", "open_a_session", Rule::any(EXECUTE, ORCHESTRATION), create)
        .on(&Method::GET, "/projects/{id}/sessions/{sid}", "get_a_session", Rule::any(READ, FAST_LOOKUP), get)
        .on(
            &Method::DELETE,
            "/projects/{id}/sessions/{sid}",
            "terminate_a_session",
            Rule::any(ADMIN, ORCHESTRATION),
            terminate,
        )
        .on(
            &Method::POST,
            "/projects/{id}/sessions/{sid}/checkin",
            "check_a_session_in",
            Rule::any(EXECUTE, ORCHESTRATION),
            checkin,
        )
        .on(
            &Method::POST,
            "/projects/{id}/sessions/{sid}/extend",
            "extend_a_session",
            Rule::any(EXECUTE, STANDARD),
            extend,
        )
        .on(&Method::POST, "/projects/{id}/sessions/{sid}/exec", "run_a_command_in_a_session", exec, run)
}

/// A session as clients see it. The last three fields are there at its creation only.
#[derive(Serialize, ToSchema)]
pub struct SessionView {
    id: Uuid,
    project_id: String,
    checkout_id: Uuid,
    pod_name: String,
    preview_url: String,
    preview_port: i32,
    workspace: String,
    status: SessionStatus,
    created_by: Uuid,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    last_activity_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rescue: Option<Rescue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_clone_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    branch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<String>,
}

impl SessionView {
    fn of(session: &Session) -> Self {
        let s = session.clone();
        Self {
            id: s.id,
            project_id: s.project_id,
            checkout_id: s.checkout_id,
            pod_name: s.pod_name,
            preview_url: s.preview_url,
            preview_port: s.preview_port,
            workspace: s.workspace,
            status: s.status,
            created_by: s.created_by,
            created_at: s.created_at,
            expires_at: s.expires_at,
            last_activity_at: s.last_activity_at,
            ended_at: s.ended_at,
            end_reason: s.end_reason,
            rescue: s.rescue.map(|rescue| rescue.0),
            auth_clone_url: None,
            branch: None,
            instructions: None,
        }
    }

    fn opened(checkouts: &Checkouts, opened: &OpenedSession) -> Self {
        let session = &opened.session;
        let (project, id) = (&session.project_id, session.id);
        let own = instructions(&opened.opened.checkout, &checkouts.clone_url(project), checkouts.token_is_bound());
        let text = format!(
            "Run commands:  POST /projects/{project}/sessions/{id}/exec, git push needs no further word there\n\
             Watch them:    GET /projects/{project}/sessions/{id}/events\n\
             Preview:       listen on $PORT ({}); it is seen at {}\n\
             Finish:        POST /projects/{project}/sessions/{id}/checkin\n\nTo work on the branch elsewhere as well:\n{}",
            session.preview_port,
            session.preview_url,
            own.replace(
                &format!("3. Finish:  POST /projects/{project}/checkout/{}/checkin\n", session.checkout_id),
                ""
            ),
        );
        Self {
            auth_clone_url: Some(checkouts.authenticated_url(&opened.opened)),
            branch: Some(session.branch.clone()),
            instructions: Some(text),
            ..Self::of(session)
        }
    }
}

#[derive(Deserialize, ToSchema)]
struct CreateSession {
    #[serde(flatten)]
    checkout: CreateCheckout,
    /// 1–65535; default: a free one.
    preview_port: Option<i64>,
    /// Ends the session after so long without activity; default: never.
    idle_timeout: Option<String>,
}

impl CreateSession {
    fn asked(self) -> Asked {
        let (preview_port, idle_timeout) = (self.preview_port, self.idle_timeout);
        Asked { checkout: self.checkout.asked(), preview_port, idle_timeout }
    }
}

const SECRET: &[&str] = &["auth_clone_url"];

async fn create(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    once: Once,
    body: Body<CreateSession>,
) -> Result<Created<SessionView>> {
    let new = body.value.asked().parse(service.min_expires_in)?;
    let checkouts = service.checkouts.clone();
    let answer = Answer::new(once.0, 201, SECRET, move |opened| json!(SessionView::opened(&checkouts, opened)));
    let opened = service.sessions.create(&caller, &project, new, answer).await?;
    Ok(Created(SessionView::opened(&service.checkouts, &opened)))
}

#[derive(Deserialize, ToSchema)]
struct SessionQuery {
    /// All states when left out.
    status: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

#[derive(Serialize, ToSchema)]
struct SessionList {
    sessions: Vec<SessionView>,
}

async fn list(
    State(service): State<Service>,
    InProject(project): InProject,
    Query(query): Query<SessionQuery>,
) -> Result<Paged<SessionList>> {
    let (before, limit) = query.page.parse()?;
    let status = one_of("status", query.status.as_deref())?;
    let found = service.sessions.page(&project.id, status, before, limit + 1).await?;
    let (found, next) = cut(found, limit, |session| session.id);
    Ok(Paged { data: SessionList { sessions: found.iter().map(SessionView::of).collect() }, next })
}

async fn get(
    State(service): State<Service>,
    InProject(project): InProject,
    SessionId(id): SessionId,
) -> Result<Data<SessionView>> {
    Ok(Data(SessionView::of(&service.sessions.get(&project.id, id).await?)))
}

#[derive(Deserialize, ToSchema)]
struct SessionCheckin {
    #[serde(flatten)]
    checkin: Checkin,
    /// What becomes of work that is not pushed; `rescue` when left out.
    on_dirty: Option<OnDirty>,
}

#[derive(Serialize, ToSchema)]
struct EndedView {
    session_id: Uuid,
    status: SessionStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    review_task_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rescue: Option<Rescue>,
    message: &'static str,
}

impl EndedView {
    fn of(session: &Session) -> Self {
        Self {
            session_id: session.id,
            status: session.status,
            review_task_id: session.review_task_id.clone(),
            rescue: session.rescue.clone().map(|rescue| rescue.0),
            message: match &session.review_task_id {
                Some(_) => "Session ended. Review task queued.",
                None => "Session ended. Preview removed, token revoked.",
            },
        }
    }
}

async fn checkin(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    SessionId(id): SessionId,
    once: Once,
    body: Body<SessionCheckin>,
) -> Result<Data<EndedView>> {
    let wish = body.value.checkin.parse()?;
    let answer = Answer::new(once.0, 200, &[], |session| json!(EndedView::of(session)));
    let how = (body.value.on_dirty.unwrap_or_default(), wish);
    let ended = service.sessions.checkin(&caller, &project.id, id, how, answer).await?;
    Ok(Data(EndedView::of(&ended)))
}

#[derive(Serialize, ToSchema)]
struct TerminatedView {
    status: &'static str,
    id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    rescue: Option<Rescue>,
    message: &'static str,
}

async fn terminate(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    SessionId(id): SessionId,
) -> Result<Data<TerminatedView>> {
    let end =
        service.sessions.end(Some(&caller), &project.id, id, EndReason::Terminated, OnDirty::Rescue, Answer::none());
    let ended = end.await?;
    Ok(Data(TerminatedView {
        status: "terminated",
        id,
        rescue: ended.rescue.map(|rescue| rescue.0),
        message: "Session force-terminated. Preview removed, token revoked.",
    }))
}

async fn extend(
    State(service): State<Service>,
    InProject(project): InProject,
    SessionId(id): SessionId,
    once: Once,
    body: Body<Extend>,
) -> Result<Data<SessionView>> {
    let by = expires_in(body.value.expires_in.as_deref(), service.min_expires_in)?;
    let answer = Answer::new(once.0, 200, &[], |session| json!(SessionView::of(session)));
    let session = service.sessions.extend(&project.id, id, by, answer).await?;
    Ok(Data(SessionView::of(&session)))
}

async fn run(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    SessionId(id): SessionId,
    once: Once,
    body: Body<ShellCommand>,
) -> Result<MaybeCreated<CommandView>> {
    let asked = body.value.parse(body.hash)?;
    let session = service.sessions.get(&project.id, id).await?;
    if session.status != SessionStatus::Active {
        return Err(Error::invalid("session is not active").reason("SESSION_NOT_ACTIVE"));
    }
    commands::run(&service.commands, &caller, &project, Some(&session), asked, once).await
}

//! `/sagas`: made, looked at, listened to, controlled. What is shown is in `sagas/views.rs`.

mod views;

use std::collections::BTreeMap;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::TimeDelta;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use self::views::{EntryView, LogView, SagaView};
use super::{
    extract::{Body, Caller, Nothing, Once, PageQuery, Query, SagaId, StepName, cut, one_of},
    guard::{Rule, patiently},
    reply::{Created, Data, Done, Paged},
    routes::{LOOKUP, Routes, STANDARD},
    streams::{Asked as AskedFrom, EventsQuery, PATIENCE, event_stream, position},
};
use crate::{
    domain::{
        durations,
        saga::{
            OnFailure, SagaStatus,
            check::Plan,
            spec::{Problem, StepSpec},
        },
        scopes::Scope,
    },
    error::{Error, Result},
    services::{
        receipts::Answer,
        sagas::{Asked, NewSaga, Row, Sagas, Whole},
        watching::Watching,
    },
};

const READ: &[Scope] = &[Scope::ProjectsRead];
const EXECUTE: &[Scope] = &[Scope::ProjectsExecute];
const ADMIN: &[Scope] = &[Scope::Admin];

#[derive(Clone)]
pub struct Service {
    pub sagas: Sagas,
    pub watching: Watching,
}

pub fn routes(service: Service) -> Routes<Service> {
    let (post, get, delete) = (&Method::POST, &Method::GET, &Method::DELETE);
    let (read, execute) = (|| Rule::any(READ, LOOKUP), || Rule::any(EXECUTE, STANDARD));
    let listens = Rule::any(READ, PATIENCE + LOOKUP)
        .or_ticket()
        .patient(PATIENCE)
        .answers("server-sent events: saga, step, complete");
    Routes::new("sagas", service)
        .on(post, "/sagas", "start_a_saga", execute(), create)
        .on(post, "/sagas/plan", "plan_a_saga", Rule::any(READ, STANDARD), plan)
        .on(get, "/sagas", "list_sagas", read(), list)
        .on(get, "/sagas/{saga}", "get_a_saga", read(), get_one)
        .on(delete, "/sagas/{saga}", "delete_a_saga", execute(), remove)
        .on(post, "/sagas/{saga}/retry", "retry_a_saga", execute(), retry)
        .on(post, "/sagas/{saga}/rollback", "roll_a_saga_back", execute(), roll_back)
        .on(post, "/sagas/{saga}/cancel", "cancel_a_saga", execute(), cancel)
        .on(post, "/sagas/{saga}/abandon", "abandon_a_stuck_saga", Rule::any(ADMIN, STANDARD), abandon)
        .on(post, "/sagas/{saga}/steps/{step}/retry", "retry_a_step", execute(), retry_step)
        .on(post, "/sagas/{saga}/steps/{step}/skip", "skip_a_step", execute(), skip_step)
        .on(post, "/sagas/{saga}/approvals/{step}", "decide_an_approval", execute(), decide)
        .on(get, "/sagas/{saga}/events", "listen_to_a_saga", listens, events)
        .on(get, "/sagas/{saga}/log", "read_the_log_of_a_saga", read(), log)
}

/// A saga to be made: `definition` or `steps`.
#[derive(Deserialize, ToSchema)]
struct CreateSaga {
    #[schema(value_type = String)]
    name: Option<String>,
    /// The newest version of a named list of steps.
    definition: Option<String>,
    vars: Option<BTreeMap<String, String>>,
    /// Of steps without a policy of their own; 0 and left out mean 3.
    max_retries: Option<i64>,
    steps: Option<Vec<StepSpec>>,
    project_id: Option<String>,
    /// `stop` or `compensate`.
    on_failure: Option<String>,
    /// Of the sagas with one key one at a time is at work.
    concurrency_key: Option<String>,
    /// From when it begins to be at work.
    timeout: Option<String>,
}

impl CreateSaga {
    fn wanted(self) -> NewSaga {
        let mut problems = Vec::new();
        let mut problem = |path: &str, message: &str| problems.push(Problem::new(path, message));
        let name = self.name.unwrap_or_default();
        if name.trim().is_empty() {
            problem("name", "is required");
        } else if name.chars().count() > 255 {
            problem("name", "must not be longer than 255 characters");
        }
        if self.max_retries.is_some_and(|n| !(0..=100).contains(&n)) {
            problem("max_retries", "must be a number from 0 to 100");
        }
        let on_failure = match self.on_failure.as_deref() {
            None | Some("" | "stop") => OnFailure::Stop,
            Some("compensate") => OnFailure::Compensate,
            Some(_) => {
                problem("on_failure", "must be stop or compensate");
                OnFailure::Stop
            }
        };
        let concurrency_key = self.concurrency_key.filter(|key| !key.is_empty());
        if concurrency_key.as_ref().is_some_and(|key| key.chars().count() > 255) {
            problem("concurrency_key", "must not be longer than 255 characters");
        }
        let timeout = self.timeout.filter(|text| !text.is_empty()).and_then(|text| {
            let given = durations::parse_positive(&text).ok().and_then(|timeout| TimeDelta::from_std(timeout).ok());
            if given.is_none() {
                problem("timeout", "must be a duration (e.g., 30s, 5m)");
            }
            given
        });
        NewSaga {
            name,
            definition: self.definition.filter(|name| !name.is_empty()),
            vars: self.vars.unwrap_or_default(),
            max_retries: self.max_retries,
            steps: self.steps,
            project_id: self.project_id.filter(|id| !id.is_empty()),
            on_failure,
            concurrency_key,
            timeout,
            problems,
        }
    }
}

fn kept(slot: Option<crate::services::receipts::Slot>, status: StatusCode) -> Answer<Whole> {
    let show = |whole: &Whole| serde_json::to_value(SagaView::of(whole)).unwrap_or_default();
    Answer::new(slot, status.as_u16(), &[], show)
}

async fn create(
    State(service): State<Service>,
    Caller(caller): Caller,
    Once(slot): Once,
    body: Body<CreateSaga>,
) -> Result<Created<SagaView>> {
    let made = service.sagas.create(&caller, body.value.wanted(), kept(slot, StatusCode::CREATED)).await?;
    Ok(Created(SagaView::of(&made)))
}

/// What a saga would do, and in which order.
#[derive(Serialize, ToSchema)]
struct PlanView {
    order: Vec<String>,
    /// What may run together.
    groups: Vec<Vec<String>>,
    compensation_order: Vec<Vec<String>>,
    warnings: Vec<String>,
}

async fn plan(
    State(service): State<Service>,
    Caller(caller): Caller,
    body: Body<CreateSaga>,
) -> Result<Data<PlanView>> {
    let Plan { order, groups, compensation_order, warnings } = service.sagas.plan(&caller, body.value.wanted()).await?;
    Ok(Data(PlanView { order, groups, compensation_order, warnings }))
}

#[derive(Deserialize, ToSchema)]
struct ListQuery {
    name: Option<String>,
    status: Option<String>,
    project_id: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

async fn list(
    State(service): State<Service>,
    Caller(caller): Caller,
    Query(query): Query<ListQuery>,
) -> Result<Paged<Vec<SagaView>>> {
    let status: Option<SagaStatus> = one_of("status", query.status.as_deref())?;
    let (before, limit) = query.page.parse::<Uuid>()?;
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (name, project) = (given(&query.name), given(&query.project_id));
    let found = service.sagas.page(&caller, name.as_deref(), status, project.as_deref(), before, limit).await?;
    let (rows, next) = cut(found, limit, |row: &Row| row.id);
    Ok(Paged { data: rows.into_iter().map(SagaView::brief).collect(), next })
}

async fn get_one(State(service): State<Service>, Caller(caller): Caller, SagaId(id): SagaId) -> Result<Data<SagaView>> {
    let row = service.sagas.get(&caller, id).await?;
    Ok(Data(SagaView::of(&service.sagas.whole(row).await?)))
}

async fn remove(State(service): State<Service>, Caller(caller): Caller, SagaId(id): SagaId) -> Result<Data<Done>> {
    service.sagas.delete(&caller, id).await?;
    Ok(Data(Done { status: "deleted", id: id.to_string(), message: None }))
}

async fn retry(
    State(service): State<Service>,
    Caller(caller): Caller,
    SagaId(id): SagaId,
    Once(slot): Once,
    _: Body<Nothing>,
) -> Result<Data<SagaView>> {
    let whole = service.sagas.control(&caller, id, Asked::Retry, kept(slot, StatusCode::OK)).await?;
    Ok(Data(SagaView::of(&whole)))
}

async fn roll_back(
    State(service): State<Service>,
    Caller(caller): Caller,
    SagaId(id): SagaId,
    Once(slot): Once,
    _: Body<Nothing>,
) -> Result<Data<SagaView>> {
    let whole = service.sagas.control(&caller, id, Asked::Rollback, kept(slot, StatusCode::OK)).await?;
    Ok(Data(SagaView::of(&whole)))
}

#[derive(Deserialize, ToSchema)]
struct CancelSaga {
    /// What completed is undone, unless this is false.
    compensate: Option<bool>,
    reason: Option<String>,
}

async fn cancel(
    State(service): State<Service>,
    Caller(caller): Caller,
    SagaId(id): SagaId,
    Once(slot): Once,
    body: Body<CancelSaga>,
) -> Result<Data<SagaView>> {
    let CancelSaga { compensate, reason } = body.value;
    let reason = reason.filter(|reason| !reason.is_empty());
    let asked = Asked::Cancel { compensate: compensate.unwrap_or(true), reason };
    let whole = service.sagas.control(&caller, id, asked, kept(slot, StatusCode::OK)).await?;
    Ok(Data(SagaView::of(&whole)))
}

#[derive(Deserialize, ToSchema)]
struct AbandonSaga {
    #[schema(value_type = String)]
    reason: Option<String>,
}

async fn abandon(
    State(service): State<Service>,
    Caller(caller): Caller,
    SagaId(id): SagaId,
    Once(slot): Once,
    body: Body<AbandonSaga>,
) -> Result<Data<SagaView>> {
    let reason = body.value.reason.filter(|reason| !reason.trim().is_empty());
    let reason = reason.ok_or_else(|| Error::invalid("reason is required"))?;
    let whole = service.sagas.control(&caller, id, Asked::Abandon { reason }, kept(slot, StatusCode::OK)).await?;
    Ok(Data(SagaView::of(&whole)))
}

async fn retry_step(
    State(service): State<Service>,
    Caller(caller): Caller,
    SagaId(id): SagaId,
    StepName(step): StepName,
    Once(slot): Once,
    _: Body<Nothing>,
) -> Result<Data<SagaView>> {
    let whole = service.sagas.control(&caller, id, Asked::RetryStep(step), kept(slot, StatusCode::OK)).await?;
    Ok(Data(SagaView::of(&whole)))
}

async fn skip_step(
    State(service): State<Service>,
    Caller(caller): Caller,
    SagaId(id): SagaId,
    StepName(step): StepName,
    Once(slot): Once,
    _: Body<Nothing>,
) -> Result<Data<SagaView>> {
    let whole = service.sagas.control(&caller, id, Asked::SkipStep(step), kept(slot, StatusCode::OK)).await?;
    Ok(Data(SagaView::of(&whole)))
}

#[derive(Deserialize, ToSchema)]
struct Decide {
    /// `approve` or `reject`.
    #[schema(value_type = String)]
    decision: Option<String>,
    comment: Option<String>,
}

async fn decide(
    State(service): State<Service>,
    Caller(caller): Caller,
    SagaId(id): SagaId,
    StepName(step): StepName,
    Once(slot): Once,
    body: Body<Decide>,
) -> Result<Data<SagaView>> {
    let approve = match body.value.decision.as_deref() {
        Some("approve") => true,
        Some("reject") => false,
        _ => return Err(Error::invalid("decision must be approve or reject")),
    };
    let comment = body.value.comment.filter(|comment| !comment.is_empty());
    let asked = Asked::Answer { step, approve, comment };
    let whole = service.sagas.control(&caller, id, asked, kept(slot, StatusCode::OK)).await?;
    Ok(Data(SagaView::of(&whole)))
}

async fn events(
    State(service): State<Service>,
    Caller(caller): Caller,
    SagaId(id): SagaId,
    asked: AskedFrom,
    Query(query): Query<EventsQuery>,
) -> Result<Response> {
    let row = patiently(PATIENCE, || service.sagas.get(&caller, id)).await?;
    let found = patiently(PATIENCE, || service.sagas.events(&row)).await?;
    match position(&asked, query.after.as_deref(), &found, true)? {
        None => Ok(StatusCode::NO_CONTENT.into_response()),
        Some(start) => Ok(event_stream(service.watching.listen(caller.id, &found, start)?)),
    }
}

async fn log(State(service): State<Service>, Caller(caller): Caller, SagaId(id): SagaId) -> Result<Data<LogView>> {
    let row = service.sagas.get(&caller, id).await?;
    let lines = service.sagas.log(&row).await?;
    let whole = service.sagas.whole(row).await?;
    let name = |n: i32| usize::try_from(n).ok().and_then(|n| whole.specs.get(n)).map(|spec| spec.name.clone());
    let ended = lines.into_iter().map(|line| EntryView {
        step: line.step.and_then(name),
        attempt: line.attempt,
        started_at: line.started_at,
        ended_at: line.ended_at,
        outcome: line.outcome,
        error: line.error,
        by: line.by,
    });
    let under_way = whole.specs.iter().zip(&whole.steps).flat_map(|(spec, step)| EntryView::under_way(spec, step));
    Ok(Data(LogView { entries: ended.chain(under_way).collect() }))
}

//! `/projects/{id}/checkout`.

use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    extract::{Body, Caller, CheckoutId, InProject, Nothing, Once, PageQuery, Query, cut, one_of},
    guard::Rule,
    reply::{Created, Data, Done, Paged},
    routes::{FAST_LOOKUP, LOOKUP, ORCHESTRATION, Routes, STANDARD},
};
use crate::{
    domain::{
        checkout::{Checkout, CheckoutStatus},
        review::Wish,
        scopes::Scope,
        session::{EndReason, OnDirty},
    },
    error::{Error, Result},
    services::{
        checkouts::{Asked, CheckedIn, Checkouts, Opened, expires_in},
        receipts::Answer,
        sessions::Sessions,
    },
};

const READ: &[Scope] = &[Scope::ProjectsRead];
const EXECUTE: &[Scope] = &[Scope::ProjectsExecute];
const ADMIN: &[Scope] = &[Scope::Admin];

#[derive(Clone)]
pub struct Service {
    pub checkouts: Checkouts,
    pub sessions: Sessions,
    /// Shortest life of a checkout.
    pub min_expires_in: Duration,
}

pub fn routes(service: Service) -> Routes<Service> {
    Routes::new("checkouts", service)
        .on(&Method::GET, "/projects/{id}/checkout/branches", "list_branches", Rule::any(READ, LOOKUP), branches)
        .on(&Method::GET, "/projects/{id}/checkout", "list_checkouts", Rule::any(READ, FAST_LOOKUP), list)
        .on(&Method::POST, "/projects/{id}/checkout", "check_out", Rule::any(EXECUTE, STANDARD), create)
        .on(&Method::GET, "/projects/{id}/checkout/{checkout_id}", "get_a_checkout", Rule::any(READ, FAST_LOOKUP), get)
        .on(
            &Method::DELETE,
            "/projects/{id}/checkout/{checkout_id}",
            "revoke_a_checkout",
            Rule::any(ADMIN, ORCHESTRATION),
            revoke,
        )
        .on(
            &Method::POST,
            "/projects/{id}/checkout/{checkout_id}/checkin",
            "check_in",
            Rule::any(EXECUTE, STANDARD),
            checkin,
        )
        .on(
            &Method::POST,
            "/projects/{id}/checkout/{checkout_id}/extend",
            "extend_a_checkout",
            Rule::any(EXECUTE, STANDARD),
            extend,
        )
        .on(
            &Method::POST,
            "/projects/{id}/checkout/{checkout_id}/rotate",
            "rotate_a_checkout_s_token",
            Rule::any(EXECUTE, STANDARD),
            rotate,
        )
}

#[derive(Serialize, ToSchema)]
struct BranchView {
    name: String,
    commit_sha: String,
    protected: bool,
}

#[derive(Serialize, ToSchema)]
struct BranchList {
    branches: Vec<BranchView>,
}

async fn branches(State(service): State<Service>, InProject(project): InProject) -> Result<Data<BranchList>> {
    let found = service.checkouts.branches(&project).await?;
    let view = found.into_iter().map(|(branch, protected)| BranchView {
        name: branch.name,
        commit_sha: branch.sha,
        protected,
    });
    Ok(Data(BranchList { branches: view.collect() }))
}

/// A checkout as clients see it. The credential is in `clone_url` once.
#[derive(Serialize, ToSchema)]
pub struct CheckoutView {
    id: Uuid,
    project_id: String,
    branch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_slug: Option<String>,
    clone_url: String,
    checked_out_by: Uuid,
    checked_out_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    status: CheckoutStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked_in_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    review_task_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<String>,
}

impl CheckoutView {
    fn of(checkout: &Checkout, clone_url: String) -> Self {
        let c = checkout.clone();
        Self {
            id: c.id,
            project_id: c.project_id,
            branch: c.branch,
            feature_slug: c.feature_slug,
            clone_url,
            checked_out_by: c.checked_out_by,
            checked_out_at: c.checked_out_at,
            expires_at: c.expires_at,
            status: c.status,
            session_id: c.session_id,
            checked_in_at: c.ended_at.filter(|_| c.status == CheckoutStatus::CheckedIn),
            review_task_id: c.review_task_id,
            instructions: None,
        }
    }

    fn opened(service: &Checkouts, opened: &Opened) -> Self {
        let plain = service.clone_url(&opened.checkout.project_id);
        let instructions = instructions(&opened.checkout, &plain, service.token_is_bound());
        Self { instructions: Some(instructions), ..Self::of(&opened.checkout, service.authenticated_url(opened)) }
    }
}

/// Text for a person. The token itself is in `clone_url` alone.
pub fn instructions(checkout: &Checkout, plain_url: &str, token_is_bound: bool) -> String {
    let (project, branch, id) = (&checkout.project_id, &checkout.branch, checkout.id);
    let bounds =
        if token_is_bound { "the credential pushes to this branch alone" } else { "push to this branch alone" };
    format!(
        "1. Clone:   git clone --branch {branch} <clone_url> {project}\n\
         2. Work:    git commit, then git push origin {branch} ({bounds})\n\
         3. Finish:  POST /projects/{project}/checkout/{id}/checkin\n\
         \n\
         To keep the token out of .git/config, clone without it and let a credential helper answer:\n\
         \x20 export RDEV_GIT_TOKEN=<what stands between \"rdev:\" and \"@\" in clone_url>\n\
         \x20 git clone --branch {branch} -c credential.helper= \\\n\
         \x20   -c 'credential.helper=!f() {{ echo username=rdev; echo \"password=$RDEV_GIT_TOKEN\"; }}; f' \\\n\
         \x20   {plain_url} {project}\n\
         \n\
         The credential is dead after the checkin, and after {}.",
        checkout.expires_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
    )
}

/// Which branch, from when, for how long.
#[derive(Deserialize, ToSchema)]
pub struct CreateCheckout {
    branch: Option<String>,
    new_branch: Option<String>,
    /// A branch, a tag or a full commit id; default: the default branch.
    from_ref: Option<String>,
    feature_slug: Option<String>,
    /// `24h` when left out, at most 30 days.
    expires_in: Option<String>,
}

impl CreateCheckout {
    pub fn asked(self) -> Asked {
        Asked {
            branch: self.branch,
            new_branch: self.new_branch,
            from_ref: self.from_ref,
            feature_slug: self.feature_slug,
            expires_in: self.expires_in,
        }
    }
}

const SECRET: &[&str] = &["clone_url"];

fn opened_answer(once: Once, service: &Service) -> Answer<Opened> {
    let checkouts = service.checkouts.clone();
    Answer::new(once.0, 201, SECRET, move |opened| json!(CheckoutView::opened(&checkouts, opened)))
}

async fn create(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    once: Once,
    body: Body<CreateCheckout>,
) -> Result<Created<CheckoutView>> {
    let new = body.value.asked().parse(service.min_expires_in)?;
    let answer = opened_answer(once, &service);
    let opened = service.checkouts.create(&caller, &project, new, answer).await?;
    Ok(Created(CheckoutView::opened(&service.checkouts, &opened)))
}

#[derive(Deserialize, ToSchema)]
struct CheckoutQuery {
    /// `active` when left out, `checked_in`, `expired` or `revoked`.
    status: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

#[derive(Serialize, ToSchema)]
struct CheckoutList {
    checkouts: Vec<CheckoutView>,
}

async fn list(
    State(service): State<Service>,
    InProject(project): InProject,
    Query(query): Query<CheckoutQuery>,
) -> Result<Paged<CheckoutList>> {
    let (before, limit) = query.page.parse()?;
    let status = one_of("status", query.status.as_deref())?.unwrap_or(CheckoutStatus::Active);
    let found = service.checkouts.page(&project, status, before, limit + 1).await?;
    let (found, next) = cut(found, limit, |checkout| checkout.id);
    let clone_url = service.checkouts.clone_url(&project.id);
    let checkouts = found.iter().map(|checkout| CheckoutView::of(checkout, clone_url.clone())).collect();
    Ok(Paged { data: CheckoutList { checkouts }, next })
}

async fn get(
    State(service): State<Service>,
    InProject(project): InProject,
    CheckoutId(id): CheckoutId,
) -> Result<Data<CheckoutView>> {
    let checkout = service.checkouts.get(&project, id).await?;
    Ok(Data(CheckoutView::of(&checkout, service.checkouts.clone_url(&project.id))))
}

/// What is to become of the branch.
#[derive(Deserialize, ToSchema)]
pub struct Checkin {
    skip_review: Option<bool>,
    auto_merge: Option<bool>,
}

impl Checkin {
    /// # Errors
    /// 400 for both at once.
    pub fn parse(&self) -> Result<Wish> {
        if self.skip_review == Some(true) && self.auto_merge == Some(true) {
            return Err(Error::invalid(
                "skip_review and auto_merge exclude each other: only a reviewed branch is merged",
            ));
        }
        Ok(Wish { skip: self.skip_review == Some(true), auto_merge: self.auto_merge == Some(true) })
    }
}

#[derive(Serialize, ToSchema)]
struct CheckedInView {
    checkout_id: Uuid,
    status: CheckoutStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    review_task_id: Option<String>,
    message: &'static str,
}

impl CheckedInView {
    fn of(checked_in: &CheckedIn) -> Self {
        Self {
            checkout_id: checked_in.checkout.id,
            status: checked_in.checkout.status,
            review_task_id: checked_in.checkout.review_task_id.clone(),
            message: match &checked_in.checkout.review_task_id {
                Some(_) => "Checkout completed. Review task queued.",
                None => "Checkout completed. Token has been revoked.",
            },
        }
    }
}

async fn checkin(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    CheckoutId(id): CheckoutId,
    once: Once,
    body: Body<Checkin>,
) -> Result<Data<CheckedInView>> {
    let wish = body.value.parse()?;
    let answer = Answer::new(once.0, 200, &[], |checked_in| json!(CheckedInView::of(checked_in)));
    let checked_in = service.checkouts.checkin(&caller, &project, id, wish, answer).await?;
    Ok(Data(CheckedInView::of(&checked_in)))
}

async fn revoke(
    State(service): State<Service>,
    Caller(caller): Caller,
    InProject(project): InProject,
    CheckoutId(id): CheckoutId,
) -> Result<Data<Done>> {
    let checkout = service.checkouts.get(&project, id).await?;
    match checkout.session_id.filter(|_| checkout.status == CheckoutStatus::Active) {
        None => service.checkouts.revoke(Some(&caller), &project.id, id).await?,
        Some(session) => {
            let end = service.sessions.end(
                Some(&caller),
                &project.id,
                session,
                EndReason::Terminated,
                OnDirty::Rescue,
                Answer::none(),
            );
            end.await?;
        }
    }
    Ok(Data(Done {
        status: "revoked",
        id: id.to_string(),
        message: Some("Checkout revoked. Token has been invalidated."),
    }))
}

/// How long from now.
#[derive(Deserialize, ToSchema)]
pub struct Extend {
    pub expires_in: Option<String>,
}

async fn extend(
    State(service): State<Service>,
    InProject(project): InProject,
    CheckoutId(id): CheckoutId,
    once: Once,
    body: Body<Extend>,
) -> Result<Data<CheckoutView>> {
    let by = expires_in(body.value.expires_in.as_deref(), service.min_expires_in)?;
    let clone_url = service.checkouts.clone_url(&project.id);
    let shown = clone_url.clone();
    let answer =
        Answer::new(once.0, 200, &[], move |checkout: &Checkout| json!(CheckoutView::of(checkout, shown.clone())));
    let checkout = service.checkouts.extend(&project, id, by, answer).await?;
    Ok(Data(CheckoutView::of(&checkout, clone_url)))
}

async fn rotate(
    State(service): State<Service>,
    InProject(project): InProject,
    CheckoutId(id): CheckoutId,
    once: Once,
    _: Body<Nothing>,
) -> Result<Created<CheckoutView>> {
    let answer = opened_answer(once, &service);
    let opened = service.checkouts.rotate(&project, id, answer).await?;
    Ok(Created(CheckoutView::opened(&service.checkouts, &opened)))
}

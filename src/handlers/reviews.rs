//! `/projects/{id}/reviews`. A review is queued by a checkin; here it is looked at and done again.

use std::borrow::Cow;

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::Method;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    extract::{Body, Caller, InProject, Nothing, Once, PageQuery, Query, ReviewId, cut},
    guard::Rule,
    reply::{Data, Paged},
    routes::{FAST_LOOKUP, Routes, STANDARD},
};
use crate::{
    domain::{
        review::{Merge, Review, ReviewStatus},
        scopes::Scope,
    },
    error::Result,
    services::{receipts::Answer, reviews::Reviews},
};

const READ: &[Scope] = &[Scope::ProjectsRead];
const EXECUTE: &[Scope] = &[Scope::ProjectsExecute];

pub fn routes(service: Reviews) -> Routes<Reviews> {
    Routes::new("reviews", service)
        .on(&Method::GET, "/projects/{id}/reviews", "list_reviews", Rule::any(READ, FAST_LOOKUP), list)
        .on(&Method::GET, "/projects/{id}/reviews/{task_id}", "get_a_review", Rule::any(READ, FAST_LOOKUP), get)
        .on(
            &Method::POST,
            "/projects/{id}/reviews/{task_id}/retry",
            "retry_a_review",
            Rule::any(EXECUTE, STANDARD),
            retry,
        )
}

/// A review, and what became of the branch then.
#[derive(Serialize, ToSchema)]
struct ReviewView {
    /// Of its job, too.
    id: String,
    project_id: String,
    checkout_id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<Uuid>,
    branch: String,
    /// The branch that it is to go into.
    base: String,
    /// What is reviewed, and merged.
    head_sha: String,
    /// `error`: there is no verdict.
    status: ReviewStatus,
    auto_merge: bool,
    /// `blocked`: the branch is no longer at `head_sha`, or, as the summary then says, git could not carry the merge out.
    merge: Merge,
    /// Where the base was moved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    merge_sha: Option<String>,
    /// The command that reviews, with its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    command_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
    created_at: DateTime<Utc>,
    /// There when nothing is left to do, the merge included.
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<DateTime<Utc>>,
}

impl ReviewView {
    fn of(review: Review) -> Self {
        let (command_id, summary) = (review.own_command().map(str::to_owned), review.said().map(Cow::into_owned));
        Self {
            id: review.id,
            project_id: review.project_id,
            checkout_id: review.checkout_id,
            session_id: review.session_id,
            branch: review.branch,
            base: review.base,
            head_sha: review.head_sha,
            status: review.status,
            auto_merge: review.auto_merge,
            merge: review.merge,
            merge_sha: review.merge_sha,
            command_id,
            summary,
            created_at: review.created_at,
            completed_at: review.completed_at,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct ReviewList {
    reviews: Vec<ReviewView>,
}

async fn list(
    State(reviews): State<Reviews>,
    InProject(project): InProject,
    Query(query): Query<PageQuery>,
) -> Result<Paged<ReviewList>> {
    let (before, limit) = query.parse::<ulid::Ulid>()?;
    let before = before.map(|id| id.to_string());
    let found = reviews.page(&project.id, before.as_deref(), limit + 1).await?;
    let (found, next) = cut(found, limit, |review| review.id.clone());
    Ok(Paged { data: ReviewList { reviews: found.into_iter().map(ReviewView::of).collect() }, next })
}

async fn get(
    State(reviews): State<Reviews>,
    InProject(project): InProject,
    ReviewId(id): ReviewId,
) -> Result<Data<ReviewView>> {
    Ok(Data(ReviewView::of(reviews.get(&project.id, &id).await?)))
}

async fn retry(
    State(reviews): State<Reviews>,
    Caller(caller): Caller,
    InProject(project): InProject,
    ReviewId(id): ReviewId,
    once: Once,
    _: Body<Nothing>,
) -> Result<Data<ReviewView>> {
    let answer = Answer::new(once.0, 200, &[], |review: &Review| json!(ReviewView::of(review.clone())));
    let review = reviews.retry(caller.id, &project, &id, answer).await?;
    Ok(Data(ReviewView::of(review)))
}

//! `/projects/{id}/pipelines`: pipelines at the CI server.

use axum::extract::State;
use http::Method;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    extract::{Body, Caller, InProject, Nothing, PipelineNumber},
    guard::Rule,
    reply::Data,
    routes::{Routes, STANDARD},
};
use crate::{
    domain::{pipeline::PipelineStatus, scopes::Scope},
    error::Result,
    services::pipelines::{Pipelines, Retried},
};

const EXECUTE: &[Scope] = &[Scope::ProjectsExecute];

pub fn routes(service: Pipelines) -> Routes<Pipelines> {
    Routes::new("pipelines", service).on(
        &Method::POST,
        "/projects/{id}/pipelines/{number}/retry",
        "retry_a_pipeline",
        Rule::any(EXECUTE, STANDARD),
        retry,
    )
}

/// A pipeline that was begun again: the new one.
#[derive(Serialize, ToSchema)]
struct RetriedPipeline {
    project_id: String,
    /// The pipeline that was asked for.
    retried_from: i64,
    number: i64,
    status: PipelineStatus,
    /// The CI server's page that shows it.
    url: String,
}

impl From<Retried> for RetriedPipeline {
    fn from(retried: Retried) -> Self {
        let Retried { project_id, retried_from, pipeline, url } = retried;
        Self { project_id, retried_from, number: pipeline.number, status: pipeline.status, url }
    }
}

async fn retry(
    State(service): State<Pipelines>,
    Caller(caller): Caller,
    InProject(project): InProject,
    PipelineNumber(number): PipelineNumber,
    _: Body<Nothing>,
) -> Result<Data<RetriedPipeline>> {
    service.retry(&caller, &project, number).await.map(|retried| Data(retried.into()))
}

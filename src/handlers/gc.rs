//! `/gc`: what of the cluster's objects belongs to nobody any more, and what became of such.

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    extract::Body,
    guard::Rule,
    reply::Data,
    routes::{ORCHESTRATION, Routes, STANDARD},
};
use crate::{
    domain::{gc::deletable_at, scopes::Scope},
    error::Result,
    services::gc::{Gc, Report},
};

const ADMIN: &[Scope] = &[Scope::Admin];

pub fn routes(gc: Gc) -> Routes<Gc> {
    Routes::new("operations", gc)
        .on(&Method::GET, "/gc/report", "look_at_orphaned_objects", Rule::any(ADMIN, STANDARD).unbound(), report)
        .on(&Method::POST, "/gc/run", "remove_orphaned_objects", Rule::any(ADMIN, ORCHESTRATION).unbound(), run)
}

#[derive(Deserialize, ToSchema)]
struct RunGc {
    /// Remove nothing; those that nobody saw before are known from now on all the same.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Serialize, ToSchema)]
struct GcReport {
    /// Objects whose project or session has no record, by kind and name.
    orphans: Vec<OrphanView>,
    /// Why nothing is removed that could be.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_by: Option<String>,
    /// Of a run: what it removed. Of a report: the last 500 of 30 days, newest first.
    removed: Vec<RemovedView>,
}

#[derive(Serialize, ToSchema)]
struct OrphanView {
    kind: String,
    name: String,
    uid: String,
    project_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<String>,
    first_seen_at: DateTime<Utc>,
    /// From then on it may be removed.
    deletable_at: DateTime<Utc>,
}

#[derive(Serialize, ToSchema)]
struct RemovedView {
    kind: String,
    name: String,
    at: DateTime<Utc>,
}

impl GcReport {
    fn of(report: Report) -> Self {
        let orphans = report.orphans.into_iter().map(|row| OrphanView {
            kind: row.kind,
            name: row.name,
            uid: row.uid,
            project_id: row.project_id,
            session_id: row.session_id,
            first_seen_at: row.first_seen_at,
            deletable_at: deletable_at(row.first_seen_at),
        });
        let removed = report.removed.into_iter().map(|row| RemovedView { kind: row.kind, name: row.name, at: row.at });
        Self { orphans: orphans.collect(), blocked_by: report.blocked_by, removed: removed.collect() }
    }
}

async fn report(State(gc): State<Gc>) -> Result<Data<GcReport>> {
    gc.report().await.map(|report| Data(GcReport::of(report)))
}

async fn run(State(gc): State<Gc>, body: Body<RunGc>) -> Result<Data<GcReport>> {
    gc.run(body.value.dry_run).await.map(|report| Data(GcReport::of(report)))
}

//! The processes that work here, what waits for them, and the breakers of this one.

use std::collections::BTreeMap;

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::Method;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    guard::Rule,
    reply::Data,
    routes::{LOOKUP, Routes},
};
use crate::{
    domain::{breaker, scopes::Scope},
    error::Result,
    services::pool::{Pool, Survey},
};

pub fn routes(pool: Pool) -> Routes<Pool> {
    Routes::new("operations", pool)
        .on(&Method::GET, "/workers/pool", "look_at_the_pool", Rule::any(&[Scope::ProjectsRead], LOOKUP), look)
        .on(&Method::GET, "/health/circuits", "look_at_the_circuits", Rule::public(LOOKUP, "the breakers"), circuits)
}

#[derive(Serialize, ToSchema)]
struct PoolView {
    workers: Workers,
    capacity: Capacity,
    queue: Waiting,
    processes: Vec<ProcessView>,
}

/// Each slot for a job is a worker.
#[derive(Serialize, ToSchema)]
struct Workers {
    total: i64,
    busy: i64,
    idle: i64,
}

#[derive(Serialize, ToSchema)]
struct Capacity {
    slots: i64,
    used: i64,
    available: i64,
}

/// Tasks that nobody has claimed yet.
#[derive(Serialize, ToSchema)]
struct Waiting {
    depth: i64,
    oldest_age_seconds: f64,
    by_kind: BTreeMap<String, i64>,
}

#[derive(Serialize, ToSchema)]
struct ProcessView {
    id: Uuid,
    host: String,
    version: String,
    started_at: DateTime<Utc>,
    last_seen_at: DateTime<Utc>,
    slots: i32,
    used: i64,
}

async fn look(State(pool): State<Pool>) -> Result<Data<PoolView>> {
    let Survey { processes, waiting } = pool.survey().await?;
    let slots: i64 = processes.iter().map(|process| i64::from(process.slots)).sum();
    let used: i64 = processes.iter().map(|process| process.used).sum();
    let free = (slots - used).max(0);
    Ok(Data(PoolView {
        workers: Workers { total: slots, busy: used, idle: free },
        capacity: Capacity { slots, used, available: free },
        queue: Waiting {
            depth: waiting.iter().map(|(_, count, _)| count).sum(),
            oldest_age_seconds: waiting.iter().map(|(.., age)| age.max(0.0)).fold(0.0, f64::max),
            by_kind: waiting.into_iter().filter(|(_, count, _)| *count > 0).map(|(kind, n, _)| (kind, n)).collect(),
        },
        processes: processes
            .into_iter()
            .map(|process| ProcessView {
                id: process.id,
                host: process.host,
                version: process.version,
                started_at: process.started_at,
                last_seen_at: process.seen_at,
                slots: process.slots,
                used: process.used,
            })
            .collect(),
    }))
}

#[derive(Serialize, ToSchema)]
struct CircuitView {
    name: String,
    /// `closed`, `half_open` or `open`.
    state: &'static str,
    failures: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    opened_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<DateTime<Utc>>,
}

#[derive(Serialize, ToSchema)]
struct CircuitList {
    circuits: Vec<CircuitView>,
}

async fn circuits(State(pool): State<Pool>) -> Data<CircuitList> {
    let view = |(name, snapshot): (String, breaker::Snapshot)| CircuitView {
        name,
        state: snapshot.state.text(),
        failures: snapshot.failures,
        opened_at: snapshot.opened_at,
        next_attempt_at: snapshot.next_attempt_at,
    };
    Data(CircuitList { circuits: pool.circuits().into_iter().map(view).collect() })
}

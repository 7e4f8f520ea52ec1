//! Health, metrics, the OpenAPI document.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    guard::Rule,
    routes::{LOOKUP, Routes},
};
use crate::services::health::{Condition, Health};

#[derive(Clone)]
pub struct Service {
    pub health: Health,
    /// Set once all routes are known.
    pub document: Arc<std::sync::OnceLock<Arc<str>>>,
    /// False when `/metrics` has a listener of its own.
    pub serve_metrics: bool,
}

pub fn routes(service: Service) -> Routes<Service> {
    let metrics = service.serve_metrics;
    let routes = Routes::new("operations", service)
        .on(
            &Method::GET,
            "/health",
            "look_at_the_server_s_health",
            Rule::public(LOOKUP, "the condition, 503 where something is wrong"),
            health,
        )
        .on(&Method::GET, "/health/live", "is_the_server_alive", Rule::public(LOOKUP, "alive"), live)
        .on(&Method::GET, "/health/ready", "is_the_server_ready", Rule::public(LOOKUP, "ready, or 503"), ready)
        .on(&Method::GET, "/openapi.json", "read_this_document", Rule::public(LOOKUP, "OpenAPI 3.1"), openapi);
    if metrics {
        routes.on(&Method::GET, "/metrics", "read_the_metrics", Rule::public(LOOKUP, "Prometheus text"), prometheus)
    } else {
        routes
    }
}

#[derive(Serialize, ToSchema)]
struct HealthView {
    status: &'static str,
    version: &'static str,
    database: &'static str,
    runtime: &'static str,
    git_host: &'static str,
    model_upstream: &'static str,
    #[schema(value_type = Object)]
    checks: Value,
}

impl HealthView {
    fn new(condition: &Condition) -> Self {
        let well = |is_well: bool| if is_well { "ok" } else { "unavailable" };
        let mut checks = json!({
            "server": {"status": condition.phase},
            "database": {"status": well(condition.database)},
            "git_host": {"status": condition.git_host_status},
            "git_tokens": tokens(condition.irrevocable_tokens),
            "isolation": {
                "status": if condition.isolated { "ok" } else { "warning" },
                "kind": condition.isolation,
                "message": condition.isolation_text,
            },
        });
        if let Some((status, message)) = &condition.discovery {
            checks["discovery"] = json!({"status": status, "message": message});
        }
        Self {
            checks,
            status: well(condition.is_well()),
            version: env!("CARGO_PKG_VERSION"),
            database: well(condition.database),
            runtime: condition.runtime,
            git_host: condition.git_host,
            model_upstream: condition.model_upstream,
        }
    }
}

/// Those that the git host did not let go of are alive although their checkouts have ended.
fn tokens(irrevocable: Option<usize>) -> Value {
    match irrevocable {
        None => json!({"status": "unknown"}),
        Some(0) => json!({"status": "ok", "irrevocable": 0}),
        Some(count) => json!({"status": "warning", "irrevocable": count}),
    }
}

async fn health(State(service): State<Service>) -> Response {
    let condition = service.health.condition().await;
    let status = if condition.is_well() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, super::reply::Data(HealthView::new(&condition))).into_response()
}

/// Health while the program starts.
pub fn starting() -> axum::Router {
    let waiting = async || {
        let view = HealthView::new(&Condition::starting());
        (StatusCode::SERVICE_UNAVAILABLE, super::reply::Data(view)).into_response()
    };
    axum::Router::new()
        .route("/health", axum::routing::get(waiting))
        .route("/health/ready", axum::routing::get(unavailable))
        .route("/health/live", axum::routing::get(live))
}

async fn live() -> Response {
    super::reply::Data(json!({"status": "ok"})).into_response()
}

async fn ready(State(service): State<Service>) -> Response {
    if service.health.ready().await {
        return super::reply::Data(json!({"status": "ready"})).into_response();
    }
    unavailable().await
}

async fn unavailable() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, super::reply::Data(json!({"status": "unavailable"}))).into_response()
}

async fn openapi(State(service): State<Service>) -> Response {
    let text = service.document.get().map_or("{}", |text| text).to_owned();
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn prometheus(State(service): State<Service>) -> Response {
    metrics_response(&service.health)
}

/// The metrics as both listeners serve them.
pub fn metrics_response(health: &Health) -> Response {
    let mut response = Response::new(Body::from(health.metrics()));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

//! Ollama's API, as far as it is passed on: the chat byte for byte, and what models there are.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, header};

use super::{
    extract::{BodyLimit, RawBody},
    guard::Rule,
    reply::Native,
    routes::{LOOKUP, Routes, STANDARD},
};
use crate::{
    domain::scopes::Scope,
    error::Result,
    services::chats::{Chats, Passed},
};

const READ: &[Scope] = &[Scope::JobsRead];
const EXECUTE: &[Scope] = &[Scope::JobsExecute];
/// A conversation ends when upstream or the client does.
const UNHURRIED: std::time::Duration = std::time::Duration::from_hours(24);

pub fn routes(chats: Chats) -> Routes<Chats> {
    let chat = Rule::any(EXECUTE, UNHURRIED).body(BodyLimit::CHAT).passes().answers("what upstream answers");
    let read = |deadline| Rule::any(READ, deadline).answers("as Ollama answers");
    Routes::new("chat", chats)
        .on(&Method::POST, "/api/chat", "chat_with_a_model", chat, converse)
        .on(&Method::GET, "/api/tags", "list_models", read(LOOKUP), tags)
        .on(&Method::GET, "/api/ps", "list_loaded_models", read(LOOKUP), loaded)
        .on(&Method::GET, "/api/version", "get_the_upstream_s_version", read(LOOKUP), version)
        .on(&Method::POST, "/api/show", "show_a_model", read(STANDARD), show)
}

async fn converse(State(chats): State<Chats>, RawBody(body): RawBody) -> Result<Response> {
    Ok(pass(chats.converse(body).await?))
}

async fn tags(State(chats): State<Chats>) -> Result<Response> {
    Ok(pass(chats.tags().await?))
}

async fn loaded(State(chats): State<Chats>) -> Result<Response> {
    Ok(pass(chats.loaded().await?))
}

async fn version(State(chats): State<Chats>) -> Result<Response> {
    Ok(pass(chats.version().await?))
}

async fn show(State(chats): State<Chats>, RawBody(body): RawBody) -> Result<Response> {
    Ok(pass(chats.show(body).await?))
}

/// Status and bytes as they come; no header of upstream's but the type.
fn pass(passed: Passed) -> Response {
    let Ok(status) = StatusCode::from_u16(passed.status) else {
        return Native(StatusCode::BAD_GATEWAY, serde_json::json!({"error": "upstream answered nonsense"}))
            .into_response();
    };
    let mut response = Response::new(Body::from_stream(passed.body));
    *response.status_mut() = status;
    let kind = passed.content_type.unwrap_or(HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    if let Some(after) = passed.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, after);
    }
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

//! The envelopes, and `Error` → status and code: the only place that knows both.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::context::{self, Context};
use crate::{
    domain::clock::Clock,
    error::{Error, Kind},
};

/// 200 with `data`.
pub struct Data<T>(pub T);

/// 201 with `data`.
pub struct Created<T>(pub T);

/// 201 the first time, 200 for what was there already.
pub enum MaybeCreated<T> {
    Created(T),
    Found(T),
}

/// A bare body, in the native family.
pub struct Native<T>(pub StatusCode, pub T);

/// 200 with `data` and, where more follows, `meta.next_cursor`.
pub struct Paged<T> {
    pub data: T,
    pub next: Option<String>,
}

/// Names of fields of `data` that must never be stored.
#[derive(Clone, Copy)]
pub struct Secrets(pub &'static [&'static str]);

/// What `data` was, for whoever stores the answer.
#[derive(Clone)]
pub struct Shown(pub Value);

impl<T: Serialize> IntoResponse for Data<T> {
    fn into_response(self) -> Response {
        envelope(StatusCode::OK, &self.0, None)
    }
}

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        envelope(StatusCode::CREATED, &self.0, None)
    }
}

impl<T: Serialize> IntoResponse for MaybeCreated<T> {
    fn into_response(self) -> Response {
        match self {
            Self::Created(data) => envelope(StatusCode::CREATED, &data, None),
            Self::Found(data) => envelope(StatusCode::OK, &data, None),
        }
    }
}

impl<T: Serialize> IntoResponse for Native<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.1) {
            Ok(body) => json_response(self.0, body),
            Err(error) => Error::internal(error).into_response(),
        }
    }
}

impl<T: Serialize> IntoResponse for Paged<T> {
    fn into_response(self) -> Response {
        envelope(StatusCode::OK, &self.data, self.next.as_deref())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let context = context::current();
        let status = status(self.kind());
        log(&self, &context);
        let mut response = if context.native {
            json_response(status, json!({"error": native_message(&self)}).to_string().into_bytes())
        } else {
            let error = error_value(&self);
            let body = format!("{{\"error\":{error},\"meta\":{}}}", meta(&context, None));
            json_response(status, body.into_bytes())
        };
        let headers = response.headers_mut();
        if self.kind() == Kind::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.wait() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait).max(1)));
        }
        response
    }
}

/// The `error` of the envelope; `details` is left out when empty.
pub fn error_value(error: &Error) -> Value {
    let mut value = json!({"code": error.stable_code(), "message": error.message()});
    if !error.details().is_empty() {
        value["details"] = Value::Object(error.details().clone());
    }
    value
}

/// A stored answer again: `{"data":…}` or `{"error":…}` with the present request's `meta`.
pub fn replay(status: u16, stored: &Value) -> Response {
    let context = context::current();
    let mut body = stored.clone();
    if !context.native {
        body["meta"] = serde_json::from_str(&meta(&context, None)).unwrap_or_default();
    } else if let Some(data) = body.get_mut("data") {
        body = data.take();
    }
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let mut response = json_response(status, body.to_string().into_bytes());
    response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    response
}

pub fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Gone => StatusCode::GONE,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Limited => StatusCode::TOO_MANY_REQUESTS,
        Kind::BadGateway => StatusCode::BAD_GATEWAY,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn envelope<T: Serialize>(status: StatusCode, data: &T, next: Option<&str>) -> Response {
    let mut body = Vec::with_capacity(512);
    body.extend_from_slice(b"{\"data\":");
    if let Err(error) = serde_json::to_writer(&mut body, data) {
        return Error::internal(error).into_response();
    }
    body.extend_from_slice(b",\"meta\":");
    body.extend_from_slice(meta(&context::current(), next).as_bytes());
    body.push(b'}');
    json_response(status, body)
}

fn meta(context: &Context, next: Option<&str>) -> String {
    let at = Clock::System.now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let id = &context.request_id;
    match next {
        None => format!("{{\"request_id\":\"{id}\",\"timestamp\":\"{at}\"}}"),
        Some(next) => format!("{{\"request_id\":\"{id}\",\"timestamp\":\"{at}\",\"next_cursor\":\"{next}\"}}"),
    }
}

fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Rounded up.
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A client of the native family reads one sentence, so the scopes are in it.
fn native_message(error: &Error) -> String {
    let scopes = error.details().get("required_any").and_then(Value::as_array);
    let scopes = scopes.map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "));
    match scopes {
        Some(scopes) => format!("{}: needs {scopes}", error.message()),
        None => error.message().to_owned(),
    }
}

fn log(error: &Error, context: &Context) {
    let cause = error.hidden_cause().unwrap_or("");
    match error.kind() {
        Kind::Internal => tracing::error!(request.id = %context.request_id, cause, "internal error"),
        Kind::Unavailable | Kind::BadGateway | Kind::Timeout => {
            tracing::warn!(request.id = %context.request_id, code = error.stable_code(), cause, "{}", error.message());
        }
        _ => tracing::debug!(request.id = %context.request_id, code = error.stable_code(), "{}", error.message()),
    }
}

/// `{"status","id"}` of what was ended, with what there is to say.
#[derive(Serialize, ToSchema)]
pub struct Done {
    pub status: &'static str,
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'static str>,
}

//! What handlers take, with failures that are ours: JSON bodies, query strings, ids in
//! the path. Everything is checked once, here, NUL bytes included.

use std::{str::FromStr, sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
};
use bytes::BytesMut;
use http::request::Parts;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    context,
    describe::{Describe, Operation},
};
use crate::{
    domain::{artifact, durations, ids, key::Key, project::Project},
    error::{Error, Kind, Result},
    services::receipts::Slot,
};

/// A JSON body, whatever its `Content-Type`. An empty one counts as `{}`.
pub struct Body<T> {
    pub value: T,
    /// SHA-256 of the bytes as they came.
    pub hash: Vec<u8>,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        let bytes = read(request).await?;
        let hash =
            sha2::Digest::finalize(sha2::Digest::chain_update(<sha2::Sha256 as sha2::Digest>::new(), &bytes)).to_vec();
        Ok(Self { value: decode(&bytes)?, hash })
    }
}

impl<T: ToSchema> Describe for Body<T> {
    fn describe(operation: &mut Operation) {
        let schema = operation.schema::<T>();
        operation.body = Some(json!({"content": {"application/json": {"schema": schema}}}));
    }
}

/// A body in which nothing is said; what is sent all the same is read and checked.
#[derive(serde::Deserialize, ToSchema)]
pub struct Nothing {}

/// Largest body of a route, in bytes.
#[derive(Clone, Copy)]
pub struct BodyLimit(pub usize);

impl BodyLimit {
    pub const DEFAULT: usize = 1 << 20;
    /// Routes that start a command.
    pub const COMMAND: usize = 4 << 20;
    /// What goes to a model.
    pub const CHAT: usize = 16 << 20;
}

/// The body as it came; who takes it tells what is wrong with it.
pub struct RawBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        read(request).await.map(Self)
    }
}

impl Describe for RawBody {
    fn describe(operation: &mut Operation) {
        operation.body = Some(json!({"content": {"application/json": {"schema": {"type": "object"}}}}));
    }
}

/// Read beyond a limit, and thrown away: a client that is still sending would not hear the answer.
const DISCARDED_MAX: usize = 32 << 20;
const DISCARDED_IN: Duration = Duration::from_secs(10);

/// The whole body, up to the route's limit.
///
/// # Errors
/// `PAYLOAD_TOO_LARGE` past the limit; 400 when the client broke off.
pub async fn read(request: Request) -> Result<Bytes> {
    let limit = request.extensions().get::<BodyLimit>().map_or(BodyLimit::DEFAULT, |limit| limit.0);
    let (parts, mut body) = request.into_parts();
    let announced = parts.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let is_too_large = announced.is_some_and(|length: usize| length > limit);
    // Who asks first has not begun to send.
    if is_too_large && parts.headers.contains_key(http::header::EXPECT) {
        return Err(too_large(limit));
    }
    let mut kept = BytesMut::with_capacity(announced.unwrap_or(0).min(limit).min(1 << 20));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Error::invalid("invalid request body").reason("the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        if is_too_large || kept.len() + data.len() > limit {
            let _as_far_as_it_goes = tokio::time::timeout(DISCARDED_IN, discard(body)).await;
            return Err(too_large(limit));
        }
        kept.extend_from_slice(&data);
    }
    Ok(kept.freeze())
}

async fn discard(mut body: axum::body::Body) {
    let mut seen = 0;
    while seen < DISCARDED_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        seen += frame.data_ref().map_or(0, Bytes::len);
    }
}

fn too_large(limit: usize) -> Error {
    Error::new(Kind::TooLarge, "PAYLOAD_TOO_LARGE", format!("the body is larger than {limit} bytes"))
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let refuse = |reason: String| Error::invalid("invalid request body").reason(reason);
    let bytes = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { bytes };
    let text = std::str::from_utf8(bytes).map_err(|error| refuse(format!("not UTF-8: {error}")))?;
    if !text.trim_start().starts_with('{') {
        // serde would take a list for a struct.
        let wrong = serde_json::from_str::<Value>(text).err().map(|error| error.to_string());
        return Err(refuse(wrong.unwrap_or_else(|| "a JSON object is needed".into())));
    }
    if contains_nul(bytes) {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
        if let Some(path) = find_nul(&value, String::new()) {
            return Err(refuse(format!("{path}: a NUL character is not allowed")));
        }
    }
    serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))
}

/// Cheap: only a body that could hold an escaped NUL is looked through.
pub fn contains_nul(bytes: &[u8]) -> bool {
    bytes.windows(6).any(|window| window.eq_ignore_ascii_case(b"\\u0000"))
}

fn find_nul(value: &Value, path: String) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then_some(path),
        Value::Array(items) => items.iter().enumerate().find_map(|(i, item)| find_nul(item, format!("{path}[{i}]"))),
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if name.contains('\0') { Some(path.replace('\0', "\\u0000")) } else { find_nul(member, path) }
        }),
        _ => None,
    }
}

/// The query string.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let text = parts.uri.query().unwrap_or("");
        if text.contains("%00") {
            return Err(Error::invalid("invalid query").reason("a NUL character is not allowed"));
        }
        let parsed = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        parsed.map(|axum::extract::Query(value)| Self(value)).map_err(|error| {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Error::invalid("invalid query").reason(reason)
        })
    }
}

impl<T: ToSchema> Describe for Query<T> {
    fn describe(operation: &mut Operation) {
        let schema = super::describe::inline::<T>();
        // A flattened part stands beside the own properties.
        let parts = schema["allOf"].as_array().cloned().unwrap_or_else(|| vec![schema]);
        let resolved = parts
            .iter()
            .map(|part| if part.get("$ref").is_some() { super::describe::inline::<PageQuery>() } else { part.clone() });
        for (name, property) in resolved.flat_map(|part| part["properties"].as_object().cloned().unwrap_or_default()) {
            let help = property["description"].as_str().unwrap_or_default().to_owned();
            operation.query(&name, property, &help);
        }
    }
}

/// The key that the guard let in.
#[derive(Clone)]
pub struct Caller(pub Arc<Key>);

/// The project that the guard found under `{id}`.
#[derive(Clone)]
pub struct InProject(pub Arc<Project>);

/// Where this request's answer is to be kept, when it carried an `Idempotency-Key`.
#[derive(Clone)]
pub struct Once(pub Option<Slot>);

macro_rules! from_extension {
    ($type:ident, $otherwise:expr) => {
        impl<S: Send + Sync> FromRequestParts<S> for $type {
            type Rejection = Error;

            async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
                parts.extensions.get::<Self>().cloned().ok_or_else(|| $otherwise)
            }
        }

        impl Describe for $type {
            fn describe(_: &mut Operation) {}
        }
    };
}

from_extension!(Caller, Error::unauthenticated());
from_extension!(InProject, Error::not_found("project not found"));
from_extension!(Once, Error::internal("the guard leaves a slot for every request"));

macro_rules! path_id {
    ($type:ident, $inner:ty, $name:literal, $missing:literal, $parse:expr) => {
        /// An id in the path; one that is not well-formed is simply not found.
        pub struct $type(pub $inner);

        impl<S: Send + Sync> FromRequestParts<S> for $type {
            type Rejection = Error;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
                let missing = || Error::not_found($missing);
                let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| missing())?;
                let text = params.iter().find(|(name, _)| *name == $name).map(|(_, value)| value.to_owned());
                let parse: fn(&str) -> Option<$inner> = $parse;
                text.and_then(|text| parse(&text)).map(Self).ok_or_else(missing)
            }
        }

        impl Describe for $type {
            fn describe(_: &mut Operation) {}
        }
    };
}

path_id!(KeyId, Uuid, "kid", "key not found", ids::uuid_from_path);
path_id!(CheckoutId, Uuid, "checkout_id", "checkout not found", ids::uuid_from_path);
path_id!(SessionId, Uuid, "sid", "session not found", ids::uuid_from_path);
path_id!(PipelineNumber, i64, "number", "pipeline not found", |text| {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| is_plain)
});
path_id!(JobId, String, "jid", "job not found", |text| ids::is_ulid(text).then(|| text.to_owned()));
path_id!(ReviewId, String, "task_id", "review not found", |text| ids::is_ulid(text).then(|| text.to_owned()));
path_id!(SagaId, Uuid, "saga", "saga not found", ids::uuid_from_path);
path_id!(StepName, String, "step", "step not found", |text| Some(text.to_owned()));
path_id!(DefinitionName, String, "name", "saga definition not found", |text| (!text.contains('\0'))
    .then(|| text.to_owned()));
path_id!(DeliveryId, Uuid, "did", "delivery not found", ids::uuid_from_path);
path_id!(ArtifactName, String, "name", "artifact not found", |text| artifact::is_name(text).then(|| text.to_owned()));
path_id!(CommandRef, String, "cid", "command not found", |text| ids::CommandId::parse(text)
    .map(|id| id.to_string())
    .ok());

/// A page of a list: `limit` and `cursor`.
#[derive(serde::Deserialize, ToSchema)]
pub struct PageQuery {
    /// How many at most, 1–200; default 50.
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// Where the page before ended.
    cursor: Option<String>,
}

/// The largest page.
const PAGE_MAX: i64 = 200;
const PAGE_DEFAULT: i64 = 50;

impl PageQuery {
    /// The page asked for: after which item, how many.
    ///
    /// # Errors
    /// 400 naming `limit` or `cursor`.
    pub fn parse<C: FromStr>(&self) -> Result<(Option<C>, i64)> {
        let limit = match self.limit.as_deref() {
            None | Some("") => PAGE_DEFAULT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
                .filter(|n| (1..=PAGE_MAX).contains(n))
                .ok_or_else(|| Error::invalid("limit must be a number from 1 to 200"))?,
        };
        let cursor = match self.cursor.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(decode_cursor(text).ok_or_else(|| Error::invalid("cursor is not one that a list gave"))?)
            }
        };
        Ok((cursor, limit))
    }
}

fn decode_cursor<C: FromStr>(text: &str) -> Option<C> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()?;
    String::from_utf8(bytes).ok()?.parse().ok()
}

/// Cuts a list that was read one longer than the page, and says where the next one begins.
pub fn cut<T, C: ToString>(mut items: Vec<T>, limit: i64, cursor: impl Fn(&T) -> C) -> (Vec<T>, Option<String>) {
    use base64::Engine as _;
    let limit = usize::try_from(limit).unwrap_or(1);
    if items.len() <= limit {
        return (items, None);
    }
    items.truncate(limit);
    let next =
        items.last().map(|last| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(cursor(last).to_string()));
    (items, next)
}

/// A duration that a client sent, of a length that is allowed.
///
/// # Errors
/// 400 naming the field.
pub fn duration(field: &str, text: Option<&str>, max: Duration) -> Result<Option<Duration>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let refuse = || {
        Error::invalid(format!("{field} must be a duration (e.g., 30s, 10m), at most {}", durations::format_short(max)))
    };
    durations::parse_positive(text).ok().filter(|given| *given <= max).map(Some).ok_or_else(refuse)
}

/// A word out of a fixed set, in a query.
///
/// # Errors
/// 400 that names the parameter.
pub fn one_of<T: DeserializeOwned>(name: &str, text: Option<&str>) -> Result<Option<T>> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => serde_json::from_value(Value::from(text))
            .map(Some)
            .map_err(|_| Error::invalid(format!("{name} is not one of those there are")).reason(text)),
    }
}

/// The request's id, for what outlives the request.
pub fn request_id() -> Arc<str> {
    context::current().request_id
}

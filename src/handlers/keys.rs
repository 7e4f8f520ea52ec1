//! `/keys` and `/whoami`.

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    extract::{Body, Caller, KeyId, Once, PageQuery, Query, cut},
    guard::Rule,
    reply::{Created, Data, Done, Paged},
    routes::{LOOKUP, Routes, STANDARD},
};
use crate::{
    domain::{
        durations,
        key::Key,
        scopes::{Scope, ScopeSet},
    },
    error::{Error, Result},
    services::{
        keys::{Keys, Minted, NewKey},
        receipts::Answer,
    },
};

const ADMIN: &[Scope] = &[Scope::Admin];

pub fn routes(keys: Keys) -> Routes<Keys> {
    Routes::new("keys", keys)
        .on(&Method::POST, "/keys", "create_a_key", Rule::any(ADMIN, STANDARD), create)
        .on(&Method::GET, "/keys", "list_keys", Rule::any(ADMIN, LOOKUP), list)
        .on(&Method::GET, "/keys/{kid}", "get_a_key", Rule::any(ADMIN, LOOKUP), get)
        .on(&Method::DELETE, "/keys/{kid}", "revoke_a_key", Rule::any(ADMIN, STANDARD), revoke)
        .on(&Method::POST, "/keys/{kid}/rotate", "rotate_a_key", Rule::any(ADMIN, STANDARD), rotate)
        .on(&Method::GET, "/whoami", "who_am_i", Rule::any(&[], LOOKUP), whoami)
}

/// A key as clients see it. `key`, the secret, is there once.
#[derive(Serialize, ToSchema)]
pub struct KeyView {
    id: Uuid,
    name: String,
    prefix: String,
    #[schema(value_type = Vec<String>)]
    scopes: ScopeSet,
    #[serde(skip_serializing_if = "Option::is_none")]
    project_ids: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_cidrs: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<u32>,
    created_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_expires_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl KeyView {
    fn of(key: &Key) -> Self {
        let cidrs = |list: &Vec<ipnet::IpNet>| list.iter().map(ToString::to_string).collect();
        Self {
            id: key.id,
            name: key.name.clone(),
            prefix: key.prefix.clone(),
            scopes: key.scopes,
            project_ids: key.project_ids.clone(),
            allowed_cidrs: key.allowed_cidrs.as_ref().map(cidrs),
            rate_limit: key.rate_limit,
            created_at: key.created_at,
            expires_at: key.expires_at,
            previous_expires_at: key.previous_expires_at,
            last_used_at: key.last_used_at,
            revoked_at: key.revoked_at,
            key: None,
        }
    }

    fn with_secret(minted: &Minted) -> Self {
        Self { key: Some(minted.secret.expose().to_owned()), ..Self::of(&minted.key) }
    }
}

#[derive(Deserialize, ToSchema)]
struct CreateKey {
    name: String,
    /// `projects:read`, `projects:execute`, `sessions:read`, `sessions:execute`, `jobs:read`, `jobs:execute`, `admin`
    scopes: Vec<String>,
    project_ids: Option<Vec<String>>,
    allowed_cidrs: Option<Vec<String>>,
    /// Requests a minute; 0: no limit.
    rate_limit: Option<u32>,
    expires_in: Option<String>,
}

impl CreateKey {
    fn parse(self) -> Result<NewKey> {
        let scopes = ScopeSet::from_names(self.scopes.iter().map(String::as_str))
            .map_err(|error| Error::invalid(error.to_string()))?;
        Ok(NewKey {
            name: self.name,
            scopes,
            project_ids: self.project_ids,
            allowed_cidrs: self.allowed_cidrs.map(cidrs).transpose()?,
            rate_limit: self.rate_limit,
            expires_in: optional_duration(self.expires_in.as_deref())?,
        })
    }
}

fn cidrs(texts: Vec<String>) -> Result<Vec<ipnet::IpNet>> {
    if texts.is_empty() {
        return Err(Error::invalid("allowed_cidrs must name at least one CIDR, or be left out"));
    }
    let parse = |text: &String| text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from));
    let refuse = |text: &String| Error::invalid("allowed_cidrs holds something that is no CIDR").reason(text.clone());
    texts.iter().map(|text| parse(text).map_err(|_| refuse(text))).collect()
}

fn optional_duration(text: Option<&str>) -> Result<Option<std::time::Duration>> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => durations::ExpiresIn::parse(text, std::time::Duration::ZERO)
            .map(Some)
            .map_err(|error| Error::invalid(error.to_string())),
    }
}

const SECRET: &[&str] = &["key"];

fn answer(once: Once) -> Answer<Minted> {
    Answer::new(once.0, 201, SECRET, |minted| json!(KeyView::with_secret(minted)))
}

async fn create(
    State(keys): State<Keys>,
    Caller(caller): Caller,
    once: Once,
    body: Body<CreateKey>,
) -> Result<Created<KeyView>> {
    let minted = keys.create(&caller, body.value.parse()?, &answer(once)).await?;
    Ok(Created(KeyView::with_secret(&minted)))
}

#[derive(Serialize, ToSchema)]
struct KeyList {
    keys: Vec<KeyView>,
}

async fn list(
    State(keys): State<Keys>,
    Caller(caller): Caller,
    Query(page): Query<PageQuery>,
) -> Result<Paged<KeyList>> {
    let (before, limit) = page.parse()?;
    let (found, next) = cut(keys.page(&caller, before, limit + 1).await?, limit, |key| key.id);
    Ok(Paged { data: KeyList { keys: found.iter().map(KeyView::of).collect() }, next })
}

async fn get(State(keys): State<Keys>, Caller(caller): Caller, KeyId(id): KeyId) -> Result<Data<KeyView>> {
    Ok(Data(KeyView::of(&keys.get(&caller, id).await?)))
}

async fn revoke(State(keys): State<Keys>, Caller(caller): Caller, KeyId(id): KeyId) -> Result<Data<Done>> {
    keys.revoke(&caller, id).await?;
    Ok(Data(Done { status: "revoked", id: id.to_string(), message: None }))
}

#[derive(Deserialize, ToSchema)]
struct RotateKey {
    /// How long the old secret is valid still; default `1h`.
    overlap: Option<String>,
}

async fn rotate(
    State(keys): State<Keys>,
    Caller(caller): Caller,
    KeyId(id): KeyId,
    once: Once,
    body: Body<RotateKey>,
) -> Result<Created<KeyView>> {
    let overlap = match body.value.overlap.as_deref() {
        None | Some("") => std::time::Duration::from_hours(1),
        Some(text) => {
            durations::parse_overlap(text).map_err(|_| Error::invalid("overlap must be a duration from 0s to 30d"))?
        }
    };
    if overlap > durations::ExpiresIn::MAX {
        return Err(Error::invalid("overlap must be a duration from 0s to 30d"));
    }
    let minted = keys.rotate(&caller, id, overlap, &answer(once)).await?;
    Ok(Created(KeyView::with_secret(&minted)))
}

async fn whoami(State(keys): State<Keys>, Caller(caller): Caller) -> Data<KeyView> {
    Data(KeyView::of(&keys.with_latest_use(Key::clone(&caller))))
}

//! API keys. Every change moves the epoch, which processes compare to know whether
//! their copy of the keys is current.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as, query_scalar};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::{key::Key, scopes::ScopeSet},
};

/// A key with the hashes of its secrets.
pub struct KeyWithSecrets {
    pub key: Key,
    pub secret_hash: Vec<u8>,
    pub previous_hash: Option<Vec<u8>>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    name: String,
    prefix: String,
    secret_hash: Vec<u8>,
    previous_hash: Option<Vec<u8>>,
    previous_expires_at: Option<DateTime<Utc>>,
    scopes: Vec<String>,
    project_ids: Option<Vec<String>>,
    allowed_cidrs: Option<Vec<String>>,
    rate_limit: Option<i64>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
struct RowAt {
    #[sqlx(flatten)]
    row: Row,
    epoch: i64,
}

impl From<Row> for KeyWithSecrets {
    fn from(row: Row) -> Self {
        let cidrs = |texts: Vec<String>| texts.iter().filter_map(|text| text.parse().ok()).collect();
        Self {
            secret_hash: row.secret_hash,
            previous_hash: row.previous_hash,
            key: Key {
                id: row.id,
                name: row.name,
                prefix: row.prefix,
                scopes: ScopeSet::from_names(row.scopes.iter().map(String::as_str)).unwrap_or_default(),
                project_ids: row.project_ids,
                allowed_cidrs: row.allowed_cidrs.map(cidrs),
                rate_limit: row.rate_limit.and_then(|n| u32::try_from(n).ok()),
                created_at: row.created_at,
                expires_at: row.expires_at,
                previous_expires_at: row.previous_expires_at,
                last_used_at: row.last_used_at,
                revoked_at: row.revoked_at,
            },
        }
    }
}

pub async fn epoch(c: &mut Conn) -> Result<i64, DbError> {
    c.scalar(query_scalar("select epoch from key_epoch")).await
}

/// Moves the epoch; concurrent changes of keys wait for one another here.
pub async fn advance_epoch(c: &mut Conn) -> Result<i64, DbError> {
    c.scalar(query_scalar("update key_epoch set epoch = epoch + 1 returning epoch")).await
}

/// All keys that some secret may still open.
pub async fn all_live(c: &mut Conn) -> Result<Vec<KeyWithSecrets>, DbError> {
    let rows: Vec<Row> = c.all(query_as("select * from api_key where revoked_at is null")).await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// The key of this secret, unless it was revoked, and the epoch at that moment. The secret before a
/// rotation is not looked for: a rotation moves the epoch, so it is known.
pub async fn live_by_hash(c: &mut Conn, hash: &[u8]) -> Result<Option<(KeyWithSecrets, i64)>, DbError> {
    let sql = "select api_key.*, key_epoch.epoch from api_key, key_epoch
               where secret_hash = $1 and revoked_at is null";
    let row: Option<RowAt> = c.optional(query_as(sql).bind(hash)).await?;
    Ok(row.map(|found| (found.row.into(), found.epoch)))
}

pub async fn live_by_id(c: &mut Conn, id: Uuid) -> Result<Option<(KeyWithSecrets, i64)>, DbError> {
    let sql = "select api_key.*, key_epoch.epoch from api_key, key_epoch where id = $1 and revoked_at is null";
    let row: Option<RowAt> = c.optional(query_as(sql).bind(id)).await?;
    Ok(row.map(|found| (found.row.into(), found.epoch)))
}

pub async fn insert(c: &mut Conn, key: &Key, secret_hash: &[u8]) -> Result<(), DbError> {
    let sql = "insert into api_key (id, name, prefix, secret_hash, scopes, project_ids, allowed_cidrs, rate_limit, created_at, expires_at)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    let cidrs = key.allowed_cidrs.as_ref().map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
    let query = query(sql)
        .bind(key.id)
        .bind(&key.name)
        .bind(&key.prefix)
        .bind(secret_hash)
        .bind(key.scopes.names())
        .bind(&key.project_ids)
        .bind(cidrs)
        .bind(key.rate_limit.map(i64::from))
        .bind(key.created_at)
        .bind(key.expires_at);
    c.execute(query).await.map(drop)
}

pub async fn find(c: &mut Conn, id: Uuid) -> Result<Option<Key>, DbError> {
    let row: Option<Row> = c.optional(query_as("select * from api_key where id = $1").bind(id)).await?;
    Ok(row.map(|row| KeyWithSecrets::from(row).key))
}

/// A page of the keys that may be seen by somebody bound to `projects` (all, when unbound).
pub async fn page(
    c: &mut Conn,
    projects: Option<&[String]>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Key>, DbError> {
    let sql = "select * from api_key
               where ($1::text[] is null or (project_ids is not null and project_ids <@ $1))
               and ($2::uuid is null or id < $2)
               order by id desc
               limit $3";
    let rows: Vec<Row> = c.all(query_as(sql).bind(projects).bind(before).bind(limit)).await?;
    Ok(rows.into_iter().map(|row| KeyWithSecrets::from(row).key).collect())
}

pub async fn mark_revoked(c: &mut Conn, id: Uuid, now: DateTime<Utc>) -> Result<bool, DbError> {
    let sql = "update api_key set revoked_at = $2 where id = $1 and revoked_at is null";
    c.execute(query(sql).bind(id).bind(now)).await.map(|n| n == 1)
}

/// A new secret; the one in force becomes the previous one.
pub async fn rotate(
    c: &mut Conn,
    id: Uuid,
    prefix: &str,
    hash: &[u8],
    previous_until: DateTime<Utc>,
) -> Result<bool, DbError> {
    let sql = "update api_key
               set previous_hash = secret_hash, previous_expires_at = $4, secret_hash = $3, prefix = $2
               where id = $1 and revoked_at is null";
    c.execute(query(sql).bind(id).bind(prefix).bind(hash).bind(previous_until)).await.map(|n| n == 1)
}

/// Whether a full admin key other than `except` is usable, now and for some time.
pub async fn another_admin(c: &mut Conn, except: Uuid, now: DateTime<Utc>) -> Result<bool, DbError> {
    let sql = "select exists (
                   select from api_key
                   where id <> $1 and revoked_at is null and 'admin' = any(scopes) and project_ids is null
                   and (expires_at is null or expires_at > $2))";
    c.scalar(query_scalar(sql).bind(except).bind(now)).await
}

pub async fn any(c: &mut Conn) -> Result<bool, DbError> {
    c.scalar(query_scalar("select exists (select from api_key)")).await
}

pub async fn touch(c: &mut Conn, ids: &[Uuid], times: &[DateTime<Utc>]) -> Result<(), DbError> {
    let sql = "update api_key set last_used_at = greatest(coalesce(last_used_at, used.at), used.at)
               from unnest($1::uuid[], $2::timestamptz[]) as used (id, at) where api_key.id = used.id";
    c.execute(query(sql).bind(ids).bind(times)).await.map(drop)
}

//! First answers to requests that carried an `Idempotency-Key`.

use sqlx::{query, query_as};
use uuid::Uuid;

use crate::database::{Conn, DbError};

/// What is known of a key; no answer yet while the first request runs.
#[derive(sqlx::FromRow)]
pub struct Entry {
    pub body_hash: Vec<u8>,
    pub status: Option<i32>,
    pub answer: Option<Vec<u8>>,
    /// The process that runs the first request still lives.
    pub running: bool,
}

/// Takes the key for `process`. True when it is ours now: it is new, older than a day, or
/// the process that had it died before it could answer. `is_free`: this process runs no such request,
/// so a row of its own was left behind.
pub async fn take(
    c: &mut Conn,
    key_id: Uuid,
    digest: &[u8],
    body_hash: &[u8],
    process: Uuid,
    is_free: bool,
) -> Result<bool, DbError> {
    let sql = "insert into idempotency as i (key_id, digest, body_hash, process) values ($1, $2, $3, $4)
               on conflict (key_id, digest) do update
               set body_hash = $3, process = $4, created_at = now(), status = null, answer = null
               where i.created_at < now() - interval '24 hours'
               or (i.status is null and i.body_hash = $3
                   and ((i.process = $4 and $5)
                        or not exists (select from process p where p.id = i.process and p.expires_at > now())))";
    c.execute(query(sql).bind(key_id).bind(digest).bind(body_hash).bind(process).bind(is_free)).await.map(|n| n == 1)
}

pub async fn find(c: &mut Conn, key_id: Uuid, digest: &[u8]) -> Result<Option<Entry>, DbError> {
    let sql = "select body_hash, status, answer,
                      exists (select from process p where p.id = i.process and p.expires_at > now()) as running
               from idempotency i where key_id = $1 and digest = $2";
    c.optional(query_as(sql).bind(key_id).bind(digest)).await
}

/// False when another process has the key by now: this one was thought dead, and may not answer any more.
pub async fn answer(
    c: &mut Conn,
    key_id: Uuid,
    digest: &[u8],
    process: Uuid,
    status: i32,
    answer: &[u8],
) -> Result<bool, DbError> {
    let sql = "update idempotency set status = $4, answer = $5 where key_id = $1 and digest = $2 and process = $3";
    c.execute(query(sql).bind(key_id).bind(digest).bind(process).bind(status).bind(answer)).await.map(|n| n == 1)
}

/// Forgets a key whose request came to no answer that is kept.
pub async fn release(c: &mut Conn, key_id: Uuid, digest: &[u8], process: Uuid) -> Result<(), DbError> {
    let sql = "delete from idempotency where key_id = $1 and digest = $2 and process = $3 and status is null";
    c.execute(query(sql).bind(key_id).bind(digest).bind(process)).await.map(drop)
}

pub async fn delete_old(c: &mut Conn) -> Result<u64, DbError> {
    c.execute(query("delete from idempotency where created_at < now() - interval '24 hours'")).await
}

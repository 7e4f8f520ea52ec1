//! Projects.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as, query_scalar, types::Json};

use crate::{
    database::{Conn, DbError},
    domain::project::{Placed, Project, ProjectSettings, ProjectStatus},
};

pub async fn insert(
    c: &mut Conn,
    id: &str,
    source: &str,
    settings: &ProjectSettings,
    now: DateTime<Utc>,
) -> Result<Project, DbError> {
    let sql = "insert into project (id, name, description, status, labels, allow_scripts, protected_branches,
                                    preview_port, review_command, agent_command, created_at, updated_at, source, image)
               values ($1, coalesce($2, $1), coalesce($3, ''), 'pending', coalesce($4, '{}'::jsonb), coalesce($5, true),
                       coalesce($6, '{}'::text[]), $7, $8, $9, $10, $10, $11, $12)
               returning *";
    let query = query_as(sql)
        .bind(id)
        .bind(&settings.name)
        .bind(&settings.description)
        .bind(settings.labels.as_ref().map(Json))
        .bind(settings.allow_scripts)
        .bind(&settings.protected_branches)
        .bind(settings.preview_port)
        .bind(&settings.review_command)
        .bind(&settings.agent_command)
        .bind(now)
        .bind(source)
        .bind(&settings.image);
    c.one(query).await
}

pub async fn find(c: &mut Conn, id: &str) -> Result<Option<Project>, DbError> {
    c.optional(query_as("select * from project where id = $1").bind(id)).await
}

/// Locks the row against other starts of work in this project until the transaction ends.
pub async fn lock(c: &mut Conn, id: &str) -> Result<Option<Project>, DbError> {
    c.optional(query_as("select * from project where id = $1 for no key update").bind(id)).await
}

pub async fn page(
    c: &mut Conn,
    only: Option<&[String]>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Project>, DbError> {
    let sql = "select * from project
               where ($1::text[] is null or id = any($1)) and ($2::bigint is null or seq < $2)
               order by seq desc
               limit $3";
    c.all(query_as(sql).bind(only).bind(before).bind(limit)).await
}

/// Running ones whose workspace knows this server under an address that no living process has.
pub async fn stranded(c: &mut Conn, address: &str) -> Result<Vec<Project>, DbError> {
    let sql = "select * from project
               where status = 'running' and address <> $1
               and not exists (select from process p where p.address = project.address and p.expires_at > now())
               order by seq";
    c.all(query_as(sql).bind(address)).await
}

/// All, for work that covers every project.
pub async fn all(c: &mut Conn) -> Result<Vec<Project>, DbError> {
    c.all(query_as("select * from project order by seq")).await
}

pub async fn update(
    c: &mut Conn,
    id: &str,
    s: &ProjectSettings,
    now: DateTime<Utc>,
) -> Result<Option<Project>, DbError> {
    let sql = "update project
               set name = coalesce($2, name), description = coalesce($3, description), labels = coalesce($4, labels),
                   allow_scripts = coalesce($5, allow_scripts), protected_branches = coalesce($6, protected_branches),
                   preview_port = case when 'preview_port' = any($11) then null else coalesce($7, preview_port) end,
                   review_command = case when 'review_command' = any($11) then null else coalesce($8, review_command) end,
                   agent_command = case when 'agent_command' = any($11) then null else coalesce($9, agent_command) end,
                   image = coalesce($12, image), updated_at = $10
               where id = $1
               returning *";
    let query = query_as(sql)
        .bind(id)
        .bind(&s.name)
        .bind(&s.description)
        .bind(s.labels.as_ref().map(Json))
        .bind(s.allow_scripts)
        .bind(&s.protected_branches)
        .bind(s.preview_port)
        .bind(&s.review_command)
        .bind(&s.agent_command)
        .bind(now)
        .bind(&s.unset)
        .bind(&s.image);
    c.optional(query).await
}

/// Its repository is there, and its place is what it is.
pub async fn mark_placed(
    c: &mut Conn,
    id: &str,
    default_branch: &str,
    placed: &Placed,
    now: DateTime<Utc>,
) -> Result<Option<Project>, DbError> {
    let sql = "update project
               set status = $2, default_branch = $3, pod_name = $4, workspace = $5, address = $6, updated_at = $7
               where id = $1
               returning *";
    let query = query_as(sql)
        .bind(id)
        .bind(placed.status)
        .bind(default_branch)
        .bind(&placed.pod)
        .bind(&placed.workspace)
        .bind(&placed.address)
        .bind(now);
    c.optional(query).await
}

pub async fn set_status(c: &mut Conn, id: &str, status: ProjectStatus, now: DateTime<Utc>) -> Result<bool, DbError> {
    let sql = "update project set status = $2, updated_at = $3 where id = $1";
    c.execute(query(sql).bind(id).bind(status).bind(now)).await.map(|n| n == 1)
}

pub async fn set_address(c: &mut Conn, id: &str, address: &str) -> Result<(), DbError> {
    c.execute(query("update project set address = $2 where id = $1").bind(id).bind(address)).await.map(drop)
}

/// Its place is not made any more.
pub async fn forget_image(c: &mut Conn, id: &str) -> Result<(), DbError> {
    c.execute(query("update project set image = null where id = $1").bind(id)).await.map(drop)
}

pub async fn set_read_token(c: &mut Conn, id: &str, hash: &[u8]) -> Result<(), DbError> {
    c.execute(query("update project set read_token_hash = $2 where id = $1").bind(id).bind(hash)).await.map(drop)
}

/// Says whether it did: not where another one than `before` is known by now.
pub async fn replace_read_token(c: &mut Conn, id: &str, before: Option<&[u8]>, hash: &[u8]) -> Result<bool, DbError> {
    let sql = "update project set read_token_hash = $3 where id = $1 and read_token_hash is not distinct from $2";
    c.execute(query(sql).bind(id).bind(before).bind(hash)).await.map(|n| n == 1)
}

/// Whether its repository is, or may be, one that was made for it.
pub async fn mark_repository(c: &mut Conn, id: &str, made: bool) -> Result<(), DbError> {
    c.execute(query("update project set made_repository = $2 where id = $1").bind(id).bind(made)).await.map(drop)
}

/// False also where there is no such project.
pub async fn made_repository(c: &mut Conn, id: &str) -> Result<bool, DbError> {
    let sql = "select exists (select from project where id = $1 and made_repository)";
    c.scalar(query_scalar(sql).bind(id)).await
}

/// The hash of the credential that the workspace reads with.
pub async fn read_token(c: &mut Conn, id: &str) -> Result<Option<Vec<u8>>, DbError> {
    let found = c.scalar_optional(query_scalar("select read_token_hash from project where id = $1").bind(id)).await?;
    Ok(found.flatten())
}

/// The project whose workspace reads with this credential.
pub async fn find_by_read_token(c: &mut Conn, hash: &[u8]) -> Result<Option<Project>, DbError> {
    c.optional(query_as("select * from project where read_token_hash = $1").bind(hash)).await
}

pub async fn delete(c: &mut Conn, id: &str) -> Result<bool, DbError> {
    let sql = "with gone as (delete from setting where name = 'imported/' || $1)
               delete from project where id = $1";
    c.execute(query(sql).bind(id)).await.map(|n| n == 1)
}

//! Named lists of steps, each version kept.

use chrono::{DateTime, Utc};
use sqlx::query_as;
use uuid::Uuid;

use crate::database::{Conn, DbError};

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct DefinitionRow {
    pub name: String,
    pub version: i32,
    pub created_at: DateTime<Utc>,
    pub created_by: Uuid,
    pub description: Option<String>,
    /// JSON.
    pub steps: String,
}

/// The next version. Refused by `saga_definition_pkey` where another one came first.
pub async fn insert_definition(
    c: &mut Conn,
    name: &str,
    steps: &str,
    description: Option<&str>,
    by: Uuid,
    now: DateTime<Utc>,
) -> Result<DefinitionRow, DbError> {
    let sql = "insert into saga_definition (name, version, created_at, created_by, description, steps)
               select $1, coalesce(max(version), 0) + 1, $2, $3, $4, $5 from saga_definition where name = $1
               returning name, version, created_at, created_by, description, steps";
    c.one(query_as(sql).bind(name).bind(now).bind(by).bind(description).bind(steps)).await
}

/// The newest version.
pub async fn definition(c: &mut Conn, name: &str) -> Result<Option<DefinitionRow>, DbError> {
    let sql = "select name, version, created_at, created_by, description, steps from saga_definition
               where name = $1 order by version desc limit 1";
    c.optional(query_as(sql).bind(name)).await
}

/// The newest version of each, newest first, after the one that was made at `before` under that name.
pub async fn definitions(
    c: &mut Conn,
    before: Option<(DateTime<Utc>, &str)>,
    limit: i64,
) -> Result<Vec<DefinitionRow>, DbError> {
    let sql = "select * from (
                   select distinct on (name) name, version, created_at, created_by, description, steps
                   from saga_definition order by name, version desc
               ) newest
               where $1::timestamptz is null or (created_at, name) < ($1, $2)
               order by created_at desc, name desc limit $3";
    let (at, name) = before.unzip();
    c.all(query_as(sql).bind(at).bind(name).bind(limit)).await
}

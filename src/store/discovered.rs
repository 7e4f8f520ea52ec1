//! What is remembered of projects that are found by themselves, and of pods that are not to be found again.

use sqlx::{query, query_as, query_scalar};

use crate::{
    database::{Conn, DbError},
    domain::discovered::Memory,
};

pub async fn find(c: &mut Conn, project: &str) -> Result<Memory, DbError> {
    let sql = "select value from setting where name = 'discovered/' || $1";
    let found: Option<Vec<u8>> = c.scalar_optional(query_scalar(sql).bind(project)).await?;
    Ok(found.and_then(|value| serde_json::from_slice(&value).ok()).unwrap_or_default())
}

/// Of these, those that there is something of.
pub async fn all(c: &mut Conn, projects: &[String]) -> Result<Vec<(String, Memory)>, DbError> {
    let names: Vec<String> = projects.iter().map(|project| format!("discovered/{project}")).collect();
    let sql = "select substr(name, length('discovered/') + 1), value from setting where name = any($1)";
    let rows: Vec<(String, Vec<u8>)> = c.all(query_as(sql).bind(&names)).await?;
    Ok(rows.into_iter().filter_map(|(name, value)| Some((name, serde_json::from_slice(&value).ok()?))).collect())
}

pub async fn put(c: &mut Conn, project: &str, memory: &Memory) -> Result<(), DbError> {
    let sql = "insert into setting (name, value) values ('discovered/' || $1, $2)
               on conflict (name) do update set value = excluded.value";
    let value = serde_json::to_vec(memory).unwrap_or_default();
    c.execute(query(sql).bind(project).bind(value)).await.map(drop)
}

pub async fn delete(c: &mut Conn, project: &str) -> Result<(), DbError> {
    c.execute(query("delete from setting where name = 'discovered/' || $1").bind(project)).await.map(drop)
}

/// This pod makes no project any more.
pub async fn ignore(c: &mut Conn, uid: &str) -> Result<(), DbError> {
    let sql = "insert into setting (name, value) values ('ignored/' || $1, '') on conflict do nothing";
    c.execute(query(sql).bind(uid)).await.map(drop)
}

pub async fn is_ignored(c: &mut Conn, uid: &str) -> Result<bool, DbError> {
    c.scalar(query_scalar("select exists (select from setting where name = 'ignored/' || $1)").bind(uid)).await
}

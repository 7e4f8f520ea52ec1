//! Where projects were imported from, by the names of the repositories there. The row goes with the
//! project's.

use sqlx::{query, query_scalar};

use crate::database::{Conn, DbError};

/// `owner/name`.
pub async fn find(c: &mut Conn, project: &str) -> Result<Option<String>, DbError> {
    let sql = "select convert_from(value, 'UTF8') from setting where name = 'imported/' || $1";
    c.scalar_optional(query_scalar(sql).bind(project)).await
}

pub async fn put(c: &mut Conn, project: &str, name: &str) -> Result<(), DbError> {
    let sql = "insert into setting (name, value) values ('imported/' || $1, $2)
               on conflict (name) do update set value = excluded.value";
    c.execute(query(sql).bind(project).bind(name.as_bytes())).await.map(drop)
}

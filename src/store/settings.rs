//! Values that all processes on a database share.

use sqlx::{query, query_scalar};

use crate::database::{Conn, DbError};

/// Keeps `value` under `name` unless there is one; answers the one that is kept.
pub async fn get_or_insert(c: &mut Conn, name: &str, value: &[u8]) -> Result<Vec<u8>, DbError> {
    let insert = "insert into setting (name, value) values ($1, $2) on conflict do nothing";
    c.execute(query(insert).bind(name).bind(value)).await?;
    c.scalar(query_scalar("select value from setting where name = $1").bind(name)).await
}

/// Whether the database answers at all.
pub async fn answer(c: &mut Conn) -> Result<(), DbError> {
    c.scalar::<i32>(query_scalar("select 1")).await.map(drop)
}

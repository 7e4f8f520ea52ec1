//! What PostgreSQL says of the rows of `task`: the log that they cost, whether claims were
//! HOT updates, what is dead.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, query_as, query_scalar};

use super::super::support::eventually;

const PATIENCE: Duration = Duration::from_secs(10);

/// The position in the write-ahead log, in bytes.
pub async fn wal(conn: &mut PgConnection) -> f64 {
    let sql = "select (pg_current_wal_insert_lsn() - '0/0')::float8";
    query_scalar(sql).fetch_one(conn).await.expect("a position")
}

/// The share of updates of `task` that were HOT, once `updates` of them are known: a connection
/// reports what it did when it has been idle for a while, or ends.
pub async fn hot_share(url: &str, updates: u32) -> f64 {
    let sql = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'task'";
    eventually("statistics of updates", PATIENCE, || async move {
        let mut conn = PgConnection::connect(url).await.ok()?;
        let (all, hot): (i64, i64) = query_as(sql).fetch_one(&mut conn).await.ok()?;
        (all >= i64::from(updates)).then(|| hot as f64 / all as f64)
    })
    .await
}

/// What is left of `task` when all of its rows are gone.
pub struct Left {
    /// Rows that no vacuum has removed yet.
    pub dead: f64,
    /// Of the table and its indexes.
    pub megabytes: f64,
}

pub async fn left(url: &str, deleted: u32) -> Left {
    let sql = "select n_tup_del, n_dead_tup, pg_total_relation_size(relid)
               from pg_stat_user_tables where relname = 'task'";
    eventually("statistics of deletes", PATIENCE, || async move {
        let mut conn = PgConnection::connect(url).await.ok()?;
        let (gone, dead, bytes): (i64, i64, i64) = query_as(sql).fetch_one(&mut conn).await.ok()?;
        (gone >= i64::from(deleted)).then(|| Left { dead: dead as f64, megabytes: bytes as f64 / 1e6 })
    })
    .await
}

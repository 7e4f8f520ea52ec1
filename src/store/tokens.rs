//! Tokens that live at a git host: what is known of them in the rows of their checkouts.

use sqlx::{query, query_scalar};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::checkout::REVOCATIONS_MAX,
};

/// The token as it was sealed; `None` where it is dead, or was never written down.
pub async fn sealed(c: &mut Conn, checkout: Uuid) -> Result<Option<Vec<u8>>, DbError> {
    let sql = "select token_sealed from checkout where id = $1 and token_sealed is not null";
    c.scalar_optional(query_scalar(sql).bind(checkout)).await
}

/// It is dead.
pub async fn bury(c: &mut Conn, checkout: Uuid) -> Result<(), DbError> {
    let sql = "update checkout set token_sealed = null, token_failures = 0 where id = $1";
    c.execute(query(sql).bind(checkout)).await.map(drop)
}

/// An attempt to revoke it has failed. Answers how many have; `None` where the checkout is gone.
pub async fn failed(c: &mut Conn, checkout: Uuid) -> Result<Option<i16>, DbError> {
    let sql =
        "update checkout set token_failures = least(token_failures + 1, 1000) where id = $1 returning token_failures";
    c.scalar_optional(query_scalar(sql).bind(checkout)).await
}

/// Those that the host would not let go of.
pub async fn irrevocable(c: &mut Conn) -> Result<Vec<Uuid>, DbError> {
    let sql = "select id from checkout where token_failures >= $1";
    c.scalars(query_scalar(sql).bind(REVOCATIONS_MAX)).await
}

/// Those of these checkouts that are not at rest, whose tokens are to live.
pub async fn to_live(c: &mut Conn, checkouts: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    let sql = "select id from checkout where id = any($1) and status in ('pending', 'active')";
    c.scalars(query_scalar(sql).bind(checkouts)).await
}

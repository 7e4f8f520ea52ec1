//! Checkouts.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as, query_scalar};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::checkout::{Checkout, CheckoutStatus},
};

const COLUMNS: &str = "id, project_id, session_id, branch, made_branch, start_sha, feature_slug, checked_out_by,
                       checked_out_at, expires_at, ended_at, status, review_task_id";

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "select id, project_id, session_id, branch, made_branch, start_sha, feature_slug, checked_out_by,
             checked_out_at, expires_at, ended_at, status, review_task_id from checkout ",
            $rest
        )
    };
}

/// A checkout in the making. `checkout_branch_taken` refuses a second one of a branch.
pub async fn insert(c: &mut Conn, checkout: &Checkout) -> Result<(), DbError> {
    let sql = "insert into checkout (id, project_id, session_id, branch, made_branch, start_sha, feature_slug,
                                     checked_out_by, checked_out_at, expires_at, status)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let query = query(sql)
        .bind(checkout.id)
        .bind(&checkout.project_id)
        .bind(checkout.session_id)
        .bind(&checkout.branch)
        .bind(checkout.made_branch)
        .bind(&checkout.start_sha)
        .bind(&checkout.feature_slug)
        .bind(checkout.checked_out_by)
        .bind(checkout.checked_out_at)
        .bind(checkout.expires_at)
        .bind(checkout.status);
    c.execute(query).await.map(drop)
}

pub async fn find(c: &mut Conn, project: &str, id: Uuid) -> Result<Option<Checkout>, DbError> {
    c.optional(query_as(select!("where project_id = $1 and id = $2 and status <> 'pending'")).bind(project).bind(id))
        .await
}

/// Also those in the making, whoever's they are.
pub async fn find_any(c: &mut Conn, id: Uuid) -> Result<Option<Checkout>, DbError> {
    c.optional(query_as(select!("where id = $1")).bind(id)).await
}

/// As [`find`], and nobody else can change it until the transaction ends.
pub async fn lock(c: &mut Conn, project: &str, id: Uuid) -> Result<Option<Checkout>, DbError> {
    let sql = select!("where project_id = $1 and id = $2 and status <> 'pending' for update");
    c.optional(query_as(sql).bind(project).bind(id)).await
}

/// Whether the branch is checked out, or just about to be.
pub async fn branch_is_taken(c: &mut Conn, project: &str, branch: &str) -> Result<bool, DbError> {
    let sql = "select exists (select from checkout where project_id = $1 and branch = $2 and status in ('pending', 'active'))";
    c.scalar(query_scalar(sql).bind(project).bind(branch)).await
}

pub async fn page(
    c: &mut Conn,
    project: &str,
    status: CheckoutStatus,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Checkout>, DbError> {
    let sql =
        select!("where project_id = $1 and status = $2 and ($3::uuid is null or id < $3) order by id desc limit $4");
    c.all(query_as(sql).bind(project).bind(status).bind(before).bind(limit)).await
}

/// With what is kept of its token, unless that is there already.
pub async fn activate(c: &mut Conn, id: Uuid, hash: Option<&[u8]>, sealed: Option<&[u8]>) -> Result<bool, DbError> {
    let sql = "update checkout set status = 'active', token_hash = coalesce($2, token_hash),
                      token_sealed = coalesce($3, token_sealed)
               where id = $1 and status = 'pending'";
    c.execute(query(sql).bind(id).bind(hash).bind(sealed)).await.map(|n| n == 1)
}

/// Its branch was made by somebody else.
pub async fn disown_branch(c: &mut Conn, id: Uuid) -> Result<(), DbError> {
    c.execute(query("update checkout set made_branch = false where id = $1").bind(id)).await.map(drop)
}

/// Undoes one in the making.
pub async fn delete_pending(c: &mut Conn, id: Uuid) -> Result<bool, DbError> {
    c.execute(query("delete from checkout where id = $1 and status = 'pending'").bind(id)).await.map(|n| n == 1)
}

/// Ends it in `status`; a token that is known by its hash opens nothing from the commit on.
pub async fn end(
    c: &mut Conn,
    id: Uuid,
    status: CheckoutStatus,
    head: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool, DbError> {
    let sql = "update checkout set status = $2, head_sha = $3, ended_at = $4, token_hash = null
               where id = $1 and status in ('pending', 'active')";
    c.execute(query(sql).bind(id).bind(status).bind(head).bind(now)).await.map(|n| n == 1)
}

/// The review that its checkin has queued.
pub async fn set_review(c: &mut Conn, id: Uuid, review: &str) -> Result<(), DbError> {
    c.execute(query("update checkout set review_task_id = $2 where id = $1").bind(id).bind(review)).await.map(drop)
}

/// Never shortens.
pub async fn extend(c: &mut Conn, id: Uuid, until: DateTime<Utc>) -> Result<Option<Checkout>, DbError> {
    let sql = sqlx::AssertSqlSafe(format!(
        "update checkout set expires_at = greatest(expires_at, $2) where id = $1 and status = 'active' returning {COLUMNS}"
    ));
    c.optional(query_as(sql).bind(id).bind(until)).await
}

/// What is kept of its token, the only one from now on.
pub async fn set_token(c: &mut Conn, id: Uuid, hash: Option<&[u8]>, sealed: Option<&[u8]>) -> Result<bool, DbError> {
    let sql =
        "update checkout set token_hash = $2, token_sealed = $3 where id = $1 and status in ('pending', 'active')";
    c.execute(query(sql).bind(id).bind(hash).bind(sealed)).await.map(|n| n == 1)
}

/// The checkout that this token opens, also while its session provisions or ends.
pub async fn find_by_token(c: &mut Conn, hash: &[u8], now: DateTime<Utc>) -> Result<Option<Checkout>, DbError> {
    let sql = select!(
        "where token_hash = $1 and status in ('pending', 'active')
                       and (expires_at > $2 or exists (
                           select from session s where s.id = checkout.session_id and s.status = 'ending'))"
    );
    c.optional(query_as(sql).bind(hash).bind(now)).await
}

/// Active ones of nobody's session whose time is up.
pub async fn due(c: &mut Conn, now: DateTime<Utc>, limit: i64) -> Result<Vec<Checkout>, DbError> {
    let sql =
        select!("where status = 'active' and session_id is null and expires_at <= $1 order by expires_at limit $2");
    c.all(query_as(sql).bind(now).bind(limit)).await
}

/// All that are not at rest, of a project.
pub async fn open_of_project(c: &mut Conn, project: &str) -> Result<Vec<Checkout>, DbError> {
    c.all(query_as(select!("where project_id = $1 and status in ('pending', 'active')")).bind(project)).await
}

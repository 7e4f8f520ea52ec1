//! Reviews.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as, query_scalar};

use crate::{
    database::{Conn, DbError},
    domain::review::Review,
};

pub async fn insert(c: &mut Conn, r: &Review) -> Result<(), DbError> {
    let sql =
        "insert into review (id, project_id, checkout_id, session_id, created_by, branch, base, head_sha, feature_slug,
                                   status, auto_merge, model, command, created_at)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
    let query = query(sql)
        .bind(&r.id)
        .bind(&r.project_id)
        .bind(r.checkout_id)
        .bind(r.session_id)
        .bind(r.created_by)
        .bind(&r.branch)
        .bind(&r.base)
        .bind(&r.head_sha)
        .bind(&r.feature_slug)
        .bind(r.status)
        .bind(r.auto_merge)
        .bind(&r.model)
        .bind(&r.command)
        .bind(r.created_at);
    c.execute(query).await.map(drop)
}

pub async fn find(c: &mut Conn, project: &str, id: &str) -> Result<Option<Review>, DbError> {
    c.optional(query_as("select * from review where project_id = $1 and id = $2").bind(project).bind(id)).await
}

/// Whoever's it is.
pub async fn find_any(c: &mut Conn, id: &str) -> Result<Option<Review>, DbError> {
    c.optional(query_as("select * from review where id = $1").bind(id)).await
}

/// The review, held until the transaction ends. Who changes its job as well holds that first.
pub async fn lock(c: &mut Conn, id: &str) -> Result<Option<Review>, DbError> {
    c.optional(query_as("select * from review where id = $1 for update").bind(id)).await
}

/// Newest first, after the review `before`.
pub async fn page(c: &mut Conn, project: &str, before: Option<&str>, limit: i64) -> Result<Vec<Review>, DbError> {
    let sql = "select * from review
               where project_id = $1 and ($2::text is null or id < $2)
               order by id desc
               limit $3";
    c.all(query_as(sql).bind(project).bind(before).bind(limit)).await
}

/// Writes down where a review that is held stands.
pub async fn save(c: &mut Conn, r: &Review) -> Result<(), DbError> {
    let sql = "update review
               set status = $2, merge = $3, merge_candidate = $4, merge_sha = $5, model = $6, command = $7, command_id = $8,
                   summary = $9, completed_at = $10, attempt = $11, started = $12, uncleared = $13,
                   merge_failures = $14, merge_error = $15
               where id = $1";
    let query = query(sql)
        .bind(&r.id)
        .bind(r.status)
        .bind(r.merge)
        .bind(&r.merge_candidate)
        .bind(&r.merge_sha)
        .bind(&r.model)
        .bind(&r.command)
        .bind(&r.command_id)
        .bind(&r.summary)
        .bind(r.completed_at)
        .bind(r.attempt)
        .bind(r.started)
        .bind(r.uncleared)
        .bind(r.merge_failures)
        .bind(&r.merge_error);
    c.execute(query).await.map(drop)
}

/// The command that reviews. False where this attempt is over.
pub async fn set_command(c: &mut Conn, id: &str, attempt: i64, command: &str) -> Result<bool, DbError> {
    let sql = "update review set command_id = $3 where id = $1 and attempt = $2 and status = 'running'";
    c.execute(query(sql).bind(id).bind(attempt).bind(command)).await.map(|n| n == 1)
}

/// Every review of a project, and whether it is still at work.
pub async fn all_of_project(c: &mut Conn, project: &str) -> Result<Vec<(String, bool)>, DbError> {
    c.all(query_as("select id, completed_at is null from review where project_id = $1").bind(project)).await
}

/// Nothing of the project is merged any more.
pub async fn block_merges(c: &mut Conn, project: &str, now: DateTime<Utc>) -> Result<(), DbError> {
    let sql = "update review set merge = 'blocked', merge_candidate = null, completed_at = $2
               where project_id = $1 and status = 'passed' and completed_at is null";
    c.execute(query(sql).bind(project).bind(now)).await.map(drop)
}

/// Whether a review is being reviewed, by this attempt.
pub async fn is_at(c: &mut Conn, id: &str, attempt: i64) -> Result<bool, DbError> {
    let sql = "select exists (select from review where id = $1 and attempt = $2 and status = 'running')";
    c.scalar(query_scalar(sql).bind(id).bind(attempt)).await
}

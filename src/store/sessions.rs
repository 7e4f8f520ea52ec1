//! Sessions.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as, query_scalar, types::Json};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::session::{EndPlan, Rescue, Session, SessionStatus},
};

/// One that provisions. `session_alive` refuses a second of a project, `session_port` of a port.
pub async fn insert(c: &mut Conn, s: &Session) -> Result<(), DbError> {
    let sql = "insert into session (id, project_id, checkout_id, branch, pod_name, workspace, preview_url, preview_port, status,
                                    created_by, created_at, expires_at, idle_ms, last_activity_at)
               values ($1, $2, $3, $4, $5, $6, $7, $8, 'provisioning', $9, $10, $11, $12, $10)";
    let query = query(sql)
        .bind(s.id)
        .bind(&s.project_id)
        .bind(s.checkout_id)
        .bind(&s.branch)
        .bind(&s.pod_name)
        .bind(&s.workspace)
        .bind(&s.preview_url)
        .bind(s.preview_port)
        .bind(s.created_by)
        .bind(s.created_at)
        .bind(s.expires_at)
        .bind(s.idle_ms);
    c.execute(query).await.map(drop)
}

pub async fn find(c: &mut Conn, project: &str, id: Uuid) -> Result<Option<Session>, DbError> {
    c.optional(query_as("select * from session where project_id = $1 and id = $2").bind(project).bind(id)).await
}

pub async fn find_any(c: &mut Conn, id: Uuid) -> Result<Option<Session>, DbError> {
    c.optional(query_as("select * from session where id = $1").bind(id)).await
}

/// As [`find`], and nobody else can change it until the transaction ends.
pub async fn lock(c: &mut Conn, project: &str, id: Uuid) -> Result<Option<Session>, DbError> {
    c.optional(query_as("select * from session where project_id = $1 and id = $2 for update").bind(project).bind(id))
        .await
}

/// As [`find`], and it cannot end until the transaction does.
pub async fn hold(c: &mut Conn, project: &str, id: Uuid) -> Result<Option<Session>, DbError> {
    c.optional(
        query_as("select * from session where project_id = $1 and id = $2 for no key update").bind(project).bind(id),
    )
    .await
}

pub async fn page(
    c: &mut Conn,
    project: &str,
    status: Option<SessionStatus>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Session>, DbError> {
    let sql = "select * from session
               where project_id = $1 and ($2::text is null or status = $2) and ($3::uuid is null or id < $3)
               order by id desc
               limit $4";
    c.all(query_as(sql).bind(project).bind(status).bind(before).bind(limit)).await
}

pub async fn one_is_alive(c: &mut Conn, project: &str) -> Result<bool, DbError> {
    let sql =
        "select exists (select from session where project_id = $1 and status in ('provisioning', 'active', 'ending'))";
    c.scalar(query_scalar(sql).bind(project)).await
}

pub async fn ports_taken(c: &mut Conn) -> Result<Vec<i32>, DbError> {
    c.scalars(query_scalar("select preview_port from session where status in ('provisioning', 'active', 'ending')"))
        .await
}

/// All that are not at rest: of a project, or of every one.
pub async fn alive(c: &mut Conn, project: Option<&str>) -> Result<Vec<Session>, DbError> {
    let sql = "select * from session
               where ($1::text is null or project_id = $1) and status in ('provisioning', 'active', 'ending')";
    c.all(query_as(sql).bind(project)).await
}

pub async fn activate(c: &mut Conn, id: Uuid, now: DateTime<Utc>) -> Result<Option<Session>, DbError> {
    let sql = "update session set status = 'active', last_activity_at = $2
               where id = $1 and status = 'provisioning' returning *";
    c.optional(query_as(sql).bind(id).bind(now)).await
}

/// From here on it only ends. False when it was not `active`.
pub async fn begin_end(c: &mut Conn, id: Uuid, plan: &EndPlan) -> Result<bool, DbError> {
    let sql = "update session set status = 'ending', end_plan = $2 where id = $1 and status = 'active'";
    c.execute(query(sql).bind(id).bind(Json(plan))).await.map(|n| n == 1)
}

/// Back from `ending`: its end was refused.
pub async fn resume(c: &mut Conn, id: Uuid) -> Result<bool, DbError> {
    let sql = "update session set status = 'active', end_plan = null where id = $1 and status = 'ending'";
    c.execute(query(sql).bind(id)).await.map(|n| n == 1)
}

pub async fn set_rescue(c: &mut Conn, id: Uuid, rescue: &Rescue) -> Result<(), DbError> {
    c.execute(query("update session set rescue = $2 where id = $1").bind(id).bind(Json(rescue))).await.map(drop)
}

/// The review that its checkin has queued.
pub async fn set_review(c: &mut Conn, id: Uuid, review: &str) -> Result<(), DbError> {
    c.execute(query("update session set review_task_id = $2 where id = $1").bind(id).bind(review)).await.map(drop)
}

pub async fn end(
    c: &mut Conn,
    id: Uuid,
    status: SessionStatus,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<Option<Session>, DbError> {
    let sql = "update session set status = $2, end_reason = $3, ended_at = $4
               where id = $1 and status in ('provisioning', 'active', 'ending') returning *";
    c.optional(query_as(sql).bind(id).bind(status).bind(reason).bind(now)).await
}

pub async fn touch(c: &mut Conn, id: Uuid, now: DateTime<Utc>) -> Result<(), DbError> {
    let sql = "update session set last_activity_at = greatest(last_activity_at, $2) where id = $1";
    c.execute(query(sql).bind(id).bind(now)).await.map(drop)
}

/// Of these, the ones that have not ended.
pub async fn alive_of(c: &mut Conn, ids: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    let sql = "select id from session where id = any($1) and status in ('provisioning', 'active', 'ending')";
    c.scalars(query_scalar(sql).bind(ids)).await
}

pub async fn extend(c: &mut Conn, id: Uuid, until: DateTime<Utc>) -> Result<Option<Session>, DbError> {
    let sql = "update session set expires_at = greatest(expires_at, $2), warned = 2147483647
               where id = $1 and status = 'active' returning *";
    c.optional(query_as(sql).bind(id).bind(until)).await
}

/// Active ones that end within `minutes`, lived as long before that, and were not warned of it yet.
pub async fn to_warn(c: &mut Conn, now: DateTime<Utc>, minutes: i32, limit: i64) -> Result<Vec<Session>, DbError> {
    let sql = "select * from session
               where status = 'active' and warned > $2 and expires_at > $1
               and expires_at - make_interval(mins => $2) between created_at and $1
               order by expires_at
               limit $3";
    c.all(query_as(sql).bind(now).bind(minutes).bind(limit)).await
}

/// False when somebody else was quicker.
pub async fn mark_warned(c: &mut Conn, id: Uuid, minutes: i32) -> Result<bool, DbError> {
    let sql = "update session set warned = $2 where id = $1 and status = 'active' and warned > $2";
    c.execute(query(sql).bind(id).bind(minutes)).await.map(|n| n == 1)
}

macro_rules! due {
    ($select:literal, $rest:literal) => {
        concat!(
            "select ",
            $select,
            " from session s
             where status = 'active'
             and (expires_at <= $1
                  or (idle_ms is not null and last_activity_at + idle_ms * interval '1 millisecond' <= $1
                      and not exists (select from command c where c.session_id = s.id and c.status = 'running'))) ",
            $rest
        )
    };
}

/// Active ones whose time is up, or that have been idle for too long with nothing running.
pub async fn due(c: &mut Conn, now: DateTime<Utc>, limit: i64) -> Result<Vec<Session>, DbError> {
    c.all(query_as(due!("*", "order by expires_at limit $2")).bind(now).bind(limit)).await
}

/// Whether it is one of those.
pub async fn is_due(c: &mut Conn, id: Uuid, now: DateTime<Utc>) -> Result<bool, DbError> {
    let found: Option<bool> = c.scalar_optional(query_scalar(due!("true", "and id = $2")).bind(now).bind(id)).await?;
    Ok(found.is_some())
}

//! The durable core's rows: processes, tasks, fences. Times here are the database's.

use sqlx::{query, query_as, query_scalar};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::task::Claimed,
};

pub async fn insert_process(c: &mut Conn, id: Uuid, host: &str, version: &str, lease_s: f64) -> Result<(), DbError> {
    let sql = "insert into process (id, host, version, expires_at)
               values ($1, $2, $3, now() + make_interval(secs => $4))";
    c.execute(query(sql).bind(id).bind(host).bind(version).bind(lease_s)).await.map(drop)
}

/// Where commands reach this process.
pub async fn set_address(c: &mut Conn, id: Uuid, address: &str) -> Result<(), DbError> {
    c.execute(query("update process set address = $2 where id = $1").bind(id).bind(address)).await.map(drop)
}

/// False when the row is gone or its lease has run out: it must not come back.
pub async fn renew_process(c: &mut Conn, id: Uuid, lease_s: f64) -> Result<bool, DbError> {
    let sql = "update process set seen_at = now(), expires_at = now() + make_interval(secs => $2)
               where id = $1 and expires_at > now()";
    c.execute(query(sql).bind(id).bind(lease_s)).await.map(|n| n == 1)
}

pub async fn delete_process(c: &mut Conn, id: Uuid) -> Result<(), DbError> {
    c.execute(query("delete from process where id = $1").bind(id)).await.map(drop)
}

/// Rows that ended long ago and own nothing any more.
pub async fn delete_ended_processes(c: &mut Conn) -> Result<u64, DbError> {
    let sql = "delete from process p
               where p.expires_at < now() - interval '1 hour'
               and not exists (select from task t where t.owner = p.id)";
    c.execute(query(sql)).await
}

pub async fn process_ids(c: &mut Conn) -> Result<Vec<Uuid>, DbError> {
    c.scalars(query_scalar("select id from process")).await
}

pub async fn other_processes_live(c: &mut Conn, me: Uuid) -> Result<bool, DbError> {
    let sql = "select exists (select from process where id <> $1 and expires_at > now())";
    c.scalar(query_scalar(sql).bind(me)).await
}

/// A new task; owned from the start where `owner` is given. Answers its fence.
pub async fn insert(
    c: &mut Conn,
    id: Uuid,
    kind: &str,
    subject: &str,
    owner: Option<Uuid>,
) -> Result<Claimed, DbError> {
    let sql = "insert into task (id, kind, subject, owner, fence, attempt)
               values ($1, $2, $3, $4, case when $4::uuid is null then 0 else nextval('fence') end,
                       case when $4::uuid is null then 0 else 1 end)
               returning id, kind, subject, fence, attempt, deaths, 0.0::float8 as waited";
    c.one(query_as(sql).bind(id).bind(kind).bind(subject).bind(owner)).await
}

/// Takes up to `limit` tasks that are due and that no living process owns. A dead owner
/// counts against the task. Nobody is thought dead until a restarted database has been
/// up for one lease: the living could not renew while it was away.
pub async fn claim(
    c: &mut Conn,
    owner: Uuid,
    kinds: &[String],
    limit: i64,
    lease_s: f64,
) -> Result<Vec<Claimed>, DbError> {
    let sql = "with due as (
                   select t.id, t.owner is not null as orphaned from task t
                   where t.run_at <= now() and t.kind = any($2)
                   and (t.owner is null
                        or not exists (select from process p where p.id = t.owner)
                        or (pg_postmaster_start_time() < now() - make_interval(secs => $4)
                            and exists (select from process p where p.id = t.owner and p.expires_at <= now())))
                   order by t.run_at
                   for update skip locked
                   limit $3
               )
               update task t
               set owner = $1, fence = nextval('fence'), attempt = t.attempt + 1,
                   deaths = case when due.orphaned then t.deaths + 1 else t.deaths end
               from due where t.id = due.id
               returning t.id, t.kind, t.subject, t.fence, t.attempt, t.deaths,
                         extract(epoch from now() - t.run_at)::float8 as waited";
    c.all(query_as(sql).bind(owner).bind(kinds).bind(limit).bind(lease_s)).await
}

/// How many there are, by kind.
pub async fn depths(c: &mut Conn) -> Result<Vec<(String, i64)>, DbError> {
    c.all(query_as("select kind, count(*) from task group by kind")).await
}

/// Whether the claim is still in force; locks the task until the transaction ends.
pub async fn hold(c: &mut Conn, id: Uuid, fence: i64) -> Result<bool, DbError> {
    let sql = "select true from task where id = $1 and fence = $2 for update";
    c.scalar_optional(query_scalar(sql).bind(id).bind(fence)).await.map(|held: Option<bool>| held.is_some())
}

/// Done. False under an old fence: somebody else has it.
pub async fn finish(c: &mut Conn, id: Uuid, fence: i64) -> Result<bool, DbError> {
    c.execute(query("delete from task where id = $1 and fence = $2").bind(id).bind(fence)).await.map(|n| n == 1)
}

/// Given back, to be claimed again after `delay_s`.
pub async fn put_back(c: &mut Conn, id: Uuid, fence: i64, delay_s: f64) -> Result<bool, DbError> {
    let sql = "update task set owner = null, deaths = 0, run_at = now() + make_interval(secs => $3)
               where id = $1 and fence = $2";
    c.execute(query(sql).bind(id).bind(fence).bind(delay_s)).await.map(|n| n == 1)
}

/// Gives back all that a process holds, at an orderly stop.
pub async fn release_all(c: &mut Conn, owner: Uuid) -> Result<u64, DbError> {
    c.execute(query("update task set owner = null where owner = $1").bind(owner)).await
}

pub async fn park(c: &mut Conn, id: Uuid, fence: i64, reason: &str) -> Result<bool, DbError> {
    let sql = "with gone as (delete from task where id = $1 and fence = $2 returning id, kind, subject)
               insert into task_parked (id, kind, subject, reason) select id, kind, subject, $3 from gone";
    c.execute(query(sql).bind(id).bind(fence).bind(reason)).await.map(|n| n == 1)
}

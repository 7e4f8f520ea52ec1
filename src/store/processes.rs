//! The processes on a database and their leases. Times here are the database's.
//!
//! A task is owned by the row of a process, and no row goes without letting go of its tasks in
//! the same transaction. Claims hold the row while they are made, so none slips in between.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as, query_scalar};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::task::Lane,
};

/// A process as operators see it.
#[derive(sqlx::FromRow)]
pub struct Row {
    pub id: Uuid,
    pub host: String,
    pub version: String,
    pub started_at: DateTime<Utc>,
    pub seen_at: DateTime<Utc>,
    /// Jobs that it runs at once.
    pub slots: i32,
    /// Jobs that it runs now.
    pub used: i64,
}

pub async fn insert(
    c: &mut Conn,
    id: Uuid,
    host: &str,
    version: &str,
    slots: i32,
    lease_s: f64,
) -> Result<(), DbError> {
    let sql = "insert into process (id, host, version, slots, expires_at)
               values ($1, $2, $3, $4, now() + make_interval(secs => $5))";
    c.execute(query(sql).bind(id).bind(host).bind(version).bind(slots).bind(lease_s)).await.map(drop)
}

/// Where commands reach this process.
pub async fn set_address(c: &mut Conn, id: Uuid, address: &str) -> Result<(), DbError> {
    c.execute(query("update process set address = $2 where id = $1").bind(id).bind(address)).await.map(drop)
}

/// False when the row is gone or its lease has run out: it must not come back. A renewal that a
/// crash of the database takes back is made again in time, so nobody waits for the disk.
pub async fn renew(c: &mut Conn, id: Uuid, lease_s: f64) -> Result<bool, DbError> {
    let sql = "with quick as (select set_config('synchronous_commit', 'off', true))
               update process set seen_at = now(), expires_at = now() + make_interval(secs => $2)
               from quick where id = $1 and expires_at > now()";
    c.execute(query(sql).bind(id).bind(lease_s)).await.map(|n| n == 1)
}

/// Others whose lease has run out. Nobody is thought dead until a restarted database has been up
/// for one lease: the living could not renew while it was away.
pub async fn expired(c: &mut Conn, me: Uuid, lease_s: f64) -> Result<Vec<Uuid>, DbError> {
    let sql = "select id from process
               where id <> $1 and expires_at <= now()
               and pg_postmaster_start_time() < now() - make_interval(secs => $2)";
    c.scalars(query_scalar(sql).bind(me).bind(lease_s)).await
}

/// Locks the row against claims; false when it is gone already.
pub async fn lock(c: &mut Conn, id: Uuid) -> Result<bool, DbError> {
    let sql = "select true from process where id = $1 for update";
    c.scalar_optional(query_scalar(sql).bind(id)).await.map(|found: Option<bool>| found.is_some())
}

/// Lets go of all that a process holds; `deaths` more owners have died with it. Answers how many.
pub async fn let_go(c: &mut Conn, id: Uuid, deaths: i16) -> Result<u64, DbError> {
    let sql = "update task set owner = null, deaths = deaths + $2, fence = 0 where owner = $1";
    c.execute(query(sql).bind(id).bind(deaths)).await
}

pub async fn delete(c: &mut Conn, id: Uuid) -> Result<(), DbError> {
    c.execute(query("delete from process where id = $1").bind(id)).await.map(drop)
}

pub async fn ids(c: &mut Conn) -> Result<Vec<Uuid>, DbError> {
    c.scalars(query_scalar("select id from process")).await
}

pub async fn others_live(c: &mut Conn, me: Uuid) -> Result<bool, DbError> {
    let sql = "select exists (select from process where id <> $1 and expires_at > now())";
    c.scalar(query_scalar(sql).bind(me)).await
}

/// Where else it listens.
pub async fn set_ports(c: &mut Conn, id: Uuid, ports: &[i32]) -> Result<(), DbError> {
    c.execute(query("update process set ports = $2 where id = $1").bind(id).bind(ports)).await.map(drop)
}

/// Whether a living one listens on this port of the machine.
pub async fn one_listens_on(c: &mut Conn, port: i32) -> Result<bool, DbError> {
    let sql = "select exists (
                   select from process
                   where expires_at > now() and (address like '%:' || $1::int or $1 = any(ports))
               )";
    c.scalar(query_scalar(sql).bind(port)).await
}

/// Those that live, the oldest first.
pub async fn living(c: &mut Conn, job_kinds: &[&str]) -> Result<Vec<Row>, DbError> {
    let sql = "select p.id, p.host, p.version, p.started_at, p.seen_at, p.slots, coalesce(b.used, 0) as used
               from process p
               left join (
                   select t.owner, count(*) as used
                   from job j join task t on t.kind = any($1) and t.subject = j.id
                   where j.state = 'running' and t.owner is not null and t.lane = $2
                   group by t.owner
               ) b on b.owner = p.id
               where p.expires_at > now()
               order by p.started_at";
    c.all(query_as(sql).bind(job_kinds).bind(Lane::Jobs.number())).await
}

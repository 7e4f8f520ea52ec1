//! Orphans of the cluster and what became of them; and the records that they lack.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as, query_scalar};

use crate::database::{Conn, DbError};

/// An object that belongs to nobody.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct OrphanRow {
    pub uid: String,
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub project_id: String,
    pub session_id: Option<String>,
    pub first_seen_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct RemovedRow {
    pub kind: String,
    pub name: String,
    pub at: DateTime<Utc>,
}

pub async fn project_ids(c: &mut Conn) -> Result<Vec<String>, DbError> {
    c.scalars(query_scalar("select id from project")).await
}

/// Of sessions that are not over.
pub async fn session_ids(c: &mut Conn) -> Result<Vec<String>, DbError> {
    let sql = "select id::text from session where status in ('provisioning', 'active', 'ending')";
    c.scalars(query_scalar(sql)).await
}

/// By kind and name.
pub async fn orphans(c: &mut Conn) -> Result<Vec<OrphanRow>, DbError> {
    let sql = "select uid, api_version, kind, name, project_id, session_id, first_seen_at from gc_orphan
               order by kind, name, uid";
    c.all(query_as(sql)).await
}

/// Those that are known keep their time.
pub async fn see(c: &mut Conn, orphans: &[OrphanRow]) -> Result<(), DbError> {
    let sql = "insert into gc_orphan (uid, api_version, kind, name, project_id, session_id, first_seen_at)
               select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                                    $7::timestamptz[]) as seen (uid)
               order by uid
               on conflict (uid) do nothing";
    let texts = |of: fn(&OrphanRow) -> &String| orphans.iter().map(|one| of(one).clone()).collect::<Vec<_>>();
    let sessions: Vec<Option<String>> = orphans.iter().map(|one| one.session_id.clone()).collect();
    let times: Vec<DateTime<Utc>> = orphans.iter().map(|one| one.first_seen_at).collect();
    let query = query(sql)
        .bind(texts(|one| &one.uid))
        .bind(texts(|one| &one.api_version))
        .bind(texts(|one| &one.kind))
        .bind(texts(|one| &one.name))
        .bind(texts(|one| &one.project_id))
        .bind(sessions)
        .bind(times);
    c.execute(query).await.map(drop)
}

/// All others are orphans no more. One that somebody removes just now is left to them.
pub async fn forget_others(c: &mut Conn, uids: &[String]) -> Result<(), DbError> {
    let sql = "with others as (
                   select uid from gc_orphan
                   where uid <> all($1) and (removing_until is null or removing_until < clock_timestamp())
                   order by uid
                   for update
               )
               delete from gc_orphan o using others where o.uid = others.uid";
    c.execute(query(sql).bind(uids)).await.map(drop)
}

/// Makes everybody wait who asks for the same project, until the transaction ends: whoever makes it, and whoever
/// removes what is left of one of that name.
pub async fn hold_project(c: &mut Conn, project: &str) -> Result<(), DbError> {
    let sql = "select pg_advisory_xact_lock(hashtextextended($1, 7210))";
    c.execute(query(sql).bind(project)).await.map(drop)
}

/// What carries the name of a project that is made now has an owner again. False: some of it is being removed at
/// this moment.
pub async fn adopt(c: &mut Conn, project: &str) -> Result<bool, DbError> {
    let sql = "with own as (
                   select uid from gc_orphan
                   where project_id = $1 and (removing_until is null or removing_until < clock_timestamp())
                   order by uid
                   for update
               )
               delete from gc_orphan o using own where o.uid = own.uid";
    c.execute(query(sql).bind(project)).await?;
    c.scalar(query_scalar("select not exists (select from gc_orphan where project_id = $1)").bind(project)).await
}

/// Takes an orphan for removal, for so many seconds: where it is known since then, nobody else has it, and there is
/// still no record of its owner. Under [`hold_project`].
pub async fn claim(c: &mut Conn, uid: &str, known_since: DateTime<Utc>, seconds: f64) -> Result<bool, DbError> {
    let sql = "update gc_orphan o
               set removing_until = clock_timestamp() + make_interval(secs => $3)
               where uid = $1 and first_seen_at <= $2
               and (removing_until is null or removing_until < clock_timestamp())
               and (not exists (select from project where id = o.project_id)
                    or o.session_id is not null and not exists (
                        select from session
                        where id::text = o.session_id and status in ('provisioning', 'active', 'ending')))";
    c.execute(query(sql).bind(uid).bind(known_since).bind(seconds)).await.map(|n| n == 1)
}

/// It was not removed, and is nobody's to remove just now.
pub async fn let_be(c: &mut Conn, uid: &str) -> Result<(), DbError> {
    c.execute(query("update gc_orphan set removing_until = null where uid = $1").bind(uid)).await.map(drop)
}

pub async fn forget(c: &mut Conn, uid: &str) -> Result<(), DbError> {
    c.execute(query("delete from gc_orphan where uid = $1").bind(uid)).await.map(drop)
}

/// It is gone.
pub async fn mark_removed(c: &mut Conn, uid: &str, at: DateTime<Utc>) -> Result<(), DbError> {
    let sql = "with gone as (delete from gc_orphan where uid = $1 returning *)
               insert into gc_removed (uid, api_version, kind, name, project_id, session_id, at)
               select uid, api_version, kind, name, project_id, session_id, $2 from gone";
    c.execute(query(sql).bind(uid).bind(at)).await.map(drop)
}

/// Newest first.
pub async fn removed(c: &mut Conn, limit: i64) -> Result<Vec<RemovedRow>, DbError> {
    c.all(query_as("select kind, name, at from gc_removed order by at desc, n desc limit $1").bind(limit)).await
}

pub async fn delete_removed_before(c: &mut Conn, cutoff: DateTime<Utc>) -> Result<(), DbError> {
    c.execute(query("delete from gc_removed where at < $1").bind(cutoff)).await.map(drop)
}

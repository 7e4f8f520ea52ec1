//! The durable core's tasks. Times here are the database's.

use sqlx::{AssertSqlSafe, query, query_as, query_scalar};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::task::{Claimed, Lane, NewTask},
};

/// What an insert or a claim answers with.
const CLAIMED: &str = "id, lane, queue, kind, subject, fence, attempt, deaths,
                       extract(epoch from clock_timestamp() - ready_at)::float8 as waited";

/// A number that identifies a task for as long as it lives, in both tables.
pub async fn insert(c: &mut Conn, task: &NewTask) -> Result<i64, DbError> {
    let sql = "insert into task (lane, queue, priority, kind, subject) values ($1, $2, $3, $4, $5) returning id";
    let query = query_scalar(sql).bind(task.lane.number()).bind(&task.queue).bind(task.priority);
    c.scalar(query.bind(task.kind).bind(&task.subject)).await
}

/// Whether the subject has a task of one of these kinds.
pub async fn one_exists(c: &mut Conn, kinds: &[&str], subject: &str) -> Result<bool, DbError> {
    let sql = "select exists (select from task where kind = any($1) and subject = $2
                              union all
                              select from task_later where kind = any($1) and subject = $2)";
    c.scalar(query_scalar(sql).bind(kinds).bind(subject)).await
}

/// As [`insert`], unless the subject has such a task, which then is ready now.
pub async fn insert_once(c: &mut Conn, task: &NewTask) -> Result<(), DbError> {
    c.execute(query("delete from task_later where kind = $1 and subject = $2").bind(task.kind).bind(&task.subject))
        .await?;
    let sql = "insert into task (lane, queue, priority, kind, subject) values ($1, $2, $3, $4, $5)
               on conflict (kind, subject) do nothing";
    let query = query(sql).bind(task.lane.number()).bind(&task.queue).bind(task.priority);
    c.execute(query.bind(task.kind).bind(&task.subject)).await.map(drop)
}

/// Makes tasks that wait for a time due now.
pub async fn bring_forward(c: &mut Conn, kind: &str, subjects: &[String]) -> Result<(), DbError> {
    let sql = "with due as (
                   delete from task_later where kind = $1 and subject = any($2) returning *
               )
               insert into task (id, ready_at, attempt, lane, priority, queue, kind, subject)
               select id, now(), attempt, lane, priority, queue, kind, subject from due
               on conflict (kind, subject) do nothing";
    c.execute(query(sql).bind(kind).bind(subjects)).await.map(drop)
}

/// A task for a process that lives: it owns it from the start. `None` when its lease is gone.
pub async fn insert_owned(c: &mut Conn, task: &NewTask, owner: Uuid) -> Result<Option<Claimed>, DbError> {
    let sql = format!(
        "with alive as (select id from process where id = $6 for key share)
         insert into task (lane, queue, priority, kind, subject, owner, fence, attempt)
         select $1, $2, $3, $4, $5, id, nextval('fence'), 1 from alive
         returning {CLAIMED}"
    );
    let query = query_as(AssertSqlSafe(sql)).bind(task.lane.number()).bind(&task.queue).bind(task.priority);
    c.optional(query.bind(task.kind).bind(&task.subject).bind(owner)).await
}

/// A task that is due after `delay_s`.
pub async fn insert_later(c: &mut Conn, task: &NewTask, delay_s: f64) -> Result<(), DbError> {
    let sql = "insert into task_later (id, run_at, attempt, lane, priority, queue, kind, subject)
               values (nextval('task_id_seq'), now() + make_interval(secs => $6), 0, $1, $3, $2, $4, $5)
               on conflict (kind, subject) do update set run_at = least(task_later.run_at, excluded.run_at)";
    let query = query(sql).bind(task.lane.number()).bind(&task.queue).bind(task.priority);
    c.execute(query.bind(task.kind).bind(&task.subject).bind(delay_s)).await.map(drop)
}

/// Takes tasks at the heads of `queues`, so many of each and so many in all, for a process that
/// lives. Its row is held until the claim is durable: who buries a process waits for that.
pub async fn claim(
    c: &mut Conn,
    owner: Uuid,
    lane: Lane,
    queues: &[String],
    rooms: &[i32],
    total: i64,
) -> Result<Vec<Claimed>, DbError> {
    let sql = "with alive as materialized (
                   select nextval('fence') as fence from process where id = $1 and expires_at > now() for key share
               ), head as (
                   select h.id from unnest($3::text[], $4::int[]) as q (queue, room)
                   cross join lateral (
                       select id, priority from task
                       where lane = $2 and task.queue = q.queue and owner is null
                       order by priority, id
                       limit q.room
                       for update skip locked
                   ) h
                   where exists (select from alive)
                   order by h.priority, h.id
                   limit $5
               )
               update task t
               set owner = $1, fence = (select fence from alive), attempt = t.attempt + 1
               from head where t.id = head.id
               returning t.id, t.lane, t.queue, t.kind, t.subject, t.fence, t.attempt, t.deaths,
                         extract(epoch from clock_timestamp() - t.ready_at)::float8 as waited";
    c.all(query_as(sql).bind(owner).bind(lane.number()).bind(queues).bind(rooms).bind(total)).await
}

/// Queues in which something waits, by lane, so many at most: a walk from one queue to the next,
/// whatever stands in them.
pub async fn waiting_queues(c: &mut Conn, limit: i64) -> Result<Vec<(i16, String)>, DbError> {
    let sql = "with recursive walk as (
                   (select lane, queue from task order by lane, queue limit 1)
                   union all
                   select next.lane, next.queue from walk
                   cross join lateral (
                       select lane, queue from task
                       where (lane, queue) > (walk.lane, walk.queue)
                       order by lane, queue limit 1
                   ) next
               )
               select lane, queue from walk
               where exists (
                   select from task
                   where task.lane = walk.lane and task.queue = walk.queue and owner is null
               )
               limit $1";
    c.all(query_as(sql).bind(limit)).await
}

/// Moves what has come due to where it is claimed. A subject that has such a task already keeps
/// that one. Answers the queues that something came to, and how many moved.
pub async fn move_due(c: &mut Conn, limit: i64) -> Result<(Vec<(i16, String)>, usize), DbError> {
    let sql = "with due as (
                   delete from task_later
                   where id = any(array(
                       select id from task_later where run_at <= now()
                       order by run_at limit $1 for update skip locked
                   ))
                   returning *
               )
               insert into task (id, ready_at, attempt, lane, priority, queue, kind, subject)
               select id, run_at, attempt, lane, priority, queue, kind, subject from due
               on conflict (kind, subject) do nothing
               returning lane, queue";
    let mut moved: Vec<(i16, String)> = c.all(query_as(sql).bind(limit)).await?;
    let count = moved.len();
    moved.sort_unstable();
    moved.dedup();
    Ok((moved, count))
}

/// Seconds until the next task is due; negative when it is overdue.
pub async fn next_due_in(c: &mut Conn) -> Result<Option<f64>, DbError> {
    let sql = "select extract(epoch from run_at - now())::float8 from task_later order by run_at limit $1";
    c.scalar_optional(query_scalar(sql).bind(1_i64)).await
}

/// How many there are, by kind, and for how many seconds the one that waits longest has.
pub async fn depths(c: &mut Conn) -> Result<Vec<(String, i64, f64)>, DbError> {
    let sql = "select kind, count(*) filter (where owner is null),
                      coalesce(extract(epoch from now() - min(ready_at) filter (where owner is null)), 0)::float8
               from task group by kind";
    c.all(query_as(sql)).await
}

/// Whether the claim is still in force; locks the task until the transaction ends.
pub async fn hold(c: &mut Conn, id: i64, fence: i64) -> Result<bool, DbError> {
    let sql = "select true from task where id = $1 and fence = $2 for update";
    c.scalar_optional(query_scalar(sql).bind(id).bind(fence)).await.map(|held: Option<bool>| held.is_some())
}

/// Whether the claim was in force a moment ago.
pub async fn is_held(c: &mut Conn, id: i64, fence: i64) -> Result<bool, DbError> {
    let sql = "select exists (select from task where id = $1 and fence = $2)";
    c.scalar(query_scalar(sql).bind(id).bind(fence)).await
}

/// Done. False under an old fence: somebody else has it.
pub async fn finish(c: &mut Conn, id: i64, fence: i64) -> Result<bool, DbError> {
    c.execute(query("delete from task where id = $1 and fence = $2").bind(id).bind(fence)).await.map(|n| n == 1)
}

/// As [`finish`], many at once. Answers those that were ours.
pub async fn finish_all(c: &mut Conn, ids: &[i64], fences: &[i64]) -> Result<Vec<i64>, DbError> {
    let sql = "delete from task t using unnest($1::bigint[], $2::bigint[]) as d (id, fence)
               where t.id = d.id and t.fence = d.fence
               returning t.id";
    c.scalars(query_scalar(sql).bind(ids).bind(fences)).await
}

/// Gone, whoever has it. An attempt under way finds that it has lost its claim.
///
/// Two statements: one that is being moved just now is seen where it has come to.
pub async fn cancel(c: &mut Conn, kind: &str, subject: &str) -> Result<(), DbError> {
    c.execute(query("delete from task_later where kind = $1 and subject = $2").bind(kind).bind(subject)).await?;
    c.execute(query("delete from task where kind = $1 and subject = $2").bind(kind).bind(subject)).await.map(drop)
}

/// As [`cancel`], of many subjects.
pub async fn cancel_all(c: &mut Conn, kind: &str, subjects: &[String]) -> Result<(), DbError> {
    for sql in [
        "delete from task_later where kind = $1 and subject = any($2)",
        "delete from task where kind = $1 and subject = any($2)",
    ] {
        c.execute(query(sql).bind(kind).bind(subjects)).await?;
    }
    Ok(())
}

/// As [`release`], and [`defer`] where there is a delay, many at once.
pub async fn put_back_all(c: &mut Conn, ids: &[i64], fences: &[i64], delays_s: &[f64]) -> Result<(), DbError> {
    let sql = "with back as (
                   select * from unnest($1::bigint[], $2::bigint[], $3::float8[]) as b (id, fence, delay)
               ), gone as (
                   delete from task t using back b
                   where t.id = b.id and t.fence = b.fence and b.delay > 0
                   returning t.*, b.delay
               ), later as (
                   insert into task_later (id, run_at, attempt, lane, priority, queue, kind, subject)
                   select id, now() + make_interval(secs => delay), attempt, lane, priority, queue, kind, subject from gone
                   on conflict (kind, subject) do nothing
               )
               update task t set owner = null, deaths = 0, fence = 0
               from back b where t.id = b.id and t.fence = b.fence and b.delay <= 0";
    c.execute(query(sql).bind(ids).bind(fences).bind(delays_s)).await.map(drop)
}

/// Given back, to be claimed again at once.
pub async fn release(c: &mut Conn, id: i64, fence: i64) -> Result<bool, DbError> {
    let sql = "update task set owner = null, deaths = 0, fence = 0 where id = $1 and fence = $2";
    c.execute(query(sql).bind(id).bind(fence)).await.map(|n| n == 1)
}

/// All that a process owns, with the fences.
pub async fn owned_by(c: &mut Conn, owner: Uuid) -> Result<Vec<(i64, i64)>, DbError> {
    c.all(query_as("select id, fence from task where owner = $1").bind(owner)).await
}

/// An owner has lost it, which counts as a death.
pub async fn lose(c: &mut Conn, id: i64, fence: i64) -> Result<bool, DbError> {
    let sql = "update task set owner = null, deaths = deaths + 1, fence = 0 where id = $1 and fence = $2";
    c.execute(query(sql).bind(id).bind(fence)).await.map(|n| n == 1)
}

/// Given back, to be claimed again after `delay_s`.
pub async fn defer(c: &mut Conn, id: i64, fence: i64, delay_s: f64) -> Result<bool, DbError> {
    let sql = "with gone as (delete from task where id = $1 and fence = $2 returning *)
               insert into task_later (id, run_at, attempt, lane, priority, queue, kind, subject)
               select id, now() + make_interval(secs => $3), attempt, lane, priority, queue, kind, subject from gone
               on conflict (kind, subject) do update set run_at = least(task_later.run_at, excluded.run_at)";
    c.execute(query(sql).bind(id).bind(fence).bind(delay_s)).await.map(|n| n == 1)
}

pub async fn park(c: &mut Conn, id: i64, fence: i64, reason: &str) -> Result<bool, DbError> {
    let sql = "with gone as (delete from task where id = $1 and fence = $2 returning id, kind, subject)
               insert into task_parked (id, kind, subject, reason) select id, kind, subject, $3 from gone";
    c.execute(query(sql).bind(id).bind(fence).bind(reason)).await.map(|n| n == 1)
}

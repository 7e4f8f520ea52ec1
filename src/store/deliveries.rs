//! Webhooks that are, or were, to be delivered.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::{query, query_as, query_scalar, types::Json};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::{
        delivery::{Attempt, DeliveryStatus},
        task::{Lane, PRIORITY},
    },
};

/// What is to be sent, and where to.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Outgoing {
    pub id: Uuid,
    pub job_id: String,
    pub url: String,
    pub retries: i32,
    pub body: Vec<u8>,
}

/// A delivery as it is listed.
#[derive(sqlx::FromRow)]
pub struct Row {
    pub id: Uuid,
    pub sequence: i32,
    pub state: String,
    pub url: String,
    pub status: DeliveryStatus,
    pub attempts: Json<Vec<Attempt>>,
    pub next_attempt_at: Option<DateTime<Utc>>,
}

/// One to be put in with the change of state that it tells of.
pub struct New<'a> {
    pub id: Uuid,
    pub job_id: &'a str,
    pub sequence: i32,
    pub state: &'static str,
    pub url: &'a str,
    pub origin: &'a str,
    pub status: DeliveryStatus,
    pub body: &'a [u8],
}

/// What became of one attempt, to be written down with the end of its task.
pub struct Outcome {
    pub task: i64,
    pub fence: i64,
    pub delivery: Uuid,
    pub job_id: String,
    pub attempt: Attempt,
    pub status: DeliveryStatus,
    /// Set where it is tried again.
    pub again_in_s: Option<f64>,
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// The receiver wants nothing more of this job.
    pub gone: bool,
}

/// Puts one in. It has a task of its own only where no earlier one is pending; the job is held.
pub async fn insert(c: &mut Conn, new: &New<'_>, kind: &str) -> Result<(), DbError> {
    let sql = "with new as (
                   insert into delivery (id, job_id, sequence, state, url, origin, status, body)
                   values ($1, $2, $3, $4, $5, $6, $7, $8)
                   returning id, status
               )
               insert into task (lane, queue, priority, kind, subject)
               select $9, $6, $10, $11, id::text from new
               where status = 'pending' and not exists (
                   select from delivery d where d.job_id = $2 and d.sequence < $3 and d.status = 'pending'
               )
               on conflict (kind, subject) do nothing";
    let query = query(sql)
        .bind(new.id)
        .bind(new.job_id)
        .bind(new.sequence)
        .bind(new.state)
        .bind(new.url)
        .bind(new.origin)
        .bind(new.status.text())
        .bind(new.body)
        .bind(Lane::Webhooks.number())
        .bind(PRIORITY)
        .bind(kind);
    c.execute(query).await.map(drop)
}

/// Those of `ids` that are to be sent.
pub async fn outgoing(c: &mut Conn, ids: &[Uuid]) -> Result<Vec<Outgoing>, DbError> {
    let sql = "select id, job_id, url, retries, body from delivery where id = any($1) and status = 'pending'";
    c.all(query_as(sql).bind(ids)).await
}

/// Writes attempts down for the tasks that are still ours: the end of the task or its next time,
/// the attempt, the status. The jobs are held. Answers tasks and fences.
pub async fn record(c: &mut Conn, outcomes: &[Arc<Outcome>]) -> Result<Vec<(i64, i64)>, DbError> {
    let sql = "with done as (
                   select * from unnest($1::bigint[], $2::bigint[], $3::uuid[], $4::text[], $5::jsonb[], $6::text[],
                                        $7::float8[], $8::timestamptz[])
                       as d (task, fence, delivery, job_id, attempt, status, again, next_at)
               ), ours as (
                   delete from task t using done where t.id = done.task and t.fence = done.fence
                   returning t.id, t.fence, t.attempt, t.lane, t.priority, t.queue, t.kind, t.subject
               ), again as (
                   insert into task_later (id, run_at, attempt, lane, priority, queue, kind, subject)
                   select o.id, now() + make_interval(secs => d.again), o.attempt, o.lane, o.priority, o.queue, o.kind, o.subject
                   from ours o join done d on d.task = o.id and d.fence = o.fence where d.again is not null
                   on conflict (kind, subject) do nothing
               ), written as (
                   update delivery w
                   set status = d.status, attempts = w.attempts || d.attempt, next_attempt_at = d.next_at,
                       retries = case when d.again is null then w.retries else w.retries + 1 end
                   from ours o join done d on d.task = o.id and d.fence = o.fence
                   where w.id = d.delivery
               )
               select id, fence from ours";
    let column = |get: fn(&Outcome) -> i64| outcomes.iter().map(|outcome| get(outcome)).collect::<Vec<_>>();
    let query = query_as(sql)
        .bind(column(|o| o.task))
        .bind(column(|o| o.fence))
        .bind(outcomes.iter().map(|o| o.delivery).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|o| o.job_id.clone()).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|o| Json(o.attempt.clone())).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|o| o.status.text()).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|o| o.again_in_s).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|o| o.next_attempt_at).collect::<Vec<_>>());
    c.all(query).await
}

/// The receiver is gone: nothing that comes after this delivery is sent to it.
pub async fn forsake(c: &mut Conn, job: &str, delivery: Uuid) -> Result<(), DbError> {
    let sql = "with gone as (update job set webhook_gone = true where id = $1)
               update delivery d set status = 'failed', next_attempt_at = null
               from delivery last
               where last.id = $2 and d.job_id = $1 and d.sequence > last.sequence and d.status = 'pending'";
    c.execute(query(sql).bind(job).bind(delivery)).await.map(drop)
}

/// The first pending one of each job has a task, here or for later. Answers where one was put in.
/// The jobs are held.
pub async fn release_next(c: &mut Conn, jobs: &[String], kind: &str) -> Result<Vec<String>, DbError> {
    let sql = "insert into task (lane, queue, priority, kind, subject)
               select $2, head.origin, $3, $4, head.id::text
               from unnest($1::text[]) as j (id)
               cross join lateral (
                   select id, origin from delivery
                   where job_id = j.id and status = 'pending' order by sequence limit 1
               ) head
               where not exists (select from task_later l where l.kind = $4 and l.subject = head.id::text)
               on conflict (kind, subject) do nothing
               returning queue";
    c.scalars(query_scalar(sql).bind(jobs).bind(Lane::Webhooks.number()).bind(PRIORITY).bind(kind)).await
}

/// A task for a pending one, unless the job has earlier ones pending: then its turn comes. The job is held.
pub async fn release_one(c: &mut Conn, job: &str, id: Uuid, kind: &str) -> Result<(), DbError> {
    let sql = "insert into task (lane, queue, priority, kind, subject)
               select $3, d.origin, $4, $5, d.id::text from delivery d
               where d.job_id = $1 and d.id = $2 and d.status = 'pending' and not exists (
                   select from delivery e where e.job_id = $1 and e.sequence < d.sequence and e.status = 'pending'
               )
               on conflict (kind, subject) do nothing";
    c.execute(query(sql).bind(job).bind(id).bind(Lane::Webhooks.number()).bind(PRIORITY).bind(kind)).await.map(drop)
}

/// By sequence.
pub async fn of_job(c: &mut Conn, job: &str) -> Result<Vec<Row>, DbError> {
    let sql = "select id, sequence, state, url, status, attempts, next_attempt_at
               from delivery where job_id = $1 order by sequence";
    c.all(query_as(sql).bind(job)).await
}

/// Pending once more, with all its retries. Answers its receiver; `None` where the job has no such one.
pub async fn renew(c: &mut Conn, job: &str, id: Uuid) -> Result<Option<String>, DbError> {
    let sql = "update delivery set status = 'pending', retries = 0, next_attempt_at = null
               where job_id = $1 and id = $2
               returning origin";
    c.scalar_optional(query_scalar(sql).bind(job).bind(id)).await
}

//! Jobs, their artifacts and logs.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, query, query_as, query_scalar};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::{
        job::{Job, JobState},
        task::{NewTask, PRIORITY},
    },
};

const JOB: &str = "id, created_by, project_id, state, model, priority, attempt, failures, stream, webhook_url,
                   webhook_gone, sequence, error, created_at, started_at, completed_at";

/// What is not shown any more, from the moment on that its time is up, whoever has swept: `$1` is
/// the latest end that is past. What a webhook is still to tell of stays.
const KEPT: &str = "(completed_at is null or completed_at > $1
                     or exists (select from delivery d where d.job_id = job.id and d.status = 'pending'))";

/// A job with all that comes with it.
pub struct NewJob<'a> {
    pub id: &'a str,
    pub created_by: Uuid,
    pub model: &'a str,
    pub priority: i16,
    pub payload: &'a [u8],
    pub created_at: DateTime<Utc>,
    /// First event of its log, encoded.
    pub event: &'a [u8],
    pub task: &'a NewTask,
    pub webhook: Option<NewWebhook<'a>>,
}

/// The first webhook and its task.
pub struct NewWebhook<'a> {
    pub id: Uuid,
    pub url: &'a str,
    pub origin: &'a str,
    pub body: &'a [u8],
    pub task: &'a NewTask,
}

/// Job, log, first event, task, first webhook and its task: one statement, so one way to the
/// database. Answers the key of its log.
pub async fn insert(c: &mut Conn, job: &NewJob<'_>) -> Result<i64, DbError> {
    let sql = "with log as (
                   insert into stream (kind, name, last_n) values ('job', $1, 1) returning key
               ), first as (
                   insert into chunk (stream, from_n, to_n, data) select key, 1, 1, $7 from log
               ), hook as (
                   insert into delivery (id, job_id, sequence, state, url, origin, status, body)
                   select $12, $1, 0, 'queued', $13, $14, 'pending', $15 where $12 is not null
               ), todo as (
                   insert into task (lane, queue, priority, kind, subject)
                   select $8::smallint, $9::text, $4::smallint, $10::text, $1
                   union all
                   select $16::smallint, $14, 4, $11::text, $12::text where $12 is not null
               )
               insert into job (id, created_by, model, priority, payload, created_at, state, stream, webhook_url, sequence)
               select $1, $2, $3, $4, $5, $6, 'queued', key, $13, case when $12 is null then 0 else 1 end from log
               returning stream";
    let hook = job.webhook.as_ref();
    let query = query_scalar(sql)
        .bind(job.id)
        .bind(job.created_by)
        .bind(job.model)
        .bind(job.priority)
        .bind(job.payload)
        .bind(job.created_at)
        .bind(job.event)
        .bind(job.task.lane.number())
        .bind(&job.task.queue)
        .bind(job.task.kind)
        .bind(hook.map(|hook| hook.task.kind))
        .bind(hook.map(|hook| hook.id))
        .bind(hook.map(|hook| hook.url))
        .bind(hook.map(|hook| hook.origin))
        .bind(hook.map(|hook| hook.body))
        .bind(hook.map(|hook| hook.task.lane.number()));
    c.scalar(query).await
}

/// The job of a project's review.
pub struct NewReview<'a> {
    pub id: &'a str,
    pub created_by: Uuid,
    pub project: &'a str,
    pub model: &'a str,
    pub created_at: DateTime<Utc>,
    /// First event of its log, encoded.
    pub event: &'a [u8],
}

/// Job and log; its task is the review's.
pub async fn insert_review(c: &mut Conn, job: &NewReview<'_>) -> Result<(), DbError> {
    let sql = "with log as (
                   insert into stream (kind, name, last_n) values ('job', $1, 1) returning key
               ), first as (
                   insert into chunk (stream, from_n, to_n, data) select key, 1, 1, $6 from log
               )
               insert into job (id, created_by, project_id, model, priority, created_at, state, stream)
               select $1, $2, $3, $4, $7, $5, 'queued', key from log";
    let query = query(sql).bind(job.id).bind(job.created_by).bind(job.project).bind(job.model);
    c.execute(query.bind(job.created_at).bind(job.event).bind(PRIORITY)).await.map(drop)
}

pub async fn find(c: &mut Conn, id: &str, past: DateTime<Utc>) -> Result<Option<Job>, DbError> {
    let sql = format!("select {JOB} from job where id = $2 and {KEPT}");
    c.optional(query_as(AssertSqlSafe(sql)).bind(past).bind(id)).await
}

/// The job, held until the transaction ends. Whoever changes a job or its webhooks holds it first.
pub async fn lock(c: &mut Conn, id: &str) -> Result<Option<Job>, DbError> {
    let sql = format!("select {JOB} from job where id = $1 for no key update");
    c.optional(query_as(AssertSqlSafe(sql)).bind(id)).await
}

/// As [`lock`], several, in an order that everybody keeps.
pub async fn lock_all(c: &mut Conn, ids: &[String]) -> Result<(), DbError> {
    let sql = "select id from job where id = any($1) order by id for no key update";
    c.scalars::<String>(query_scalar(sql).bind(ids)).await.map(drop)
}

pub async fn payload(c: &mut Conn, id: &str) -> Result<Option<Vec<u8>>, DbError> {
    let found: Option<Option<Vec<u8>>> =
        c.scalar_optional(query_scalar("select payload from job where id = $1").bind(id)).await?;
    Ok(found.flatten())
}

/// The final object of upstream's answer, as JSON.
pub async fn result(c: &mut Conn, id: &str) -> Result<Option<Vec<u8>>, DbError> {
    let found: Option<Option<Vec<u8>>> =
        c.scalar_optional(query_scalar("select result from job where id = $1").bind(id)).await?;
    Ok(found.flatten())
}

/// Writes down where a job stands.
pub async fn set(c: &mut Conn, job: &Job) -> Result<(), DbError> {
    let sql = "update job set state = $2, attempt = $3, failures = $4, sequence = $5, started_at = $6
               where id = $1";
    let query = query(sql).bind(&job.id).bind(job.state).bind(job.attempt).bind(job.failures);
    c.execute(query.bind(job.sequence).bind(job.started_at)).await.map(drop)
}

/// As [`set`], at the end: its request is not needed any more.
pub async fn end(c: &mut Conn, job: &Job, result: Option<&[u8]>) -> Result<(), DbError> {
    let sql = "update job
               set state = $2, attempt = $3, failures = $4, sequence = $5, completed_at = $6, error = $7, result = $8,
                   payload = null
               where id = $1";
    let query = query(sql).bind(&job.id).bind(job.state).bind(job.attempt).bind(job.failures).bind(job.sequence);
    c.execute(query.bind(job.completed_at).bind(&job.error).bind(result)).await.map(drop)
}

/// Whose jobs a list shows.
pub enum Whose<'a> {
    All,
    Of(Uuid),
    /// Its own, and the reviews of these projects.
    OfAndProjects(Uuid, &'a [String]),
}

/// What a list is narrowed down to.
pub struct Filter<'a> {
    pub whose: Whose<'a>,
    pub state: Option<JobState>,
    /// Any of these names.
    pub models: Option<Vec<String>>,
}

/// Newest first, after the job `before`.
pub async fn list(
    c: &mut Conn,
    filter: &Filter<'_>,
    before: Option<&str>,
    limit: i64,
    past: DateTime<Utc>,
) -> Result<Vec<Job>, DbError> {
    let (key, projects): (Option<Uuid>, &[String]) = match filter.whose {
        Whose::All => (None, &[]),
        Whose::Of(key) => (Some(key), &[]),
        Whose::OfAndProjects(key, projects) => (Some(key), projects),
    };
    let sql = format!(
        "select {JOB} from job
         where {KEPT}
         and ($2::uuid is null or created_by = $2 or project_id = any($3))
         and ($4::text is null or state = $4) and ($5::text[] is null or model = any($5))
         and ($6::text is null or id < $6)
         order by id desc limit $7"
    );
    let query = query_as(AssertSqlSafe(sql)).bind(past).bind(key).bind(projects).bind(filter.state);
    c.all(query.bind(&filter.models).bind(before).bind(limit)).await
}

/// An artifact without its bytes, or with them where they are few.
#[derive(sqlx::FromRow)]
pub struct ArtifactRow {
    pub name: String,
    pub content_type: String,
    pub size: i64,
    pub data: Option<Vec<u8>>,
}

pub async fn insert_artifact(
    c: &mut Conn,
    job: &str,
    n: i32,
    name: &str,
    content_type: &str,
    data: &[u8],
) -> Result<(), DbError> {
    let sql = "insert into artifact (job_id, name, n, content_type, data) values ($1, $2, $3, $4, $5)";
    c.execute(query(sql).bind(job).bind(name).bind(n).bind(content_type).bind(data)).await.map(drop)
}

/// In the order in which they were made; bytes up to `inline` come along.
pub async fn artifacts(c: &mut Conn, job: &str, inline: i64) -> Result<Vec<ArtifactRow>, DbError> {
    let sql = "select name, content_type, octet_length(data)::bigint as size,
                      case when octet_length(data) <= $2 then data end as data
               from artifact where job_id = $1 order by n";
    c.all(query_as(sql).bind(job).bind(inline)).await
}

/// Content type and bytes.
pub async fn artifact(c: &mut Conn, job: &str, name: &str) -> Result<Option<(String, Vec<u8>)>, DbError> {
    let sql = "select content_type, data from artifact where job_id = $1 and name = $2";
    c.optional(query_as(sql).bind(job).bind(name)).await
}

/// Jobs that ended before `past` and tell nobody of it any more, so many, held until the transaction ends.
pub async fn lock_past(c: &mut Conn, past: DateTime<Utc>, limit: i64) -> Result<Vec<String>, DbError> {
    let sql = "select id from job
               where completed_at <= $1
               and not exists (select from delivery d where d.job_id = job.id and d.status = 'pending')
               order by completed_at limit $2
               for update skip locked";
    c.scalars(query_scalar(sql).bind(past).bind(limit)).await
}

/// Removes jobs that are held, with all that is theirs, unless a webhook was asked for once more meanwhile.
pub async fn delete(c: &mut Conn, ids: &[String]) -> Result<u64, DbError> {
    let sql = "with old as (
                   select id, stream from job
                   where id = any($1)
                   and not exists (select from delivery d where d.job_id = job.id and d.status = 'pending')
               ), artifacts as (
                   delete from artifact using old where job_id = old.id
               ), deliveries as (
                   delete from delivery using old where job_id = old.id
               ), logs as (
                   delete from stream using old where key = old.stream
               )
               delete from job using old where job.id = old.id";
    c.execute(query(sql).bind(ids)).await
}

//! Sagas: their rows, plans, steps, logs. What drives them writes many at once; see `sagas/write.rs`.

mod definitions;
mod write;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, query, query_as, query_scalar};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::{
        saga::{OnFailure, SagaStatus, StepStatus, UndoStatus},
        task::NewTask,
    },
};

pub use self::{
    definitions::{DefinitionRow, definition, definitions, insert_definition},
    write::{Then, Write, write_all},
};

const SAGA: &str =
    "id, version, created_at, updated_at, completed_at, stop_by, deadline, wake_at, created_by, parent, stream,
                    retry_count, max_retries, log_n, definition_version, depth, turn, halting, status, on_failure,
                    name, project_id, definition, concurrency_key, current_step, error";

const STEP: &str = "saga_id, n, generation, attempt, failures, cut_offs, retry_count, undo_attempts, undo_failures,
                    undo_cut_offs, doubtful, due_at, started_at, attempt_at, completed_at, undo_due_at, undo_at,
                    status, undo_status, error, undo_error, note, output";

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Row {
    pub id: Uuid,
    pub version: i64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub completed_at: Option<DateTime<Utc>>,
    pub stop_by: Option<DateTime<Utc>>,
    pub deadline: Option<DateTime<Utc>>,
    /// It is in nobody's memory until then.
    pub wake_at: Option<DateTime<Utc>>,
    pub created_by: Uuid,
    pub parent: Option<Uuid>,
    /// Key of its log of events.
    pub stream: i64,
    pub retry_count: i32,
    pub max_retries: i32,
    /// Lines of its log.
    pub log_n: i32,
    pub definition_version: Option<i32>,
    /// Sagas above it.
    pub depth: i16,
    /// 0 at rest or without a key, 1 at work, 2 waiting for its turn.
    pub turn: i16,
    pub halting: bool,
    pub status: SagaStatus,
    pub on_failure: OnFailure,
    pub name: String,
    pub project_id: Option<String>,
    pub definition: Option<String>,
    pub concurrency_key: Option<String>,
    pub current_step: Option<String>,
    pub error: Option<String>,
}

/// As they were given, as JSON.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct PlanRow {
    pub saga_id: Uuid,
    pub timeout_ms: Option<i64>,
    pub steps: String,
    pub vars: String,
}

/// A step that was touched. Outputs and notes are JSON.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct StepRow {
    pub saga_id: Uuid,
    pub n: i32,
    pub generation: i32,
    pub attempt: i32,
    pub failures: i32,
    pub cut_offs: i32,
    pub retry_count: i32,
    pub undo_attempts: Option<i32>,
    pub undo_failures: Option<i32>,
    pub undo_cut_offs: Option<i32>,
    pub doubtful: bool,
    pub due_at: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    pub attempt_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub undo_due_at: Option<DateTime<Utc>>,
    pub undo_at: Option<DateTime<Utc>>,
    pub status: StepStatus,
    pub undo_status: Option<UndoStatus>,
    pub error: Option<String>,
    pub undo_error: Option<String>,
    pub note: Option<String>,
    pub output: Option<String>,
}

/// A line of the log: an attempt, or what somebody asked for.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct LogRow {
    pub step: Option<i32>,
    pub attempt: Option<i32>,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub by: Option<Uuid>,
    pub outcome: String,
    pub error: Option<String>,
}

/// A saga with all that comes with it.
pub struct New<'a> {
    pub id: Uuid,
    pub name: &'a str,
    pub project_id: Option<&'a str>,
    pub created_by: Uuid,
    pub created_at: DateTime<Utc>,
    pub parent: Option<Uuid>,
    pub depth: i16,
    pub max_retries: i32,
    pub on_failure: OnFailure,
    pub definition: Option<&'a str>,
    pub definition_version: Option<i32>,
    pub concurrency_key: Option<&'a str>,
    pub turn: i16,
    pub timeout_ms: Option<i64>,
    pub steps: &'a str,
    pub vars: &'a str,
    /// None where it waits for its turn.
    pub task: Option<&'a NewTask>,
}

/// Saga, plan, log and task: one statement, so one way to the database.
pub async fn insert(c: &mut Conn, new: &New<'_>) -> Result<Row, DbError> {
    let sql = format!(
        "with log as (
             insert into stream (kind, name) values ('saga', $1::text) returning key
         ), plan as (
             insert into saga_plan (saga_id, timeout_ms, steps, vars) values ($1, $14, $15, $16)
         ), todo as (
             insert into task (lane, queue, kind, subject)
             select $17::smallint, $18::text, $19::text, $1::text where $19 is not null
         )
         insert into saga (id, name, project_id, created_by, created_at, updated_at, parent, depth, max_retries,
                           on_failure, definition, definition_version, concurrency_key, turn, status, stream)
         select $1, $2, $3, $4, $5, $5, $6, $7, $8, $9, $10, $11, $12, $13, 'pending', key from log
         returning {SAGA}"
    );
    let query = query_as(AssertSqlSafe(sql))
        .bind(new.id)
        .bind(new.name)
        .bind(new.project_id)
        .bind(new.created_by)
        .bind(new.created_at)
        .bind(new.parent)
        .bind(new.depth)
        .bind(new.max_retries)
        .bind(new.on_failure)
        .bind(new.definition)
        .bind(new.definition_version)
        .bind(new.concurrency_key)
        .bind(new.turn)
        .bind(new.timeout_ms)
        .bind(new.steps)
        .bind(new.vars)
        .bind(new.task.map(|task| task.lane.number()))
        .bind(new.task.map(|task| &task.queue))
        .bind(new.task.map(|task| task.kind));
    c.one(query).await
}

pub async fn find(c: &mut Conn, id: Uuid) -> Result<Option<Row>, DbError> {
    let sql = format!("select {SAGA} from saga where id = $1");
    c.optional(query_as(AssertSqlSafe(sql)).bind(id)).await
}

/// The saga, held until the transaction ends. Whoever changes one holds it first.
pub async fn lock(c: &mut Conn, id: Uuid) -> Result<Option<Row>, DbError> {
    let sql = format!("select {SAGA} from saga where id = $1 for no key update");
    c.optional(query_as(AssertSqlSafe(sql)).bind(id)).await
}

pub async fn rows(c: &mut Conn, ids: &[Uuid]) -> Result<Vec<Row>, DbError> {
    let sql = format!("select {SAGA} from saga where id = any($1)");
    c.all(query_as(AssertSqlSafe(sql)).bind(ids)).await
}

pub async fn plans(c: &mut Conn, ids: &[Uuid]) -> Result<Vec<PlanRow>, DbError> {
    let sql = "select saga_id, timeout_ms, steps, vars from saga_plan where saga_id = any($1)";
    c.all(query_as(sql).bind(ids)).await
}

/// The steps that were touched.
pub async fn steps(c: &mut Conn, ids: &[Uuid]) -> Result<Vec<StepRow>, DbError> {
    let sql = format!("select {STEP} from saga_step where saga_id = any($1)");
    c.all(query_as(AssertSqlSafe(sql)).bind(ids)).await
}

/// What a list is narrowed down to.
pub struct Filter<'a> {
    pub name: Option<&'a str>,
    pub status: Option<SagaStatus>,
    pub project_id: Option<&'a str>,
    /// Only sagas of these projects.
    pub among: Option<&'a [String]>,
}

/// Newest first, after the saga `before`.
pub async fn page(c: &mut Conn, filter: &Filter<'_>, before: Option<Uuid>, limit: i64) -> Result<Vec<Row>, DbError> {
    let sql = format!(
        "select {SAGA} from saga
         where ($1::text is null or name = $1) and ($2::text is null or status = $2)
         and ($3::text is null or project_id = $3) and ($4::text[] is null or project_id = any($4))
         and ($5::uuid is null or id < $5)
         order by id desc limit $6"
    );
    let query = query_as(AssertSqlSafe(sql)).bind(filter.name).bind(filter.status).bind(filter.project_id);
    c.all(query.bind(filter.among).bind(before).bind(limit)).await
}

/// Where sagas stand in their writes.
pub async fn versions(c: &mut Conn, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, DbError> {
    c.all(query_as("select id, version from saga where id = any($1)").bind(ids)).await
}

/// Its log, in order.
pub async fn log(c: &mut Conn, id: Uuid) -> Result<Vec<LogRow>, DbError> {
    let sql =
        "select step, attempt, started_at, ended_at, by, outcome, error from saga_log where saga_id = $1 order by n";
    c.all(query_as(sql).bind(id)).await
}

/// Removes a saga that is held, with all that is its own.
pub async fn delete(c: &mut Conn, id: Uuid) -> Result<(), DbError> {
    let sql = "with steps as (delete from saga_step where saga_id = $1),
                    plan as (delete from saga_plan where saga_id = $1),
                    log as (delete from saga_log where saga_id = $1),
                    gone as (delete from saga where id = $1 returning stream)
               delete from stream using gone where key = gone.stream";
    c.execute(query(sql).bind(id)).await.map(drop)
}

/// Writes down what an attempt (of a step, or of its compensation) has made. False where it is not under way
/// any more.
pub async fn note(
    c: &mut Conn,
    saga: Uuid,
    step: i32,
    (attempt, undo): (i32, bool),
    note: &serde_json::Value,
) -> Result<bool, DbError> {
    let sql = "update saga_step set note = $4
               where saga_id = $1 and n = $2
               and case when $5 then undo_attempts = $3 and undo_status = 'running'
                        else attempt = $3 and status = 'running' end";
    let query = query(sql).bind(saga).bind(step).bind(attempt).bind(note.to_string()).bind(undo);
    c.execute(query).await.map(|n| n == 1)
}

pub async fn note_of(c: &mut Conn, saga: Uuid, step: i32) -> Result<Option<String>, DbError> {
    let sql = "select note from saga_step where saga_id = $1 and n = $2";
    c.scalar_optional(query_scalar(sql).bind(saga).bind(step)).await.map(Option::flatten)
}

/// Makes everybody wait who asks for a turn of this key, until the transaction ends.
pub async fn hold_key(c: &mut Conn, project: Option<&str>, key: &str) -> Result<(), DbError> {
    let sql = "select pg_advisory_xact_lock(hashtextextended($1 || chr(10) || $2, 7205))";
    c.execute(query(sql).bind(project.unwrap_or_default()).bind(key)).await.map(drop)
}

/// Whether a saga of the key is at work. The key is held.
pub async fn key_is_taken(c: &mut Conn, project: Option<&str>, key: &str) -> Result<bool, DbError> {
    let sql = "select exists (select from saga
                              where coalesce(project_id, '') = $1 and concurrency_key = $2 and turn = 1)";
    c.scalar(query_scalar(sql).bind(project.unwrap_or_default()).bind(key)).await
}

pub async fn set_turn(c: &mut Conn, id: Uuid, turn: i16) -> Result<(), DbError> {
    c.execute(query("update saga set turn = $2 where id = $1").bind(id).bind(turn)).await.map(drop)
}

/// Gives the turn to the oldest that waits for it. The key is held, and nobody has it.
pub async fn pass_turn(c: &mut Conn, project: Option<&str>, key: &str) -> Result<Option<Uuid>, DbError> {
    let sql = "update saga set turn = 1, version = version + 1
               where id = (select id from saga
                           where coalesce(project_id, '') = $1 and concurrency_key = $2 and turn = 2
                           order by id limit 1)
               returning id";
    c.scalar_optional(query_scalar(sql).bind(project.unwrap_or_default()).bind(key)).await
}

/// A log that had ended goes on: its last event is taken back. Answers the number that it then ends with.
pub async fn reopen_log(c: &mut Conn, stream: i64) -> Result<(), DbError> {
    let sql = "with open as (
                   update stream set ended = false, last_n = last_n - 1 where key = $1 and ended returning last_n
               )
               delete from chunk using open where stream = $1 and to_n = open.last_n + 1";
    c.execute(query(sql).bind(stream)).await.map(drop)
}

/// Sagas that nobody has in memory and whose time has come.
pub async fn due(c: &mut Conn, now: DateTime<Utc>, limit: i64) -> Result<Vec<String>, DbError> {
    let sql = "select id::text from saga where wake_at <= $1 order by wake_at limit $2";
    c.scalars(query_scalar(sql).bind(now).bind(limit)).await
}

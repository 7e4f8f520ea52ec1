//! The one statement by which sagas move: rows, steps, log, events and tasks of many sagas, each
//! only where nobody else has moved it meanwhile.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{Postgres, query::QueryAs, query_as};
use uuid::Uuid;

use super::{LogRow, Row, StepRow};
use crate::{
    database::{Conn, DbError},
    domain::saga::UndoStatus,
};

/// What becomes of the task that carries the saga.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Then {
    /// This process goes on.
    Keep,
    Finish,
    /// Seconds.
    Later(f64),
}

/// A saga as it is to be, with what happened.
#[derive(Debug, Clone)]
pub struct Write {
    /// `version` and `log_n` are those it had.
    pub row: Row,
    pub steps: Vec<StepRow>,
    pub log: Vec<LogRow>,
    /// Events, encoded, and how many.
    pub events: Bytes,
    pub count: i64,
    /// The event that ends its log.
    pub last: Option<Bytes>,
    /// Id and fence, where a driver writes.
    pub task: Option<(i64, i64)>,
    pub then: Then,
}

const SQL: &str = "with w as materialized (
        select * from unnest($1::uuid[], $2::int8[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[],
                             $6::timestamptz[], $7::timestamptz[], $8::int4[], $9::bool[], $10::text[], $11::text[], $12::text[],
                             $13::int4[], $14::int8[], $15::int8[], $16::int2[], $17::float8[], $18::bytea[],
                             $19::int8[], $20::bytea[])
        as w (id, version, updated_at, completed_at, stop_by, deadline, wake_at, retry_count, halting, status, current_step,
              error, log, task, fence, ends, delay, events, count, last)
    ), held as materialized (
        select s.id, s.stream, s.log_n from w join saga s on s.id = w.id and s.version = w.version
        where w.task is null or exists (select from task t where t.id = w.task and t.fence = w.fence)
        for no key update of s
    ), head as (
        update saga s
        set version = s.version + 1, updated_at = w.updated_at, completed_at = w.completed_at, stop_by = w.stop_by,
            deadline = w.deadline, wake_at = w.wake_at, retry_count = w.retry_count, halting = w.halting, status = w.status,
            current_step = w.current_step, error = w.error, log_n = s.log_n + w.log
        from w join held using (id) where s.id = w.id
    ), step as (
        insert into saga_step (saga_id, n, generation, attempt, failures, cut_offs, retry_count, undo_attempts,
                               undo_failures, undo_cut_offs, doubtful, due_at, started_at, attempt_at, completed_at,
                               undo_due_at, undo_at, status, undo_status, error, undo_error, note, output)
        select p.* from unnest($21::uuid[], $22::int4[], $23::int4[], $24::int4[], $25::int4[], $26::int4[], $27::int4[],
                               $28::int4[], $29::int4[], $30::int4[], $31::bool[], $32::timestamptz[],
                               $33::timestamptz[], $34::timestamptz[], $35::timestamptz[], $36::timestamptz[],
                               $37::timestamptz[], $38::text[], $39::text[], $40::text[], $41::text[], $42::text[],
                               $43::text[]) as p (saga_id)
        join held on held.id = p.saga_id
        on conflict (saga_id, n) do update
        set generation = excluded.generation, attempt = excluded.attempt, failures = excluded.failures,
            cut_offs = excluded.cut_offs, retry_count = excluded.retry_count, undo_attempts = excluded.undo_attempts,
            undo_failures = excluded.undo_failures, undo_cut_offs = excluded.undo_cut_offs,
            doubtful = excluded.doubtful, due_at = excluded.due_at, started_at = excluded.started_at,
            attempt_at = excluded.attempt_at, completed_at = excluded.completed_at, undo_due_at = excluded.undo_due_at,
            undo_at = excluded.undo_at, status = excluded.status, undo_status = excluded.undo_status,
            error = excluded.error, undo_error = excluded.undo_error, output = excluded.output,
            note = case when excluded.undo_status is not null then saga_step.note
                        when excluded.attempt > saga_step.attempt or excluded.generation > saga_step.generation
                        then excluded.note else coalesce(excluded.note, saga_step.note) end
    ), line as (
        insert into saga_log (saga_id, n, step, attempt, started_at, ended_at, by, outcome, error)
        select l.saga_id, held.log_n + l.n, l.step, l.attempt, l.started_at, l.ended_at, l.by, l.outcome, l.error
        from unnest($44::uuid[], $45::int4[], $46::int4[], $47::int4[], $48::timestamptz[], $49::timestamptz[],
                    $50::uuid[], $51::text[], $52::text[])
             as l (saga_id, n, step, attempt, started_at, ended_at, by, outcome, error)
        join held on held.id = l.saga_id
    ), grown as (
        update stream set last_n = last_n + w.count, ended = w.last is not null
        from w join held using (id)
        where stream.key = held.stream and w.count > 0 and not stream.ended
        returning key, last_n, w.id, w.events, w.count, w.last
    ), shown as (
        insert into chunk (stream, from_n, to_n, data)
        select key, last_n - count + 1, case when last is null then last_n else last_n - 1 end, events from grown
        where last is null or count > 1
        union all
        select key, last_n, last_n, last from grown where last is not null
    ), gone as (
        delete from task t using w join held using (id)
        where t.id = w.task and t.fence = w.fence and w.ends > 0
        returning t.id, t.attempt, t.lane, t.priority, t.queue, t.kind, t.subject, w.ends, w.delay
    ), later as (
        insert into task_later (id, run_at, attempt, lane, priority, queue, kind, subject)
        select id, now() + make_interval(secs => delay), attempt, lane, priority, queue, kind, subject from gone
        where ends = 2
        on conflict (kind, subject) do update set run_at = least(task_later.run_at, excluded.run_at)
    )
    select held.id, coalesce(grown.last_n, 0) from held left join grown on grown.id = held.id";

/// Writes down what is still to be written of sagas that nobody else has moved. Answers these, each with the
/// number of its last event, 0 where there was none.
pub async fn write_all(c: &mut Conn, writes: &[Write]) -> Result<Vec<(Uuid, i64)>, DbError> {
    let query = bind_heads(query_as(SQL), writes);
    let query = bind_steps(query, &writes.iter().flat_map(|write| &write.steps).collect::<Vec<_>>());
    c.all(bind_log(query, writes)).await
}

type Query<'q> = QueryAs<'q, Postgres, (Uuid, i64), sqlx::postgres::PgArguments>;

fn column<T, R>(rows: &[T], of: impl Fn(&T) -> R) -> Vec<R> {
    rows.iter().map(of).collect()
}

fn bind_heads<'q>(query: Query<'q>, writes: &[Write]) -> Query<'q> {
    let head = |of: fn(&Row) -> Option<DateTime<Utc>>| column(writes, |write| of(&write.row));
    query
        .bind(column(writes, |w| w.row.id))
        .bind(column(writes, |w| w.row.version))
        .bind(column(writes, |w| w.row.updated_at))
        .bind(head(|row| row.completed_at))
        .bind(head(|row| row.stop_by))
        .bind(head(|row| row.deadline))
        .bind(head(|row| row.wake_at))
        .bind(column(writes, |w| w.row.retry_count))
        .bind(column(writes, |w| w.row.halting))
        .bind(column(writes, |w| w.row.status.text()))
        .bind(column(writes, |w| w.row.current_step.clone()))
        .bind(column(writes, |w| w.row.error.clone()))
        .bind(column(writes, |w| i32::try_from(w.log.len()).unwrap_or(i32::MAX)))
        .bind(column(writes, |w| w.task.map(|(id, _)| id)))
        .bind(column(writes, |w| w.task.map(|(_, fence)| fence)))
        .bind(column(writes, |w| match w.then {
            Then::Keep => 0_i16,
            Then::Finish => 1,
            Then::Later(_) => 2,
        }))
        .bind(column(writes, |w| match w.then {
            Then::Later(delay) => delay,
            Then::Keep | Then::Finish => 0.0,
        }))
        .bind(column(writes, |w| w.events.to_vec()))
        .bind(column(writes, |w| w.count))
        .bind(column(writes, |w| w.last.as_ref().map(|last| last.to_vec())))
}

fn bind_steps<'q>(query: Query<'q>, steps: &[&StepRow]) -> Query<'q> {
    query
        .bind(column(steps, |s| s.saga_id))
        .bind(column(steps, |s| s.n))
        .bind(column(steps, |s| s.generation))
        .bind(column(steps, |s| s.attempt))
        .bind(column(steps, |s| s.failures))
        .bind(column(steps, |s| s.cut_offs))
        .bind(column(steps, |s| s.retry_count))
        .bind(column(steps, |s| s.undo_attempts))
        .bind(column(steps, |s| s.undo_failures))
        .bind(column(steps, |s| s.undo_cut_offs))
        .bind(column(steps, |s| s.doubtful))
        .bind(column(steps, |s| s.due_at))
        .bind(column(steps, |s| s.started_at))
        .bind(column(steps, |s| s.attempt_at))
        .bind(column(steps, |s| s.completed_at))
        .bind(column(steps, |s| s.undo_due_at))
        .bind(column(steps, |s| s.undo_at))
        .bind(column(steps, |s| s.status.text()))
        .bind(column(steps, |s| s.undo_status.map(UndoStatus::text)))
        .bind(column(steps, |s| s.error.clone()))
        .bind(column(steps, |s| s.undo_error.clone()))
        .bind(column(steps, |s| s.note.clone()))
        .bind(column(steps, |s| s.output.clone()))
}

fn bind_log<'q>(query: Query<'q>, writes: &[Write]) -> Query<'q> {
    let lines: Vec<(Uuid, i32, &LogRow)> =
        writes.iter().flat_map(|write| (1..).zip(&write.log).map(|(n, line)| (write.row.id, n, line))).collect();
    query
        .bind(column(&lines, |(id, ..)| *id))
        .bind(column(&lines, |(_, n, _)| *n))
        .bind(column(&lines, |(.., line)| line.step))
        .bind(column(&lines, |(.., line)| line.attempt))
        .bind(column(&lines, |(.., line)| line.started_at))
        .bind(column(&lines, |(.., line)| line.ended_at))
        .bind(column(&lines, |(.., line)| line.by))
        .bind(column(&lines, |(.., line)| line.outcome.clone()))
        .bind(column(&lines, |(.., line)| line.error.clone()))
}

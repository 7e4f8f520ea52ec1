//! Commands, with what their log says of their output.

use sqlx::{query, query_as, query_scalar, types::Json};
use uuid::Uuid;

use crate::{
    database::{Conn, DbError},
    domain::command::{Command, CommandStatus, Ended, Launch},
};

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "select c.seq, c.project_id, c.command_id, c.session_id, c.stream, c.kind, c.args, c.cwd, c.status, c.exit_code,
             c.termination, c.signal, c.started_at, c.ended_at, c.created_by, c.body_hash,
             s.out_bytes, s.err_bytes, s.last_n, s.ended
             from command c join stream s on s.key = c.stream ",
            $rest
        )
    };
}

/// `command_once` refuses a second one of the same id.
pub async fn insert(c: &mut Conn, command: &Command, launch: &Launch) -> Result<i64, DbError> {
    let sql = "insert into command (project_id, command_id, session_id, stream, kind, args, cwd, status, started_at, created_by, body_hash, launch)
               values ($1, $2, $3, $4, $5, $6, $7, 'running', $8, $9, $10, $11) returning seq";
    let query = query_scalar(sql)
        .bind(&command.project_id)
        .bind(&command.command_id)
        .bind(command.session_id)
        .bind(command.stream)
        .bind(command.kind)
        .bind(&command.args)
        .bind(&command.cwd)
        .bind(command.started_at)
        .bind(command.created_by)
        .bind(&command.body_hash)
        .bind(Json(launch));
    c.scalar(query).await
}

pub async fn find(c: &mut Conn, project: &str, command: &str) -> Result<Option<Command>, DbError> {
    c.optional(query_as(select!("where c.project_id = $1 and c.command_id = $2")).bind(project).bind(command)).await
}

pub async fn find_by_stream(c: &mut Conn, stream: i64) -> Result<Option<Command>, DbError> {
    c.optional(query_as(select!("where c.stream = $1")).bind(stream)).await
}

/// What it takes to start it, and whether its end was asked for already.
pub async fn launch(c: &mut Conn, stream: i64) -> Result<Option<(Option<Json<Launch>>, Option<String>)>, DbError> {
    c.optional(query_as("select launch, cancel from command where stream = $1").bind(stream)).await
}

pub async fn page(
    c: &mut Conn,
    project: &str,
    status: Option<CommandStatus>,
    session: Option<Uuid>,
    sessions_only: bool,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Command>, DbError> {
    let sql = select!(
        "where c.project_id = $1 and ($2::text is null or c.status = $2) and ($3::uuid is null or c.session_id = $3)
         and (not $4 or c.session_id is not null) and ($5::bigint is null or c.seq < $5)
         order by c.seq desc limit $6"
    );
    c.all(query_as(sql).bind(project).bind(status).bind(session).bind(sessions_only).bind(before).bind(limit)).await
}

/// Running commands of the project, and of these in the session.
pub async fn count_running(c: &mut Conn, project: &str, session: Option<Uuid>) -> Result<(i64, i64), DbError> {
    let sql = "select count(*), count(*) filter (where session_id = $2) from command where project_id = $1 and status = 'running'";
    c.one(query_as(sql).bind(project).bind(session)).await
}

/// Streams of running commands: of a project or one of its sessions.
pub async fn running(c: &mut Conn, project: &str, session: Option<Uuid>) -> Result<Vec<(i64, String)>, DbError> {
    let sql = "select stream, command_id from command
               where project_id = $1 and ($2::uuid is null or session_id = $2) and status = 'running'";
    c.all(query_as(sql).bind(project).bind(session)).await
}

/// Running commands whose task a process holds: project, stream, id.
pub async fn followed_by(c: &mut Conn, process: Uuid, task: &str) -> Result<Vec<(String, i64, String)>, DbError> {
    let sql = "select c.project_id, c.stream, c.command_id
               from task t join command c on c.stream = t.subject::bigint
               where t.owner = $1 and t.kind = $2 and c.status = 'running'";
    c.all(query_as(sql).bind(process).bind(task)).await
}

/// Keys of the logs of commands that run.
pub async fn running_streams(c: &mut Conn) -> Result<Vec<i64>, DbError> {
    c.scalars(query_scalar("select stream from command where status = 'running'")).await
}

/// Asks for the end of a running command; the first reason stands. Answers the reason in force, and where it runs.
pub async fn ask_end(c: &mut Conn, stream: i64, reason: &str) -> Result<Option<(String, Option<String>)>, DbError> {
    let sql = "update command set cancel = coalesce(cancel, $2)
               where stream = $1 and status = 'running'
               returning cancel, launch->>'place'";
    c.optional(query_as(sql).bind(stream).bind(reason)).await
}

/// Ends of running commands that were asked for, of those whose streams are given.
pub async fn asked_ends(c: &mut Conn, streams: &[i64]) -> Result<Vec<(i64, String)>, DbError> {
    let sql = "select stream, cancel from command where stream = any($1) and status = 'running' and cancel is not null";
    c.all(query_as(sql).bind(streams)).await
}

pub async fn end(c: &mut Conn, stream: i64, ended: &Ended) -> Result<bool, DbError> {
    let sql =
        "update command set status = $2, exit_code = $3, termination = $4, signal = $5, ended_at = $6, launch = null
               where stream = $1 and status = 'running'";
    let query = query(sql)
        .bind(stream)
        .bind(ended.status())
        .bind(ended.exit_code)
        .bind(ended.termination)
        .bind(&ended.signal)
        .bind(ended.at);
    c.execute(query).await.map(|n| n == 1)
}

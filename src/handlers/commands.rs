//! Commands of a project: start, list, look at, cancel.

use std::{collections::BTreeMap, time::Duration};

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    extract::{Body, BodyLimit, Caller, CommandRef, InProject, Once, PageQuery, Query, cut, duration, one_of},
    guard::{Rule, WAIT_MAX},
    reply::{Data, MaybeCreated, Paged},
    routes::{LOOKUP, Routes, STANDARD},
};
use crate::{
    domain::{
        command::{Command, CommandKind, CommandStatus, EndAsked, Termination},
        git_args,
        ids::{self, CommandId},
        key::Key,
        project::Project,
        scopes::Scope,
        session::Session,
        words,
    },
    error::{Error, Result},
    services::{
        commands::{self, Commands, Filter, NewCommand, Program, Started, TIMEOUT_DEFAULT, TIMEOUT_MAX, ran_for},
        receipts::Answer,
    },
};

const READ: &[Scope] = &[Scope::ProjectsRead, Scope::SessionsRead];
const EXECUTE: &[Scope] = &[Scope::ProjectsExecute];
const CANCEL: &[Scope] = &[Scope::ProjectsExecute, Scope::SessionsExecute];

const STDIN_MAX: usize = 1 << 20;

pub fn routes(commands: Commands) -> Routes<Commands> {
    let start = Rule::any(EXECUTE, STANDARD).body(BodyLimit::COMMAND).waits();
    Routes::new("commands", commands)
        .on(&Method::POST, "/projects/{id}/shell", "run_a_command", start.clone(), shell)
        .on(&Method::POST, "/projects/{id}/git", "run_git", start.clone(), git)
        .on(&Method::POST, "/projects/{id}/claude", "run_the_agent", start, claude)
        .on(&Method::GET, "/projects/{id}/commands", "list_commands", Rule::any(READ, LOOKUP), list)
        .on(&Method::GET, "/projects/{id}/commands/{cid}", "get_a_command", Rule::any(READ, LOOKUP), get)
        .on(&Method::DELETE, "/projects/{id}/commands/{cid}", "cancel_a_command", Rule::any(CANCEL, STANDARD), cancel)
}

/// A command as clients see it. `exit_code` is `null` unless one was seen.
#[derive(Serialize, ToSchema)]
pub struct CommandView {
    command_id: String,
    stream_id: String,
    project_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<Uuid>,
    r#type: CommandKind,
    args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    status: CommandStatus,
    exit_code: Option<i32>,
    termination: Option<Termination>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<String>,
    started_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<i64>,
    output: OutputView,
    created_by: Uuid,
    events_url: String,
    output_url: String,
}

/// How much a command has said.
#[derive(Serialize, ToSchema)]
struct OutputView {
    bytes: i64,
    events: i64,
    truncated: bool,
}

impl CommandView {
    pub fn of(command: &Command) -> Self {
        let (project, id) = (&command.project_id, &command.command_id);
        Self {
            command_id: id.clone(),
            stream_id: id.clone(),
            project_id: project.clone(),
            session_id: command.session_id,
            r#type: command.kind,
            args: command.args.clone(),
            cwd: command.cwd.clone(),
            status: command.status,
            exit_code: command.exit_code,
            termination: command.termination,
            signal: command.signal.clone(),
            started_at: command.started_at,
            ended_at: command.ended_at,
            duration_ms: ran_for(command).map(|ran| ran.num_milliseconds()),
            output: OutputView {
                bytes: command.out_bytes + command.err_bytes,
                events: command.output_events(),
                truncated: command.termination == Some(Termination::OutputLimit),
            },
            created_by: command.created_by,
            events_url: format!("/projects/{project}/events?stream_id={id}"),
            output_url: format!("/projects/{project}/commands/{id}/output"),
        }
    }
}

/// What all commands may say.
#[derive(Deserialize, ToSchema)]
struct Common {
    /// Relative, inside the workspace.
    cwd: Option<String>,
    env: Option<BTreeMap<String, String>>,
    /// Default `10m`, at most `24h`.
    timeout: Option<String>,
    /// Text, at most 1 MiB.
    stdin: Option<String>,
    /// Chosen by the client; a repeat with the same body gets the same command.
    command_id: Option<String>,
    /// The answer waits so long for the end, at most `60s`.
    wait: Option<String>,
}

/// Exactly one of `args`, `command` and `script`.
#[derive(Deserialize, ToSchema)]
pub struct ShellCommand {
    /// Run as it is, without a shell.
    args: Option<Vec<String>>,
    /// Split into words as a POSIX shell would, with no expansion.
    command: Option<String>,
    /// Run by `sh`.
    script: Option<String>,
    #[serde(flatten)]
    common: Common,
}

#[derive(Deserialize, ToSchema)]
struct GitCommand {
    args: Vec<String>,
    #[serde(flatten)]
    common: Common,
}

#[derive(Deserialize, ToSchema)]
struct AgentCommand {
    prompt: String,
    args: Option<Vec<String>>,
    #[serde(flatten)]
    common: Common,
}

/// A command that was asked for, and how long its answer may wait.
pub struct Asked {
    command: NewCommand,
    wait: Option<Duration>,
}

impl ShellCommand {
    /// # Errors
    /// 400 that says what is wrong; `COMMAND_REJECTED` with the token.
    pub fn parse(self, hash: Vec<u8>) -> Result<Asked> {
        let program = match (self.args, self.command, self.script) {
            (Some(args), None, None) => Program::Args(args),
            (None, Some(text), None) => Program::Args(words::split(&text).map_err(rejected)?),
            (None, None, Some(script)) => Program::Script(script),
            _ => return Err(Error::invalid("exactly one of args, command and script is needed")),
        };
        self.common.parse(CommandKind::Shell, program, hash)
    }
}

impl Common {
    fn parse(self, kind: CommandKind, program: Program, body_hash: Vec<u8>) -> Result<Asked> {
        commands::check_program(&program)?;
        if self.stdin.as_ref().is_some_and(|text| text.len() > STDIN_MAX) {
            return Err(Error::invalid("stdin is longer than 1 MiB"));
        }
        let timeout = duration("timeout", self.timeout.as_deref(), TIMEOUT_MAX)?.unwrap_or(TIMEOUT_DEFAULT);
        let wait = duration("wait", self.wait.as_deref(), WAIT_MAX)?;
        let command_id = self.command_id.as_deref().map(CommandId::parse).transpose();
        let cwd = self.cwd.as_deref().map(commands::inside).transpose()?.flatten();
        let env = self.env.unwrap_or_default();
        commands::check_environment(&env)?;
        let command = NewCommand {
            kind,
            program,
            cwd,
            env,
            timeout,
            stdin: self.stdin,
            command_id: command_id.map_err(|error| Error::invalid(error.to_string()))?,
            body_hash,
        };
        Ok(Asked { command, wait })
    }
}

fn rejected(error: words::WordsError) -> Error {
    match error.token() {
        Some(token) => Error::invalid(error.to_string()).code("COMMAND_REJECTED").detail("token", token),
        None => Error::invalid(error.to_string()),
    }
}

type Reply = Result<MaybeCreated<CommandView>>;

async fn shell(
    State(commands): State<Commands>,
    Caller(caller): Caller,
    InProject(project): InProject,
    once: Once,
    body: Body<ShellCommand>,
) -> Reply {
    let asked = body.value.parse(body.hash)?;
    run(&commands, &caller, &project, None, asked, once).await
}

async fn git(
    State(commands): State<Commands>,
    Caller(caller): Caller,
    InProject(project): InProject,
    once: Once,
    body: Body<GitCommand>,
) -> Reply {
    let args = body.value.args;
    git_args::check(&args).map_err(|error| match error.token() {
        Some(token) => Error::invalid(error.to_string()).code("COMMAND_REJECTED").detail("token", token),
        None => Error::invalid(error.to_string()),
    })?;
    let words = std::iter::once("git".to_owned()).chain(args).collect();
    let asked = body.value.common.parse(CommandKind::Git, Program::Args(words), body.hash)?;
    run(&commands, &caller, &project, None, asked, once).await
}

async fn claude(
    State(commands): State<Commands>,
    Caller(caller): Caller,
    InProject(project): InProject,
    once: Once,
    body: Body<AgentCommand>,
) -> Reply {
    let AgentCommand { prompt, args, common } = body.value;
    if prompt.is_empty() {
        return Err(Error::invalid("prompt is required"));
    }
    let agent =
        project.agent_command.clone().unwrap_or_else(|| ["claude", "-p", "{prompt}"].map(str::to_owned).to_vec());
    let argv =
        agent.into_iter().map(|word| word.replace("{prompt}", &prompt)).chain(args.unwrap_or_default()).collect();
    let asked = common.parse(CommandKind::Claude, Program::Args(argv), body.hash)?;
    run(&commands, &caller, &project, None, asked, once).await
}

/// Starts it, and waits for its end where that was asked for.
///
/// # Errors
/// Those of the service.
pub async fn run(
    commands: &Commands,
    caller: &Key,
    project: &Project,
    session: Option<&Session>,
    asked: Asked,
    once: Once,
) -> Reply {
    let answer = Answer::new(once.0, 201, &[], |command: &Command| json!(CommandView::of(command)));
    let started = commands.start(caller, project, session, asked.command, answer).await?;
    let (command, is_new) = match started {
        Started::New(command) => (command, true),
        Started::Before(command) => (command, false),
    };
    let command = match asked.wait {
        Some(wait) => commands.wait(command, wait).await?,
        None => command,
    };
    let view = CommandView::of(&command);
    Ok(if is_new { MaybeCreated::Created(view) } else { MaybeCreated::Found(view) })
}

#[derive(Deserialize, ToSchema)]
struct CommandQuery {
    /// `running`, `exited` or `lost`.
    status: Option<String>,
    session_id: Option<String>,
    #[serde(flatten)]
    page: PageQuery,
}

#[derive(Serialize, ToSchema)]
struct CommandList {
    commands: Vec<CommandView>,
}

async fn list(
    State(commands): State<Commands>,
    Caller(caller): Caller,
    InProject(project): InProject,
    Query(query): Query<CommandQuery>,
) -> Result<Paged<CommandList>> {
    let (before, limit) = query.page.parse()?;
    let session = query
        .session_id
        .as_deref()
        .filter(|text| !text.is_empty())
        .map(|text| ids::uuid_from_path(text).unwrap_or_default());
    let filter = Filter {
        status: one_of("status", query.status.as_deref())?,
        session,
        sessions_only: reads_sessions_alone(&caller),
    };
    let found = commands.page(&project.id, &filter, before, limit + 1).await?;
    let (found, next) = cut(found, limit, |command| command.seq);
    Ok(Paged { data: CommandList { commands: found.iter().map(CommandView::of).collect() }, next })
}

fn reads_sessions_alone(caller: &Key) -> bool {
    !caller.may(&[Scope::ProjectsRead])
}

/// The command, as far as the caller may see it: session scopes see those of sessions.
///
/// # Errors
/// "command not found".
pub async fn visible(commands: &Commands, caller: &Key, project: &Project, id: &str, whole: Scope) -> Result<Command> {
    let command = commands.get(&project.id, id).await?;
    if command.session_id.is_none() && !caller.may(&[whole]) {
        return Err(Error::not_found("command not found"));
    }
    Ok(command)
}

async fn get(
    State(commands): State<Commands>,
    Caller(caller): Caller,
    InProject(project): InProject,
    CommandRef(id): CommandRef,
) -> Result<Data<CommandView>> {
    let command = visible(&commands, &caller, &project, &id, Scope::ProjectsRead).await?;
    Ok(Data(CommandView::of(&command)))
}

async fn cancel(
    State(commands): State<Commands>,
    Caller(caller): Caller,
    InProject(project): InProject,
    CommandRef(id): CommandRef,
) -> Result<Data<CommandView>> {
    let command = visible(&commands, &caller, &project, &id, Scope::ProjectsExecute).await?;
    Ok(Data(CommandView::of(&commands.cancel(command, EndAsked::Cancelled).await?)))
}

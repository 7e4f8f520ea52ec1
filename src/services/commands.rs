//! Commands: recorded, then started. The row, its log, the task that follows it and the
//! answer to the client are one transaction, so what was answered runs, whoever dies.

mod asked;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use super::{
    following::{FOLLOW_TASK, Following},
    projects::{Projects, not_running, record_activity, stamp},
    receipts::Answer,
};
use crate::{
    database::{Conn, Db},
    domain::{
        clock::{Clock, later},
        command::{Command, CommandKind, CommandStatus, EndAsked, Launch},
        ids::CommandId,
        key::Key,
        project::{Project, ProjectStatus},
        session::{Session, SessionStatus},
    },
    error::{Error, Kind, Result},
    queue::{Claimed, Queue},
    runtime::{Handle, Place},
    store::{self, streams::Kind as Log},
    streams::{Streams, Unshown},
};

pub use self::asked::{TIMEOUT_DEFAULT, TIMEOUT_MAX, check_environment, check_program, inside};

/// A command that is to end is asked again so often.
const ASK_AGAIN: Duration = Duration::from_millis(500);

const ID_CONFLICT: &str = "COMMAND_ID_CONFLICT";

/// What is to run.
#[derive(Debug, Clone)]
pub enum Program {
    Args(Vec<String>),
    Script(String),
}

/// A command asked for.
pub struct NewCommand {
    pub kind: CommandKind,
    pub program: Program,
    /// Relative to the place it runs in.
    pub cwd: Option<String>,
    pub env: BTreeMap<String, String>,
    pub timeout: Duration,
    pub stdin: Option<String>,
    pub command_id: Option<CommandId>,
    pub body_hash: Vec<u8>,
}

/// Where a command runs.
#[derive(Clone, Copy)]
pub enum At<'a> {
    Workspace,
    Session(&'a Session),
    /// Another worktree in the project's place, and the branch that it is of.
    Worktree {
        path: &'a str,
        branch: &'a str,
    },
}

impl<'a> At<'a> {
    fn of(session: Option<&'a Session>) -> Self {
        session.map_or(Self::Workspace, Self::Session)
    }

    fn session(self) -> Option<&'a Session> {
        match self {
            Self::Session(session) => Some(session),
            Self::Workspace | Self::Worktree { .. } => None,
        }
    }

    fn root(self, project: &'a Project) -> &'a str {
        match self {
            Self::Workspace => &project.workspace,
            Self::Session(session) => &session.workspace,
            Self::Worktree { path, .. } => path,
        }
    }

    fn branch(self, project: &'a Project) -> &'a str {
        match self {
            Self::Workspace => &project.default_branch,
            Self::Session(session) => &session.branch,
            Self::Worktree { branch, .. } => branch,
        }
    }
}

/// Which commands a list shows.
pub struct Filter {
    pub status: Option<CommandStatus>,
    pub session: Option<Uuid>,
    /// For callers who may read sessions alone.
    pub sessions_only: bool,
}

/// Commands running at once; `0`: any number.
#[derive(Clone, Copy)]
pub struct Quotas {
    pub project: i64,
    pub session: i64,
}

/// A command that is new, or was there already under its id.
pub enum Started {
    New(Command),
    Before(Command),
}

#[derive(Clone)]
pub struct Commands {
    inner: Arc<Parts>,
}

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub runtime: Place,
    pub projects: Projects,
    pub following: Following,
    pub quotas: Quotas,
    pub kill_grace: Duration,
}

impl Commands {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    /// Starts a command in the project's workspace, or in a session's worktree.
    ///
    /// # Errors
    /// `PROJECT_NOT_RUNNING`, `SCRIPTS_DISABLED`, `COMMAND_ID_CONFLICT`, `QUOTA_EXCEEDED`, "session is not active",
    /// `GIT_MISSING`, and what keeps a pod from being a place.
    pub async fn start(
        &self,
        caller: &Key,
        project: &Project,
        session: Option<&Session>,
        new: NewCommand,
        answer: Answer<Command>,
    ) -> Result<Started> {
        self.start_at(caller.id, project, At::of(session), new, answer).await
    }

    /// As [`Commands::start`], in any place, for the key of this id.
    ///
    /// # Errors
    /// Likewise.
    pub async fn start_at(
        &self,
        by: Uuid,
        project: &Project,
        at: At<'_>,
        new: NewCommand,
        answer: Answer<Command>,
    ) -> Result<Started> {
        let session = at.session();
        if matches!(new.program, Program::Script(_)) && !project.allow_scripts {
            return Err(Error::new(
                Kind::Forbidden,
                "SCRIPTS_DISABLED",
                "scripts are switched off in this project; send args or command",
            ));
        }
        if let Some(found) = self.same_id(project, session, &new).await? {
            return Ok(Started::Before(found));
        }
        if project.status != ProjectStatus::Running {
            return Err(not_running());
        }
        let place = self.inner.runtime.place(&project.id)?;
        let has_git = self.inner.projects.make_ready(project).await?;
        if new.kind == CommandKind::Git && !has_git {
            return Err(git_missing());
        }
        self.check_cwd(project, at, &new).await?;
        let inserted = match self.insert(by, project, at, &new, place, &answer).await {
            // The same command was asked for at the same moment.
            Err(error) if error.stable_code() == ID_CONFLICT => match self.same_id(project, session, &new).await? {
                Some(found) => return Ok(Started::Before(found)),
                None => return Err(error),
            },
            inserted => inserted?,
        };
        let (command, task, launch, unshown) = inserted;
        self.inner.streams.show(unshown);
        self.inner.following.begin(command.clone(), task, Some(launch));
        Ok(Started::New(command))
    }

    /// Whether the project may start one more just now.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn has_room(&self, project: &str) -> Result<bool> {
        let most = self.inner.quotas.project;
        let (used, _) = store::commands::count_running(&mut self.inner.db.conn().await?, project, None).await?;
        Ok(most <= 0 || used < most)
    }

    async fn insert(
        &self,
        by: Uuid,
        project: &Project,
        at: At<'_>,
        new: &NewCommand,
        place: Option<String>,
        answer: &Answer<Command>,
    ) -> Result<(Command, Claimed, Launch, Unshown)> {
        let (inner, session) = (&self.inner, at.session());
        let now = inner.clock.now();
        let mut tx = inner.db.begin().await?;
        let parent = self.may_start(&mut tx, project, session).await?;
        let id = new.command_id.clone().unwrap_or_else(|| CommandId::generate(ulid::Ulid::generate()));
        let log = store::streams::insert(&mut tx, &project.id, Log::Command, id.as_str(), parent).await;
        let stream = log.map_err(|error| match error.constraint() {
            Some("stream_name") => id_conflict(),
            _ => error.into(),
        })?;
        let mut command = Self::record(by, project, session, new, &id, stream, now);
        let mut launch = Self::launch(project, at, new, &command, later(now, new.timeout));
        launch.place = place;
        command.seq = store::commands::insert(&mut tx, &command, &launch).await?;
        let task = inner.queue.insert_owned(&mut tx, FOLLOW_TASK, &stream.to_string()).await?;
        if let Some(session) = session {
            store::sessions::touch(&mut tx, session.id, now).await?;
        }
        answer.keep(&mut tx, &command).await?;
        let mut data =
            json!({"type": "command.started", "id": command.command_id, "at": stamp(&inner.clock), "actor": by});
        if let Some(session) = command.session_id {
            data["session_id"] = session.to_string().into();
        }
        let unshown = record_activity(&mut tx, &inner.streams, &project.id, &data).await?;
        tx.commit().await?;
        Ok((command, task, launch, unshown))
    }

    /// The project runs, the session is active, the quotas allow one more; all of that
    /// holds until the transaction ends. Answers the key of the session's log.
    async fn may_start(&self, tx: &mut Conn, project: &Project, session: Option<&Session>) -> Result<Option<i64>> {
        let locked =
            store::projects::lock(tx, &project.id).await?.ok_or_else(|| Error::not_found("project not found"))?;
        if locked.status != ProjectStatus::Running {
            return Err(not_running());
        }
        let mut parent = None;
        if let Some(session) = session {
            let held = store::sessions::hold(tx, &project.id, session.id).await?;
            let now = self.inner.clock.now();
            if held.is_none_or(|session| session.status != SessionStatus::Active || session.expires_at <= now) {
                return Err(Error::invalid("session is not active").reason("SESSION_NOT_ACTIVE"));
            }
            let log = store::streams::find(tx, &project.id, Log::Session, &session.id.to_string()).await?;
            parent = log.map(|log| log.owner.key);
        }
        let (used, in_session) = store::commands::count_running(tx, &project.id, session.map(|s| s.id)).await?;
        let Quotas { project: per_project, session: per_session } = self.inner.quotas;
        if per_project > 0 && used >= per_project {
            return Err(Error::quota("commands_per_project", used, per_project));
        }
        if session.is_some() && per_session > 0 && in_session >= per_session {
            return Err(Error::quota("commands_per_session", in_session, per_session));
        }
        Ok(parent)
    }

    fn record(
        by: Uuid,
        project: &Project,
        session: Option<&Session>,
        new: &NewCommand,
        id: &CommandId,
        stream: i64,
        now: chrono::DateTime<chrono::Utc>,
    ) -> Command {
        let args = match &new.program {
            Program::Args(args) => args.clone(),
            Program::Script(script) => vec!["sh".into(), "-c".into(), script.clone()],
        };
        Command {
            seq: 0,
            project_id: project.id.clone(),
            command_id: id.to_string(),
            session_id: session.map(|session| session.id),
            stream,
            kind: new.kind,
            args,
            cwd: new.cwd.clone(),
            status: CommandStatus::Running,
            exit_code: None,
            termination: None,
            signal: None,
            started_at: now,
            ended_at: None,
            created_by: by,
            body_hash: new.body_hash.clone(),
            out_bytes: 0,
            err_bytes: 0,
            last_n: 0,
            ended: false,
        }
    }

    fn launch(
        project: &Project,
        at: At<'_>,
        new: &NewCommand,
        command: &Command,
        deadline: chrono::DateTime<chrono::Utc>,
    ) -> Launch {
        let root = at.root(project);
        let mut env = new.env.clone();
        env.insert("RDEV_PROJECT_ID".into(), project.id.clone());
        env.insert("RDEV_COMMAND_ID".into(), command.command_id.clone());
        env.insert("RDEV_BRANCH".into(), at.branch(project).to_owned());
        if let Some(session) = at.session() {
            env.insert("RDEV_SESSION_ID".into(), session.id.to_string());
            env.entry("PORT".into()).or_insert_with(|| session.preview_port.to_string());
        }
        let cwd = match new.cwd.as_deref() {
            None | Some("" | ".") => root.to_owned(),
            Some(below) => format!("{root}/{below}"),
        };
        Launch { argv: command.args.clone(), env, cwd, stdin: new.stdin.clone(), deadline, place: None }
    }

    /// A symbolic link may lead where the path's words do not.
    async fn check_cwd(&self, project: &Project, at: At<'_>, new: &NewCommand) -> Result<()> {
        let root = at.root(project);
        match new.cwd.as_deref() {
            Some(cwd) if self.inner.runtime.leads_outside(&project.id, root, cwd).await? => {
                Err(Error::invalid("cwd must be a relative path inside the workspace"))
            }
            _ => Ok(()),
        }
    }

    /// A repeat of a command under the client's id.
    async fn same_id(&self, project: &Project, session: Option<&Session>, new: &NewCommand) -> Result<Option<Command>> {
        let Some(id) = &new.command_id else { return Ok(None) };
        let found = store::commands::find(&mut self.inner.db.conn().await?, &project.id, id.as_str()).await?;
        match found {
            Some(command) => {
                let same_place = command.kind == new.kind && command.session_id == session.map(|session| session.id);
                if same_place && command.body_hash == new.body_hash { Ok(Some(command)) } else { Err(id_conflict()) }
            }
            None => Ok(None),
        }
    }

    /// # Errors
    /// "command not found".
    pub async fn get(&self, project: &str, id: &str) -> Result<Command> {
        let found = store::commands::find(&mut self.inner.db.conn().await?, project, id).await?;
        found.ok_or_else(|| Error::not_found("command not found"))
    }

    /// # Errors
    /// Those of the database.
    pub async fn page(&self, project: &str, filter: &Filter, before: Option<i64>, limit: i64) -> Result<Vec<Command>> {
        let mut conn = self.inner.db.conn().await?;
        let Filter { status, session, sessions_only } = *filter;
        Ok(store::commands::page(&mut conn, project, status, session, sessions_only, before, limit).await?)
    }

    /// Asks for the end of a command and waits for it as long as its grace takes.
    ///
    /// # Errors
    /// Those of the database and of the runtime.
    pub async fn cancel(&self, command: Command, why: EndAsked) -> Result<Command> {
        if command.status != CommandStatus::Running {
            return Ok(command);
        }
        let deadline = tokio::time::Instant::now() + self.inner.kill_grace + Duration::from_secs(5);
        let mut command = command;
        while command.status == CommandStatus::Running && tokio::time::Instant::now() < deadline {
            // Again and again: it may have been just about to start.
            self.ask_end(&command.project_id, command.stream, &command.command_id, why).await?;
            command = self.wait(command, ASK_AGAIN).await?;
        }
        Ok(command)
    }

    async fn ask_end(&self, project: &str, stream: i64, command_id: &str, why: EndAsked) -> Result<()> {
        let mut conn = self.inner.db.conn().await?;
        let asked = store::commands::ask_end(&mut conn, stream, why.text()).await?;
        drop(conn);
        let Some((asked, place)) = asked else { return Ok(()) };
        let handle = Handle { project: project.to_owned(), command_id: command_id.to_owned(), key: stream, place };
        self.inner.runtime.end(&handle, EndAsked::parse(&asked)).await
    }

    /// Ends all that runs in a project, or in one session of it, and waits until it has.
    ///
    /// # Errors
    /// Unavailable when something is still running after its grace and some.
    pub async fn end_all(&self, project: &str, session: Option<Uuid>, why: EndAsked) -> Result<()> {
        let deadline = tokio::time::Instant::now() + self.inner.kill_grace + Duration::from_secs(15);
        loop {
            let mut conn = self.inner.db.conn().await?;
            let running = store::commands::running(&mut conn, project, session).await?;
            drop(conn);
            if running.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::unavailable("the end of running commands", format!("{} still run", running.len())));
            }
            for (stream, command_id) in &running {
                self.ask_end(project, *stream, command_id, why).await?;
            }
            let (stream, _) = running[0];
            self.sleep_or_ring(stream, Duration::from_millis(300)).await;
        }
    }

    /// Ends what a process follows, at its orderly stop, and waits until it has.
    ///
    /// # Errors
    /// Those of the database and of the runtime; unavailable when something still runs after its grace.
    pub async fn end_followed(&self, process: Uuid, why: EndAsked) -> Result<()> {
        let followed = store::commands::followed_by(&mut self.inner.db.conn().await?, process, FOLLOW_TASK).await?;
        let deadline = tokio::time::Instant::now() + self.inner.kill_grace + Duration::from_secs(5);
        let mut running = followed;
        while let Some((_, stream, _)) = running.first() {
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::unavailable("the end of running commands", format!("{} still run", running.len())));
            }
            for (project, stream, command_id) in &running {
                self.ask_end(project, *stream, command_id, why).await?;
            }
            self.sleep_or_ring(*stream, Duration::from_millis(200)).await;
            running = store::commands::followed_by(&mut self.inner.db.conn().await?, process, FOLLOW_TASK).await?;
        }
        Ok(())
    }

    /// Waits for the end of a command, at most so long; answers it as it then is.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn wait(&self, command: Command, at_most: Duration) -> Result<Command> {
        let deadline = tokio::time::Instant::now() + at_most;
        let mut command = command;
        while command.status == CommandStatus::Running {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                break;
            }
            self.sleep_or_ring(command.stream, left.min(Duration::from_millis(500))).await;
            command = self.get(&command.project_id, &command.command_id).await?;
        }
        Ok(command)
    }

    /// Until something is stored of the command here, or the time is up; never in a hurry.
    async fn sleep_or_ring(&self, stream: i64, at_most: Duration) {
        let live = self.inner.streams.hub.join(stream);
        let mut bell = live.listen();
        let _either = tokio::time::timeout(at_most, bell.changed()).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// The place's image has no git.
pub fn git_missing() -> Error {
    Error::new(Kind::Invalid, "GIT_MISSING", "the project's pod has no git; choose an image that has it")
}

fn id_conflict() -> Error {
    Error::conflict(ID_CONFLICT, "this command_id was used with another body; choose another one")
}

/// How long a command ran.
pub fn ran_for(command: &Command) -> Option<TimeDelta> {
    command.ended_at.map(|end| (end - command.started_at).max(TimeDelta::zero()))
}

//! `command.run`: a command in a project's workspace, as POST `/projects/{id}/shell` starts one. It
//! outlives the process that waits for it: whoever goes on with the step waits for the same one.

use std::{collections::BTreeMap, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};

use super::{ATTEMPTS, ended, excerpt, failed, insistently, noted, works::Works};
use crate::{
    domain::{
        command::{Command, CommandKind, CommandStatus, EndAsked, Termination},
        durations,
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
    },
    error::{Kind, Result},
    services::{
        commands::{self, Commands, NewCommand, Program, Started},
        output::{Output, Outputs},
        sagas::{Action, Attempt},
    },
};

/// Of each output.
const TAIL: usize = 16 << 10;
/// What an error shows of what the command said last.
const LINES: usize = 3;
const SHOWN: usize = 500;
/// A command that nobody tells the end of is looked at anyway; this only bounds one call.
const SLICE: Duration = Duration::from_hours(1);

pub struct CommandRun {
    pub commands: Commands,
    pub outputs: Outputs,
    pub works: Works,
}

struct Config {
    project: String,
    /// None where it is not known yet.
    program: Option<Program>,
    cwd: Option<String>,
    env: BTreeMap<String, String>,
    timeout: Duration,
}

impl Config {
    fn read(fields: &mut Fields<'_>) -> Self {
        let project = fields.project();
        let timeout = fields.duration("timeout").unwrap_or(commands::TIMEOUT_DEFAULT);
        if timeout > commands::TIMEOUT_MAX {
            fields.problem("timeout", &format!("must be at most {}", durations::format_short(commands::TIMEOUT_MAX)));
        }
        let cwd = fields.text("cwd").map(|cwd| commands::inside(&cwd)).transpose();
        let cwd = cwd.map_err(|error| fields.problem("cwd", error.message())).ok().flatten().flatten();
        let env = fields.text_map("env");
        if let Err(error) = commands::check_environment(&env) {
            fields.problem("env", error.message());
        }
        Self { project, program: program(fields), cwd, env, timeout }
    }
}

fn program(fields: &mut Fields<'_>) -> Option<Program> {
    fields.exactly_one(&["args", "script"]);
    let args = fields.texts("args").map(Program::Args);
    let script = fields.text("script").map(Program::Script);
    let (name, program) = match (args, script) {
        (Some(args), _) => ("args", args),
        (None, script) => ("script", script?),
    };
    if fields.is_open(name) {
        return None;
    }
    commands::check_program(&program).map_err(|error| fields.problem(name, error.message())).ok()?;
    Some(program)
}

impl CommandRun {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let config = attempt.read(Config::read)?;
        let found = self.begun(attempt, &config.project).await?;
        let command = match found {
            Some(command) => command,
            None => self.start(attempt, config).await?,
        };
        let command = self.end(command).await?;
        self.verdict(&command).await
    }

    /// The command of this attempt where it had one before its process died; or of an earlier one that
    /// still runs.
    async fn begun(&self, attempt: &Attempt, project: &str) -> Result<Option<Command>, Outcome> {
        let Some(noted) = noted(attempt) else { return Ok(None) };
        let Some(id) = noted.note["command_id"].as_str() else { return Ok(None) };
        match insistently(|| self.commands.get(project, id)).await {
            Ok(command) if noted.resumed || command.status == CommandStatus::Running => Ok(Some(command)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == Kind::NotFound && !noted.resumed => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    async fn start(&self, attempt: &Attempt, config: Config) -> Result<Command, Outcome> {
        let program = config.program.ok_or_else(|| Outcome::never("config must hold exactly one of args, script"))?;
        let (caller, project) = attempt.project(&config.project).await?;
        let new = NewCommand {
            kind: CommandKind::Shell,
            program,
            cwd: config.cwd,
            env: config.env,
            timeout: config.timeout,
            stdin: None,
            command_id: None,
            body_hash: Vec::new(),
        };
        let answer = attempt
            .answer(|command: &Command| json!({"command_id": command.command_id, "project_id": command.project_id}));
        let commands = self.commands.clone();
        let start = async move { commands.start(&caller, &project, None, new, answer).await };
        match self.works.through(attempt, start).await.map_err(failed)? {
            Started::New(command) | Started::Before(command) => Ok(command),
        }
    }

    /// The command when it has ended, however long that takes.
    async fn end(&self, mut command: Command) -> Result<Command, Outcome> {
        while command.status == CommandStatus::Running {
            let waited = insistently(|| self.commands.wait(command.clone(), SLICE)).await;
            command = waited.map_err(|error| match error.kind() {
                Kind::NotFound => Outcome::never("the command was removed before it ended"),
                _ => failed(error),
            })?;
        }
        Ok(command)
    }

    async fn verdict(&self, command: &Command) -> Result<Value, Outcome> {
        let stderr = self.tail(command, Output::Stderr).await?;
        if command.exit_code == Some(0) {
            let stdout = self.tail(command, Output::Stdout).await?;
            return Ok(json!({
                "command_id": command.command_id,
                "exit_code": 0,
                "stdout_tail": whole_characters(&stdout),
                "stderr_tail": whole_characters(&stderr),
            }));
        }
        let ending = insistently(|| self.outputs.ending(command)).await.map_err(failed)?;
        let told = ending.as_ref().and_then(|ending| ending["message"].as_str());
        let how = how(command, told);
        match command.termination {
            // Somebody wants it no more.
            Some(Termination::Cancelled) => Err(Outcome::never(how)),
            Some(Termination::ServerStopped) => Err(Outcome::CutOff(how)),
            _ if command.status == CommandStatus::Lost => Err(Outcome::CutOff(format!("the command was lost: {how}"))),
            _ => Err(Outcome::failed(with_last_lines(&how, &stderr))),
        }
    }

    async fn tail(&self, command: &Command, output: Output) -> Result<Vec<u8>, Outcome> {
        insistently(|| self.outputs.tail(command, output, TAIL)).await.map_err(failed)
    }

    /// Cancels what the attempt has started; if it was done in time after all, it was done.
    async fn cancel(&self, attempt: &Attempt, why: String) -> Outcome {
        self.works.settled(attempt).await;
        let ids = noted(attempt).and_then(|noted| {
            let id = |name: &str| noted.note[name].as_str().map(str::to_owned);
            Some((id("project_id")?, id("command_id")?))
        });
        let Some((project, id)) = ids else { return Outcome::CutOff(why) };
        let cancelled = async {
            let command = insistently(|| self.commands.get(&project, &id)).await?;
            insistently(|| self.commands.cancel(command.clone(), EndAsked::Cancelled)).await
        };
        match cancelled.await {
            Ok(command) if command.exit_code == Some(0) => {
                self.verdict(&command).await.map_or(Outcome::CutOff(why), Outcome::Done)
            }
            Ok(_) => Outcome::CutOff(why),
            Err(error) => {
                tracing::warn!(%error, command.id = id, "a command of a step that is given up was not cancelled");
                Outcome::CutOff(why)
            }
        }
    }
}

fn how(command: &Command, told: Option<&str>) -> String {
    match (command.termination, command.exit_code, &command.signal) {
        (Some(Termination::Exit), Some(code), _) => format!("exit code {code}"),
        (Some(Termination::Signal), _, Some(signal)) => format!("ended by {signal}"),
        (termination, ..) => match told {
            Some(message) => message.to_owned(),
            None => format!("the command ended: {}", termination.map_or("unknown", Termination::text)),
        },
    }
}

/// The last lines of what it said to stderr tell most.
fn with_last_lines(how: &str, stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(LINES).collect();
    let last: Vec<&str> = lines.into_iter().rev().collect();
    let shown = excerpt(last.join("\n").as_bytes(), SHOWN);
    if shown.is_empty() { how.to_owned() } else { format!("{how}: {shown}") }
}

/// Text from its first whole character on.
fn whole_characters(tail: &[u8]) -> std::borrow::Cow<'_, str> {
    let is_cut = tail.len() == TAIL;
    let broken = tail.iter().take(3).take_while(|byte| is_cut && **byte & 0b1100_0000 == 0b1000_0000).count();
    String::from_utf8_lossy(&tail[broken..])
}

impl Rules for CommandRun {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        true
    }

    fn idempotent(&self) -> bool {
        false
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        Config::read(fields);
    }
}

impl Action for CommandRun {
    fn name(&self) -> &'static str {
        "command.run"
    }

    fn nature(&self) -> Nature {
        Nature { idempotent: false, ..ATTEMPTS }
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::ProjectsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }

    fn cut<'a>(&'a self, attempt: &'a Attempt, why: String) -> BoxFuture<'a, Outcome> {
        self.cancel(attempt, why).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(config: Value) -> Result<Config, String> {
        super::super::read(config.as_object().expect("an object"), Config::read)
    }

    #[test]
    fn a_program_or_a_script_runs() {
        let read = config(json!({"project_id": "p", "args": ["make", ""], "cwd": "./a/../b"})).expect("it is in order");
        assert!(matches!(read.program, Some(Program::Args(args)) if args == ["make", ""]));
        assert_eq!((read.cwd.as_deref(), read.timeout), (Some("b"), commands::TIMEOUT_DEFAULT));
        let read = config(json!({"project_id": "p", "script": "make ${all}", "cwd": "."})).expect("it is in order");
        assert!(matches!(read.program, Some(Program::Script(script)) if script == "make ${all}"));
        assert_eq!(read.cwd, None);
    }

    #[test]
    fn what_cannot_run_is_told_with_its_path() {
        for (members, path) in [
            (json!({"args": ["true"]}), "config.project_id"),
            (json!({"project_id": "p"}), "config"),
            (json!({"project_id": "p", "args": ["true"], "script": "true"}), "config"),
            (json!({"project_id": "p", "args": []}), "config.args"),
            (json!({"project_id": "p", "args": [""]}), "config.args"),
            (json!({"project_id": "p", "script": " "}), "config.script"),
            (json!({"project_id": "p", "args": ["true"], "cwd": "/etc"}), "config.cwd"),
            (json!({"project_id": "p", "args": ["true"], "env": {"A=B": ""}}), "config.env"),
            (json!({"project_id": "p", "args": ["true"], "timeout": "25h"}), "config.timeout"),
        ] {
            let told = config(members.clone()).err().unwrap_or_default();
            assert!(told.starts_with(&format!("{path}: ")), "{members}: {told}");
        }
    }

    #[test]
    fn an_error_ends_with_what_the_command_said_last() {
        assert_eq!(with_last_lines("exit code 3", b""), "exit code 3");
        assert_eq!(with_last_lines("exit code 3", b"a\nb\n\nc\nd\n"), "exit code 3: b\nc\nd");
        assert!(with_last_lines("exit code 3", &[b'x'; TAIL]).len() < 600);
    }
}

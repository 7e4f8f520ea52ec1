//! A command as the reviewer: a real one, with output, in a worktree of the commit. Its id is noted
//! in the transaction that starts it, so it is started once and followed on by whoever comes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};

use super::{
    super::{
        commands::{At, NewCommand, Program, Started, TIMEOUT_MAX, check_program},
        output::Output,
        receipts::{Answer, Keep},
    },
    Reviewing,
    running::{LOOK, NO_ROOM, Outcome, is_stale},
};
use crate::{
    database::Conn,
    domain::{
        command::{Command, CommandKind, CommandStatus, EndAsked},
        review::{Review, Says, of_command},
    },
    error::{Error, Kind, Result},
    queue::{Claimed, Queue, stale},
    store,
};

/// Of an output, at its end, for the summary.
const TAIL: usize = 2000;

/// Notes the command in the transaction that starts it, which is one of this claim's and of this attempt.
struct Note {
    queue: Queue,
    task: Claimed,
    attempt: i64,
}

impl Keep for Note {
    fn keep<'a>(&'a self, tx: &'a mut Conn, shown: Value) -> BoxFuture<'a, Result<()>> {
        async move {
            self.queue.hold(tx, &self.task).await?;
            let id = shown.as_str().unwrap_or_default();
            let is_noted = store::reviews::set_command(tx, &self.task.subject, self.attempt, id).await?;
            if is_noted { Ok(()) } else { Err(stale()) }
        }
        .boxed()
    }
}

impl Reviewing {
    /// Runs the project's command, or follows on the one that runs.
    pub(super) async fn by_command(&self, task: &Claimed, review: &Review) -> Result<Outcome> {
        let parts = self.parts();
        let command = match &review.command_id {
            Some(id) => match parts.commands.get(&review.project_id, id).await {
                Err(error) if error.kind() == Kind::NotFound => {
                    return Ok(Outcome::never("the review command is gone"));
                }
                found => found?,
            },
            None => match self.start(task, review).await? {
                Ok(command) => command,
                Err(outcome) => return Ok(outcome),
            },
        };
        tokio::select! {
            () = self.is_given_up(review) => Ok(Outcome::GivenUp),
            ended = self.end_of(command) => self.verdict(&ended?).await,
        }
    }

    async fn start(&self, task: &Claimed, review: &Review) -> Result<Result<Command, Outcome>> {
        let parts = self.parts();
        let Some(project) = parts.projects.find(&review.project_id).await? else { return Ok(Err(Outcome::GivenUp)) };
        let program = Program::Args(review.command.clone());
        if let Err(error) = check_program(&program) {
            return Ok(Err(could_not(&error)));
        }
        parts.projects.make_ready(&project).await?;
        if !parts.queue.is_sure() {
            return Err(stale());
        }
        let (id, attempt) = (&review.id, review.attempt);
        let made = parts.workspaces.add_review(&project.id, id, attempt, &review.head_sha, &parts.site.local).await;
        if let Err(error) = made {
            tracing::warn!(%error, review.id, "a review has no worktree yet");
            return Ok(Err(Outcome::later("the commit could not be checked out in the project's place")));
        }
        let path = parts.workspaces.review_path(&project.id, id, attempt);
        let note = Note { queue: parts.queue.clone(), task: task.clone(), attempt };
        let answer = Answer::kept_by(Arc::new(note), |command: &Command| json!(command.command_id));
        let at = At::Worktree { path: &path, branch: &review.branch };
        let new = self.asked(review, program);
        match parts.commands.start_at(review.created_by, &project, at, new, answer).await {
            Ok(Started::New(command) | Started::Before(command)) => Ok(Ok(command)),
            Err(error) if error.kind() == Kind::Limited => Ok(Err(Outcome::Again(NO_ROOM))),
            Err(error) if is_stale(&error) => {
                // Nobody else looks for what this attempt has made after it was over.
                let removed = parts.workspaces.remove_review_of(&project.id, id, attempt).await;
                Err(removed.err().unwrap_or(error))
            }
            Err(error) if error.kind() == Kind::Unavailable || error.hidden_cause().is_some() => Err(error),
            Err(error) => Ok(Err(could_not(&error))),
        }
    }

    fn asked(&self, review: &Review, program: Program) -> NewCommand {
        let env = [
            ("RDEV_BASE", review.base.as_str()),
            ("RDEV_HEAD_SHA", &review.head_sha),
            ("RDEV_FEATURE_SLUG", review.feature_slug.as_deref().unwrap_or_default()),
        ];
        let env: BTreeMap<_, _> = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        NewCommand {
            kind: CommandKind::Shell,
            program,
            cwd: None,
            env,
            timeout: self.parts().timeout.min(TIMEOUT_MAX),
            stdin: None,
            command_id: None,
            body_hash: Vec::new(),
        }
    }

    /// The command when it has ended, however long that takes.
    async fn end_of(&self, mut command: Command) -> Result<Command> {
        while command.status == CommandStatus::Running {
            command = self.parts().commands.wait(command, LOOK).await?;
        }
        Ok(command)
    }

    async fn verdict(&self, command: &Command) -> Result<Outcome> {
        Ok(match of_command(command.termination, command.exit_code, command.signal.as_deref()) {
            Says::Passed => Outcome::Judged { passed: true, summary: self.last_words(command, Output::Stdout).await? },
            Says::Failed(code) => {
                let mut said = self.last_words(command, Output::Stderr).await?;
                if said.is_empty() {
                    said = self.last_words(command, Output::Stdout).await?;
                }
                let colon = if said.is_empty() { "" } else { ": " };
                Outcome::Judged { passed: false, summary: format!("exit code {code}{colon}{said}") }
            }
            Says::Nothing(why) => Outcome::never(self.explained(command, why).await?),
            Says::Again => Outcome::Again(Duration::ZERO),
        })
    }

    /// With what the end of its stream says beyond.
    async fn explained(&self, command: &Command, why: String) -> Result<String> {
        let ending = self.parts().outputs.ending(command).await?;
        let said = ending.as_ref().filter(|end| end["code"] == "EXEC_FAILED").and_then(|end| end["message"].as_str());
        Ok(said.map_or(why.clone(), |message| format!("{why}: {message}")))
    }

    async fn last_words(&self, command: &Command, output: Output) -> Result<String> {
        let tail = self.parts().outputs.tail(command, output, TAIL).await?;
        let text = String::from_utf8_lossy(&tail);
        // The first line is whole only where nothing came before.
        let text = match text.split_once('\n') {
            Some((_, rest)) if tail.len() == TAIL => rest,
            _ => &text,
        };
        Ok(text.trim().to_owned())
    }

    /// Ends the command of an attempt that is over, if it still runs.
    pub(super) async fn end_command(&self, review: &Review) -> Result<()> {
        let parts = self.parts();
        let now = store::reviews::find_any(&mut parts.core.conn().await?, &review.id).await?;
        let now = now.filter(|now| now.attempt == review.attempt);
        let Some(id) = now.and_then(|review| review.command_id) else { return Ok(()) };
        let command = match parts.commands.get(&review.project_id, &id).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            found => found?,
        };
        let command = parts.commands.cancel(command, EndAsked::Cancelled).await?;
        if command.status == CommandStatus::Running {
            return Err(Error::unavailable("the end of a review's command", "it still runs"));
        }
        Ok(())
    }
}

fn could_not(error: &Error) -> Outcome {
    Outcome::never(format!("the review command could not be started: {}", error.message()))
}

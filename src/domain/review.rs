//! A review: what a command or a model says of a branch that was checked in, and what becomes of
//! the branch then. The decisions are here and pure; `services/reviews` carries them out.

pub mod asking;

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::command::Termination;

/// Longest summary that is kept, in bytes.
pub const SUMMARY_MAX: usize = 8 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum ReviewStatus {
    Queued,
    Running,
    Passed,
    Failed,
    /// There is no verdict.
    Error,
}

/// What became of the merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Merge {
    None,
    Merged,
    /// The branch is no longer at the commit that was reviewed.
    Blocked,
    Conflict,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Review {
    /// A ULID, its job's too.
    pub id: String,
    pub project_id: String,
    pub checkout_id: Uuid,
    pub session_id: Option<Uuid>,
    pub created_by: Uuid,
    pub branch: String,
    pub base: String,
    pub head_sha: String,
    pub feature_slug: Option<String>,
    pub status: ReviewStatus,
    /// Raised whenever somebody begins it; whoever holds an older one writes nothing any more.
    pub attempt: i64,
    /// That it was begun is told.
    pub started: bool,
    /// A command or a worktree of an attempt may still be there.
    pub uncleared: bool,
    pub auto_merge: bool,
    pub merge: Merge,
    pub merge_candidate: Option<String>,
    /// Merges in a row that git could not carry out.
    pub merge_failures: i32,
    /// Why there is no merge, where that is nobody's decision.
    pub merge_error: Option<String>,
    pub merge_sha: Option<String>,
    /// Empty where a command reviews.
    pub model: String,
    pub command: Vec<String>,
    /// Where the review is queued, the command of an attempt before, which is to be gone first.
    pub command_id: Option<String>,
    pub summary: Option<String>,
    pub created_at: DateTime<Utc>,
    pub completed_at: Option<DateTime<Utc>>,
}

/// What a checkin says of the review.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Wish {
    pub skip: bool,
    pub auto_merge: bool,
}

/// Who reviews.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reviewer {
    Command(Vec<String>),
    Model(String),
}

impl Reviewer {
    /// The project's own command before the server's model.
    pub fn choose(command: Option<&[String]>, model: Option<&str>) -> Option<Self> {
        match (command.filter(|argv| !argv.is_empty()), model) {
            (Some(argv), _) => Some(Self::Command(argv.to_vec())),
            (None, model) => model.map(|name| Self::Model(name.to_owned())),
        }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Review,
    Merge,
    Over,
}

impl Review {
    pub fn stage(&self) -> Stage {
        match self.status {
            ReviewStatus::Queued | ReviewStatus::Running => Stage::Review,
            ReviewStatus::Passed if self.auto_merge && self.completed_at.is_none() => Stage::Merge,
            _ => Stage::Over,
        }
    }

    /// Ready to be done again: the review, or where it passed, the merge. `None` where there is nothing to retry.
    /// The command of the last attempt stays on record until it is gone, and so does a merge that may have been made.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        let fresh =
            Self { merge: Merge::None, merge_failures: 0, merge_error: None, completed_at: None, ..self.clone() };
        match (self.stage(), self.status, self.merge) {
            (Stage::Over, ReviewStatus::Failed | ReviewStatus::Error, _) => {
                Some(Self { status: ReviewStatus::Queued, started: false, summary: None, ..fresh })
            }
            (Stage::Over, ReviewStatus::Passed, Merge::Blocked | Merge::Conflict) => Some(fresh),
            _ => None,
        }
    }

    /// Begun, or gone on with after whoever began it: this attempt's from here on.
    #[must_use]
    pub fn begun(self) -> Self {
        let command_id = self.command_id.filter(|_| self.status == ReviewStatus::Running);
        let uncleared = self.uncleared || !self.command.is_empty();
        Self { status: ReviewStatus::Running, attempt: self.attempt + 1, started: true, uncleared, command_id, ..self }
    }

    /// Whether it is still the attempt that `mine` is of.
    pub fn is_attempt(&self, mine: &Self) -> bool {
        self.status == ReviewStatus::Running && self.attempt == mine.attempt
    }

    #[must_use]
    pub fn reviewed_by(self, reviewer: Reviewer) -> Self {
        let (model, command) = match reviewer {
            Reviewer::Command(argv) => (String::new(), argv),
            Reviewer::Model(name) => (name, Vec::new()),
        };
        Self { model, command, ..self }
    }

    /// After the verdict: complete unless a merge is still to come.
    #[must_use]
    pub fn judged(self, status: ReviewStatus, summary: Option<String>, now: DateTime<Utc>) -> Self {
        let merges = status == ReviewStatus::Passed && self.auto_merge;
        Self { status, summary: summary.map(|text| kept(&text)), completed_at: (!merges).then_some(now), ..self }
    }

    #[must_use]
    pub fn merged(self, merge: Merge, sha: Option<String>, now: DateTime<Utc>) -> Self {
        let merge_candidate = self.merge_candidate.filter(|_| merge != Merge::Merged);
        Self { merge, merge_sha: sha, merge_candidate, completed_at: Some(now), ..self }
    }

    /// What the reviewer said, and why nothing came of the merge.
    pub fn said(&self) -> Option<Cow<'_, str>> {
        match (&self.summary, &self.merge_error) {
            (Some(summary), Some(error)) => Some(format!("{summary}\n\n{error}").into()),
            (summary, error) => summary.as_deref().or(error.as_deref()).map(Cow::from),
        }
    }

    /// The command, as long as it is this attempt's.
    pub fn own_command(&self) -> Option<&str> {
        self.command_id.as_deref().filter(|_| self.status != ReviewStatus::Queued)
    }

    /// An event of it in the project's log.
    pub fn event(&self, kind: &str, at: &str, actor: Option<Uuid>) -> Value {
        let mut data =
            json!({"type": kind, "id": self.id, "at": at, "branch": self.branch, "checkout_id": self.checkout_id});
        if let Some(actor) = actor {
            data["actor"] = actor.to_string().into();
        }
        if matches!(self.status, ReviewStatus::Passed | ReviewStatus::Failed | ReviewStatus::Error) {
            data["status"] = json!(self.status);
            data["summary"] = json!(self.said());
        }
        if let Some(sha) = &self.merge_sha {
            data["merge_sha"] = sha.as_str().into();
        }
        data
    }
}

/// What the end of a review's command says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    Passed,
    Failed(i32),
    /// There is no verdict, and why.
    Nothing(String),
    /// The server was stopped with everything that ran: it is to run once more.
    Again,
}

/// Only a real exit code is a verdict.
pub fn of_command(termination: Option<Termination>, exit_code: Option<i32>, signal: Option<&str>) -> Says {
    match (termination, exit_code) {
        (Some(Termination::Exit), Some(0)) => Says::Passed,
        (Some(Termination::Exit), Some(code)) => Says::Failed(code),
        (Some(Termination::ServerStopped), _) => Says::Again,
        (Some(Termination::Signal), _) => {
            Says::Nothing(format!("the review command was ended by signal {}", signal.unwrap_or("unknown")))
        }
        (termination, _) => {
            let how = match termination {
                Some(Termination::StartFailed) => "could not be started",
                Some(Termination::Timeout) => "was ended at its timeout",
                Some(Termination::Cancelled) => "was cancelled",
                Some(Termination::OutputLimit) => "was ended because its output reached the limit",
                _ => "was lost",
            };
            Says::Nothing(format!("the review command {how}"))
        }
    }
}

/// How the branches stand when a review is to be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The branch is at the commit that was reviewed.
    pub unmoved: bool,
    /// The base has the commit that it was about to be moved to.
    pub has_candidate: bool,
    /// The base has the commit that was reviewed.
    pub has_head: bool,
    /// The commit that was reviewed has all of the base.
    pub forward: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeStep {
    /// Done before; at the candidate, or at the head itself.
    IsMerged {
        at_candidate: bool,
    },
    Blocked,
    FastForward,
    /// A commit of both is needed.
    Join,
}

/// What was merged before this was asked comes first: it may be the work of who died right after.
pub fn merge_step(now: Standing) -> MergeStep {
    match now {
        Standing { has_candidate: true, .. } => MergeStep::IsMerged { at_candidate: true },
        Standing { has_head: true, .. } => MergeStep::IsMerged { at_candidate: false },
        Standing { unmoved: false, .. } => MergeStep::Blocked,
        Standing { forward: true, .. } => MergeStep::FastForward,
        _ => MergeStep::Join,
    }
}

/// A text as a summary: not too long, and without what a database refuses.
pub fn kept(text: &str) -> String {
    let text = text.trim().replace('\0', "\u{fffd}");
    if text.len() <= SUMMARY_MAX {
        return text;
    }
    format!("{}…", &text[..text.floor_char_boundary(SUMMARY_MAX)])
}

#[cfg(test)]
mod tests;

//! A command: what was asked for, how it ended. An exit code is never made up.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum CommandStatus {
    Running,
    Exited,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum CommandKind {
    Shell,
    Git,
    Claude,
}

impl CommandKind {
    pub fn text(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Git => "git",
            Self::Claude => "claude",
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Termination {
    Exit,
    Signal,
    Timeout,
    Cancelled,
    SessionEnded,
    OutputLimit,
    StartFailed,
    ServerStopped,
    PodLost,
    SupervisorLost,
}

impl Termination {
    pub fn text(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::SessionEnded => "session_ended",
            Self::OutputLimit => "output_limit",
            Self::StartFailed => "start_failed",
            Self::ServerStopped => "server_stopped",
            Self::PodLost => "pod_lost",
            Self::SupervisorLost => "supervisor_lost",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_value(Value::from(text)).ok()
    }

    pub fn is_lost(self) -> bool {
        matches!(self, Self::PodLost | Self::SupervisorLost)
    }

    /// Code of the `error` event; `None` where the stream ends with `complete`.
    fn error_code(self) -> Option<&'static str> {
        Some(match self {
            Self::Exit | Self::Signal => return None,
            Self::Timeout => "TIMEOUT",
            Self::Cancelled => "CANCELLED",
            Self::SessionEnded => "SESSION_ENDED",
            Self::OutputLimit => "OUTPUT_LIMIT",
            Self::StartFailed => "EXEC_FAILED",
            Self::ServerStopped => "SERVER_STOPPED",
            Self::PodLost | Self::SupervisorLost => "STREAM_LOST",
        })
    }

    fn message(self) -> &'static str {
        match self {
            Self::Exit | Self::Signal => "",
            Self::Timeout => "the command was ended at its timeout",
            Self::Cancelled => "the command was cancelled",
            Self::SessionEnded => "the command was ended with its session",
            Self::OutputLimit => "the command was ended because its output reached the limit",
            Self::StartFailed => "the command could not be started",
            Self::ServerStopped => "the command was ended because the server was stopped",
            Self::PodLost => "the place where the command ran is gone",
            Self::SupervisorLost => "what watched over the command is gone; how it ended is not known",
        }
    }
}

/// Why a running command is to end, in the supervisor's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndAsked {
    Cancelled,
    SessionEnded,
    ServerStopped,
}

impl EndAsked {
    pub fn text(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::SessionEnded => "session_ended",
            Self::ServerStopped => "server_stopped",
        }
    }

    pub fn parse(text: &str) -> Self {
        match text {
            "session_ended" => Self::SessionEnded,
            "server_stopped" => Self::ServerStopped,
            _ => Self::Cancelled,
        }
    }
}

/// How a command ended, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub termination: Termination,
    pub exit_code: Option<i32>,
    pub signal: Option<String>,
    /// Why it could not be started.
    pub message: Option<String>,
    pub at: DateTime<Utc>,
}

impl Ended {
    pub fn without_code(termination: Termination, at: DateTime<Utc>) -> Self {
        Self { termination, exit_code: None, signal: None, message: None, at }
    }

    pub fn status(&self) -> CommandStatus {
        if self.termination.is_lost() { CommandStatus::Lost } else { CommandStatus::Exited }
    }

    /// The last event of the stream: its name and data.
    pub fn event(&self, started_at: DateTime<Utc>) -> (&'static str, Value) {
        let mut data = Map::new();
        let name = match self.termination.error_code() {
            None => "complete",
            Some(code) => {
                data.insert("code".into(), code.into());
                let message = self.message.as_deref().unwrap_or(self.termination.message());
                data.insert("message".into(), message.into());
                "error"
            }
        };
        data.insert("exit_code".into(), json!(self.exit_code));
        data.insert("duration_ms".into(), (self.at - started_at).num_milliseconds().max(0).into());
        data.insert("termination".into(), self.termination.text().into());
        if let Some(signal) = &self.signal {
            data.insert("signal".into(), signal.clone().into());
        }
        (name, Value::Object(data))
    }
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Command {
    pub seq: i64,
    pub project_id: String,
    pub command_id: String,
    pub session_id: Option<Uuid>,
    pub stream: i64,
    pub kind: CommandKind,
    pub args: Vec<String>,
    pub cwd: Option<String>,
    pub status: CommandStatus,
    pub exit_code: Option<i32>,
    pub termination: Option<Termination>,
    pub signal: Option<String>,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub created_by: Uuid,
    pub body_hash: Vec<u8>,
    pub out_bytes: i64,
    pub err_bytes: i64,
    pub last_n: i64,
    pub ended: bool,
}

impl Command {
    /// Events of its stream that carry output.
    pub fn output_events(&self) -> i64 {
        self.last_n - i64::from(self.ended)
    }
}

/// All that is needed to start a command, wherever that happens to be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    pub argv: Vec<String>,
    /// Set besides what every command gets.
    pub env: BTreeMap<String, String>,
    /// Absolute, inside the place.
    pub cwd: String,
    pub stdin: Option<String>,
    pub deadline: DateTime<Utc>,
    /// Where it is to run, and no other place; none where there is but one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

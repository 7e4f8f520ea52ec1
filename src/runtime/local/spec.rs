//! What one command is and how it ended: the words that the server, the supervisor and the sandbox share.
//!
//! A command's directory (mode 0700, never reachable from inside the sandbox) is the only thing that outlives both the
//! server and the supervisor, so its file names are here too. Nothing in this file starts or reads anything.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// File names in a command's directory.
pub mod file {
    /// The [`Spec`](super::Spec), written by the server, mode 0600.
    pub const SPEC: &str = "spec.json";
    /// What the command reads; without it, `/dev/null`.
    pub const STDIN: &str = "stdin";
    /// Locked (flock) by the supervisor for as long as it lives.
    pub const LOCK: &str = "lock";
    /// A fifo: one line `cancel <reason>` asks for the end.
    pub const CTL: &str = "ctl";
    /// Raw bytes of the command's stdout; it only grows.
    pub const OUT: &str = "out";
    /// Raw bytes of the command's stderr; it only grows.
    pub const ERR: &str = "err";
    /// The [`Exit`](super::Exit); appears whole, and last.
    pub const EXIT: &str = "exit.json";
    /// Which processes the supervisor started, for whoever has to clean up after it was killed.
    pub const PROCESSES: &str = "processes.json";
}

/// One command, as the server hands it to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub command_id: String,
    #[serde(flatten)]
    pub program: Program,
    /// Wall clock, milliseconds since 1970. Enforced by the supervisor alone.
    pub deadline_ms: u64,
    /// Between TERM and KILL.
    pub kill_grace_ms: u64,
    /// Bytes of both streams together; 0 is no limit.
    pub output_limit: u64,
}

/// A program and the place that it runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments; looked up on the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Absolute, and visible inside the sandbox.
    pub cwd: PathBuf,
    pub sandbox: Sandbox,
}

/// What a command may see and change. All paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    pub kind: Kind,
    /// Whom the command runs as, when the server is root. Never the database's user.
    pub user: Option<User>,
    /// Workspace, HOME and the like. None of them may lie in a place that a command can write to: it could put a
    /// symbolic link there.
    pub writable: Vec<PathBuf>,
    /// The project's own temporary directory: `/tmp` under bubblewrap, writable under its own name everywhere.
    pub tmp: Option<PathBuf>,
    /// Nothing in here can be seen but what `writable` and `readable` name.
    pub hidden: Vec<PathBuf>,
    /// Toolchains: read-only, also where they lie below something hidden or out of the user's reach.
    pub readable: Vec<PathBuf>,
}

/// How the command is kept in its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Namespaces of its own, by bubblewrap.
    Bwrap,
    /// An allow-list of paths, kept by the kernel.
    Landlock,
    /// Not isolated, apart from the user.
    #[default]
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// Outside the ranges that distributions give to people and to services.
    pub const SANDBOX: Self = Self { uid: 64001, gid: 64001 };
}

/// How a command ended. The content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the name that the API gives it")]
pub struct Exit {
    pub termination: Termination,
    /// Only what the kernel reported; `null` otherwise.
    pub exit_code: Option<i32>,
    /// `KILL`, without `SIG`.
    pub signal: Option<String>,
    /// For whoever asks why; always there for `start_failed`.
    pub message: Option<String>,
    pub started_at_ms: u64,
    pub ended_at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Termination {
    Exit,
    Signal,
    Timeout,
    Cancelled,
    SessionEnded,
    ServerStopped,
    OutputLimit,
    StartFailed,
}

/// Why somebody asks for a command's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Cancelled,
    SessionEnded,
    ServerStopped,
}

impl Reason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::SessionEnded => "session_ended",
            Self::ServerStopped => "server_stopped",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Cancelled, Self::SessionEnded, Self::ServerStopped].into_iter().find(|reason| reason.as_str() == text)
    }
}

impl From<Reason> for Termination {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Cancelled => Self::Cancelled,
            Reason::SessionEnded => Self::SessionEnded,
            Reason::ServerStopped => Self::ServerStopped,
        }
    }
}

impl Sandbox {
    /// What `TMPDIR` must say inside this sandbox.
    #[must_use]
    pub fn tmpdir(&self) -> &Path {
        match (self.kind, &self.tmp) {
            (Kind::Landlock | Kind::None, Some(tmp)) => tmp,
            _ => Path::new("/tmp"),
        }
    }
}

/// The wall clock, in the unit of [`Spec::deadline_ms`].
#[must_use]
pub fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_back_what_it_writes_and_nothing_else() {
        for reason in [Reason::Cancelled, Reason::SessionEnded, Reason::ServerStopped] {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
            let wire = serde_json::to_value(Termination::from(reason)).expect("json");
            assert_eq!(wire, reason.as_str());
        }
        assert_eq!(Reason::parse("timeout"), None);
    }

    #[test]
    fn a_spec_is_one_flat_object_and_reads_back() {
        let spec = Spec {
            command_id: "cmd-1".into(),
            program: Program {
                argv: vec!["true".into()],
                env: vec![("A".into(), "b=c".into())],
                cwd: "/".into(),
                sandbox: Sandbox { kind: Kind::Bwrap, user: Some(User::SANDBOX), ..Sandbox::default() },
            },
            deadline_ms: 1,
            kill_grace_ms: 2,
            output_limit: 0,
        };
        let json = serde_json::to_value(&spec).expect("json");
        assert_eq!(json["argv"][0], "true");
        assert_eq!(json["sandbox"]["kind"], "bwrap");
        assert_eq!(serde_json::from_value::<Spec>(json).expect("spec"), spec);
    }

    #[test]
    fn only_bubblewrap_puts_the_temporary_directory_at_tmp() {
        let mut sandbox = Sandbox { tmp: Some("/data/p/tmp".into()), ..Sandbox::default() };
        assert_eq!(sandbox.tmpdir(), Path::new("/data/p/tmp"));
        sandbox.kind = Kind::Bwrap;
        assert_eq!(sandbox.tmpdir(), Path::new("/tmp"));
    }
}

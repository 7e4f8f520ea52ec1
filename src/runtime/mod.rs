//! Where commands run. One trait, and the one choice of who implements it.
//!
//! A runtime gives each project a place: a workspace, a home, a folder for temporary
//! files. It runs short helpers there and starts commands under a supervisor that
//! outlives this server; what a command wrote is read from an offset, by any process, at
//! any time. It knows nothing of sessions, logs or the database.

pub mod local;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    domain::command::{EndAsked, Ended, Launch},
    error::Result,
};

/// The runtime that was chosen.
pub type Place = Arc<dyn Runtime>;

/// Paths as the place's commands see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Shown as `pod_name`.
    pub pod_name: String,
    /// The clone.
    pub workspace: String,
    /// Where worktrees of it go.
    pub sessions: String,
    pub home: String,
}

/// How far commands are kept from the rest of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// `bwrap`, `landlock`, `none`.
    pub kind: &'static str,
    pub isolated: bool,
    pub text: String,
}

/// A short helper, run to its end.
#[derive(Debug, Clone)]
pub struct Run {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub stdin: Vec<u8>,
    pub timeout: Duration,
}

/// What a helper said.
#[derive(Debug, Clone)]
pub struct RunOutput {
    /// `None` when it was killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Which command: the project it runs in, and the name of its files there.
#[derive(Debug, Clone)]
pub struct Handle {
    pub project: String,
    pub command_id: String,
    /// Unique over all projects.
    pub key: i64,
}

/// What a command did since it was last asked.
#[derive(Debug)]
pub enum Piece {
    Stdout(Bytes),
    Stderr(Bytes),
    /// All output was given before.
    Ended(Ended),
}

/// One reader of a command's outputs.
pub trait Follow: Send {
    /// The next piece; waits for it.
    fn next(&mut self) -> BoxFuture<'_, Result<Piece>>;
}

/// A stream of bytes to a program in a place, and back.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

pub trait Runtime: Send + Sync + 'static {
    fn isolation(&self) -> Isolation;

    fn paths(&self, project: &str) -> Paths;

    /// Makes the project's place, empty; keeps what is there.
    fn prepare<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Removes the project's place with everything in it.
    fn remove<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Runs a helper in the place, confined as a command is.
    fn run<'a>(&'a self, project: &'a str, run: Run) -> BoxFuture<'a, Result<RunOutput>>;

    /// Starts a command, or finds that it was started before: asking twice starts it once.
    fn launch<'a>(&'a self, handle: &'a Handle, launch: &'a Launch) -> BoxFuture<'a, Result<()>>;

    /// Reads on after so many bytes of each output.
    fn follow(&self, handle: &Handle, stdout: u64, stderr: u64) -> Result<Box<dyn Follow>>;

    /// Asks the supervisor for the command's end. No error when it has ended.
    fn end<'a>(&'a self, handle: &'a Handle, why: EndAsked) -> BoxFuture<'a, Result<()>>;

    /// Removes what is kept of a command whose end is stored.
    fn forget<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, ()>;

    /// Whether a path below `root`, links followed, is outside of it. One that is not there is not.
    fn leads_outside(&self, root: &str, below: &str) -> bool;

    /// Keys of the commands of which something is kept.
    fn kept(&self) -> BoxFuture<'_, Result<Vec<i64>>>;

    /// Removes what is kept of commands that ended without having been forgotten.
    fn sweep(&self, over: Vec<i64>) -> BoxFuture<'_, Result<()>>;

    /// Connects to what listens on a port of the place; `None` where nothing does.
    fn connect<'a>(&'a self, project: &'a str, port: u16) -> BoxFuture<'a, Result<Option<Box<dyn Wire>>>>;

    /// Free ports for previews are looked for here.
    fn shares_ports(&self) -> bool;
}

/// What the local runtime needs to know of the machine.
pub struct LocalOptions {
    pub data_dir: crate::data_dir::DataDir,
    pub exe: PathBuf,
    pub sandbox: crate::config::SandboxChoice,
    pub path: String,
    pub home: Option<PathBuf>,
    pub command_env: Vec<(String, String)>,
    pub kill_grace: Duration,
    pub output_limit: u64,
}

/// The one choice of a runtime.
///
/// # Errors
/// A sentence: what is missing for the runtime asked for.
pub fn open(options: LocalOptions) -> std::result::Result<Place, String> {
    Ok(Arc::new(local::Local::open(options)?))
}

//! Where commands run. One trait, and the one choice of who implements it.
//!
//! A runtime gives each project a place: a workspace, a home, a folder for temporary
//! files. It runs short helpers there and starts commands under a supervisor that
//! outlives this server; what a command wrote is read from an offset, by any process, at
//! any time. It knows nothing of sessions, logs or the database.

pub mod kube;
pub mod local;
pub mod objects;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    domain::{
        breaker::Snapshot,
        command::{EndAsked, Ended, Launch},
        project::ProjectStatus,
    },
    error::{Error, Result},
};

use self::{
    kube::{Keeping, KubeOptions},
    objects::Objects,
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
    /// The workspace's folder is there before and after its clone, and may hold what is not ours.
    pub fixed: bool,
}

/// What the surroundings show of projects, where they are found by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// All of it was looked at once: what is not in here is not there.
    pub complete: bool,
    /// Why some of it may be old.
    pub trouble: Option<String>,
    pub projects: BTreeMap<String, Sight>,
}

/// What there is of one project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    pub pod: Option<SeenPod>,
    /// Ids of all that could be its place.
    pub pods: BTreeSet<String>,
    pub config: Vec<ConfigText>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPod {
    pub name: String,
    pub uid: String,
    /// While it runs; another one after each restart.
    pub container: Option<String>,
    pub status: ProjectStatus,
    pub workspace: String,
    pub description: Option<String>,
    /// Its label says that it is ours.
    pub managed: bool,
    /// A Deployment of ours made it, for a project that is known already.
    pub made: bool,
    /// Why it does not run, where the cluster says so.
    pub trouble: Option<String>,
}

/// Settings of a project, as somebody wrote them down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigText {
    pub name: String,
    pub data: BTreeMap<String, String>,
}

/// How far commands are kept from the rest of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// `bwrap`, `landlock`, `pod`, `none`.
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
    /// Where it began, as [`Runtime::place`] said then.
    pub place: Option<String>,
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
    fn name(&self) -> &'static str;

    fn isolation(&self) -> Isolation;

    fn paths(&self, project: &str) -> Paths;

    /// Where a command that is recorded now is to run, and no other place; `None` where there is but one.
    ///
    /// # Errors
    /// "project pod is not running".
    fn place(&self, project: &str) -> Result<Option<String>>;

    /// Projects that are found by themselves; `None` where there are none such.
    fn seen(&self) -> Option<tokio::sync::watch::Receiver<Arc<Seen>>>;

    /// What there is of a project this moment: its pods as the surroundings themselves say, not as they were seen
    /// last. Settings are as they were seen last.
    ///
    /// # Errors
    /// Those of the cluster.
    fn look<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<Sight>>;

    /// Makes the project's place, empty; keeps what is there.
    fn prepare<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Whether there is git in the place.
    fn has_git<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<bool>>;

    /// Removes the project's place with everything in it.
    fn remove<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Runs a helper in the place, confined as a command is.
    fn run<'a>(&'a self, project: &'a str, run: Run) -> BoxFuture<'a, Result<RunOutput>>;

    /// Starts a command, or finds that it was started before: asking twice starts it once.
    ///
    /// # Errors
    /// Unavailable where it is not known whether it was started: ask again. Gone where its place is;
    /// a timeout where its time was up before it began. By any other it was not started and never is.
    fn launch<'a>(&'a self, handle: &'a Handle, launch: &'a Launch) -> BoxFuture<'a, Result<()>>;

    /// Reads on after so many bytes of each output.
    fn follow(&self, handle: &Handle, stdout: u64, stderr: u64) -> Result<Box<dyn Follow>>;

    /// Asks the supervisor for the command's end. No error when it has ended.
    fn end<'a>(&'a self, handle: &'a Handle, why: EndAsked) -> BoxFuture<'a, Result<()>>;

    /// Removes what is kept of a command whose end is stored.
    fn forget<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, ()>;

    /// Whether a path below `root`, links followed, is outside of it. One that is not there is not.
    fn leads_outside<'a>(&'a self, project: &'a str, root: &'a str, below: &'a str) -> BoxFuture<'a, Result<bool>>;

    /// Keys of the commands of which something is kept.
    fn kept(&self) -> BoxFuture<'_, Result<Vec<i64>>>;

    /// Removes what is kept of commands that ended without having been forgotten.
    fn sweep(&self, over: Vec<i64>) -> BoxFuture<'_, Result<()>>;

    /// Connects to what listens on a port of the place; `None` where nothing does.
    fn connect<'a>(&'a self, project: &'a str, port: u16) -> BoxFuture<'a, Result<Option<Box<dyn Wire>>>>;

    /// Free ports for previews are looked for here.
    fn shares_ports(&self) -> bool;

    /// The breaker of a cluster that may be away.
    fn circuit(&self) -> Option<(String, Snapshot)>;

    /// Objects of a cluster; `None` where there is no cluster.
    fn objects(&self) -> Option<Objects>;
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

/// Which runtime, and what it is made with.
pub enum Choice {
    Local(LocalOptions),
    Kubernetes(KubeOptions),
}

/// The one choice of a runtime, and what keeps it current.
///
/// # Errors
/// A sentence: what is missing for the runtime asked for.
pub async fn open(choice: Choice) -> std::result::Result<(Place, Option<Keeping>), String> {
    match choice {
        Choice::Local(options) => {
            let local = local::Local::open(options).map_err(|error| format!("RDEV_LOCAL_SANDBOX: {error}"))?;
            Ok((Arc::new(local), None))
        }
        Choice::Kubernetes(options) => {
            let (kube, keeping) = kube::Kube::open(options).await?;
            Ok((Arc::new(kube), Some(keeping)))
        }
    }
}

/// No place for commands is there now.
pub fn not_running() -> Error {
    Error::invalid("project pod is not running").reason("PROJECT_NOT_RUNNING")
}

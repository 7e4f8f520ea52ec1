//! The embedded git host: bare repositories in one folder, made, read and served by
//! the git command. A repository appears by one rename of a finished folder and goes
//! away by one, so that nobody ever sees half of one. Several servers may share the
//! folder.
//!
//! Who may do what is not decided here: [`EmbeddedHost::serve`] is told what was
//! granted, and each ref of a push is put to the [`PushCheck`] of the server.
//!
//! ```text
//! <root>/<project>.git   the repositories
//! <root>/hooks/update    asks the server about each ref of a push
//! <root>/run/            sockets the hook asks by; one lock for each owner of pushes
//! <root>/tmp/            repositories on their way in or out
//! ```

mod branches;
mod cgi;
pub mod git_path;
pub mod hook;
mod import;
mod in_flight;
mod leftovers;
mod merging;
mod scratch;
mod smart_http;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

pub use self::{
    branches::{Branch, BranchError},
    git_path::{GitPath, GitPathError},
    hook::{PushCheck, PushContext, PushRequest, hook_main},
    import::{Import, ImportError},
    merging::Move,
    smart_http::Grant,
};
use self::{hook::HookServer, in_flight::InFlight, scratch::Scratch};
use super::git::{Git, GitError, Run};

/// Clones, fetches and pushes that run at once; more of them wait, then get a 503.
const SERVED_AT_ONCE: usize = 64;
const MAINTENANCE_DEADLINE: Duration = Duration::from_hours(1);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct EmbeddedHost(Arc<Inner>);

struct Inner {
    root: PathBuf,
    git: Git,
    hook: HookServer,
    in_flight: Arc<InFlight>,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl EmbeddedHost {
    /// Opens the folder `root`, makes it where it is missing, and starts to answer the
    /// hook. `exe` is this program: the hook runs it as `<exe> git-hook`.
    pub async fn open(root: PathBuf, exe: PathBuf) -> Result<Self, GitError> {
        let git = Git::find().await?;
        let root = prepare(&root)
            .map_err(|error| GitError::Io { what: format!("the git folder {}", root.display()), error })?;
        let tasks = TaskTracker::new();
        let in_flight = Arc::new(InFlight::new(root.join("run")));
        let hook = HookServer::start(&root, exe, in_flight.clone(), &tasks)?;
        scratch::sweep(&root.join("tmp"));
        let places = Arc::new(Semaphore::new(SERVED_AT_ONCE));
        Ok(Self(Arc::new(Inner { root, git, hook, in_flight, places, tasks })))
    }

    /// Registers who decides about each ref of a push. Until then every push is refused.
    pub fn on_push(&self, check: PushCheck) {
        self.0.hook.set_check(check);
    }

    /// A bare repository with one commit, which holds `readme`, on `default_branch`.
    pub async fn create(&self, project: &str, default_branch: &str, readme: &str) -> Result<(), GitError> {
        let place = self.place(project)?;
        let scratch = Scratch::new(&self.0.root.join("tmp"))?;
        self.init(scratch.path(), default_branch, "sha1").await?;
        self.first_commit(scratch.path(), default_branch, readme).await?;
        scratch.publish(&place)
    }

    /// A bare repository without any branch.
    pub async fn create_empty(&self, project: &str) -> Result<(), GitError> {
        let place = self.place(project)?;
        let scratch = Scratch::new(&self.0.root.join("tmp"))?;
        self.init(scratch.path(), "main", "sha1").await?;
        scratch.publish(&place)
    }

    /// Ends what is being served of the repository and removes it. One that is not there is fine.
    pub async fn remove(&self, project: &str) -> Result<(), GitError> {
        let place = self.place(project)?;
        let grave = Scratch::new(&self.0.root.join("tmp"))?.bury(&place)?;
        self.0.in_flight.end(|running| running.project == project).await;
        match tokio::task::spawn_blocking(move || grave.remove()).await {
            Ok(result) => result,
            Err(error) => Err(io_error("removing a repository", io::Error::other(error))),
        }
    }

    pub async fn exists(&self, project: &str) -> bool {
        match self.place(project) {
            Ok(place) => tokio::fs::try_exists(place.join("HEAD")).await.unwrap_or(false),
            Err(_) => false,
        }
    }

    /// Packs what pushes have left behind when there is enough of it. To be called by the
    /// clock; a second call at the same time, by any server, does nothing.
    pub async fn maintain(&self, project: &str) -> Result<(), GitError> {
        self.tidy(project).await;
        let gc = self.run(project)?.config("gc.auto", "2000").args(["gc", "--auto", "--quiet"]);
        gc.deadline(MAINTENANCE_DEADLINE).ok().await.map(drop)
    }

    /// Ends the pushes under way that `owner` (the checkout's or the key's id) began, here
    /// and in every server on this folder, so that none moves a ref after this returns. To
    /// be called when the credential is dead in the database already. Pushes here are
    /// ended; elsewhere, one that was allowed a moment ago is waited for, and the others
    /// fail when they ask.
    pub async fn end_pushes(&self, owner: Uuid) -> Result<(), GitError> {
        self.0.in_flight.end(|running| running.owner() == Some(owner)).await;
        self.0.in_flight.wait_for_allowed(owner).await
    }

    /// Ends everything that is being served and stops answering the hook.
    pub async fn close(&self) {
        self.0.places.close();
        self.0.in_flight.end(|_| true).await;
        self.0.hook.stop();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// A run of git in the project's repository, for what services do with branches
    /// beyond the methods here (diffs, merges).
    pub fn run(&self, project: &str) -> Result<Run, GitError> {
        let place = self.place(project)?;
        if !place.join("HEAD").exists() {
            return Err(GitError::NotFound(format!("the repository of {project}")));
        }
        Ok(self.0.git.at(&place))
    }

    /// Where the repository is. The name becomes a path only when it is a project id.
    fn place(&self, project: &str) -> Result<PathBuf, GitError> {
        if !is_project_id(project) {
            return Err(GitError::NotFound(format!("the repository of {project:?}")));
        }
        Ok(self.0.root.join(format!("{project}.git")))
    }

    /// Removes what gits that were ended have left in the repository, unless one is at work.
    async fn tidy(&self, project: &str) {
        if let Ok(place) = self.place(project) {
            self.0.in_flight.undisturbed(project, move || leftovers::remove(&place)).await;
        }
    }

    async fn init(&self, dir: &Path, branch: &str, format: &str) -> Result<(), GitError> {
        let branch = format!("--initial-branch={branch}");
        let format = format!("--object-format={format}");
        let args = ["init", "--quiet", "--bare", "--template=", &branch, &format];
        self.0.git.at(dir).args(args).ok().await.map(drop)
    }

    async fn first_commit(&self, dir: &Path, branch: &str, readme: &str) -> Result<(), GitError> {
        let message = "Initial commit\n";
        let stream = format!(
            "feature done\ncommit refs/heads/{branch}\ncommitter rdev <rdev@localhost> now\n\
             data {}\n{message}M 100644 inline README.md\ndata {}\n{readme}\ndone\n",
            message.len(),
            readme.len(),
        );
        let args = ["fast-import", "--quiet", "--date-format=now", "--done"];
        self.0.git.at(dir).args(args).stdin(stream).ok().await.map(drop)
    }
}

/// The same rule as the API's: it keeps every name inside the root.
fn is_project_id(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn prepare(root: &Path) -> io::Result<PathBuf> {
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    for dir in ["hooks", "run", "tmp"] {
        private.create(root.join(dir))?;
    }
    for dir in [root.to_owned(), root.join("run")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    root.canonicalize()
}

fn io_error(what: impl Into<String>, error: io::Error) -> GitError {
    GitError::Io { what: what.into(), error }
}

#[cfg(test)]
mod tests;

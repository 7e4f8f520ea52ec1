//! Projects: made whole or not at all. A creation is a task: a process that dies in the
//! middle of one leaves it to another, which undoes it.

mod deployed;
mod first_need;
mod found;
mod spare;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::json;

use super::{receipts::Answer, workspaces::Workspaces};
use crate::{
    database::{Conn, Db},
    domain::{
        branch::{BranchName, Protected},
        clock::Clock,
        discovered::Memory,
        key::Key,
        pipeline::imported_from,
        project::{Placed, Project, ProjectSettings, ProjectStatus},
    },
    error::{Error, Kind, Result},
    forge::{Credential, Forge, GitError, Import, ImportError},
    queue::{Claimed, Queue},
    store::{self, streams::Kind as Log},
    streams::{Streams, Unshown},
};

/// Leaves time for the clone into the place within the request's deadline.
const IMPORT_LIMIT: Duration = Duration::from_secs(100);

/// Pause before an undo that failed is tried again.
const UNDO_AGAIN: Duration = Duration::from_secs(2);

pub const CREATE_TASK: &str = "project.create";

pub const DELETE_TASK: &str = "project.delete";

pub use self::deployed::{PodDefaults, Undeployed, busy, shown};

/// A project asked for.
pub struct NewProject {
    pub id: String,
    pub settings: ProjectSettings,
    pub default_branch: Option<BranchName>,
    pub import_url: Option<String>,
    /// The image is what the client wants, not the default.
    pub image_is_asked: bool,
}

/// Where this server is reached.
#[derive(Clone, Debug)]
pub struct Site {
    /// By clients: base of preview and artifact URLs.
    pub public: String,
    /// Base of the URLs that clients clone from: the same, or another git host.
    pub clone: String,
    /// Base of the URLs that git in the places is given.
    pub local: String,
}

#[derive(Clone)]
pub struct Projects {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    ready: ProjectsReady,
    /// Spare worktrees are made one at a time.
    spares: tokio::sync::Semaphore,
}

impl std::ops::Deref for Inner {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// Places that this process knows to hold a workspace.
#[derive(Default)]
struct ProjectsReady(Mutex<HashMap<String, Ready>>);

#[derive(Default)]
struct Ready {
    /// The place, and whether there is git in it.
    made: Option<(String, bool)>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl ProjectsReady {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Ready>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub forge: Forge,
    pub workspaces: Workspaces,
    pub site: Site,
    pub import_root: Option<PathBuf>,
    pub pods: PodDefaults,
}

impl Projects {
    pub fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner { parts, ready: ProjectsReady::default(), spares: tokio::sync::Semaphore::new(1) }),
        }
    }

    /// # Errors
    /// Those of the database.
    pub async fn find(&self, id: &str) -> Result<Option<Project>> {
        Ok(store::projects::find(&mut self.inner.db.conn().await?, id).await?)
    }

    /// What went wrong in a project; where that is gone meanwhile, or going, it is this.
    pub async fn unless_gone(&self, id: &str, error: Error) -> Error {
        if error.kind() != Kind::Internal {
            return error;
        }
        match self.find(id).await {
            Ok(None) => Error::not_found("project not found"),
            Ok(Some(project)) if project.status != ProjectStatus::Running => not_running(),
            _ => error,
        }
    }

    /// The page of projects that the key may see.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn page(&self, caller: &Key, before: Option<i64>, limit: i64) -> Result<Vec<Project>> {
        let only = caller.project_ids.as_deref();
        Ok(store::projects::page(&mut self.inner.db.conn().await?, only, before, limit).await?)
    }

    /// # Errors
    /// `PROJECT_EXISTS`, `IMPORT_FAILED`, 400 for a default branch that the source lacks, those of a cluster.
    pub async fn create(&self, caller: &Key, mut new: NewProject, answer: Answer<Project>) -> Result<Project> {
        let asked = new.settings.image.take();
        new.settings.image = self.image_for(asked.as_ref());
        new.image_is_asked = asked.is_some();
        let mut memory = Memory::default();
        memory.set_by_hand(&new.settings);
        self.create_as("api", Some(caller), new, &memory, answer).await
    }

    async fn create_as(
        &self,
        source: &str,
        caller: Option<&Key>,
        new: NewProject,
        memory: &Memory,
        answer: Answer<Project>,
    ) -> Result<Project> {
        Protected::new("", new.settings.protected_branches.as_deref().unwrap_or_default()).map_err(bad_pattern)?;
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin().await?;
        let exists = |error: crate::database::DbError| match error.constraint() {
            Some("project_pkey") => Error::conflict("PROJECT_EXISTS", format!("a project {} exists already", new.id)),
            _ => error.into(),
        };
        if self.finds_projects() {
            store::gc::hold_project(&mut tx, &new.id).await?;
            if !store::gc::adopt(&mut tx, &new.id).await? {
                let message =
                    "what was left of an earlier project of this id is being removed just now, try again shortly";
                return Err(Error::conflict("PROJECT_BUSY", message).retry_after(UNDO_AGAIN));
            }
        }
        store::projects::insert(&mut tx, &new.id, source, &new.settings, now).await.map_err(exists)?;
        if self.finds_projects() {
            store::discovered::put(&mut tx, &new.id, memory).await?;
        }
        if let Some(name) = new.import_url.as_deref().and_then(imported_from) {
            store::imports::put(&mut tx, &new.id, &name).await?;
        }
        store::streams::insert(&mut tx, &new.id, Log::Project, &new.id, None).await?;
        let task = self.inner.queue.insert_owned(&mut tx, CREATE_TASK, &new.id).await?;
        tx.commit().await?;
        match self.carry_out(caller, &new, &task, &answer).await {
            Ok(project) => Ok(project),
            Err(error) => {
                self.undo(&task).await;
                Err(error)
            }
        }
    }

    async fn carry_out(
        &self,
        caller: Option<&Key>,
        new: &NewProject,
        task: &Claimed,
        answer: &Answer<Project>,
    ) -> Result<Project> {
        let inner = &self.inner;
        let branch = self.make_repository(new).await?;
        let (placed, is_large) = self.place(new, &branch).await?;
        let now = inner.clock.now();
        let mut tx = inner.db.begin().await?;
        inner.queue.finish(&mut tx, task).await?;
        let project = store::projects::mark_placed(&mut tx, &new.id, &branch, &placed, now).await?;
        let project = project.ok_or_else(crate::queue::stale)?;
        answer.keep(&mut tx, &project).await?;
        let unshown = self.activity(&mut tx, &new.id, "project.created", &new.id, caller).await?;
        if is_large {
            self.want_spare(&mut tx, &new.id).await?;
        }
        tx.commit().await?;
        if is_large {
            self.wake_spare(&new.id);
        }
        inner.streams.show(unshown);
        Ok(project)
    }

    /// Makes the place where that is ours to do; elsewhere the project waits for one, or finds it.
    /// Answers also whether a spare worktree saves time there.
    async fn place(&self, new: &NewProject, branch: &str) -> Result<(Placed, bool)> {
        let (inner, id) = (&self.inner, new.id.as_str());
        let runtime = inner.workspaces.runtime();
        if let Some(seen) = runtime.seen() {
            let sight = seen.borrow().projects.get(id).and_then(|sight| sight.pod.clone());
            if let Some(image) = &new.settings.image {
                match self.deploy_new(id, image, new.image_is_asked, sight.as_ref()).await? {
                    Some(placed) => return Ok((placed, false)),
                    None => store::projects::forget_image(&mut inner.db.conn().await?, id).await?,
                }
            }
            let workspace = runtime.paths(id).workspace;
            return Ok((found::placed(sight.as_ref(), workspace), false));
        }
        let Credential { token, kept } = inner.forge.reader(id).await?;
        if let Some(hash) = kept.hash() {
            store::projects::set_read_token(&mut inner.db.conn().await?, id, hash).await?;
        }
        let is_large = inner.workspaces.provision(id, branch, &inner.site.local, token.expose()).await?;
        let paths = runtime.paths(id);
        let placed = Placed {
            status: ProjectStatus::Running,
            pod: paths.pod_name,
            workspace: paths.workspace,
            address: inner.site.local.clone(),
        };
        Ok((placed, is_large))
    }

    /// On a host that is shared with others, what was there before is neither taken nor removed.
    async fn make_repository(&self, new: &NewProject) -> Result<String> {
        let forge = &self.inner.forge;
        if forge.is_taken(&new.id).await? {
            return Err(repository_exists(&new.id));
        }
        store::projects::mark_repository(&mut self.inner.db.conn().await?, &new.id, true).await?;
        let made = self.fill_repository(new).await;
        if matches!(&made, Err(error) if error.stable_code() == REPOSITORY_EXISTS) {
            store::projects::mark_repository(&mut self.inner.db.conn().await?, &new.id, false).await?;
        }
        let branch = made?;
        let given = new.settings.protected_branches.as_deref().unwrap_or_default();
        let patterns: Vec<&str> = std::iter::once(branch.as_str()).chain(given.iter().map(String::as_str)).collect();
        forge.protect(&new.id, &patterns, &[]).await?;
        Ok(branch)
    }

    async fn fill_repository(&self, new: &NewProject) -> Result<String> {
        let forge = &self.inner.forge;
        let wanted = new.default_branch.as_ref().map(BranchName::as_str);
        let title = new.settings.name.as_deref().unwrap_or(&new.id);
        let readme = format!("# {title}\n\n{}\n", new.settings.description.as_deref().unwrap_or(""));
        match &new.import_url {
            Some(url) => {
                let import = Import {
                    url,
                    default_branch: wanted,
                    import_root: self.inner.import_root.as_deref(),
                    deadline: IMPORT_LIMIT,
                };
                forge.import(&new.id, import, &readme).await.map_err(|error| import_failed(&new.id, error))
            }
            None => {
                let branch = wanted.unwrap_or("main");
                forge.create(&new.id, branch, &readme).await.map_err(|error| not_made(&new.id, error))?;
                Ok(branch.to_owned())
            }
        }
    }

    /// Takes back what a creation made. What cannot be taken back now is left to the task.
    pub async fn undo(&self, task: &Claimed) {
        if let Err(error) = self.try_undo(task).await {
            tracing::warn!(%error, project.id = task.subject, "a creation is not undone yet");
            self.inner.queue.give_back(task, UNDO_AGAIN);
        }
    }

    async fn try_undo(&self, task: &Claimed) -> Result<()> {
        let id = &task.subject;
        let found = self.find(id).await?;
        // A commit whose answer was lost has finished the task already.
        if found.as_ref().is_some_and(|project| !is_being_made(project)) {
            return Ok(());
        }
        if found.is_some_and(|project| project.image.is_some()) {
            self.take_away(id).await?;
        } else {
            self.inner.workspaces.remove(id).await?;
        }
        self.remove_repository(id).await?;
        let mut tx = self.inner.db.begin().await?;
        self.inner.queue.finish(&mut tx, task).await?;
        store::projects::delete(&mut tx, id).await?;
        store::discovered::delete(&mut tx, id).await?;
        Ok(tx.commit().await?)
    }

    /// Removes the repository, if this project made it.
    ///
    /// # Errors
    /// Those of the git host.
    pub async fn remove_repository(&self, id: &str) -> Result<()> {
        let ours = store::projects::made_repository(&mut self.inner.db.conn().await?, id).await?;
        if ours { Ok(self.inner.forge.remove(id).await?) } else { Ok(()) }
    }

    /// # Errors
    /// 400 for a pattern that cannot be used.
    pub async fn update(&self, project: &Project, settings: &ProjectSettings) -> Result<Project> {
        let patterns = settings.protected_branches.as_deref().unwrap_or_default();
        Protected::new(&project.default_branch, patterns).map_err(bad_pattern)?;
        if settings.protected_branches.is_some() {
            let now: Vec<&str> = std::iter::once(&project.default_branch).chain(patterns).map(String::as_str).collect();
            let before = project.protected_branches.iter().map(String::as_str);
            let free: Vec<&str> = before.filter(|pattern| !now.contains(pattern)).collect();
            self.inner.forge.protect(&project.id, &now, &free).await?;
        }
        let settings =
            &ProjectSettings { image: self.redeploy(project, settings.image.as_ref()).await?, ..settings.clone() };
        let now = self.inner.clock.now();
        if !self.finds_projects() {
            let mut conn = self.inner.db.conn().await?;
            let updated = store::projects::update(&mut conn, &project.id, settings, now).await?;
            return updated.ok_or_else(|| Error::not_found("project not found"));
        }
        let mut tx = self.inner.db.begin().await?;
        let updated = store::projects::update(&mut tx, &project.id, settings, now).await?;
        let Some(updated) = updated else {
            drop(tx);
            // It went meanwhile, and its place with it.
            if settings.image.is_some() {
                self.take_away(&project.id).await?;
            }
            return Err(Error::not_found("project not found"));
        };
        let mut memory = store::discovered::find(&mut tx, &project.id).await?;
        memory.set_by_hand(settings);
        store::discovered::put(&mut tx, &project.id, &memory).await?;
        tx.commit().await?;
        Ok(updated)
    }

    /// Tells workspaces where this server is whose address no living process has any more: after a
    /// start on another port, and after the death of another process.
    ///
    /// # Errors
    /// Those of the database; a workspace that cannot be told is logged and told the next time.
    pub async fn readdress_stranded(&self) -> Result<()> {
        let now = &self.inner.site.local;
        let mut conn = self.inner.db.conn().await?;
        store::processes::set_address(&mut conn, self.inner.queue.process(), now).await?;
        let stranded = store::projects::stranded(&mut conn, now).await?;
        drop(conn);
        for project in stranded.into_iter().filter(|project| !project.address.is_empty()) {
            match self.inner.workspaces.readdress(&project.id, &project.address, now).await {
                Ok(()) => store::projects::set_address(&mut self.inner.db.conn().await?, &project.id, now).await?,
                Err(error) => tracing::warn!(%error, project.id, "a workspace was not told this server's address"),
            }
        }
        Ok(())
    }

    /// The URL to clone from, without credentials.
    pub fn clone_url(&self, project: &str) -> String {
        self.inner.workspaces.clone_url(&self.inner.site.clone, project)
    }

    /// Appends to the project's activity in the caller's transaction.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn activity(
        &self,
        tx: &mut Conn,
        project: &str,
        kind: &str,
        id: &str,
        actor: Option<&Key>,
    ) -> Result<Unshown> {
        let mut data = json!({"type": kind, "id": id, "at": stamp(&self.inner.clock)});
        if let Some(actor) = actor {
            data["actor"] = actor.id.to_string().into();
        }
        record_activity(tx, &self.inner.streams, project, &data).await
    }
}

pub(super) use crate::runtime::not_running;

/// Appends to a project's activity in the caller's transaction.
///
/// # Errors
/// Those of the database.
pub async fn record_activity(
    tx: &mut Conn,
    streams: &Streams,
    project: &str,
    data: &serde_json::Value,
) -> Result<Unshown> {
    let Some(log) = store::streams::find(tx, project, Log::Project, project).await? else {
        return Ok(Unshown::default());
    };
    Ok(streams.record(tx, &log.owner, "activity", data).await?)
}

/// The time as events show it.
pub fn stamp(clock: &Clock) -> String {
    clock.now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Its creation has not come to its end.
fn is_being_made(project: &Project) -> bool {
    project.status == ProjectStatus::Pending && project.default_branch.is_empty()
}

fn bad_pattern(error: impl std::fmt::Display) -> Error {
    Error::invalid("protected_branches holds a pattern that cannot be used").reason(error.to_string())
}

/// Of a repository that somebody else has made.
const REPOSITORY_EXISTS: &str = "PROJECT_EXISTS";

fn repository_exists(id: &str) -> Error {
    Error::conflict(REPOSITORY_EXISTS, format!("a repository {id} exists on the git host already"))
}

fn not_made(id: &str, error: GitError) -> Error {
    match error {
        GitError::Exists => repository_exists(id),
        error => error.into(),
    }
}

fn import_failed(id: &str, error: ImportError) -> Error {
    match error {
        ImportError::NoSuchBranch(name) => Error::invalid("default_branch does not exist in the source").reason(name),
        ImportError::UnsupportedUrl(why) => Error::invalid(format!("import_url is not allowed: {why}")),
        ImportError::Failed(why) => {
            Error::new(Kind::BadGateway, "IMPORT_FAILED", format!("the repository could not be cloned: {why}"))
        }
        ImportError::Git(error) => not_made(id, error),
    }
}

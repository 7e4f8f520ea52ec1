//! Sessions: a checkout bound to the project's place. Making one is a row of steps, each
//! of which can be taken back; the row of its task says that somebody is at it, and
//! whoever finds that task without its process takes everything back.

mod asked;
mod exposed;

use std::{sync::Arc, time::Duration};

use serde_json::json;
use uuid::Uuid;

use super::{
    checkouts::{Checkouts, NewCheckout, Opened, Prepared},
    commands::{Commands, git_missing},
    previews::Previews,
    projects::{Projects, Site, not_running, record_activity, stamp},
    receipts::Answer,
    workspaces::{Workspaces, Worktree},
};
use crate::{
    database::{Conn, Db, DbError},
    domain::{
        checkout::Checkout,
        clock::{Clock, later},
        key::Key,
        project::{Project, ProjectStatus},
        review::Wish,
        session::{EndPlan, EndReason, OnDirty, Session, SessionStatus},
    },
    error::{Error, Kind, Result},
    forge::Credential,
    queue::{Claimed, NewTask, Queue},
    store::{self, streams::Kind as Log},
    streams::{Streams, Unshown},
};

pub use self::asked::{Asked, port};

/// Pause before an undo that failed is tried again.
const UNDO_AGAIN: Duration = Duration::from_secs(2);

/// Ports that are tried where any will do.
const PORT_TRIES: u32 = 10;
const PORT_IN_USE: &str = "PORT_IN_USE";

pub const CREATE_TASK: &str = "session.create";
pub const END_TASK: &str = "session.end";
/// What a preview has on a cluster goes, after a session that has ended.
pub const HIDE_TASK: &str = "session.hide";

/// A session asked for.
#[derive(Clone)]
pub struct NewSession {
    pub checkout: NewCheckout,
    pub preview_port: Option<u16>,
    pub idle_timeout: Option<Duration>,
}

/// A session, and what is shown of it this once.
pub struct OpenedSession {
    pub session: Session,
    pub opened: Opened,
}

#[derive(Clone)]
pub struct Sessions {
    pub(super) inner: Arc<Parts>,
}

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub checkouts: Checkouts,
    pub commands: Commands,
    pub projects: Projects,
    pub workspaces: Workspaces,
    pub site: Site,
    pub previews: Previews,
    pub preview_domain: Option<String>,
    /// Each preview has a Service and an Ingress of its own, where there is a cluster.
    pub preview_ingress: bool,
    /// Ports of this server's own, which are never a preview's.
    pub own_ports: Vec<u16>,
}

impl Sessions {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    /// # Errors
    /// "session not found".
    pub async fn get(&self, project: &str, id: Uuid) -> Result<Session> {
        let found = store::sessions::find(&mut self.inner.db.conn().await?, project, id).await?;
        found.map(|session| self.addressed(session)).ok_or_else(not_found)
    }

    /// Its preview is under the address that this server has now.
    pub(super) fn addressed(&self, session: Session) -> Session {
        Session { preview_url: self.preview_url(session.id), ..session }
    }

    /// # Errors
    /// Those of the database.
    pub async fn page(
        &self,
        project: &str,
        status: Option<SessionStatus>,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Session>> {
        let page = store::sessions::page(&mut self.inner.db.conn().await?, project, status, before, limit).await?;
        Ok(page.into_iter().map(|session| self.addressed(session)).collect())
    }

    /// # Errors
    /// The contract's cases, in its order.
    pub async fn create(
        &self,
        caller: &Key,
        project: &Project,
        new: NewSession,
        answer: Answer<OpenedSession>,
    ) -> Result<OpenedSession> {
        if project.status != ProjectStatus::Running {
            return Err(not_running());
        }
        if let Some(port) = new.preview_port
            && self.is_own_port(port).await?
        {
            return Err(Error::invalid("preview_port is one of rdev's own ports"));
        }
        if store::sessions::one_is_alive(&mut self.inner.db.conn().await?, &project.id).await? {
            return Err(session_exists());
        }
        let begun = Box::pin(async {
            let prepared = self.inner.checkouts.prepare(project, &new.checkout.wanted).await?;
            if !self.inner.projects.make_ready(project).await? {
                return Err(git_missing());
            }
            Ok((self.insert_somehow(caller, project, &prepared, &new).await?, prepared))
        });
        let ((session, checkout, task), prepared) = match begun.await {
            Ok(begun) => begun,
            Err(error) => return Err(self.unless_one_came_first(project, error).await?),
        };
        match Box::pin(self.provision(caller, project, &prepared, session, checkout, &task, &answer)).await {
            Ok(made) => Ok(made),
            Err(error) => {
                let error = self.inner.checkouts.unless_gone(project, error).await;
                self.undo(&task).await;
                Err(error)
            }
        }
    }

    /// What is in the way may be that of a session which came in between: then that is the reason.
    async fn unless_one_came_first(&self, project: &Project, error: Error) -> Result<Error> {
        let is_conflict = error.kind() == Kind::Conflict;
        let one_came =
            is_conflict && store::sessions::one_is_alive(&mut self.inner.db.conn().await?, &project.id).await?;
        Ok(if one_came { session_exists() } else { error })
    }

    /// On another port where somebody has just taken one that nobody asked for.
    async fn insert_somehow(
        &self,
        caller: &Key,
        project: &Project,
        prepared: &Prepared,
        new: &NewSession,
    ) -> Result<(Session, Checkout, Claimed)> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.insert(caller, project, prepared, new).await {
                Err(error)
                    if error.stable_code() == PORT_IN_USE && new.preview_port.is_none() && tries < PORT_TRIES => {}
                inserted => return inserted,
            }
        }
    }

    async fn insert(
        &self,
        caller: &Key,
        project: &Project,
        prepared: &Prepared,
        new: &NewSession,
    ) -> Result<(Session, Checkout, Claimed)> {
        let inner = &self.inner;
        let id = Uuid::now_v7();
        let port = self.port(project, new.preview_port).await?;
        let mut tx = inner.db.begin().await?;
        // One that is being deleted gets nothing new.
        let locked = store::projects::lock(&mut tx, &project.id).await?;
        match locked.ok_or_else(|| Error::not_found("project not found"))?.status {
            ProjectStatus::Running => {}
            _ => return Err(not_running()),
        }
        let checkout = inner.checkouts.fresh(caller, project, prepared, &new.checkout, Some(id));
        let paths = inner.workspaces.runtime().paths(&project.id);
        let session = Session {
            id,
            project_id: project.id.clone(),
            checkout_id: checkout.id,
            branch: checkout.branch.clone(),
            pod_name: paths.pod_name,
            workspace: format!("{}/{id}", paths.sessions),
            preview_url: self.preview_url(id),
            preview_port: port.into(),
            status: SessionStatus::Provisioning,
            created_by: caller.id,
            created_at: checkout.checked_out_at,
            expires_at: later(checkout.checked_out_at, new.checkout.expires_in),
            ended_at: None,
            idle_ms: new.idle_timeout.and_then(|idle| i64::try_from(idle.as_millis()).ok()),
            last_activity_at: checkout.checked_out_at,
            end_reason: None,
            end_plan: None,
            rescue: None,
            review_task_id: None,
        };
        // The session first: of two at once the other is told that there is one.
        store::sessions::insert(&mut tx, &session).await.map_err(collision)?;
        inner.checkouts.insert(&mut tx, &checkout).await?;
        store::streams::insert(&mut tx, &project.id, Log::Session, &id.to_string(), None).await?;
        let task = inner.queue.insert_owned(&mut tx, CREATE_TASK, &id.to_string()).await?;
        let unshown = self.activity(&mut tx, &session, "session.created", Some(caller.id)).await?;
        tx.commit().await?;
        inner.streams.show(unshown);
        Ok((session, checkout, task))
    }

    #[expect(clippy::too_many_arguments, reason = "the steps need what was made before them")]
    async fn provision(
        &self,
        caller: &Key,
        project: &Project,
        prepared: &Prepared,
        session: Session,
        checkout: Checkout,
        task: &Claimed,
        answer: &Answer<OpenedSession>,
    ) -> Result<OpenedSession> {
        let inner = &self.inner;
        inner.checkouts.make_branch(project, prepared, session.checkout_id).await?;
        let Credential { token, kept } = inner.checkouts.issue(&checkout).await?;
        // The worktree is made with it.
        store::checkouts::set_token(&mut inner.db.conn().await?, checkout.id, kept.hash(), kept.sealed()).await?;
        let id = session.id.to_string();
        let worktree =
            Worktree { project: &project.id, path: &session.workspace, branch: &session.branch, session: &id };
        let sha = &prepared.start_sha;
        let added = inner.workspaces.add_worktree(&worktree, sha, &inner.site.local, token.expose()).await?;
        tracing::debug!(session.id = id, added.was_spare, "the worktree is there");
        Box::pin(self.expose(&session)).await?;
        let mut tx = inner.db.begin().await?;
        inner.queue.finish(&mut tx, task).await?;
        if !store::checkouts::activate(&mut tx, session.checkout_id, None, None).await? {
            return Err(crate::queue::stale());
        }
        let session =
            store::sessions::activate(&mut tx, session.id, inner.clock.now()).await?.ok_or_else(crate::queue::stale)?;
        let opened = OpenedSession { session, opened: Opened { checkout, token } };
        answer.keep(&mut tx, &opened).await?;
        let mut unshown = self.activity(&mut tx, &opened.session, "session.active", Some(caller.id)).await?;
        let checkout = &opened.opened.checkout;
        unshown.extend(inner.checkouts.activity(&mut tx, checkout, "checkout.created", Some(caller.id)).await?);
        if added.is_large {
            inner.projects.want_spare(&mut tx, &project.id).await?;
        }
        tx.commit().await?;
        if added.is_large {
            inner.projects.wake_spare(&project.id);
        }
        inner.streams.show(unshown);
        Ok(opened)
    }

    /// Takes back what a creation made; what cannot be taken back now is left to the task.
    pub async fn undo(&self, task: &Claimed) {
        if let Err(error) = self.try_undo(task).await {
            tracing::warn!(%error, session.id = task.subject, "a session's creation is not undone yet");
            self.inner.queue.give_back(task, UNDO_AGAIN);
        }
    }

    async fn try_undo(&self, task: &Claimed) -> Result<()> {
        let inner = &self.inner;
        let id: Uuid = task.subject.parse().map_err(Error::internal)?;
        let found = store::sessions::find_any(&mut inner.db.conn().await?, id).await?;
        let Some(session) = found.filter(|session| session.status == SessionStatus::Provisioning) else {
            store::tasks::finish(&mut inner.db.conn().await?, task.id, task.fence).await?;
            return Ok(());
        };
        let worktree = Worktree {
            project: &session.project_id,
            path: &session.workspace,
            branch: &session.branch,
            session: &task.subject,
        };
        inner.workspaces.remove_worktree(&worktree).await?;
        let is_hidden = Box::pin(self.hide_somehow(id)).await;
        if let Some(checkout) = store::checkouts::find_any(&mut inner.db.conn().await?, session.checkout_id).await? {
            inner.checkouts.take_back(&checkout).await?;
        }
        let mut tx = inner.db.begin().await?;
        inner.queue.finish(&mut tx, task).await?;
        store::checkouts::delete_pending(&mut tx, session.checkout_id).await?;
        let now = inner.clock.now();
        store::sessions::end(&mut tx, id, SessionStatus::Failed, "provisioning_failed", now).await?;
        let mut unshown = self.activity(&mut tx, &session, "session.failed", None).await?;
        unshown.extend(self.last_event(&mut tx, &session, "failed", "provisioning_failed").await?);
        if !is_hidden {
            self.hide_later(&mut tx, id).await?;
        }
        tx.commit().await?;
        if !is_hidden {
            self.wake_hiding();
        }
        inner.streams.show(unshown);
        Ok(())
    }

    /// Their place is gone: the active ones of the project begin to end, in the caller's transaction. Answers how many;
    /// wake the queue after the commit.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn lose(&self, tx: &mut Conn, project: &str) -> Result<usize> {
        let plan =
            EndPlan { reason: EndReason::PodLost, on_dirty: OnDirty::Discard, by: None, review: Wish::default() };
        let mut lost = 0;
        for session in store::sessions::alive(tx, Some(project)).await? {
            if store::sessions::begin_end(tx, session.id, &plan).await? {
                self.inner.queue.insert(tx, &NewTask::work(END_TASK, &session.id.to_string())).await?;
                lost += 1;
            }
        }
        Ok(lost)
    }

    /// Whether this process listens there, or another one of this machine.
    async fn is_own_port(&self, port: u16) -> Result<bool> {
        if !self.inner.workspaces.runtime().shares_ports() {
            return Ok(false);
        }
        if self.inner.own_ports.contains(&port) {
            return Ok(true);
        }
        Ok(store::processes::one_listens_on(&mut self.inner.db.conn().await?, i32::from(port)).await?)
    }

    /// The port that was asked for, the project's own where it is free, or a free one.
    async fn port(&self, project: &Project, asked: Option<u16>) -> Result<u16> {
        if !self.inner.workspaces.runtime().shares_ports() {
            return Ok(asked.or_else(|| project.preview_port.and_then(|p| u16::try_from(p).ok())).unwrap_or(8080));
        }
        let taken = store::sessions::ports_taken(&mut self.inner.db.conn().await?).await?;
        let is_free = |port: u16| !taken.contains(&i32::from(port)) && !self.inner.own_ports.contains(&port);
        if let Some(port) = asked {
            return if is_free(port) { Ok(port) } else { Err(port_in_use()) };
        }
        let preferred = project.preview_port.and_then(|port| u16::try_from(port).ok()).filter(|port| is_free(*port));
        match preferred {
            Some(port) if !self.is_own_port(port).await? => Ok(port),
            _ => free_port(is_free).await,
        }
    }

    /// An origin of its own where there is a domain for previews.
    fn preview_url(&self, id: Uuid) -> String {
        let public = &self.inner.site.public;
        match (&self.inner.preview_domain, public.split_once("://")) {
            (Some(domain), Some((scheme, rest))) => {
                let authority = rest.split('/').next().unwrap_or(rest);
                let port = authority
                    .rsplit_once(':')
                    .map(|(_, port)| port)
                    .filter(|port| port.bytes().all(|b| b.is_ascii_digit()));
                let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                format!("{scheme}://{id}.{domain}{port}/")
            }
            _ => format!("{public}/preview/{id}/"),
        }
    }

    /// # Errors
    /// "session is not active", "session not found".
    pub async fn extend(
        &self,
        project: &str,
        id: Uuid,
        expires_in: Duration,
        answer: Answer<Session>,
    ) -> Result<Session> {
        let inner = &self.inner;
        let until = later(inner.clock.now(), expires_in);
        let mut tx = inner.db.begin().await?;
        let session = store::sessions::lock(&mut tx, project, id).await?.ok_or_else(not_found)?;
        // Its token is dead already, and stays so.
        if session.expires_at <= inner.clock.now() {
            return Err(not_active());
        }
        let extended = store::sessions::extend(&mut tx, id, until).await?.ok_or_else(not_active)?;
        store::checkouts::extend(&mut tx, session.checkout_id, until).await?;
        answer.keep(&mut tx, &extended).await?;
        tx.commit().await?;
        Ok(self.addressed(extended))
    }

    /// Appends to the session's log and to the project's activity.
    pub(super) async fn activity(
        &self,
        tx: &mut Conn,
        session: &Session,
        kind: &str,
        actor: Option<Uuid>,
    ) -> Result<Unshown> {
        let inner = &self.inner;
        let mut data = json!({"type": kind, "id": session.id, "at": stamp(&inner.clock), "branch": session.branch, "expires_at": session.expires_at});
        if let Some(actor) = actor {
            data["actor"] = actor.to_string().into();
        }
        let mut unshown = Unshown::default();
        let log = store::streams::find(tx, &session.project_id, Log::Session, &session.id.to_string()).await?;
        if let Some(log) = log {
            unshown.extend(inner.streams.record(tx, &log.owner, "activity", &data).await?);
        }
        unshown.extend(record_activity(tx, &inner.streams, &session.project_id, &data).await?);
        Ok(unshown)
    }

    /// Ends the session's log.
    pub(super) async fn last_event(
        &self,
        tx: &mut Conn,
        session: &Session,
        status: &str,
        reason: &str,
    ) -> Result<Unshown> {
        let log = store::streams::find(tx, &session.project_id, Log::Session, &session.id.to_string()).await?;
        let Some(log) = log else { return Ok(Unshown::default()) };
        let data = json!({"status": status, "end_reason": reason});
        Ok(self.inner.streams.record_final(tx, &log.owner, "complete", &data).await?)
    }
}

pub(super) fn not_found() -> Error {
    Error::not_found("session not found")
}

pub(super) fn not_active() -> Error {
    Error::invalid("session is not active").reason("SESSION_NOT_ACTIVE")
}

fn session_exists() -> Error {
    Error::conflict("SESSION_EXISTS", "active session already exists for this project")
}

fn port_in_use() -> Error {
    Error::conflict(PORT_IN_USE, "another session has this preview_port; choose another one or leave it out")
}

fn collision(error: DbError) -> Error {
    match error.constraint() {
        Some("session_alive") => session_exists(),
        Some("session_port") => port_in_use(),
        _ => error.into(),
    }
}

/// A port that nobody listens on, by asking the system for one.
async fn free_port(is_free: impl Fn(u16) -> bool) -> Result<u16> {
    for _ in 0..50 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(Error::internal)?;
        let port = listener.local_addr().map_err(Error::internal)?.port();
        if is_free(port) {
            return Ok(port);
        }
    }
    Err(Error::unavailable("a free port for the preview", "50 ports were taken"))
}

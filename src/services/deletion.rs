//! Deleting a project: sessions end, checkouts are revoked, commands are cancelled, the
//! place and the repository go. Each step is tried even when another failed; what is left
//! then stays as `failed`, and the call may be repeated.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    checkouts::Checkouts,
    commands::Commands,
    projects::{CREATE_TASK, DELETE_TASK, Projects, Undeployed, busy, shown, stamp},
    receipts::Answer,
    reviews::Reviews,
    sessions::Sessions,
    workspaces::Workspaces,
};
use crate::{
    database::Db,
    domain::{
        clock::Clock,
        command::EndAsked,
        key::Key,
        project::{Project, ProjectStatus},
        session::{EndReason, OnDirty, SessionStatus},
    },
    error::{Error, Kind, Result},
    metrics::Metrics,
    queue::{Claimed, Perform, Queue},
    store::{self, streams::Kind as Log},
    streams::Streams,
};

/// Sessions that somebody else is at are waited for so long.
const SETTLING: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// Chunks removed by one statement.
const CHUNKS_AT_ONCE: i64 = 500;

#[derive(Clone)]
pub struct Deletion {
    inner: Arc<Parts>,
}

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub projects: Projects,
    pub workspaces: Workspaces,
    pub checkouts: Checkouts,
    pub reviews: Reviews,
    pub commands: Commands,
    pub sessions: Sessions,
    pub metrics: Metrics,
}

impl Deletion {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    /// Answers what went from a cluster with it.
    ///
    /// # Errors
    /// `DELETE_INCOMPLETE` with what failed; `PROJECT_BUSY` while it is being made or deleted; `PROJECT_DISCOVERED`.
    pub async fn delete(&self, caller: &Key, project: &Project, forget: bool) -> Result<Undeployed> {
        self.inner.projects.let_go(project, forget).await?;
        let task = self.begin(project).await?;
        match self.carry(&project.id, Some(caller), &task).await {
            Ok(undeployed) => Ok(undeployed),
            Err(error) => {
                self.leave_failed(&project.id, &task).await?;
                Err(error)
            }
        }
    }

    /// Nothing new starts in the project from here on.
    async fn begin(&self, project: &Project) -> Result<Claimed> {
        let inner = &self.inner;
        let mut tx = inner.db.begin().await?;
        store::projects::lock(&mut tx, &project.id).await?.ok_or_else(|| Error::not_found("project not found"))?;
        if store::tasks::one_exists(&mut tx, &[CREATE_TASK, DELETE_TASK], &project.id).await? {
            return Err(busy());
        }
        store::projects::set_status(&mut tx, &project.id, ProjectStatus::Pending, inner.clock.now()).await?;
        let task = inner.queue.insert_owned(&mut tx, DELETE_TASK, &project.id).await;
        let task = task.map_err(|error| if error.constraint() == Some("task_once") { busy() } else { error.into() })?;
        tx.commit().await?;
        Ok(task)
    }

    async fn carry(&self, id: &str, caller: Option<&Key>, task: &Claimed) -> Result<Undeployed> {
        let inner = &self.inner;
        let mut errors = Vec::new();
        note(&mut errors, "sessions", self.end_sessions(id).await);
        note(&mut errors, "checkouts", self.revoke_checkouts(caller, id).await);
        note(&mut errors, "reviews", inner.reviews.stop_all(id).await);
        note(&mut errors, "commands", inner.commands.end_all(id, None, EndAsked::Cancelled).await);
        note(&mut errors, "spare", inner.projects.end_spare(id).await);
        note(&mut errors, "workspace", self.remove_workspace(id).await);
        let (undeployed, removed) = self.undeploy(id, &mut errors).await;
        note(&mut errors, "repository", inner.projects.remove_repository(id).await);
        if !errors.is_empty() {
            return Err(Error::new(
                Kind::BadGateway,
                "DELETE_INCOMPLETE",
                "not everything of this project could be removed; repeat the call",
            )
            .detail("errors", errors)
            .detail("undeployed", removed));
        }
        self.drop_rows(id, caller, task).await.map(|()| undeployed)
    }

    /// What went from the cluster, and the same as clients see it: also where something did not go.
    async fn undeploy(&self, id: &str, errors: &mut Vec<Value>) -> (Undeployed, Value) {
        match self.inner.projects.take_away(id).await {
            Ok(undeployed) => {
                let removed = undeployed.deleted.iter().map(shown).collect();
                (undeployed, removed)
            }
            Err(error) => {
                let removed = error.details().get("deleted").cloned().unwrap_or_else(|| json!([]));
                note(errors, "undeploy", Err(error));
                (Undeployed::default(), removed)
            }
        }
    }

    /// A place that is made here goes as a whole.
    async fn remove_workspace(&self, id: &str) -> Result<()> {
        let is_made = self.inner.projects.find(id).await?.is_some_and(|project| project.image.is_some());
        if is_made { Ok(()) } else { self.inner.workspaces.remove(id).await }
    }

    /// Also those that are being made or ended just now. Work is rescued: should the repository stay, it has it.
    async fn end_sessions(&self, id: &str) -> Result<()> {
        let until = tokio::time::Instant::now() + SETTLING;
        loop {
            let alive = store::sessions::alive(&mut self.inner.db.conn().await?, Some(id)).await?;
            if alive.is_empty() || tokio::time::Instant::now() >= until {
                return Ok(());
            }
            for session in alive.iter().filter(|session| session.status == SessionStatus::Active) {
                let sessions = &self.inner.sessions;
                let ended = sessions.end(None, id, session.id, EndReason::Terminated, OnDirty::Rescue, Answer::none());
                ended.await.map(drop).or_else(already_over)?;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn revoke_checkouts(&self, caller: Option<&Key>, id: &str) -> Result<()> {
        let open = store::checkouts::open_of_project(&mut self.inner.db.conn().await?, id).await?;
        for checkout in open {
            self.inner.checkouts.revoke(caller, id, checkout.id).await.or_else(already_over)?;
        }
        Ok(())
    }

    async fn drop_rows(&self, id: &str, caller: Option<&Key>, task: &Claimed) -> Result<()> {
        let inner = &self.inner;
        while store::streams::delete_of_project(&mut inner.db.conn().await?, id, CHUNKS_AT_ONCE).await? > 0 {}
        let mut tx = inner.db.begin().await?;
        inner.queue.finish(&mut tx, task).await?;
        inner.reviews.forget_all(&mut tx, id).await?;
        let mut unshown = crate::streams::Unshown::default();
        if let Some(log) = store::streams::find(&mut tx, id, Log::Project, id).await? {
            let mut data = json!({"type": "project.deleted", "id": id, "at": stamp(&inner.clock)});
            if let Some(caller) = caller {
                data["actor"] = caller.id.to_string().into();
            }
            unshown = inner.streams.record_final(&mut tx, &log.owner, "activity", &data).await?;
        }
        store::projects::delete(&mut tx, id).await?;
        store::discovered::delete(&mut tx, id).await?;
        tx.commit().await?;
        inner.streams.show(unshown);
        inner.metrics.forget_project(id);
        Ok(())
    }

    async fn leave_failed(&self, id: &str, task: &Claimed) -> Result<()> {
        let inner = &self.inner;
        let mut tx = inner.db.begin().await?;
        inner.queue.finish(&mut tx, task).await?;
        store::projects::set_status(&mut tx, id, ProjectStatus::Failed, inner.clock.now()).await?;
        inner.projects.stays_failed(&mut tx, id).await?;
        Ok(tx.commit().await?)
    }

    async fn resume(&self, task: &Claimed) {
        if let Err(error) = self.carry(&task.subject, None, task).await {
            tracing::warn!(%error, project.id = task.subject, "a deletion that was left behind could not be carried through");
            if let Err(error) = self.leave_failed(&task.subject, task).await {
                tracing::warn!(%error, project.id = task.subject, "again shortly");
                self.inner.queue.give_back(task, Duration::from_secs(2));
            }
        }
    }
}

/// Tasks of projects, and the checkouts' beside them: whatever was left behind half-made or half-removed.
impl Perform for Deletion {
    fn kinds(&self) -> &'static [&'static str] {
        &[DELETE_TASK, CREATE_TASK, super::checkouts::CREATE_TASK]
    }

    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        async move {
            let work = async {
                match task.kind.as_str() {
                    DELETE_TASK => self.resume(&task).await,
                    CREATE_TASK => self.inner.projects.undo(&task).await,
                    _ => self.inner.checkouts.undo(&task).await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        }
        .boxed()
    }

    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, Result<()>> {
        async move {
            tracing::error!(task.kind, task.subject, "this was left half-done: whoever worked on it kept dying");
            Ok(())
        }
        .boxed()
    }
}

fn note(errors: &mut Vec<Value>, step: &str, outcome: Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, step, "a step of a deletion failed");
        let mut told = json!({"step": step, "message": error.message()});
        // What did go is told once, beside them.
        for (name, value) in error.details().iter().filter(|(name, _)| *name != "deleted") {
            told[name.as_str()] = value.clone();
        }
        errors.push(told);
    }
}

/// It ended meanwhile by itself, which is all that was wanted.
fn already_over(error: Error) -> Result<()> {
    if matches!(error.kind(), Kind::Invalid | Kind::NotFound) { Ok(()) } else { Err(error) }
}

//! When a project's spare worktree is made: after its creation and after each session's, in nobody's way. One at a
//! time in this process, since it is the disk that they wait for.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Projects;
use crate::{
    database::{Conn, DbError},
    domain::project::ProjectStatus,
    error::Result,
    queue::{Claimed, NewTask, Perform},
    store,
};

const TASK: &str = "project.spare";
/// Pause before another attempt.
const LATER: Duration = Duration::from_secs(3);
/// A session is made without one as well.
const ATTEMPTS_MAX: i32 = 5;
/// One that is told to stop is waited for so long.
const SETTLING: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

impl Projects {
    /// Has one made, in the caller's transaction. Call [`Projects::wake_spare`] after the commit.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn want_spare(&self, tx: &mut Conn, project: &str) -> std::result::Result<(), DbError> {
        store::tasks::insert_once(tx, &NewTask::work(TASK, project)).await
    }

    pub fn wake_spare(&self, project: &str) {
        let task = NewTask::work(TASK, project);
        self.inner.queue.wake(task.lane, &task.queue);
    }

    /// None is being made any more, and none will be, in a project that does not run. One that does not stop is left.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn end_spare(&self, id: &str) -> Result<()> {
        let until = Instant::now() + SETTLING;
        loop {
            let mut conn = self.inner.db.conn().await?;
            if !store::tasks::one_exists(&mut conn, &[TASK], id).await? || Instant::now() >= until {
                return Ok(());
            }
            store::tasks::bring_forward(&mut conn, TASK, &[id.to_owned()]).await?;
            drop(conn);
            self.wake_spare(id);
            self.stop_spare(id).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn stop_spare(&self, id: &str) {
        if let Err(error) = self.inner.workspaces.stop_spare(id).await {
            tracing::debug!(%error, project.id = id, "whoever makes a spare worktree was not told to stop");
        }
    }

    /// False: another attempt is to be made.
    async fn prepare_spare(&self, task: &Claimed) -> Result<bool> {
        let inner = &self.inner;
        let found = self.find(&task.subject).await?;
        let Some(project) = found.filter(|project| project.status == ProjectStatus::Running) else { return Ok(true) };
        let Ok(_turn) = inner.spares.try_acquire() else { return Ok(false) };
        let Some(sha) = inner.forge.branch(&project.id, &project.default_branch).await? else { return Ok(true) };
        inner.workspaces.prepare_spare(&project.id, task.fence, &sha, &inner.site.local).await
    }

    async fn carry_spare(&self, task: &Claimed) {
        let is_over = self.prepare_spare(task).await.unwrap_or_else(|error| {
            tracing::info!(%error, project.id = task.subject, "a spare worktree was not made");
            task.attempt >= ATTEMPTS_MAX
        });
        if !is_over {
            self.inner.queue.give_back(task, LATER);
        } else if let Err(error) = self.inner.queue.done(task).await {
            tracing::debug!(%error, project.id = task.subject, "somebody else has this task by now");
        }
    }
}

impl Perform for Projects {
    fn kinds(&self) -> &'static [&'static str] {
        &[TASK]
    }

    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        async move {
            tokio::select! {
                () = stop.cancelled() => self.stop_spare(&task.subject).await,
                () = self.carry_spare(&task) => {}
            }
        }
        .boxed()
    }

    fn parked(self: Arc<Self>, _: Claimed) -> BoxFuture<'static, Result<()>> {
        async { Ok(()) }.boxed()
    }
}

//! The end of a session, by whichever way. From the commit that begins it nothing new
//! starts; then commands are ended, work is rescued, the worktree goes, and one
//! transaction ends session, checkout and token. Each step can be taken again, so a
//! process that dies in the middle leaves the rest to another.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    receipts::Answer,
    reviews::Due,
    sessions::{CREATE_TASK, END_TASK, HIDE_TASK, Sessions, not_active, not_found},
    workspaces::Worktree,
};
use crate::{
    domain::{
        command::EndAsked,
        key::Key,
        review::Wish,
        session::{EndPlan, EndReason, OnDirty, Session, SessionStatus},
    },
    error::{Error, Kind, Result},
    queue::{Claimed, NewTask, Perform},
    store,
};

/// Pause before an end that failed is carried on.
const LATER: Duration = Duration::from_secs(2);

/// Minutes before its end at which a session says so; the nearest first, so that a late look says one thing.
const WARNINGS: [i32; 3] = [1, 5, 15];

impl Sessions {
    /// Says of sessions that they end soon.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn warn(&self, limit: i64) -> Result<()> {
        let inner = &self.inner;
        let now = inner.clock.now();
        for minutes in WARNINGS {
            let soon = store::sessions::to_warn(&mut inner.db.conn().await?, now, minutes, limit).await?;
            for session in soon {
                let mut tx = inner.db.begin().await?;
                if store::sessions::mark_warned(&mut tx, session.id, minutes).await? {
                    let unshown = self.activity(&mut tx, &session, "session.expiring", None).await?;
                    tx.commit().await?;
                    inner.streams.show(unshown);
                }
            }
        }
        Ok(())
    }

    /// Ends a session and answers when it has ended.
    ///
    /// # Errors
    /// "session is not active", "session not found", `UNPUSHED_CHANGES` where the plan says so.
    pub async fn end(
        &self,
        caller: Option<&Key>,
        project: &str,
        id: Uuid,
        reason: EndReason,
        on_dirty: OnDirty,
        answer: Answer<Session>,
    ) -> Result<Session> {
        let plan = EndPlan { reason, on_dirty, by: caller.map(|key| key.id), review: Wish::default() };
        self.end_as(project, id, &plan, answer).await
    }

    /// As [`Sessions::end`], and has the branch reviewed.
    ///
    /// # Errors
    /// Likewise.
    pub async fn checkin(
        &self,
        caller: &Key,
        project: &str,
        id: Uuid,
        (on_dirty, review): (OnDirty, Wish),
        answer: Answer<Session>,
    ) -> Result<Session> {
        let plan = EndPlan { reason: EndReason::Checkin, on_dirty, by: Some(caller.id), review };
        self.end_as(project, id, &plan, answer).await
    }

    async fn end_as(&self, project: &str, id: Uuid, plan: &EndPlan, answer: Answer<Session>) -> Result<Session> {
        let (session, task) = self.begin_end(project, id, plan).await?;
        match self.carry_end(&session, plan, &task, &answer).await {
            Ok(session) => Ok(session),
            Err(error) if error.kind() == Kind::Conflict => Err(error),
            Err(error) => {
                self.inner.queue.give_back(&task, LATER);
                Err(error)
            }
        }
    }

    async fn begin_end(&self, project: &str, id: Uuid, plan: &EndPlan) -> Result<(Session, Claimed)> {
        let inner = &self.inner;
        let mut tx = inner.db.begin().await?;
        let session = store::sessions::lock(&mut tx, project, id).await?.ok_or_else(not_found)?;
        if !store::sessions::begin_end(&mut tx, id, plan).await? {
            return Err(not_active());
        }
        let task = inner.queue.insert_owned(&mut tx, END_TASK, &id.to_string()).await?;
        tx.commit().await?;
        Ok((session, task))
    }

    async fn carry_end(
        &self,
        session: &Session,
        plan: &EndPlan,
        task: &Claimed,
        answer: &Answer<Session>,
    ) -> Result<Session> {
        let inner = &self.inner;
        let id = session.id.to_string();
        let worktree =
            Worktree { project: &session.project_id, path: &session.workspace, branch: &session.branch, session: &id };
        if plan.on_dirty == OnDirty::Fail && session.rescue.is_none() {
            self.refuse_dirty(session, &worktree, task).await?;
        }
        inner.commands.end_all(&session.project_id, Some(session.id), EndAsked::SessionEnded).await?;
        // What was in a place that is gone is gone with it.
        if plan.reason != EndReason::PodLost {
            if plan.on_dirty != OnDirty::Discard && session.rescue.is_none() {
                self.rescue(session, &worktree, task).await?;
            }
            match inner.workspaces.remove_worktree(&worktree).await {
                // It went with its place.
                Err(error) if error.details().get("reason").is_some_and(|why| why == "PROJECT_NOT_RUNNING") => {}
                outcome => outcome?,
            }
        }
        let is_hidden = Box::pin(self.hide_somehow(session.id)).await;
        self.close(session, plan, task, is_hidden, answer).await
    }

    /// With `on_dirty: fail` a session with such work goes on as if nothing had been asked.
    async fn refuse_dirty(&self, session: &Session, worktree: &Worktree<'_>, task: &Claimed) -> Result<()> {
        if !self.inner.workspaces.is_dirty(worktree, &self.inner.site.local).await? {
            return Ok(());
        }
        let mut tx = self.inner.db.begin().await?;
        self.inner.queue.finish(&mut tx, task).await?;
        store::sessions::resume(&mut tx, session.id).await?;
        tx.commit().await?;
        Err(Error::conflict(
            "UNPUSHED_CHANGES",
            "the session holds work that is not pushed; push it, or check in with on_dirty rescue or discard",
        ))
    }

    /// What was rescued is on record before the worktree goes.
    async fn rescue(&self, session: &Session, worktree: &Worktree<'_>, task: &Claimed) -> Result<()> {
        let Some(rescue) = self.inner.workspaces.rescue(worktree, &self.inner.site.local).await else { return Ok(()) };
        let mut tx = self.inner.db.begin().await?;
        self.inner.queue.hold(&mut tx, task).await?;
        store::sessions::set_rescue(&mut tx, session.id, &rescue).await?;
        Ok(tx.commit().await?)
    }

    /// Session, checkout and token end together.
    async fn close(
        &self,
        session: &Session,
        plan: &EndPlan,
        task: &Claimed,
        is_hidden: bool,
        answer: &Answer<Session>,
    ) -> Result<Session> {
        let inner = &self.inner;
        let (status, checkout_status) = plan.reason.outcome();
        let now = inner.clock.now();
        let due = match plan.reason {
            EndReason::Checkin => {
                inner.checkouts.due(&session.project_id, &session.branch, plan.review, task.attempt).await?
            }
            _ => None,
        };
        let mut tx = inner.db.begin().await?;
        inner.queue.finish(&mut tx, task).await?;
        let mut ended =
            store::sessions::end(&mut tx, session.id, status, plan.reason.text(), now).await?.ok_or_else(not_active)?;
        let locked = store::checkouts::lock(&mut tx, &session.project_id, session.checkout_id).await?;
        let (mut checkout, mut queued) = (None, None);
        if let Some(active) = locked {
            let head = due.as_ref().map(Due::head);
            let mut over = inner.checkouts.end_in(&mut tx, active, checkout_status, head).await?;
            let by = plan.by.unwrap_or(over.checked_out_by);
            queued = inner.checkouts.queue_review(&mut tx, &mut over, due.as_ref(), by).await?;
            checkout = Some(over);
        }
        if let Some(review) = &queued {
            store::sessions::set_review(&mut tx, session.id, &review.id).await?;
            ended.review_task_id = Some(review.id.clone());
        }
        let mut unshown = self.activity(&mut tx, &ended, event_of(status), plan.by).await?;
        if let Some(checkout) = &checkout {
            let kind = super::checkouts::event_of(checkout_status);
            unshown.extend(inner.checkouts.activity(&mut tx, checkout, kind, plan.by).await?);
        }
        unshown.extend(inner.checkouts.tell_queued(&mut tx, queued.as_ref()).await?);
        unshown.extend(self.last_event(&mut tx, &ended, status_text(status), plan.reason.text()).await?);
        answer.keep(&mut tx, &ended).await?;
        if !is_hidden {
            self.hide_later(&mut tx, session.id).await?;
        }
        tx.commit().await?;
        if !is_hidden {
            self.wake_hiding();
        }
        inner.previews.close(session.id);
        inner.checkouts.wake_review(queued.as_ref());
        let dead = match &checkout {
            Some(checkout) => inner.checkouts.let_die(checkout).await,
            None => Ok(()),
        };
        inner.streams.show(unshown);
        dead.map(|()| ended)
    }

    /// Begins the end of those whose time is up; who carries it through does not hold up the others.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn expire(&self, limit: i64) -> Result<()> {
        let inner = &self.inner;
        let now = inner.clock.now();
        let due = store::sessions::due(&mut inner.db.conn().await?, now, limit).await?;
        for session in &due {
            let mut tx = inner.db.begin().await?;
            let Some(session) = store::sessions::lock(&mut tx, &session.project_id, session.id).await? else {
                continue;
            };
            // Extended, used or ended meanwhile.
            if !store::sessions::is_due(&mut tx, session.id, now).await? {
                continue;
            }
            let reason = if session.expires_at <= now { EndReason::Expired } else { EndReason::Idle };
            let plan = EndPlan { reason, on_dirty: OnDirty::Rescue, by: None, review: Wish::default() };
            store::sessions::begin_end(&mut tx, session.id, &plan).await?;
            let task = NewTask::work(END_TASK, &session.id.to_string());
            inner.queue.insert(&mut tx, &task).await?;
            tx.commit().await?;
            inner.queue.wake(task.lane, &task.queue);
        }
        Ok(())
    }

    async fn resume_end(&self, task: &Claimed) -> Result<()> {
        let id: Uuid = task.subject.parse().map_err(Error::internal)?;
        let mut conn = self.inner.db.conn().await?;
        let found = store::sessions::find_any(&mut conn, id).await?;
        let ending = found.filter(|session| session.status == SessionStatus::Ending);
        let Some((session, plan)) = ending.and_then(|s| s.end_plan.clone().map(|plan| (s, plan.0))) else {
            store::tasks::finish(&mut conn, task.id, task.fence).await?;
            return Ok(());
        };
        drop(conn);
        self.carry_end(&session, &plan, task, &Answer::none()).await.map(drop)
    }
}

impl Perform for Sessions {
    fn kinds(&self) -> &'static [&'static str] {
        &[CREATE_TASK, END_TASK, HIDE_TASK]
    }

    /// A creation that was left behind is taken back, an end is carried on.
    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        async move {
            let work = async {
                match task.kind.as_str() {
                    CREATE_TASK => return self.undo(&task).await,
                    HIDE_TASK => return self.resume_hiding(&task).await,
                    _ => {}
                }
                match self.resume_end(&task).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == Kind::Conflict => {}
                    Err(error) => {
                        tracing::warn!(%error, session.id = task.subject, "the end of a session goes on shortly");
                        self.inner.queue.give_back(&task, LATER);
                    }
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
            tracing::error!(
                session.id = task.subject,
                task.kind,
                "a session is stuck: whoever worked on it kept dying"
            );
            Ok(())
        }
        .boxed()
    }
}

fn event_of(status: SessionStatus) -> &'static str {
    match status {
        SessionStatus::Expired => "session.expired",
        SessionStatus::Terminated => "session.terminated",
        SessionStatus::Lost => "session.lost",
        SessionStatus::Failed => "session.failed",
        _ => "session.ended",
    }
}

fn status_text(status: SessionStatus) -> &'static str {
    match status {
        SessionStatus::Expired => "expired",
        SessionStatus::Terminated => "terminated",
        SessionStatus::Lost => "lost",
        SessionStatus::Failed => "failed",
        _ => "ended",
    }
}

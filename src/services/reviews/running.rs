//! Carrying a review through: begun, judged, merged, cleared up, each step written down under the
//! fence before the next one. The task ends last, so whoever finds it goes on from where the row
//! stands: a command is followed on, a merge is recognised.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use tokio_util::sync::CancellationToken;

use super::{super::jobs::Ending, Parts, REVIEW_TASK, Reviews};
use crate::{
    domain::{
        job::{Happening, Retry},
        review::{Review, ReviewStatus, Stage},
        task::Lane,
    },
    error::{Error, Kind, Result},
    models::Seat,
    queue::{Claimed, Perform, stale},
    store,
};

/// Pause before a task without a seat is claimed again.
const SEATLESS: Duration = Duration::from_millis(300);
/// Pause before another attempt is made: the first one, and the longest.
const LATER: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_mins(1);
/// Pause where the project has no room for another command: the first one, and the longest.
pub(super) const NO_ROOM: Duration = Duration::from_secs(2);
const STILL_NO_ROOM: Duration = Duration::from_secs(16);
/// A review that nobody tells the end of is looked at this often.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Claims after which what cannot be removed is left where it is.
const CLEARS: i32 = 30;

/// Carries reviews through.
pub struct Reviewing {
    pub(super) reviews: Reviews,
}

/// How an attempt of a reviewer ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Judged {
        passed: bool,
        summary: String,
    },
    /// No verdict. `retry` is `None` where another attempt would end the same way.
    Failed {
        message: String,
        retry: Option<Retry>,
    },
    /// There was no room, or it was no fault of the review's.
    Again(Duration),
    /// Somebody wants it no more.
    GivenUp,
}

impl Outcome {
    pub(super) fn never(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), retry: None }
    }

    pub(super) fn later(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), retry: Some(Retry { after: None, unit: rand::random() }) }
    }
}

impl Reviewing {
    pub fn new(reviews: Reviews) -> Self {
        Self { reviews }
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.reviews.inner
    }

    /// As far as it goes now.
    async fn carry(&self, task: &Claimed, mut seat: Option<Seat>) -> Result<()> {
        // The attempt that has nothing left to clear up.
        let mut cleared = None;
        loop {
            let found = store::reviews::find_any(&mut self.parts().core.conn().await?, &task.subject).await?;
            let Some(review) = found else { return self.parts().queue.done(task).await };
            match review.stage() {
                Stage::Review => {
                    if !self.is_ready(task, &review, &mut seat).await? {
                        return Ok(());
                    }
                    let Some(review) = self.begin(task, &review).await? else { continue };
                    let outcome = match seat.take() {
                        Some(seat) => self.by_model(&review, seat).await?,
                        None => self.by_command(task, &review).await?,
                    };
                    // What a command wrote is gone before anybody hears of the verdict.
                    let is_clear = !review.uncleared || matches!(self.clear(task, &review).await, Ok(true));
                    cleared = is_clear.then_some(review.attempt);
                    if self.conclude(task, &review, outcome, is_clear).await? {
                        return Ok(());
                    }
                }
                Stage::Merge => self.merge(task, &review).await?,
                Stage::Over => {
                    let is_clear = !review.uncleared || cleared == Some(review.attempt);
                    let is_clear = is_clear || self.clear(task, &review).await?;
                    if !is_clear && task.attempt < CLEARS {
                        return Err(Error::internal("the worktree of a review is still there"));
                    }
                    if self.finish(task, &review, is_clear).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether it can begin here and now. Where it cannot, the task was let go of and nobody hears of it.
    async fn is_ready(&self, task: &Claimed, review: &Review, seat: &mut Option<Seat>) -> Result<bool> {
        let parts = self.parts();
        let line = super::task(review);
        if (task.lane, &task.queue) != (line.lane.number(), &line.queue) {
            // Somebody else reviews since it was put in.
            let mut tx = parts.core.begin().await?;
            parts.queue.finish(&mut tx, task).await?;
            parts.queue.insert(&mut tx, &line).await?;
            tx.commit().await?;
            parts.queue.wake(line.lane, &line.queue);
            return Ok(false);
        }
        if review.status == ReviewStatus::Queued && review.uncleared {
            // The command of an attempt before is not to run beside this one's; a worktree of it may stay for now.
            if self.clear(task, review).await? {
                self.note_clear(task, review).await?;
            }
        }
        if !review.model.is_empty() {
            *seat = seat.take().or_else(|| parts.upstreams.seat(&line.queue));
            if seat.is_none() {
                parts.queue.give_back(task, LATER);
            }
            return Ok(seat.is_some());
        }
        *seat = None;
        let needs_room = review.status == ReviewStatus::Queued;
        let is_ready = !needs_room || parts.commands.has_room(&review.project_id).await?;
        if !is_ready {
            parts.queue.give_back(task, pause(NO_ROOM, STILL_NO_ROOM, task));
        }
        Ok(is_ready)
    }

    /// Marks it running, as an attempt of its own; `None` where it is not what it was a moment ago.
    async fn begin(&self, task: &Claimed, seen: &Review) -> Result<Option<Review>> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let befallen = parts.jobs.befall(&mut tx, &task.subject, Happening::Claimed, Ending::default()).await?;
        let Some((_, mut told)) = befallen else { return self.without_job(tx, task).await };
        let Some(held) = store::reviews::lock(&mut tx, &task.subject).await? else { return Ok(None) };
        let is_as_seen = (held.status, &held.model, &held.command) == (seen.status, &seen.model, &seen.command);
        if !is_as_seen {
            return Ok(None);
        }
        let is_told = held.started;
        let review = held.begun();
        store::reviews::save(&mut tx, &review).await?;
        if !is_told {
            told.join(self.reviews.activity(&mut tx, &review, "review.started", None).await?);
        }
        tx.commit().await?;
        parts.jobs.tell(told);
        Ok(Some(review))
    }

    /// Ends a command that nobody waits for any more, and removes the worktrees. False where one of them is left.
    pub(super) async fn clear(&self, task: &Claimed, review: &Review) -> Result<bool> {
        let parts = self.parts();
        // What somebody else has begun meanwhile stays.
        if !store::tasks::is_held(&mut parts.core.conn().await?, task.id, task.fence).await? {
            return Err(stale());
        }
        self.end_command(review).await?;
        if !parts.queue.is_sure() {
            return Err(stale());
        }
        let removed = parts.workspaces.remove_review(&review.project_id, &review.id, review.attempt).await;
        let removed =
            removed.inspect_err(|error| tracing::warn!(%error, review.id, "the worktree of a review is left for now"));
        Ok(removed.is_ok())
    }

    /// Resolves when this attempt is over: it was cancelled, or it is somebody else's.
    pub(super) async fn is_given_up(&self, review: &Review) {
        loop {
            tokio::time::sleep(LOOK).await;
            let looked =
                async { store::reviews::is_at(&mut self.parts().core.conn().await?, &review.id, review.attempt).await };
            match looked.await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::debug!(%error, review.id, "a review could not be looked at"),
            }
        }
    }

    /// An attempt that failed here may go well elsewhere, or a little later.
    fn let_go(&self, task: &Claimed, error: &Error) {
        let parts = self.parts();
        if is_stale(error) {
            parts.metrics.stale_write(REVIEW_TASK);
            tracing::info!(review.id = task.subject, "another process carries this review on");
            // Unless only an answer of the database was lost.
            return parts.queue.give_back(task, Duration::ZERO);
        }
        tracing::warn!(%error, review.id = task.subject, "a review goes on shortly");
        parts.queue.give_back(task, pause(LATER, LATEST, task));
    }
}

/// A write under an old fence was refused.
pub(super) fn is_stale(error: &Error) -> bool {
    error.kind() == Kind::Unavailable && error.hidden_cause().is_none()
}

/// Longer with each claim.
fn pause(first: Duration, longest: Duration, task: &Claimed) -> Duration {
    let times = u32::try_from(task.attempt - 1).unwrap_or(0).min(6);
    (first * 2_u32.pow(times)).min(longest)
}

impl Perform for Reviewing {
    fn kinds(&self) -> &'static [&'static str] {
        &[REVIEW_TASK]
    }

    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        let is_models = Lane::of(task.lane) == Some(Lane::Jobs);
        let seat = is_models.then(|| self.parts().upstreams.seat(&task.queue)).flatten();
        async move {
            if is_models && seat.is_none() {
                return self.parts().queue.give_back(&task, SEATLESS);
            }
            tokio::select! {
                () = stop.cancelled() => {}
                carried = self.carry(&task, seat) => {
                    if let Err(error) = carried {
                        self.let_go(&task, &error);
                    }
                }
            }
        }
        .boxed()
    }

    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, Result<()>> {
        async move { self.give_up(&task).await }.boxed()
    }
}

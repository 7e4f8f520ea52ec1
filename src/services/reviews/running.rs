//! Carrying a review through: begun, judged, merged, cleared up, each step written down under the
//! fence before the next one. The task ends last, so whoever finds it goes on from where the row
//! stands: a command is followed on, a merge is recognised.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    super::jobs::{Ending, Told},
    Parts, REVIEW_TASK, Reviews,
};
use crate::{
    domain::{
        job::{Happening, Retry, Then},
        review::{Review, ReviewStatus, Stage, kept},
        task::{DEATHS_MAX, Lane},
    },
    error::{Error, Kind, Result},
    models::Seat,
    queue::{Claimed, Perform, stale},
    store,
};

/// Pause before a step that failed is taken again.
const RETRY: Duration = Duration::from_millis(300);
/// Pause before another attempt is made: the first one, and the longest.
const LATER: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_mins(1);
/// A review that nobody tells the end of is looked at this often.
pub(super) const LOOK: Duration = Duration::from_secs(1);

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
        let mut cleared = false;
        loop {
            let found = store::reviews::find_any(&mut self.parts().core.conn().await?, &task.subject).await?;
            let Some(review) = found else { return self.parts().queue.done(task).await };
            match review.stage() {
                Stage::Review => {
                    let Some(review) = self.begin(task).await? else { continue };
                    let outcome = if review.model.is_empty() {
                        self.by_command(task, &review).await?
                    } else {
                        self.by_model(&review, seat.take()).await?
                    };
                    // What a command wrote is gone before anybody hears of the verdict.
                    cleared = review.model.is_empty() && self.clear(task, &review).await.is_ok();
                    if self.conclude(task, outcome).await? {
                        return Ok(());
                    }
                }
                Stage::Merge => self.merge(task, &review).await?,
                Stage::Over => {
                    if !cleared && !review.command.is_empty() {
                        self.clear(task, &review).await?;
                        cleared = true;
                    }
                    if self.finish(task).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Marks it running; `None` where it was cancelled just now.
    async fn begin(&self, task: &Claimed) -> Result<Option<Review>> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let befallen = parts.jobs.befall(&mut tx, &task.subject, Happening::Claimed, Ending::default()).await?;
        let Some((_, mut told)) = befallen else { return self.without_job(tx, task).await };
        let Some(mut review) = store::reviews::lock(&mut tx, &task.subject).await? else { return Ok(None) };
        let is_first = review.status == ReviewStatus::Queued;
        review.status = ReviewStatus::Running;
        store::reviews::save(&mut tx, &review).await?;
        if is_first {
            told.join(self.reviews.activity(&mut tx, &review, "review.started", None).await?);
        }
        tx.commit().await?;
        parts.jobs.tell(told);
        Ok(Some(review))
    }

    /// A review at work whose job is not would be looked at for ever.
    async fn without_job(&self, mut tx: crate::database::Conn, task: &Claimed) -> Result<Option<Review>> {
        let Some(review) = store::reviews::lock(&mut tx, &task.subject).await? else { return Ok(None) };
        if review.stage() == Stage::Review {
            let why = Some("the review's job has ended without a verdict".to_owned());
            let review = review.judged(ReviewStatus::Error, why, self.parts().clock.now());
            store::reviews::save(&mut tx, &review).await?;
        }
        tx.commit().await?;
        Ok(None)
    }

    /// Writes the outcome down, as often as it takes while the database is away. True where the task was let go of.
    async fn conclude(&self, task: &Claimed, outcome: Outcome) -> Result<bool> {
        loop {
            match self.try_conclude(task, &outcome).await {
                Err(error) if error.hidden_cause().is_some() => {
                    tracing::warn!(%error, review.id = task.subject, "a review's end is not stored yet");
                    tokio::time::sleep(RETRY).await;
                }
                concluded => return concluded,
            }
        }
    }

    async fn try_conclude(&self, task: &Claimed, outcome: &Outcome) -> Result<bool> {
        let parts = self.parts();
        let (happening, status, summary) = match outcome {
            Outcome::GivenUp => return Ok(false),
            Outcome::Judged { passed: true, summary } => (Happening::Answered, ReviewStatus::Passed, summary),
            Outcome::Judged { passed: false, summary } => (Happening::Answered, ReviewStatus::Failed, summary),
            Outcome::Failed { message, retry } => (Happening::Failed { retry: *retry }, ReviewStatus::Error, message),
            Outcome::Again(_) => (Happening::GivenBack, ReviewStatus::Queued, &String::new()),
        };
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let ending = ending(status, summary);
        let befallen = parts.jobs.befall(&mut tx, &task.subject, happening, ending).await?;
        // Cancelled meanwhile.
        let Some((then, mut told)) = befallen else { return Ok(false) };
        let review = store::reviews::lock(&mut tx, &task.subject).await?.ok_or_else(stale)?;
        let pause = match (then, outcome) {
            (Then::Again(_), Outcome::Again(pause)) => Some(*pause),
            (Then::Again(pause), _) => Some(pause),
            _ => None,
        };
        let review = match pause {
            Some(_) => Review { status: ReviewStatus::Queued, command_id: None, ..review },
            None => review.judged(status, Some(summary.clone()).filter(|text| !text.is_empty()), parts.clock.now()),
        };
        store::reviews::save(&mut tx, &review).await?;
        if let Some(pause) = pause {
            parts.queue.put_back(&mut tx, task, pause).await?;
        } else {
            let kind = if status == ReviewStatus::Passed { "review.passed" } else { "review.failed" };
            told.join(self.reviews.activity(&mut tx, &review, kind, None).await?);
        }
        tx.commit().await?;
        parts.jobs.tell(told);
        if pause.is_some() {
            self.reviews.wake(&review);
            parts.queue.wake_later();
        }
        Ok(pause.is_some())
    }

    /// The last thing. False where it was asked for once more just now.
    async fn finish(&self, task: &Claimed) -> Result<bool> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let review = store::reviews::lock(&mut tx, &task.subject).await?;
        if review.is_some_and(|review| review.stage() != Stage::Over) {
            return Ok(false);
        }
        parts.queue.finish(&mut tx, task).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes the worktree, and ends a command that nobody waits for any more.
    async fn clear(&self, task: &Claimed, review: &Review) -> Result<()> {
        // What somebody else has begun meanwhile stays.
        if !store::tasks::is_held(&mut self.parts().core.conn().await?, task.id, task.fence).await? {
            return Err(stale());
        }
        self.end_command(review).await?;
        let removed = self.parts().workspaces.remove_review(&review.project_id, &review.id).await;
        removed.inspect_err(|error| tracing::warn!(%error, review.id, "the worktree of a review is left for now"))
    }

    /// Its workers kept dying; the task is put aside after this.
    async fn give_up(&self, task: &Claimed) -> Result<()> {
        let parts = self.parts();
        let why = format!("{DEATHS_MAX} processes in a row died while they carried it through");
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let ending = Ending { error: Some(why.clone()), ..Ending::default() };
        let befallen = parts.jobs.befall(&mut tx, &task.subject, Happening::Parked, ending).await?;
        let Some(review) = store::reviews::lock(&mut tx, &task.subject).await? else { return Ok(()) };
        let now = parts.clock.now();
        let (review, kind) = match review.stage() {
            Stage::Review => (review.judged(ReviewStatus::Error, Some(why), now), Some("review.failed")),
            Stage::Merge => (review.merged(crate::domain::review::Merge::Blocked, None, now), None),
            Stage::Over => (review, None),
        };
        store::reviews::save(&mut tx, &review).await?;
        let mut unshown = crate::streams::Unshown::default();
        if let Some(kind) = kind {
            unshown = self.reviews.activity(&mut tx, &review, kind, None).await?;
        }
        tx.commit().await?;
        if let Some((_, told)) = befallen {
            self.tell(told);
        }
        parts.streams.show(unshown);
        Ok(())
    }

    fn tell(&self, told: Told) {
        self.parts().jobs.tell(told);
    }

    /// Resolves when the review is not at work any more: it was cancelled, or it is somebody else's.
    pub(super) async fn is_given_up(&self, id: &str) {
        loop {
            tokio::time::sleep(LOOK).await;
            let looked = async { store::reviews::is_running(&mut self.parts().core.conn().await?, id).await };
            match looked.await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::debug!(%error, review.id = id, "a review could not be looked at"),
            }
        }
    }

    /// An attempt that failed here may go well elsewhere, or a little later.
    fn let_go(&self, task: &Claimed, error: &Error) {
        let parts = self.parts();
        if error.kind() == Kind::Unavailable && error.hidden_cause().is_none() {
            parts.metrics.stale_write(REVIEW_TASK);
            tracing::info!(review.id = task.subject, "another process carries this review on");
            // Unless only an answer of the database was lost.
            return parts.queue.give_back(task, Duration::ZERO);
        }
        tracing::warn!(%error, review.id = task.subject, "a review goes on shortly");
        let times = u32::try_from(task.attempt - 1).unwrap_or(0).min(6);
        parts.queue.give_back(task, (LATER * 2_u32.pow(times)).min(LATEST));
    }
}

/// What its job shows.
fn ending(status: ReviewStatus, summary: &str) -> Ending {
    let summary = kept(summary);
    let verdict = match status {
        ReviewStatus::Passed => "pass",
        ReviewStatus::Failed => "fail",
        _ => return Ending { error: Some(summary), ..Ending::default() },
    };
    let result = json!({"verdict": verdict, "summary": summary});
    Ending { result: Some(result.to_string().into_bytes()), ..Ending::default() }
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
                return self.parts().queue.give_back(&task, RETRY);
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

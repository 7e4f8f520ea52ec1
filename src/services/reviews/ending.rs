//! How a review ends: an attempt's outcome written down, the task finished, or all of it given up.
//! What an attempt found out is written as long as that attempt is the one under way, and never else.

use std::time::Duration;

use serde_json::json;

use super::{super::jobs::Ending, Reviewing, running::Outcome};
use crate::{
    database::Conn,
    domain::{
        job::{Happening, Then},
        review::{Merge, Review, ReviewStatus, Stage, kept},
        task::DEATHS_MAX,
    },
    error::Result,
    queue::{Claimed, stale},
    store,
    streams::Unshown,
};

/// Pause before an outcome that could not be written down is written again.
const RETRY: Duration = Duration::from_millis(300);

impl Reviewing {
    /// Writes the outcome down, as often as it takes while the database is away. True where the task was let go of.
    pub(super) async fn conclude(
        &self,
        task: &Claimed,
        mine: &Review,
        outcome: Outcome,
        is_clear: bool,
    ) -> Result<bool> {
        loop {
            match self.try_conclude(task, mine, &outcome, is_clear).await {
                Err(error) if error.hidden_cause().is_some() => {
                    tracing::warn!(%error, review.id = task.subject, "a review's end is not stored yet");
                    tokio::time::sleep(RETRY).await;
                }
                concluded => return concluded,
            }
        }
    }

    async fn try_conclude(&self, task: &Claimed, mine: &Review, outcome: &Outcome, is_clear: bool) -> Result<bool> {
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
        parts.jobs.hold_review(&mut tx, &task.subject).await?;
        let review = store::reviews::lock(&mut tx, &task.subject).await?.ok_or_else(stale)?;
        // Cancelled meanwhile, and perhaps asked for again: that is for another attempt.
        if !review.is_attempt(mine) {
            return Ok(false);
        }
        let befallen = parts.jobs.befall(&mut tx, &task.subject, happening, ending(status, summary)).await?;
        let Some((then, mut told)) = befallen else { return Ok(false) };
        let pause = match (then, outcome) {
            (Then::Again(_), Outcome::Again(pause)) => Some(*pause),
            (Then::Again(pause), _) => Some(pause),
            _ => None,
        };
        let review = match pause {
            Some(_) => Review { status: ReviewStatus::Queued, ..review },
            None => review.judged(status, Some(summary.clone()).filter(|text| !text.is_empty()), parts.clock.now()),
        };
        let review = Review { uncleared: !is_clear, ..review };
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

    /// A review at work whose job is not would be looked at for ever.
    pub(super) async fn without_job(&self, mut tx: Conn, task: &Claimed) -> Result<Option<Review>> {
        let Some(review) = store::reviews::lock(&mut tx, &task.subject).await? else { return Ok(None) };
        let mut unshown = Unshown::default();
        if review.stage() == Stage::Review {
            let why = Some("the review's job has ended without a verdict".to_owned());
            let review = review.judged(ReviewStatus::Error, why, self.parts().clock.now());
            store::reviews::save(&mut tx, &review).await?;
            unshown = self.reviews.activity(&mut tx, &review, "review.failed", None).await?;
        }
        tx.commit().await?;
        self.parts().streams.show(unshown);
        Ok(None)
    }

    /// The last thing. False where it was asked for once more just now.
    pub(super) async fn finish(&self, task: &Claimed, seen: &Review, is_clear: bool) -> Result<bool> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let Some(review) = store::reviews::lock(&mut tx, &task.subject).await? else {
            parts.queue.finish(&mut tx, task).await?;
            tx.commit().await?;
            return Ok(true);
        };
        if review.stage() != Stage::Over || review.attempt != seen.attempt {
            return Ok(false);
        }
        if is_clear && review.uncleared {
            store::reviews::save(&mut tx, &Review { uncleared: false, ..review }).await?;
        }
        parts.queue.finish(&mut tx, task).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Its workers kept dying; the task is put aside after this. A merge that one of them has made is told.
    pub(super) async fn give_up(&self, task: &Claimed) -> Result<()> {
        let parts = self.parts();
        let found = store::reviews::find_any(&mut parts.core.conn().await?, &task.subject).await?;
        let Some(seen) = found else { return Ok(()) };
        let merged = match seen.stage() {
            Stage::Merge => self.is_merged(&seen).await,
            _ => None,
        };
        let is_clear = !seen.uncleared || matches!(self.clear(task, &seen).await, Ok(true));
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let why = format!("{DEATHS_MAX} processes in a row died while they carried it through");
        let ending = Ending { error: Some(why.clone()), ..Ending::default() };
        let befallen = parts.jobs.befall(&mut tx, &task.subject, Happening::Parked, ending).await?;
        let Some(review) = store::reviews::lock(&mut tx, &task.subject).await? else { return Ok(()) };
        let now = parts.clock.now();
        let (review, kind) = match (review.stage(), merged) {
            (Stage::Review, _) => (review.judged(ReviewStatus::Error, Some(why), now), Some("review.failed")),
            (Stage::Merge, Some(sha)) => (review.merged(Merge::Merged, Some(sha), now), Some("review.merged")),
            (Stage::Merge, None) => {
                let review = Review { merge_error: Some(format!("It was not merged: {why}.")), ..review };
                (review.merged(Merge::Blocked, None, now), None)
            }
            (Stage::Over, _) => (review, None),
        };
        store::reviews::save(&mut tx, &Review { uncleared: !is_clear, ..review.clone() }).await?;
        let mut unshown = Unshown::default();
        if let Some(kind) = kind {
            unshown = self.reviews.activity(&mut tx, &review, kind, None).await?;
        }
        // Whoever asks for it once more from here on puts a task of its own in.
        store::tasks::park(&mut tx, task.id, task.fence, "its workers kept dying").await?;
        tx.commit().await?;
        if let Some((_, told)) = befallen {
            parts.jobs.tell(told);
        }
        parts.streams.show(unshown);
        Ok(())
    }

    /// Nothing of the attempts up to this one is left.
    pub(super) async fn note_clear(&self, task: &Claimed, mine: &Review) -> Result<()> {
        let parts = self.parts();
        let mut tx = parts.core.begin().await?;
        parts.queue.hold(&mut tx, task).await?;
        let held = store::reviews::lock(&mut tx, &mine.id).await?;
        if let Some(review) = held.filter(|review| review.attempt == mine.attempt) {
            store::reviews::save(&mut tx, &Review { uncleared: false, ..review }).await?;
        }
        Ok(tx.commit().await?)
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

//! Jobs that are a project's reviews: read, followed and cancelled like any other. What carries one
//! out is `services/reviews`, which says here what befalls the job.

use uuid::Uuid;

use super::{
    super::projects::{record_activity, stamp},
    Conn, Ending, Happening, Job, JobState, Jobs, Result, Told, Unshown, record, states, store,
};
use crate::{
    domain::{
        job::Then,
        review::{Review, ReviewStatus},
    },
    store::jobs::NewReview,
};

impl Jobs {
    /// An id for a review and its job.
    pub fn review_id(&self) -> String {
        self.next_id()
    }

    /// The job of a review, queued; in place of the one that it had before, if any.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put_review(&self, tx: &mut Conn, review: &Review) -> Result<()> {
        store::jobs::delete(tx, std::slice::from_ref(&review.id)).await?;
        let first = record::json("state", &states::state_event(JobState::Queued, None, 0), false);
        let job = NewReview {
            id: &review.id,
            created_by: review.created_by,
            project: &review.project_id,
            model: &review.model,
            created_at: self.inner.parts.clock.now(),
            event: &first,
        };
        Ok(store::jobs::insert_review(tx, &job).await?)
    }

    /// The job of a review, held until the transaction ends.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn hold_review(&self, tx: &mut Conn, id: &str) -> Result<Option<Job>> {
        Ok(store::jobs::lock(tx, id).await?)
    }

    /// Something befalls the job of a review. `None` where it has ended before.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn befall(
        &self,
        tx: &mut Conn,
        id: &str,
        happening: Happening,
        ending: Ending,
    ) -> Result<Option<(Then, Told)>> {
        let Some(mut job) = store::jobs::lock(tx, id).await? else { return Ok(None) };
        let Some(moves) = self.decide(&job, happening) else { return Ok(None) };
        let told = self.apply(tx, &mut job, &moves, ending).await?;
        Ok(Some((moves.then, told)))
    }

    /// A job that is cancelled leaves its review without a verdict. Its task stays: it clears up.
    pub(super) async fn cancel_review(&self, tx: &mut Conn, job: &Job, by: Option<Uuid>) -> Result<Unshown> {
        let parts = &self.inner.parts;
        let found = store::reviews::lock(tx, &job.id).await?;
        let Some(review) = found else { return Ok(Unshown::default()) };
        let why = Some("the review was cancelled".to_owned());
        let review = review.judged(ReviewStatus::Error, why, parts.clock.now());
        store::reviews::save(tx, &review).await?;
        let data = review.event("review.failed", &stamp(&parts.clock), by);
        record_activity(tx, &parts.streams, &review.project_id, &data).await
    }

    /// Cancels the job of a review, wherever that stands.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn cancel_any(&self, id: &str) -> Result<()> {
        let found = store::jobs::find(&mut self.inner.parts.db.conn().await?, id, self.past()).await?;
        let Some(job) = found else { return Ok(()) };
        match self.cancel(&job, None).await {
            Err(error) if error.kind() != crate::error::Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

//! The review that a checkin queues: found out before the transaction, written in it, told late in
//! it, woken after it. Checkins of checkouts and of sessions do it alike.

use uuid::Uuid;

use super::{super::reviews::Due, Checkouts};
use crate::{
    database::Conn,
    domain::{
        checkout::Checkout,
        review::{Review, Wish},
    },
    error::Result,
    store,
    streams::Unshown,
};

/// Of an end that git does not answer.
const TRIES: i32 = 3;

impl Checkouts {
    /// What a checkin of this branch will have reviewed. Asks the git host, so before the transaction; one
    /// that cannot tell where the branch is, not even at the last of some tries, holds no end up.
    ///
    /// # Errors
    /// Those of the database; those of git at a try before the last.
    pub async fn due(&self, project: &str, branch: &str, wish: Wish, tries: i32) -> Result<Option<Due>> {
        let inner = &self.inner;
        let found = inner.projects.find(project).await?;
        let Some(project) = found.filter(|project| inner.reviews.is_wanted(project, wish)) else { return Ok(None) };
        let head = match inner.forge.branch(&project.id, branch).await {
            Err(error) if tries >= TRIES => {
                tracing::error!(%error, project.id, branch, "nothing is reviewed: git does not say where the branch is");
                return Ok(None);
            }
            head => head?,
        };
        Ok(inner.reviews.due(&project, head.as_deref(), wish).await)
    }

    /// Queues the review of a checkout that ends in this transaction.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn queue_review(
        &self,
        tx: &mut Conn,
        checkout: &mut Checkout,
        due: Option<&Due>,
        by: Uuid,
    ) -> Result<Option<Review>> {
        let Some(due) = due else { return Ok(None) };
        let review = self.inner.reviews.insert(tx, due, checkout, by).await?;
        store::checkouts::set_review(tx, checkout.id, &review.id).await?;
        checkout.review_task_id = Some(review.id.clone());
        Ok(Some(review))
    }

    /// Its activity; late in the transaction, for the log stays locked until that ends.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn tell_queued(&self, tx: &mut Conn, review: Option<&Review>) -> Result<Unshown> {
        match review {
            Some(review) => self.inner.reviews.tell_queued(tx, review, review.created_by).await,
            None => Ok(Unshown::default()),
        }
    }

    /// After the commit.
    pub fn wake_review(&self, review: Option<&Review>) {
        if let Some(review) = review {
            self.inner.reviews.wake(review);
        }
    }
}

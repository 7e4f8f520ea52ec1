//! The ends of a checkout: checked in, revoked, its time up; and the time it is given.

use std::time::Duration;

use futures::future::join_all;
use uuid::Uuid;

use super::{CheckedIn, Checkouts, not_active, not_found};
use crate::{
    database::Conn,
    domain::{
        checkout::{Checkout, CheckoutStatus},
        clock::later,
        key::Key,
        project::Project,
        review::Wish,
    },
    error::Result,
    services::receipts::Answer,
    store,
    streams::Unshown,
};

impl Checkouts {
    /// # Errors
    /// "checkout is not active", `CHECKOUT_IN_SESSION`, "checkout not found".
    pub async fn checkin(
        &self,
        caller: &Key,
        project: &Project,
        id: Uuid,
        wish: Wish,
        answer: Answer<CheckedIn>,
    ) -> Result<CheckedIn> {
        // One that is not to be checked in is refused before git is asked.
        let checkout = self.alone(self.get(project, id).await?)?;
        let head = self.inner.forge.branch(&project.id, &checkout.branch).await?;
        let due = self.inner.reviews.due(project, head.as_deref(), wish).await;
        let mut tx = self.inner.db.begin().await?;
        let checkout = self.active_alone(&mut tx, project, id).await?;
        let mut checkout = self.end_in(&mut tx, checkout, CheckoutStatus::CheckedIn, head.as_deref()).await?;
        let queued = self.queue_review(&mut tx, &mut checkout, due.as_ref(), caller.id).await?;
        let checked_in = CheckedIn { checkout };
        answer.keep(&mut tx, &checked_in).await?;
        let mut unshown = self.activity(&mut tx, &checked_in.checkout, "checkout.checked_in", Some(caller.id)).await?;
        unshown.extend(self.tell_queued(&mut tx, queued.as_ref()).await?);
        tx.commit().await?;
        self.wake_review(queued.as_ref());
        self.after_end(&checked_in.checkout, unshown).await?;
        Ok(checked_in)
    }

    /// Revokes one that is no session's.
    ///
    /// # Errors
    /// "checkout is not active", "checkout not found".
    pub async fn revoke(&self, caller: Option<&Key>, project: &str, id: Uuid) -> Result<()> {
        let mut tx = self.inner.db.begin().await?;
        let checkout = store::checkouts::lock(&mut tx, project, id).await?.ok_or_else(not_found)?;
        let checkout = self.end_in(&mut tx, self.active(checkout)?, CheckoutStatus::Revoked, None).await?;
        let unshown = self.activity(&mut tx, &checkout, "checkout.revoked", caller.map(|key| key.id)).await?;
        tx.commit().await?;
        self.after_end(&checkout, unshown).await
    }

    /// Ends those whose time is up. Answers how many.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn expire(&self, limit: i64) -> Result<usize> {
        let now = self.inner.clock.now();
        let due = store::checkouts::due(&mut self.inner.db.conn().await?, now, limit).await?;
        let mut ends = Vec::new();
        for checkout in &due {
            let mut tx = self.inner.db.begin().await?;
            let Some(locked) = store::checkouts::lock(&mut tx, &checkout.project_id, checkout.id).await? else {
                continue;
            };
            if locked.status != CheckoutStatus::Active || locked.expires_at > now {
                continue;
            }
            let ended = self.end_in(&mut tx, locked, CheckoutStatus::Expired, None).await?;
            let unshown = self.activity(&mut tx, &ended, "checkout.expired", None).await?;
            tx.commit().await?;
            ends.push((ended, unshown));
        }
        // Nobody waits for an answer: what is not dead yet is somebody's promise.
        join_all(ends.into_iter().map(async |(ended, unshown)| drop(self.after_end(&ended, unshown).await))).await;
        Ok(due.len())
    }

    /// # Errors
    /// As [`Checkouts::checkin`].
    pub async fn extend(
        &self,
        project: &Project,
        id: Uuid,
        expires_in: Duration,
        answer: Answer<Checkout>,
    ) -> Result<Checkout> {
        let mut tx = self.inner.db.begin().await?;
        self.active_alone(&mut tx, project, id).await?;
        let until = later(self.inner.clock.now(), expires_in);
        let extended = store::checkouts::extend(&mut tx, id, until).await?.ok_or_else(not_active)?;
        answer.keep(&mut tx, &extended).await?;
        tx.commit().await?;
        Ok(extended)
    }

    /// Ends a checkout inside the caller's transaction.
    ///
    /// # Errors
    /// "checkout is not active".
    pub async fn end_in(
        &self,
        tx: &mut Conn,
        checkout: Checkout,
        status: CheckoutStatus,
        head: Option<&str>,
    ) -> Result<Checkout> {
        let now = self.inner.clock.now();
        if !store::checkouts::end(tx, checkout.id, status, head, now).await? {
            return Err(not_active());
        }
        self.promise(tx, checkout.id).await?;
        Ok(Checkout { status, ended_at: Some(now), ..checkout })
    }

    async fn after_end(&self, checkout: &Checkout, unshown: Unshown) -> Result<()> {
        let dead = self.let_die(checkout).await;
        self.inner.streams.show(unshown);
        dead
    }
}

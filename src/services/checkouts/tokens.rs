//! The death of tokens that live at a git host. Whoever ends a checkout revokes its token before
//! answering; a task that was put in with the end does so where that failed, and is tried until
//! it went well or [`REVOCATIONS_MAX`](crate::domain::checkout::REVOCATIONS_MAX) attempts did
//! not. Then only the sweeper goes on, which removes every token that has no open checkout.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Checkouts;
use crate::{
    database::Conn,
    domain::{
        checkout::{Checkout, revoke_again_after},
        task::NewTask,
    },
    error::{Error, Kind, Result},
    forge::{GitError, Known},
    queue::{Claimed, Perform},
    store,
};

const REVOKE_TASK: &str = "checkout.revoke_token";
/// Longer than whoever ends the checkout takes to do it.
const PROMISED: Duration = Duration::from_secs(3);
/// Pause where nothing was tried, or nothing could be written down.
const LATER: Duration = Duration::from_secs(2);
/// While the host is left alone its breaker is looked at this often.
const LOOK: Duration = Duration::from_secs(5);

impl Checkouts {
    /// With the end of a checkout: its token will be revoked, whatever becomes of this process.
    pub(super) async fn promise(&self, tx: &mut Conn, id: Uuid) -> Result<()> {
        if !self.inner.forge.keeps_tokens() {
            return Ok(());
        }
        let task = NewTask::work(REVOKE_TASK, &id.to_string());
        Ok(store::tasks::insert_later(tx, &task, PROMISED.as_secs_f64()).await?)
    }

    /// After the commit of an end: nothing pushed with the token moves a ref after this.
    ///
    /// # Errors
    /// Where a host that keeps its tokens did not say that this one is dead.
    pub async fn let_die(&self, checkout: &Checkout) -> Result<()> {
        let inner = &self.inner;
        let Err(error) = self.revoke_token(&checkout.project_id, checkout.id).await else {
            self.bury(checkout.id).await;
            return Ok(());
        };
        tracing::warn!(%error, checkout.id = %checkout.id, "a token is not known to be dead yet");
        if !inner.forge.keeps_tokens() {
            return Ok(());
        }
        self.count_failure(checkout.id, &error).await;
        inner.queue.wake_later();
        Err(Error::new(
            Kind::Unavailable,
            "UPSTREAM_UNAVAILABLE",
            "the checkout has ended, but the git host has not confirmed yet that its token is dead; it is asked until it does",
        )
        .retry_after(LATER)
        .cause(error))
    }

    async fn revoke_token(&self, project: &str, id: Uuid) -> Result<(), GitError> {
        let inner = &self.inner;
        if !inner.forge.keeps_tokens() {
            return inner.forge.revoke(project, id, None).await;
        }
        let sealed = async { store::tokens::sealed(&mut inner.db.conn().await?, id).await };
        // It goes by its name; the token itself only tells more of a host that says no.
        let sealed = sealed.await.unwrap_or_else(|error| {
            tracing::warn!(%error, checkout.id = %id, "a sealed token could not be read");
            None
        });
        let revoked = inner.forge.revoke(project, id, sealed.as_deref()).await;
        inner.metrics.token_revoked(if revoked.is_ok() { "ok" } else { "error" });
        revoked
    }

    /// The token is dead: nothing is promised any more. What cannot be written down now is found out again.
    async fn bury(&self, id: Uuid) {
        if !self.inner.forge.keeps_tokens() {
            return;
        }
        let write = async {
            let mut tx = self.inner.db.begin().await?;
            store::tasks::cancel(&mut tx, REVOKE_TASK, &id.to_string()).await?;
            store::tokens::bury(&mut tx, id).await?;
            tx.commit().await
        };
        if let Err(error) = write.await {
            tracing::debug!(%error, checkout.id = %id, "a token's death is not written down yet");
        }
    }

    /// How many attempts have failed; `None` where that is not known.
    async fn count_failure(&self, id: Uuid, error: &GitError) -> Option<i16> {
        if matches!(error, GitError::PutOff(_)) {
            return None;
        }
        let count = async { store::tokens::failed(&mut self.inner.db.conn().await?, id).await };
        let counted = count.await;
        counted.unwrap_or_else(|error| {
            tracing::warn!(%error, checkout.id = %id, "a failed revocation is not counted");
            None
        })
    }

    /// Removes the tokens at the host that have no open checkout, or no project, and tells the metrics
    /// how many it would not let go of.
    ///
    /// # Errors
    /// Those of the host and of the database.
    pub async fn sweep_tokens(&self) -> Result<()> {
        if !self.inner.forge.keeps_tokens() {
            return Ok(());
        }
        let swept = self.sweep().await;
        let left = store::tokens::irrevocable(&mut self.inner.db.conn().await?).await?;
        self.inner.metrics.irrevocable_tokens(i64::try_from(left.len()).unwrap_or(i64::MAX));
        swept
    }

    /// The host is asked first: a token that is made later has its row by then.
    async fn sweep(&self) -> Result<()> {
        let inner = &self.inner;
        let known = inner.forge.tokens().await?;
        let of_checkouts = |known: &Known| match known {
            Known::Checkout(id) => Some(*id),
            Known::Reader(_) => None,
        };
        let ids: Vec<Uuid> = known.iter().filter_map(of_checkouts).collect();
        let mut conn = inner.db.conn().await?;
        let open: HashSet<Uuid> = store::tokens::to_live(&mut conn, &ids).await?.into_iter().collect();
        let projects: HashSet<String> = store::projects::all(&mut conn).await?.into_iter().map(|p| p.id).collect();
        let irrevocable = store::tokens::irrevocable(&mut conn).await?;
        drop(conn);
        for token in known {
            let is_wanted = match &token {
                Known::Checkout(id) => open.contains(id),
                Known::Reader(project) => projects.contains(project),
            };
            if is_wanted {
                continue;
            }
            inner.forge.forget(&token).await?;
            tracing::info!(?token, "a token that nothing needs any more was removed from the git host");
            if let Known::Checkout(id) = token {
                self.bury(id).await;
            }
        }
        for gone in irrevocable.into_iter().filter(|id| !ids.contains(id)) {
            self.bury(gone).await;
        }
        Ok(())
    }
}

/// Keeps the promises.
pub struct Revoking(pub Checkouts);

impl Revoking {
    async fn carry(&self, task: &Claimed) -> Result<()> {
        let Self(checkouts) = self;
        let inner = &checkouts.inner;
        let id: Uuid = task.subject.parse().map_err(Error::internal)?;
        let found = store::checkouts::find_any(&mut inner.db.conn().await?, id).await?;
        let project = found.map(|checkout| checkout.project_id).unwrap_or_default();
        let pause = match checkouts.revoke_token(&project, id).await {
            Ok(()) => None,
            Err(GitError::PutOff(after)) => Some(after.min(LOOK)),
            Err(error) => {
                // Of a checkout that went with its project the claims are counted.
                let failures = checkouts.count_failure(id, &error).await;
                let failures = failures.unwrap_or_else(|| task.attempt.try_into().unwrap_or(i16::MAX));
                let pause = revoke_again_after(failures);
                if pause.is_none() {
                    tracing::error!(%error, checkout.id = %id, "a token is irrevocable: the git host did not let go of it");
                    inner.queue.done(task).await?;
                    return Ok(());
                }
                tracing::warn!(%error, checkout.id = %id, failures, "a token is not revoked yet");
                pause
            }
        };
        match pause {
            Some(pause) => inner.queue.give_back(task, pause),
            None => {
                let mut tx = inner.db.begin().await?;
                inner.queue.finish(&mut tx, task).await?;
                store::tokens::bury(&mut tx, id).await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }
}

impl Perform for Revoking {
    fn kinds(&self) -> &'static [&'static str] {
        &[REVOKE_TASK]
    }

    fn perform(self: Arc<Self>, task: Claimed, stop: CancellationToken) -> BoxFuture<'static, ()> {
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                carried = self.carry(&task) => {
                    if let Err(error) = carried {
                        tracing::debug!(%error, checkout.id = task.subject, "a token is revoked shortly");
                        self.0.inner.queue.give_back(&task, LATER);
                    }
                }
            }
        }
        .boxed()
    }

    fn parked(self: Arc<Self>, task: Claimed) -> BoxFuture<'static, Result<()>> {
        async move {
            tracing::error!(
                checkout.id = task.subject,
                "a token is left to the sweeper: whoever revoked it kept dying"
            );
            Ok(())
        }
        .boxed()
    }
}

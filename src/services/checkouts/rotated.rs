//! A new token for a checkout that goes on. Another host makes it outside of every transaction, so
//! the checkout is looked at before and after.

use uuid::Uuid;

use super::{super::receipts::Answer, Checkouts, Opened};
use crate::{domain::project::Project, error::Result, forge::Credential, store};

impl Checkouts {
    /// A new token; the old one is dead at once.
    ///
    /// # Errors
    /// As [`Checkouts::checkin`].
    pub async fn rotate(&self, project: &Project, id: Uuid, answer: Answer<Opened>) -> Result<Opened> {
        let mut tx = self.inner.db.begin().await?;
        let checkout = self.active_alone(&mut tx, project, id).await?;
        tx.commit().await?;
        let credential = self.issue(&checkout).await?;
        let rotated = self.put_in(project, id, credential, &answer).await;
        match &rotated {
            Ok(_) => {
                if let Err(error) = self.inner.forge.end_pushes(id).await {
                    tracing::warn!(%error, checkout.id = %id, "pushes under way were not ended");
                }
            }
            // It may have ended meanwhile, before the new token was made.
            Err(_) if self.inner.forge.keeps_tokens() => {
                if let Err(error) = self.inner.forge.revoke(&project.id, id, None).await {
                    tracing::warn!(%error, checkout.id = %id, "a token that nobody got is left to the sweeper");
                }
            }
            Err(_) => {}
        }
        rotated
    }

    async fn put_in(
        &self,
        project: &Project,
        id: Uuid,
        credential: Credential,
        answer: &Answer<Opened>,
    ) -> Result<Opened> {
        let Credential { token, kept } = credential;
        let mut tx = self.inner.db.begin().await?;
        let checkout = self.active_alone(&mut tx, project, id).await?;
        store::checkouts::set_token(&mut tx, id, kept.hash(), kept.sealed()).await?;
        let opened = Opened { checkout, token };
        answer.keep(&mut tx, &opened).await?;
        tx.commit().await?;
        Ok(opened)
    }
}

//! What a preview has on a cluster, where previews are reached by Ingress: made with the session,
//! gone with it. It leads to this program, so that nobody gets around who lets guests in.

use std::time::Duration;

use uuid::Uuid;

use super::{HIDE_TASK, Sessions};
use crate::{
    database::Conn,
    domain::session::Session,
    error::Result,
    queue::{Claimed, Lane, NewTask},
    runtime::objects::{Exposed, Objects},
    store,
};

/// Pause before a removal that failed is tried again, growing with each.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_MOST: u32 = 60;

impl Sessions {
    pub(super) async fn expose(&self, session: &Session) -> Result<()> {
        let Some(objects) = self.objects() else { return Ok(()) };
        let place = self.inner.workspaces.runtime().place(&session.project_id)?.unwrap_or_default();
        let (id, url) = (session.id.to_string(), self.preview_url(session.id));
        objects.expose(&Exposed { project: &session.project_id, session: &id, url: &url, place: &place }).await
    }

    pub(in crate::services) async fn hide(&self, session: Uuid) -> Result<()> {
        match self.objects() {
            Some(objects) => objects.hide(&session.to_string()).await,
            None => Ok(()),
        }
    }

    /// As [`Sessions::hide`], and an end is not held up by what cannot be removed now: a task sees to that.
    pub(in crate::services) async fn hide_somehow(&self, session: Uuid) -> bool {
        match self.hide(session).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, session.id = %session, "the objects of a preview are removed later");
                false
            }
        }
    }

    /// In the transaction that ends the session.
    pub(in crate::services) async fn hide_later(&self, tx: &mut Conn, session: Uuid) -> Result<()> {
        Ok(self.inner.queue.insert(tx, &NewTask::work(HIDE_TASK, &session.to_string())).await?)
    }

    pub(in crate::services) fn wake_hiding(&self) {
        self.inner.queue.wake(Lane::Work, "");
    }

    pub(in crate::services) async fn resume_hiding(&self, task: &Claimed) {
        let hidden = async {
            if let Ok(id) = task.subject.parse() {
                self.hide(id).await?;
            }
            Ok(store::tasks::finish(&mut self.inner.db.conn().await?, task.id, task.fence).await?)
        };
        let hidden: Result<_> = hidden.await;
        if let Err(error) = hidden {
            tracing::warn!(%error, session.id = task.subject, "the objects of a preview are still there");
            let attempt = u32::try_from(task.attempt).unwrap_or(AGAIN_MOST);
            self.inner.queue.give_back(task, AGAIN * attempt.clamp(1, AGAIN_MOST));
        }
    }

    /// Where previews have objects.
    fn objects(&self) -> Option<Objects> {
        self.inner.preview_ingress.then(|| self.inner.workspaces.runtime().objects()).flatten()
    }
}

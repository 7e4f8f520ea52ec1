//! What stays open is looked at once a second: it ends with its session, with its key, and
//! when its link would. What needs no look-up ends while the database is away, too.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::{
    Previews, TOUCH,
    known::{Known, Right},
};
use crate::{error::Result, store};

/// How often what stays open is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A session that nobody asked for is forgotten after so long.
const FORGET: Duration = Duration::from_mins(1);

impl Previews {
    /// Looks after what is open, until the stop.
    pub async fn keep(&self, stop: CancellationToken) {
        let mut are_told = false;
        while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
            are_told = are_told || self.tell_ports().await.is_ok();
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "not all open previews were looked at; they are shortly");
            }
        }
    }

    /// Other processes of this machine must not show what listens on the ports of this one.
    async fn tell_ports(&self) -> Result<()> {
        let ports: Vec<i32> = self.inner.parts.own_ports.iter().map(|port| i32::from(*port)).collect();
        let mut conn = self.inner.parts.db.conn().await?;
        Ok(store::processes::set_ports(&mut conn, self.inner.parts.process, &ports).await?)
    }

    async fn look(&self) -> Result<()> {
        let now = self.inner.parts.clock.now();
        let mut open = Vec::new();
        for known in self.inner.known.all() {
            let (rights, active) = known.end_by_time(now);
            if !rights.is_empty() || active {
                open.push((known, rights, active));
            }
        }
        self.inner.known.forget(FORGET);
        let mut looked = Ok(());
        for (known, rights, active) in &open {
            let noted = if *active { self.note(known, now).await } else { Ok(()) };
            looked = looked.and(noted).and(self.end_by_key(known, rights).await);
        }
        looked.and(self.end_by_session(open.iter().map(|(known, ..)| known.session).collect()).await)
    }

    async fn end_by_key(&self, known: &Known, rights: &[Right]) -> Result<()> {
        let mut looked = Ok(());
        for right in rights {
            match self.inner.parts.keys.live(right.0).await {
                Ok(Some(_)) => {}
                Ok(None) => known.end(*right),
                Err(error) => looked = Err(error),
            }
        }
        looked
    }

    async fn end_by_session(&self, open: Vec<uuid::Uuid>) -> Result<()> {
        if open.is_empty() {
            return Ok(());
        }
        let alive = store::sessions::alive_of(&mut self.inner.parts.db.conn().await?, &open).await?;
        open.iter().filter(|session| !alive.contains(session)).for_each(|session| self.close(*session));
        Ok(())
    }

    /// What came over something that stays open is activity.
    async fn note(&self, known: &Known, now: DateTime<Utc>) -> Result<()> {
        let Some(before) = known.touches(now, TOUCH) else { return Ok(()) };
        let noted = async {
            store::sessions::touch(&mut self.inner.parts.db.conn().await?, known.session, now).await?;
            Ok(())
        };
        noted.await.inspect_err(|_| known.not_touched(now, before))
    }
}

//! What this process knows of the keys: all live ones, with the epoch they were read at, and when
//! that was last confirmed.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use uuid::Uuid;

use super::Keys;
use crate::{
    domain::{api_key::ApiKey, key::Key},
    error::{Error, Result},
    store,
};

/// Longest that knowledge of the keys is trusted without having been confirmed.
pub(super) const TRUST: Duration = Duration::from_secs(1);
/// Confirmed a little earlier, so that requests rarely wait for it.
pub(super) const CONFIRM: Duration = Duration::from_millis(600);
/// Keys that are not known are looked for in the database, so many at once: guessing must not
/// take the connections of those who do not guess.
pub(super) const LOOK_UPS: usize = 4;

#[derive(Default)]
pub(super) struct Known {
    epoch: i64,
    confirmed: Option<Instant>,
    /// By SHA-256 of the secret.
    by_hash: HashMap<Vec<u8>, Credential>,
    pub(super) by_id: HashMap<Uuid, Arc<Key>>,
}

/// By what a key is looked for.
#[derive(Clone, Copy)]
pub(super) enum Learn<'a> {
    Hash(&'a [u8]),
    Id(Uuid),
}

struct Credential {
    hash: Vec<u8>,
    /// Set for the secret before a rotation.
    until: Option<DateTime<Utc>>,
    key: Arc<Key>,
}

impl Keys {
    pub(super) fn look_up(&self, presented: &ApiKey, now: DateTime<Utc>) -> Option<Arc<Key>> {
        let hash = presented.hash();
        let known = self.read();
        let credential = known.by_hash.get(hash.as_slice()).filter(|c| bool::from(c.hash.as_slice().ct_eq(&hash)))?;
        let in_time = credential.until.is_none_or(|until| now < until);
        (in_time && credential.key.is_live(now)).then(|| credential.key.clone())
    }

    /// Looks for a key that is not known, and knows it from then on. What is added belongs to the
    /// epoch that is known: a change in between is read first.
    pub(super) async fn learn(&self, wanted: Learn<'_>) -> Result<()> {
        let _turn = self.inner.looking_up.acquire().await.map_err(Error::internal)?;
        for _ in 0..3 {
            let mut conn = self.inner.db.conn().await?;
            let found = match wanted {
                Learn::Hash(hash) => store::keys::live_by_hash(&mut conn, hash).await?,
                Learn::Id(id) => store::keys::live_by_id(&mut conn, id).await?,
            };
            drop(conn);
            let Some((found, epoch)) = found else { return Ok(()) };
            if self.write().add_at(epoch, found) {
                return Ok(());
            }
            self.confirm(Duration::ZERO).await?;
        }
        Err(Error::unavailable("the keys", "they change too fast to be read"))
    }

    /// Makes sure that what is known was true at most `age` ago; within [`TRUST`] a database
    /// that does not answer is forgiven.
    pub(super) async fn confirm(&self, age: Duration) -> Result<()> {
        if self.age().is_some_and(|known| known < age) {
            return Ok(());
        }
        let asked = Instant::now();
        let mut failed = self.inner.refreshing.lock().await;
        if self.read().confirmed.is_some_and(|at| at >= asked) {
            return Ok(());
        }
        // Whoever waited for a turn that failed does not take another one of the same length.
        if failed.is_some_and(|at| at >= asked) {
            return self.forgive(age, Error::unavailable("the database", "keys could not be confirmed"));
        }
        let reloaded = tokio::time::timeout(TRUST * 2, self.reload()).await;
        *failed = (!matches!(reloaded, Ok(Ok(())))).then(Instant::now);
        match reloaded {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => self.forgive(age, error),
            Err(_) => self.forgive(age, Error::unavailable("the database", "keys could not be confirmed in time")),
        }
    }

    /// An outage is forgiven for as long as what is known can be trusted.
    fn forgive(&self, age: Duration, error: Error) -> Result<()> {
        if age > Duration::ZERO && self.age().is_some_and(|known| known < TRUST) { Ok(()) } else { Err(error) }
    }

    fn age(&self) -> Option<Duration> {
        self.read().confirmed.map(|at| at.elapsed())
    }

    async fn reload(&self) -> Result<()> {
        let asked = Instant::now();
        let mut conn = self.inner.db.conn().await?;
        let epoch = store::keys::epoch(&mut conn).await?;
        let (known, first) = {
            let known = self.read();
            (known.epoch, known.confirmed.is_none())
        };
        if epoch == known && !first {
            self.write().confirmed = Some(asked);
            return Ok(());
        }
        let mut fresh = Known { epoch, confirmed: Some(asked), ..Known::default() };
        for found in store::keys::all_live(&mut conn).await? {
            fresh.add(found);
        }
        *self.write() = fresh;
        self.inner.changed.send_replace(epoch);
        Ok(())
    }

    /// Waits until every process has either heard of the change or stopped trusting what it knew.
    pub(super) async fn everybody_knows(&self) -> Result<()> {
        let committed = Instant::now();
        self.confirm(Duration::ZERO).await?;
        if self.inner.queue.has_company().await? {
            tokio::time::sleep_until(committed + TRUST).await;
        }
        Ok(())
    }

    pub(super) fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.inner.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.inner.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// False where another epoch is known than the key was found at.
    fn add_at(&mut self, epoch: i64, found: store::keys::KeyWithSecrets) -> bool {
        let same = self.epoch == epoch;
        if same {
            self.add(found);
        }
        same
    }

    fn add(&mut self, found: store::keys::KeyWithSecrets) {
        let key = Arc::new(found.key);
        if let (Some(hash), Some(until)) = (found.previous_hash, key.previous_expires_at) {
            self.by_hash.insert(hash.clone(), Credential { hash, until: Some(until), key: key.clone() });
        }
        let hash = found.secret_hash;
        self.by_hash.insert(hash.clone(), Credential { hash, until: None, key: key.clone() });
        self.by_id.insert(key.id, key);
    }
}

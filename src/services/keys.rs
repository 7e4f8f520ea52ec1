//! API keys. All live ones are held in memory with the epoch they were read at; a process
//! that has not confirmed the epoch within a second accepts nothing until it has. So a
//! request costs no look-up, and a revocation is known everywhere before it is answered. A key
//! that is not known is looked for once: it may be new.

mod known;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use ipnet::IpNet;
use subtle::ConstantTimeEq as _;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use self::known::{CONFIRM, Known, LOOK_UPS, Learn, TRUST};
use super::receipts::Answer;
use crate::{
    database::Db,
    domain::{
        api_key::ApiKey,
        clock::Clock,
        ids::ProjectId,
        key::{BOOTSTRAP, Key},
        scopes::{Scope, ScopeSet},
    },
    error::{Error, Result},
    queue::Queue,
    store,
};

/// What a new key is to be.
pub struct NewKey {
    pub name: String,
    pub scopes: ScopeSet,
    pub project_ids: Option<Vec<String>>,
    pub allowed_cidrs: Option<Vec<IpNet>>,
    pub rate_limit: Option<u32>,
    pub expires_in: Option<Duration>,
}

impl NewKey {
    /// # Errors
    /// 400 that names the field.
    fn check(&self) -> Result<()> {
        if self.name.trim().is_empty() {
            return Err(Error::invalid("name is required"));
        }
        if self.scopes.is_empty() {
            return Err(Error::invalid("scopes must name at least one scope"));
        }
        if self.project_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("project_ids must name at least one project, or be left out"));
        }
        match self.project_ids.iter().flatten().find(|id| ProjectId::parse(id).is_err()) {
            Some(bad) => Err(Error::invalid("project_ids holds an invalid project id").reason(bad.clone())),
            None => Ok(()),
        }
    }
}

/// A key and its secret, which is shown this once.
pub struct Minted {
    pub key: Key,
    pub secret: ApiKey,
}

#[derive(Clone)]
pub struct Keys {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    clock: Clock,
    queue: Queue,
    bootstrap: Option<(ApiKey, Arc<Key>)>,
    known: RwLock<Known>,
    /// When the last attempt failed, behind the turn to make one.
    refreshing: tokio::sync::Mutex<Option<Instant>>,
    looking_up: tokio::sync::Semaphore,
    changed: watch::Sender<i64>,
    used: Mutex<HashMap<Uuid, DateTime<Utc>>>,
}

impl Keys {
    pub fn new(db: Db, clock: Clock, queue: Queue, bootstrap: Option<ApiKey>) -> Self {
        let now = clock.now();
        let inner = Inner {
            db,
            queue,
            bootstrap: bootstrap.map(|secret| {
                let key = Arc::new(bootstrap_key(secret.prefix(), now));
                (secret, key)
            }),
            clock,
            known: RwLock::default(),
            refreshing: tokio::sync::Mutex::default(),
            looking_up: tokio::sync::Semaphore::new(LOOK_UPS),
            changed: watch::Sender::new(-1),
            used: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The key behind a credential.
    ///
    /// # Errors
    /// Unauthenticated, always alike; unavailable while the keys cannot be confirmed.
    pub async fn authenticate(&self, credential: &str, from: Option<IpAddr>) -> Result<Arc<Key>> {
        let presented = ApiKey::parse(credential).ok_or_else(Error::unauthenticated)?;
        if let Some((secret, key)) = &self.inner.bootstrap
            && bool::from(secret.hash().ct_eq(&presented.hash()))
        {
            return Ok(key.clone());
        }
        self.confirm(CONFIRM).await?;
        let now = self.inner.clock.now();
        let key = match self.look_up(&presented, now) {
            Some(key) => key,
            // It may have been made a moment ago, here or by another process.
            None => {
                self.learn(Learn::Hash(&presented.hash())).await?;
                self.look_up(&presented, now).ok_or_else(Error::unauthenticated)?
            }
        };
        if !key.may_come_from(from) {
            return Err(Error::unauthenticated());
        }
        self.note_use(key.id, now);
        Ok(key)
    }

    /// The live key with this id, for what was made by it: tickets, open streams.
    ///
    /// # Errors
    /// Unavailable while the keys cannot be confirmed.
    pub async fn live(&self, id: Uuid) -> Result<Option<Arc<Key>>> {
        if id == BOOTSTRAP {
            return Ok(self.inner.bootstrap.as_ref().map(|(_, key)| key.clone()));
        }
        self.confirm(CONFIRM).await?;
        if !self.read().by_id.contains_key(&id) {
            self.learn(Learn::Id(id)).await?;
        }
        let now = self.inner.clock.now();
        Ok(self.read().by_id.get(&id).filter(|key| key.is_live(now)).cloned())
    }

    /// What of a key is another where its secret was replaced from outside. The id of
    /// `RDEV_ADMIN_KEY` stays the same whatever the key is: what was made by one must not live on
    /// by the next.
    pub fn generation(&self, id: Uuid) -> Vec<u8> {
        let bootstrap = self.inner.bootstrap.as_ref().filter(|_| id == BOOTSTRAP);
        bootstrap.map(|(secret, _)| secret.hash().to_vec()).unwrap_or_default()
    }

    /// The rights that somebody had who made something, whether or not the key still opens anything.
    ///
    /// # Errors
    /// Those of the database; not found where there never was such a key.
    pub async fn maker(&self, id: Uuid) -> Result<Key> {
        if id == BOOTSTRAP {
            return Ok(bootstrap_key("", self.inner.clock.now()));
        }
        let found = store::keys::find(&mut self.inner.db.conn().await?, id).await?;
        found.ok_or_else(|| Error::not_found("key not found"))
    }

    /// Resolves when the key is revoked or expires.
    pub async fn ended(&self, id: Uuid) {
        let mut changed = self.inner.changed.subscribe();
        loop {
            let known = self.inner.bootstrap.as_ref().filter(|_| id == BOOTSTRAP).map(|(_, key)| key.clone());
            let known = known.or_else(|| self.read().by_id.get(&id).cloned());
            // One that was learnt while all were read anew is not among them: ask again.
            let known = match known {
                None => match Box::pin(self.live(id)).await {
                    Ok(found) => found,
                    Err(_) => {
                        tokio::time::sleep(TRUST).await;
                        continue;
                    }
                },
                known => known,
            };
            let now = self.inner.clock.now();
            let Some(key) = known.filter(|key| key.is_live(now)) else { return };
            // A clock that is set forward is noticed within two seconds.
            let left = key.expires_at.map_or(Duration::MAX, |end| (end - now).to_std().unwrap_or_default());
            let nap = if key.expires_at.is_some() { left.min(Duration::from_secs(2)) } else { Duration::from_hours(1) };
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    /// Looks for changes made by other processes; they matter to open streams.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn refresh(&self) -> Result<()> {
        self.confirm(CONFIRM).await
    }

    /// # Errors
    /// 403 where the key asked for sees more than its maker.
    pub async fn create(&self, maker: &Key, new: NewKey, answer: &Answer<Minted>) -> Result<Minted> {
        new.check()?;
        let project_ids = bounded(maker, new.project_ids)?;
        let minted = self.mint(NewKey { project_ids, ..new });
        // A new key changes nothing that is known, so the epoch stays: who meets it looks it up.
        if !answer.has_slot() {
            store::keys::insert(&mut self.inner.db.conn().await?, &minted.key, &minted.secret.hash()).await?;
            return Ok(minted);
        }
        let mut tx = self.inner.db.begin().await?;
        store::keys::insert(&mut tx, &minted.key, &minted.secret.hash()).await?;
        answer.keep(&mut tx, &minted).await?;
        tx.commit().await?;
        Ok(minted)
    }

    /// Makes an admin key when there is no key at all. `None` when there is one. The secret is
    /// put away before it is valid: a crash in between leaves a key that opens nothing, never
    /// a server that nobody can enter.
    ///
    /// # Errors
    /// Those of the database and of `put_away`.
    pub async fn create_first(&self, put_away: impl FnOnce(&ApiKey) -> std::io::Result<()>) -> Result<Option<Minted>> {
        let mut tx = self.inner.db.begin().await?;
        store::keys::advance_epoch(&mut tx).await?;
        if store::keys::any(&mut tx).await? {
            return Ok(None);
        }
        let minted = self.mint(NewKey {
            name: "admin".into(),
            scopes: ScopeSet::from_iter([Scope::Admin]),
            project_ids: None,
            allowed_cidrs: None,
            rate_limit: None,
            expires_in: None,
        });
        put_away(&minted.secret).map_err(Error::internal)?;
        store::keys::insert(&mut tx, &minted.key, &minted.secret.hash()).await?;
        tx.commit().await?;
        Ok(Some(minted))
    }

    /// # Errors
    /// Not found, also for one that the caller may not see.
    pub async fn get(&self, caller: &Key, id: Uuid) -> Result<Key> {
        if id == BOOTSTRAP && !caller.is_bound() {
            let bootstrap = self.inner.bootstrap.as_ref().map(|(_, key)| Key::clone(key));
            return bootstrap.ok_or_else(|| Error::not_found("key not found"));
        }
        let found = store::keys::find(&mut self.inner.db.conn().await?, id).await?;
        let found = found.filter(|key| covers(caller, key)).ok_or_else(|| Error::not_found("key not found"))?;
        Ok(self.with_latest_use(found))
    }

    /// # Errors
    /// Those of the database.
    pub async fn page(&self, caller: &Key, before: Option<Uuid>, limit: i64) -> Result<Vec<Key>> {
        let bound = caller.project_ids.as_deref();
        let page = store::keys::page(&mut self.inner.db.conn().await?, bound, before, limit).await?;
        Ok(page.into_iter().map(|key| self.with_latest_use(key)).collect())
    }

    /// Answers when no process accepts the key any more.
    ///
    /// # Errors
    /// `BOOTSTRAP_KEY`, `LAST_ADMIN_KEY`, not found.
    pub async fn revoke(&self, caller: &Key, id: Uuid) -> Result<()> {
        if id == BOOTSTRAP {
            self.get(caller, id).await?;
            return Err(bootstrap_stays());
        }
        let key = self.get(caller, id).await?;
        let now = self.inner.clock.now();
        let mut tx = self.inner.db.begin().await?;
        store::keys::advance_epoch(&mut tx).await?;
        let last = key.is_full_admin() && key.is_live(now) && self.inner.bootstrap.is_none();
        if last && !store::keys::another_admin(&mut tx, id, now).await? {
            return Err(Error::conflict("LAST_ADMIN_KEY", "this is the last usable admin key; make another one first"));
        }
        store::keys::mark_revoked(&mut tx, id, now).await?;
        tx.commit().await?;
        self.everybody_knows().await
    }

    /// # Errors
    /// `BOOTSTRAP_KEY`, not found (a revoked one too).
    pub async fn rotate(&self, caller: &Key, id: Uuid, overlap: Duration, answer: &Answer<Minted>) -> Result<Minted> {
        if id == BOOTSTRAP {
            self.get(caller, id).await?;
            return Err(bootstrap_stays());
        }
        let key = self.get(caller, id).await?;
        let now = self.inner.clock.now();
        if !key.is_live(now) {
            return Err(Error::conflict("KEY_NOT_ACTIVE", "this key was revoked or has expired; make a new one"));
        }
        let secret = ApiKey::generate(&mut rand::rng());
        let until = now + TimeDelta::from_std(overlap).unwrap_or(TimeDelta::MAX);
        let mut tx = self.inner.db.begin().await?;
        store::keys::advance_epoch(&mut tx).await?;
        if !store::keys::rotate(&mut tx, id, secret.prefix(), &secret.hash(), until).await? {
            return Err(Error::not_found("key not found"));
        }
        let key = Key { prefix: secret.prefix().to_owned(), previous_expires_at: Some(until), ..key };
        let minted = Minted { key, secret };
        answer.keep(&mut tx, &minted).await?;
        tx.commit().await?;
        // The oldest secret ends at once, here and elsewhere.
        self.everybody_knows().await?;
        Ok(minted)
    }

    /// Writes down when keys were last used.
    ///
    /// # Errors
    /// Those of the database; what was not written is kept.
    pub async fn flush_uses(&self) -> Result<()> {
        let used: Vec<(Uuid, DateTime<Utc>)> = lock(&self.inner.used).drain().collect();
        if used.is_empty() {
            return Ok(());
        }
        let (ids, times): (Vec<_>, Vec<_>) = used.iter().copied().unzip();
        let written = match self.inner.db.conn().await {
            Ok(mut conn) => store::keys::touch(&mut conn, &ids, &times).await,
            Err(error) => Err(error),
        };
        if written.is_err() {
            let mut kept = lock(&self.inner.used);
            for (id, at) in used {
                kept.entry(id).or_insert(at);
            }
        }
        Ok(written?)
    }

    fn mint(&self, new: NewKey) -> Minted {
        let now = self.inner.clock.now();
        let secret = ApiKey::generate(&mut rand::rng());
        let key = Key {
            id: Uuid::now_v7(),
            name: new.name,
            prefix: secret.prefix().to_owned(),
            scopes: new.scopes,
            project_ids: new.project_ids,
            allowed_cidrs: new.allowed_cidrs,
            rate_limit: new.rate_limit,
            created_at: now,
            expires_at: new.expires_in.and_then(|d| TimeDelta::from_std(d).ok()).map(|d| now + d),
            previous_expires_at: None,
            last_used_at: None,
            revoked_at: None,
        };
        Minted { key, secret }
    }

    fn note_use(&self, id: Uuid, now: DateTime<Utc>) {
        lock(&self.inner.used).insert(id, now);
    }

    /// With what this process knows of its use; a secret before a rotation is told of while it is valid.
    pub fn with_latest_use(&self, mut key: Key) -> Key {
        key.previous_expires_at = key.previous_expires_at.filter(|until| *until > self.inner.clock.now());
        let latest = lock(&self.inner.used).get(&key.id).copied();
        key.last_used_at = key.last_used_at.max(latest);
        key
    }
}

/// What a maker that is bound to projects may give: its own projects or some of them.
fn bounded(maker: &Key, wanted: Option<Vec<String>>) -> Result<Option<Vec<String>>> {
    let Some(own) = &maker.project_ids else { return Ok(wanted) };
    match wanted {
        None => Ok(Some(own.clone())),
        Some(ids) => match ids.iter().find(|id| !own.contains(id)) {
            None => Ok(Some(ids)),
            Some(id) => {
                Err(Error::forbidden("this key makes keys for its own projects alone").detail("project_id", id.clone()))
            }
        },
    }
}

/// Whether an admin sees this key: a bound one those for its projects alone.
fn covers(caller: &Key, key: &Key) -> bool {
    match (&caller.project_ids, &key.project_ids) {
        (None, _) => true,
        (Some(own), Some(ids)) => ids.iter().all(|id| own.contains(id)),
        (Some(_), None) => false,
    }
}

fn bootstrap_key(prefix: &str, now: DateTime<Utc>) -> Key {
    Key {
        id: BOOTSTRAP,
        name: "bootstrap".into(),
        prefix: prefix.to_owned(),
        scopes: ScopeSet::from_iter([Scope::Admin]),
        project_ids: None,
        allowed_cidrs: None,
        rate_limit: None,
        created_at: now,
        expires_at: None,
        previous_expires_at: None,
        last_used_at: None,
        revoked_at: None,
    }
}

fn bootstrap_stays() -> Error {
    Error::conflict("BOOTSTRAP_KEY", "the bootstrap key is set by RDEV_ADMIN_KEY; change it there")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

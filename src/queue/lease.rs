//! One row per process start, renewed while it lives. An id never returns: a process
//! that could not renew in time drops what it was doing and goes on under a new one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    database::{Db, DbError},
    store,
};

pub const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
/// Not renewed for so long: others may soon take over, so stop.
const GIVE_UP: Duration = Duration::from_secs(10);

/// This process's standing among the others. Cheap to clone.
#[derive(Clone)]
pub struct Lease {
    current: Arc<Mutex<(Uuid, CancellationToken)>>,
}

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}

impl Lease {
    /// A lease that is not registered yet.
    pub fn new() -> Self {
        Self { current: Arc::new(Mutex::new((Uuid::now_v7(), CancellationToken::new()))) }
    }

    pub fn id(&self) -> Uuid {
        self.lock().0
    }

    pub fn standing(&self) -> CancellationToken {
        self.lock().1.clone()
    }

    /// Registers this process.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn register(&self, db: &Db) -> Result<(), DbError> {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let mut conn = db.conn().await?;
        store::tasks::insert_process(
            &mut conn,
            self.id(),
            &host.to_string_lossy(),
            env!("CARGO_PKG_VERSION"),
            LEASE.as_secs_f64(),
        )
        .await
    }

    /// Renews until `stop`; on the way out the row is left to its owner to remove.
    pub async fn keep(&self, db: Db, stop: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RENEW.min(GIVE_UP.saturating_sub(renewed.elapsed()))) => {}
            }
            let asked = Instant::now();
            match tokio::time::timeout(RENEW, renew(&db, self.id())).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => {
                    self.start_anew(&db).await;
                    renewed = Instant::now();
                }
                Ok(Err(_)) | Err(_) => {
                    tracing::warn!("the lease of this process could not be renewed");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            if renewed.elapsed() >= GIVE_UP && !self.standing().is_cancelled() {
                tracing::warn!("no renewal for {GIVE_UP:?}: letting go of all tasks");
                self.standing().cancel();
            }
            if renewed.elapsed() < GIVE_UP && self.standing().is_cancelled() {
                self.start_anew(&db).await;
            }
        }
    }

    /// Drops the old identity with all that was claimed under it.
    async fn start_anew(&self, db: &Db) {
        let old = std::mem::replace(&mut *self.lock(), (Uuid::now_v7(), CancellationToken::new()));
        old.1.cancel();
        if let Ok(mut conn) = db.conn().await {
            let _ends_by_itself = store::tasks::delete_process(&mut conn, old.0).await;
        }
        if let Err(error) = self.register(db).await {
            tracing::warn!(%error, "could not register this process anew, trying again");
            self.standing().cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Uuid, CancellationToken)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn renew(db: &Db, id: Uuid) -> Result<bool, DbError> {
    store::tasks::renew_process(&mut db.conn().await?, id, LEASE.as_secs_f64()).await
}

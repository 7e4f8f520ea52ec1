//! One row per process start, renewed while it lives. An id never returns: a process
//! that could not renew in time drops what it was doing and goes on under a new one.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    database::{Db, DbError},
    domain::task::LEASE,
    store,
};

const RENEW: Duration = Duration::from_secs(5);
/// Pause after a renewal that failed.
const AGAIN: Duration = Duration::from_millis(500);
/// A renewal has so long even where the time is nearly up.
const LEAST: Duration = Duration::from_millis(100);
/// Not renewed for so long: others may soon take over, so stop.
const GIVE_UP: Duration = Duration::from_secs(10);

/// This process's standing among the others. Cheap to clone.
#[derive(Clone)]
pub struct Lease {
    current: Arc<Mutex<(Uuid, CancellationToken)>>,
    /// Jobs that this process runs at once, for others to see.
    slots: u32,
    leaving: Arc<AtomicBool>,
    /// When the last renewal that succeeded was asked for.
    renewed: Arc<Mutex<Instant>>,
}

impl Lease {
    /// A lease that is not registered yet.
    pub fn new(slots: u32) -> Self {
        Self {
            current: Arc::new(Mutex::new((Uuid::now_v7(), CancellationToken::new()))),
            slots,
            leaving: Arc::default(),
            renewed: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// Whether nobody else can have taken over yet. A process that stood still for a while knows by this
    /// before it hears of it.
    pub fn is_sure(&self) -> bool {
        self.age() < GIVE_UP && !self.standing().is_cancelled()
    }

    /// Whether, in an orderly stop, what this process claimed is still its own.
    pub fn wraps_up(&self) -> bool {
        self.is_leaving() && self.age() < GIVE_UP
    }

    fn age(&self) -> Duration {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn renewed_at(&self, asked: Instant) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// An orderly stop: what is under way is to be given back, under the identity that it was claimed with.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.standing().cancel();
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
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
        let slots = i32::try_from(self.slots).unwrap_or(i32::MAX);
        let (id, host, version) = (self.id(), host.to_string_lossy(), env!("CARGO_PKG_VERSION"));
        store::processes::insert(&mut conn, id, &host, version, slots, LEASE.as_secs_f64()).await
    }

    /// Renews until `stop`; on the way out the row is left to its owner to remove.
    pub async fn keep(&self, db: Db, stop: CancellationToken) {
        self.renewed_at(Instant::now());
        let mut pause = RENEW;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = RENEW;
            let asked = Instant::now();
            // An answer that comes after the time is up is as good as none.
            let patience = if self.standing().is_cancelled() { RENEW } else { GIVE_UP.saturating_sub(self.age()) };
            match tokio::time::timeout(patience.clamp(LEAST, RENEW), renew(&db, self.id())).await {
                Ok(Ok(true)) => self.renewed_at(asked),
                Ok(Ok(false)) if !self.is_leaving() => {
                    self.start_anew(&db).await;
                    self.renewed_at(Instant::now());
                }
                Ok(Ok(false)) => {}
                Ok(Err(_)) | Err(_) => {
                    tracing::warn!("the lease of this process could not be renewed");
                    pause = AGAIN;
                }
            }
            if self.age() >= GIVE_UP && !self.standing().is_cancelled() {
                tracing::warn!("no renewal for {GIVE_UP:?}: letting go of all tasks");
                self.standing().cancel();
            }
            if self.age() < GIVE_UP && self.standing().is_cancelled() && !self.is_leaving() {
                self.start_anew(&db).await;
            }
        }
    }

    /// Drops the old identity with all that was claimed under it.
    async fn start_anew(&self, db: &Db) {
        let old = std::mem::replace(&mut *self.lock(), (Uuid::now_v7(), CancellationToken::new()));
        old.1.cancel();
        // Whoever looks next does it otherwise.
        let _ends_by_itself = bury(db, old.0, 0).await;
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
    store::processes::renew(&mut db.conn().await?, id, LEASE.as_secs_f64()).await
}

/// Removes the row of a process that is gone, or about to go, and frees what it held, as one more
/// death of an owner or as none. Answers how much that was.
///
/// # Errors
/// Those of the database.
pub async fn bury(db: &Db, process: Uuid, deaths: i16) -> Result<u64, DbError> {
    let mut tx = db.begin().await?;
    if !store::processes::lock(&mut tx, process).await? {
        return Ok(0);
    }
    let held = store::processes::let_go(&mut tx, process, deaths).await?;
    store::processes::delete(&mut tx, process).await?;
    tx.commit().await?;
    Ok(held)
}

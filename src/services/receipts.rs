//! Idempotency keys: the first answer to a request is kept in the transaction of what it
//! answers for, and a repeat gets it again. Secrets are never kept.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    database::{Conn, Db},
    error::{Error, Kind, Result},
    queue::{Queue, stale},
    store,
};

/// What stands in for a secret in an answer that is kept.
const REDACTED: &str = "[redacted]";

/// Where the answer to one request is to be kept. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slot {
    key_id: Uuid,
    digest: Arc<[u8]>,
    /// Who took the key, under the lease of that time.
    process: Uuid,
    kept: Arc<AtomicBool>,
    _under_way: Arc<UnderWay>,
}

/// Marks a request as running in this process until it is dropped. A row of this process without
/// such a mark was left behind by an outage, and is free.
#[derive(Debug)]
struct UnderWay {
    marks: Marks,
    mark: (Uuid, Vec<u8>),
}

type Marks = Arc<Mutex<HashSet<(Uuid, Vec<u8>)>>>;

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.mark);
    }
}

impl Slot {
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }
}

/// What a request with an `Idempotency-Key` meets.
pub enum Taken {
    /// It is the first: go on, the answer belongs into the slot.
    First(Slot),
    /// The stored status and body, `{"data":…}` or `{"error":…}`.
    Again(u16, Value),
}

#[derive(Clone)]
pub struct Receipts {
    db: Db,
    queue: Queue,
    marks: Marks,
}

impl Receipts {
    pub fn new(db: Db, queue: Queue) -> Self {
        Self { db, queue, marks: Marks::default() }
    }

    /// Looks the key up, or takes it.
    ///
    /// # Errors
    /// `IDEMPOTENCY_KEY_REUSED` with another body, `IDEMPOTENCY_IN_PROGRESS` while the first runs.
    pub async fn take(&self, key_id: Uuid, method: &str, path: &str, key: &str, body: &[u8]) -> Result<Taken> {
        let digest = Sha256::digest(format!("{method}\n{path}\n{key}"));
        let body_hash = Sha256::digest(body);
        let under_way = self.mark(key_id, &digest);
        let mut conn = self.db.conn().await?;
        let (process, is_free) = (self.queue.process(), under_way.is_some());
        let taken = store::idempotency::take(&mut conn, key_id, &digest, &body_hash, process, is_free).await?;
        if let Some(under_way) = under_way.filter(|_| taken) {
            let kept = Arc::default();
            return Ok(Taken::First(Slot {
                key_id,
                digest: digest.to_vec().into(),
                process,
                kept,
                _under_way: Arc::new(under_way),
            }));
        }
        let in_progress = || {
            Error::conflict("IDEMPOTENCY_IN_PROGRESS", "the first request with this idempotency key is still running")
                .retry_after(std::time::Duration::from_secs(1))
        };
        let entry = store::idempotency::find(&mut conn, key_id, &digest).await?.ok_or_else(in_progress)?;
        if entry.body_hash != body_hash.as_slice() {
            return Err(Error::new(
                Kind::Mismatch,
                "IDEMPOTENCY_KEY_REUSED",
                "this idempotency key was used with another body; use a new key for a new request",
            ));
        }
        match (entry.status, entry.answer) {
            (Some(status), Some(answer)) => {
                let value = serde_json::from_slice(&answer).map_err(Error::internal)?;
                Ok(Taken::Again(u16::try_from(status).unwrap_or(200), value))
            }
            _ => Err(in_progress()),
        }
    }

    /// `None` while such a request runs in this process.
    fn mark(&self, key_id: Uuid, digest: &[u8]) -> Option<UnderWay> {
        let mark = (key_id, digest.to_vec());
        let is_new = self.marks.lock().unwrap_or_else(PoisonError::into_inner).insert(mark.clone());
        is_new.then(|| UnderWay { marks: self.marks.clone(), mark })
    }

    /// Keeps an answer that no transaction kept.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn keep_late(&self, slot: &Slot, status: u16, body: &Value) -> Result<()> {
        write(&mut self.db.conn().await?, slot, status, body).await
    }

    /// Forgets a request whose answer is not kept: the next one is the first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn release(&self, slot: &Slot) -> Result<()> {
        let mut conn = self.db.conn().await?;
        Ok(store::idempotency::release(&mut conn, slot.key_id, &slot.digest, slot.process).await?)
    }
}

/// Who else writes something down in the transaction of an outcome.
pub trait Keep: Send + Sync {
    /// # Errors
    /// Those of the database; [`stale`] where nobody waits for the outcome any more: roll back.
    fn keep<'a>(&'a self, tx: &'a mut Conn, shown: Value) -> BoxFuture<'a, Result<()>>;
}

/// How a service's outcome will be shown, so that the answer can be kept in its transaction.
pub struct Answer<T> {
    slot: Option<Slot>,
    keeper: Option<Arc<dyn Keep>>,
    status: u16,
    secrets: &'static [&'static str],
    show: Box<dyn Fn(&T) -> Value + Send + Sync>,
}

impl<T> Answer<T> {
    pub fn new(
        slot: Option<Slot>,
        status: u16,
        secrets: &'static [&'static str],
        show: impl Fn(&T) -> Value + Send + Sync + 'static,
    ) -> Self {
        Self { slot, keeper: None, status, secrets, show: Box::new(show) }
    }

    /// For work that somebody else than a client waits for.
    pub fn kept_by(keeper: Arc<dyn Keep>, show: impl Fn(&T) -> Value + Send + Sync + 'static) -> Self {
        Self { keeper: Some(keeper), ..Self::new(None, 200, &[], show) }
    }

    /// For work that nobody waits for.
    pub fn none() -> Self {
        Self::new(None, 200, &[], |_| Value::Null)
    }

    /// Whether somebody wants it kept.
    pub fn has_slot(&self) -> bool {
        self.slot.is_some() || self.keeper.is_some()
    }

    /// Keeps the answer with everything else that this transaction does.
    ///
    /// # Errors
    /// Those of the database; [`stale`] when another process answers this request by now: roll back.
    pub async fn keep(&self, tx: &mut Conn, outcome: &T) -> Result<()> {
        if let Some(keeper) = &self.keeper {
            keeper.keep(tx, (self.show)(outcome)).await?;
        }
        let Some(slot) = &self.slot else { return Ok(()) };
        let mut data = (self.show)(outcome);
        redact(&mut data, self.secrets);
        write(tx, slot, self.status, &json!({"data": data})).await
    }
}

/// Puts a fixed word in place of secret fields.
pub fn redact(data: &mut Value, secrets: &[&str]) {
    for name in secrets {
        if let Some(field) = data.get_mut(*name) {
            *field = REDACTED.into();
        }
    }
}

async fn write(c: &mut Conn, slot: &Slot, status: u16, body: &Value) -> Result<()> {
    let bytes = body.to_string().into_bytes();
    let status = i32::from(status);
    if !store::idempotency::answer(c, slot.key_id, &slot.digest, slot.process, status, &bytes).await? {
        return Err(stale());
    }
    slot.kept.store(true, Ordering::Release);
    Ok(())
}

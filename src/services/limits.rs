//! What one caller may use of this process: requests a minute, failed authentications
//! from an address, open streams. Counted in memory, by a token bucket refilled evenly.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    domain::clock::Clock,
    error::{Error, Kind, Result},
};

const MINUTE: f64 = 60.0;
/// Buckets kept before the full ones, which say nothing, are dropped.
const MANY: usize = 4096;

/// What is left after a request was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    pub limit: u32,
    pub remaining: u32,
    /// Until the bucket is full again.
    pub reset: Duration,
}

/// The limits of this process. Cheap to clone.
#[derive(Clone)]
pub struct Limits {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    requests: u32,
    failures: u32,
    streams: i64,
    by_key: Mutex<HashMap<Uuid, Bucket>>,
    by_address: Mutex<HashMap<IpAddr, Bucket>>,
    open_streams: Mutex<HashMap<Uuid, i64>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: DateTime<Utc>,
}

impl Limits {
    /// Requests and failures a minute, streams at once; `0` switches a limit off.
    pub fn new(clock: Clock, requests: u32, failures: u32, streams: i64) -> Self {
        let inner = Inner {
            clock,
            requests,
            failures,
            streams,
            by_key: Mutex::default(),
            by_address: Mutex::default(),
            open_streams: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Counts a request of a key, whose own limit stands over the general one.
    /// `None` where there is no limit.
    ///
    /// # Errors
    /// `RATE_LIMITED` with the time to the next token, and what the headers are to say.
    pub fn request(&self, key: Uuid, own: Option<u32>) -> Result<Option<Allowance>, (Error, Allowance)> {
        let limit = own.unwrap_or(self.inner.requests);
        if limit == 0 {
            return Ok(None);
        }
        let now = self.inner.clock.now();
        match take(&self.inner.by_key, key, limit, now) {
            Ok(bucket) => Ok(Some(allowance(limit, bucket))),
            Err(bucket) => {
                Err((too_many("the rate limit of this key is used up", limit, bucket), allowance(limit, bucket)))
            }
        }
    }

    /// Counts a failed authentication from an address.
    ///
    /// # Errors
    /// `RATE_LIMITED` instead of the 401 once there were too many.
    pub fn failure(&self, address: Option<IpAddr>) -> Result<()> {
        let limit = self.inner.failures;
        let Some(address) = address.filter(|_| limit > 0) else { return Ok(()) };
        match take(&self.inner.by_address, address, limit, self.inner.clock.now()) {
            Ok(_) => Ok(()),
            Err(bucket) => Err(too_many("too many failed authentications from this address", limit, bucket)),
        }
    }

    /// Counts an open stream of a key until the guard is dropped.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED`.
    pub fn stream(&self, key: Uuid) -> Result<OpenStream> {
        let mut open = lock(&self.inner.open_streams);
        let used = open.entry(key).or_insert(0);
        let max = self.inner.streams;
        if max > 0 && *used >= max {
            return Err(Error::quota("streams_per_key", *used, max));
        }
        *used += 1;
        Ok(OpenStream { limits: self.clone(), key })
    }
}

/// A stream that counts against its key's quota.
pub struct OpenStream {
    limits: Limits,
    key: Uuid,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = lock(&self.limits.inner.open_streams);
        if let Some(used) = open.get_mut(&self.key) {
            *used -= 1;
            if *used <= 0 {
                open.remove(&self.key);
            }
        }
    }
}

fn take<K: Eq + Hash>(
    buckets: &Mutex<HashMap<K, Bucket>>,
    key: K,
    limit: u32,
    now: DateTime<Utc>,
) -> Result<Bucket, Bucket> {
    let capacity = f64::from(limit);
    let mut buckets = lock(buckets);
    if buckets.len() >= MANY {
        buckets.retain(|_, bucket| refilled(*bucket, capacity, now).tokens < capacity);
    }
    let full = Bucket { tokens: capacity, at: now };
    let bucket = buckets.entry(key).or_insert(full);
    *bucket = refilled(*bucket, capacity, now);
    if bucket.tokens < 1.0 {
        return Err(*bucket);
    }
    bucket.tokens -= 1.0;
    Ok(*bucket)
}

fn refilled(bucket: Bucket, capacity: f64, now: DateTime<Utc>) -> Bucket {
    let seconds = (now - bucket.at).to_std().unwrap_or_default().as_secs_f64();
    Bucket { tokens: (bucket.tokens + seconds * capacity / MINUTE).min(capacity), at: now }
}

fn allowance(limit: u32, bucket: Bucket) -> Allowance {
    let missing = f64::from(limit) - bucket.tokens;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the limit")]
    let remaining = bucket.tokens.floor() as u32;
    Allowance { limit, remaining, reset: Duration::from_secs_f64((missing * MINUTE / f64::from(limit)).max(0.0)) }
}

fn too_many(message: &'static str, limit: u32, bucket: Bucket) -> Error {
    let wait = ((1.0 - bucket.tokens) * MINUTE / f64::from(limit)).max(0.001);
    Error::new(Kind::Limited, "RATE_LIMITED", message).retry_after(Duration::from_secs_f64(wait))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

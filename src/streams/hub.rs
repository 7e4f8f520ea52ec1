//! The hub: for each log that somebody here follows, its newest chunks and a bell.
//! It keeps little and loses nothing, because the log is the truth.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::watch;

use super::{Chunk, Key, notify::Outbox};

/// Bytes of the newest chunks kept for a followed log.
const RING_BYTES: usize = 1 << 20;

/// All logs followed in this process. Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    lives: Arc<Mutex<HashMap<Key, Weak<Live>>>>,
    outbox: Outbox,
}

/// One followed log.
pub struct Live {
    pub key: Key,
    ring: Mutex<Ring>,
    bell: watch::Sender<i64>,
    /// One reader of the log at a time: what it brings serves the others.
    pub loading: tokio::sync::Mutex<()>,
    hub: Weak<Mutex<HashMap<Key, Weak<Live>>>>,
}

#[derive(Default)]
struct Ring {
    live: VecDeque<Arc<Chunk>>,
    /// What was read from the log for somebody who was behind.
    replayed: VecDeque<Arc<Chunk>>,
    bytes: usize,
}

impl Hub {
    pub fn new(outbox: Outbox) -> Self {
        Self { lives: Arc::default(), outbox }
    }

    /// Joins the log's followers.
    pub fn join(&self, key: Key) -> Arc<Live> {
        let mut lives = lock(&self.lives);
        if let Some(live) = lives.get(&key).and_then(Weak::upgrade) {
            return live;
        }
        let live = Arc::new(Live {
            key,
            ring: Mutex::default(),
            bell: watch::Sender::new(0),
            loading: tokio::sync::Mutex::default(),
            hub: Arc::downgrade(&self.lives),
        });
        lives.insert(key, Arc::downgrade(&live));
        live
    }

    /// Shows a stored chunk.
    pub fn publish(&self, chunk: Arc<Chunk>) {
        self.outbox.tell(chunk.owner.key, chunk.to);
        if let Some(live) = self.find(chunk.owner.key) {
            live.push(chunk);
        }
    }

    /// Another process stored events up to `n`.
    pub fn ring(&self, key: Key, n: i64) {
        if let Some(live) = self.find(key) {
            live.hear(n);
        }
    }

    /// Everything may have moved (a notification may have been missed): look again.
    pub fn ring_all(&self) -> Vec<Key> {
        lock(&self.lives).keys().copied().collect()
    }

    fn find(&self, key: Key) -> Option<Arc<Live>> {
        lock(&self.lives).get(&key).and_then(Weak::upgrade)
    }
}

impl Live {
    /// Hears of every growth of the log; the value is the newest number known.
    pub fn listen(&self) -> watch::Receiver<i64> {
        self.bell.subscribe()
    }

    pub fn hear(&self, n: i64) {
        self.bell.send_if_modified(|known| {
            let news = n > *known;
            *known = (*known).max(n);
            news
        });
    }

    /// The chunk in memory that holds event `n`.
    pub fn chunk_with(&self, n: i64) -> Option<Arc<Chunk>> {
        let ring = lock(&self.ring);
        find(&ring.live, n).or_else(|| find(&ring.replayed, n))
    }

    /// Keeps what was read from the log, for the next who needs the same.
    pub fn keep_replayed(&self, chunks: &[Arc<Chunk>]) {
        let mut ring = lock(&self.ring);
        ring.replayed.clear();
        ring.replayed.extend(chunks.iter().cloned());
    }

    fn push(&self, chunk: Arc<Chunk>) {
        let to = chunk.to;
        {
            let mut ring = lock(&self.ring);
            if ring.live.back().is_some_and(|newest| newest.to + 1 != chunk.from) {
                ring.live.clear();
                ring.bytes = 0;
            }
            ring.bytes += chunk.data.len();
            ring.live.push_back(chunk);
            while ring.bytes > RING_BYTES && ring.live.len() > 1 {
                ring.bytes -= ring.live.pop_front().map_or(0, |oldest| oldest.data.len());
            }
        }
        self.hear(to);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(lives) = self.hub.upgrade() {
            let mut lives = lock(&lives);
            if lives.get(&self.key).is_some_and(|weak| weak.strong_count() == 0) {
                lives.remove(&self.key);
            }
        }
    }
}

fn find(chunks: &VecDeque<Arc<Chunk>>, n: i64) -> Option<Arc<Chunk>> {
    let index = chunks.partition_point(|chunk| chunk.to < n);
    chunks.get(index).filter(|chunk| chunk.from <= n).cloned()
}

/// A panic while the lock was held leaves nothing half-done here.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! How many sagas a process has in hand at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::queue;

/// Sagas driven at once, each with up to 16 attempts.
const AT_ONCE: usize = 1024;

#[derive(Default)]
pub struct Room {
    held: AtomicUsize,
    freed: Notify,
}

/// Taken by one saga until it is dropped.
pub struct Place(Arc<Room>);

impl Room {
    pub fn enter(self: &Arc<Self>) -> Place {
        self.held.fetch_add(1, Ordering::AcqRel);
        Place(self.clone())
    }

    fn free(&self) -> usize {
        AT_ONCE.saturating_sub(self.held.load(Ordering::Acquire))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only who waits for room because there was none hears of it.
        if self.0.held.fetch_sub(1, Ordering::AcqRel) >= AT_ONCE {
            self.0.freed.notify_one();
        }
    }
}

impl queue::Room for Room {
    fn total(&self) -> usize {
        self.free()
    }

    fn of(&self, queues: &[String]) -> Vec<usize> {
        vec![self.free(); queues.len()]
    }

    fn freed(&self) -> &Notify {
        &self.freed
    }
}

//! The sagas that this process has in hand and that wait: now and then all of them are compared with
//! the database by one statement, so that no driver misses that somebody else has moved its saga.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use uuid::Uuid;

/// The version that each driver knows, and its bell.
type Known = HashMap<Uuid, (i64, Arc<Notify>)>;

#[derive(Clone, Default)]
pub struct Hands(Arc<Mutex<Known>>);

/// One saga, until it is dropped.
pub struct InHand {
    hands: Hands,
    id: Uuid,
    bell: Arc<Notify>,
}

impl Hands {
    pub fn enter(&self, id: Uuid) -> InHand {
        InHand { hands: self.clone(), id, bell: Arc::default() }
    }

    pub fn ids(&self) -> Vec<Uuid> {
        self.lock().keys().copied().collect()
    }

    /// Rings for those that are elsewhere than their drivers know.
    pub fn compare(&self, versions: &[(Uuid, i64)]) {
        let held = self.lock();
        for (id, version) in versions {
            if let Some((_, bell)) = held.get(id).filter(|(known, _)| known < version) {
                bell.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InHand {
    /// The version that its driver knows.
    pub fn is_at(&self, version: i64) {
        self.hands.lock().insert(self.id, (version, self.bell.clone()));
    }

    pub fn bell(&self) -> Arc<Notify> {
        self.bell.clone()
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.hands.lock().remove(&self.id);
    }
}

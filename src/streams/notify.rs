//! How other processes on the same database hear of new events: (log, newest number). News is
//! a hint; each process also looks for itself, because one can be missed.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Hub, Key};
use crate::{
    database::{Db, news::Ear},
    store,
};

pub const CHANNEL: &str = "rdev_streams";
/// How often each followed log is looked at without having been told to.
const LOOK: Duration = Duration::from_secs(1);
/// What fits a notification, at two numbers of 20 digits each.
const NEWS_AT_ONCE: usize = 150;

/// News to tell. Cheap to clone; telling never waits.
#[derive(Clone, Default)]
pub struct Outbox {
    news: Arc<Mutex<HashMap<Key, i64>>>,
    pub some: Arc<Notify>,
}

impl Outbox {
    pub fn tell(&self, key: Key, n: i64) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let known = news.entry(key).or_insert(n);
        *known = (*known).max(n);
        drop(news);
        self.some.notify_one();
    }

    /// What there is to tell, as much as fits; the bell rings again where that was not all.
    pub fn take(&self) -> Option<String> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<Key> = news.keys().take(NEWS_AT_ONCE).copied().collect();
        let mut text = String::new();
        for (key, n) in keys.into_iter().filter_map(|key| Some((key, news.remove(&key)?))) {
            write!(text, "{key}:{n} ").expect("writing to a String succeeds");
        }
        if !news.is_empty() {
            self.some.notify_one();
        }
        (!text.is_empty()).then_some(text)
    }
}

/// What is done with the news of others.
pub fn ear(hub: Hub) -> Ear {
    Arc::new(move |text| {
        for (key, n) in text.split_ascii_whitespace().filter_map(|word| word.split_once(':')) {
            if let (Ok(key), Ok(n)) = (key.parse(), n.parse()) {
                hub.ring(key, n);
            }
        }
    })
}

/// Looks at every followed log each second until `stop`: the truth behind the hints.
pub async fn look(db: Db, hub: Hub, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let keys = hub.ring_all();
        if keys.is_empty() {
            continue;
        }
        let Ok(mut conn) = db.conn().await else { continue };
        let Ok(found) = store::streams::last_numbers(&mut conn, &keys).await else { continue };
        for (key, n) in found {
            hub.ring(key, n);
        }
    }
}

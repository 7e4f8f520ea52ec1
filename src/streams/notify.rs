//! How other processes on the same database hear of new events: (log, newest number),
//! collected and sent as one notification every few milliseconds on a connection of
//! its own, never inside a business transaction. A notification is a hint; each
//! process also looks for itself, because one can be missed.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::postgres::PgListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Hub, Key};
use crate::{database::Db, store};

const CHANNEL: &str = "rdev_streams";
/// How long news is collected before it is sent.
const COLLECT: Duration = Duration::from_millis(15);
/// How often each followed log is looked at without having been told to.
const LOOK: Duration = Duration::from_secs(1);
/// A notification's payload must stay below 8,000 bytes.
const NEWS_AT_ONCE: usize = 150;

/// News to tell. Cheap to clone; telling never waits.
#[derive(Clone, Default)]
pub struct Outbox {
    news: Arc<Mutex<HashMap<Key, i64>>>,
    some: Arc<Notify>,
}

impl Outbox {
    pub fn tell(&self, key: Key, n: i64) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let known = news.entry(key).or_insert(n);
        *known = (*known).max(n);
        drop(news);
        self.some.notify_one();
    }

    fn take(&self) -> Vec<(Key, i64)> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<Key> = news.keys().take(NEWS_AT_ONCE).copied().collect();
        let taken = keys.into_iter().filter_map(|key| Some((key, news.remove(&key)?))).collect();
        if !news.is_empty() {
            self.some.notify_one();
        }
        taken
    }
}

/// Sends the news of this process until `stop`.
pub async fn tell_others(db: Db, outbox: Outbox, me: Uuid, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = outbox.some.notified() => {}
        }
        tokio::time::sleep(COLLECT).await;
        let news = outbox.take();
        if news.is_empty() {
            continue;
        }
        let mut payload = me.to_string();
        for (key, n) in news {
            write!(payload, " {key}:{n}").expect("writing to a String succeeds");
        }
        // Lost news are found by the look that every process takes each second.
        if let Err(error) = send(&db, &payload).await {
            tracing::debug!(%error, "news of streams not sent");
        }
    }
}

async fn send(db: &Db, payload: &str) -> Result<(), crate::database::DbError> {
    store::streams::notify(&mut db.conn().await?, CHANNEL, payload).await
}

/// Hears the news of other processes until `stop`.
pub async fn hear_others(db: Db, hub: Hub, me: Uuid, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let listened = tokio::select! {
            () = stop.cancelled() => return,
            outcome = listen(&db, &hub, me) => outcome,
        };
        if let Err(error) = listened {
            tracing::debug!(%error, "listening for news of streams again in a second");
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn listen(db: &Db, hub: &Hub, me: Uuid) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(db.pool()).await?;
    listener.listen(CHANNEL).await?;
    let mine = me.to_string();
    loop {
        let Some(news) = listener.try_recv().await? else { continue };
        let mut words = news.payload().split(' ');
        if words.next() == Some(mine.as_str()) {
            continue;
        }
        for (key, n) in words.filter_map(|word| word.split_once(':')) {
            if let (Ok(key), Ok(n)) = (key.parse(), n.parse()) {
                hub.ring(key, n);
            }
        }
    }
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

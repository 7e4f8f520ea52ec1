//! News between processes on one database: short texts on named channels, heard by all of them
//! on one connection each. A hint, never the truth: what is missed must be found by looking.

use std::{sync::Arc, time::Duration};

use sqlx::{postgres::PgListener, query};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Db, DbError};

/// Least time between two notifications of a process on a channel: what comes up meanwhile goes
/// together. Never inside a business transaction, whose commits would then queue up behind one lock.
const COLLECT: Duration = Duration::from_millis(15);
/// Pause before listening again after the connection broke.
const AGAIN: Duration = Duration::from_secs(1);
/// A notification's payload must stay below 8,000 bytes.
pub const PAYLOAD_MAX: usize = 7_900;

/// What is done with a text that another process sent.
pub type Ear = Arc<dyn Fn(&str) + Send + Sync>;

/// Sends what `take` has to tell, as often as `some` rings, until `stop`.
pub async fn tell(
    db: Db,
    channel: &'static str,
    me: Uuid,
    some: Arc<Notify>,
    take: impl Fn() -> Option<String> + Send,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = some.notified() => {}
        }
        if let Some(text) = take()
            && let Err(error) = send(&db, channel, &format!("{me} {text}")).await
        {
            tracing::debug!(%error, channel, "news not sent, others find it by looking");
        }
        tokio::time::sleep(COLLECT).await;
    }
}

/// Hears what other processes tell until `stop`.
pub async fn hear(db: Db, me: Uuid, ears: Vec<(&'static str, Ear)>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            outcome = listen(&db, me, &ears) => outcome,
        };
        if let Err(error) = heard {
            tracing::debug!(%error, "listening for news again in a second");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn listen(db: &Db, me: Uuid, ears: &[(&'static str, Ear)]) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(db.pool()).await?;
    listener.listen_all(ears.iter().map(|(channel, _)| *channel)).await?;
    let mine = me.to_string();
    loop {
        let Some(news) = listener.try_recv().await? else { continue };
        let Some((from, text)) = news.payload().split_once(' ') else { continue };
        if from == mine {
            continue;
        }
        for (_, ear) in ears.iter().filter(|(channel, _)| *channel == news.channel()) {
            ear(text);
        }
    }
}

async fn send(db: &Db, channel: &str, text: &str) -> Result<(), DbError> {
    let sql = "select pg_notify($1, $2)";
    db.conn().await?.execute(query(sql).bind(channel).bind(text)).await.map(drop)
}

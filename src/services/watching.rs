//! Who listens to which log: finding the log, and the end of the right to listen.

use futures::FutureExt as _;
use rand::RngExt as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    keys::Keys,
    limits::{Limits, OpenStream},
};
use crate::{
    database::Db,
    domain::clock::Clock,
    error::Result,
    metrics::{CountedStream, Metrics},
    store::{self, streams::Kind},
    streams::{Follower, Found, Start, Streams, frame},
};

/// A log that can be listened to.
pub enum Log<'a> {
    Project,
    Session(&'a str),
    Command(&'a str),
}

#[derive(Clone)]
pub struct Watching {
    db: Db,
    streams: Streams,
    keys: Keys,
    limits: Limits,
    metrics: Metrics,
    /// The server stops: open streams say so and end.
    stop: CancellationToken,
}

/// An open stream: counted until it is dropped.
pub struct Listening {
    pub follower: Follower,
    _open: OpenStream,
    _counted: CountedStream,
}

impl Watching {
    pub fn new(
        db: Db,
        streams: Streams,
        keys: Keys,
        limits: Limits,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        Self { db, streams, keys, limits, metrics, stop }
    }

    /// # Errors
    /// Those of the database.
    pub async fn find(&self, project: &str, log: &Log<'_>) -> Result<Option<Found>> {
        let (kind, name) = match log {
            Log::Project => (Kind::Project, project),
            Log::Session(id) => (Kind::Session, *id),
            Log::Command(id) => (Kind::Command, *id),
        };
        Ok(store::streams::find(&mut self.db.conn().await?, project, kind, name).await?)
    }

    /// Begins to listen, for as long as the key lives and the server does.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED`.
    pub fn listen(&self, key: Uuid, found: &Found, start: Start) -> Result<Listening> {
        let open = self.limits.stream(key)?;
        let counted = self.metrics.stream(&found.project);
        let (keys, stop) = (self.keys.clone(), self.stop.clone());
        let ending = async move {
            tokio::select! {
                () = stop.cancelled() => Some(farewell()),
                () = keys.ended(key) => None,
            }
        };
        let follower = Follower::new(self.streams.clone(), found, start, ending.boxed(), || Clock::System.now());
        Ok(Listening { follower, _open: open, _counted: counted })
    }
}

/// Everybody comes back, but not all in the same second.
fn farewell() -> String {
    let retry: u32 = rand::rng().random_range(1000..=5000);
    format!("retry: {retry}\n{}", frame::unnumbered("shutdown", &json!({"retry": retry})))
}

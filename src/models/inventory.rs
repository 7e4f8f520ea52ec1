//! Which models there are, and which are loaded. Asked again now and then, and once when a name
//! is not known: one asking for any number of requests at once, and none within two seconds of
//! the last.

use std::{collections::HashSet, time::Duration};

use futures::future::join_all;
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};

use super::Upstreams;
use crate::{
    domain::chat,
    error::{Error, Result},
};

/// An upstream that does not list its models in so long is out of reach.
const ANSWER: Duration = Duration::from_secs(5);
/// After an asking, unknown names are taken for unknown for so long.
const FRESH: Duration = Duration::from_secs(2);
/// What is older is asked for again in the background.
const STALE: Duration = Duration::from_secs(30);

/// When was asked last; held while somebody asks.
#[derive(Default)]
pub struct Refreshing(Mutex<Option<Instant>>);

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    models: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    #[serde(default)]
    model: String,
}

impl Upstreams {
    /// Whether an upstream has the model; asked for once where it is not known.
    ///
    /// # Errors
    /// 503 where that cannot be told because an upstream is out of reach.
    pub async fn knows(&self, model: &str) -> Result<bool> {
        if self.has(model) {
            return Ok(true);
        }
        self.refresh_for_unknown().await;
        if self.has(model) {
            return Ok(true);
        }
        let unheard = self.servers().iter().filter(|server| server.models.is_none()).count();
        if unheard > 0 {
            return Err(Error::unavailable("the model upstream", format!("{unheard} never listed their models")));
        }
        Ok(false)
    }

    /// A name is not known: asks, unless that was done a moment ago.
    pub(super) async fn refresh_for_unknown(&self) {
        self.refresh(FRESH).await;
    }

    /// Asks again for what is old.
    pub async fn refresh_stale(&self) {
        if self.is_configured() {
            // With one upstream it does not matter what is loaded where.
            self.refresh(if self.inner.urls.len() > 1 { STALE / 6 } else { STALE }).await;
        }
    }

    /// Asks all upstreams, unless that was done less than `fresh` ago; whoever comes meanwhile waits
    /// for the same answer.
    async fn refresh(&self, fresh: Duration) {
        let mut asked = self.inner.refreshing.0.lock().await;
        if asked.is_some_and(|at| at.elapsed() < fresh) {
            return;
        }
        join_all((0..self.inner.urls.len()).map(|index| self.refresh_one(index))).await;
        *asked = Some(Instant::now());
    }

    /// One that does not answer keeps what was known of it.
    async fn refresh_one(&self, index: usize) {
        let (models, loaded) = tokio::join!(self.listed(index, "/api/tags"), self.listed(index, "/api/ps"));
        self.with(index, |server| {
            server.up = Some(models.is_ok());
            match models {
                Ok(models) => server.models = Some(models),
                Err(error) => tracing::debug!(%error, index, "an upstream does not list its models"),
            }
            if let Ok(loaded) = loaded {
                server.loaded = loaded;
            }
        });
        // Models that are new may have room.
        self.inner.freed.notify_one();
    }

    async fn listed(&self, index: usize, path: &str) -> std::result::Result<HashSet<String>, String> {
        let answer = self.inner.client.get(self.url(index, path)).timeout(ANSWER).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status).map_err(|error| error.to_string())?;
        let bytes = answer.bytes().await.map_err(|error| error.to_string())?;
        let listed: Listed = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        let names = listed.models.into_iter().map(|one| if one.name.is_empty() { one.model } else { one.name });
        Ok(names.filter(|name| !name.is_empty()).map(|name| chat::model_name(&name).into_owned()).collect())
    }
}

//! What models there are, and which are loaded. It is looked up when a name is not known, once
//! for all who ask at the same time, and now and then besides; an upstream that does not answer
//! keeps what it was known to have.

use std::{collections::HashSet, time::Duration};

use futures::future::join_all;
use serde::Deserialize;
use tokio::time::Instant;

use super::{Upstreams, upstream::Upstream};
use crate::{
    domain::chat::model_name,
    error::{Error, Result},
};

/// A name that is not known is not looked up again so soon after the last time.
const AGAIN: Duration = Duration::from_secs(2);
/// What is older is looked up without anybody asking.
const STALE: Duration = Duration::from_secs(20);
/// Names remembered as missing where it is not known what there is.
const MISSING_MAX: usize = 1000;

/// Of one upstream. Names are whole names.
#[derive(Default)]
pub struct Inventory {
    /// `None` until it was looked at.
    models: Option<HashSet<String>>,
    loaded: HashSet<String>,
    /// Until it was looked at: what it was found not to have.
    missing: HashSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    Yes,
    /// It was never asked what it has.
    Perhaps,
    No,
}

impl Inventory {
    pub fn has(&self, model: &str) -> Has {
        match &self.models {
            Some(models) if models.contains(model) => Has::Yes,
            None if !self.missing.contains(model) => Has::Perhaps,
            _ => Has::No,
        }
    }

    pub fn has_loaded(&self, model: &str) -> bool {
        self.loaded.contains(model)
    }

    pub fn is_unknown(&self) -> bool {
        self.models.is_none()
    }

    fn is_empty(&self) -> bool {
        self.models.as_ref().is_none_or(HashSet::is_empty)
    }

    /// It said itself that it has not.
    pub fn lacks(&mut self, model: &str) {
        self.loaded.remove(model);
        match &mut self.models {
            Some(models) => drop(models.remove(model)),
            None if self.missing.len() < MISSING_MAX => drop(self.missing.insert(model.to_owned())),
            None => {}
        }
    }

    /// It has just used it.
    pub fn loads(&mut self, model: &str) {
        if self.has(model) == Has::Yes {
            self.loaded.insert(model.to_owned());
        }
    }

    fn replace(&mut self, models: HashSet<String>) {
        self.models = Some(models);
        self.missing.clear();
    }
}

impl Upstreams {
    /// Whether an upstream has the model. A name that is not known is looked up, unless that was
    /// done a moment ago.
    ///
    /// # Errors
    /// Nobody can tell: what might have it is out of reach.
    pub async fn knows(&self, model: &str) -> Result<bool> {
        let model = model_name(model);
        if self.surely_has(&model) {
            return Ok(true);
        }
        self.look(AGAIN).await;
        if self.surely_has(&model) {
            return Ok(true);
        }
        let standings = self.inner.standings();
        let unknown = standings.iter().any(|standing| standing.inventory.is_unknown());
        let nothing =
            standings.iter().all(|standing| standing.inventory.is_empty() && standing.circuit.is_up() != Some(true));
        if self.is_configured() && (unknown || nothing) {
            return Err(Error::unavailable("the model upstream", "its inventory could not be read"));
        }
        Ok(false)
    }

    /// Whether an upstream has the model, or may have, as far as is known.
    pub fn has(&self, model: &str) -> bool {
        let model = model_name(model);
        self.inner.standings().iter().any(|standing| standing.inventory.has(&model) != Has::No)
    }

    /// Looks up what has not been for a while. To be called every few seconds.
    pub async fn refresh_stale(&self) {
        let unknown = self.inner.standings().iter().any(|standing| standing.inventory.is_unknown());
        let looked = self.look(if unknown { AGAIN } else { STALE }).await;
        // Which of several has a model loaded decides where a job goes.
        if !looked && self.inner.upstreams.len() > 1 {
            join_all((0..self.inner.upstreams.len()).map(|at| self.look_at_loaded(at))).await;
        }
        // A breaker may have become ready for its probe.
        self.inner.freed.notify_one();
    }

    pub(super) fn surely_has(&self, model: &str) -> bool {
        self.inner.standings().iter().any(|standing| standing.inventory.has(model) == Has::Yes)
    }

    /// Looks everywhere, unless somebody did meanwhile, or less than `age` ago; whether it did.
    /// Dropped half-way, the next who waits begins anew.
    async fn look(&self, age: Duration) -> bool {
        let asked = Instant::now();
        let mut looked = self.inner.looked.lock().await;
        if looked.is_some_and(|at| at >= asked || at.elapsed() < age) {
            return false;
        }
        join_all((0..self.inner.upstreams.len()).map(|at| async move {
            tokio::join!(self.look_at_all(at), self.look_at_loaded(at));
        }))
        .await;
        *looked = Some(Instant::now());
        self.inner.freed.notify_one();
        true
    }

    async fn look_at_all(&self, at: usize) {
        let models = names(&self.inner.upstreams[at], "/api/tags", self.inner.timeouts.list).await;
        self.inner.circuit(at).found(models.is_some());
        if let Some(models) = models {
            self.inner.standings()[at].inventory.replace(models);
        }
    }

    async fn look_at_loaded(&self, at: usize) {
        if let Some(loaded) = names(&self.inner.upstreams[at], "/api/ps", self.inner.timeouts.list).await {
            self.inner.standings()[at].inventory.loaded = loaded;
        }
    }
}

/// The models of a list; `None` where no list came.
async fn names(upstream: &Upstream, path: &str, within: Duration) -> Option<HashSet<String>> {
    let answer = upstream.ask(path, None, within).await.ok().filter(|answer| answer.status == 200)?;
    let list: List = serde_json::from_slice(&answer.body).ok()?;
    let names = list.models.unwrap_or_default().into_iter().flat_map(|entry| [entry.name, entry.model]);
    Some(names.flatten().map(|name| model_name(&name).into_owned()).collect())
}

#[derive(Deserialize)]
struct List {
    models: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    name: Option<String>,
    model: Option<String>,
}

//! Model upstreams: Ollama-compatible servers. Each has its own inventory, its own share of the
//! slots of this process and its own breaker, so that one that hangs takes none but its own work
//! with it. Nothing here names an address to a client.

mod call;
mod inventory;
mod pass;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use url::Url;

use crate::domain::{
    breaker::{self, Breaker, Permit},
    chat,
    clock::Clock,
};

pub use self::{
    call::{CallError, ChatStream, Step},
    pass::Passed,
};

/// Longest that a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// All upstreams of this process. Cheap to clone.
#[derive(Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

struct Inner {
    client: reqwest::Client,
    clock: Clock,
    urls: Vec<Url>,
    /// Of the process.
    slots: usize,
    servers: Mutex<Vec<Server>>,
    freed: Arc<Notify>,
    refreshing: inventory::Refreshing,
}

/// What is known of one upstream.
struct Server {
    /// `None` until it has answered once.
    models: Option<HashSet<String>>,
    loaded: HashSet<String>,
    used: usize,
    breaker: Breaker,
    /// Whether it answered the last time.
    up: Option<bool>,
}

/// A slot of an upstream, taken until it is dropped.
pub struct Seat {
    upstreams: Upstreams,
    index: usize,
    model: String,
    permit: Mutex<Option<Permit>>,
}

impl Upstreams {
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(urls: Vec<Url>, slots: usize, clock: Clock) -> Result<Self, String> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_keepalive(Duration::from_secs(30))
            .user_agent(concat!("rdev/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("the HTTP client for model upstreams could not be made: {error}"))?;
        let server = |_: &Url| Server {
            models: None,
            loaded: HashSet::new(),
            used: 0,
            breaker: Breaker::new(breaker::Rules::UPSTREAM),
            up: None,
        };
        let servers = Mutex::new(urls.iter().map(server).collect());
        let (freed, refreshing) = (Arc::default(), inventory::Refreshing::default());
        Ok(Self { inner: Arc::new(Inner { client, clock, urls, slots, servers, freed, refreshing }) })
    }

    pub fn is_configured(&self) -> bool {
        !self.inner.urls.is_empty()
    }

    /// Takes a slot for a job: of an upstream that has the model, or of any where none is known to
    /// have it and so will say so itself. One that has it loaded comes first, then the least busy.
    pub fn seat(&self, model: &str) -> Option<Seat> {
        let now = self.inner.clock.now();
        let share = self.share();
        let mut servers = self.servers();
        if servers.iter().map(|server| server.used).sum::<usize>() >= self.inner.slots {
            return None;
        }
        let mut fitting = candidates(&servers, model);
        fitting.retain(|index| servers[*index].used < share);
        fitting.sort_by_key(|index| (!servers[*index].loaded.contains(model), servers[*index].used));
        for index in fitting {
            if let Ok(permit) = servers[index].breaker.may_call(now) {
                servers[index].used += 1;
                let permit = Mutex::new(Some(permit));
                return Some(Seat { upstreams: self.clone(), index, model: model.to_owned(), permit });
            }
        }
        None
    }

    /// How many more jobs of each of these models could begin now.
    pub fn room(&self, models: &[String]) -> Vec<usize> {
        let now = self.inner.clock.now();
        let share = self.share();
        let servers = self.servers();
        let free = |index: &usize| {
            let server = &servers[*index];
            match server.breaker.snapshot(now).state {
                breaker::State::Closed => share.saturating_sub(server.used),
                _ if server.breaker.would_probe(now) && server.used < share => 1,
                _ => 0,
            }
        };
        models.iter().map(|model| candidates(&servers, model).iter().map(free).sum()).collect()
    }

    pub fn total_free(&self) -> usize {
        self.inner.slots.saturating_sub(self.servers().iter().map(|server| server.used).sum())
    }

    /// Rings when a slot is free again.
    pub fn freed(&self) -> Arc<Notify> {
        self.inner.freed.clone()
    }

    /// Whether an upstream is known to have the model.
    pub fn has(&self, model: &str) -> bool {
        let name = chat::model_name(model);
        self.servers().iter().any(|server| server.has(&name))
    }

    /// Name and condition of each breaker.
    pub fn circuits(&self) -> Vec<(String, breaker::Snapshot)> {
        let now = self.inner.clock.now();
        let named = |(n, server): (usize, &Server)| {
            let name = if n == 0 { "model_upstream".to_owned() } else { format!("model_upstream_{}", n + 1) };
            (name, server.breaker.snapshot(now))
        };
        self.servers().iter().enumerate().map(named).collect()
    }

    /// Whether any answered the last time; `None` where none was asked yet.
    pub fn is_up(&self) -> Option<bool> {
        self.servers().iter().filter_map(|server| server.up).reduce(|any, one| any || one)
    }

    /// An even share of the process's slots, so that one that hangs cannot take them all.
    fn share(&self) -> usize {
        self.inner.slots.div_ceil(self.inner.urls.len().max(1)).max(1)
    }

    fn url(&self, index: usize, path: &str) -> String {
        format!("{}{path}", self.inner.urls[index].as_str().trim_end_matches('/'))
    }

    fn with<T>(&self, index: usize, look: impl FnOnce(&mut Server) -> T) -> T {
        look(&mut self.servers()[index])
    }

    fn servers(&self) -> MutexGuard<'_, Vec<Server>> {
        self.inner.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    fn has(&self, model: &str) -> bool {
        self.models.as_ref().is_some_and(|models| models.contains(model))
    }
}

/// Those that have the model; all where none is known to.
fn candidates(servers: &[Server], model: &str) -> Vec<usize> {
    let having: Vec<usize> = (0..servers.len()).filter(|index| servers[*index].has(model)).collect();
    if having.is_empty() { (0..servers.len()).collect() } else { having }
}

impl Seat {
    /// The upstream did what it is there for, or failed as one that is not well does.
    fn report(&self, well: bool) {
        let now = self.upstreams.inner.clock.now();
        let permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.upstreams.with(self.index, |server| {
            server.up = Some(well);
            match permit {
                Some(permit) if well => server.breaker.succeeded(permit, now),
                Some(permit) => server.breaker.failed(permit, now),
                None => {}
            }
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.upstreams.with(self.index, |server| {
            server.used = server.used.saturating_sub(1);
            if let Some(permit) = permit {
                server.breaker.release(permit);
            }
        });
        self.upstreams.inner.freed.notify_one();
    }
}

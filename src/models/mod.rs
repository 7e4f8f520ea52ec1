//! Model upstreams: Ollama-compatible servers that jobs and conversations are sent to. Each has
//! its own inventory, seats and breaker, so that one which hangs or is gone holds up nobody
//! else. Nothing of a caller reaches them but the body of the request; nothing of where they
//! are reaches a caller.

mod call;
mod chat;

mod inventory;
mod lists;
mod pass;
mod report;
mod seats;
mod upstream;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use url::Url;

use self::{inventory::Inventory, upstream::Upstream};
use crate::{
    domain::{
        breaker::{Rules, Snapshot},
        clock::Clock,
    },
    outward::Circuit,
};

pub use self::{
    call::{CallError, Retry},
    chat::{ChatStream, Step},
    pass::Passed,
    seats::Seat,
};

/// All upstreams of this process. Cheap to clone.
#[derive(Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

struct Inner {
    upstreams: Vec<Upstream>,
    /// Jobs at once, over all of them.
    slots: usize,
    /// Of each of them, so that one that hangs never takes all.
    share: usize,
    clock: Clock,
    timeouts: Timeouts,
    standings: Mutex<Vec<Standing>>,
    /// When the inventories were looked at last. Held while somebody looks.
    looked: tokio::sync::Mutex<Option<Instant>>,
    /// Rings when a seat may be had that could not before.
    freed: Arc<Notify>,
}

/// How one of them stands.
struct Standing {
    inventory: Inventory,
    /// Seats taken.
    used: usize,
    circuit: Circuit,
}

/// How long an upstream is waited for, but in a chat.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    pub connect: Duration,
    /// For what it has, what it has loaded, and its version.
    pub list: Duration,
    /// For what it knows of a model.
    pub show: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), list: Duration::from_secs(5), show: Duration::from_secs(15) }
    }
}

impl Upstreams {
    /// With `slots` seats in all. A rustls provider must be installed.
    pub fn new(urls: Vec<Url>, slots: usize, clock: Clock) -> Result<Self, String> {
        Self::build(urls, slots, clock, Timeouts::default())
    }

    fn build(urls: Vec<Url>, slots: usize, clock: Clock, timeouts: Timeouts) -> Result<Self, String> {
        let share = slots.div_ceil(urls.len().max(1)).max(1);
        let upstreams = upstream::open(urls, timeouts.connect)?;
        let standings = upstreams.iter().map(|upstream| Standing::new(upstream.name(), clock.clone())).collect();
        let inner = Inner {
            upstreams,
            slots,
            share,
            clock,
            timeouts,
            standings: Mutex::new(standings),
            looked: tokio::sync::Mutex::default(),
            freed: Arc::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn is_configured(&self) -> bool {
        !self.inner.upstreams.is_empty()
    }

    /// Whether one of them is up, as they were found last; `None` before anything is known.
    pub fn is_up(&self) -> Option<bool> {
        let standings = self.inner.standings();
        let mut known = standings.iter().filter_map(|standing| standing.circuit.is_up()).peekable();
        known.peek()?;
        Some(known.any(|up| up))
    }

    /// Their breakers, under names that hold no address.
    pub fn circuits(&self) -> Vec<(String, Snapshot)> {
        self.inner.standings().iter().map(|standing| standing.circuit.shown()).collect()
    }
}

impl Inner {
    /// A panic while the lock was held leaves nothing half-done here.
    fn standings(&self) -> MutexGuard<'_, Vec<Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn circuit(&self, at: usize) -> Circuit {
        self.standings()[at].circuit.clone()
    }
}

impl Standing {
    fn new(name: String, clock: Clock) -> Self {
        Self { inventory: Inventory::default(), used: 0, circuit: Circuit::new(name, Rules::UPSTREAM, clock) }
    }
}

#[cfg(test)]
mod tests;

//! What a call tells about its upstream: the breaker hears of connections that fail, of
//! timeouts, of 5xx and of answers that break off as failures, and of any other answer as a
//! success. A call that is dropped says nothing.

use std::sync::Arc;

use super::Inner;
use crate::domain::breaker::{Permit, State};

pub struct Report {
    inner: Arc<Inner>,
    at: usize,
    model: String,
    /// `None` where the call was made without asking the breaker, or has been reported.
    permit: Option<Permit>,
}

impl Report {
    /// Where the breaker permits a call now.
    pub fn ask(inner: &Arc<Inner>, at: usize, model: &str) -> Option<Self> {
        let permit = inner.standings()[at].breaker.may_call(inner.clock.now()).ok()?;
        Some(Self::new(inner, at, model, Some(permit)))
    }

    pub fn new(inner: &Arc<Inner>, at: usize, model: &str, permit: Option<Permit>) -> Self {
        Self { inner: inner.clone(), at, model: model.to_owned(), permit }
    }

    /// The first bytes of a chat are there. A probe has shown enough by that: others need not
    /// wait until it ends, which may take long.
    pub fn begun(&mut self) {
        let now = self.inner.clock.now();
        let mut standings = self.inner.standings();
        let breaker = &mut standings[self.at].breaker;
        if breaker.snapshot(now).state == State::Closed {
            return;
        }
        if let Some(probe) = self.permit.take() {
            breaker.succeeded(probe, now);
            self.permit = breaker.may_call(now).ok();
            drop(standings);
            self.inner.freed.notify_one();
        }
    }

    /// A chat came to its end: the model is in memory there.
    pub fn chatted(&mut self) {
        self.inner.standings()[self.at].inventory.loads(&self.model);
        self.answered();
    }

    /// The model is not there.
    pub fn lacks_model(&mut self) {
        self.inner.standings()[self.at].inventory.lacks(&self.model);
        self.answered();
    }

    /// It answered as one does that is in order, whatever it said.
    pub fn answered(&mut self) {
        self.inner.found(self.at, true);
        if let Some(permit) = self.permit.take() {
            self.inner.standings()[self.at].breaker.succeeded(permit, self.inner.clock.now());
            self.inner.freed.notify_one();
        }
    }

    pub fn failed(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.inner.standings()[self.at].breaker.failed(permit, self.inner.clock.now());
        }
    }

    /// No connection could be made.
    pub fn is_away(&mut self) {
        self.inner.found(self.at, false);
        self.failed();
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.inner.standings()[self.at].breaker.release(permit);
            self.inner.freed.notify_one();
        }
    }
}

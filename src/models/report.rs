//! What a call tells about its upstream: the breaker hears of connections that fail, of
//! timeouts, of 5xx and of answers that break off as failures, and of any other answer as a
//! success. A call that is dropped says nothing.

use std::sync::Arc;

use super::Inner;
use crate::outward::Turn;

pub struct Report {
    inner: Arc<Inner>,
    at: usize,
    model: String,
    /// `None` where the call was made without asking the breaker, or has been reported.
    turn: Option<Turn>,
}

impl Report {
    /// Where the breaker permits a call now.
    pub fn ask(inner: &Arc<Inner>, at: usize, model: &str) -> Option<Self> {
        let turn = inner.circuit(at).turn().ok()?;
        Some(Self::new(inner, at, model, Some(turn)))
    }

    pub fn new(inner: &Arc<Inner>, at: usize, model: &str, turn: Option<Turn>) -> Self {
        Self { inner: inner.clone(), at, model: model.to_owned(), turn }
    }

    /// The first bytes of a chat are there. A probe has shown enough by that: others need not
    /// wait until it ends, which may take long.
    pub fn begun(&mut self) {
        let circuit = self.inner.circuit(self.at);
        if circuit.is_closed() {
            return;
        }
        if let Some(probe) = self.turn.take() {
            probe.went(true);
            self.turn = circuit.turn().ok();
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
        self.inner.circuit(self.at).found(true);
        if let Some(turn) = self.turn.take() {
            turn.went(true);
            self.inner.freed.notify_one();
        }
    }

    pub fn failed(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.went(false);
        }
    }

    /// No connection could be made.
    pub fn is_away(&mut self) {
        self.inner.circuit(self.at).found(false);
        self.failed();
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            drop(turn);
            self.inner.freed.notify_one();
        }
    }
}

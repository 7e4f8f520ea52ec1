//! Seats: how many jobs are with which upstream. A job goes to one that has its model, where its
//! breaker permits, preferably one that has the model loaded, else to the one with the least to
//! do.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::{Inner, Standing, Upstreams, inventory::Has, report::Report};
use crate::domain::chat::model_name;

/// The right to one chat with one upstream at a time, until it is dropped.
pub struct Seat {
    pub(super) inner: Arc<Inner>,
    pub(super) at: usize,
    pub(super) model: String,
    /// What the breaker permitted when the seat was taken.
    report: Mutex<Option<Report>>,
}

impl Upstreams {
    /// A seat where the model is, or `None` where there is no room now. A model that nobody is
    /// known to have gets a seat anywhere: upstream says itself that it has not.
    pub fn seat(&self, model: &str) -> Option<Seat> {
        let model = model_name(model).into_owned();
        let mut standings = self.inner.standings();
        if taken(&standings) >= self.inner.slots {
            return None;
        }
        let at = best_first(&standings, &model).into_iter().find(|at| {
            let standing = &standings[*at];
            standing.places(self.inner.share) > 0
        })?;
        let turn = standings[at].circuit.turn().ok()?;
        standings[at].used += 1;
        drop(standings);
        let report = Report::new(&self.inner, at, &model, Some(turn));
        Some(Seat { inner: self.inner.clone(), at, model, report: Mutex::new(Some(report)) })
    }

    /// How many seats there are now for each of these models, by itself.
    pub fn room(&self, models: &[String]) -> Vec<usize> {
        let standings = self.inner.standings();
        let free = self.inner.slots.saturating_sub(taken(&standings));
        let places = |at: usize| standings[at].places(self.inner.share);
        let of = |model: &String| best_first(&standings, &model_name(model)).into_iter().map(places).sum::<usize>();
        models.iter().map(|model| of(model).min(free)).collect()
    }

    /// Seats that somebody could take now.
    pub fn total_free(&self) -> usize {
        let standings = self.inner.standings();
        let places: usize = standings.iter().map(|standing| standing.places(self.inner.share)).sum();
        places.min(self.inner.slots.saturating_sub(taken(&standings)))
    }

    pub fn used(&self) -> usize {
        taken(&self.inner.standings())
    }

    pub fn slots(&self) -> usize {
        self.inner.slots
    }

    /// Rings when a seat may be had that could not before.
    pub fn freed(&self) -> Arc<Notify> {
        self.inner.freed.clone()
    }

    /// Where a chat with this model may go, best first.
    pub(super) fn best_first(&self, model: &str) -> Vec<usize> {
        best_first(&self.inner.standings(), model)
    }
}

impl Seat {
    /// To report with on the next call; `None` where the breaker has opened meanwhile.
    pub(super) fn report(&self) -> Option<Report> {
        let first = self.report.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.or_else(|| Report::ask(&self.inner, self.at, &self.model))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut standings = self.inner.standings();
        standings[self.at].used = standings[self.at].used.saturating_sub(1);
        drop(standings);
        self.inner.freed.notify_one();
    }
}

impl Standing {
    /// Seats that its breaker permits now.
    fn places(&self, share: usize) -> usize {
        let free = share.saturating_sub(self.used);
        if self.circuit.is_closed() { free } else { free.min(usize::from(self.circuit.would_probe())) }
    }
}

fn taken(standings: &[Standing]) -> usize {
    standings.iter().map(|standing| standing.used).sum()
}

/// Those that have the model, else those that may, else all.
fn best_first(standings: &[Standing], model: &str) -> Vec<usize> {
    let all = 0..standings.len();
    let who = |has: Has| all.clone().filter(move |at| standings[*at].inventory.has(model) == has).collect::<Vec<_>>();
    let mut found =
        [Has::Yes, Has::Perhaps, Has::No].map(who).into_iter().find(|who| !who.is_empty()).unwrap_or_default();
    found.sort_by_key(|at| (!standings[*at].inventory.has_loaded(model), standings[*at].used));
    found
}

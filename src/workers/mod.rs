//! Handlers whose client is the clock: chores that every process may run at once, and the
//! one loop for all of them. What must happen exactly once is a task; see `queue/`.

pub mod actions;
mod address;
mod expiry;
mod gc;
mod inventory;
mod keys;
mod queue;
mod retention;
mod sagas;
mod tokens;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rand::RngExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{domain::clock::Clock, error::Result, metrics::Metrics};

pub use self::{
    address::Readdress,
    expiry::{CheckoutExpiry, SessionExpiry},
    gc::ResourceGc,
    inventory::Inventory,
    keys::KeyUpkeep,
    queue::QueueGauge,
    retention::Retention,
    sagas::SagaTimers,
    tokens::TokenSweeper,
};

/// Something to be done again and again.
pub trait Chore: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn period(&self) -> Duration;

    fn run(&self) -> BoxFuture<'_, Result<()>>;
}

/// Runs each chore in its own time until `stop`.
pub fn start(
    chores: Vec<Arc<dyn Chore>>,
    clock: &Clock,
    metrics: &Metrics,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    for chore in chores {
        let (clock, metrics, stop) = (clock.clone(), metrics.clone(), stop.clone());
        tasks.spawn(async move {
            loop {
                // Jittered, so that several processes do not all come at once.
                let pause = chore.period().mul_f64(rand::rng().random_range(0.8..1.2));
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                let outcome = chore.run().await;
                if let Err(error) = &outcome {
                    tracing::warn!(%error, worker = chore.name(), "a background worker failed, it runs again");
                }
                let result = if outcome.is_ok() { "ok" } else { "error" };
                metrics.worker_ran(chore.name(), result, clock.now().timestamp());
            }
        });
    }
}

//! How many tasks there are, and where breakers stand, for the metrics.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{
    error::Result,
    services::{pool::Pool, upkeep::Upkeep},
};

pub struct QueueGauge(pub Upkeep, pub Pool);

impl Chore for QueueGauge {
    fn name(&self) -> &'static str {
        "queue_gauge"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        async {
            self.1.measure();
            self.0.measure().await
        }
        .boxed()
    }
}

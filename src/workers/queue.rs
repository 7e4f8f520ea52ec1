//! How many tasks there are, for the metrics.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{error::Result, services::upkeep::Upkeep};

pub struct QueueGauge(pub Upkeep);

impl Chore for QueueGauge {
    fn name(&self) -> &'static str {
        "queue_gauge"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        self.0.measure().boxed()
    }
}

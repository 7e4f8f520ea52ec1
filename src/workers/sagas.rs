//! Sagas that wait: those in nobody's memory are looked at by the clock that users see, those in
//! hand by whether somebody else has moved them.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{error::Result, services::sagas::Sagas};

pub struct SagaTimers(pub Sagas);

impl Chore for SagaTimers {
    fn name(&self) -> &'static str {
        "saga_timers"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        async {
            self.0.look_after().await?;
            self.0.bring_due().await
        }
        .boxed()
    }
}

//! Keys: hears of revocations for the sake of open streams, and writes down when keys were used.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{error::Result, services::keys::Keys};

pub struct KeyUpkeep(pub Keys);

impl Chore for KeyUpkeep {
    fn name(&self) -> &'static str {
        "key_upkeep"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        async {
            self.0.refresh().await?;
            self.0.flush_uses().await
        }
        .boxed()
    }
}

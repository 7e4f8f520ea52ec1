//! What models the upstreams have, and which are loaded.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{error::Result, services::jobs::Jobs};

pub struct Inventory(pub Jobs);

impl Chore for Inventory {
    fn name(&self) -> &'static str {
        "inventory"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        async {
            self.0.refresh_inventory().await;
            Ok(())
        }
        .boxed()
    }
}

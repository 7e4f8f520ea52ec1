//! Workspaces whose server died know an address that nobody answers at: they are told this one's.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{error::Result, services::projects::Projects};

pub struct Readdress(pub Projects);

impl Chore for Readdress {
    fn name(&self) -> &'static str {
        "readdress"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        self.0.readdress_stranded().boxed()
    }
}

//! Objects of the cluster that belong to nobody any more.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{error::Result, services::gc::Gc};

pub struct ResourceGc(pub Gc);

impl Chore for ResourceGc {
    fn name(&self) -> &'static str {
        "resource_gc"
    }

    fn period(&self) -> Duration {
        Duration::from_mins(15)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        self.0.collect().boxed()
    }
}

//! What is kept for a time only: jobs that ended, output, answers to idempotent requests, rows of
//! processes that ended, and what pushes left behind in repositories.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{
    error::Result,
    services::{jobs::Jobs, upkeep::Upkeep},
};

pub struct Retention(pub Upkeep, pub Jobs);

impl Chore for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn period(&self) -> Duration {
        Duration::from_mins(5)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        async {
            self.1.sweep().await?;
            self.0.sweep().await
        }
        .boxed()
    }
}

//! Tokens at the git host that nothing needs any more: of checkouts that have ended, of projects that
//! are gone. What revokes them in time is with the checkouts; this finds what was left over.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{error::Result, services::checkouts::Checkouts};

pub struct TokenSweeper(pub Checkouts);

impl Chore for TokenSweeper {
    fn name(&self) -> &'static str {
        "token_sweeper"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        self.0.sweep_tokens().boxed()
    }
}

//! Checkouts and sessions whose time is up. Their tokens are dead by the clock already;
//! this gives them their state and takes their worktrees away.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};

use super::Chore;
use crate::{
    error::Result,
    services::{checkouts::Checkouts, sessions::Sessions},
};

const AT_ONCE: i64 = 50;
const PERIOD: Duration = Duration::from_secs(1);

pub struct CheckoutExpiry(pub Checkouts);

impl Chore for CheckoutExpiry {
    fn name(&self) -> &'static str {
        "checkout_expiry"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        self.0.expire(AT_ONCE).map(|done| done.map(drop)).boxed()
    }
}

pub struct SessionExpiry(pub Sessions);

impl Chore for SessionExpiry {
    fn name(&self) -> &'static str {
        "session_expiry"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn run(&self) -> BoxFuture<'_, Result<()>> {
        async {
            self.0.warn(AT_ONCE).await?;
            self.0.expire(AT_ONCE).await
        }
        .boxed()
    }
}

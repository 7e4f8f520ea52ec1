//! `noop`: does nothing and gives what it was given.

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Map, Value};

use super::{ATTEMPTS, ended};
use crate::{
    domain::saga::{Nature, Outcome, Performs, check::Rules, fields::Fields},
    services::sagas::{Action, Attempt},
};

pub struct Noop;

fn output(config: &Map<String, Value>) -> Result<Value, String> {
    super::read(config, |fields| fields.value("output").unwrap_or_default())
}

impl Rules for Noop {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        false
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        let _anything = fields.value("output");
    }
}

impl Action for Noop {
    fn name(&self) -> &'static str {
        "noop"
    }

    fn nature(&self) -> Nature {
        Nature { performs: Performs::Instantly(output), ..ATTEMPTS }
    }

    /// As a compensation.
    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(attempt.read(|fields| fields.value("output").unwrap_or_default())) }.boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}

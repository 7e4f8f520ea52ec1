//! What the measured steps do, which is nothing: as a `noop` the engine carries it out itself, or
//! in attempts as whatever goes outside, with a write before and after each.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use rdev::{
    domain::saga::{Nature, Outcome, Performs, check::Rules, fields::Fields, spec::StepSpec},
    services::sagas::{Action, Attempt, Registry},
};
use serde_json::{Map, Value};

pub const NOOP: &str = "noop";
pub const ATTEMPTED: &str = "attempted";

struct Nothing {
    name: &'static str,
    performs: Performs,
}

pub fn all() -> Registry {
    let nothing = |name, performs| -> Arc<dyn Action> { Arc::new(Nothing { name, performs }) };
    Registry::new(vec![nothing(NOOP, Performs::Instantly(no_output)), nothing(ATTEMPTED, Performs::Attempts)])
}

#[expect(clippy::unnecessary_wraps, reason = "as the engine calls it")]
fn no_output(_: &Map<String, Value>) -> Result<Value, String> {
    Ok(Value::Null)
}

/// So many steps, one after another.
pub fn linear(action: &str, count: usize) -> Vec<StepSpec> {
    let step = |n| StepSpec { name: format!("step {n}"), action: action.to_owned(), ..StepSpec::default() };
    (0..count).map(step).collect()
}

/// So many steps that wait for none but the first.
pub fn independent(action: &str, count: usize) -> Vec<StepSpec> {
    let mut steps = linear(action, count);
    let first = steps[0].name.clone();
    for step in &mut steps[1..] {
        step.depends_on = Some(vec![first.clone()]);
    }
    steps
}

impl Rules for Nothing {
    fn may_compensate(&self) -> bool {
        false
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

    fn check(&self, _: &mut Fields<'_>) {}
}

impl Action for Nothing {
    fn name(&self) -> &'static str {
        self.name
    }

    fn nature(&self) -> Nature {
        Nature {
            performs: self.performs,
            idempotent: true,
            leaves_doubt: false,
            resumes: false,
            undoes_itself: false,
            verbatim: None,
        }
    }

    fn run<'a>(&'a self, _: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { Outcome::Done(Value::Null) }.boxed()
    }
}

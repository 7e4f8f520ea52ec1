//! Actions that this server knows by name and cannot carry out: it has no cluster.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};

use super::ATTEMPTS;
use crate::{
    domain::saga::{Nature, Outcome, check::Rules, fields::Fields},
    services::sagas::{Action, Attempt},
};

struct Elsewhere {
    name: &'static str,
    undoes_itself: bool,
    has_effect: bool,
    why: &'static str,
}

const CLUSTER: &str = "needs a Kubernetes runtime, which this server does not have";

pub fn all() -> impl Iterator<Item = Arc<dyn Action>> {
    let known = [
        Elsewhere { name: "deploy.apply", undoes_itself: true, has_effect: true, why: CLUSTER },
        Elsewhere { name: "deploy.undeploy", undoes_itself: false, has_effect: true, why: CLUSTER },
    ];
    known.into_iter().map(|one| -> Arc<dyn Action> { Arc::new(one) })
}

impl Elsewhere {
    fn refusal(&self) -> Outcome {
        Outcome::never(format!("{} {}", self.name, self.why))
    }
}

impl Rules for Elsewhere {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        self.undoes_itself
    }

    fn has_effect(&self) -> bool {
        self.has_effect
    }

    fn unavailable(&self) -> Option<&str> {
        Some(self.why)
    }

    fn check(&self, fields: &mut Fields<'_>) {
        fields.project();
    }
}

impl Action for Elsewhere {
    fn name(&self) -> &'static str {
        self.name
    }

    fn nature(&self) -> Nature {
        Nature { undoes_itself: self.undoes_itself, ..ATTEMPTS }
    }

    fn run<'a>(&'a self, _: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { self.refusal() }.boxed()
    }

    fn undo<'a>(&'a self, _: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { self.refusal() }.boxed()
    }
}

//! What steps would do, for people to look at before they do it.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Catalog, Rules};
use crate::domain::saga::{
    graph::Graph,
    spec::{StepSpec, quoted},
};

/// All by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Plan {
    /// Each step after all that it depends on.
    pub order: Vec<String>,
    /// What may run together.
    pub groups: Vec<Vec<String>>,
    /// The steps that have something to undo, in the order in which they are undone, if all of
    /// them were done; those of one group together.
    pub compensation_order: Vec<Vec<String>>,
    /// What is allowed, and may still not be meant.
    pub warnings: Vec<String>,
}

/// Of steps that are found to be sound.
pub fn plan(steps: &[StepSpec], graph: &Graph, catalog: &dyn Catalog) -> Plan {
    let named = |group: &[usize]| group.iter().map(|step| steps[*step].name.clone()).collect::<Vec<_>>();
    let has_undo = |step: usize| {
        let step = &steps[step];
        step.compensation().is_some() || catalog.find(&step.action).is_some_and(Rules::undoes_itself)
    };
    Plan {
        order: named(graph.order()),
        groups: graph.groups().iter().map(|group| named(group)).collect(),
        compensation_order: graph.compensation_order(has_undo).iter().map(|group| named(group)).collect(),
        warnings: steps.iter().flat_map(|step| warnings(step, catalog.find(&step.action))).collect(),
    }
}

fn warnings(step: &StepSpec, rules: Option<&dyn Rules>) -> Vec<String> {
    let (name, action) = (quoted(&step.name), &step.action);
    let mut warnings = Vec::new();
    let leaves_something = rules.is_some_and(|rules| rules.has_effect() && !rules.undoes_itself());
    if leaves_something && step.compensation().is_none() {
        warnings.push(format!("{name} has no compensate: what {action} did stays when the saga is rolled back"));
    }
    if step.compensation().is_none() && step.compensate_config.is_some() {
        warnings.push(format!("{name} has a compensate_config but no compensate: it is not used"));
    }
    let idempotent = step.idempotent.unwrap_or_else(|| rules.is_none_or(Rules::idempotent));
    // Without a policy there are the saga's retries, of which there is one at least.
    let retries = step.retry_policy.as_ref().is_none_or(|policy| policy.retries() > 0);
    if !idempotent && retries {
        warnings.push(format!(
            "{name} is not idempotent but is tried again when it fails: what it did in part may be done twice; \
             set retry_policy.max_retries to 0, or idempotent to true"
        ));
    }
    warnings
}

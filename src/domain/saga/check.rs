//! Whether steps can be a saga: everything that is wrong with them at once, each with its path.
//! Then their graph, which is known from here on to hold no cycle.
//!
//! What actions there are and what they take comes in as a [`Catalog`]. Steps within a config
//! are a saga of their own and are looked at in the same way.

mod plan;
mod references;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ptr};

use serde::Deserialize as _;
use serde_json::{Map, Value};

pub use self::plan::{Plan, plan};
use self::references::{Place, Scope};
use super::{
    condition::Condition,
    fields::{Fields, NUL},
    graph::{self, Fault, Graph},
    reference::contains_reference,
    spec::{Problem, StepSpec, quoted},
};
use crate::domain::durations;

pub const STEPS_MAX: usize = 1_000;
/// Sagas within sagas, the outermost not counted.
pub const NESTING_MAX: usize = 8;
/// Characters of a step's name.
pub const NAME_MAX: usize = 128;

/// What is to be known of an action before it runs.
pub trait Rules {
    /// It may undo what another did.
    fn may_compensate(&self) -> bool;
    fn undoes_itself(&self) -> bool;
    /// It leaves something behind that could be undone.
    fn has_effect(&self) -> bool;
    /// Where the step does not say.
    fn idempotent(&self) -> bool {
        true
    }
    /// Why it cannot run here, if so.
    fn unavailable(&self) -> Option<&str>;
    /// Tells what is wrong with a config.
    fn check(&self, fields: &mut Fields<'_>);
    /// The member `steps` of a config, where it is a saga of its own with `vars` as its variables.
    fn child<'c>(&self, config: &'c Map<String, Value>) -> Option<&'c Value> {
        let _ = config;
        None
    }
}

/// The actions there are.
pub trait Catalog {
    fn find(&self, action: &str) -> Option<&dyn Rules>;
    /// In the order in which they are told.
    fn names(&self) -> Vec<&str>;
}

/// What `${vars.NAME}` may name.
#[derive(Debug, Clone, Copy)]
pub enum Vars<'a> {
    Known(&'a BTreeMap<String, String>),
    /// They come with the saga that is made of these steps.
    Later,
}

/// The graph of the steps, unless it has a cycle or there are none or too many of them, and all
/// that is wrong. `at` is the path of the steps themselves.
pub fn check(steps: &[StepSpec], at: &str, vars: Vars<'_>, catalog: &dyn Catalog) -> (Option<Graph>, Vec<Problem>) {
    let mut check = Check { catalog, problems: Vec::new(), depth: 0 };
    let graph = check.saga(steps, at, vars);
    (graph, check.problems)
}

struct Check<'a> {
    catalog: &'a dyn Catalog,
    problems: Vec<Problem>,
    /// Sagas around this one.
    depth: usize,
}

impl<'a> Check<'a> {
    fn saga(&mut self, steps: &[StepSpec], at: &str, vars: Vars<'_>) -> Option<Graph> {
        if !self.are_few_enough(steps.len(), at) {
            return None;
        }
        let names = graph::names(steps);
        let positions = graph::positions(&names);
        let graph = Graph::telling(&names, &positions, &graph::depends_on(steps), |step, entry, fault| {
            if Problem::are_enough(&self.problems) {
                return;
            }
            let message = match (fault, &steps[step].depends_on) {
                (Fault::Unknown, Some(entries)) => format!("no step is called {}", quoted(&entries[entry])),
                _ => "a step cannot depend on itself".to_owned(),
            };
            self.problem(&format!("{at}[{step}].depends_on[{entry}]"), &message);
        });
        if let Err(cyclic) = &graph {
            self.problem(at, &format!("must not depend on one another in a cycle: {cyclic}"));
        }
        let ancestors = graph.as_ref().map_or_else(|cyclic| &cyclic.ancestors, Graph::ancestors);
        for (own, step) in steps.iter().enumerate() {
            if Problem::are_enough(&self.problems) {
                break;
            }
            let scope = Scope { own, names: &names, positions: &positions, ancestors, vars };
            self.step(step, &format!("{at}[{own}]"), &scope);
        }
        graph.ok()
    }

    fn are_few_enough(&mut self, count: usize, at: &str) -> bool {
        match count {
            0 => self.problem(at, "must hold at least one step"),
            1..=STEPS_MAX => return true,
            _ => self.problem(at, &format!("must hold at most {STEPS_MAX} steps, not {count}")),
        }
        false
    }

    fn step(&mut self, step: &StepSpec, at: &str, scope: &Scope<'_>) {
        self.name(&step.name, &format!("{at}.name"), scope);
        let rules = self.action(&step.action, &format!("{at}.action"));
        let none = Map::new();
        let config = step.config.as_ref().unwrap_or(&none);
        self.config(rules, config, &format!("{at}.config"), Place::Config, scope);
        self.compensation(step, config, at, scope);
        if let Some(policy) = &step.retry_policy {
            for Problem { path, message } in policy.problems(&format!("{at}.retry_policy")) {
                self.problem(&path, &message);
            }
        }
        if let Some(Err(error)) = step.timeout.as_deref().filter(|text| !text.is_empty()).map(durations::parse_positive)
        {
            self.problem(&format!("{at}.timeout"), &error.to_string());
        }
        if let Some(when) = step.condition() {
            self.when(when, &format!("{at}.when"), scope);
        }
    }

    fn name(&mut self, name: &str, at: &str, scope: &Scope<'_>) {
        if name.trim().is_empty() {
            return self.problem(at, "is required");
        }
        if let Some(message) = why_no_name(name) {
            self.problem(at, &message);
        }
        if scope.positions.get(name).is_some_and(|first| *first < scope.own) {
            self.problem(at, &format!("must be a name of its own: an earlier step is called {}", quoted(name)));
        }
    }

    fn action(&mut self, action: &str, at: &str) -> Option<&'a dyn Rules> {
        if action.is_empty() {
            self.problem(at, "is required");
            return None;
        }
        let rules = self.catalog.find(action);
        match rules {
            None => self.unknown(action, at, |_| true),
            Some(rules) => self.runs_here(rules, at),
        }
        rules
    }

    /// `config` is the step's own.
    fn compensation(&mut self, step: &StepSpec, config: &Map<String, Value>, at: &str, scope: &Scope<'_>) {
        let rules = step.compensation().and_then(|action| self.compensating(action, &format!("{at}.compensate")));
        match (&step.compensate_config, rules) {
            (Some(own), _) => {
                self.config(rules, own, &format!("{at}.compensate_config"), Place::Compensation, scope);
            }
            (None, Some(rules)) if step.compensation() != Some(&step.action) => {
                let mut found = Vec::new();
                rules.check(&mut Fields::unresolved(config, "config", &mut found));
                for Problem { path, message } in found {
                    let message = format!("takes the step's config: {path} {message}, or give a compensate_config");
                    self.problem(&format!("{at}.compensate"), &message);
                }
                if let Some(steps) = child_of(rules, config) {
                    self.child(steps, config, &format!("{at}.config.steps"));
                }
            }
            _ => {}
        }
    }

    fn compensating(&mut self, action: &str, at: &str) -> Option<&'a dyn Rules> {
        let Some(rules) = self.catalog.find(action) else {
            self.unknown(action, at, Rules::may_compensate);
            return None;
        };
        if !rules.may_compensate() {
            let known = self.known(Rules::may_compensate);
            self.problem(at, &format!("must be an action that can compensate, one of {known}"));
            return None;
        }
        self.runs_here(rules, at);
        Some(rules)
    }

    fn config(
        &mut self,
        rules: Option<&dyn Rules>,
        members: &Map<String, Value>,
        at: &str,
        place: Place,
        scope: &Scope<'_>,
    ) {
        if let Some(rules) = rules {
            rules.check(&mut Fields::unresolved(members, at, &mut self.problems));
        }
        let child = rules.and_then(|rules| child_of(rules, members));
        let is_child = |value: &Value| child.is_some_and(|child| ptr::eq(child, value));
        let problems = &mut self.problems;
        // What is around a saga has looked at all of its texts.
        let is_outermost = self.depth == 0;
        references::each_text(members, at, &mut |member, path, text| {
            if is_outermost && text.shown().contains('\0') {
                Problem::add(problems, &path.to_string(), NUL);
            }
            if !is_child(member) {
                scope.follow(text, path, place, problems);
            }
        });
        if let Some(steps) = child {
            self.child(steps, members, &format!("{at}.steps"));
        }
    }

    fn child(&mut self, steps: &Value, config: &Map<String, Value>, at: &str) {
        let Value::Array(items) = steps else { return self.problem(at, "must be a list of steps") };
        if self.depth == NESTING_MAX {
            return self.problem(at, &format!("must not be a saga: they nest {NESTING_MAX} deep at most"));
        }
        if !self.are_few_enough(items.len(), at) {
            return;
        }
        let mut steps = Vec::with_capacity(items.len());
        for (position, item) in items.iter().enumerate() {
            match StepSpec::deserialize(item) {
                Ok(step) => steps.push(step),
                Err(error) => self.problem(&format!("{at}[{position}]"), &format!("must be a step: {error}")),
            }
        }
        if steps.len() < items.len() {
            return;
        }
        let vars = match config.get("vars") {
            Some(Value::Object(vars)) => Some(vars.keys().map(|name| (name.clone(), String::new())).collect()),
            Some(Value::String(text)) if contains_reference(text) => None,
            _ => Some(BTreeMap::new()),
        };
        self.depth += 1;
        self.saga(&steps, at, vars.as_ref().map_or(Vars::Later, Vars::Known));
        self.depth -= 1;
    }

    fn when(&mut self, when: &str, at: &str, scope: &Scope<'_>) {
        if when.contains('\0') {
            return self.problem(at, NUL);
        }
        match Condition::parse(when) {
            Ok(condition) => {
                for reference in condition.references() {
                    if let Some(message) = scope.refusal(&reference, Place::When) {
                        self.problem(at, &message);
                    }
                }
            }
            Err(malformed) => self.problem(at, &malformed.message),
        }
    }

    fn runs_here(&mut self, rules: &dyn Rules, at: &str) {
        if let Some(why) = rules.unavailable() {
            self.problem(at, why);
        }
    }

    fn unknown(&mut self, action: &str, at: &str, may: fn(&(dyn Rules + 'a)) -> bool) {
        let known = self.known(may);
        self.problem(at, &format!("{} is no action, give one of {known}", quoted(action)));
    }

    fn known(&self, may: fn(&(dyn Rules + 'a)) -> bool) -> String {
        let names = self.catalog.names().into_iter();
        names.filter(|name| self.catalog.find(name).is_some_and(may)).collect::<Vec<_>>().join(", ")
    }

    fn problem(&mut self, path: &str, message: &str) {
        Problem::add(&mut self.problems, path, message);
    }
}

/// Null counts as left out.
fn child_of<'c>(rules: &dyn Rules, config: &'c Map<String, Value>) -> Option<&'c Value> {
    rules.child(config).filter(|steps| !steps.is_null())
}

/// References name steps up to a `}`, and addresses up to a `/`.
fn why_no_name(name: &str) -> Option<String> {
    if name.chars().count() > NAME_MAX {
        return Some(format!("must have at most {NAME_MAX} characters"));
    }
    let is_bad = |c: char| c.is_control() || matches!(c, '}' | '/');
    if name.contains(is_bad) {
        return Some("must not contain }, / or control characters".to_owned());
    }
    // Clients take these for steps within an address.
    matches!(name, "." | "..").then(|| "must be more than dots".to_owned())
}

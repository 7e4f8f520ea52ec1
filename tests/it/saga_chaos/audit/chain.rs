//! A saga's events: numbers without a gap or a repeat, each change one that may follow on the one
//! before, and at the end what is shown.

use serde_json::Value;

use super::Story;
use crate::{saga_chaos::plans::name, support::Event};

/// What may follow on a saga's status.
fn saga_may(from: &str) -> &'static [&'static str] {
    match from {
        "pending" => &["running", "cancelled"],
        "running" => &["waiting", "completed", "failed", "compensating", "cancelled"],
        "waiting" => &["running", "completed", "failed", "compensating", "cancelled"],
        "failed" => &["running", "compensating", "cancelled"],
        "completed" => &["compensating"],
        "compensating" => &["compensated", "stuck"],
        "stuck" => &["compensating", "cancelled"],
        _ => &[],
    }
}

/// And on a step's.
fn step_may(from: &str) -> &'static [&'static str] {
    match from {
        // Unknown where it was to be retried, and an attempt before had been cut off.
        "pending" => &["running", "waiting", "skipped", "cancelled", "unknown"],
        "running" => &["completed", "failed", "unknown", "retrying", "cancelled"],
        "retrying" => &["running", "unknown", "cancelled"],
        "waiting" => &["completed", "cancelled"],
        "completed" | "compensation_failed" => &["compensating"],
        "failed" | "unknown" => &["pending", "skipped", "compensating"],
        "compensating" => &["compensated", "compensation_failed"],
        _ => &[],
    }
}

/// What became of a saga, or of a step.
#[derive(Clone, Debug, Default)]
pub struct Chain(pub Vec<Change>);

#[derive(Clone, Debug)]
pub struct Change {
    pub from: String,
    pub to: String,
    pub attempt: i64,
}

pub struct Chains {
    pub saga: Chain,
    /// By position.
    pub steps: Vec<Chain>,
}

impl Chain {
    pub fn last(&self) -> &str {
        self.0.last().map_or("pending", |change| &change.to)
    }

    pub fn count(&self, from: &str, to: &str) -> usize {
        self.0.iter().filter(|change| change.from == from && change.to == to).count()
    }

    pub fn has(&self, status: &str) -> bool {
        self.0.iter().any(|change| change.to == status)
    }

    /// What it was when it was first undone; what it is where it never was.
    pub fn before_it_was_undone(&self) -> &str {
        let first = self.0.iter().find(|change| change.to == "compensating");
        first.map_or_else(|| self.last(), |change| &change.from)
    }

    /// The numbers of the attempts, as they began.
    pub fn attempts(&self) -> Vec<i64> {
        let begun = self.0.iter().filter(|change| matches!(change.to.as_str(), "running" | "waiting"));
        begun.map(|change| change.attempt).collect()
    }
}

pub fn judge(story: &Story, wrong: &mut Vec<String>) -> Chains {
    numbers(story, wrong);
    let mut chains = Chains { saga: Chain::default(), steps: vec![Chain::default(); story.plan.steps.len()] };
    for event in story.events.iter().filter(|event| event.name != "complete") {
        if event.data["saga_id"] != story.id.as_str() {
            wrong.push(format!("another saga's event: {event:?}"));
        }
        let place = (0..story.plan.steps.len()).find(|at| event.data["step"] == name(*at));
        let (chain, may): (_, fn(&str) -> &'static [&'static str]) = match place {
            Some(at) => (&mut chains.steps[at], step_may),
            None => (&mut chains.saga, saga_may),
        };
        let change = Change::of(&event.data);
        if change.from != chain.last() || !may(&change.from).contains(&change.to.as_str()) {
            wrong.push(format!("after {} comes {}", chain.last(), event.data));
        }
        chain.0.push(change);
    }
    if chains.saga.last() != story.status() {
        wrong.push(format!("its events end with {}, and it is {}", chains.saga.last(), story.status()));
    }
    for (at, chain) in chains.steps.iter().enumerate() {
        if story.step(at)["status"] != chain.last() {
            wrong.push(format!("the events of {} end with {}: {}", name(at), chain.last(), story.step(at)));
        }
    }
    chains
}

/// From 1 without a gap, and the end once and last, where there is one.
fn numbers(story: &Story, wrong: &mut Vec<String>) {
    let has_ended = matches!(story.status(), "completed" | "compensated" | "cancelled");
    let ids: Vec<&str> = story.events.iter().map(|event| event.id.as_deref().unwrap_or("-")).collect();
    let count = ids.len() - usize::from(has_ended);
    let mut expected: Vec<String> = (1..=count).map(|n| format!("{}:{n}", story.id)).collect();
    expected.extend(has_ended.then(|| format!("{}:final", story.id)));
    if ids != expected {
        wrong.push(format!("the numbers of its events: {ids:?}"));
    }
    let ends = story.events.iter().filter(|event| event.name == "complete").count();
    if ends != usize::from(has_ended) {
        wrong.push(format!("its events have {ends} ends"));
    }
    // Who followed a saga to its end heard no more of it where it was rolled back later.
    let Some(followed) = &story.followed else { return };
    let (seen, all) = match followed.split_last() {
        Some((last, before)) if last.is_last() && followed.len() < story.events.len() => (before, &story.events[..]),
        _ => (&followed[..], &story.events[..]),
    };
    if all.get(..seen.len()) != Some(seen) {
        let ids: Vec<_> = followed.iter().map(|event: &Event| (&event.id, &event.data["status"])).collect();
        wrong.push(format!("who followed it saw something else: {ids:?}"));
    }
}

impl Change {
    fn of(data: &Value) -> Self {
        let text = |name: &str| data[name].as_str().unwrap_or("?").to_owned();
        Self { from: text("previous"), to: text("status"), attempt: data["attempt"].as_i64().unwrap_or(0) }
    }
}

//! Plans at random: chains, diamonds, wide and dense graphs of steps of every nature, as the
//! contract's table of actions has them.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use rdev::domain::saga::{
    Nature, OnFailure, Outcome, Performs, Plan, PlannedStep, Undo,
    condition::Condition,
    retry::{Backoff, RetryPolicy},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::World;

/// What a step does in the world outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Noop,
    Sleep,
    Approval,
    /// Calls somebody who honours idempotency keys where the step is idempotent, and keeps nothing else.
    Call,
    /// Runs something that takes long.
    Command,
    /// Makes something in the saga's own database, in one transaction with its note.
    Make,
    /// Changes something outside, and can put it back.
    Apply,
    /// Looks on until something else has ended.
    Watch,
}

const KINDS: [(u64, Kind); 8] = [
    (14, Kind::Noop),
    (8, Kind::Sleep),
    (6, Kind::Approval),
    (26, Kind::Call),
    (14, Kind::Command),
    (14, Kind::Make),
    (12, Kind::Apply),
    (6, Kind::Watch),
];

impl Kind {
    fn nature(self) -> Nature {
        let performs = match self {
            Self::Noop => Performs::Instantly(given),
            Self::Sleep => Performs::Waits { until: after, over: slept, answerable: false },
            Self::Approval => Performs::Waits { until: after, over: unanswered, answerable: true },
            _ => Performs::Attempts,
        };
        Nature {
            performs,
            idempotent: self != Self::Command,
            leaves_doubt: self.acts_outside(),
            undoes_itself: matches!(self, Self::Make | Self::Apply),
            resumes: self == Self::Watch,
            verbatim: None,
        }
    }

    /// Nothing tells afterwards whether it did.
    pub fn acts_outside(self) -> bool {
        matches!(self, Self::Call | Self::Command | Self::Apply)
    }

    /// It is worth waiting for at an orderly stop.
    pub fn ends_soon(self) -> bool {
        self != Self::Command
    }
}

fn given(config: &Map<String, Value>) -> Result<Value, String> {
    match config.get("fails") {
        Some(_) => Err("it was to fail".to_owned()),
        None => Ok(config.get("output").cloned().unwrap_or(Value::Null)),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is how the engine asks")]
fn after(config: &Map<String, Value>, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, String> {
    Ok(config.get("ms").and_then(Value::as_i64).map(|ms| now + TimeDelta::milliseconds(ms)))
}

fn slept(_: &Map<String, Value>) -> Outcome {
    Outcome::Done(json!({}))
}

fn unanswered(_: &Map<String, Value>) -> Outcome {
    Outcome::never("nobody has answered")
}

/// What the engine is given, and what each step is.
pub struct Drawn {
    pub plan: Arc<Plan>,
    pub kinds: Vec<Kind>,
}

/// A plan at random.
pub fn draw(world: &mut World) -> Drawn {
    // Where many wait for one turn, something that people end.
    let asks = world.crowded && world.chance(0.6);
    let count = match world.within(0..100) {
        _ if asks => world.index(2) + 1,
        0..10 => 1,
        10..52 => world.index(6) + 2,
        52..86 => world.index(16) + 4,
        86..98 => world.index(30) + 11,
        _ => 200,
    };
    let mut needs = if count == 200 { chain(count) } else { graph(count, world) };
    if world.chance(0.5) {
        needs = shuffled(&needs, world);
    }
    let only_noops = count == 200 && world.chance(0.5);
    let kind = |world: &mut World| match (only_noops, asks) {
        (true, _) => Kind::Noop,
        (_, true) => Kind::Approval,
        _ => a_kind(world),
    };
    let kinds: Vec<Kind> = (0..count).map(|_| kind(world)).collect();
    let plan = Arc::new(planned(&kinds, needs, world));
    Drawn { plan, kinds }
}

fn planned(kinds: &[Kind], needs: Vec<Vec<usize>>, world: &mut World) -> Plan {
    let count = kinds.len();
    let ancestors: Vec<Option<usize>> = (0..count).map(|at| ancestor(&needs, at, world)).collect();
    let mut steps: Vec<PlannedStep> = (0..count).map(|at| step(at, kinds[at], ancestors[at], world)).collect();
    for (at, needs) in needs.into_iter().enumerate() {
        for need in &needs {
            steps[*need].needed_by.push(at);
        }
        steps[at].needs = needs;
    }
    let on_failure = if world.chance(0.4) { OnFailure::Compensate } else { OnFailure::Stop };
    let timeout = world.chance(0.15).then(|| TimeDelta::milliseconds(world.span(500..60_000)));
    let id = Uuid::from_u64_pair(world.seed, world.db.rows.len() as u64);
    Plan { id, steps, vars: BTreeMap::new(), on_failure, timeout }
}

fn a_kind(world: &mut World) -> Kind {
    let mut at = world.within(0..100);
    for (weight, kind) in KINDS {
        if at < weight {
            return kind;
        }
        at -= weight;
    }
    Kind::Noop
}

fn chain(count: usize) -> Vec<Vec<usize>> {
    (0..count).map(|at| at.checked_sub(1).into_iter().collect()).collect()
}

/// What each step needs; all of it stands before it.
fn graph(count: usize, world: &mut World) -> Vec<Vec<usize>> {
    let width = world.index(4) + 2;
    let density = world.unit();
    match world.within(0..6) {
        0 => chain(count),
        // All at once, and perhaps somebody who waits for all.
        1 => (0..count).map(|at| if at + 1 == count && density > 0.5 { (0..at).collect() } else { vec![] }).collect(),
        // Diamonds: one, many, one.
        2 => (0..count)
            .map(|at| if at % width == 0 { (at.saturating_sub(width)..at).collect() } else { vec![at - at % width] })
            .collect(),
        // Layers.
        3 => (0..count)
            .map(|at| {
                let (begin, end) = ((at / width).saturating_sub(1) * width, at / width * width);
                (begin..end).filter(|_| world.chance(0.6)).collect()
            })
            .collect(),
        4 => (0..count).map(|at| (0..at).filter(|_| world.chance(density)).collect()).collect(),
        _ => (0..count).map(|at| if at == 0 { vec![] } else { vec![world.index(at)] }).collect(),
    }
}

/// The same graph in another order.
fn shuffled(needs: &[Vec<usize>], world: &mut World) -> Vec<Vec<usize>> {
    let mut places: Vec<usize> = (0..needs.len()).collect();
    for at in (1..places.len()).rev() {
        places.swap(at, world.index(at + 1));
    }
    let mut moved = vec![Vec::new(); needs.len()];
    for (at, needs) in needs.iter().enumerate() {
        moved[places[at]] = needs.iter().map(|need| places[*need]).collect();
        moved[places[at]].sort_unstable();
    }
    moved
}

fn ancestor(needs: &[Vec<usize>], at: usize, world: &mut World) -> Option<usize> {
    let mut found = None;
    let mut from = at;
    while !needs[from].is_empty() {
        from = needs[from][world.index(needs[from].len())];
        found = Some(from);
        if world.chance(0.5) {
            break;
        }
    }
    found
}

fn step(at: usize, kind: Kind, ancestor: Option<usize>, world: &mut World) -> PlannedStep {
    let mut config = Map::new();
    match kind {
        Kind::Noop if world.chance(0.05) => drop(config.insert("fails".into(), true.into())),
        Kind::Noop if world.chance(0.8) => drop(config.insert("output".into(), json!({"go": world.chance(0.8)}))),
        Kind::Sleep => drop(config.insert("ms".into(), world.span(0..8_000).into())),
        Kind::Approval if world.chance(0.6) => drop(config.insert("ms".into(), world.span(0..20_000).into())),
        _ => {}
    }
    let mut when = world.chance(0.06).then(|| world.chance(0.5).to_string());
    if let Some(from) = ancestor {
        if world.chance(0.1) {
            when = Some(format!("${{steps.s{from}.output.go}} != false"));
        }
        if world.chance(0.06) {
            config.insert("from".into(), format!("${{steps.s{from}.output.go}}").into());
        }
    }
    let nature = kind.nature();
    let other = matches!(kind, Kind::Call | Kind::Command | Kind::Sleep | Kind::Approval) && world.chance(0.55);
    let undo = if other {
        let config = world.chance(0.3).then(|| json!({"what": "${output.go}"}));
        let nature = [Kind::Call, Kind::Call, Kind::Call, Kind::Sleep, Kind::Noop][world.index(5)].nature();
        Some(Undo::By { action: "undo".into(), config, nature })
    } else {
        nature.undoes_itself.then_some(Undo::Itself)
    };
    let backoff = [Backoff::Fixed, Backoff::Linear, Backoff::Exponential][world.index(3)];
    let idempotent = if is_attempted(&nature) && world.chance(0.15) { !nature.idempotent } else { nature.idempotent };
    PlannedStep {
        name: format!("s{at}"),
        action: String::new(),
        nature,
        needs: Vec::new(),
        needed_by: Vec::new(),
        config: Value::Object(config),
        when: when.map(|text| Condition::parse(&text).expect("a condition")),
        undo,
        policy: RetryPolicy {
            max_retries: world.span(0..4),
            backoff,
            initial_delay_ms: world.span(0..2_000),
            max_delay_ms: 10_000,
            ..RetryPolicy::default()
        },
        timeout: world.chance(0.4).then(|| TimeDelta::milliseconds(world.span(100..20_000))),
        idempotent,
    }
}

/// Somebody makes attempts at it.
pub fn is_attempted(nature: &Nature) -> bool {
    matches!(nature.performs, Performs::Attempts)
}

/// A chain that needs nobody.
pub fn idle(count: usize) -> Plan {
    let mut world = World::new(0, None);
    let (mut kinds, needs) = (vec![Kind::Noop; count], chain(count));
    kinds.truncate(needs.len());
    let mut plan = planned(&kinds, needs, &mut world);
    plan.steps.iter_mut().for_each(|step| {
        (step.when, step.config) = (None, json!({}));
    });
    (plan.timeout, plan.on_failure) = (None, OnFailure::Stop);
    plan
}

//! What the receiver saw of a saga: each step had its effect once at most, none was repeated that must
//! not be, and what was undone is exactly what was done or may have been, in reverse order.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Story, Summary,
    chain::{Chain, Chains},
};
use crate::saga_chaos::{plans::name, receiver::Arrival};

pub fn judge(story: &Story, chains: &Chains, summary: &mut Summary, wrong: &mut Vec<String>) {
    let has_turned_back = chains.saga.has("compensating");
    for (at, chain) in chains.steps.iter().enumerate() {
        let mut told = Vec::new();
        done_once(story, at, chain, &mut told);
        undone_once(story, at, chain, has_turned_back, &mut told);
        wrong.extend(told.into_iter().map(|what| format!("{}: {what}", name(at))));
        summary.in_doubt += usize::from(chain.has("unknown"));
        summary.undone += usize::from(chain.has("compensated"));
    }
    summary.stuck += usize::from(chains.saga.has("stuck"));
    summary.repeated += by_key(story.arrivals.iter()).values().map(|all| all.len() - 1).sum::<usize>();
    in_order(story, wrong);
}

fn by_key<'a>(arrivals: impl Iterator<Item = &'a Arrival>) -> BTreeMap<&'a str, Vec<&'a Arrival>> {
    let mut by_key = BTreeMap::<&str, Vec<&Arrival>>::new();
    for arrival in arrivals {
        by_key.entry(&arrival.key).or_default().push(arrival);
    }
    by_key
}

fn done_once(story: &Story, at: usize, chain: &Chain, wrong: &mut Vec<String>) {
    let planned = &story.plan.steps[at];
    let keys = by_key(story.arrivals(at, false));
    let (retried, renewed) = (chain.count("unknown", "pending"), chain.count("failed", "pending"));
    let effects: Vec<_> = keys.iter().filter(|(_, all)| all.iter().any(|one| one.is_well())).collect();
    if effects.len() > 1 {
        wrong.push(format!("it had its effect under {} keys: {effects:?}", effects.len()));
    }
    if keys.len() > 1 + renewed {
        wrong.push(format!("{} keys, and it failed for good {renewed} times: {keys:?}", keys.len()));
    }
    for (key, all) in &keys {
        let attempts: BTreeSet<i64> = all.iter().map(|one| one.attempt).collect();
        if attempts.len() != all.len() || all.iter().any(|one| one.marked || one.key.is_empty()) {
            wrong.push(format!("requests of one attempt: {all:?}"));
        }
        let asked_for_again = all.iter().filter(|one| one.status == 503).count();
        if !planned.may_be_repeated() && all.len() > 1 + asked_for_again + retried {
            wrong.push(format!("sent {} times under {key}, retried by somebody {retried} times", all.len()));
        }
    }
    if !planned.may_be_repeated()
        && chain.count("running", "retrying") > keys.values().flatten().filter(|one| one.status == 503).count()
    {
        wrong.push("it was repeated though nobody knew what the last attempt did".to_owned());
    }
    if planned.is_call() && chain.has("completed") && effects.is_empty() {
        wrong.push("it completed and never had its effect".to_owned());
    }
    if !planned.is_call() && !keys.is_empty() {
        wrong.push(format!("it calls nobody: {keys:?}"));
    }
}

/// A step that completed, or may have, in a saga that turned back, has one compensation that was
/// answered well; any other has none.
fn undone_once(story: &Story, at: usize, chain: &Chain, has_turned_back: bool, wrong: &mut Vec<String>) {
    let keys = by_key(story.arrivals(at, true));
    let before = chain.before_it_was_undone();
    let was_cut_off = story.entries.iter().any(|entry| entry["step"] == name(at) && entry["outcome"] == "cut_off");
    let had_effect = story.arrivals(at, false).any(Arrival::is_well);
    let may_have = match before {
        "completed" | "unknown" => true,
        // An attempt of which nobody knew came before one that failed.
        "failed" => was_cut_off && (had_effect || chain.has("compensating")),
        // Somebody vouches that nothing is to be undone.
        "skipped" => false,
        _ => had_effect,
    };
    let wanted = has_turned_back && may_have && story.plan.steps[at].undo.is_some();
    if wanted != (chain.last() == "compensated") {
        wrong.push(format!("it was {before}, and in the end it is {}", chain.last()));
    }
    if keys.len() != usize::from(wanted) {
        wrong.push(format!("it was {before}, and it has {} compensations: {keys:?}", keys.len()));
    }
    for all in keys.values() {
        let attempts: BTreeSet<i64> = all.iter().map(|one| one.attempt).collect();
        if attempts.len() != all.len() || all.iter().any(|one| !one.marked) {
            wrong.push(format!("requests of one compensation: {all:?}"));
        }
        if !all.iter().any(|one| one.is_well()) {
            wrong.push(format!("it counts as compensated, and nobody was told so: {all:?}"));
        }
        if story.arrivals(at, false).any(|one| one.key == all[0].key) {
            wrong.push(format!("its compensation has its own key: {all:?}"));
        }
    }
}

/// By the receiver's order: no step before all that it needs, no compensation before those of all that
/// needed the step.
fn in_order(story: &Story, wrong: &mut Vec<String>) {
    for (at, above) in story.plan.ancestors().into_iter().enumerate() {
        let mine = (story.arrivals(at, false), story.arrivals(at, true));
        if let Some(late) = after_the_first(mine.0.clone(), mine.1.clone()) {
            wrong.push(format!("{} went on after its compensation had begun: {late:?}", name(at)));
        }
        for need in above {
            let its = (story.arrivals(need, false), story.arrivals(need, true));
            if let Some(late) = after_the_first(its.0, mine.0.clone()) {
                wrong.push(format!("{} had begun before {} was done: {late:?}", name(at), name(need)));
            }
            for mine in [mine.0.clone().collect::<Vec<_>>(), mine.1.clone().collect()] {
                if let Some(late) = after_the_first(mine.into_iter(), its.1.clone()) {
                    wrong.push(format!("{} was being undone before {}: {late:?}", name(need), name(at)));
                }
            }
        }
    }
}

/// One of these that came although one of the others had.
fn after_the_first<'a>(
    mut these: impl Iterator<Item = &'a Arrival>,
    mut others: impl Iterator<Item = &'a Arrival>,
) -> Option<&'a Arrival> {
    let first = others.next()?;
    these.find(|one| one.order > first.order)
}

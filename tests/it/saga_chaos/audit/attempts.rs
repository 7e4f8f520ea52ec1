//! A saga's log: every attempt that its events tell of and every request that the receiver had is in
//! it once, and so is every call that was answered.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Story, Summary, chain::Chains};
use crate::saga_chaos::plans::{Ask, name};

pub fn judge(story: &Story, chains: &Chains, summary: &mut Summary, wrong: &mut Vec<String>) {
    for at in 0..story.plan.steps.len() {
        of_step(story, chains, at, wrong);
    }
    let cut_off = story.entries.iter().filter(|entry| entry["outcome"] == "cut_off").count();
    summary.cut_off += cut_off;
    calls(story, wrong);
    if story.entries.iter().any(|entry| entry["started_at"].is_null() || entry["ended_at"].is_null()) {
        wrong.push("its log has lines without a time".to_owned());
    }
}

fn of_step(story: &Story, chains: &Chains, at: usize, wrong: &mut Vec<String>) {
    let (chain, shown) = (&chains.steps[at], story.step(at));
    let begun = chain.attempts();
    if begun != (1..=begun.len() as i64).collect::<Vec<_>>() {
        wrong.push(format!("{} began its attempts as {begun:?}", name(at)));
    }
    let undone = shown["compensation"]["attempts"].as_i64().unwrap_or(0);
    // A wait that is called off was no attempt that ended.
    let called_off = chain.count("waiting", "cancelled") as i64;
    let mut expected = BTreeMap::<i64, i64>::new();
    for attempt in (1..=begun.len() as i64 - called_off).chain(1..=undone) {
        *expected.entry(attempt).or_default() += 1;
    }
    let mut logged = BTreeMap::<i64, i64>::new();
    let of_it = story.entries.iter().filter(|entry| entry["step"] == name(at) && entry["attempt"].is_number());
    for entry in of_it.clone() {
        *logged.entry(entry["attempt"].as_i64().unwrap_or(-1)).or_default() += 1;
    }
    if logged != expected {
        wrong.push(format!("the log of {}: {logged:?}, and it had {expected:?}", name(at)));
    }
    for (undo, most) in [(false, begun.len() as i64), (true, undone)] {
        if let Some(stray) = story.arrivals(at, undo).find(|one| !(1..=most).contains(&one.attempt)) {
            wrong.push(format!("a request of an attempt that never was: {stray:?}"));
        }
    }
    let count = |outcome: &str| of_it.clone().filter(|entry| entry["outcome"] == outcome).count();
    if count("completed") != usize::from(chain.has("completed")) {
        wrong.push(format!("{} completed {} times", name(at), count("completed")));
    }
    if count("compensated") != usize::from(chain.has("compensated")) {
        wrong.push(format!("{} was compensated {} times", name(at), count("compensated")));
    }
}

/// What somebody asked for, as often as it was answered.
fn calls(story: &Story, wrong: &mut Vec<String>) {
    let asked = story.entries.iter().filter(|entry| entry["by"].is_string());
    let mut logged: Vec<(&str, Option<&str>)> =
        asked.map(|entry| (text(entry, "outcome").unwrap_or("?"), text(entry, "step"))).collect();
    let mut made: Vec<(&str, Option<&str>)> =
        story.done.asked.iter().map(|Ask { word, step }| (*word, step.as_deref())).collect();
    logged.sort_unstable();
    made.sort_unstable();
    if logged != made {
        wrong.push(format!("asked for {made:?}, and its log has {logged:?}"));
    }
}

fn text<'a>(entry: &'a Value, name: &str) -> Option<&'a str> {
    entry[name].as_str()
}

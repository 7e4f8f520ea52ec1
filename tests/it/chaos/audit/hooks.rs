//! A job's webhooks: each arrived, in order, and a repeat says the same.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::Value;

use super::{Change, Story, Summary};

/// One webhook as the receiver has it, repeats left out.
struct First {
    id: String,
    sequence: i64,
    body: Value,
}

pub fn judge(story: &Story, changes: &[Change], summary: &mut Summary, wrong: &mut Vec<String>) {
    if !story.submitted.has_webhook {
        if !story.deliveries.is_empty() || !story.arrivals.is_empty() {
            wrong.push("webhooks that nobody asked for".to_owned());
        }
        return;
    }
    let firsts = firsts(story, wrong);
    summary.webhooks += firsts.len();
    summary.repeated += story.arrivals.len() - firsts.len();
    let sequences: Vec<i64> = firsts.iter().map(|first| first.sequence).collect();
    if sequences != (0..changes.len() as i64).collect::<Vec<_>>() {
        wrong.push(format!("its webhooks arrived as {sequences:?}"));
    }
    let told: Vec<Change> = firsts.iter().map(|first| Change::of(&first.body)).collect();
    if told != changes {
        wrong.push(format!("its webhooks tell of {told:?}"));
    }
    for (n, delivery) in story.deliveries.iter().enumerate() {
        let first = firsts.iter().find(|first| first.sequence == n as i64);
        let last = delivery["attempts"]
            .as_array()
            .and_then(|all| all.last())
            .map_or(0, |last| last["status_code"].as_i64().unwrap_or(0));
        let in_order = delivery["sequence"] == n
            && delivery["status"] == "delivered"
            && (200..300).contains(&last)
            && first
                .is_some_and(|first| delivery["id"] == first.id.as_str() && delivery["state"] == first.body["state"]);
        if !in_order {
            wrong.push(format!("this is not what arrived: {delivery}"));
        }
    }
    if story.deliveries.len() != changes.len() {
        wrong.push(format!("{} changes and {} deliveries", changes.len(), story.deliveries.len()));
    }
    let ends = firsts.iter().filter(|first| is_end(&first.body)).count();
    let last = firsts.last().map_or(&Value::Null, |first| &first.body);
    if ends != 1 || !is_end(last) || last["result"] != story.job["result"] && !last["result"].is_null() {
        wrong.push(format!(
            "{ends} webhooks tell of its end, the last is {}",
            last.to_string().chars().take(200).collect::<String>()
        ));
    }
    if last["state"] == "completed" && last["result"].is_null() {
        wrong.push("its last webhook has no result".to_owned());
    }
}

fn is_end(body: &Value) -> bool {
    matches!(body["state"].as_str(), Some("completed" | "failed" | "cancelled"))
}

/// The first arrival of each id. A repeat has the same body, and no two ids have one number.
fn firsts(story: &Story, wrong: &mut Vec<String>) -> Vec<First> {
    let mut bodies: HashMap<&str, &Bytes> = HashMap::new();
    let mut firsts: Vec<First> = Vec::new();
    for arrival in &story.arrivals {
        let id = arrival.header("webhook-id").unwrap_or_default();
        if let Some(before) = bodies.insert(id, &arrival.body) {
            if *before != arrival.body {
                wrong.push(format!("{id} came with another body"));
            }
            continue;
        }
        let body = arrival.json();
        let sequence = body["sequence"].as_i64().unwrap_or(-1);
        if body["id"] != id || body["event"] != "job.state" || firsts.iter().any(|first| first.sequence == sequence) {
            wrong.push(format!("a webhook with the wrong id or number: {id} {body}"));
        }
        firsts.push(First { id: id.to_owned(), sequence, body });
    }
    firsts
}

//! A saga's stream and its log: every change once, in order, and who asked for what.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use http::Method;
use serde_json::{Value, json};

use super::{REACHABLE, Stage, of, retried, saga};
use crate::{
    jobs::and,
    support::{Answer, Api, Event, TestApp},
};

fn events_of(id: &str) -> String {
    format!("/sagas/{id}/events")
}

async fn to_the_end(api: &Api, id: &str) -> Vec<Event> {
    api.listen(&events_of(id)).await.rest().await
}

/// Numbers from 1 without a gap, the end once and last, and each change follows on the one before.
#[track_caller]
fn is_whole(events: &[Event], id: &str) {
    let (last, before) = events.split_last().expect("a stream has an end");
    assert_eq!((last.name.as_str(), last.id.clone()), ("complete", Some(format!("{id}:final"))));
    let numbered: Vec<_> = before.iter().map(|event| event.id.clone().unwrap_or_default()).collect();
    assert_eq!(numbered, (1..=before.len()).map(|n| format!("{id}:{n}")).collect::<Vec<_>>());
    let (mut known, mut latest) = (BTreeMap::new(), DateTime::<Utc>::MIN_UTC);
    for event in before {
        let data = &event.data;
        assert_eq!((&data["saga_id"], event.name == "step"), (&json!(id), data.get("step").is_some()), "{event:?}");
        assert!(event.name == "step" || event.name == "saga", "{event:?}");
        let at: DateTime<Utc> = data["at"].as_str().unwrap().parse().unwrap();
        assert!(at >= latest, "{event:?} is before {latest}");
        latest = at;
        let of = data["step"].as_str().unwrap_or_default().to_owned();
        if let Some(previous) = known.insert(of, data["status"].clone()) {
            assert_eq!(data["previous"], previous, "{event:?}");
        }
    }
}

/// `saga running`, `a completed`: each change in a word.
fn told(events: &[Event]) -> Vec<String> {
    let changes = events.iter().filter(|event| event.name != "complete");
    changes
        .map(|event| {
            let of = event.data["step"].as_str().unwrap_or("saga");
            format!("{of} {}", event.data["status"].as_str().unwrap())
        })
        .collect()
}

/// Those of the changes that are asked for, which are all there, in this order.
#[track_caller]
fn in_order(events: &[Event], wanted: &[&str]) {
    let told = told(events);
    let mut rest = told.iter();
    for change in wanted {
        assert!(rest.any(|one| one == change), "no {change} in its place: {told:?}");
    }
}

async fn failed_once(stage: &Stage) -> String {
    stage.out.then("/b", Answer::status(409));
    let id = stage.run(json!([stage.undone("a"), stage.undone("b"), stage.undone("c")])).await;
    stage.reaches(&id, "failed").await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sagas_stream_tells_every_change_in_order_and_ends_with_it() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/a");
    let id = stage.run(json!([stage.call("a", "/a"), stage.call("b", "/fail/1")])).await;
    let mut events = stage.app.listen(&events_of(&id)).await;
    gate.open();
    let all = events.rest().await;
    is_whole(&all, &id);
    let wanted = ["saga running", "a running", "a completed", "b running", "b retrying", "b running", "b completed"];
    in_order(&all, &wanted);
    in_order(&all, &["b completed", "saga completed"]);
    let tries: Vec<_> = all.iter().filter(|one| one.data["step"] == "b" && one.data["status"] == "running").collect();
    assert_eq!((&tries[0].data["attempt"], &tries[1].data["attempt"]), (&json!(1), &json!(2)));
    let failed = all.iter().find(|one| one.data["status"] == "retrying").unwrap();
    assert!(failed.data["error"].as_str().is_some_and(|error| error.contains("503")), "{failed:?}");
    assert_eq!(all, to_the_end(&stage.admin(), &id).await, "whoever comes later sees the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sagas_stream_goes_on_after_any_event() {
    let stage = Stage::new().await;
    let id = stage.run(json!([stage.call("a", "/fail/1"), stage.call("b", "/b")])).await;
    stage.reaches(&id, "completed").await;
    let all = to_the_end(&stage.admin(), &id).await;
    is_whole(&all, &id);
    for n in 0..all.len() {
        let rest = &all[n.min(all.len() - 1)..];
        let by_header = stage.admin().listen_from(&events_of(&id), Some(&format!("{id}:{n}"))).await.rest().await;
        let by_query = stage.app.listen(&format!("{}?after={n}", events_of(&id))).await.rest().await;
        assert_eq!((by_header.as_slice(), by_query.as_slice()), (rest, rest), "after {n}");
    }
    let path = events_of(&id);
    let last = [("last-event-id", format!("{id}:final"))];
    let reply = stage.admin().send(Method::GET, &path, None, &[(last[0].0, last[0].1.as_str())]).await;
    assert_eq!((reply.status, reply.text.as_str()), (204, ""));
    for foreign in [format!("{id}:x"), format!("{}:1", super::UNKNOWN), "1".to_owned(), "final".to_owned()] {
        let reply = stage.admin().send(Method::GET, &path, None, &[("last-event-id", &foreign)]).await;
        reply.refusal(400, "BAD_EVENT_ID");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_told_twice_to_one_who_comes_back_again_and_again() {
    let stage = Stage::new().await;
    let steps: Vec<_> = (0..12).map(|n| stage.call(&format!("s{n}"), &format!("/fail/1/{n}"))).collect();
    let id = stage.run(json!(steps)).await;
    let (mut seen, mut last) = (Vec::<Event>::new(), None::<String>);
    while !seen.last().is_some_and(Event::is_last) {
        let mut events = stage.admin().listen_from(&events_of(&id), last.as_deref()).await;
        for _ in 0..3 {
            if seen.last().is_some_and(Event::is_last) {
                break;
            }
            seen.push(events.next().await);
        }
        last = seen.last().and_then(|event| event.id.clone());
    }
    is_whole(&seen, &id);
    assert_eq!(seen, to_the_end(&stage.admin(), &id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_a_failed_saga_stays_open_and_goes_on_with_it() {
    let stage = Stage::new().await;
    let id = failed_once(&stage).await;
    let mut events = stage.app.listen(&events_of(&id)).await;
    let mut all = Vec::new();
    while !all.last().is_some_and(|last: &Event| last.name == "saga" && last.data["status"] == "failed") {
        all.push(events.next().await);
    }
    stage.tell(&id, "retry", json!({})).await.data(200);
    all.extend(events.rest().await);
    is_whole(&all, &id);
    in_order(
        &all,
        &["b failed", "saga failed", "saga running", "b running", "b completed", "c completed", "saga completed"],
    );
    assert_eq!(told(&all).iter().filter(|change| *change == "a running").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_told_to_those_who_come_after_the_end_too() {
    let stage = Stage::new().await;
    let id = stage.run(json!([stage.undone("a"), stage.undone("b")])).await;
    let before = to_the_end(&stage.admin(), &id).await;
    is_whole(&before, &id);
    stage.tell(&id, "rollback", json!({})).await.data(200);
    stage.reaches(&id, "compensated").await;
    let after = to_the_end(&stage.admin(), &id).await;
    is_whole(&after, &id);
    assert_eq!(after[..before.len() - 1], before[..before.len() - 1]);
    let rest = &after[before.len() - 1..];
    let undone = ["saga compensating", "b compensating", "b compensated", "a compensating", "a compensated"];
    in_order(rest, &undone);
    in_order(rest, &["a compensated", "saga compensated"]);
    let last = before[before.len() - 2].id.as_deref();
    assert_eq!(stage.admin().listen_from(&events_of(&id), last).await.rest().await, rest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_saga_ends_its_stream() {
    let stage = Stage::new().await;
    let id = failed_once(&stage).await;
    let mut events = stage.app.listen(&events_of(&id)).await;
    stage.tell(&id, "cancel", json!({"compensate": false})).await.data(200);
    let all = events.rest().await;
    is_whole(&all, &id);
    in_order(&all, &["saga failed", "c cancelled"]);
    in_order(&all, &["saga failed", "saga cancelled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_is_followed_live_from_every_process() {
    let stage = Stage::new().await;
    let other = stage.app.sibling(&[REACHABLE]).await;
    let gate = stage.out.hold("/a");
    let id = stage.run(json!([stage.call("a", "/a"), stage.call("b", "/b")])).await;
    stage.out.received("/a", 1).await;
    let (mut here, mut there) = (stage.app.listen(&events_of(&id)).await, other.listen(&events_of(&id)).await);
    for events in [&mut here, &mut there] {
        while events.next_named("step").await.data["status"] != "running" {}
    }
    gate.open();
    let (here, there) = (here.rest().await, there.rest().await);
    assert_eq!(here, there);
    in_order(&here, &["a completed", "b completed", "saga completed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sagas_stream_looks_like_any_other() {
    let stage = Stage::new().await;
    let id = failed_once(&stage).await;
    let mut events = stage.app.listen(&events_of(&id)).await;
    let header = |name| events.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("text/event-stream"));
    assert_eq!((header("cache-control"), header("x-accel-buffering")), (Some("no-cache"), Some("no")));
    assert_eq!(events.try_next().await.unwrap().name, "connected");
    assert_eq!(events.retry, Some(2000));
    stage.tell(&id, "retry", json!({})).await.data(200);
    let ticket = stage.admin().post("/stream-tickets", json!({"path": events_of(&id)})).await.data(201);
    let url = ticket["url"].as_str().unwrap();
    is_whole(&stage.app.nobody().listen(url.strip_prefix(&stage.app.url).unwrap_or(url)).await.rest().await, &id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projects_activity_tells_of_its_sagas() {
    let stage = Stage::new().await;
    stage.app.project("p").await;
    let mut activity = stage.app.listen("/projects/p/events").await;
    let body = |steps: Value| and(saga(steps), json!({"project_id": "p"}));
    let well = stage.make(body(json!([stage.undone("a")]))).await;
    assert_eq!(activity.activity("saga.started").await.data["id"], well);
    assert_eq!(activity.activity("saga.completed").await.data["id"], well);
    stage.tell(&well, "rollback", json!({})).await.data(200);
    assert_eq!(activity.activity("saga.compensated").await.data["id"], well);
    let ill = stage.make(body(json!([stage.call("a", "/status/409")]))).await;
    assert_eq!(activity.activity("saga.started").await.data["id"], ill);
    assert_eq!(activity.activity("saga.failed").await.data["id"], ill);
}

async fn log_of(app: &TestApp, id: &str) -> Vec<Value> {
    let log = app.admin().get(&format!("/sagas/{id}/log")).await.data(200);
    log["entries"].as_array().unwrap_or_else(|| panic!("no entries: {log}")).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_every_attempt() {
    let stage = Stage::new().await;
    stage.out.then("/undo/a", Answer::status(500));
    let steps = json!([stage.undone("a"), retried(stage.call("b", "/status/500"), 2)]);
    let id = stage.make(and(saga(steps), json!({"on_failure": "compensate"}))).await;
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(of(&saga, "a")["compensation"]["attempts"], 2);
    let log = log_of(&stage.app, &id).await;
    let attempts =
        |name: &str| log.iter().filter(|entry| entry["step"] == name && entry["attempt"].is_number()).count();
    assert_eq!((attempts("a"), attempts("b")), (3, 3), "{log:?}");
    for entry in &log {
        assert!(entry["outcome"].is_string() && entry["started_at"].is_string(), "{entry}");
    }
    let failed: Vec<_> = log.iter().filter(|entry| entry["step"] == "b").collect();
    for (entry, attempt) in failed.iter().zip(1..) {
        assert_eq!((&entry["attempt"], entry["ended_at"].is_string()), (&json!(attempt), true), "{entry}");
        assert!(entry["error"].as_str().is_some_and(|error| error.contains("500")), "{entry}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_who_asked_for_what() {
    let stage = Stage::new().await;
    let id = failed_once(&stage).await;
    let (somebody, key) = stage.app.holder(json!({"name": "ops", "scopes": ["projects:execute"]})).await;
    somebody.post(&format!("/sagas/{id}/steps/b/skip"), json!({})).await.data(200);
    stage.reaches(&id, "completed").await;
    somebody.post(&format!("/sagas/{id}/rollback"), json!({})).await.data(200);
    stage.reaches(&id, "compensated").await;
    stage.tell(&id, "retry", json!({})).await.refusal(409, "INVALID_STATE");
    let log = log_of(&stage.app, &id).await;
    let by: Vec<_> = log.iter().filter(|entry| entry["by"] == key["id"]).collect();
    assert_eq!((by.len(), &by[0]["step"], by[1].get("step")), (2, &json!("b"), None), "{log:?}");
    let others = log.iter().filter(|entry| entry.get("by").is_some() && entry["by"] != key["id"]);
    assert_eq!(others.count(), 0, "what was refused was not done: {log:?}");
}

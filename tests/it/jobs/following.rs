//! A job's stream: states, tokens, retries, the end, and resuming.

use serde_json::{Value, json};

use super::{app_on, chat, chat_with, ended, events_of, get_with, refusal, settings, submit};
use crate::support::{Api, Chat, Event, Gate, Upstream};

/// `n` goes from 1 without a gap, and the end is there once, at the end.
#[track_caller]
fn is_whole(events: &[Event], id: &str) {
    let (last, before) = events.split_last().expect("a stream has an end");
    assert_eq!((last.name.as_str(), last.id.clone()), ("complete", Some(format!("{id}:final"))));
    let numbered: Vec<_> = before.iter().map(|event| event.id.clone().unwrap_or_default()).collect();
    assert_eq!(numbered, (1..=before.len()).map(|n| format!("{id}:{n}")).collect::<Vec<_>>());
}

fn tokens(events: &[Event]) -> String {
    events.iter().filter(|event| event.name == "token").map(|event| event.data["text"].as_str().unwrap()).collect()
}

fn states(events: &[Event]) -> Vec<Value> {
    events.iter().filter(|event| event.name == "state").map(|event| event.data.clone()).collect()
}

async fn listen_to_the_end(api: &Api, id: &str) -> Vec<Event> {
    api.listen(&events_of(id)).await.rest().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_stream_tells_states_tokens_and_the_end() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["a ", "ü\n", "b"]));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    let events = listen_to_the_end(&app.admin(), &id).await;
    is_whole(&events, &id);
    let expected = [
        json!({"state": "queued", "previous_state": "", "attempt": 0}),
        json!({"state": "running", "previous_state": "queued", "attempt": 1}),
    ];
    assert_eq!((states(&events), tokens(&events)), (expected.to_vec(), "a ü\nb".to_owned()));
    let last = &events.last().unwrap().data;
    assert_eq!((&last["state"], last.get("result")), (&json!("completed"), None), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_tokens_are_seen_live_on_every_process() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&["one"]).wait(&gate).token("two"));
    let app = app_on(&upstream, &[]).await;
    let other = app.sibling(&[&settings(&upstream)[..], &[("RDEV_WORKERS", "0")]].concat()).await;
    let id = submit(&app.admin(), chat("hi")).await;
    let (mut here, mut there) = (app.listen(&events_of(&id)).await, other.listen(&events_of(&id)).await);
    for events in [&mut here, &mut there] {
        assert_eq!(events.next_named("token").await.data, json!({"text": "one"}));
    }
    gate.open();
    for events in [&mut here, &mut there] {
        assert_eq!(events.next_named("token").await.data, json!({"text": "two"}));
        assert!(events.next().await.is_last());
        assert!(events.try_next().await.is_none(), "the server closes after the end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_told_and_begins_the_tokens_again() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["half an "]).then_cut());
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    let events = listen_to_the_end(&app.admin(), &id).await;
    is_whole(&events, &id);
    let told: Vec<_> = states(&events).iter().map(|data| (data["state"].clone(), data["attempt"].clone())).collect();
    let expected = [("queued", 0), ("running", 1), ("queued", 1), ("running", 2)];
    assert_eq!(told, expected.map(|(state, attempt)| (json!(state), json!(attempt))));
    let at = events.iter().position(|event| event.name == "reset").expect("a reset");
    assert_eq!(events[at].data, json!({"attempt": 2}));
    assert_eq!((tokens(&events[..at]), tokens(&events[at..])), ("half an ".to_owned(), "Hello there".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_complete_whatever_the_end() {
    let upstream = Upstream::with(&["a", "b"]).await;
    upstream.always_for("a", Chat::fails(400, "no")).always_for("b", Chat::hangs());
    let app = app_on(&upstream, &[]).await;
    let failed = submit(&app.admin(), chat_with("a", "hi")).await;
    let cancelled = submit(&app.admin(), chat_with("b", "hi")).await;
    app.admin().delete(&format!("/jobs/{cancelled}")).await;
    for (id, state) in [(failed, "failed"), (cancelled, "cancelled")] {
        let events = listen_to_the_end(&app.admin(), &id).await;
        is_whole(&events, &id);
        assert_eq!(events.last().unwrap().data["state"], state);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_stream_goes_on_after_any_event() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["a", "b", "c"]));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    let all = listen_to_the_end(&app.admin(), &id).await;
    for n in 0..all.len() {
        let rest = &all[n.min(all.len() - 1)..];
        let by_header = app.admin().listen_from(&events_of(&id), Some(&format!("{id}:{n}"))).await.rest().await;
        let by_query = app.listen(&format!("{}?after={n}", events_of(&id))).await.rest().await;
        assert_eq!((by_header.as_slice(), by_query.as_slice()), (rest, rest), "after {n}");
    }
    let both = app.admin().listen_from(&format!("{}?after=3", events_of(&id)), Some(&format!("{id}:1"))).await;
    assert_eq!({ both }.rest().await, all[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_seen_a_jobs_end_gets_204() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    ended(&app.admin(), &id).await;
    let reply = get_with(&app, &events_of(&id), "last-event-id", &format!("{id}:final")).await;
    assert_eq!((reply.status, reply.text.as_str()), (204, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_id_that_is_none_of_this_jobs_is_refused() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    ended(&app.admin(), &id).await;
    let own = ["x", "-1", "", "01", "99999999999999999999"].map(|n| format!("{id}:{n}"));
    let foreign =
        ["x", "1", "final", "01J00000000000000000000000:1", "cmd-01J00000000000000000000000:1"].map(str::to_owned);
    for header in own.iter().chain(&foreign) {
        refusal(&get_with(&app, &events_of(&id), "last-event-id", header).await, 400);
    }
    for after in ["x", "-1", "1.5"] {
        refusal(&app.admin().get(&format!("{}?after={after}", events_of(&id))).await, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_stream_has_the_headers_of_a_stream() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    let mut events = app.listen(&events_of(&id)).await;
    let header = |name| events.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("text/event-stream"));
    assert_eq!((header("cache-control"), header("x-accel-buffering")), (Some("no-cache"), Some("no")));
    assert_eq!(events.try_next().await.unwrap().name, "connected");
    assert_eq!(events.retry, Some(2000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_a_jobs_stream() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    let ticket = app.admin().post("/stream-tickets", json!({"path": events_of(&id)})).await.data(201);
    let path = ticket["url"].as_str().unwrap();
    is_whole(&app.nobody().listen(path.strip_prefix(&app.url).unwrap_or(path)).await.rest().await, &id);
}

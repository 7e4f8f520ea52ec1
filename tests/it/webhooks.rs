//! State webhooks: what is sent, in which order, how it is signed and how often it is tried.

mod egress;
mod receivers;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::TimeDelta;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use super::{
    jobs::{and, app_on, chat, chat_with, ended, in_state, refusal, settings, submit},
    support::{Answer, Api, Chat, Gate, Sink, Upstream, eventually, sink::Request},
};

fn hooked(text: &str, url: &str) -> Value {
    and(chat(text), json!({"state_webhook_url": url}))
}

async fn deliveries(api: &Api, id: &str) -> Vec<Value> {
    let reply = api.get(&format!("/jobs/{id}/deliveries")).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["deliveries"].as_array().unwrap().clone()
}

/// The deliveries, when none is pending and the job has ended.
async fn settled(api: &Api, id: &str) -> Vec<Value> {
    ended(api, id).await;
    eventually("the deliveries", async || {
        Some(deliveries(api, id).await).filter(|all| all.iter().all(|delivery| delivery["status"] != "pending"))
    })
    .await
}

fn statuses(deliveries: &[Value]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery["status"].as_str().unwrap()).collect()
}

fn attempts(delivery: &Value) -> Vec<Value> {
    delivery["attempts"].as_array().unwrap().clone()
}

/// State, previous state and attempt of each.
fn told(requests: &[Request]) -> Vec<(String, String, i64)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told = requests.iter().map(Request::json);
    told.map(|event| (text(&event["state"]), text(&event["previous_state"]), event["attempt"].as_i64().unwrap()))
        .collect()
}

fn expected(all: &[(&str, &str, i64)]) -> Vec<(String, String, i64)> {
    all.iter().map(|(state, before, attempt)| ((*state).to_owned(), (*before).to_owned(), *attempt)).collect()
}

fn sequences(requests: &[Request]) -> Vec<u64> {
    requests.iter().map(|request| request.json()["sequence"].as_u64().unwrap()).collect()
}

fn id_of(request: &Request) -> &str {
    request.header("webhook-id").expect("a webhook-id")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_state_is_told_in_order() {
    let (upstream, sink) = (Upstream::with(&["tiny:1b"]).await, Sink::start().await);
    let app = app_on(&upstream, &[]).await;
    let body = and(chat_with("tiny:1b", "hi"), json!({"state_webhook_url": sink.hook()}));
    let id = submit(&app.admin(), body).await;
    let all = sink.received(3).await;
    assert_eq!(told(&all), expected(&[("queued", "", 0), ("running", "queued", 1), ("completed", "running", 1)]));
    assert_eq!(sequences(&all), [0, 1, 2]);
    for request in &all {
        let event = request.json();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hook"));
        assert!(request.header("content-type").is_some_and(|kind| kind.starts_with("application/json")));
        assert_eq!(
            (&event["event"], &event["job_id"], &event["model"]),
            (&json!("job.state"), &json!(id), &json!("tiny:1b"))
        );
        assert_eq!(event["id"], id_of(request));
        let at = event["timestamp"].as_str().unwrap();
        assert!(at.ends_with('Z') && at.parse::<chrono::DateTime<chrono::Utc>>().is_ok(), "{at}");
    }
    let ids: std::collections::BTreeSet<_> = all.iter().map(id_of).collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_told_with_what_came_of_it() {
    let (upstream, sink) = (Upstream::with(&["a", "b"]).await, Sink::start().await);
    upstream.always_for("b", Chat::fails(400, "no such option"));
    let app = app_on(&upstream, &[]).await;
    for (model, state) in [("a", "completed"), ("b", "failed")] {
        let before = sink.requests().len();
        let body = and(chat_with(model, "hi"), json!({"state_webhook_url": sink.hook()}));
        let job = ended(&app.admin(), &submit(&app.admin(), body).await).await;
        let events: Vec<_> = sink.received(before + 3).await[before..].iter().map(Request::json).collect();
        for early in &events[..2] {
            for field in ["result", "error", "artifacts"] {
                assert_eq!(early.get(field), None, "{early}");
            }
        }
        let last = &events[2];
        assert_eq!((&last["state"], &last["result"], &last["error"]), (&json!(state), &job["result"], &job["error"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_told_whether_the_job_had_begun_or_not() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    upstream.always_for("llama3", Chat::hangs());
    let app = app_on(&upstream, &[("RDEV_WORKERS", "1")]).await;
    let running = submit(&app.admin(), hooked("running", &sink.hook())).await;
    in_state(&app.admin(), &running, "running").await;
    sink.received(2).await;
    let queued = submit(&app.admin(), hooked("queued", &sink.hook())).await;
    sink.received(3).await;
    app.admin().delete(&format!("/jobs/{queued}")).await;
    assert_eq!(told(&sink.received(4).await[3..]), expected(&[("cancelled", "queued", 0)]));
    app.admin().delete(&format!("/jobs/{running}")).await;
    assert_eq!(told(&sink.received(5).await[4..]), expected(&[("cancelled", "running", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_told_as_going_back_to_the_queue() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    upstream.then(Chat::busy_for(1));
    let app = app_on(&upstream, &[]).await;
    submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let all = sink.received(5).await;
    let states = [
        ("queued", "", 0),
        ("running", "queued", 1),
        ("queued", "running", 1),
        ("running", "queued", 2),
        ("completed", "running", 2),
    ];
    assert_eq!((told(&all), sequences(&all)), (expected(&states), vec![0, 1, 2, 3, 4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_artifact_is_told_by_its_absolute_url() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    upstream.then(Chat::says(&[&"x".repeat(300_000)]));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let event = sink.received(3).await[2].json();
    let artifact = &event["artifacts"][0];
    assert_eq!((&event["result"]["artifact"], &artifact["name"]), (&json!("result.json"), &json!("result.json")));
    assert_eq!(artifact["url"], format!("{}/jobs/{id}/artifacts/result.json", app.url));
    assert_eq!(artifact.get("data"), None);
    let path = artifact["url"].as_str().unwrap().strip_prefix(&app.url).unwrap();
    assert_eq!(app.admin().get(path).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_a_url_tells_nobody() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    ended(&app.admin(), &id).await;
    assert_eq!((deliveries(&app.admin(), &id).await, sink.listener.connections()), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_is_sent_when_the_last_was_delivered() {
    let (upstream, sink, gate) = (Upstream::start().await, Sink::start().await, Gate::new());
    sink.then(Answer::status(200).wait(&gate));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    ended(&app.admin(), &id).await;
    assert_eq!(sequences(&sink.received(1).await), [0]);
    gate.open();
    assert_eq!(sequences(&sink.received(3).await), [0, 1, 2]);
    assert_eq!(statuses(&settled(&app.admin(), &id).await), ["delivered"; 3]);
    assert_eq!(sink.listener.most_at_once("/hook"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_holds_back_what_comes_after_it() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(500)).then(Answer::status(404));
    let app = app_on(&upstream, &[]).await;
    submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let all = sink.received(5).await;
    assert_eq!(sequences(&all), [0, 0, 0, 1, 2]);
    assert!(all[..3].iter().all(|again| id_of(again) == id_of(&all[0]) && again.body == all[0].body));
}

fn sign(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The Standard Webhooks signature of a request with this key.
fn standard(request: &Request, key: &[u8]) -> String {
    let message = format!("{}.{}.{}", id_of(request), request.header("webhook-timestamp").unwrap(), request.text());
    format!("v1,{}", STANDARD.encode(sign(key, message.as_bytes())))
}

#[track_caller]
fn is_signed(request: &Request, keys: &[&[u8]]) {
    let own = format!("sha256={}", hex(&sign(keys[0], &request.body)));
    assert_eq!(request.header("x-foreman-signature"), Some(own.as_str()));
    let all: Vec<_> = keys.iter().map(|key| standard(request, key)).collect();
    assert_eq!(request.header("webhook-signature"), Some(all.join(" ").as_str()));
}

/// All webhooks of one job under this secret.
async fn with_secret(secret: &str) -> Vec<Request> {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = app_on(&upstream, &[("RDEV_WEBHOOK_SECRET", secret)]).await;
    submit(&app.admin(), hooked("hi <ü>", &sink.hook())).await;
    sink.received(3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_signed_in_both_ways() {
    for request in with_secret("s3cret").await {
        is_signed(&request, &[b"s3cret"]);
        let at: i64 = request.header("webhook-timestamp").unwrap().parse().unwrap();
        assert!((chrono::Utc::now().timestamp() - at).abs() < 60, "{at} is not now");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whsec_secrets_key_is_what_its_base64_says() {
    let secret = format!("whsec_{}", STANDARD.encode([0, 1, 2, 0xff, 0xfe, 7, 8, 9]));
    for request in with_secret(&secret).await {
        is_signed(&request, &[&[0, 1, 2, 0xff, 0xfe, 7, 8, 9]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_secrets_sign_both_while_they_are_exchanged() {
    let secrets = format!("whsec_{},old", STANDARD.encode("the new one, of 24 bytes"));
    for request in with_secret(&secrets).await {
        is_signed(&request, &[b"the new one, of 24 bytes", b"old"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_there_is_no_signature() {
    for request in with_secret("").await {
        assert_eq!((request.header("x-foreman-signature"), request.header("webhook-signature")), (None, None));
        assert!(!id_of(&request).is_empty() && request.header("webhook-timestamp").is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempts_timestamp_is_its_own_and_its_id_is_not() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(503).header("retry-after", "2"));
    let app = app_on(&upstream, &[("RDEV_WEBHOOK_SECRET", "s")]).await;
    submit(&app.admin(), hooked("hi", &sink.hook())).await;
    sink.received(1).await;
    app.advance(TimeDelta::seconds(2));
    let all = sink.received(2).await;
    let at = |request: &Request| request.header("webhook-timestamp").unwrap().parse::<i64>().unwrap();
    assert!(at(&all[1]) > at(&all[0]), "{} {}", at(&all[0]), at(&all[1]));
    assert_eq!((id_of(&all[0]), &all[0].body), (id_of(&all[1]), &all[1].body));
    for request in &all {
        is_signed(request, &[b"s"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_2xx_is_delivered() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(204)).then(Answer::status(201).body("made")).then(Answer::status(299));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let all = settled(&app.admin(), &id).await;
    let codes: Vec<_> = all.iter().map(|delivery| attempts(delivery)[0]["status_code"].clone()).collect();
    assert_eq!((statuses(&all), codes), (vec!["delivered"; 3], vec![json!(204), json!(201), json!(299)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_retried_five_times_and_then_given_up() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    for _ in 0..6 {
        sink.then(Answer::status(500));
    }
    let app = app_on(&upstream, &[("RDEV_WEBHOOK_BACKOFF", "100ms")]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let all = sink.received(8).await;
    assert_eq!(sequences(&all), [0, 0, 0, 0, 0, 0, 1, 2]);
    for (pair, least) in all[..6].windows(2).zip([80, 160, 320, 640, 1280]) {
        assert_eq!((id_of(&pair[0]), &pair[0].body), (id_of(&pair[1]), &pair[1].body));
        let gap = pair[1].at - pair[0].at;
        assert!(
            gap >= Duration::from_millis(least) && gap < Duration::from_millis(2 * least + 2000),
            "{gap:?} {least}"
        );
    }
    let deliveries = settled(&app.admin(), &id).await;
    assert_eq!(statuses(&deliveries), ["failed", "delivered", "delivered"]);
    let tries = attempts(&deliveries[0]);
    assert_eq!(tries.len(), 6);
    assert!(tries.iter().all(|attempt| attempt["status_code"] == 500), "{tries:?}");
    assert_eq!(deliveries[0].get("next_attempt_at"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_breaks_off_is_tried_again() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::breaks_off()).always(Answer::status(200));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    sink.received(4).await;
    let first = settled(&app.admin(), &id).await.remove(0);
    assert_eq!((&first["status"], attempts(&first).len()), (&json!("delivered"), 2), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_may_say_itself_when_to_come_back() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(429).header("retry-after", "3"));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let waiting = eventually("the failed attempt", async || {
        deliveries(&app.admin(), &id).await.into_iter().next().filter(|first| attempts(first).len() == 1)
    });
    let waiting = waiting.await;
    assert_eq!(waiting["status"], "pending");
    assert!(waiting["next_attempt_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{waiting}");
    let all = sink.received(2).await;
    assert!(all[1].at - all[0].at >= Duration::from_millis(2900), "{:?}", all[1].at - all[0].at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_a_failure_and_not_followed() {
    let (upstream, sink, elsewhere) = (Upstream::start().await, Sink::start().await, Sink::start().await);
    for status in [301, 307, 308] {
        sink.then(Answer::redirect(status, &elsewhere.hook()));
    }
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let first = settled(&app.admin(), &id).await.remove(0);
    let codes: Vec<_> = attempts(&first).iter().map(|attempt| attempt["status_code"].clone()).collect();
    assert_eq!(codes, [301, 307, 308, 200]);
    assert_eq!(elsewhere.listener.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_gone_is_asked_once() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(410));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let all = settled(&app.admin(), &id).await;
    assert_eq!((statuses(&all), sink.requests().len()), (vec!["failed"; 3], 1));
    assert_eq!(all.iter().map(|delivery| attempts(delivery).len()).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(attempts(&all[0])[0]["status_code"], 410);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_listed_with_every_attempt() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(502)).then(Answer::breaks_off());
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let all = settled(&app.admin(), &id).await;
    let requests = sink.requests();
    assert_eq!(all.len(), 3);
    for (n, (delivery, state)) in all.iter().zip(["queued", "running", "completed"]).enumerate() {
        assert_eq!(
            (&delivery["sequence"], &delivery["state"], &delivery["url"]),
            (&json!(n), &json!(state), &json!(sink.hook()))
        );
        let sent = requests.iter().find(|request| request.json()["sequence"] == n).unwrap();
        assert_eq!((delivery["id"].as_str(), &delivery["status"]), (Some(id_of(sent)), &json!("delivered")));
        assert_eq!(delivery.get("next_attempt_at"), None);
    }
    let tries = attempts(&all[0]);
    assert_eq!(tries.len(), 3);
    assert_eq!((&tries[0]["status_code"], &tries[2]["status_code"]), (&json!(502), &json!(200)));
    assert!(tries[1].get("status_code").is_none() && tries[1]["error"].is_string(), "{tries:?}");
    assert!(tries[2].get("error").is_none(), "{tries:?}");
    assert!(
        tries.iter().all(|one| one["at"].as_str().is_some_and(|at| at.ends_with('Z')) && one["duration_ms"].is_u64())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_can_be_sent_once_more_and_so_can_a_delivered_one() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(410));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let first = settled(&app.admin(), &id).await.remove(0);
    let path = format!("/jobs/{id}/deliveries/{}/redeliver", first["id"].as_str().unwrap());
    for (count, status) in [(2, "delivered"), (3, "delivered")] {
        assert_eq!(app.admin().post(&path, json!({})).await.status, 202);
        let all = sink.received(count).await;
        let (first, again) = (&all[0], &all[count - 1]);
        assert_eq!((id_of(first), &first.body), (id_of(again), &again.body));
        eventually("the attempt is written down", async || {
            let shown = deliveries(&app.admin(), &id).await.remove(0);
            (shown["status"] == status && attempts(&shown).len() == count).then_some(())
        })
        .await;
    }
    for unknown in ["x", "01890000-0000-7000-8000-000000000000"] {
        refusal(&app.admin().post(&format!("/jobs/{id}/deliveries/{unknown}/redeliver"), json!({})).await, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_because_the_receiver_was_gone_can_be_sent_later() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(410));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    let last = settled(&app.admin(), &id).await.remove(2);
    let path = format!("/jobs/{id}/deliveries/{}/redeliver", last["id"].as_str().unwrap());
    assert_eq!(app.admin().post(&path, json!({})).await.status, 202);
    let sent = sink.received(2).await[1].clone();
    assert_eq!((id_of(&sent), &sent.json()["state"]), (last["id"].as_str().unwrap(), &json!("completed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_survive_a_restart() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(503).header("retry-after", "2"));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    ended(&app.admin(), &id).await;
    sink.received(1).await;
    let app = app.restart(&settings(&upstream)).await;
    let all = sink.received(4).await;
    assert_eq!(sequences(&all), [0, 0, 1, 2]);
    assert_eq!((id_of(&all[0]), &all[0].body), (id_of(&all[1]), &all[1].body));
    assert_eq!(statuses(&settled(&app.admin(), &id).await), ["delivered"; 3]);
}

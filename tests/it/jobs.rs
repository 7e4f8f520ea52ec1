//! Jobs: how they are asked for, what reaches upstream, who comes first. And the words that
//! the other stories of jobs are told in.

mod ends;
mod following;
mod reading;
mod results;

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};

use super::support::{Api, Chat, Gate, Reply, Sink, TestApp, Upstream, eventually, sink::Refusing};

/// An app whose models are this upstream's. Webhooks may go to loopback.
pub async fn app_on(upstream: &Upstream, own: &[(&str, &str)]) -> TestApp {
    TestApp::with(&[&settings(upstream), own].concat()).await
}

pub fn settings(upstream: &Upstream) -> [(&'static str, &str); 3] {
    [("RDEV_OLLAMA_URL", upstream.url.as_str()), ("RDEV_EGRESS_ALLOW", "127.0.0.0/8"), ("RDEV_WEBHOOK_BACKOFF", "50ms")]
}

pub fn chat(text: &str) -> Value {
    chat_with("llama3", text)
}

pub fn chat_with(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

/// The body with these fields beside its own.
pub fn and(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Puts a job in. Answers its id.
pub async fn submit(api: &Api, body: Value) -> String {
    let reply = api.post("/jobs", body).await;
    assert_eq!(reply.status, 202, "{}", reply.text);
    reply.json()["job_id"].as_str().expect("an id").to_owned()
}

pub async fn show(api: &Api, id: &str) -> Value {
    let reply = api.get(&format!("/jobs/{id}")).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

pub async fn in_state(api: &Api, id: &str, state: &str) -> Value {
    eventually(&format!("a {state} job"), async || Some(show(api, id).await).filter(|job| job["state"] == state)).await
}

/// The job, when it has ended.
pub async fn ended(api: &Api, id: &str) -> Value {
    eventually("the job's end", async || Some(show(api, id).await).filter(|job| !job["completed_at"].is_null())).await
}

/// A refusal in the native family's form, whatever its words.
#[track_caller]
pub fn refusal(reply: &Reply, status: u16) -> String {
    assert_eq!((reply.status, reply.header("content-type")), (status, "application/json"), "{}", reply.text);
    let body = reply.json();
    assert_eq!(body.as_object().unwrap().keys().collect::<Vec<_>>(), ["error"], "{body}");
    body["error"].as_str().expect("a sentence").to_owned()
}

#[track_caller]
pub fn refused(reply: &Reply, status: u16, message: &str) {
    assert_eq!(refusal(reply, status), message);
}

async fn post_text(app: &TestApp, body: &str) -> Reply {
    app.admin().send(Method::POST, "/jobs", Some(body.to_owned()), &[]).await
}

pub fn said(job: &Value) -> &str {
    job["result"]["message"]["content"].as_str().unwrap_or_default()
}

async fn get_with(app: &TestApp, path: &str, name: &str, value: &str) -> Reply {
    app.admin().send(Method::GET, path, None, &[(name, value)]).await
}

fn events_of(id: &str) -> String {
    format!("/jobs/{id}/events")
}

/// Waits until the upstream has this many chats open.
pub async fn under_way(upstream: &Upstream, count: usize) {
    eventually("the chats", async || (upstream.chats_under_way() == count).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_accepted_at_once_and_carried_out_later() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&["a"]).wait(&gate).token("b"));
    let app = app_on(&upstream, &[]).await;
    let reply = app.admin().post("/jobs", chat("hi")).await;
    assert_eq!((reply.status, reply.header("content-type")), (202, "application/json"));
    let id = reply.json()["job_id"].as_str().unwrap().to_owned();
    assert_eq!(reply.json(), json!({"job_id": id}));
    in_state(&app.admin(), &id, "running").await;
    gate.open();
    let job = ended(&app.admin(), &id).await;
    assert_eq!((&job["state"], said(&job)), (&json!("completed"), "ab"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_ulids_that_increase_within_one_millisecond() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "0")]).await;
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(submit(&app.admin(), chat("hi")).await);
    }
    for id in &ids {
        assert_eq!(ulid::Ulid::from_string(id).map(|ulid| ulid.to_string()), Ok(id.clone()));
    }
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_json_object_is_refused() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for body in ["", "{", "nonsense", "[]", "\"x\"", "5", "{\"model\":\"llama3\",}", "{\"model\": 5}", "{} x"] {
        refused(&post_text(&app, body).await, 400, "invalid JSON body");
    }
    refusal(&post_text(&app, "null").await, 400);
    assert_eq!(app.admin().get("/jobs").await.json(), json!({"jobs": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_and_messages_are_required() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for body in [json!({}), json!({"model": "", "messages": []}), json!({"model": null}), json!({"messages": []})] {
        refused(&app.admin().post("/jobs", body).await, 400, "model is required");
    }
    for body in [json!({"model": "llama3"}), json!({"model": "llama3", "messages": null})] {
        refused(&app.admin().post("/jobs", body).await, 400, "messages is required");
    }
    refused(&app.admin().post("/jobs", json!({"model": "nope"})).await, 400, "messages is required");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_is_a_whole_number_from_0_to_9() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for priority in [json!(10), json!(-1), json!(1.5), json!("high"), json!("4")] {
        refusal(&app.admin().post("/jobs", and(chat("hi"), json!({"priority": priority}))).await, 400);
    }
    for priority in [0, 9] {
        submit(&app.admin(), and(chat("hi"), json!({"priority": priority}))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_with_a_nul_byte_is_refused() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    refusal(&app.admin().post("/jobs", chat_with("lla\u{0}ma3", "hi")).await, 400);
    refusal(&app.admin().post("/jobs", chat("h\u{0}i")).await, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_nobody_has_is_not_found() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for model in ["nope", "llama3:8b", "llama", "library/llama3x"] {
        refused(&app.admin().post("/jobs", chat_with(model, "hi")).await, 404, "model not found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_a_tag_means_the_latest() {
    let upstream = Upstream::with(&["llama3:latest", "tiny:1b"]).await;
    let app = app_on(&upstream, &[]).await;
    for model in ["llama3", "llama3:latest", "tiny:1b"] {
        let id = submit(&app.admin(), chat_with(model, "hi")).await;
        assert_eq!(ended(&app.admin(), &id).await["state"], "completed", "{model}");
    }
    refused(&app.admin().post("/jobs", chat_with("tiny", "hi")).await, 404, "model not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_at_once_cost_one_look_at_the_inventory() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    let app = app_on(&upstream, &[]).await;
    ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    let (before, admin) = (upstream.inventories(), app.admin());
    upstream.hold("/api/tags", &gate);
    app.advance(TimeDelta::seconds(3));
    // The first look of all may have been less than 2 s ago; then a batch goes by without another.
    eventually("a look", async || {
        let batch = join_all((0..10).map(|n| admin.post("/jobs", chat_with(&format!("no-{n}"), "hi"))));
        let opening = async {
            eventually("a look", async || (upstream.inventories() > before).then_some(())).await;
            gate.open();
            std::future::pending::<()>().await;
        };
        let replies = tokio::select! {
            replies = batch => replies,
            () = opening => unreachable!("it only opens"),
        };
        for reply in &replies {
            refused(reply, 404, "model not found");
        }
        (upstream.inventories() > before).then_some(())
    })
    .await;
    assert_eq!(upstream.inventories(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_unknown_name_soon_after_the_first_is_not_asked_for() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    let before = upstream.inventories();
    app.advance(TimeDelta::seconds(3));
    eventually("a look", async || {
        refused(&app.admin().post("/jobs", chat_with("nope", "hi")).await, 404, "model not found");
        (upstream.inventories() > before).then_some(())
    })
    .await;
    let (looked, since) = (upstream.inventories(), Instant::now());
    for model in ["nope", "no", "never"] {
        refused(&app.admin().post("/jobs", chat_with(model, "hi")).await, 404, "model not found");
    }
    assert!(upstream.inventories() == looked || since.elapsed() > Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_pulled_a_moment_ago_is_found() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    refused(&app.admin().post("/jobs", chat_with("new", "hi")).await, 404, "model not found");
    upstream.pull("new");
    app.advance(TimeDelta::seconds(3));
    let id = eventually("the model", async || {
        let reply = app.admin().post("/jobs", chat_with("new", "hi")).await;
        (reply.status == 202).then(|| reply.json()["job_id"].as_str().unwrap().to_owned())
    });
    assert_eq!(ended(&app.admin(), &id.await).await["state"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_upstream_jobs_can_be_read_but_not_made() {
    let app = TestApp::start().await;
    refused(&app.admin().post("/jobs", chat("hi")).await, 503, "no model upstream configured");
    let list = app.admin().get("/jobs").await;
    assert_eq!((list.status, list.json()), (200, json!({"jobs": []})));
    refused(&app.admin().get("/jobs/01J00000000000000000000000").await, 404, "job not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_while_no_inventory_was_ever_had() {
    let refusing = Refusing::new();
    let app = TestApp::with(&[("RDEV_OLLAMA_URL", &refusing.url)]).await;
    let reply = app.admin().post("/jobs", chat("hi")).await;
    let message = refusal(&reply, 503);
    assert!(!message.contains(refusing.url.strip_prefix("http://").unwrap()), "{message}");
    assert!(reply.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_model_is_accepted_while_its_upstream_is_away() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "0")]).await;
    submit(&app.admin(), chat("before")).await;
    upstream.listener.go_away();
    submit(&app.admin(), chat("meanwhile")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_in_one_sentence_that_names_the_scope() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let job = "/jobs/01J00000000000000000000000";
    let nobody = app.nobody().get("/jobs").await;
    refused(&nobody, 401, "invalid or missing API key");
    assert_eq!(nobody.header("www-authenticate"), "Bearer");
    refused(&app.bearing("rdev_sk_wrong").post("/jobs", chat("hi")).await, 401, "invalid or missing API key");
    let (reader, doer) = (app.someone(&["jobs:read"]).await, app.someone(&["jobs:execute"]).await);
    for reply in [
        reader.post("/jobs", chat("hi")).await,
        reader.delete(job).await,
        reader.post(&format!("{job}/deliveries/x/redeliver"), json!({})).await,
    ] {
        assert!(refusal(&reply, 403).contains("jobs:execute"), "{}", reply.text);
    }
    for path in ["/jobs", job, &format!("{job}/artifacts/x"), &format!("{job}/events"), &format!("{job}/deliveries")] {
        assert!(refusal(&doer.get(path).await, 403).contains("jobs:read"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_or_method_that_is_not_there_is_refused_in_the_native_form() {
    let app = TestApp::start().await;
    for api in [app.admin(), app.nobody()] {
        for path in ["/jobs/x/nowhere", "/jobs/x/artifacts/y/z", "/api/nowhere", "/api"] {
            refusal(&api.get(path).await, 404);
        }
        let reply = api.send(Method::PUT, "/jobs", Some("{}".into()), &[]).await;
        refusal(&reply, 405);
        assert!(reply.header("allow").contains("GET") && reply.header("allow").contains("POST"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_none_is_not_found() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for id in ["01J00000000000000000000000", "x", "%00", "%ff", "01890000-0000-7000-8000-000000000000"] {
        refused(&app.admin().get(&format!("/jobs/{id}")).await, 404, "job not found");
        refused(&app.admin().delete(&format!("/jobs/{id}")).await, 404, "job not found");
        refused(&app.admin().get(&format!("/jobs/{id}/events")).await, 404, "job not found");
        refused(&app.admin().get(&format!("/jobs/{id}/deliveries")).await, 404, "job not found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_too_often_is_told_in_the_native_form() {
    let app = TestApp::with(&[("RDEV_RATE_LIMIT", "1")]).await;
    assert_eq!(app.admin().get("/jobs").await.status, 200);
    let reply = app.admin().get("/jobs").await;
    refusal(&reply, 429);
    assert_eq!((reply.header("retry-after"), reply.header("x-ratelimit-limit")), ("60", "1"));
}

/// A job's body of exactly this many bytes.
fn body_of(size: usize) -> String {
    let frame = chat("").to_string().len();
    chat(&"x".repeat(size - frame)).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_16_mib_is_carried_to_upstream_and_a_larger_one_is_refused() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    refusal(&post_text(&app, &body_of((16 << 20) + 1)).await, 413);
    let largest = body_of(16 << 20);
    let reply = post_text(&app, &largest).await;
    assert_eq!(reply.status, 202, "{}", reply.text);
    let job = ended(&app.admin(), reply.json()["job_id"].as_str().unwrap()).await;
    assert_eq!(job["state"], "completed", "{}", job["error"]);
    let sent: Value = serde_json::from_str(&largest).unwrap();
    assert!(upstream.chats()[0].json()["messages"] == sent["messages"], "the messages are not the caller's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_with_its_key_is_the_same_job() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let first = app.admin().once("k1", "/jobs", chat("hi")).await;
    let again = app.admin().once("k1", "/jobs", chat("hi")).await;
    assert_eq!((first.status, again.status, first.json()), (202, 202, again.json()));
    assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), ("", "true"));
    refusal(&app.admin().once("k1", "/jobs", chat("other")).await, 422);
    ended(&app.admin(), first.json()["job_id"].as_str().unwrap()).await;
    assert_eq!(upstream.chats().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_request_is_the_callers_but_streamed() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let body = json!({
        "model": "llama3", "stream": false, "think": true, "format": {"type": "object"}, "keep_alive": "5m",
        "options": {"temperature": 0.5, "priority": 3}, "tools": [{"type": "function", "function": {"name": "f"}}],
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi", "images": ["AAAA"]}],
        "made_up": [1, null, "x"],
    });
    ended(&app.admin(), &submit(&app.admin(), body.clone()).await).await;
    let chat = &upstream.chats()[0];
    assert_eq!((chat.method.as_str(), chat.json()), ("POST", and(body, json!({"stream": true}))));
    assert!(chat.header("content-type").is_some_and(|kind| kind.starts_with("application/json")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_wrote_reaches_upstream_to_the_digit() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let options = r#"{"temperature":1.10,"seed":12345678901234567890123,"stop":["\u00fc"]}"#;
    let body = format!(r#"{{"model":"llama3","messages":[{{"role":"user","content":"hi"}}],"options":{options}}}"#);
    ended(&app.admin(), post_text(&app, &body).await.json()["job_id"].as_str().unwrap()).await;
    let sent = upstream.chats()[0].clone();
    assert!(sent.text().contains(options), "{}", sent.text());
}

/// That no request so far carries anything of the caller's own, and the last chat only what is the model's.
#[track_caller]
fn knows_nothing_of_the_caller(upstream: &Upstream, app: &TestApp, secrets: &[&str]) {
    for request in upstream.listener.requests() {
        let all = format!("{:?} {}", request.headers, String::from_utf8_lossy(&request.body));
        for secret in secrets.iter().chain(&[&app.admin_key[..14]]) {
            assert!(!all.contains(secret), "{secret} in {all}");
        }
        assert_eq!((request.header("authorization"), request.header("cookie")), (None, None));
    }
    let chat = upstream.chats().pop().expect("a chat").json();
    let mut fields: Vec<_> = chat.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, ["messages", "model", "stream"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_caller_is_told_to_upstream() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = app_on(&upstream, &[]).await;
    let hook = sink.hook();
    let headers = [("cookie", "session=secret"), ("x-api-key", "secret"), ("x-forwarded-for", "192.0.2.7")];
    // The names spelt with an escape are the same names.
    for [url, priority] in [["state_webhook_url", "priority"], [r"state_webhook\u005furl", r"priorit\u0079"]] {
        let body = format!(
            r#"{{"{url}":"{hook}","model":"llama3","messages":[{{"role":"user","content":"hi"}}],"{priority}":3}}"#
        );
        let reply = app.admin().send(Method::POST, "/jobs", Some(body), &headers).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        ended(&app.admin(), reply.json()["job_id"].as_str().unwrap()).await;
        knows_nothing_of_the_caller(&upstream, &app, &["secret", "192.0.2.7", &hook]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_given_twice_smuggles_nothing_to_upstream() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let body = r#"{"priority":2,"state_webhook_url":"http://127.0.0.1:9/hook","model":"llama3",
        "state_webhook_url":"http://127.0.0.1:9/hook","messages":[{"role":"user","content":"hi"}],"priority":3}"#;
    let reply = post_text(&app, body).await;
    // It may be refused; where it is not, it is as if it were given once.
    if reply.status == 202 {
        ended(&app.admin(), reply.json()["job_id"].as_str().unwrap()).await;
        knows_nothing_of_the_caller(&upstream, &app, &["127.0.0.1:9/hook"]);
    } else {
        refusal(&reply, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_taken_by_priority_and_then_by_age() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&[]).wait(&gate).token("x"));
    let app = app_on(&upstream, &[("RDEV_WORKERS", "1")]).await;
    let mut ids = vec![submit(&app.admin(), chat("first")).await];
    under_way(&upstream, 1).await;
    for (text, priority) in [("nine", 9), ("zero", 0), ("five", 5), ("zero too", 0), ("three", 3)] {
        ids.push(submit(&app.admin(), and(chat(text), json!({"priority": priority}))).await);
    }
    ids.push(submit(&app.admin(), chat("default")).await);
    ids.push(submit(&app.admin(), and(chat("four"), json!({"priority": 4}))).await);
    gate.open();
    for id in &ids {
        ended(&app.admin(), id).await;
    }
    assert_eq!(upstream.asked(), ["first", "zero", "zero too", "three", "default", "four", "five", "nine"]);
}

//! What steps can do besides calling somebody: jobs, registries, nothing at all.

use serde_json::{Value, json};

use super::{Stage, noop, of, retried, statuses, step};
use crate::{
    jobs::{in_state, show, under_way},
    support::{Chat, Upstream, sink::Refusing},
};

async fn with_models(upstream: &Upstream) -> Stage {
    Stage::with(&[("RDEV_OLLAMA_URL", &upstream.url)]).await
}

fn submitted(text: &str) -> Value {
    let messages = json!([{"role": "user", "content": text}]);
    step("ask", "job.submit", json!({"model": "llama3", "messages": messages}))
}

fn waited_for() -> Value {
    retried(step("answer", "job.wait", json!({"job_id": "${steps.ask.output.job_id}"})), 0)
}

fn job_of(saga: &Value) -> &str {
    of(saga, "ask")["output"]["job_id"].as_str().unwrap_or_else(|| panic!("no job in {saga}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_asks_a_model_and_waits_for_its_answer() {
    let upstream = Upstream::start().await;
    let stage = with_models(&upstream).await;
    let then = noop("then", json!("${steps.answer.output.result.message.content}!"));
    let id = stage.run(json!([noop("a", json!("why")), submitted("${steps.a.output}?"), waited_for(), then])).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(saga["outputs"]["then"], "Hello there!");
    assert_eq!(upstream.asked(), ["why?"]);
    let job = show(&stage.admin(), job_of(&saga)).await;
    let output = &of(&saga, "answer")["output"];
    assert_eq!((&output["state"], &output["result"]), (&job["state"], &job["result"]));
    assert_eq!(stage.admin().get("/jobs").await.json()["jobs"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitted_job_is_not_waited_for() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::hangs());
    let stage = with_models(&upstream).await;
    let id = stage.run(json!([submitted("hi"), stage.call("b", "/b")])).await;
    let saga = stage.reaches(&id, "completed").await;
    in_state(&stage.admin(), job_of(&saga), "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_fails_the_step_that_waits_for_it() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::fails(400, "no such option"));
    let stage = with_models(&upstream).await;
    let id = stage.run(json!([submitted("hi"), waited_for()])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(statuses(&saga), ["completed", "failed"]);
    assert!(of(&saga, "answer")["error"].as_str().is_some_and(|error| !error.is_empty()), "{saga}");
    assert_eq!(upstream.asked(), ["hi"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_not_wanted_any_more_is_cancelled() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::hangs());
    let stage = with_models(&upstream).await;
    let id = stage.run(json!([submitted("hi")])).await;
    let saga = stage.reaches(&id, "completed").await;
    under_way(&upstream, 1).await;
    stage.tell(&id, "rollback", json!({})).await.data(200);
    stage.reaches(&id, "compensated").await;
    in_state(&stage.admin(), job_of(&saga), "cancelled").await;
    under_way(&upstream, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_ended_can_be_rolled_back_over() {
    let upstream = Upstream::start().await;
    let stage = with_models(&upstream).await;
    let id = stage.run(json!([submitted("hi"), waited_for()])).await;
    let saga = stage.reaches(&id, "completed").await;
    stage.tell(&id, "rollback", json!({})).await.data(200);
    let after = stage.reaches(&id, "compensated").await;
    assert_eq!(of(&after, "ask")["status"], "compensated");
    assert_eq!(show(&stage.admin(), job_of(&saga)).await["state"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_not_there_cannot_be_waited_for() {
    let upstream = Upstream::start().await;
    let stage = with_models(&upstream).await;
    let wait = step("answer", "job.wait", json!({"job_id": "01J00000000000000000000000"}));
    let id = stage.run(json!([retried(wait, 0)])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(of(&saga, "answer")["status"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_asked_whether_it_is_there() {
    let stage = Stage::new().await;
    let id = stage.run(json!([step("r", "registry.preflight", json!({"url": stage.out.url}))])).await;
    let saga = stage.reaches(&id, "completed").await;
    let output = &of(&saga, "r")["output"];
    assert_eq!(output["ok"], true);
    assert!(output["latency_ms"].as_f64().is_some_and(|latency| latency >= 0.0), "{output}");
    assert!(!stage.out.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_fails_its_step() {
    let stage = Stage::new().await;
    let refusing = Refusing::new();
    let preflight = step("r", "registry.preflight", json!({"url": refusing.url}));
    let id = stage.run(json!([retried(preflight, 1), stage.call("b", "/b")])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!((statuses(&saga), &of(&saga, "r")["retry_count"]), (vec!["failed", "pending"], &json!(1)));
    assert!(of(&saga, "r")["error"].is_string(), "{saga}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_does_nothing_gives_what_it_was_given() {
    let stage = Stage::new().await;
    let outputs = [json!(1), json!("x"), json!([1, {"a": null}]), json!({"b": true}), json!(1.5), json!("")];
    let steps = outputs.iter().enumerate().map(|(n, output)| noop(&format!("s{n}"), output.clone()));
    let bare = json!({"name": "bare", "action": "noop"});
    let id = stage.run(steps.chain([bare]).collect()).await;
    let saga = stage.reaches(&id, "completed").await;
    for (n, output) in outputs.iter().enumerate() {
        assert_eq!(&of(&saga, &format!("s{n}"))["output"], output);
    }
}

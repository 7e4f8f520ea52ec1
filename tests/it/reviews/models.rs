//! A model as the reviewer: what it is shown, and what of its answers is a verdict.

use serde_json::{Value, json};

use super::{checkin, head, job, over, reviewed, show, work, work_on};
use crate::support::{Chat, Gate, TestApp, Upstream, eventually};

async fn app_on(upstream: &Upstream) -> TestApp {
    let app = TestApp::with(&[("RDEV_OLLAMA_URL", &upstream.url), ("RDEV_REVIEW_MODEL", "llama3")]).await;
    app.project("p").await;
    app
}

fn verdict(verdict: &str, summary: &str) -> Chat {
    Chat::says(&[&json!({"verdict": verdict, "summary": summary}).to_string()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_passes_a_branch_has_it_merged() {
    let upstream = Upstream::start().await;
    upstream.then(verdict("pass", "small and right"));
    let app = app_on(&upstream).await;
    let (work, review) = reviewed(&app, "feature", json!({"auto_merge": true})).await;
    assert_eq!((&review["status"], &review["summary"]), (&json!("passed"), &json!("small and right")));
    assert!(review.get("command_id").is_none());
    assert_eq!(head(&app.admin(), "main").await, Some(work.sha.clone()));
    let job = job(&app.admin(), review["id"].as_str().unwrap()).await;
    assert_eq!((&job["state"], &job["model"]), (&json!("completed"), &json!("llama3")));
    let asked = upstream.chats()[0].json();
    assert_eq!((&asked["model"], asked["messages"].as_array().map(Vec::len)), (&json!("llama3"), Some(2)));
    let shown = asked["messages"][1]["content"].as_str().unwrap();
    for part in ["Branch: feature", "main", &work.sha, "slug of feature", "+++ b/feature.txt", "+work"] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    assert!(!shown.contains("is longer than"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fails_a_branch_says_why() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["```json\n{\"verdict\": \"fail\",", "\"summary\": \"it loses data\"}\n```"]));
    let app = app_on(&upstream).await;
    let (work, review) = reviewed(&app, "feature", json!({"auto_merge": true})).await;
    assert_eq!((&review["status"], &review["summary"]), (&json!("failed"), &json!("it loses data")));
    assert_ne!(head(&app.admin(), "main").await, Some(work.sha));
}

#[tokio::test(flavor = "multi_thread")]
async fn anything_but_a_verdict_is_an_error_and_not_asked_again() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["Looks good to me!"]));
    let app = app_on(&upstream).await;
    let (_, review) = reviewed(&app, "feature", json!({"auto_merge": true})).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("error"), &json!("none")));
    let job = job(&app.admin(), review["id"].as_str().unwrap()).await;
    assert_eq!((&job["state"], &job["error"]), (&json!("failed"), &review["summary"]));
    assert_eq!(upstream.chats().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_upstream_is_asked_again() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::busy()).then(verdict("pass", "fine"));
    let app = app_on(&upstream).await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    assert_eq!((&review["status"], upstream.chats().len()), (&json!("passed"), 2));
    assert_eq!(job(&app.admin(), review["id"].as_str().unwrap()).await["attempt"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_nobody_has_is_no_verdict() {
    let upstream = Upstream::with(&["other"]).await;
    let app = app_on(&upstream).await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    assert_eq!(review["status"], "error");
    assert!(review["summary"].as_str().unwrap().contains("not found"), "{review}");
}

fn many_lines() -> String {
    (0..100_000).map(|n| format!("line {n} of many\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_not_given_all_of_the_diff_gives_no_verdict() {
    let upstream = Upstream::start().await;
    upstream.then(verdict("pass", "fine").reads(4096));
    let app = app_on(&upstream).await;
    let work = work_on(&app.admin(), &app.ground, "feature", "large.txt", &many_lines()).await;
    let id = checkin(&app.admin(), &work, json!({"auto_merge": true})).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("error"), &json!("none")));
    assert!(review["summary"].as_str().unwrap().contains("not given all of the diff"), "{review}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_diff_is_cut_after_a_line_and_the_model_is_told() {
    let upstream = Upstream::start().await;
    upstream.then(verdict("pass", "what was seen is fine").reads(90_000));
    let app = app_on(&upstream).await;
    let work = work_on(&app.admin(), &app.ground, "feature", "large.txt", &many_lines()).await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    assert_eq!(over(&app.admin(), &id).await["status"], "passed");
    let chat = upstream.chats()[0].json();
    assert!(chat["options"]["num_ctx"].as_u64().unwrap() > 90_000, "{}", chat["options"]);
    assert_eq!(chat["truncate"], false);
    let shown = chat["messages"][1]["content"].as_str().unwrap();
    assert!(shown.contains("The diff is longer than 256 KiB"));
    let (_, diff) = shown.split_once("The diff:\n\n").unwrap();
    assert!(diff.len() <= 256 << 10 && diff.len() > 255 << 10, "{}", diff.len());
    assert!(diff.ends_with(" of many\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_projects_own_command_comes_first() {
    let upstream = Upstream::start().await;
    let app = TestApp::with(&[("RDEV_OLLAMA_URL", &upstream.url), ("RDEV_REVIEW_MODEL", "llama3")]).await;
    app.project_with(json!({"id": "p", "review_command": ["true"]})).await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    assert!(review["command_id"].is_string());
    assert!(upstream.chats().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_takes_a_seat_among_the_jobs() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&["a"]).wait(&gate)).then(verdict("pass", "fine"));
    let settings = [("RDEV_OLLAMA_URL", upstream.url.as_str()), ("RDEV_REVIEW_MODEL", "llama3"), ("RDEV_WORKERS", "1")];
    let app = TestApp::with(&settings).await;
    app.project("p").await;
    let body = json!({"model": "llama3", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(app.admin().post("/jobs", body).await.status, 202);
    eventually("the first chat", async || (upstream.chats_under_way() == 1).then_some(())).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    assert_eq!(show(&app.admin(), &id).await["status"], "queued");
    gate.open();
    assert_eq!(over(&app.admin(), &id).await["status"], "passed");
    assert_eq!(upstream.most_chats_at_once(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_review_is_cancelled_is_cut_off() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::hangs());
    let app = app_on(&upstream).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    eventually("the chat", async || (upstream.chats_under_way() == 1).then_some(())).await;
    let cancelled: Value = app.admin().delete(&format!("/jobs/{id}")).await.json();
    assert_eq!(cancelled["state"], "cancelled");
    eventually("the cut", async || (upstream.chats_cancelled() == 1).then_some(())).await;
    assert_eq!(show(&app.admin(), &id).await["status"], "error");
}

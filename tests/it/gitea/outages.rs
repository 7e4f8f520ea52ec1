//! The host away, slow, or saying half: an answer with the right code, and nothing lost.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{CHECKOUT, app_with_project, checkout, clone_of, opens, path, token_is_gone, token_name};
use crate::support::{Fault, Gitea, Reply, TestApp, eventually};

/// Out of reach, or left alone by now: whoever else asks counts too.
#[track_caller]
fn is_away(reply: &Reply) {
    let code = reply.json()["error"]["code"].clone();
    assert!(reply.status == 503 && (code == "UPSTREAM_UNAVAILABLE" || code == "CIRCUIT_OPEN"), "{}", reply.text);
    assert!(!reply.header("retry-after").is_empty());
}

async fn circuit(app: &TestApp) -> Value {
    let circuits = app.nobody().get("/health/circuits").await.data(200);
    let all = circuits["circuits"].as_array().expect("a list").clone();
    all.into_iter().find(|one| one["name"] == "git_host").expect("the host's breaker")
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_host_is_away_nothing_is_lost_and_then_it_goes_on() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "feature").await;
    let clone = clone_of(&app.ground, &made).await;
    let sha = clone.commit("a.txt", "a").await;
    clone.git(&["push", "--quiet", "origin", "feature"]).await.ok();
    gitea.goes_down();
    is_away(&app.admin().post(CHECKOUT, json!({"new_branch": "other"})).await);
    is_away(&app.admin().post(&format!("{}/checkin", path(&made)), json!({})).await);
    assert_eq!(app.admin().get(&path(&made)).await.data(200)["status"], "active");
    eventually("the breaker to open", async || {
        let refused = app.admin().get(&format!("{CHECKOUT}/branches")).await;
        is_away(&refused);
        (refused.json()["error"]["code"] == "CIRCUIT_OPEN").then_some(())
    })
    .await;
    assert_eq!(circuit(&app).await["state"], "open");
    let health = app.nobody().get("/health").await.data(200);
    assert_eq!((&health["status"], &health["checks"]["git_host"]["status"]), (&json!("ok"), &json!("unavailable")));
    gitea.comes_back().await;
    app.admin().get(&format!("{CHECKOUT}/branches")).await.refusal(503, "CIRCUIT_OPEN");
    app.advance(TimeDelta::minutes(6));
    eventually("the host to be asked again", async || {
        (app.admin().get(&format!("{CHECKOUT}/branches")).await.status == 200).then_some(())
    })
    .await;
    app.admin().post(&format!("{}/checkin", path(&made)), json!({})).await.data(200);
    assert_eq!(gitea.head("p", "feature").await, Some(sha));
    assert!(!opens(&app.ground, &made).await);
    checkout(&app.admin(), "other").await;
    assert_eq!(circuit(&app).await["state"], "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_making_nobody_heard_of_is_taken_back_with_its_branch() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    gitea.plan("POST", "/tokens", Fault::Mute, 1);
    app.admin().post(CHECKOUT, json!({"new_branch": "feature"})).await.refusal(503, "UPSTREAM_UNAVAILABLE");
    eventually("everything to be taken back", async || {
        (gitea.tokens().len() == 1 && gitea.head("p", "feature").await.is_none()).then_some(())
    })
    .await;
    assert_eq!(app.admin().get(CHECKOUT).await.data(200), json!({"checkouts": []}));
    checkout(&app.admin(), "feature").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failing_host_makes_impossible_is_undone_when_it_is_back() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    gitea.plan("POST", "/tokens", Fault::Mute, 1);
    gitea.plan("DELETE", "/tokens/", Fault::Says(403), 2);
    app.admin().post(CHECKOUT, json!({"new_branch": "feature"})).await.refusal(503, "UPSTREAM_UNAVAILABLE");
    eventually("everything to be taken back", async || {
        (gitea.tokens().len() == 1 && gitea.head("p", "feature").await.is_none()).then_some(())
    })
    .await;
    eventually("the branch to be free", async || {
        (app.admin().post(CHECKOUT, json!({"new_branch": "feature"})).await.status == 201).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_hiccup_is_not_noticed_where_asking_twice_is_safe() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    gitea.plan("GET", "/branches", Fault::Says(502), 2);
    let listed = app.admin().get(&format!("{CHECKOUT}/branches")).await.data(200);
    assert_eq!(listed["branches"][0]["name"], "main");
    let before = gitea.asked("POST /api/v1/users");
    gitea.plan("POST", "/tokens", Fault::Says(502), 1);
    app.admin().post(CHECKOUT, json!({"new_branch": "feature"})).await.refusal(503, "UPSTREAM_UNAVAILABLE");
    assert_eq!(gitea.asked("POST /api/v1/users"), before + 1, "what makes something is asked once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_says_nothing_is_not_waited_for_longer_than_the_request_may_take() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "feature").await;
    gitea.plan("DELETE", "/tokens/", Fault::Slow(Duration::from_mins(5)), usize::MAX);
    app.admin().delete(&path(&made)).await.refusal(503, "UPSTREAM_UNAVAILABLE");
    gitea.behaves();
    app.advance(TimeDelta::minutes(6));
    token_is_gone(&gitea, &made).await;
    assert_eq!(gitea.token(&token_name(&made)).map(|token| token.name), None);
}

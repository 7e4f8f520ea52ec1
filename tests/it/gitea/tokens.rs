//! The death of tokens: before the answer, or promised, or, where the host will not, shown.

use chrono::TimeDelta;
use serde_json::json;

use super::{app_with_project, checkout, id, opens, path, secret, token_is_gone, token_name};
use crate::support::{Fault, Gitea, TestApp, eventually};

const TOKENS: &str = "/users/rdev-bot/tokens/";

async fn irrevocable(app: &TestApp) -> i64 {
    app.nobody().get("/health").await.data(200)["checks"]["git_tokens"]["irrevocable"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_in_no_table() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = app.admin().once("k", super::CHECKOUT, json!({"new_branch": "feature"})).await.data(201);
    for table in ["checkout", "idempotency", "chunk"] {
        for found in [secret(&made), hex(&secret(&made))] {
            let sql = format!("select count(*) from {table} t where t::text like '%{found}%'");
            assert_eq!(app.db().count(&sql).await, 0, "{table}");
        }
    }
    assert_eq!(app.db().count("select count(*) from checkout where token_sealed is not null").await, 1);
    app.admin().delete(&path(&made)).await.data(200);
    assert_eq!(app.db().count("select count(*) from checkout where token_sealed is not null").await, 0);
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_checkouts_token_dies_without_a_request() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "feature").await;
    app.advance(TimeDelta::hours(25));
    token_is_gone(&gitea, &made).await;
    eventually("the state", async || {
        (app.admin().get(&path(&made)).await.data(200)["status"] == "expired").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_is_dead_at_once() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "feature").await;
    let rotated = app.admin().post(&format!("{}/rotate", path(&made)), json!({})).await.data(201);
    assert_ne!(secret(&made), secret(&rotated));
    assert!(!opens(&app.ground, &made).await && opens(&app.ground, &rotated).await);
    app.admin().delete(&path(&made)).await.data(200);
    assert!(!opens(&app.ground, &rotated).await);
    app.admin().post(&format!("{}/rotate", path(&made)), json!({})).await.refusal(400, "BAD_REQUEST");
    assert_eq!(gitea.token(&token_name(&made)).map(|token| token.name), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_the_host_does_not_confirm_is_not_answered_as_one_and_is_carried_through() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "feature").await;
    gitea.plan("DELETE", TOKENS, Fault::Says(500), usize::MAX);
    let refusal = app.admin().delete(&path(&made)).await;
    let told = refusal.refusal(503, "UPSTREAM_UNAVAILABLE");
    assert!(told["message"].as_str().unwrap().contains("not confirmed"), "{told}");
    assert!(!refusal.header("retry-after").is_empty());
    assert_eq!(app.admin().get(&path(&made)).await.data(200)["status"], "revoked");
    gitea.behaves();
    app.advance(TimeDelta::minutes(6));
    token_is_gone(&gitea, &made).await;
    eventually("the promise to be kept", async || {
        (app.db().count("select count(*) from checkout where token_sealed is not null").await == 0).then_some(())
    })
    .await;
    assert_eq!(irrevocable(&app).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_host_will_not_let_go_of_is_shown_until_it_does() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "feature").await;
    gitea.plan("DELETE", TOKENS, Fault::Says(403), usize::MAX);
    app.admin().delete(&path(&made)).await.refusal(503, "UPSTREAM_UNAVAILABLE");
    eventually("six failures", async || (irrevocable(&app).await == 1).then_some(())).await;
    let health = app.nobody().get("/health").await.data(200);
    assert_eq!((&health["status"], &health["checks"]["git_tokens"]["status"]), (&json!("ok"), &json!("warning")));
    eventually("the metric", async || {
        app.nobody().get("/metrics").await.text.contains("rdev_git_tokens_irrevocable 1").then_some(())
    })
    .await;
    gitea.behaves();
    token_is_gone(&gitea, &made).await;
    eventually("health", async || (irrevocable(&app).await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweeper_removes_what_has_no_open_checkout_and_nothing_else() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "feature").await;
    let stray = format!("rdev-{}", uuid::Uuid::now_v7());
    for name in [stray.as_str(), "rdev-read-gone", "rdev-notes", "ci"] {
        gitea.make_token(name);
    }
    let gone = |name: &'static str| gitea.token(name).is_none();
    eventually("the strays to go", async || (gitea.token(&stray).is_none() && gone("rdev-read-gone")).then_some(()))
        .await;
    assert!(!gone("rdev-notes") && !gone("ci") && !gone("rdev-read-p"));
    assert!(opens(&app.ground, &made).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_to_the_token_is_its_death_and_a_no_to_us_is_not() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "dead").await;
    gitea.drop_token(&token_name(&made));
    gitea.plan("DELETE", TOKENS, Fault::Says(401), 1);
    app.admin().delete(&path(&made)).await.data(200);
    let made = checkout(&app.admin(), "alive").await;
    gitea.has_password("changed by somebody");
    app.admin().delete(&path(&made)).await.refusal(503, "UPSTREAM_UNAVAILABLE");
    assert!(gitea.token(&token_name(&made)).is_some());
    let refused = app.admin().post(super::CHECKOUT, json!({"new_branch": "more"})).await;
    refused.refusal(502, "GIT_HOST_REFUSED");
    gitea.has_password(crate::support::gitea::PASSWORD);
    token_is_gone(&gitea, &made).await;
    assert!(!id(&made).is_empty());
}

//! What one caller may use: requests a minute, failed authentications, commands, streams.

use chrono::TimeDelta;
use serde_json::json;

use super::support::{Reply, TestApp, eventually};

fn allowance(reply: &Reply) -> [&str; 3] {
    ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"].map(|name| reply.header(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_so_many_requests_and_then_waits_for_a_token() {
    let app = TestApp::with(&[("RDEV_RATE_LIMIT", "3")]).await;
    for remaining in ["2", "1", "0"] {
        let reply = app.admin().get("/whoami").await;
        reply.data(200);
        assert_eq!(allowance(&reply)[..2], ["3", remaining]);
    }
    let reply = app.admin().get("/whoami").await;
    reply.refusal(429, "RATE_LIMITED");
    assert_eq!(allowance(&reply)[..2], ["3", "0"]);
    assert_eq!((reply.header("retry-after"), reply.header("x-ratelimit-reset")), ("20", "60"));
    app.advance(TimeDelta::milliseconds(19_900));
    app.admin().get("/whoami").await.refusal(429, "RATE_LIMITED");
    app.advance(TimeDelta::milliseconds(101));
    app.admin().get("/whoami").await.data(200);
    app.admin().get("/whoami").await.refusal(429, "RATE_LIMITED");
    app.advance(TimeDelta::hours(1));
    assert_eq!(allowance(&app.admin().get("/whoami").await)[..2], ["3", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_own_limit_overrides_the_general_one() {
    let app = TestApp::with(&[("RDEV_RATE_LIMIT", "2")]).await;
    let (own, _) = app.holder(json!({"name": "x", "scopes": ["projects:read"], "rate_limit": 5})).await;
    let (free, _) = app.holder(json!({"name": "x", "scopes": ["projects:read"], "rate_limit": 0})).await;
    for _ in 0..5 {
        own.get("/whoami").await.data(200);
    }
    own.get("/whoami").await.refusal(429, "RATE_LIMITED");
    for _ in 0..10 {
        assert_eq!(allowance(&free.get("/whoami").await), ["", "", ""]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_own_limit_holds_where_the_general_one_is_off() {
    let app = TestApp::with(&[("RDEV_RATE_LIMIT", "0")]).await;
    let (own, _) = app.holder(json!({"name": "x", "scopes": ["projects:read"], "rate_limit": 1})).await;
    own.get("/whoami").await.data(200);
    own.get("/whoami").await.refusal(429, "RATE_LIMITED");
    assert_eq!(allowance(&app.admin().get("/whoami").await), ["", "", ""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_a_key_shows_what_is_left() {
    let app = TestApp::with(&[("RDEV_RATE_LIMIT", "100")]).await;
    app.project("p").await;
    for reply in [
        app.admin().get("/projects/none").await,
        app.admin().get("/projects/NONE").await,
        app.admin().post("/projects", json!([])).await,
        app.admin().get("/projects/p/commands/x").await,
    ] {
        assert_eq!(reply.header("x-ratelimit-limit"), "100", "{}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_without_authentication_do_not_count() {
    let app = TestApp::with(&[("RDEV_RATE_LIMIT", "1")]).await;
    for _ in 0..5 {
        let reply = app.admin().get("/health").await;
        assert_eq!((reply.status, allowance(&reply)), (200, ["", "", ""]));
    }
    app.admin().get("/whoami").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_comes_before_the_project_id_and_the_scope() {
    let app = TestApp::with(&[("RDEV_RATE_LIMIT", "1")]).await;
    let (holder, _) = app.holder(json!({"name": "x", "scopes": ["jobs:read"], "rate_limit": 1})).await;
    holder.get("/whoami").await.data(200);
    holder.get("/projects/BAD").await.refusal(429, "RATE_LIMITED");
    holder.post("/projects", json!({})).await.refusal(429, "RATE_LIMITED");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_many_failed_credentials_further_failing_requests_are_limited() {
    let app = TestApp::with(&[("RDEV_AUTH_FAILURE_LIMIT", "3")]).await;
    let wrong = app.bearing("rdev_sk_wrong");
    for _ in 0..3 {
        wrong.get("/projects").await.refusal(401, "UNAUTHORIZED");
    }
    let reply = wrong.get("/projects").await;
    reply.refusal(429, "RATE_LIMITED");
    assert_eq!(reply.header("retry-after"), "20");
    app.admin().get("/whoami").await.data(200);
    app.nobody().get("/projects").await.refusal(401, "UNAUTHORIZED");
    app.advance(TimeDelta::seconds(20));
    wrong.get("/projects").await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_credential_are_no_failures() {
    let app = TestApp::with(&[("RDEV_AUTH_FAILURE_LIMIT", "2")]).await;
    for _ in 0..10 {
        app.nobody().get("/projects").await.refusal(401, "UNAUTHORIZED");
    }
    app.bearing("rdev_sk_wrong").get("/projects").await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_failures_may_be_off() {
    let app = TestApp::with(&[("RDEV_AUTH_FAILURE_LIMIT", "0")]).await;
    for _ in 0..30 {
        app.bearing("rdev_sk_wrong").get("/projects").await.refusal(401, "UNAUTHORIZED");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_count_for_the_address_that_a_trusted_proxy_names() {
    let settings = [("RDEV_AUTH_FAILURE_LIMIT", "1"), ("RDEV_TRUSTED_PROXIES", "127.0.0.1")];
    let app = TestApp::with(&settings).await;
    let wrong = app.bearing("rdev_sk_wrong");
    let from = async |address: &str| {
        wrong.send(http::Method::GET, "/projects", None, &[("x-forwarded-for", address)]).await.status
    };
    assert_eq!((from("192.0.2.1").await, from("192.0.2.1").await), (401, 429));
    assert_eq!(from("192.0.2.2").await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_runs_so_many_commands_at_once() {
    let app = TestApp::with(&[("RDEV_COMMANDS_PER_PROJECT", "2")]).await;
    app.project("p").await;
    let body = json!({"args": ["sleep", "600"]});
    let first = app.admin().post("/projects/p/shell", body.clone()).await.data(201);
    app.admin().post("/projects/p/shell", body.clone()).await.data(201);
    let error = app.admin().post("/projects/p/shell", body.clone()).await.refusal(429, "QUOTA_EXCEEDED");
    assert_eq!((&error["details"]["used"], &error["details"]["max"]), (&json!(2), &json!(2)));
    assert!(error["details"]["limit"].is_string());
    let id = first["command_id"].as_str().unwrap();
    app.admin().delete(&format!("/projects/p/commands/{id}")).await.data(200);
    app.admin().post("/projects/p/shell", body).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_of_commands_is_exact_in_a_crowd() {
    let app = TestApp::with(&[("RDEV_COMMANDS_PER_PROJECT", "3")]).await;
    app.project("p").await;
    let other = app.sibling(&[("RDEV_COMMANDS_PER_PROJECT", "3")]).await;
    let (here, there) = (app.admin(), other.admin());
    eventually("the project is known there", async || (there.get("/projects/p").await.status == 200).then_some(()))
        .await;
    let starts = (0..10).map(|n| {
        let api = if n % 2 == 0 { here.clone() } else { there.clone() };
        async move { api.post("/projects/p/shell", json!({"args": ["sleep", "600"]})).await.status }
    });
    let mut statuses = futures::future::join_all(starts).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 201, 201, 429, 429, 429, 429, 429, 429, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_runs_so_many_commands_at_once() {
    let app = TestApp::with(&[("RDEV_COMMANDS_PER_SESSION", "1")]).await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    let exec = format!("/projects/p/sessions/{}/exec", session["id"].as_str().unwrap());
    let body = json!({"args": ["sleep", "600"]});
    app.admin().post(&exec, body.clone()).await.data(201);
    app.admin().post(&exec, body.clone()).await.refusal(429, "QUOTA_EXCEEDED");
    app.admin().post("/projects/p/shell", body).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_holds_so_many_streams_open() {
    let app = TestApp::with(&[("RDEV_STREAMS_PER_KEY", "2")]).await;
    app.project("p").await;
    let path = "/projects/p/events";
    let first = app.listen(path).await;
    let _second = app.listen(path).await;
    let error = app.admin().get(path).await.refusal(429, "QUOTA_EXCEEDED");
    assert_eq!(error["details"]["max"], 2);
    let _another_keys = app.someone(&["projects:read"]).await.listen(path).await;
    drop(first);
    let request = || app.admin().request(http::Method::GET, path, None, &[]).send();
    eventually("a place is free again", async || (request().await.unwrap().status() == 200).then_some(())).await;
}

//! The CI server away, slow, out of its mind, or telling what it should not: an answer with the right
//! code, in time, and no secret in it.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::json;

use super::{app_on, circuit, imported, retry};
use crate::support::{Ground, Odd, Reply, Server, Woodpecker, eventually, server::log_of, woodpecker::TOKEN};

#[track_caller]
fn is_away(reply: &Reply) {
    let code = reply.json()["error"]["code"].clone();
    assert!(reply.status == 503 && (code == "UPSTREAM_UNAVAILABLE" || code == "CIRCUIT_OPEN"), "{}", reply.text);
    assert!(!reply.header("retry-after").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_keeps_failing_is_left_alone_and_asked_again_later() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    ci.plan("GET", "", Odd::Says(500, "oh".into()), usize::MAX);
    eventually("the breaker to open", async || {
        let refused = retry(&app.admin(), 1).await;
        is_away(&refused);
        (refused.json()["error"]["code"] == "CIRCUIT_OPEN").then_some(())
    })
    .await;
    let open = circuit(&app).await;
    assert_eq!((&open["state"], ci.asked("GET ")), (&json!("open"), 5));
    eventually("the metric", async || {
        let metrics = app.nobody().get("/metrics").await.text;
        metrics.lines().any(|line| line == "rdev_circuit_breaker_state{name=\"ci\"} 2").then_some(())
    })
    .await;
    ci.behaves();
    retry(&app.admin(), 1).await.refusal(503, "CIRCUIT_OPEN");
    assert_eq!(ci.asked("GET "), 5, "it is left alone");
    app.advance(TimeDelta::seconds(31));
    retry(&app.admin(), 1).await.data(200);
    assert_eq!(circuit(&app).await["state"], "closed");
    assert_eq!(ci.restarts("team/p", 1), [4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_gone_is_out_of_reach() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    ci.goes_down();
    is_away(&retry(&app.admin(), 1).await);
    ci.comes_back().await;
    app.advance(TimeDelta::minutes(6));
    retry(&app.admin(), 1).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_for_a_moment_is_asked_again_but_a_restart_never() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    ci.plan("GET", "/lookup/", Odd::Says(502, String::new()), 1);
    ci.plan("GET", "/pipelines/", Odd::Says(503, String::new()), 1);
    retry(&app.admin(), 1).await.data(200);
    ci.plan("POST", "/pipelines/2", Odd::DoneBut(502), 1);
    let refusal = retry(&app.admin(), 2).await.refusal(503, "UPSTREAM_UNAVAILABLE");
    assert_eq!(refusal["details"], json!({"may_have_begun": true}));
    assert_eq!((ci.restarts("team/p", 2), ci.asked("POST /api/repos/40/pipelines/2")), (vec![5], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_says_nothing_is_waited_for_a_few_seconds() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    let began = Instant::now();
    ci.plan("GET", "/lookup/", Odd::Silent, 1);
    is_away(&retry(&app.admin(), 1).await);
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    ci.plan("POST", "/pipelines/", Odd::DoneSilent, 1);
    let refusal = retry(&app.admin(), 1).await.refusal(504, "TIMEOUT");
    assert_eq!((&refusal["details"]["may_have_begun"], ci.restarts("team/p", 1)), (&json!(true), vec![4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_is_told_from_one() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    for garbage in ["<!doctype html><title>Woodpecker</title>", "", "null", "[]", r#"{"id": "forty"}"#, r#"{"id": 1"#] {
        ci.plan("GET", "/lookup/", Odd::Says(200, garbage.into()), 1);
        let refusal = retry(&app.admin(), 1).await.refusal(502, "CI_BAD_ANSWER");
        assert!(refusal["message"].as_str().unwrap().contains("RDEV_WOODPECKER_URL"), "{garbage}: {refusal}");
    }
    ci.plan("POST", "/pipelines/", Odd::Says(204, String::new()), 1);
    retry(&app.admin(), 1).await.refusal(502, "CI_BAD_ANSWER");
    ci.plan("GET", "/lookup/", Odd::Endless, 3);
    is_away(&retry(&app.admin(), 1).await);
    assert_eq!(ci.restarts("team/p", 1), Vec::<i64>::new());
    retry(&app.admin(), 1).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_not_followed() {
    let (ci, other) = (Woodpecker::with_failures().await, Woodpecker::with_failures().await);
    let app = app_on(&ci).await;
    ci.plan("GET", "/lookup/", Odd::Redirects(format!("{}/api/repos/lookup/team/p", other.url)), 1);
    let refusal = retry(&app.admin(), 1).await.refusal(502, "CI_BAD_ANSWER");
    assert!(refusal["message"].as_str().unwrap().contains("redirect"), "{refusal}");
    assert_eq!(other.asked(""), 0, "the token goes nowhere else");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_in_no_answer_and_in_no_log() {
    let ci = Woodpecker::with_failures().await;
    let ground = Ground::new().await;
    let server = Server::start(&ground, &[ci.settings(), vec![("RDEV_LOG", "trace")]].concat()).await;
    server.admin().post("/projects", json!({"id": "p"})).await.data(201);
    imported(&ground.db, "p", "team/p").await;
    for status in [200, 204, 302, 400, 403, 418, 500] {
        for (method, path) in [("GET", "/lookup/"), ("POST", "/pipelines/")] {
            ci.plan(method, path, Odd::Repeats(status), 1);
            let reply = retry(&server.admin(), 1).await;
            assert!(!reply.text.contains(TOKEN), "{}", reply.text);
            ci.behaves();
        }
    }
    ci.has_token("another");
    retry(&server.admin(), 1).await.refusal(502, "CI_REFUSED");
    let log = std::fs::read_to_string(log_of(&ground)).unwrap();
    assert!(log.contains("[redacted]"), "what the server said is in the log");
    assert!(!log.contains(TOKEN), "{:?}", log.lines().find(|line| line.contains(TOKEN)));
}

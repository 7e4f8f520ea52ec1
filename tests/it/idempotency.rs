//! `Idempotency-Key`: the first answer is kept and given again.

use http::Method;
use serde_json::{Value, json};

use super::support::TestApp;

async fn app_with_project() -> TestApp {
    let app = TestApp::start().await;
    app.project("p").await;
    app
}

fn without_meta(text: &str) -> Value {
    let mut body: Value = serde_json::from_str(text).unwrap();
    body.as_object_mut().unwrap().remove("meta").expect("every answer has meta");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer_with_its_own_meta() {
    let app = TestApp::start().await;
    let body = json!({"id": "p"});
    let first = app.admin().once("k", "/projects", body.clone()).await;
    first.data(201);
    assert_eq!(first.header("idempotent-replayed"), "");
    let again = app.admin().once("k", "/projects", body).await;
    assert_eq!(again.status, 201);
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(without_meta(&again.text), without_meta(&first.text));
    assert_ne!(again.json()["meta"]["request_id"], first.json()["meta"]["request_id"]);
    assert_eq!(again.json()["meta"]["request_id"], again.header("x-request-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_started_once() {
    let app = app_with_project().await;
    let body = json!({"script": "echo once >> runs", "wait": "30s"});
    let first = app.admin().once("k", "/projects/p/shell", body.clone()).await.data(201);
    let again = app.admin().once("k", "/projects/p/shell", body).await.data(201);
    assert_eq!(again["command_id"], first["command_id"]);
    assert_eq!(app.output(&app.script("p", "cat runs").await).await, "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_body_under_the_same_key_is_refused() {
    let app = TestApp::start().await;
    app.admin().once("k", "/projects", json!({"id": "p"})).await.data(201);
    app.admin().once("k", "/projects", json!({"id": "q"})).await.refusal(422, "IDEMPOTENCY_KEY_REUSED");
    let spaced = [("idempotency-key", "k")];
    let reply = app.admin().send(Method::POST, "/projects", Some("{\"id\": \"p\"}".into()), &spaced).await;
    reply.refusal(422, "IDEMPOTENCY_KEY_REUSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_counts_for_its_caller_its_path_and_its_method_alone() {
    let app = app_with_project().await;
    let other = app.someone(&["admin"]).await;
    let body = json!({"new_branch": "a"});
    app.admin().once("k", "/projects/p/checkout", body.clone()).await.data(201);
    other.once("k", "/projects/p/checkout", body.clone()).await.refusal(409, "BRANCH_EXISTS");
    app.project("q").await;
    let elsewhere = app.admin().once("k", "/projects/q/checkout", body).await;
    elsewhere.data(201);
    assert_eq!(elsewhere.header("idempotent-replayed"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_answer_too() {
    let app = app_with_project().await;
    let first = app.admin().once("k", "/projects/p/checkout", json!({"branch": "late"})).await;
    first.refusal(404, "NOT_FOUND");
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    clone.git(&["push", "--quiet", "origin", "HEAD:refs/heads/late"]).await.ok();
    let again = app.admin().once("k", "/projects/p/checkout", json!({"branch": "late"})).await;
    again.refusal(404, "NOT_FOUND");
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(without_meta(&again.text), without_meta(&first.text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_body_is_answered_alike_again() {
    let app = TestApp::start().await;
    for replayed in ["", "true"] {
        let reply = app.admin().send(Method::POST, "/projects", Some("{".into()), &[("idempotency-key", "k")]).await;
        reply.refusal(400, "BAD_REQUEST");
        assert_eq!(reply.header("idempotent-replayed"), replayed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_the_checks_before_are_not_stored() {
    let app = TestApp::start().await;
    let reader = app.someone(&["projects:read"]).await;
    reader.once("k", "/projects", json!({"id": "p"})).await.refusal(403, "FORBIDDEN");
    app.nobody().once("k", "/projects", json!({"id": "p"})).await.refusal(401, "UNAUTHORIZED");
    app.admin().once("k", "/projects/p/shell", json!({"args": ["true"]})).await.refusal(404, "NOT_FOUND");
    app.admin().once("k", "/projects/P/shell", json!({"args": ["true"]})).await.refusal(400, "BAD_REQUEST");
    app.project("p").await;
    app.admin().once("k", "/projects/p/shell", json!({"args": ["true"]})).await.data(201);
    assert_eq!(app.db().count("select count(*) from idempotency").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_used_up_is_not_stored() {
    let app = TestApp::with(&[("RDEV_COMMANDS_PER_PROJECT", "1")]).await;
    app.project("p").await;
    let running = app.admin().post("/projects/p/shell", json!({"args": ["sleep", "600"]})).await.data(201);
    let body = json!({"args": ["true"]});
    app.admin().once("k", "/projects/p/shell", body.clone()).await.refusal(429, "QUOTA_EXCEEDED");
    let id = running["command_id"].as_str().unwrap();
    app.admin().delete(&format!("/projects/p/commands/{id}")).await.data(200);
    app.admin().once("k", "/projects/p/shell", body).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_are_switched_off_are_a_403_and_not_stored() {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "allow_scripts": false})).await;
    let body = json!({"script": "true"});
    app.admin().once("k", "/projects/p/shell", body.clone()).await.refusal(403, "SCRIPTS_DISABLED");
    app.admin().patch("/projects/p", json!({"allow_scripts": true})).await.data(200);
    app.admin().once("k", "/projects/p/shell", body).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_first_is_running_a_repeat_is_told_to_come_back() {
    let app = app_with_project().await;
    // Rows are locked by the test, so the first request cannot end yet.
    let mut held = app.db().connect().await;
    sqlx::raw_sql("begin; lock table checkout in exclusive mode").execute(&mut held).await.unwrap();
    let admin = app.admin();
    let body = json!({"new_branch": "feature"});
    let (first, ()) = tokio::join!(admin.once("k", "/projects/p/checkout", body.clone()), async {
        super::support::eventually("the first one is known", async || {
            (app.db().count("select count(*) from idempotency").await == 1).then_some(())
        })
        .await;
        let reply = admin.once("k", "/projects/p/checkout", body.clone()).await;
        reply.refusal(409, "IDEMPOTENCY_IN_PROGRESS");
        assert!(reply.header("retry-after").parse::<u64>().unwrap() >= 1);
        let other = admin.once("k", "/projects/p/checkout", json!({"new_branch": "other"})).await;
        other.refusal(422, "IDEMPOTENCY_KEY_REUSED");
        sqlx::raw_sql("rollback").execute(&mut held).await.unwrap();
    });
    first.data(201);
    admin.once("k", "/projects/p/checkout", body).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_is_done() {
    let app = TestApp::start().await;
    let admin = app.admin();
    let replies = (0..8).map(|_| admin.once("k", "/keys", json!({"name": "x", "scopes": ["projects:read"]})));
    let replies = futures::future::join_all(replies).await;
    for reply in &replies {
        assert!(matches!(reply.status, 201 | 409), "{}", reply.text);
    }
    assert_eq!(app.db().count("select count(*) from api_key where name = 'x'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_redacted_in_what_is_kept() {
    let app = app_with_project().await;
    let key = json!({"name": "x", "scopes": ["projects:read"]});
    let first = app.admin().once("k", "/keys", key.clone()).await.data(201);
    assert!(first["key"].as_str().unwrap().starts_with("rdev_sk_"));
    let mut again = app.admin().once("k", "/keys", key).await.data(201);
    assert_eq!(again["key"], "[redacted]");
    again["key"] = first["key"].clone();
    assert_eq!(again, first);
    for (path, body, field) in [
        ("/projects/p/checkout", json!({"new_branch": "a"}), "clone_url"),
        ("/projects/p/sessions", json!({"new_branch": "b"}), "auth_clone_url"),
        ("/stream-tickets", json!({"path": "/projects/p/events"}), "ticket"),
    ] {
        app.admin().once("k", path, body.clone()).await.data(201);
        assert_eq!(app.admin().once("k", path, body).await.data(201)[field], "[redacted]", "{path}");
    }
    let secrets = "rdev_sk_[0-9A-Za-z]{7}|rdev:[0-9A-Za-z_]+@|ticket=[^\\[]";
    let sql = format!("select count(*) from idempotency where convert_from(answer, 'UTF8') ~ '{secrets}'");
    assert_eq!(app.db().count(&sql).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_none_is_refused() {
    let app = TestApp::start().await;
    let long = "k".repeat(256);
    for key in ["", " ", "a b", "ä", long.as_str()] {
        let reply = app.admin().once(key, "/projects", json!({"id": "p"})).await;
        reply.refusal(400, "BAD_REQUEST");
    }
    app.admin().once(&"k".repeat(255), "/projects", json!({"id": "p"})).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ignored_where_nothing_is_posted() {
    let app = app_with_project().await;
    for _ in 0..2 {
        let reply = app.admin().send(Method::GET, "/projects/p", None, &[("idempotency-key", "k")]).await;
        reply.data(200);
        assert_eq!(reply.header("idempotent-replayed"), "");
    }
    assert_eq!(app.db().count("select count(*) from idempotency").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_is_known_after_a_restart_and_in_every_process() {
    let app = app_with_project().await;
    let body = json!({"new_branch": "a"});
    let first = app.admin().once("k", "/projects/p/checkout", body.clone()).await.data(201);
    let app = app.restart(&[]).await;
    assert_eq!(app.admin().once("k", "/projects/p/checkout", body.clone()).await.data(201)["id"], first["id"]);
    let other = app.sibling(&[]).await;
    assert_eq!(other.admin().once("k", "/projects/p/checkout", body).await.data(201)["id"], first["id"]);
}

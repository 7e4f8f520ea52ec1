//! Tickets: what a browser's `EventSource` carries in place of a header.

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::support::{Api, TestApp};

async fn app_with_project() -> TestApp {
    let app = TestApp::start().await;
    app.project("p").await;
    app
}

async fn ticket(api: &Api, path: &str) -> Value {
    api.post("/stream-tickets", json!({"path": path})).await.data(201)
}

fn url(ticket: &Value) -> &str {
    ticket["url"].as_str().expect("a URL")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_its_stream_any_number_of_times() {
    let app = app_with_project().await;
    let command = app.script("p", "echo hello").await;
    let path = command["events_url"].as_str().unwrap();
    let made = ticket(&app.admin(), path).await;
    assert_eq!(url(&made), format!("{path}&ticket={}", made["ticket"].as_str().unwrap()));
    for _ in 0..3 {
        let mut events = app.nobody().listen(url(&made)).await;
        assert_eq!(events.headers["access-control-allow-origin"], "*");
        assert_eq!(events.next().await.line(), "hello");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reconnect_of_a_browser_goes_on_where_it_was() {
    let app = app_with_project().await;
    let command = app.script("p", "echo one; echo two").await;
    let made = ticket(&app.admin(), command["events_url"].as_str().unwrap()).await;
    let id = format!("{}:1", command["command_id"].as_str().unwrap());
    assert_eq!(app.nobody().listen_from(url(&made), Some(&id)).await.next().await.line(), "two");
    let mut added = app.nobody().listen(&format!("{}&after=1", url(&made))).await;
    assert_eq!(added.next().await.line(), "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_nothing_else() {
    let app = app_with_project().await;
    app.project("q").await;
    let made = ticket(&app.admin(), "/projects/p/events").await;
    let ticket = made["ticket"].as_str().unwrap();
    for path in [
        "/projects/q/events",
        "/projects/p/events?stream_id=x",
        "/projects/p",
        "/projects",
        "/whoami",
        "/projects/p/commands",
    ] {
        let joint = if path.contains('?') { '&' } else { '?' };
        app.nobody().get(&format!("{path}{joint}ticket={ticket}")).await.refusal(401, "UNAUTHORIZED");
    }
    app.bearing(ticket).get("/projects/p/events").await.refusal(401, "UNAUTHORIZED");
    app.nobody().get(&format!("/projects/p/events?ticket={ticket}x")).await.refusal(401, "UNAUTHORIZED");
    app.nobody().get("/projects/p/events?ticket=").await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_lives_as_long_as_was_asked() {
    let app = app_with_project().await;
    let by_default = ticket(&app.admin(), "/projects/p/events").await;
    let body = json!({"path": "/projects/p/events", "expires_in": "1h"});
    let longest = app.admin().post("/stream-tickets", body).await.data(201);
    app.advance(TimeDelta::seconds(599));
    app.nobody().listen(url(&by_default)).await;
    app.advance(TimeDelta::seconds(1));
    app.nobody().get(url(&by_default)).await.refusal(401, "UNAUTHORIZED");
    app.nobody().listen(url(&longest)).await;
    app.advance(TimeDelta::minutes(50));
    app.nobody().get(url(&longest)).await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_for_what_is_no_stream_is_refused() {
    let app = app_with_project().await;
    for path in [
        "",
        "projects/p/events",
        "/projects/p",
        "/keys",
        "/whoami",
        "http://evil.example.com/projects/p/events",
        "//evil.example.com/projects/p/events",
        "/projects/p/events?ticket=x",
        "/projects/p/../q/events",
        "/projects/BAD/events",
    ] {
        app.admin().post("/stream-tickets", json!({"path": path})).await.refusal(400, "BAD_REQUEST");
    }
    for expires_in in ["61m", "0s", "-1m", "x"] {
        let body = json!({"path": "/projects/p/events", "expires_in": expires_in});
        app.admin().post("/stream-tickets", body).await.refusal(400, "BAD_REQUEST");
    }
    app.admin().post("/stream-tickets", json!({})).await.refusal(400, "BAD_REQUEST");
    let unknown = json!({"path": "/projects/none/events"});
    app.admin().post("/stream-tickets", unknown).await.refused(404, "NOT_FOUND", "project not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_asks_for_a_scope_that_its_path_needs() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let of_session = format!("/projects/p/sessions/{}/events", session["id"].as_str().unwrap());
    let in_sessions = app.someone(&["sessions:read"]).await;
    app.nobody().listen(url(&ticket(&in_sessions, &of_session).await)).await;
    in_sessions.post("/stream-tickets", json!({"path": "/projects/p/events"})).await.refusal(403, "FORBIDDEN");
    let jobs = app.someone(&["jobs:read"]).await;
    jobs.post("/stream-tickets", json!({"path": "/projects/p/events"})).await.refusal(403, "FORBIDDEN");
    let (bound, _) = app.holder(json!({"name": "b", "scopes": ["projects:read"], "project_ids": ["q"]})).await;
    bound.post("/stream-tickets", json!({"path": "/projects/p/events"})).await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_dies_with_its_key() {
    let app = app_with_project().await;
    let (holder, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    let made = ticket(&holder, "/projects/p/events").await;
    let mut open = app.nobody().listen(url(&made)).await;
    app.admin().delete(&format!("/keys/{}", key["id"].as_str().unwrap())).await.data(200);
    app.nobody().get(url(&made)).await.refusal(401, "UNAUTHORIZED");
    open.rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_works_on_every_process_and_after_a_restart() {
    let app = app_with_project().await;
    let made = ticket(&app.admin(), "/projects/p/events").await;
    let other = app.sibling(&[]).await;
    other.nobody().listen(url(&made)).await;
    drop(other);
    let app = app.restart(&[]).await;
    app.nobody().listen(url(&made)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_reads_stored_output_too() {
    let app = app_with_project().await;
    let command = app.script("p", "echo hello").await;
    let made = ticket(&app.admin(), command["output_url"].as_str().unwrap()).await;
    assert_eq!(app.nobody().get(url(&made)).await.text, "hello\n");
}

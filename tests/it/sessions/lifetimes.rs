//! How long sessions and checkouts live, to the moment.

use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::Connection as _;

use super::{SESSIONS, app_with_project, open, opens, path, shown, two_rounds};
use crate::support::{TestApp, eventually};

const CHECKOUT: &str = "/projects/p/checkout";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_time_is_up_does_nothing_more_before_that_is_written_down_either() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "expires_in": "1h"})).await;
    app.advance(TimeDelta::hours(1));
    for (verb, body) in [("extend", json!({"expires_in": "48h"})), ("exec", json!({"args": ["true"]}))] {
        let reply = app.admin().post(&format!("{}/{verb}", path(&session)), body).await;
        reply.refused(400, "BAD_REQUEST", "session is not active");
    }
    assert!(!opens(&app, session["auth_clone_url"].as_str().unwrap()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_whose_time_is_up_does_nothing_more_before_that_is_written_down_either() {
    let app = app_with_project().await;
    let body = json!({"new_branch": "feature", "expires_in": "1h"});
    let made = app.admin().post(CHECKOUT, body).await.data(201);
    let path = format!("{CHECKOUT}/{}", made["id"].as_str().unwrap());
    app.advance(TimeDelta::hours(1));
    for reply in [
        app.admin().post(&format!("{path}/extend"), json!({"expires_in": "48h"})).await,
        app.admin().post(&format!("{path}/rotate"), json!({})).await,
        app.admin().post(&format!("{path}/checkin"), json!({})).await,
        app.admin().delete(&path).await,
    ] {
        reply.refused(400, "BAD_REQUEST", "checkout is not active");
    }
    assert!(!opens(&app, made["clone_url"].as_str().unwrap()).await);
    eventually("it is expired", async || (app.admin().get(&path).await.data(200)["status"] == "expired").then_some(()))
        .await;
}

/// Changes a session that is due, while whoever ends it waits for its row.
async fn changed_at_the_last_moment(app: &TestApp, session: &Value, by: TimeDelta, change: &str) {
    let mut conn = app.db().connect().await;
    let mut tx = conn.begin().await.unwrap();
    let id = session["id"].as_str().unwrap();
    let run = |sql: String| sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
    run(format!("select from session where id = '{id}' for update")).execute(&mut *tx).await.unwrap();
    app.advance(by);
    let waiting = "select count(*) from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'";
    eventually("somebody waits for the row", async || (app.db().count(waiting).await > 0).then_some(())).await;
    let now = app.clock.now().to_rfc3339();
    run(format!("update session set {change} where id = '{id}'").replace("now()", &format!("'{now}'::timestamptz")))
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    two_rounds(app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_extended_at_the_last_moment_lives_on() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "expires_in": "1h"})).await;
    let change = "expires_at = now() + interval '1 hour'";
    changed_at_the_last_moment(&app, &session, TimeDelta::hours(1), change).await;
    assert_eq!(shown(&app, &session).await["status"], "active");
    app.exec("p", &session, "true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_at_the_last_moment_is_not_idle() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "idle_timeout": "10m"})).await;
    changed_at_the_last_moment(&app, &session, TimeDelta::minutes(10), "last_activity_at = now()").await;
    assert_eq!(shown(&app, &session).await["status"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_takes_long_holds_up_no_other() {
    let app = TestApp::with(&[("RDEV_KILL_GRACE", "25s")]).await;
    app.project("p").await;
    app.project("q").await;
    let slow = open(&app, json!({"new_branch": "feature", "expires_in": "1h"})).await;
    let body = json!({"new_branch": "feature", "expires_in": "61m"});
    let quick = app.admin().post("/projects/q/sessions", body).await.data(201);
    let script = "trap '' TERM; echo begun; while ! test -e go; do sleep 0.05; done";
    let body = json!({"script": script, "timeout": "10h"});
    let command = app.admin().post(&format!("{}/exec", path(&slow)), body).await.data(201);
    app.listen(command["events_url"].as_str().unwrap()).await.next_named("output").await;
    app.advance(TimeDelta::minutes(61));
    let quick = format!("/projects/q/sessions/{}", quick["id"].as_str().unwrap());
    eventually("the end of the other", async || {
        (app.admin().get(&quick).await.data(200)["status"] == "expired").then_some(())
    })
    .await;
    assert_eq!(shown(&app, &slow).await["status"], "ending");
    std::fs::write(format!("{}/go", slow["workspace"].as_str().unwrap()), "").unwrap();
    eventually("its own end", async || (shown(&app, &slow).await["status"] == "expired").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_as_short_as_the_server_allows_is_lived() {
    let app = TestApp::with(&[("RDEV_MIN_EXPIRES_IN", "2s")]).await;
    app.project("p").await;
    for field in ["expires_in", "idle_timeout"] {
        let error =
            app.admin().post(SESSIONS, json!({"new_branch": "x", field: "1s"})).await.refusal(400, "BAD_REQUEST");
        assert!(error["message"].as_str().unwrap().contains("at least 2s"), "{error}");
        let session = open(&app, json!({"new_branch": field, field: "2s"})).await;
        app.advance(TimeDelta::seconds(2));
        eventually("its end", async || (shown(&app, &session).await["status"] == "expired").then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_come_again_after_an_extension_and_never_for_a_time_that_never_was() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "expires_in": "10m"})).await;
    let mut events = app.listen(&format!("{}/events?after=0", path(&session))).await;
    app.advance(TimeDelta::minutes(5));
    let first = events.activity("session.expiring").await;
    assert_eq!(first.data["expires_at"], session["expires_at"], "the 15 minutes before its end were never");
    let body = json!({"expires_in": "20m"});
    let longer = app.admin().post(&format!("{}/extend", path(&session)), body).await.data(200);
    app.advance(TimeDelta::minutes(5));
    let again = events.activity("session.expiring").await;
    assert_eq!(again.data["expires_at"], longer["expires_at"]);
}

//! One attempt after the other: what one of them found out, started or made is never the next one's,
//! and whoever is late with an attempt that is over changes nothing.

use serde_json::{Value, json};
use sqlx::Connection as _;

use super::{
    PASSES, WAITS, app_with, begun, checkin, go, head, job, left_behind, nothing_is_left, over, path, reviewed, show,
    work, workspace,
};
use crate::support::{Chat, TestApp, Upstream, eventually};

/// The command of the review when it is another one.
async fn next_command(app: &TestApp, id: &str, before: &Value) -> String {
    eventually("the next command", async || {
        let now = show(&app.admin(), id).await["command_id"].as_str().map(str::to_owned);
        now.filter(|now| before["command_id"] != now.as_str())
    })
    .await
}

async fn termination(app: &TestApp, command: &Value) -> Value {
    let path = format!("/projects/p/commands/{}", command["command_id"].as_str().unwrap());
    app.admin().get(&path).await.data(200)["termination"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_is_late_is_not_the_next_attempts() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({"auto_merge": true})).await;
    let first = begun(&app.admin(), &id).await;
    // Whoever wants to write the verdict down waits for this.
    let mut conn = app.db().connect().await;
    let mut held = conn.begin().await.unwrap();
    sqlx::query("select id from task where kind = 'review.run' for update").execute(&mut *held).await.unwrap();
    go(&app.admin()).await;
    eventually("the verdict to wait", async || {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database()
                       and wait_event_type = 'Lock' and query like '%from task where id%for update%'";
        (app.db().count(waiting).await == 1).then_some(())
    })
    .await;
    app.admin().delete(&format!("/jobs/{id}")).await;
    app.admin().patch("/projects/p", json!({"review_command": ["sh", "-c", "exit 7"]})).await.data(200);
    app.admin().post(&format!("{}/retry", path(&id)), json!({})).await.data(200);
    held.rollback().await.unwrap();
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("failed"), &json!("none")), "{review}");
    assert_ne!(review["command_id"], first["command_id"]);
    assert_ne!(head(&app.admin(), "main").await, Some(work.sha));
    assert_eq!(job(&app.admin(), &id).await["result"]["verdict"], "fail");
    nothing_is_left(&app.admin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_of_an_attempt_before_has_ended_when_the_next_one_begins() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    let first = begun(&app.admin(), &id).await;
    app.admin().delete(&format!("/jobs/{id}")).await;
    let again = app.admin().post(&format!("{}/retry", path(&id)), json!({})).await.data(200);
    assert!(again.get("command_id").is_none(), "{again}");
    next_command(&app, &id, &first).await;
    assert_eq!(termination(&app, &first).await, "cancelled");
    go(&app.admin()).await;
    assert_eq!(over(&app.admin(), &id).await["status"], "passed");
    nothing_is_left(&app.admin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_and_its_worktree_are_gone_also_where_a_model_reviews_next() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&[r#"{"verdict": "pass", "summary": "fine"}"#]));
    let app = TestApp::with(&[("RDEV_OLLAMA_URL", &upstream.url), ("RDEV_REVIEW_MODEL", "llama3")]).await;
    app.project_with(json!({"id": "p", "review_command": ["sh", "-c", WAITS]})).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    let first = begun(&app.admin(), &id).await;
    app.admin().delete(&format!("/jobs/{id}")).await;
    app.admin().patch("/projects/p", json!({"review_command": null})).await.data(200);
    app.admin().post(&format!("{}/retry", path(&id)), json!({})).await.data(200);
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["summary"]), (&json!("passed"), &json!("fine")));
    assert_eq!(termination(&app, &first).await, "cancelled");
    assert_eq!(left_behind(&app.admin()).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reviews_where_a_model_did_before() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["I do not know."]));
    let app = TestApp::with(&[("RDEV_OLLAMA_URL", &upstream.url), ("RDEV_REVIEW_MODEL", "llama3")]).await;
    app.project("p").await;
    let (_, first) = reviewed(&app, "feature", json!({})).await;
    assert_eq!(first["status"], "error");
    app.admin().patch("/projects/p", json!({"review_command": ["sh", "-c", PASSES]})).await.data(200);
    let id = first["id"].as_str().unwrap();
    app.admin().post(&format!("{}/retry", path(id)), json!({})).await.data(200);
    let review = over(&app.admin(), id).await;
    assert!(review["status"] == "passed" && review["command_id"].is_string(), "{review}");
    assert_eq!(upstream.chats().len(), 1);
}

/// As if the process that has the task had died so many times in a row.
async fn taken_away(app: &TestApp, deaths: i16) {
    let lost = format!("update task set owner = null, fence = 0, deaths = {deaths} where kind = 'review.run'");
    app.db().run(&lost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_loses_a_review_leaves_everything_to_the_next_one() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({"auto_merge": true})).await;
    let command = begun(&app.admin(), &id).await;
    for attempt in [2, 3] {
        taken_away(&app, 1).await;
        eventually("the next worker", async || {
            let begun = format!("select count(*) from review where attempt = {attempt} and status = 'running'");
            (app.db().count(&begun).await == 1).then_some(())
        })
        .await;
    }
    // Where the command runs, whoever follows it on.
    let name = format!("review-{id}-1");
    assert_eq!(left_behind(&app.admin()).await, [name.as_str(), name.as_str()]);
    go(&app.admin()).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge_sha"]), (&json!("passed"), &json!(work.sha)));
    assert_eq!(review["command_id"], command["command_id"]);
    nothing_is_left(&app.admin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_removes_what_those_before_it_have_left_and_nothing_of_a_later_one() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    begun(&app.admin(), &id).await;
    let sessions = workspace(&app.admin()).await.parent().unwrap().join("sessions");
    let later = format!("review-{id}-9");
    for left in [format!("review-{id}"), format!("review-{id}-0"), later.clone()] {
        std::fs::create_dir(sessions.join(left)).unwrap();
    }
    go(&app.admin()).await;
    assert_eq!(over(&app.admin(), &id).await["status"], "passed");
    assert_eq!(left_behind(&app.admin()).await, [later]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_whose_workers_keep_dying_leaves_nothing_behind() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({"auto_merge": true})).await;
    let first = begun(&app.admin(), &id).await;
    taken_away(&app, 10).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("error"), &json!("none")));
    assert!(review["summary"].as_str().unwrap().contains("died"), "{review}");
    eventually("the command's end", async || (termination(&app, &first).await == "cancelled").then_some(())).await;
    nothing_is_left(&app.admin()).await;
    app.admin().post(&format!("{}/retry", path(&id)), json!({})).await.data(200);
    next_command(&app, &id, &first).await;
    go(&app.admin()).await;
    assert_eq!(over(&app.admin(), &id).await["merge"], "merged");
}

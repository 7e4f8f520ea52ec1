//! Reviews that somebody wants no more: cancelled as jobs, or gone with their project; and a server
//! that stops in order.

use serde_json::json;

use super::{
    Away, PASSES, WAITS, app_with, begun, checkin, checkin_path, go, head, job, move_main, nothing_is_left, over, path,
    repository, show, work,
};
use crate::support::{TestApp, eventually};

/// An app on which a review runs, and the review's id.
async fn under_review() -> (TestApp, String) {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({"auto_merge": true})).await;
    begun(&app.admin(), &id).await;
    (app, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_whose_job_is_cancelled_has_no_verdict_and_can_be_done_again() {
    let (app, id) = under_review().await;
    let mut events = app.listen("/projects/p/events").await;
    let cancelled = app.admin().delete(&format!("/jobs/{id}")).await;
    assert_eq!((cancelled.status, cancelled.json()["state"].clone()), (200, json!("cancelled")));
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("error"), &json!("none")));
    assert_eq!(review["summary"], "the review was cancelled");
    assert_eq!(events.activity("review.failed").await.data["status"], "error");
    let command = format!("/projects/p/commands/{}", review["command_id"].as_str().unwrap());
    eventually("the command's end", async || {
        let command = app.admin().get(&command).await.data(200);
        (command["termination"] == "cancelled").then_some(())
    })
    .await;
    nothing_is_left(&app.admin()).await;
    go(&app.admin()).await;
    app.admin().post(&format!("{}/retry", path(&id)), json!({})).await.data(200);
    assert_eq!(over(&app.admin(), &id).await["merge"], "merged");
    assert_eq!(job(&app.admin(), &id).await["state"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_is_deleted_takes_its_reviews_and_their_jobs_along() {
    let (app, id) = under_review().await;
    app.admin().delete("/projects/p").await.data(200);
    assert_eq!(app.admin().get(&format!("/jobs/{id}")).await.status, 404);
    app.project("p").await;
    app.admin().get(&path(&id)).await.refusal(404, "NOT_FOUND");
    eventually("the task to go", async || {
        let tasks = "select (select count(*) from task where kind = 'review.run') + (select count(*) from task_later where kind = 'review.run')";
        (app.db().count(tasks).await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_its_commands_reviews_again_after_the_start() {
    let (app, id) = under_review().await;
    let before = show(&app.admin(), &id).await;
    let app = app.restart(&[]).await;
    let command = begun(&app.admin(), &id).await;
    if command["command_id"] == before["command_id"] {
        // It was not there to see the end of the first one.
        eventually("the second command", async || {
            let now = show(&app.admin(), &id).await["command_id"].clone();
            (now.is_string() && now != before["command_id"]).then_some(())
        })
        .await;
    }
    go(&app.admin()).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("passed"), &json!("merged")));
    nothing_is_left(&app.admin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_its_commands_follows_them_on_after_the_start() {
    let keep = [("RDEV_STOP_COMMANDS", "keep")];
    let app = TestApp::with(&keep).await;
    app.project_with(json!({"id": "p", "review_command": ["sh", "-c", WAITS]})).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    let command = begun(&app.admin(), &id).await;
    let app = app.restart(&keep).await;
    go(&app.admin()).await;
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["command_id"]), (&json!("passed"), &command["command_id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_although_git_does_not_say_what_there_is_to_review() {
    let app = app_with(PASSES).await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "git commit --quiet --allow-empty -m work && git push --quiet").await;
    let away = Away::path(&repository(&app));
    let path = format!("/projects/p/sessions/{}", session["id"].as_str().unwrap());
    app.admin().post(&format!("{path}/checkin"), json!({"on_dirty": "discard"})).await.refusal(500, "INTERNAL_ERROR");
    eventually("the end", async || {
        let session = app.admin().get(&path).await.data(200);
        (session["status"] == "ended").then_some(())
    })
    .await;
    away.back();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_git_cannot_compare_is_reviewed_and_what_has_ended_is_refused_without_it() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    let fork = head(&app.admin(), "main").await.unwrap();
    move_main(&app, "other.txt", "other").await;
    let away = Away::object(&repository(&app), &fork);
    let id = checkin(&app.admin(), &work, json!({})).await;
    away.back();
    over(&app.admin(), &id).await;
    let away = Away::path(&repository(&app));
    let refused = app.admin().post(&checkin_path(&work), json!({})).await;
    refused.refused(400, "BAD_REQUEST", "checkout is not active");
    away.back();
}

//! Done again: a review that gave no pass, or the merge of one that did. Everything else is refused.

use chrono::TimeDelta;
use serde_json::json;

use super::{PASSES, WAITS, app_with, begun, checkin, go, job, over, path, reviewed, show, work};

#[tokio::test(flavor = "multi_thread")]
async fn a_review_that_failed_is_done_again_by_whoever_reviews_now() {
    let app = app_with("exit 1").await;
    let (work, first) = reviewed(&app, "feature", json!({"auto_merge": true})).await;
    let id = first["id"].as_str().unwrap();
    app.admin().patch("/projects/p", json!({"review_command": ["sh", "-c", WAITS]})).await.data(200);
    let again = app.admin().post(&format!("{}/retry", path(id)), json!({})).await.data(200);
    assert_eq!((&again["id"], &again["status"], again.get("completed_at")), (&first["id"], &json!("queued"), None));
    assert!(again.get("summary").is_none() && again.get("command_id").is_none(), "{again}");
    let command = begun(&app.admin(), id).await;
    assert_ne!(command["command_id"], first["command_id"]);
    assert_eq!(job(&app.admin(), id).await["state"], "running");
    go(&app.admin()).await;
    let review = over(&app.admin(), id).await;
    assert_eq!((&review["status"], &review["merge_sha"]), (&json!("passed"), &json!(work.sha)));
    assert_eq!(job(&app.admin(), id).await["state"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_without_a_verdict_is_done_again() {
    let app = app_with("kill -9 $$").await;
    let (_, first) = reviewed(&app, "feature", json!({})).await;
    let id = first["id"].as_str().unwrap();
    app.admin().patch("/projects/p", json!({"review_command": ["true"]})).await.data(200);
    app.admin().post(&format!("{}/retry", path(id)), json!({})).await.data(200);
    assert_eq!(over(&app.admin(), id).await["status"], "passed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_or_passed_is_not_done_again() {
    let app = app_with(WAITS).await;
    let refused = async |id: &str| {
        let reply = app.admin().post(&format!("{}/retry", path(id)), json!({})).await;
        reply.refusal(409, "NOTHING_TO_RETRY")["message"].as_str().unwrap().to_owned()
    };
    let work = work(&app, "plain").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    begun(&app.admin(), &id).await;
    assert!(refused(&id).await.contains("not ended"));
    go(&app.admin()).await;
    over(&app.admin(), &id).await;
    assert!(refused(&id).await.contains("no merge was asked for"));
    let (_, merged) = reviewed(&app, "merged", json!({"auto_merge": true})).await;
    assert!(refused(merged["id"].as_str().unwrap()).await.contains("is merged"));
    assert_eq!(show(&app.admin(), merged["id"].as_str().unwrap()).await, merged);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_to_review_any_more_is_said() {
    let app = app_with("exit 1").await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    app.admin().patch("/projects/p", json!({"review_command": null})).await.data(200);
    let path = path(review["id"].as_str().unwrap());
    app.admin().post(&format!("{path}/retry"), json!({})).await.refusal(409, "NO_REVIEWER");
    assert_eq!(app.admin().get(&path).await.data(200), review);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_retry_is_one() {
    let app = app_with("exit 1").await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    let id = review["id"].as_str().unwrap();
    let retry = format!("{}/retry", path(id));
    app.admin().patch("/projects/p", json!({"review_command": ["sh", "-c", PASSES]})).await.data(200);
    let first = app.admin().once("k", &retry, json!({})).await.data(200);
    over(&app.admin(), id).await;
    let again = app.admin().once("k", &retry, json!({})).await;
    assert_eq!((again.header("idempotent-replayed"), again.data(200)), ("true", first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_outlives_its_job_and_is_done_again_with_a_new_one() {
    let app = app_with("exit 1").await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    let id = review["id"].as_str().unwrap();
    app.advance(TimeDelta::hours(73));
    assert_eq!(app.admin().get(&format!("/jobs/{id}")).await.status, 404);
    assert_eq!(show(&app.admin(), id).await, review);
    app.admin().patch("/projects/p", json!({"review_command": ["true"]})).await.data(200);
    app.admin().post(&format!("{}/retry", path(id)), json!({})).await.data(200);
    over(&app.admin(), id).await;
    assert_eq!(job(&app.admin(), id).await["state"], "completed");
}

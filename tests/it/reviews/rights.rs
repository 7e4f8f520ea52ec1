//! Who may look at a review and do it again; a review as a job; what the project's log tells.

use serde_json::{Value, json};

use super::{PASSES, REVIEWS, app_with, checkin, job, over, path, reviewed, work};

#[tokio::test(flavor = "multi_thread")]
async fn readers_read_and_executors_retry() {
    let app = app_with("exit 1").await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    let path = path(review["id"].as_str().unwrap());
    let reader = app.someone(&["projects:read"]).await;
    assert_eq!(reader.get(&path).await.data(200), review);
    assert_eq!(reader.get(REVIEWS).await.data(200)["reviews"][0], review);
    let error = reader.post(&format!("{path}/retry"), json!({})).await.refusal(403, "FORBIDDEN");
    assert_eq!(error["details"]["required_any"], json!(["projects:execute"]));
    let runner = app.someone(&["projects:execute"]).await;
    runner.get(&path).await.refusal(403, "FORBIDDEN");
    runner.post(&format!("{path}/retry"), json!({})).await.data(200);
    app.nobody().get(&path).await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_is_its_projects_alone() {
    let app = app_with(PASSES).await;
    app.project("q").await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    let id = review["id"].as_str().unwrap();
    let stranger = json!({"name": "q", "scopes": ["projects:read", "projects:execute"], "project_ids": ["q"]});
    let (stranger, _) = app.holder(stranger).await;
    stranger.get(&path(id)).await.refused(404, "NOT_FOUND", "project not found");
    stranger.get(&format!("/projects/q/reviews/{id}")).await.refused(404, "NOT_FOUND", "review not found");
    stranger.post(&format!("/projects/q/reviews/{id}/retry"), json!({})).await.refused(
        404,
        "NOT_FOUND",
        "review not found",
    );
    assert_eq!(stranger.get("/projects/q/reviews").await.data(200), json!({"reviews": []}));
    let (theirs, none) = (format!("/jobs/{id}"), "/jobs/01J00000000000000000000000");
    assert_eq!(stranger.get(&theirs).await.text, stranger.get(none).await.text);
    let worker = json!({"name": "q", "scopes": ["projects:read", "jobs:read"], "project_ids": ["q"]});
    assert_eq!(app.holder(worker).await.0.get(&theirs).await.status, 404);
    for unknown in ["01J00000000000000000000000", "nonsense", &id.to_lowercase()] {
        app.admin().get(&path(unknown)).await.refused(404, "NOT_FOUND", "review not found");
    }
    let own = json!({"name": "p", "scopes": ["projects:read"], "project_ids": ["p"]});
    let (own, _) = app.holder(own).await;
    assert_eq!(own.get(&path(id)).await.data(200), review);
    assert_eq!(job(&own, id).await["state"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_is_read_as_a_job() {
    let app = app_with("echo all is well").await;
    let work = work(&app, "feature").await;
    let reader = app.someone(&["projects:read"]).await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    let reply = reader.get(&format!("/jobs/{id}?wait=30s")).await;
    let job = reply.json();
    assert_eq!(
        (reply.status, &job["state"], &job["model"], &job["attempt"]),
        (200, &json!("completed"), &json!(""), &json!(1))
    );
    assert_eq!(job["result"], json!({"verdict": "pass", "summary": "all is well"}));
    assert_eq!((&job["error"], &job["artifacts"], &job["job_id"]), (&json!(null), &json!([]), &json!(id)));
    let mut events = reader.listen(&format!("/jobs/{id}/events?after=0")).await;
    let told: Vec<(String, Value)> =
        events.rest().await.into_iter().map(|e| (e.name, e.data["state"].clone())).collect();
    let expected = [("state", "queued"), ("state", "running"), ("complete", "completed")];
    assert_eq!(told, expected.map(|(name, state)| (name.to_owned(), json!(state))));
    let worker = app.someone(&["jobs:read"]).await;
    assert_eq!(worker.get(&format!("/jobs/{id}")).await.status, 404, "it is not this key's job");
    let listed = app.admin().get("/jobs").await.json();
    assert_eq!(listed["jobs"][0]["job_id"], json!(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_projects_log_tells_what_befalls_reviews() {
    let app = app_with(PASSES).await;
    let mut events = app.listen("/projects/p/events").await;
    let work = work(&app, "feature").await;
    let (checker, key) = app.holder(json!({"name": "ci", "scopes": ["projects:execute"]})).await;
    let id = checkin(&checker, &work, json!({"auto_merge": true})).await;
    let queued = events.activity("review.queued").await.data;
    assert_eq!((&queued["id"], &queued["actor"], &queued["branch"]), (&json!(id), &key["id"], &json!("feature")));
    assert_eq!(queued["checkout_id"], work.checkout["id"]);
    assert_eq!(events.activity("review.started").await.data["id"], id);
    let command = events.activity("command.started").await.data;
    assert_eq!(command["actor"], key["id"]);
    assert_eq!(events.activity("review.passed").await.data["status"], "passed");
    assert_eq!(events.activity("review.merged").await.data["merge_sha"], work.sha);
    app.admin().patch("/projects/p", json!({"review_command": ["false"]})).await.data(200);
    let (_, failed) = reviewed(&app, "other", json!({"auto_merge": true})).await;
    let told = events.activity("review.failed").await.data;
    assert_eq!((&told["id"], &told["status"]), (&failed["id"], &json!("failed")));
    over(&app.admin(), &id).await;
}

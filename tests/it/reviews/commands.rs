//! A command as the reviewer: where it runs, what it sees, what its end means.

use serde_json::{Value, json};

use super::{
    PASSES, WAITS, app_with, begun, checkin, go, head, job, left_behind, nothing_is_left, over, reviewed, work,
};
use crate::support::{TestApp, eventually, sse::text_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_review_command_sees_the_commit_and_what_is_asked_of_it() {
    let script = "cat feature.txt; echo; git status --short --branch; git rev-parse HEAD; pwd
        echo \"$RDEV_BRANCH|$RDEV_BASE|$RDEV_HEAD_SHA|$RDEV_FEATURE_SLUG|$RDEV_PROJECT_ID|$RDEV_COMMAND_ID\"
        git log --format=%h origin/main >/dev/null && echo knows the base; touch left";
    let app = app_with(script).await;
    let (work, review) = reviewed(&app, "feature", json!({})).await;
    assert_eq!(review["status"], "passed", "{review}");
    let id = review["command_id"].as_str().unwrap();
    let command = app.admin().get(&format!("/projects/p/commands/{id}")).await.data(200);
    let said = app.output(&command).await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(&lines[..3], ["work", "## HEAD (no branch)", &work.sha], "{said}");
    assert!(lines[3].ends_with(&format!("/sessions/review-{}-1", review["id"].as_str().unwrap())), "{said}");
    assert_eq!(lines[4], format!("feature|main|{}|slug of feature|p|{id}", work.sha));
    assert_eq!(lines[5], "knows the base");
    assert!(review["summary"].as_str().unwrap().ends_with("knows the base"));
    nothing_is_left(&app.admin()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worktree_is_gone_before_the_verdict_is_shown() {
    let app = app_with("mkdir -p a/b && touch a/b/c && chmod -R a-w a").await;
    let (_, review) = reviewed(&app, "feature", json!({})).await;
    assert_eq!((&review["status"], left_behind(&app.admin()).await), (&json!("passed"), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_exit_code_fails_the_review_and_nothing_is_merged() {
    let app = app_with("echo looked; echo a test failed >&2; exit 3").await;
    let (work, review) = reviewed(&app, "feature", json!({"auto_merge": true})).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("failed"), &json!("none")));
    assert_eq!(review["summary"], "exit code 3: a test failed");
    assert!(review.get("merge_sha").is_none());
    assert_ne!(head(&app.admin(), "main").await, Some(work.sha));
    let job = job(&app.admin(), review["id"].as_str().unwrap()).await;
    assert_eq!((&job["state"], &job["result"]["verdict"]), (&json!("completed"), &json!("fail")));
}

/// The review of a command that gives no verdict.
async fn no_verdict(command: Value) -> Value {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "review_command": command})).await;
    let (_, review) = reviewed(&app, "feature", json!({"auto_merge": true})).await;
    assert_eq!((&review["status"], &review["merge"]), (&json!("error"), &json!("none")), "{review}");
    let job = job(&app.admin(), review["id"].as_str().unwrap()).await;
    assert_eq!((&job["state"], &job["error"], &job["result"]), (&json!("failed"), &review["summary"], &json!(null)));
    nothing_is_left(&app.admin()).await;
    review
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_started_is_no_verdict() {
    let review = no_verdict(json!(["/no/such/program"])).await;
    assert!(review["summary"].as_str().unwrap().starts_with("the review command could not be started"), "{review}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_signal_ended_is_no_verdict() {
    let review = no_verdict(json!(["sh", "-c", "kill -9 $$"])).await;
    assert_eq!(review["summary"], "the review command was ended by signal KILL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_somebody_cancels_is_no_verdict() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    let command = begun(&app.admin(), &id).await;
    app.admin().delete(&format!("/projects/p/commands/{}", command["command_id"].as_str().unwrap())).await.data(200);
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["summary"]), (&json!("error"), &json!("the review command was cancelled")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_lost_is_no_verdict() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    begun(&app.admin(), &id).await;
    for pid in app.ground.supervisors() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["summary"]), (&json!("error"), &json!("the review command was lost")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_of_a_review_streams_while_it_runs() {
    let app = app_with(WAITS).await;
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    let command = begun(&app.admin(), &id).await;
    let running = super::show(&app.admin(), &id).await;
    assert_eq!((&running["status"], running.get("completed_at")), (&json!("running"), None));
    assert_eq!((&command["type"], &command["status"]), (&json!("shell"), &json!("running")));
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    go(&app.admin()).await;
    assert_eq!(text_of(&events.rest().await, "stdout"), "begun\ngone on\n");
    assert_eq!(over(&app.admin(), &id).await["status"], "passed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commit_of_the_checkin_is_reviewed_whatever_the_branch_becomes() {
    let app = app_with("git rev-parse HEAD").await;
    app.admin().patch("/projects/p", json!({"review_command": ["sh", "-c", WAITS]})).await.data(200);
    let first = work(&app, "first").await;
    let held = checkin(&app.admin(), &first, json!({})).await;
    begun(&app.admin(), &held).await;
    app.admin().patch("/projects/p", json!({"review_command": ["git", "rev-parse", "HEAD"]})).await.data(200);
    let work = work(&app, "feature").await;
    let clone = super::admins_clone(&app).await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    clone.git(&["push", "--quiet", "--force", "origin", "HEAD:feature"]).await.ok();
    let review = over(&app.admin(), &id).await;
    assert_eq!((&review["status"], &review["summary"]), (&json!("passed"), &json!(work.sha)));
    go(&app.admin()).await;
    over(&app.admin(), &held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_waits_where_the_project_has_no_room_for_its_command() {
    let app = TestApp::with(&[("RDEV_COMMANDS_PER_PROJECT", "1")]).await;
    app.project_with(json!({"id": "p", "review_command": ["sh", "-c", PASSES]})).await;
    let body = json!({"script": "until test -e go; do sleep 0.02; done"});
    app.admin().post("/projects/p/shell", body).await.data(201);
    let work = work(&app, "feature").await;
    let id = checkin(&app.admin(), &work, json!({})).await;
    eventually("a second try", async || {
        let tried = "select count(*) from task_later where kind = 'review.run' and attempt >= 2";
        (app.db().count(tried).await == 1).then_some(())
    })
    .await;
    assert_eq!(super::show(&app.admin(), &id).await["status"], "queued");
    assert_eq!(app.db().count("select last_n from stream where kind = 'job'").await, 1, "nobody hears of a try");
    assert_eq!(app.db().count("select count(*) from review where attempt = 0 and not started").await, 1);
    go(&app.admin()).await;
    assert_eq!(over(&app.admin(), &id).await["status"], "passed");
    assert_eq!(job(&app.admin(), &id).await["attempt"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_for_the_commit_in_the_workspace_is_not_reviewed() {
    let app = app_with("test ! -e bad.txt").await;
    let work = super::work_on(&app.admin(), &app.ground, "feature", "bad.txt", "bad").await;
    let made = app.script("p", "git fetch --quiet origin feature && git replace FETCH_HEAD HEAD").await;
    assert_eq!(made["exit_code"], 0, "{made}");
    let id = checkin(&app.admin(), &work, json!({})).await;
    assert_eq!(over(&app.admin(), &id).await["status"], "failed");
}

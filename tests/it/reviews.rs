//! Reviews: what a checkin queues, and what a command says of a branch. And the words that the
//! other stories of reviews are told in.

mod attempts;
mod commands;
mod crashes;
mod ends;
mod merges;
mod models;
mod retries;
mod rights;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::support::{Api, GitClone, Ground, TestApp, eventually};

pub const REVIEWS: &str = "/projects/p/reviews";
pub const PASSES: &str = "exit 0";

/// Runs until the file `go` is in the workspace.
pub const WAITS: &str = "echo begun; while ! test -e ../../main/go; do sleep 0.02; done; echo gone on";

/// A checkout with a commit pushed, and its clone.
pub struct Work {
    pub checkout: Value,
    pub sha: String,
    pub clone: GitClone,
}

/// An app with a project `p` that a script reviews.
pub async fn app_with(script: &str) -> TestApp {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "review_command": ["sh", "-c", script]})).await;
    app
}

/// Checks a new branch out and pushes a commit with this file to it.
pub async fn work_on(api: &Api, ground: &Ground, branch: &str, file: &str, text: &str) -> Work {
    let body = json!({"new_branch": branch, "feature_slug": format!("slug of {branch}")});
    let checkout = api.post("/projects/p/checkout", body).await.data(201);
    let clone = GitClone::of(checkout["clone_url"].as_str().expect("a URL"), ground.path()).await;
    clone.git(&["checkout", "--quiet", branch]).await.ok();
    let sha = clone.commit(file, text).await;
    clone.git(&["push", "--quiet", "origin", branch]).await.ok();
    Work { checkout, sha, clone }
}

pub async fn work(app: &TestApp, branch: &str) -> Work {
    work_on(&app.admin(), &app.ground, branch, &format!("{branch}.txt"), "work").await
}

pub fn checkin_path(work: &Work) -> String {
    format!("/projects/p/checkout/{}/checkin", work.checkout["id"].as_str().expect("an id"))
}

/// Checks it in. Answers the id of the review.
pub async fn checkin(api: &Api, work: &Work, body: Value) -> String {
    let done = api.post(&checkin_path(work), body).await.data(200);
    assert_eq!(done["message"], "Checkout completed. Review task queued.");
    done["review_task_id"].as_str().expect("a review was queued").to_owned()
}

pub fn path(id: &str) -> String {
    format!("{REVIEWS}/{id}")
}

pub async fn show(api: &Api, id: &str) -> Value {
    api.get(&path(id)).await.data(200)
}

/// The review when nothing is left to do.
pub async fn over(api: &Api, id: &str) -> Value {
    eventually("the review's end", async || Some(show(api, id).await).filter(|r| r.get("completed_at").is_some())).await
}

/// The review of a branch that was worked on and checked in, when it is over.
pub async fn reviewed(app: &TestApp, branch: &str, body: Value) -> (Work, Value) {
    let work = work(app, branch).await;
    let id = checkin(&app.admin(), &work, body).await;
    let review = over(&app.admin(), &id).await;
    (work, review)
}

/// The review's command when there is one.
pub async fn command(api: &Api, id: &str) -> Value {
    let command = eventually("the command", async || show(api, id).await["command_id"].as_str().map(str::to_owned));
    api.get(&format!("/projects/p/commands/{}", command.await)).await.data(200)
}

/// The review's command, when it has said a word.
pub async fn begun(api: &Api, id: &str) -> Value {
    let command = command(api, id).await;
    let url = command["output_url"].as_str().expect("a URL").to_owned();
    eventually("a word of the command's", async || api.get(&url).await.text.contains("begun").then_some(())).await;
    command
}

pub async fn job(api: &Api, id: &str) -> Value {
    let reply = api.get(&format!("/jobs/{id}")).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

pub async fn workspace(api: &Api) -> PathBuf {
    PathBuf::from(api.get("/projects/p").await.data(200)["workspace"].as_str().expect("a path"))
}

/// Lets commands that wait go on.
pub async fn go(api: &Api) {
    std::fs::write(workspace(api).await.join("go"), "").expect("the workspace is there");
}

/// What reviews have left in the project's place.
pub async fn left_behind(api: &Api) -> Vec<String> {
    let main = workspace(api).await;
    let folders = [main.parent().expect("a folder").join("sessions"), main.join(".git/worktrees")];
    let names = folders.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with("review-")).collect()
}

/// Nothing is left, or only for a moment.
pub async fn nothing_is_left(api: &Api) {
    eventually("the worktrees to go", async || left_behind(api).await.is_empty().then_some(())).await;
}

/// The commit at the head of a branch.
pub async fn head(api: &Api, branch: &str) -> Option<String> {
    let list = api.get("/projects/p/checkout/branches").await.data(200);
    let found = list["branches"].as_array().expect("a list").iter().find(|one| one["name"] == branch).cloned();
    found.map(|one| one["commit_sha"].as_str().expect("a commit").to_owned())
}

/// The project's repository on the git host.
pub fn repository(app: &TestApp) -> PathBuf {
    app.ground.data_dir().join("git/p.git")
}

/// An object of the repository, which is away until [`Away::back`].
pub struct Away {
    from: PathBuf,
    to: PathBuf,
}

impl Away {
    pub fn object(repository: &Path, sha: &str) -> Self {
        Self::path(&repository.join("objects").join(&sha[..2]).join(&sha[2..]))
    }

    pub fn path(from: &Path) -> Self {
        let away = Self { from: from.to_owned(), to: from.with_extension("away") };
        std::fs::rename(&away.from, &away.to).expect("it is there");
        away
    }

    pub fn back(self) {
        std::fs::rename(&self.to, &self.from).expect("nobody else has made it");
    }
}

/// A clone that may push anywhere.
pub async fn admins_clone(app: &TestApp) -> GitClone {
    app.git_clone(&app.admin_clone_url("p")).await
}

/// Commits to the default branch.
pub async fn move_main(app: &TestApp, file: &str, text: &str) -> String {
    let clone = admins_clone(app).await;
    let sha = clone.commit(file, text).await;
    clone.git(&["push", "--quiet", "origin", "HEAD:main"]).await.ok();
    sha
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_queues_a_review_of_what_was_pushed() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    let done = app.admin().post(&checkin_path(&work), json!({})).await.data(200);
    let id = done["review_task_id"].as_str().unwrap().to_owned();
    let message = "Checkout completed. Review task queued.";
    let expected =
        json!({"checkout_id": work.checkout["id"], "status": "checked_in", "review_task_id": id, "message": message});
    assert_eq!(done, expected);
    let shown =
        app.admin().get(&format!("/projects/p/checkout/{}", work.checkout["id"].as_str().unwrap())).await.data(200);
    assert_eq!(shown["review_task_id"], id);
    let review = over(&app.admin(), &id).await;
    let expected = json!({
        "id": id, "project_id": "p", "checkout_id": work.checkout["id"], "branch": "feature", "base": "main",
        "head_sha": work.sha, "status": "passed", "auto_merge": false, "merge": "none",
        "command_id": review["command_id"], "summary": review["summary"],
        "created_at": review["created_at"], "completed_at": review["completed_at"],
    });
    let given = expected.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
    assert_eq!(review.as_object().unwrap().iter().collect::<Vec<_>>().len(), given.count(), "{review}");
    for (name, value) in review.as_object().unwrap() {
        assert_eq!(&expected[name], value, "{name}");
    }
    assert!(review["command_id"].is_string() && review["completed_at"].is_string());
    assert_ne!(head(&app.admin(), "main").await, Some(work.sha), "nobody asked for a merge");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_reviewed_where_it_is_skipped_or_there_is_nothing_new() {
    let app = app_with(PASSES).await;
    let skipped = work(&app, "skipped").await;
    let done = app.admin().post(&checkin_path(&skipped), json!({"skip_review": true})).await.data(200);
    let untouched = app.admin().post("/projects/p/checkout", json!({"new_branch": "untouched"})).await.data(201);
    let path = format!("/projects/p/checkout/{}/checkin", untouched["id"].as_str().unwrap());
    let empty = app.admin().post(&path, json!({"auto_merge": true})).await.data(200);
    for done in [done, empty] {
        assert_eq!(done["message"], "Checkout completed. Token has been revoked.");
        assert!(done.get("review_task_id").is_none());
    }
    assert_eq!(app.admin().get(REVIEWS).await.data(200), json!({"reviews": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_reviewed_where_nobody_is_there_to_do_it() {
    let app = TestApp::with(&[("RDEV_REVIEW_MODEL", "llama3")]).await;
    app.project("p").await;
    let work = work(&app, "feature").await;
    let done = app.admin().post(&checkin_path(&work), json!({})).await.data(200);
    assert!(done.get("review_task_id").is_none(), "a model without an upstream is no reviewer: {done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_checked_in_is_reviewed() {
    let app = app_with(PASSES).await;
    let session = app.session("p", "feature").await;
    let script =
        "echo work > work.txt && git add . && git commit --quiet -m work && git push --quiet && git rev-parse HEAD";
    let command = app.exec("p", &session, script).await;
    let sha = app.output(&command).await.trim().to_owned();
    let path = format!("/projects/p/sessions/{}/checkin", session["id"].as_str().unwrap());
    app.admin().post(&path, json!({"auto_merge": true, "skip_review": true})).await.refusal(400, "BAD_REQUEST");
    let done = app.admin().post(&path, json!({"auto_merge": true})).await.data(200);
    assert_eq!(done["message"], "Session ended. Review task queued.");
    let review = over(&app.admin(), done["review_task_id"].as_str().unwrap()).await;
    assert_eq!((&review["session_id"], &review["checkout_id"]), (&session["id"], &session["checkout_id"]));
    assert_eq!(
        (&review["status"], &review["merge"], &review["head_sha"]),
        (&json!("passed"), &json!("merged"), &json!(sha))
    );
    assert_eq!(head(&app.admin(), "main").await, Some(sha));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_otherwise_or_skips_it_is_not_reviewed() {
    let app = app_with(PASSES).await;
    let script = "git commit --quiet --allow-empty -m work && git push --quiet";
    let session = app.session("p", "one").await;
    app.exec("p", &session, script).await;
    let path = format!("/projects/p/sessions/{}", session["id"].as_str().unwrap());
    app.admin().delete(&path).await.data(200);
    let session = app.session("p", "two").await;
    app.exec("p", &session, script).await;
    let path = format!("/projects/p/sessions/{}/checkin", session["id"].as_str().unwrap());
    let done = app.admin().post(&path, json!({"skip_review": true})).await.data(200);
    assert_eq!(done["message"], "Session ended. Preview removed, token revoked.");
    assert_eq!(app.admin().get(REVIEWS).await.data(200), json!({"reviews": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_checkins_at_once_one_queues_one_review() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    let (admin, path) = (app.admin(), checkin_path(&work));
    let all = futures::future::join_all((0..4).map(|_| admin.post(&path, json!({})))).await;
    let (won, lost): (Vec<_>, Vec<_>) = all.into_iter().partition(|reply| reply.status == 200);
    assert_eq!(won.len(), 1);
    for reply in lost {
        reply.refused(400, "BAD_REQUEST", "checkout is not active");
    }
    let shown = admin.get(REVIEWS).await.data(200);
    assert_eq!(shown["reviews"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_checkin_names_the_same_review() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    let first = app.admin().once("k", &checkin_path(&work), json!({})).await.data(200);
    let again = app.admin().once("k", &checkin_path(&work), json!({})).await.data(200);
    assert!(first["review_task_id"].is_string());
    assert_eq!(first, again);
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_are_listed_newest_first_page_by_page() {
    let app = app_with(PASSES).await;
    let mut ids = Vec::new();
    for branch in ["one", "two", "three"] {
        let work = work(&app, branch).await;
        ids.push(checkin(&app.admin(), &work, json!({})).await);
    }
    ids.reverse();
    let listed = |reply: &Value| -> Vec<String> {
        reply["reviews"].as_array().unwrap().iter().map(|review| review["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = app.admin().get(&format!("{REVIEWS}?limit=2")).await;
    let rest = app.admin().get(&format!("{REVIEWS}?limit=2&cursor={}", first.cursor().unwrap())).await;
    assert_eq!([listed(&first.data(200)), listed(&rest.data(200))].concat(), ids);
    assert_eq!(rest.cursor(), None);
    // What is no text, no id of a review, and a NUL.
    for bad in ["nonsense!", "enp6", "AA"] {
        app.admin().get(&format!("{REVIEWS}?cursor={bad}")).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_checks_in_with_a_review() {
    let app = app_with(PASSES).await;
    let work = work(&app, "feature").await;
    let config = json!({"project_id": "p", "checkout_id": work.checkout["id"], "auto_merge": true});
    let saga = json!({"name": "release", "steps": [{"name": "in", "action": "checkout.checkin", "config": config}]});
    app.admin().post("/sagas", saga).await.data(201);
    let id = eventually("a review", async || {
        let list = app.admin().get(REVIEWS).await.data(200);
        list["reviews"][0]["id"].as_str().map(str::to_owned)
    });
    assert_eq!(over(&app.admin(), &id.await).await["merge"], "merged");
}

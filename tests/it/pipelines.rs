//! Pipelines at a Woodpecker: begun again by hand and by sagas. And the words that the others are told in.

mod outages;
mod steps;

use serde_json::{Value, json};

use super::support::{Api, Gitea, Odd, Reply, TestApp, TestDb, Woodpecker, woodpecker::TOKEN};

/// As an import from a server of this repository leaves it.
pub async fn imported(db: &TestDb, project: &str, name: &str) {
    db.run(&format!("insert into setting (name, value) values ('imported/{project}', '{name}')")).await;
}

/// The project `p`, which is `team/p` at the CI server.
pub async fn app_on(ci: &Woodpecker) -> TestApp {
    let app = TestApp::with(&ci.settings()).await;
    app.project("p").await;
    imported(app.db(), "p", "team/p").await;
    app
}

pub async fn retry(api: &Api, number: i64) -> Reply {
    api.post(&format!("/projects/p/pipelines/{number}/retry"), json!({})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_ended_is_begun_again() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    for (status, number) in [("failure", 2), ("success", 3), ("killed", 1), ("error", 1), ("declined", 2)] {
        ci.set("team/p", number, status);
        let retried = retry(&app.admin(), number).await.data(200);
        let new = *ci.restarts("team/p", number).last().expect("a restart");
        let page = format!("{}/repos/40/pipeline/{new}", ci.url);
        let wanted =
            json!({"project_id": "p", "retried_from": number, "number": new, "status": "pending", "url": page});
        assert_eq!(retried, wanted, "{status}");
    }
    assert_eq!(ci.asked("POST "), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_still_runs_is_left_alone() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    for status in ["running", "pending", "created", "started", "blocked"] {
        ci.set("team/p", 2, status);
        let refusal = retry(&app.admin(), 2).await.refusal(409, "PIPELINE_RUNNING");
        assert_eq!(refusal["details"], json!({"status": status}));
    }
    assert_eq!(ci.asked("POST "), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_does_not_know_is_not_found_and_says_what() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    let admin = app.admin();
    retry(&admin, 4).await.refused(404, "NOT_FOUND", "pipeline not found");
    for number in ["0", "-1", "x", "01", "1.0", "99999999999999999999"] {
        let reply = admin.post(&format!("/projects/p/pipelines/{number}/retry"), json!({})).await;
        reply.refused(404, "NOT_FOUND", "pipeline not found");
    }
    admin.post("/projects/none/pipelines/1/retry", json!({})).await.refused(404, "NOT_FOUND", "project not found");
    for project in ["strange", "own"] {
        app.project(project).await;
    }
    imported(app.db(), "strange", "team/strange").await;
    let refusal = admin.post("/projects/strange/pipelines/1/retry", json!({})).await.refusal(404, "NOT_FOUND");
    let said = refusal["message"].as_str().unwrap();
    assert!(said.contains("does not know the repository team/strange"), "{said}");
    let refusal = admin.post("/projects/own/pipelines/1/retry", json!({})).await.refusal(404, "NOT_FOUND");
    assert!(refusal["message"].as_str().unwrap().contains("not imported"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_or_its_token_nothing_is_asked() {
    let ci = Woodpecker::with_failures().await;
    let url = ("RDEV_WOODPECKER_URL", ci.url.as_str());
    for settings in [&[][..], &[url], &[("RDEV_WOODPECKER_TOKEN", TOKEN)]] {
        let app = TestApp::with(settings).await;
        app.project("p").await;
        let refusal = retry(&app.admin(), 1).await.refusal(503, "CI_NOT_CONFIGURED");
        let said = refusal["message"].as_str().unwrap();
        assert!(said.contains("RDEV_WOODPECKER_URL") && said.contains("RDEV_WOODPECKER_TOKEN"), "{said}");
        let circuits = app.nobody().get("/health/circuits").await.data(200);
        assert!(!circuits["circuits"].as_array().unwrap().iter().any(|one| one["name"] == "ci"), "{circuits}");
    }
    assert_eq!(ci.asked(""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_run_commands_may_retry_and_nobody_else() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    retry(&app.someone(&["projects:execute"]).await, 1).await.data(200);
    retry(&app.someone(&["projects:read", "sessions:execute"]).await, 1).await.refusal(403, "FORBIDDEN");
    retry(&app.nobody(), 1).await.refusal(401, "UNAUTHORIZED");
    app.project("q").await;
    let bound = json!({"name": "bound", "scopes": ["projects:execute"], "project_ids": ["q"]});
    let (bound, _) = app.holder(bound).await;
    retry(&bound, 1).await.refused(404, "NOT_FOUND", "project not found");
    assert_eq!(ci.asked("POST "), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_with_the_same_idempotency_key_begins_no_second_one() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    let ask = || async { app.admin().once("k", "/projects/p/pipelines/1/retry", json!({})).await };
    let (first, again) = (ask().await, ask().await);
    assert_eq!((first.data(200), again.header("idempotent-replayed")), (again.data(200), "true"));
    assert_eq!(ci.restarts("team/p", 1), [4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_git_host_the_repository_is_its_owners() {
    let (ci, gitea) = (Woodpecker::with_failures().await, Gitea::start().await);
    let app = TestApp::with(&[gitea.settings(), ci.settings()].concat()).await;
    app.project("p").await;
    assert_eq!(retry(&app.admin(), 1).await.data(200)["number"], 4);
    assert_eq!(ci.asked("GET /api/repos/lookup/team/p"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_forgotten_with_its_project() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    app.admin().delete("/projects/p").await.data(200);
    app.project("p").await;
    retry(&app.admin(), 1).await.refusal(404, "NOT_FOUND");
    let url = "https://rdev:s3cr3t@127.0.0.1:1/team/q.git";
    app.admin().post("/projects", json!({"id": "q", "import_url": url})).await.refusal(502, "IMPORT_FAILED");
    assert_eq!(app.db().count("select count(*) from setting where name like 'imported/%'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_opens_nothing_is_said_to_be_that() {
    let ci = Woodpecker::with_failures().await;
    let app = app_on(&ci).await;
    ci.has_token("another");
    let refusal = retry(&app.admin(), 1).await.refusal(502, "CI_REFUSED");
    assert_eq!(refusal["message"], "the CI server does not accept RDEV_WOODPECKER_TOKEN");
    ci.has_token(TOKEN);
    ci.takes_the_right_to_push("team/p");
    let refusal = retry(&app.admin(), 1).await.refusal(502, "CI_REFUSED");
    assert!(refusal["message"].as_str().unwrap().contains("allowed to push"), "{refusal}");
    ci.plan("POST", "/pipelines/", Odd::Says(403, "no".into()), 1);
    retry(&app.admin(), 1).await.refusal(502, "CI_REFUSED");
    assert_eq!(circuit(&app).await["failures"], 0, "a no is an answer");
}

/// The CI server's.
pub async fn circuit(app: &TestApp) -> Value {
    let circuits = app.nobody().get("/health/circuits").await.data(200);
    let all = circuits["circuits"].as_array().expect("a list").clone();
    all.into_iter().find(|one| one["name"] == "ci").expect("the CI server's circuit")
}

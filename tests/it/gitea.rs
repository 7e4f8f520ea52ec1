//! The same stories on a Gitea: rdev's answers are what they are with the embedded host, and the
//! tokens are the host's. And the words that the others are told in.

mod crashes;
mod merges;
mod outages;
mod tokens;

use std::sync::Arc;

use serde_json::{Value, json};

use super::support::{Api, Fault, GitClone, Gitea, Ground, TestApp, eventually, git, gitea::PASSWORD};

pub const CHECKOUT: &str = "/projects/p/checkout";

pub async fn app_on(gitea: &Gitea) -> TestApp {
    TestApp::with(&gitea.settings()).await
}

pub async fn app_with_project(gitea: &Gitea) -> TestApp {
    let app = app_on(gitea).await;
    app.project("p").await;
    app
}

pub async fn checkout(api: &Api, branch: &str) -> Value {
    api.post(CHECKOUT, json!({"new_branch": branch})).await.data(201)
}

pub fn id(value: &Value) -> &str {
    value["id"].as_str().expect("an id")
}

pub fn path(checkout: &Value) -> String {
    format!("{CHECKOUT}/{}", id(checkout))
}

/// As the host has it.
pub fn token_name(checkout: &Value) -> String {
    format!("rdev-{}", id(checkout))
}

pub fn secret(checkout: &Value) -> String {
    let url = checkout["clone_url"].as_str().expect("a URL");
    url.split_once("rdev:").expect("a credential").1.split_once('@').expect("a host").0.to_owned()
}

pub async fn opens(ground: &Ground, checkout: &Value) -> bool {
    let url = checkout["clone_url"].as_str().expect("a URL");
    git::git(ground.path(), &["ls-remote", "--quiet", url]).await.success
}

pub async fn token_is_gone(gitea: &Gitea, checkout: &Value) {
    eventually("the token's death", async || gitea.token(&token_name(checkout)).is_none().then_some(())).await;
}

/// A clone of the checkout's branch.
pub async fn clone_of(ground: &Arc<Ground>, checkout: &Value) -> GitClone {
    let clone = GitClone::of(checkout["clone_url"].as_str().expect("a URL"), ground.path()).await;
    clone.git(&["checkout", "--quiet", checkout["branch"].as_str().expect("a branch")]).await.ok();
    clone
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_gets_a_repository_whose_default_branch_nobody_pushes_to() {
    let gitea = Gitea::start().await;
    let app = app_on(&gitea).await;
    let project = app.project_with(json!({"id": "p", "protected_branches": ["release/*"]})).await;
    assert_eq!(project["clone_url"], format!("{}/team/p.git", gitea.url));
    assert_eq!(project["default_branch"], "main");
    assert_eq!(gitea.protected("p"), ["main", "release/*"]);
    let reader = gitea.token("rdev-read-p").expect("the place reads with a token of its own");
    assert_eq!((reader.scopes, gitea.tokens().len()), (vec!["read:repository".to_owned()], 1));
    let command = app.script("p", "git pull --quiet && cat README.md && ! git push --quiet origin HEAD:mine").await;
    assert_eq!(command["exit_code"], 0, "{}", app.output(&command).await);
    let made = checkout(&app.admin(), "feature").await;
    let clone = clone_of(&app.ground, &made).await;
    clone.commit("a.txt", "a").await;
    let said = clone.git(&["push", "--quiet", "origin", "HEAD:main"]).await.failed();
    assert!(said.contains("protected branch main"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkouts_token_is_the_hosts_and_dead_when_the_checkin_is_answered() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let made = checkout(&app.admin(), "feature/x").await;
    let token = gitea.token(&token_name(&made)).expect("it has the checkout's name");
    assert_eq!((token.sha1, token.scopes), (secret(&made), vec!["write:repository".to_owned()]));
    assert!(made["clone_url"].as_str().unwrap().ends_with("/team/p.git"));
    let shown = app.admin().get(&path(&made)).await.data(200);
    assert_eq!(shown["clone_url"], format!("{}/team/p.git", gitea.url));
    let clone = clone_of(&app.ground, &made).await;
    let sha = clone.commit("a.txt", "a").await;
    clone.git(&["push", "--quiet", "origin", "feature/x"]).await.ok();
    assert_eq!(gitea.head("p", "feature/x").await, Some(sha));
    let done = app.admin().post(&format!("{}/checkin", path(&made)), json!({})).await.data(200);
    assert_eq!((&done["status"], gitea.token(&token_name(&made)).is_none()), (&json!("checked_in"), true));
    assert_eq!(done["message"], "Checkout completed. Token has been revoked.");
    assert!(!opens(&app.ground, &made).await);
    let refused = app.admin().post(&format!("{}/checkin", path(&made)), json!({})).await;
    refused.refused(400, "BAD_REQUEST", "checkout is not active");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_refusals_is_the_same() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let admin = app.admin();
    let main = gitea.head("p", "main").await.unwrap();
    for name in ["one", "two/three", "four", "five", "six"] {
        gitea.git("p", &["update-ref", &format!("refs/heads/{name}"), &main]).await;
    }
    gitea.git("p", &["tag", "v1", &main]).await;
    let listed = admin.get(&format!("{CHECKOUT}/branches")).await.data(200);
    let names: Vec<_> = listed["branches"].as_array().unwrap().iter().map(|b| b["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["five", "four", "main", "one", "six", "two/three"], "more than the host gives at once");
    let ask = |body: Value| admin.post(CHECKOUT, body);
    ask(json!({"branch": "none"})).await.refused(404, "NOT_FOUND", "branch not found");
    ask(json!({"new_branch": "x", "from_ref": "none"})).await.refused(404, "NOT_FOUND", "from_ref not found");
    for (name, taken) in [("one", "one"), ("one/more", "one"), ("two", "two/three")] {
        let refusal = ask(json!({"new_branch": name})).await.refusal(409, "BRANCH_EXISTS");
        assert_eq!(refusal["details"]["branch"], taken);
    }
    ask(json!({"branch": "main"})).await.refused(400, "BAD_REQUEST", "cannot checkout protected branch");
    let taken = ask(json!({"branch": "one"})).await.data(201);
    ask(json!({"branch": "one"})).await.refusal(409, "CHECKOUT_EXISTS");
    assert!(opens(&app.ground, &taken).await);
    for (name, from) in [("a", "v1"), ("b", main.as_str()), ("c", "two/three")] {
        ask(json!({"new_branch": name, "from_ref": from})).await.data(201);
        assert_eq!(gitea.head("p", name).await.as_ref(), Some(&main), "{from}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_pushes_and_is_rescued_and_its_token_dies_with_it() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let session = app.session("p", "feature").await;
    let script = "echo a > a.txt && git add a.txt && git commit -qm a && git push -q && echo lost > b.txt";
    let command = app.exec("p", &session, script).await;
    assert_eq!(command["exit_code"], 0, "{}", app.output(&command).await);
    assert_eq!(gitea.git("p", &["log", "-1", "--format=%s", "feature"]).await, "a");
    assert_eq!(gitea.tokens().len(), 2);
    let ended = app.admin().delete(&format!("/projects/p/sessions/{}", id(&session))).await.data(200);
    let rescue = &ended["rescue"];
    assert_eq!(gitea.head("p", rescue["branch"].as_str().unwrap()).await.as_deref(), rescue["sha"].as_str());
    assert_eq!(gitea.tokens().iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["rdev-read-p"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_takes_its_repository_with_it_and_leaves_others_alone() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    gitea.make_repository("theirs").await;
    app.admin().post("/projects", json!({"id": "theirs"})).await.refusal(409, "PROJECT_EXISTS");
    assert!(gitea.has_repository("theirs"), "what rdev has not made it does not remove");
    checkout(&app.admin(), "feature").await;
    app.admin().delete("/projects/p").await.data(200);
    assert!(!gitea.has_repository("p"));
    assert!(gitea.tokens().is_empty(), "{:?}", gitea.tokens());
    app.project("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_protected_here_is_protected_there() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    app.admin().patch("/projects/p", json!({"protected_branches": ["release/*", "stable"]})).await.data(200);
    assert_eq!(gitea.protected("p"), ["main", "release/*", "stable"]);
    app.admin().patch("/projects/p", json!({"protected_branches": ["stable"]})).await.data(200);
    assert_eq!(gitea.protected("p"), ["main", "stable"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_host_binds_tokens_to_repositories_one_opens_its_own_alone() {
    let gitea = Gitea::forgejo().await;
    let app = app_with_project(&gitea).await;
    app.project("q").await;
    let made = checkout(&app.admin(), "feature").await;
    assert_eq!(gitea.token(&token_name(&made)).unwrap().repositories, ["team/p"]);
    assert!(opens(&app.ground, &made).await);
    let elsewhere = made["clone_url"].as_str().unwrap().replace("/team/p.git", "/team/q.git");
    assert!(!git::git(app.ground.path(), &["ls-remote", "--quiet", &elsewhere]).await.success);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_which_host_it_is_and_how_it_is() {
    let gitea = Gitea::start().await;
    let app = app_with_project(&gitea).await;
    let health = app.nobody().get("/health").await.data(200);
    assert_eq!((&health["git_host"], &health["checks"]["git_host"]["status"]), (&json!("gitea"), &json!("ok")));
    assert_eq!(health["checks"]["git_tokens"], json!({"status": "ok", "irrevocable": 0}));
    assert!(!health.to_string().contains(&gitea.url), "no address is in it");
    let circuits = app.nobody().get("/health/circuits").await.data(200);
    let host = circuits["circuits"].as_array().unwrap().iter().find(|one| one["name"] == "git_host").cloned();
    assert_eq!(host.expect("its breaker")["state"], "closed");
    let url = format!("{}/git/p.git/info/refs?service=git-upload-pack", app.url);
    let own = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    assert_eq!(own.status(), 404, "this server has no repositories itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_for_the_host_is_named_at_the_start() {
    let gitea = Gitea::start().await;
    for missing in ["RDEV_GITEA_URL", "RDEV_GITEA_USER", "RDEV_GITEA_PASSWORD"] {
        let settings: Vec<_> = gitea.settings().into_iter().filter(|(name, _)| *name != missing).collect();
        let refused = TestApp::try_on(Ground::new().await, &settings).await.err().map(|why| format!("{why:?}"));
        assert!(refused.as_ref().is_some_and(|why| why.contains(missing)), "{refused:?}");
    }
    let settings: Vec<_> = gitea.settings().into_iter().filter(|(name, _)| *name != "RDEV_GITEA_OWNER").collect();
    let app = TestApp::with(&settings).await;
    let project = app.project("mine").await;
    assert!(project["clone_url"].as_str().unwrap().ends_with("/rdev-bot/mine.git"), "the account owns them then");
    assert!(!project.to_string().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_import_needs_the_embedded_host() {
    let gitea = Gitea::start().await;
    let app = app_on(&gitea).await;
    let refused = app.admin().post("/projects", json!({"id": "p", "import_url": "file:///srv/x.git"})).await;
    refused.refusal(400, "BAD_REQUEST");
    assert!(!gitea.has_repository("p"));
    gitea.plan("POST", "/repos", Fault::Mute, 1);
    app.admin().post("/projects", json!({"id": "p"})).await.refusal(503, "UPSTREAM_UNAVAILABLE");
    eventually("what was half made to go", async || (!gitea.has_repository("p")).then_some(())).await;
    app.project("p").await;
}

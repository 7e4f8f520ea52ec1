//! The embedded git host, with a real git on the other side.

use serde_json::{Value, json};

use super::support::{Api, TestApp, git};

async fn app_with_project() -> TestApp {
    let app = TestApp::start().await;
    app.project("p").await;
    app
}

async fn checkout(app: &TestApp, branch: &str) -> Value {
    app.admin().post("/projects/p/checkout", json!({"new_branch": branch})).await.data(201)
}

fn url(checkout: &Value) -> &str {
    checkout["clone_url"].as_str().expect("a URL")
}

fn with_password(app: &TestApp, password: &str) -> String {
    app.admin_clone_url("p").replace(&app.admin_key, password)
}

/// A clone on the checkout's branch.
async fn clone_of(app: &TestApp, checkout: &Value) -> git::Clone {
    let clone = app.git_clone(url(checkout)).await;
    clone.git(&["switch", "--quiet", checkout["branch"].as_str().unwrap()]).await.ok();
    clone
}

async fn refs(app: &TestApp) -> String {
    git::git(app.ground.path(), &["ls-remote", "--quiet", &app.admin_clone_url("p")]).await.ok()
}

const ADVERTISEMENT: &str = "/git/p.git/info/refs?service=git-upload-pack";

fn basic(password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("rdev:{password}")))
}

async fn status_with(api: &Api, path: &str, authorization: &str) -> u16 {
    api.send(http::Method::GET, path, None, &[("authorization", authorization)]).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_clones_and_pushes_to_its_branch() {
    let app = app_with_project().await;
    let made = checkout(&app, "feature").await;
    let clone = clone_of(&app, &made).await;
    let sha = clone.commit("work.txt", "work\n").await;
    clone.git(&["push", "--quiet", "origin", "feature"]).await.ok();
    assert!(refs(&app).await.contains(&format!("{sha}\trefs/heads/feature")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_may_force_its_branch() {
    let app = app_with_project().await;
    let clone = clone_of(&app, &checkout(&app, "feature").await).await;
    clone.commit("one.txt", "1").await;
    clone.git(&["push", "--quiet", "origin", "feature"]).await.ok();
    clone.git(&["reset", "--quiet", "--hard", "origin/main"]).await.ok();
    let sha = clone.commit("two.txt", "2").await;
    clone.git(&["push", "--quiet", "--force", "origin", "feature"]).await.ok();
    assert!(refs(&app).await.contains(&format!("{sha}\trefs/heads/feature")));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_ref_is_refused_with_a_message_that_git_shows() {
    let app = app_with_project().await;
    let clone = clone_of(&app, &checkout(&app, "feature").await).await;
    clone.commit("work.txt", "work\n").await;
    let before = refs(&app).await;
    for target in [
        "HEAD:main",
        "HEAD:refs/heads/other",
        "HEAD:refs/heads/feature/x",
        "HEAD:refs/tags/v1",
        "HEAD:refs/heads/rdev/rescue/x",
        "HEAD:refs/notes/commits",
        ":main",
        ":feature",
    ] {
        let stderr = clone.git(&["push", "origin", target]).await.failed();
        assert!(stderr.contains("remote:") && stderr.contains("rejected"), "{target} is not explained: {stderr}");
    }
    assert_eq!(refs(&app).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn refs_are_refused_one_by_one() {
    let app = app_with_project().await;
    let clone = clone_of(&app, &checkout(&app, "feature").await).await;
    let sha = clone.commit("work.txt", "work\n").await;
    clone.git(&["push", "origin", "HEAD:feature", "HEAD:main"]).await.failed();
    let after = refs(&app).await;
    assert!(after.contains(&format!("{sha}\trefs/heads/feature")), "{after}");
    assert!(!after.contains(&format!("{sha}\trefs/heads/main")), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shallow_and_partial_clones_work() {
    let app = app_with_project().await;
    let admin = app.git_clone(&app.admin_clone_url("p")).await;
    for n in 0..3 {
        admin.commit("file.txt", &format!("{n}\n")).await;
    }
    admin.git(&["push", "--quiet", "origin", "main"]).await.ok();
    let url = app.admin_clone_url("p");
    let root = app.ground.path();
    git::git(root, &["clone", "--quiet", "--depth=1", &url, "shallow"]).await.ok();
    assert_eq!(git::git(&root.join("shallow"), &["rev-list", "--count", "HEAD"]).await.ok(), "1");
    git::git(root, &["clone", "--quiet", "--filter=blob:none", &url, "partial"]).await.ok();
    assert_eq!(git::git(&root.join("partial"), &["rev-list", "--count", "HEAD"]).await.ok(), "4");
    assert_eq!(std::fs::read_to_string(root.join("partial/file.txt")).unwrap(), "2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn protocol_v2_is_spoken() {
    let app = app_with_project().await;
    let headers = [("git-protocol", "version=2"), ("authorization", &*basic(&app.admin_key))];
    let reply = app.nobody().send(http::Method::GET, ADVERTISEMENT, None, &headers).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "application/x-git-upload-pack-advertisement");
    assert!(reply.text.contains("version 2"), "{}", reply.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_some_megabytes_goes_through() {
    let app = app_with_project().await;
    let clone = clone_of(&app, &checkout(&app, "feature").await).await;
    let mut bytes = vec![0_u8; 12 << 20];
    let mut state = 88_172_645_463_325_252_u64;
    for byte in &mut bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[0];
    }
    std::fs::write(clone.path.join("large.bin"), &bytes).unwrap();
    let sha = clone.commit("note.txt", "large").await;
    clone.git(&["push", "--quiet", "origin", "feature"]).await.ok();
    assert!(refs(&app).await.contains(&sha));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_credential_git_is_asked_for_one() {
    let app = app_with_project().await;
    let reply = app.nobody().get(ADVERTISEMENT).await;
    assert_eq!(reply.status, 401);
    assert!(reply.header("www-authenticate").starts_with("Basic"), "{:?}", reply.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_credential_is_refused_alike_for_known_and_unknown_projects() {
    let app = app_with_project().await;
    for path in [ADVERTISEMENT, "/git/q.git/info/refs?service=git-upload-pack"] {
        assert_eq!(status_with(&app.nobody(), path, &basic("nonsense")).await, 401, "{path}");
        assert_eq!(app.nobody().get(path).await.status, 401, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_keys_scopes_say_what_it_may() {
    let app = app_with_project().await;
    app.project("q").await;
    let reader = app.someone(&["projects:read"]).await;
    let other = app.someone(&["sessions:execute"]).await;
    let (bound, _) = app.holder(json!({"name": "b", "scopes": ["admin"], "project_ids": ["q"]})).await;
    let nobody = app.nobody();
    assert_eq!(status_with(&nobody, ADVERTISEMENT, &basic(reader.credential())).await, 200);
    assert_eq!(status_with(&nobody, ADVERTISEMENT, &basic(other.credential())).await, 403);
    assert_eq!(status_with(&nobody, ADVERTISEMENT, &basic(bound.credential())).await, 404);
    let push = "/git/p.git/info/refs?service=git-receive-pack";
    assert_eq!(status_with(&nobody, push, &basic(reader.credential())).await, 403);
    assert_eq!(status_with(&nobody, push, &basic(&app.admin_key)).await, 200);
    let clone = app.git_clone(&with_password(&app, reader.credential())).await;
    clone.commit("x.txt", "x").await;
    clone.git(&["push", "origin", "main"]).await.failed();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_key_pushes_anywhere() {
    let app = app_with_project().await;
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    clone.commit("x.txt", "x").await;
    clone.git(&["push", "--quiet", "origin", "main", "HEAD:refs/heads/any", "HEAD:refs/tags/v1"]).await.ok();
    clone.git(&["push", "--quiet", "origin", ":any"]).await.ok();
    assert!(!refs(&app).await.contains("refs/heads/any"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_own_project_alone() {
    let app = app_with_project().await;
    app.project("q").await;
    let made = checkout(&app, "feature").await;
    let there = url(&made).replace("/p.git", "/q.git");
    git::git(app.ground.path(), &["ls-remote", &there]).await.failed();
    let token = url(&made).split_once("rdev:").unwrap().1.split_once('@').unwrap().0.to_owned();
    app.bearing(&token).get("/projects").await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_helper_keeps_the_token_out_of_the_configuration() {
    let app = app_with_project().await;
    let made = checkout(&app, "feature").await;
    let instructions = made["instructions"].as_str().unwrap();
    let token = url(&made).split_once("rdev:").unwrap().1.split_once('@').unwrap().0.to_owned();
    assert!(!instructions.contains(&token), "the text may be pasted anywhere");
    let plain = format!("{}/git/p.git", app.url);
    let helper = format!("credential.helper=!f() {{ echo username=rdev; echo password={token}; }}; f");
    let root = app.ground.path();
    git::git(root, &["-c", "credential.helper=", "-c", &helper, "clone", "--quiet", &plain, "kept"]).await.ok();
    assert!(!std::fs::read_to_string(root.join("kept/.git/config")).unwrap().contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_lead_out_are_not_found() {
    let app = app_with_project().await;
    for path in [
        "/git/p.git/config",
        "/git/p.git/objects/info/packs",
        "/git/p.git/HEAD",
        "/git/../admin.key",
        "/git/..%2f..%2fadmin.key",
        "/git/p.git/..%2fconfig",
        "/git/%2e%2e.git/info/refs?service=git-upload-pack",
        "/git/p.git/info/refs?service=git-upload-archive",
        "/git/p.git/info/refs",
        "/git/p",
    ] {
        let status = status_with(&app.nobody(), path, &basic(&app.admin_key)).await;
        assert!(matches!(status, 403 | 404), "{path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_credential_is_none() {
    let app = app_with_project().await;
    for authorization in ["Basic", "Basic !!!", "Basic Og==", "Digest x", "Basic cmRldg==", ""] {
        assert_eq!(status_with(&app.nobody(), ADVERTISEMENT, authorization).await, 401, "{authorization:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_under_way_when_its_token_dies_is_refused() {
    let app = app_with_project().await;
    let made = checkout(&app, "feature").await;
    let clone = clone_of(&app, &made).await;
    let sha = clone.commit("late.txt", "late").await;
    // The push stops between what it was told of the refs and its pack, as a slow client's does.
    std::fs::write(
        clone.path.join(".git/hooks/pre-push"),
        format!(
            "#!/bin/sh\ntouch {0}/ready\nwhile ! test -e {0}/go; do sleep 0.02; done\n",
            app.ground.path().display()
        ),
    )
    .unwrap();
    std::process::Command::new("chmod").arg("+x").arg(clone.path.join(".git/hooks/pre-push")).status().unwrap();
    let pushing = clone.git(&["push", "origin", "feature"]);
    let revoking = async {
        let ready = app.ground.path().join("ready");
        super::support::eventually("the push is under way", async || ready.exists().then_some(())).await;
        app.admin().delete(&format!("/projects/p/checkout/{}", made["id"].as_str().unwrap())).await.data(200);
        std::fs::write(app.ground.path().join("go"), "").unwrap();
    };
    let (said, ()) = tokio::join!(pushing, revoking);
    said.failed();
    assert!(!refs(&app).await.contains(&sha));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_cannot_reach_a_hosted_repository_through_the_file_system() {
    let app = app_with_project().await;
    let hosted = app.ground.data_dir().join("git");
    let script = format!("find / -name 'p.git' -not -path '/proc/*' 2>/dev/null; ls {} 2>&1", hosted.display());
    let command = app.script("p", &script).await;
    let text = app.output(&command).await;
    assert!(!text.contains("/p.git"), "{text}");
    assert_ne!(command["exit_code"], 0, "{text}");
}

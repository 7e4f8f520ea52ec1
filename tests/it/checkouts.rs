//! Checkouts: a branch, a credential, and the table of refusals.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::support::{TestApp, eventually, git};

const CHECKOUT: &str = "/projects/p/checkout";
const UNKNOWN: &str = "01890000-0000-7000-8000-000000000000";

async fn app_with_project() -> TestApp {
    let app = TestApp::start().await;
    app.project("p").await;
    app
}

async fn checkout(app: &TestApp, body: Value) -> Value {
    app.admin().post(CHECKOUT, body).await.data(201)
}

fn path(checkout: &Value) -> String {
    format!("{CHECKOUT}/{}", checkout["id"].as_str().expect("an id"))
}

fn clone_url(checkout: &Value) -> &str {
    checkout["clone_url"].as_str().expect("a URL")
}

fn at(value: &Value, field: &str) -> DateTime<Utc> {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}")).parse().expect("RFC 3339")
}

/// Makes branches in the repository with the admin key.
async fn push_branches(app: &TestApp, names: &[&str]) -> git::Clone {
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    for name in names {
        clone.git(&["push", "--quiet", "origin", &format!("HEAD:refs/heads/{name}")]).await.ok();
    }
    clone
}

async fn opens(app: &TestApp, url: &str) -> bool {
    git::git(app.ground.path(), &["ls-remote", "--quiet", url]).await.success
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_of_a_new_branch_makes_it_and_shows_its_credential_once() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature/x", "feature_slug": "x"})).await;
    assert_eq!(
        (&made["project_id"], &made["branch"], &made["status"]),
        (&json!("p"), &json!("feature/x"), &json!("active"))
    );
    assert_eq!(made["feature_slug"], "x");
    assert_eq!(made["checked_out_by"], app.admin().get("/whoami").await.data(200)["id"]);
    assert_eq!(at(&made, "expires_at") - at(&made, "checked_out_at"), TimeDelta::hours(24));
    assert!(clone_url(&made).starts_with("http://rdev:") && clone_url(&made).ends_with("/git/p.git"));
    let instructions = made["instructions"].as_str().unwrap();
    for word in ["clone", "commit", "push", "checkin", "credential"] {
        assert!(instructions.contains(word), "{word} is missing");
    }
    let shown = app.admin().get(&path(&made)).await.data(200);
    assert_eq!(clone_url(&shown), format!("{}/git/p.git", app.url));
    assert!(shown.get("instructions").is_none());
    let branches = app.admin().get(&format!("{CHECKOUT}/branches")).await.data(200);
    let names: Vec<_> = branches["branches"].as_array().unwrap().iter().map(|branch| &branch["name"]).collect();
    assert_eq!(names, ["feature/x", "main"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkouts_token_is_in_no_table() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature"})).await;
    let token = clone_url(&made).split_once("rdev:").unwrap().1.split_once('@').unwrap().0.to_owned();
    assert!(token.len() > 20);
    for table in ["checkout", "idempotency", "chunk"] {
        let sql = format!("select count(*) from {table} t where t::text like '%{token}%'");
        assert_eq!(app.db().count(&sql).await, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_the_branches_is_needed() {
    let app = app_with_project().await;
    for body in [json!({}), json!({"branch": "", "new_branch": ""}), json!({"branch": null})] {
        app.admin().post(CHECKOUT, body).await.refused(400, "BAD_REQUEST", "branch or new_branch is required");
    }
    app.admin().send(http::Method::POST, CHECKOUT, None, &[]).await.refused(
        400,
        "BAD_REQUEST",
        "branch or new_branch is required",
    );
    let both = json!({"branch": "a", "new_branch": "b"});
    let message = "specify either branch or new_branch, not both";
    app.admin().post(CHECKOUT, both).await.refused(400, "BAD_REQUEST", message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_git_or_rdev_refuses_is_named() {
    let app = app_with_project().await;
    let long = "a".repeat(201);
    for name in [
        "-x",
        "a..b",
        "a b",
        "a~b",
        "a^b",
        "a:b",
        "a?b",
        "a*b",
        "a[b",
        "a\\b",
        "/a",
        "a/",
        "a//b",
        ".a",
        "a/.b",
        "a.",
        "a.lock",
        "a.lock/b",
        "@",
        "HEAD",
        "a@{b",
        "rdev/x",
        "rdev/rescue/x",
        "\u{7f}",
        "a\nb",
        long.as_str(),
    ] {
        for field in ["branch", "new_branch"] {
            let error = app.admin().post(CHECKOUT, json!({field: name})).await.refusal(400, "BAD_REQUEST");
            assert!(error["message"].as_str().unwrap().contains(field), "{name:?}: {error}");
        }
    }
    for name in ["-x", "main~1", "HEAD", "main^{commit}", "rdev/x", "a..b", "@{-1}", ":/x"] {
        let body = json!({"new_branch": "ok", "from_ref": name});
        let error = app.admin().post(CHECKOUT, body).await.refusal(400, "BAD_REQUEST");
        assert!(error["message"].as_str().unwrap().contains("from_ref"), "{name:?}: {error}");
    }
    app.admin().post(CHECKOUT, json!({"new_branch": "a\u{0}b"})).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_git_allows_are_taken() {
    let app = app_with_project().await;
    let longest = "a".repeat(200);
    for name in ["a-", "feature/ünïcode", "a.b", "UPPER", "x@y", "a{b", longest.as_str()] {
        let made = checkout(&app, json!({"new_branch": name})).await;
        assert_eq!(made["branch"], name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let app = app_with_project().await;
    app.admin().post(CHECKOUT, json!({"branch": "nope"})).await.refused(404, "NOT_FOUND", "branch not found");
    for from in ["nope", "0123456789012345678901234567890123456789"] {
        let body = json!({"new_branch": "x", "from_ref": from});
        app.admin().post(CHECKOUT, body).await.refused(404, "NOT_FOUND", "from_ref not found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_branch_may_begin_at_a_branch_a_tag_or_a_commit() {
    let app = app_with_project().await;
    let clone = push_branches(&app, &[]).await;
    let first = clone.git(&["rev-parse", "HEAD"]).await.ok();
    clone.git(&["push", "--quiet", "origin", "HEAD:refs/tags/v1"]).await.ok();
    clone.git(&["push", "--quiet", "origin", "HEAD:refs/heads/rdev/rescue/old"]).await.ok();
    clone.commit("later.txt", "later").await;
    clone.git(&["push", "--quiet", "origin", "main"]).await.ok();
    for (n, from) in ["v1", first.as_str(), "rdev/rescue/old"].iter().enumerate() {
        checkout(&app, json!({"new_branch": format!("from-{n}"), "from_ref": from})).await;
        clone.git(&["fetch", "--quiet"]).await.ok();
        assert_eq!(clone.git(&["rev-parse", &format!("origin/from-{n}")]).await.ok(), first, "{from}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_branch_that_exists_or_that_git_cannot_hold_is_refused() {
    let app = app_with_project().await;
    push_branches(&app, &["feature", "deep/er"]).await;
    for (name, existing) in [("feature", "feature"), ("feature/x", "feature"), ("deep", "deep/er"), ("main", "main")] {
        let error = app.admin().post(CHECKOUT, json!({"new_branch": name})).await.refusal(409, "BRANCH_EXISTS");
        assert!(error["message"].as_str().unwrap().contains(existing), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_branch_is_not_checked_out() {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "protected_branches": ["release/*", "exact"]})).await;
    push_branches(&app, &["release/1", "release/1.0/hotfix", "exact"]).await;
    for body in [
        json!({"branch": "main"}),
        json!({"branch": "release/1"}),
        json!({"branch": "exact"}),
        json!({"new_branch": "release/2"}),
    ] {
        let reply = app.admin().post(CHECKOUT, body.clone()).await;
        reply.refused(400, "BAD_REQUEST", "cannot checkout protected branch");
        assert_eq!(reply.json()["error"]["details"]["reason"], "BRANCH_PROTECTED", "{body}");
    }
    checkout(&app, json!({"branch": "release/1.0/hotfix"})).await;
    checkout(&app, json!({"new_branch": "releases"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_branches_says_which_are_protected() {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "protected_branches": ["release/*"]})).await;
    let clone = push_branches(&app, &["release/1", "feature"]).await;
    let sha = clone.git(&["rev-parse", "HEAD"]).await.ok();
    let branches = app.admin().get(&format!("{CHECKOUT}/branches")).await.data(200);
    let expected: Vec<_> = [("feature", false), ("main", true), ("release/1", true)]
        .map(|(name, protected)| json!({"name": name, "commit_sha": sha, "protected": protected}))
        .to_vec();
    assert_eq!(branches["branches"], json!(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_checkout_of_a_branch_is_refused() {
    let app = app_with_project().await;
    checkout(&app, json!({"new_branch": "feature"})).await;
    app.admin().post(CHECKOUT, json!({"branch": "feature"})).await.refused(
        409,
        "CHECKOUT_EXISTS",
        "active checkout already exists for this branch",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_checkouts_at_once_exactly_one_is_answered_with_201() {
    let app = app_with_project().await;
    push_branches(&app, &["feature"]).await;
    let admin = app.admin();
    for (body, code) in [(json!({"branch": "feature"}), "CHECKOUT_EXISTS"), (json!({"new_branch": "new"}), "")] {
        let replies = futures::future::join_all((0..6).map(|_| admin.post(CHECKOUT, body.clone()))).await;
        let made = replies.iter().filter(|reply| reply.status == 201).count();
        assert_eq!(made, 1, "{body}");
        for reply in replies.iter().filter(|reply| reply.status != 201) {
            assert_eq!(reply.status, 409, "{}", reply.text);
            let given = reply.json()["error"]["code"].as_str().unwrap().to_owned();
            assert!(given == code || (code.is_empty() && ["CHECKOUT_EXISTS", "BRANCH_EXISTS"].contains(&&*given)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cases_are_looked_at_in_the_order_of_the_table() {
    let app = app_with_project().await;
    checkout(&app, json!({"new_branch": "feature"})).await;
    let refused = async |body: Value| app.admin().post(CHECKOUT, body).await.json()["error"]["message"].clone();
    let both = json!({"branch": "-x", "new_branch": "a..b", "expires_in": "0s"});
    assert_eq!(refused(both).await, "specify either branch or new_branch, not both");
    let missing_before_taken = json!({"new_branch": "feature", "from_ref": "nope"});
    assert_eq!(refused(missing_before_taken).await, "from_ref not found");
    let body_before_look_up = json!({"branch": "nope", "expires_in": "0s"});
    assert_eq!(refused(body_before_look_up).await, "expires_in must be a valid duration (e.g., 24h, 7d)");
    let exists_before_protected = app.admin().post(CHECKOUT, json!({"new_branch": "main"})).await;
    exists_before_protected.refusal(409, "BRANCH_EXISTS");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_checkout_lives_is_said_in_durations() {
    let app = app_with_project().await;
    for (n, (text, seconds)) in [
        ("24h", 86_400),
        ("1.5h", 5400),
        ("2h45m", 9900),
        ("7d", 604_800),
        ("30d", 2_592_000),
        ("720h", 2_592_000),
        ("", 86_400),
        ("1m", 60),
    ]
    .into_iter()
    .enumerate()
    {
        let made = checkout(&app, json!({"new_branch": format!("b{n}"), "expires_in": text})).await;
        assert_eq!((at(&made, "expires_at") - at(&made, "checked_out_at")).num_seconds(), seconds, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_out_of_bounds_is_refused_in_the_seeds_words() {
    let app = app_with_project().await;
    const NO_DURATION: &str = "expires_in must be a valid duration (e.g., 24h, 7d)";
    for (text, message) in [
        ("0s", NO_DURATION),
        ("-1h", NO_DURATION),
        ("soon", NO_DURATION),
        ("1", NO_DURATION),
        ("31d", NO_DURATION),
        ("0d", NO_DURATION),
        ("1.5d", NO_DURATION),
        ("1d12h", NO_DURATION),
        ("9999999999999h", NO_DURATION),
        ("721h", "expires_in cannot exceed 30 days"),
        ("720h1ns", "expires_in cannot exceed 30 days"),
        ("59s", "expires_in must be at least 1m"),
        ("59.9s", "expires_in must be at least 1m"),
    ] {
        let body = json!({"new_branch": "x", "expires_in": text});
        app.admin().post(CHECKOUT, body).await.refused(400, "BAD_REQUEST", message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_ends_the_checkout_and_its_token() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature"})).await;
    assert!(opens(&app, clone_url(&made)).await);
    let done = app.admin().post(&format!("{}/checkin", path(&made)), json!({})).await.data(200);
    let message = "Checkout completed. Token has been revoked.";
    assert_eq!(done, json!({"checkout_id": made["id"], "status": "checked_in", "message": message}));
    assert!(!opens(&app, clone_url(&made)).await);
    let shown = app.admin().get(&path(&made)).await.data(200);
    assert!(shown["status"] == "checked_in" && shown["checked_in_at"].is_string());
    checkout(&app, json!({"branch": "feature"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_with_an_empty_body_is_one_with_defaults() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature"})).await;
    app.admin().send(http::Method::POST, &format!("{}/checkin", path(&made)), None, &[]).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_that_is_refused_leaves_the_checkout_active() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature"})).await;
    let checkin = format!("{}/checkin", path(&made));
    let both = json!({"skip_review": true, "auto_merge": true});
    app.admin().post(&checkin, both).await.refusal(400, "BAD_REQUEST");
    for body in ["{", "[]", "{\"skip_review\": \"yes\"}", "null"] {
        let reply = app.admin().send(http::Method::POST, &checkin, Some(body.into()), &[]).await;
        reply.refused(400, "BAD_REQUEST", "invalid request body");
    }
    assert_eq!(app.admin().get(&path(&made)).await.data(200)["status"], "active");
    assert!(opens(&app, clone_url(&made)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_revokes_a_checkout() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature"})).await;
    let other = app.someone(&["projects:read", "projects:execute"]).await;
    other.delete(&path(&made)).await.refusal(403, "FORBIDDEN");
    let done = app.admin().delete(&path(&made)).await.data(200);
    let message = "Checkout revoked. Token has been invalidated.";
    assert_eq!(done, json!({"status": "revoked", "id": made["id"], "message": message}));
    assert!(!opens(&app, clone_url(&made)).await);
    assert_eq!(app.admin().get(&path(&made)).await.data(200)["status"], "revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_checkout_never_changes_again() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature"})).await;
    app.admin().delete(&path(&made)).await.data(200);
    let before = app.admin().get(&path(&made)).await.data(200);
    for reply in [
        app.admin().post(&format!("{}/checkin", path(&made)), json!({})).await,
        app.admin().post(&format!("{}/extend", path(&made)), json!({"expires_in": "48h"})).await,
        app.admin().post(&format!("{}/rotate", path(&made)), json!({})).await,
        app.admin().delete(&path(&made)).await,
    ] {
        reply.refused(400, "BAD_REQUEST", "checkout is not active");
        assert_eq!(reply.json()["error"]["details"]["reason"], "CHECKOUT_NOT_ACTIVE");
    }
    assert_eq!(app.admin().get(&path(&made)).await.data(200), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_dead_at_once_and_its_checkout_soon() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature", "expires_in": "1h"})).await;
    app.advance(TimeDelta::minutes(59));
    assert!(opens(&app, clone_url(&made)).await);
    app.advance(TimeDelta::minutes(1));
    assert!(!opens(&app, clone_url(&made)).await);
    eventually("the checkout is expired", async || {
        (app.admin().get(&path(&made)).await.data(200)["status"] == "expired").then_some(())
    })
    .await;
    let mut events = app.listen("/projects/p/events?after=0").await;
    assert_eq!(events.activity("checkout.expired").await.data["id"], made["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn extending_counts_from_now_and_never_shortens() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature", "expires_in": "10h"})).await;
    let extend = format!("{}/extend", path(&made));
    app.advance(TimeDelta::hours(1));
    let longer = app.admin().post(&extend, json!({"expires_in": "20h"})).await.data(200);
    assert_eq!(at(&longer, "expires_at"), app.clock.now() + TimeDelta::hours(20));
    assert!(!clone_url(&longer).contains('@'));
    let same = app.admin().post(&extend, json!({"expires_in": "1h"})).await.data(200);
    assert_eq!(same["expires_at"], longer["expires_at"]);
    app.admin().post(&extend, json!({"expires_in": "721h"})).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_replaces_the_token() {
    let app = app_with_project().await;
    let made = checkout(&app, json!({"new_branch": "feature"})).await;
    let rotated = app.admin().post(&format!("{}/rotate", path(&made)), json!({})).await.data(201);
    assert_eq!(rotated["id"], made["id"]);
    assert_ne!(clone_url(&rotated), clone_url(&made));
    assert!(!opens(&app, clone_url(&made)).await);
    assert!(opens(&app, clone_url(&rotated)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_projects_checkout_is_not_found() {
    let app = app_with_project().await;
    app.project("q").await;
    let made = checkout(&app, json!({"new_branch": "feature"})).await;
    let there = path(&made).replace("/p/", "/q/");
    for path in [there, format!("{CHECKOUT}/{UNKNOWN}"), format!("{CHECKOUT}/x")] {
        app.admin().get(&path).await.refused(404, "NOT_FOUND", "checkout not found");
        app.admin().delete(&path).await.refused(404, "NOT_FOUND", "checkout not found");
        for verb in ["checkin", "extend", "rotate"] {
            let reply = app.admin().post(&format!("{path}/{verb}"), json!({})).await;
            reply.refused(404, "NOT_FOUND", "checkout not found");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_checkout_is_left_to_the_session() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let path = format!("{CHECKOUT}/{}", session["checkout_id"].as_str().unwrap());
    for verb in ["checkin", "extend", "rotate"] {
        let reply = app.admin().post(&format!("{path}/{verb}"), json!({})).await;
        reply.refusal(409, "CHECKOUT_IN_SESSION");
    }
    assert_eq!(app.admin().delete(&path).await.data(200)["status"], "revoked");
    let shown = app.admin().get(&format!("/projects/p/sessions/{}", session["id"].as_str().unwrap())).await.data(200);
    assert_eq!(shown["status"], "terminated");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_shows_active_ones_and_others_by_status() {
    let app = app_with_project().await;
    let active = checkout(&app, json!({"new_branch": "a"})).await;
    let revoked = checkout(&app, json!({"new_branch": "b"})).await;
    app.admin().delete(&path(&revoked)).await.data(200);
    let list = async |query: &str| -> Vec<Value> {
        let listed = app.admin().get(&format!("{CHECKOUT}{query}")).await.data(200);
        listed["checkouts"].as_array().unwrap().iter().map(|checkout| checkout["id"].clone()).collect()
    };
    assert_eq!(list("").await, [active["id"].clone()]);
    assert_eq!(list("/").await, [active["id"].clone()]);
    assert_eq!(list("?status=revoked").await, [revoked["id"].clone()]);
    assert_eq!(list("?status=expired").await, [] as [Value; 0]);
    app.admin().get(&format!("{CHECKOUT}?status=pending")).await.refusal(400, "BAD_REQUEST");
    app.admin().get(&format!("{CHECKOUT}?status=odd")).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkouts_routes_ask_for_their_scopes() {
    let app = app_with_project().await;
    let reader = app.someone(&["projects:read"]).await;
    let in_sessions = app.someone(&["sessions:read", "sessions:execute"]).await;
    reader.get(CHECKOUT).await.data(200);
    reader.post(CHECKOUT, json!({"new_branch": "x"})).await.refusal(403, "FORBIDDEN");
    in_sessions.get(CHECKOUT).await.refusal(403, "FORBIDDEN");
    in_sessions.post(CHECKOUT, json!({"new_branch": "x"})).await.refusal(403, "FORBIDDEN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_checkout_leaves_no_branch_and_no_task() {
    let app = app_with_project().await;
    checkout(&app, json!({"new_branch": "feature"})).await;
    app.admin().post(CHECKOUT, json!({"new_branch": "feature/x"})).await.refusal(409, "BRANCH_EXISTS");
    app.admin().post(CHECKOUT, json!({"branch": "nope"})).await.refusal(404, "NOT_FOUND");
    let left = "select (select count(*) from task) + (select count(*) from checkout where status <> 'active')";
    assert_eq!(app.db().count(left).await, 0);
}

//! Sessions: opened whole or not at all, used, ended by whichever way.

mod in_the_way;
mod lifetimes;
mod races;
mod rescue;
mod spare;

use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::support::{TestApp, eventually, git};

const SESSIONS: &str = "/projects/p/sessions";
const UNKNOWN: &str = "01890000-0000-7000-8000-000000000000";

async fn app_with_project() -> TestApp {
    let app = TestApp::start().await;
    app.project("p").await;
    app
}

fn path(session: &Value) -> String {
    format!("{SESSIONS}/{}", session["id"].as_str().expect("an id"))
}

fn at(value: &Value, field: &str) -> DateTime<Utc> {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}")).parse().expect("RFC 3339")
}

async fn shown(app: &TestApp, session: &Value) -> Value {
    app.admin().get(&path(session)).await.data(200)
}

async fn open(app: &TestApp, body: Value) -> Value {
    app.admin().post(SESSIONS, body).await.data(201)
}

/// What a repository's branch is at, by the admin key.
async fn head_of(app: &TestApp, branch: &str) -> String {
    let reference = format!("refs/heads/{branch}");
    let said = git::git(app.ground.path(), &["ls-remote", &app.admin_clone_url("p"), &reference]).await.ok();
    said.split_whitespace().next().unwrap_or_default().to_owned()
}

async fn file_at(app: &TestApp, sha: &str, file: &str) -> Option<String> {
    let clone = app.git_clone(&app.admin_clone_url("p")).await;
    clone.git(&["fetch", "--quiet", "origin", sha]).await.ok();
    let said = clone.git(&["show", &format!("{sha}:{file}")]).await;
    said.success.then_some(said.stdout)
}

/// The worker that ends sessions has looked at them all.
async fn two_rounds(app: &TestApp) {
    let runs = async || {
        let text = app.nobody().get("/metrics").await.text;
        let line =
            text.lines().find(|line| line.starts_with("rdev_worker_runs_total") && line.contains("session_expiry"));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let before = runs().await;
    eventually("two rounds", async || (runs().await >= before + 2.0).then_some(())).await;
}

async fn opens(app: &TestApp, url: &str) -> bool {
    git::git(app.ground.path(), &["ls-remote", "--quiet", url]).await.success
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_is_active_with_a_worktree_of_its_branch() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    assert_eq!(
        (&session["status"], &session["branch"], &session["project_id"]),
        (&json!("active"), &json!("feature"), &json!("p"))
    );
    assert_eq!(at(&session, "expires_at") - at(&session, "created_at"), TimeDelta::hours(24));
    let branch = app.exec("p", &session, "git branch --show-current; pwd").await;
    assert_eq!(app.output(&branch).await, format!("feature\n{}\n", session["workspace"].as_str().unwrap()));
    assert!(opens(&app, session["auth_clone_url"].as_str().unwrap()).await);
    let again = shown(&app, &session).await;
    for once in ["auth_clone_url", "branch", "instructions"] {
        assert!(session.get(once).is_some() && again.get(once).is_none(), "{once} is there at creation only");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_preview_is_an_origin_of_its_own() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let port = app.url.rsplit_once(':').unwrap().1;
    let expected = format!("http://{}.localhost:{port}/", session["id"].as_str().unwrap());
    assert_eq!(session["preview_url"], expected);
    let seen = app.exec("p", &session, "echo $PORT $RDEV_SESSION_ID $RDEV_BRANCH").await;
    let id = session["id"].as_str().unwrap();
    assert_eq!(app.output(&seen).await, format!("{} {id} feature\n", session["preview_port"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_command_shows_its_session() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let command = app.exec("p", &session, "true").await;
    assert_eq!(command["session_id"], session["id"]);
    let listed = app.admin().get(&format!("/projects/p/commands?session_id={}", session["id"].as_str().unwrap())).await;
    assert_eq!(listed.data(200)["commands"][0]["command_id"], command["command_id"]);
    let in_sessions = app.someone(&["sessions:read"]).await;
    let id = command["command_id"].as_str().unwrap();
    in_sessions.get(&format!("/projects/p/commands/{id}")).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn git_push_needs_no_further_word_in_a_session() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let pushed = app
        .exec("p", &session, "echo x > f && git add f && git commit -qm x && git push -q && git rev-parse HEAD")
        .await;
    assert_eq!(pushed["exit_code"], 0, "{}", app.output(&pushed).await);
    assert_eq!(app.output(&pushed).await.trim().lines().last(), Some(&*head_of(&app, "feature").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_pushes_to_its_own_branch_alone() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let before = head_of(&app, "main").await;
    let tried = app.exec("p", &session, "git commit -q --allow-empty -m x; git push origin HEAD:main").await;
    assert_ne!(tried["exit_code"], 0);
    assert_eq!(head_of(&app, "main").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_of_a_project_is_refused() {
    let app = app_with_project().await;
    app.session("p", "one").await;
    app.admin().post(SESSIONS, json!({"new_branch": "two"})).await.refused(
        409,
        "SESSION_EXISTS",
        "active session already exists for this project",
    );
    let branches = app.admin().get("/projects/p/checkout/branches").await.data(200);
    assert!(!branches.to_string().contains("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_sessions_at_once_exactly_one_is_answered_with_201() {
    let app = app_with_project().await;
    let admin = app.admin();
    let bodies = (0..5).map(|n| json!({"new_branch": format!("b{n}")}));
    let replies = futures::future::join_all(bodies.map(|body| admin.post(SESSIONS, body))).await;
    let mut statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409]);
    let active = admin.get(&format!("{SESSIONS}?status=active")).await.data(200);
    assert_eq!(active["sessions"].as_array().unwrap().len(), 1);
    let branches = admin.get("/projects/p/checkout/branches").await.data(200);
    assert_eq!(branches["branches"].as_array().unwrap().len(), 2, "a loser left its branch: {branches}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_branch_cases_are_those_of_a_checkout() {
    let app = app_with_project().await;
    for (body, status, code, message) in [
        (json!({}), 400, "BAD_REQUEST", "branch or new_branch is required"),
        (
            json!({"branch": "a", "new_branch": "b"}),
            400,
            "BAD_REQUEST",
            "specify either branch or new_branch, not both",
        ),
        (json!({"branch": "nope"}), 404, "NOT_FOUND", "branch not found"),
        (json!({"new_branch": "x", "from_ref": "nope"}), 404, "NOT_FOUND", "from_ref not found"),
        (json!({"branch": "main"}), 400, "BAD_REQUEST", "cannot checkout protected branch"),
        (json!({"new_branch": "x", "expires_in": "721h"}), 400, "BAD_REQUEST", "expires_in cannot exceed 30 days"),
    ] {
        app.admin().post(SESSIONS, body).await.refused(status, code, message);
    }
    app.admin().post(SESSIONS, json!({"new_branch": "main"})).await.refusal(409, "BRANCH_EXISTS");
    app.admin().post("/projects/p/checkout", json!({"new_branch": "taken"})).await.data(201);
    app.admin().post(SESSIONS, json!({"branch": "taken"})).await.refusal(409, "CHECKOUT_EXISTS");
    let listed = app.admin().get(SESSIONS).await.data(200);
    assert_eq!(listed["sessions"], json!([]), "what was refused before it began is listed nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_is_checked_before_and_the_session_before_the_branch() {
    let app = app_with_project().await;
    app.session("p", "one").await;
    app.admin().post(SESSIONS, json!({"new_branch": "-x"})).await.refusal(400, "BAD_REQUEST");
    app.admin().post(SESSIONS, json!({"new_branch": "x", "preview_port": 0})).await.refusal(400, "BAD_REQUEST");
    app.admin().post(SESSIONS, json!({"branch": "nope"})).await.refusal(409, "SESSION_EXISTS");
    app.admin().post(SESSIONS, json!({"branch": "main"})).await.refusal(409, "SESSION_EXISTS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_or_idle_timeout_out_of_bounds_is_refused() {
    let app = app_with_project().await;
    for extra in [
        json!({"preview_port": 0}),
        json!({"preview_port": 65536}),
        json!({"preview_port": -1}),
        json!({"preview_port": "80"}),
        json!({"idle_timeout": "59s"}),
        json!({"idle_timeout": "0s"}),
        json!({"idle_timeout": "x"}),
    ] {
        let mut body = json!({"new_branch": "x"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        app.admin().post(SESSIONS, body).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_session_has_is_in_use() {
    let app = app_with_project().await;
    app.project("q").await;
    open(&app, json!({"new_branch": "x", "preview_port": 39123})).await;
    let body = json!({"new_branch": "x", "preview_port": 39123});
    app.admin().post("/projects/q/sessions", body).await.refusal(409, "PORT_IN_USE");
    let own: u16 = app.url.rsplit_once(':').unwrap().1.parse().unwrap();
    let body = json!({"new_branch": "x", "preview_port": own});
    app.admin().post("/projects/q/sessions", body).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_ends_session_checkout_token_and_worktree() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let done = app.admin().post(&format!("{}/checkin", path(&session)), json!({})).await.data(200);
    let message = "Session ended. Preview removed, token revoked.";
    assert_eq!(done, json!({"session_id": session["id"], "status": "ended", "message": message}));
    let after = shown(&app, &session).await;
    assert_eq!((&after["status"], &after["end_reason"]), (&json!("ended"), &json!("checkin")));
    assert!(after["ended_at"].is_string());
    assert!(!opens(&app, session["auth_clone_url"].as_str().unwrap()).await);
    assert!(!Path::new(session["workspace"].as_str().unwrap()).exists());
    let checkout = app.admin().get(&format!("/projects/p/checkout/{}", session["checkout_id"].as_str().unwrap())).await;
    assert_eq!(checkout.data(200)["status"], "checked_in");
    open(&app, json!({"branch": "feature"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_terminates_a_session() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let other = app.someone(&["sessions:execute", "projects:execute"]).await;
    other.delete(&path(&session)).await.refusal(403, "FORBIDDEN");
    let done = app.admin().delete(&path(&session)).await.data(200);
    let message = "Session force-terminated. Preview removed, token revoked.";
    assert_eq!(done, json!({"status": "terminated", "id": session["id"], "message": message}));
    let checkout = app.admin().get(&format!("/projects/p/checkout/{}", session["checkout_id"].as_str().unwrap())).await;
    assert_eq!(checkout.data(200)["status"], "revoked");
    assert_eq!(shown(&app, &session).await["end_reason"], "terminated");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_session_does_nothing_more() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.admin().delete(&path(&session)).await.data(200);
    let before = shown(&app, &session).await;
    for reply in [
        app.admin().post(&format!("{}/exec", path(&session)), json!({"args": ["true"]})).await,
        app.admin().post(&format!("{}/extend", path(&session)), json!({"expires_in": "48h"})).await,
        app.admin().post(&format!("{}/checkin", path(&session)), json!({})).await,
        app.admin().delete(&path(&session)).await,
    ] {
        reply.refused(400, "BAD_REQUEST", "session is not active");
    }
    assert_eq!(shown(&app, &session).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_projects_session_is_not_found() {
    let app = app_with_project().await;
    app.project("q").await;
    let session = app.session("p", "feature").await;
    for path in [path(&session).replace("/p/", "/q/"), format!("{SESSIONS}/{UNKNOWN}"), format!("{SESSIONS}/x")] {
        app.admin().get(&path).await.refused(404, "NOT_FOUND", "session not found");
        app.admin().delete(&path).await.refused(404, "NOT_FOUND", "session not found");
        for (verb, body) in [("checkin", json!({})), ("extend", json!({})), ("exec", json!({"args": ["true"]}))] {
            let reply = app.admin().post(&format!("{path}/{verb}"), body).await;
            reply.refused(404, "NOT_FOUND", "session not found");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_commands_end_with_their_session() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let body = json!({"script": "echo begun; sleep 600"});
    let command = app.admin().post(&format!("{}/exec", path(&session)), body).await.data(201);
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    events.next_named("output").await;
    app.admin().post(&format!("{}/checkin", path(&session)), json!({})).await.data(200);
    let last = events.next().await;
    assert_eq!((last.name.as_str(), &last.data["code"]), ("error", &json!("SESSION_ENDED")));
    assert_eq!(last.data["termination"], "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_was_not_pushed_is_rescued() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let script = "echo ignored > .gitignore; git add .; git commit -qm local; echo loose > loose.txt; echo x > ignored; echo more >> README.md";
    app.exec("p", &session, script).await;
    let pushed = head_of(&app, "feature").await;
    let done = app.admin().post(&format!("{}/checkin", path(&session)), json!({})).await.data(200);
    let branch = format!("rdev/rescue/{}", session["id"].as_str().unwrap());
    assert_eq!(done["rescue"]["branch"], branch);
    let sha = done["rescue"]["sha"].as_str().unwrap();
    assert_eq!(head_of(&app, &branch).await, sha);
    assert_eq!(file_at(&app, sha, "loose.txt").await.as_deref(), Some("loose\n"));
    assert!(file_at(&app, sha, "README.md").await.unwrap().ends_with("more\n"));
    assert_eq!(file_at(&app, sha, "ignored").await, None);
    assert_eq!(head_of(&app, "feature").await, pushed, "the branch itself is left alone");
    assert_eq!(shown(&app, &session).await["rescue"], done["rescue"]);
    open(&app, json!({"new_branch": "again", "from_ref": branch})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_were_not_pushed_are_rescued() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let made = app.exec("p", &session, "git commit -q --allow-empty -m local; git rev-parse HEAD").await;
    let sha = app.output(&made).await.trim().to_owned();
    let done = app.admin().delete(&path(&session)).await.data(200);
    assert_eq!(done["rescue"]["sha"], sha);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_session_leaves_no_rescue() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "git commit -q --allow-empty -m x && git push -q").await;
    let done = app.admin().post(&format!("{}/checkin", path(&session)), json!({})).await.data(200);
    assert!(done.get("rescue").is_none(), "{done}");
    assert_eq!(app.script("p", "git ls-remote origin 'refs/heads/rdev/*' | grep -c .").await["exit_code"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_may_discard_what_was_not_pushed() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "echo loose > loose.txt").await;
    let done = app.admin().post(&format!("{}/checkin", path(&session)), json!({"on_dirty": "discard"})).await.data(200);
    assert!(done.get("rescue").is_none(), "{done}");
    assert!(!Path::new(session["workspace"].as_str().unwrap()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_may_fail_on_what_was_not_pushed_and_the_session_stays() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "echo loose > loose.txt").await;
    let checkin = format!("{}/checkin", path(&session));
    app.admin().post(&checkin, json!({"on_dirty": "fail"})).await.refusal(409, "UNPUSHED_CHANGES");
    assert_eq!(shown(&app, &session).await["status"], "active");
    let still = app.exec("p", &session, "cat loose.txt; rm loose.txt").await;
    assert_eq!(app.output(&still).await, "loose\n");
    app.admin().post(&checkin, json!({"on_dirty": "fail"})).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_checkin_leaves_the_session_active() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let checkin = format!("{}/checkin", path(&session));
    for body in [
        json!({"on_dirty": "keep"}),
        json!({"skip_review": true, "auto_merge": true}),
        json!({"skip_review": 1}),
        json!([]),
    ] {
        app.admin().post(&checkin, body).await.refusal(400, "BAD_REQUEST");
    }
    for body in ["{", "nul", "{\"on_dirty\":\"discard\"", "{\"a\":\"\\u0000\"}"] {
        let reply = app.admin().send(http::Method::POST, &checkin, Some(body.into()), &[]).await;
        reply.refused(400, "BAD_REQUEST", "invalid request body");
    }
    assert_eq!(shown(&app, &session).await["status"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_expires_with_everything_it_has() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "expires_in": "1h"})).await;
    app.exec("p", &session, "echo loose > loose.txt").await;
    app.advance(TimeDelta::hours(1));
    let ended = eventually("the end of the session", async || {
        let seen = shown(&app, &session).await;
        (seen["status"] == "expired").then_some(seen)
    });
    let ended = ended.await;
    assert_eq!(ended["end_reason"], "expired");
    assert!(ended["rescue"]["sha"].is_string(), "{ended}");
    assert!(!opens(&app, session["auth_clone_url"].as_str().unwrap()).await);
    assert!(!Path::new(session["workspace"].as_str().unwrap()).exists());
    let checkout = app.admin().get(&format!("/projects/p/checkout/{}", session["checkout_id"].as_str().unwrap())).await;
    assert_eq!(checkout.data(200)["status"], "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_sessions_token_is_dead_also_while_its_end_is_under_way() {
    let app = TestApp::with(&[("RDEV_KILL_GRACE", "4s")]).await;
    app.project("p").await;
    let session = open(&app, json!({"new_branch": "feature", "expires_in": "1h"})).await;
    // The end waits for a command that does not go by itself.
    let body = json!({"script": "trap '' TERM; echo begun; while :; do sleep 0.05; done", "timeout": "10h"});
    let command = app.admin().post(&format!("{}/exec", path(&session)), body).await.data(201);
    app.listen(command["events_url"].as_str().unwrap()).await.next_named("output").await;
    app.advance(TimeDelta::hours(1));
    eventually("its end begins", async || (shown(&app, &session).await["status"] == "ending").then_some(())).await;
    assert!(!opens(&app, session["auth_clone_url"].as_str().unwrap()).await, "the token is dead by the clock");
    eventually("its end", async || (shown(&app, &session).await["status"] == "expired").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_ends() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "idle_timeout": "10m"})).await;
    app.advance(TimeDelta::minutes(9));
    app.exec("p", &session, "true").await;
    app.advance(TimeDelta::minutes(9));
    app.exec("p", &session, "true").await;
    assert_eq!(shown(&app, &session).await["status"], "active");
    app.advance(TimeDelta::minutes(10));
    let ended = eventually("the end of the session", async || {
        let seen = shown(&app, &session).await;
        (seen["status"] == "expired").then_some(seen)
    });
    assert_eq!(ended.await["end_reason"], "idle");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_command_keeps_a_session_from_being_idle() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "idle_timeout": "10m"})).await;
    let body = json!({"script": "echo begun; while ! test -e go; do sleep 0.02; done", "timeout": "10h"});
    let command = app.admin().post(&format!("{}/exec", path(&session)), body).await.data(201);
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    events.next_named("output").await;
    app.advance(TimeDelta::hours(2));
    two_rounds(&app).await;
    assert_eq!(shown(&app, &session).await["status"], "active");
    std::fs::write(Path::new(session["workspace"].as_str().unwrap()).join("go"), "").unwrap();
    events.rest().await;
    let seen = shown(&app, &session).await;
    assert_eq!(seen["status"], "active", "the end of a command counts as activity");
    assert_eq!(at(&seen, "last_activity_at"), app.clock.now());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_says_when_it_is_about_to_end() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "expires_in": "1h"})).await;
    let mut events = app.listen(&format!("{}/events?after=0", path(&session))).await;
    for step in [45, 10, 4] {
        app.advance(TimeDelta::minutes(step));
        let event = events.activity("session.expiring").await;
        assert_eq!(event.data["id"], session["id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extending_moves_session_checkout_and_token_together() {
    let app = app_with_project().await;
    let session = open(&app, json!({"new_branch": "feature", "expires_in": "2h"})).await;
    let extend = format!("{}/extend", path(&session));
    app.advance(TimeDelta::hours(1));
    let longer = app.admin().post(&extend, json!({"expires_in": "20h"})).await.data(200);
    assert_eq!(at(&longer, "expires_at"), app.clock.now() + TimeDelta::hours(20));
    let checkout = app.admin().get(&format!("/projects/p/checkout/{}", session["checkout_id"].as_str().unwrap())).await;
    assert_eq!(checkout.data(200)["expires_at"], longer["expires_at"]);
    let same = app.admin().post(&extend, json!({"expires_in": "1h"})).await.data(200);
    assert_eq!(same["expires_at"], longer["expires_at"]);
    app.advance(TimeDelta::hours(10));
    assert!(opens(&app, session["auth_clone_url"].as_str().unwrap()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_a_restart_on_another_port() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "echo kept > kept.txt").await;
    let app = app.restart(&[]).await;
    assert_eq!(shown(&app, &session).await["status"], "active");
    let pushed =
        app.exec("p", &session, "git add -A && git commit -qm kept && git push -q && git rev-parse HEAD").await;
    assert_eq!(pushed["exit_code"], 0, "{}", app.output(&pushed).await);
    assert_eq!(app.output(&pushed).await.trim(), head_of(&app, "feature").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_all_states_are_listed_newest_first() {
    let app = app_with_project().await;
    let first = app.session("p", "one").await;
    app.admin().delete(&path(&first)).await.data(200);
    let second = app.session("p", "two").await;
    let list = async |query: &str| -> Vec<Value> {
        let listed = app.admin().get(&format!("{SESSIONS}{query}")).await.data(200);
        listed["sessions"].as_array().unwrap().iter().map(|session| session["id"].clone()).collect()
    };
    assert_eq!(list("").await, [second["id"].clone(), first["id"].clone()]);
    assert_eq!(list("?status=active").await, [second["id"].clone()]);
    assert_eq!(list("?status=terminated").await, [first["id"].clone()]);
    assert_eq!(list("?limit=1").await, [second["id"].clone()]);
    app.admin().get(&format!("{SESSIONS}?status=odd")).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_fails_leaves_nothing_but_its_record() {
    let app = app_with_project().await;
    let project = app.admin().get("/projects/p").await.data(200);
    // The workspace is in the way of its own worktrees: git cannot make one.
    let workspace = project["workspace"].as_str().unwrap().to_owned();
    std::fs::rename(format!("{workspace}/.git"), format!("{workspace}/.git-away")).unwrap();
    let reply = app.admin().post(SESSIONS, json!({"new_branch": "feature"})).await;
    assert!(reply.status >= 500, "{}", reply.text);
    std::fs::rename(format!("{workspace}/.git-away"), format!("{workspace}/.git")).unwrap();
    let failed = eventually("what was begun is undone", async || {
        let sessions = app.admin().get(SESSIONS).await.data(200)["sessions"].clone();
        (sessions[0]["status"] == "failed").then_some(sessions)
    });
    let failed = failed.await;
    assert_eq!(failed[0]["end_reason"], "provisioning_failed");
    let branches = app.admin().get("/projects/p/checkout/branches").await.data(200);
    assert_eq!(branches["branches"].as_array().unwrap().len(), 1, "{branches}");
    assert_eq!(app.db().count("select count(*) from checkout where status in ('pending', 'active')").await, 0);
    app.session("p", "feature").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_another_process_ends_here() {
    let app = app_with_project().await;
    let other = app.sibling(&[]).await;
    let session = app.session("p", "feature").await;
    let body = json!({"script": "echo begun; sleep 600"});
    let command = app.admin().post(&format!("{}/exec", path(&session)), body).await.data(201);
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    events.next_named("output").await;
    let done = other.admin().post(&format!("{}/checkin", path(&session)), json!({})).await.data(200);
    assert_eq!(done["status"], "ended");
    assert_eq!(events.next().await.data["termination"], "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_routes_ask_for_their_scopes() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let reader = app.someone(&["sessions:read"]).await;
    reader.get(&path(&session)).await.data(200);
    for (verb, body) in [("checkin", json!({})), ("extend", json!({})), ("exec", json!({"args": ["true"]}))] {
        let error = reader.post(&format!("{}/{verb}", path(&session)), body).await.refusal(403, "FORBIDDEN");
        assert_eq!(error["details"]["required_any"], json!(["sessions:execute", "projects:execute"]));
    }
    let runner = app.someone(&["sessions:execute"]).await;
    let body = json!({"args": ["true"], "wait": "30s"});
    runner.post(&format!("{}/exec", path(&session)), body).await.data(201);
    runner.get(&path(&session)).await.refusal(403, "FORBIDDEN");
    runner.post(&format!("{}/checkin", path(&session)), json!({})).await.data(200);
}

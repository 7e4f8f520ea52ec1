//! Commands in pods: told whole whatever breaks on the way, started once, ended with all they began.

use chrono::TimeDelta;
use futures::future::join_all;
use http::Method;
use serde_json::json;

use super::{
    super::support::{Event, FakeCluster, eventually, sse::text_of},
    end_of, is, on, on_ground, start, with_pod,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_in_a_clone_with_its_environment() {
    let (cluster, app) = with_pod().await;
    let body = json!({
        "script": "git log --format=%s; echo \"$GREETING $RDEV_PROJECT_ID\"; cat; pwd; case $HOME in */.rdev/home) echo home;; esac; git status --short; exit 3",
        "env": {"GREETING": "it's \"me\""}, "stdin": "read\n", "wait": "30s",
    });
    let command = app.admin().post("/projects/p/shell", body).await.data(201);
    let said = app.output(&command).await;
    assert_eq!((&command["exit_code"], &command["termination"]), (&json!(3), &json!("exit")), "{said}");
    let workspace = cluster.workspace("a");
    assert!(said.ends_with(&format!("it's \"me\" p\nread\n{}\nhome\n", workspace.display())), "{said}");
    let log = app.admin().post("/projects/p/git", json!({"args": ["log", "-1"], "wait": "30s"})).await.data(201);
    assert_eq!(log["exit_code"], 0);
    assert_eq!(app.script("p", "git pull --quiet && git clean -fdx && git status --short").await["exit_code"], 0);
    // What is secret is in no request's address.
    let asked = cluster.asked().join("\n");
    assert!(!asked.contains("GREETING") && !asked.contains("rdev_git_"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_signals_and_starts_that_fail_are_told_apart() {
    let (_cluster, app) = with_pod().await;
    let code = app.script("p", "exit 137").await;
    assert_eq!((&code["exit_code"], &code["termination"], code.get("signal")), (&json!(137), &json!("exit"), None));
    let death = app.script("p", "kill -KILL $$").await;
    assert_eq!(
        (&death["exit_code"], &death["termination"], &death["signal"]),
        (&json!(null), &json!("signal"), &json!("KILL"))
    );
    let body = json!({"args": ["no-such-program"], "wait": "30s"});
    let failed = app.admin().post("/projects/p/shell", body).await.data(201);
    assert_eq!(failed["termination"], "start_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_break_leave_no_gap_and_no_repeat() {
    let (cluster, app) = with_pod().await;
    let script = "i=0; while test $i -lt 200; do echo line $i; echo err $i >&2; i=$((i+1)); sleep 0.01; done; exit 7";
    let command = start(&app.admin(), script).await;
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    let mut seen: Vec<Event> = Vec::new();
    while let Some(event) = events.try_next().await {
        if event.id.is_some() {
            seen.push(event);
            if seen.len().is_multiple_of(60) {
                cluster.cut();
            }
        }
    }
    assert_eq!(seen.last().unwrap().data["exit_code"], 7);
    for (stream, word) in [("stdout", "line"), ("stderr", "err")] {
        let expected: String = (0..200).map(|i| format!("{word} {i}\n")).collect();
        assert_eq!(text_of(&seen, stream), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_without_its_server() {
    let cluster = FakeCluster::start().await;
    cluster.pod("a", "p");
    let app = on(&cluster, &[("RDEV_STOP_COMMANDS", "keep")]).await;
    is(&app.admin(), "p", "running").await;
    let script = "echo begun; while ! test -e go; do sleep 0.05; done; seq 1 2000; exit 7";
    let command = start(&app.admin(), script).await;
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    assert_eq!(events.next().await.line(), "begun");
    let key = app.admin_key.clone();
    let ground = app.stop().await;
    std::fs::write(cluster.workspace("a").join("go"), "").unwrap();
    let app = on_ground(ground, &cluster, &[]).await;
    let admin = app.bearing(&key);
    let ended = end_of(&admin, &command).await;
    assert_eq!((&ended["exit_code"], &ended["termination"]), (&json!(7), &json!("exit")));
    let reply = admin.get(command["output_url"].as_str().unwrap()).await;
    let expected: String = std::iter::once("begun\n".to_owned()).chain((1..=2000).map(|n| format!("{n}\n"))).collect();
    assert_eq!(reply.text, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancels_and_timeouts_end_all_that_was_begun() {
    let (_cluster, app) = with_pod().await;
    let command = start(&app.admin(), "setsid sleep 600 & echo $!; sleep 600").await;
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    let pid: i32 = events.next().await.line().parse().unwrap();
    let path = format!("/projects/p/commands/{}", command["command_id"].as_str().unwrap());
    let ended = app.admin().delete(&path).await.data(200);
    assert_eq!(ended["termination"], "cancelled");
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    let body = json!({"script": "sleep 600", "timeout": "1s", "wait": "30s"});
    assert_eq!(app.admin().post("/projects/p/shell", body).await.data(201)["termination"], "timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_nobody_knows_of_is_resolved_and_runs_once() {
    let (cluster, app) = with_pod().await;
    app.script("p", "true").await;
    let body = json!({"script": "echo once >> runs", "command_id": "mine"});
    cluster.leave_unanswered(1);
    let command = app.admin().post("/projects/p/shell", body.clone()).await.data(201);
    assert_eq!(end_of(&app.admin(), &command).await["exit_code"], 0);
    assert_eq!(app.admin().post("/projects/p/shell", body).await.data(200)["command_id"], "mine");
    assert_eq!(std::fs::read_to_string(cluster.workspace("a").join("runs")).unwrap(), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_does_not_answer_is_out_of_reach_and_what_was_asked_for_is_kept() {
    let (cluster, app) = with_pod().await;
    app.script("p", "true").await;
    cluster.hang(true);
    let command = start(&app.admin(), "echo once >> runs").await;
    let refused = app.admin().post("/projects/p/sessions", json!({"new_branch": "b"})).await;
    refused.refusal(503, "UPSTREAM_UNAVAILABLE");
    assert!(!refused.header("retry-after").is_empty());
    cluster.hang(false);
    app.advance(TimeDelta::seconds(31));
    assert_eq!(end_of(&app.admin(), &command).await["exit_code"], 0);
    assert_eq!(std::fs::read_to_string(cluster.workspace("a").join("runs")).unwrap(), "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_keeps_failing_is_left_alone_but_what_runs_is_followed() {
    let (cluster, app) = with_pod().await;
    let running = start(&app.admin(), "echo begun; until test -e go; do sleep 0.1; done; echo over").await;
    let mut events = app.listen(running["events_url"].as_str().unwrap()).await;
    assert_eq!(events.next().await.line(), "begun");
    cluster.hang(true);
    let admin = app.admin();
    let waiting = join_all((0..5).map(|_| start(&admin, "true"))).await;
    let stands = async || {
        let circuits = app.nobody().get("/health/circuits").await.data(200);
        let own = circuits["circuits"].as_array().unwrap().iter().find(|one| one["name"] == "cluster").cloned();
        own.expect("the cluster's circuit")["state"].clone()
    };
    eventually("the circuit opens", async || (stands().await == "open").then_some(())).await;
    cluster.hang(false);
    let refused = app.admin().post("/projects/p/sessions", json!({"new_branch": "b"})).await;
    refused.refusal(503, "CIRCUIT_OPEN");
    assert!(!refused.header("retry-after").is_empty());
    cluster.cut();
    std::fs::write(cluster.workspace("a").join("go"), "").unwrap();
    assert_eq!(events.next().await.line(), "over");
    assert_eq!(end_of(&app.admin(), &running).await["exit_code"], 0);
    assert_eq!(stands().await, "open");
    app.advance(TimeDelta::seconds(31));
    for command in &waiting {
        assert_eq!(end_of(&app.admin(), command).await["exit_code"], 0);
    }
    assert_eq!(stands().await, "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_lost_with_its_pod_and_with_its_container() {
    let (cluster, app) = with_pod().await;
    for restarts in [true, false] {
        let command = start(&app.admin(), "echo begun; sleep 600").await;
        let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
        assert_eq!(events.next().await.line(), "begun");
        if restarts {
            cluster.restart_container("a");
        } else {
            cluster.delete_pod("a");
        }
        let last = events.next_named("error").await;
        assert_eq!((&last.data["code"], &last.data["termination"]), (&json!("STREAM_LOST"), &json!("pod_lost")));
        let ended = end_of(&app.admin(), &command).await;
        assert_eq!((&ended["status"], &ended["exit_code"]), (&json!("lost"), &json!(null)));
        if restarts {
            assert_eq!(app.script("p", "git status").await["exit_code"], 0, "the new container is a place");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_in_its_pod_and_is_lost_with_it() {
    let (cluster, app) = with_pod().await;
    let session = app.session("p", "work").await;
    assert_eq!(session["pod_name"], "a");
    let pushed = app.exec("p", &session, "echo x > x && git add x && git commit -qm x && git push -q && pwd").await;
    assert_eq!(pushed["exit_code"], 0, "{}", app.output(&pushed).await);
    let path = format!("/projects/p/sessions/{}", session["id"].as_str().unwrap());
    let checked_in = app.admin().post(&format!("{path}/checkin"), json!({})).await.data(200);
    assert_eq!(checked_in["status"], "ended");
    let session = app.session("p", "more").await;
    let path = format!("/projects/p/sessions/{}", session["id"].as_str().unwrap());
    let command = app.admin().post(&format!("{path}/exec"), json!({"script": "sleep 600"})).await.data(201);
    cluster.delete_pod("a");
    let lost = eventually("the session is lost", async || {
        let shown = app.admin().get(&path).await.data(200);
        (shown["status"] == "lost").then_some(shown)
    });
    assert_eq!(lost.await["end_reason"], "pod_lost");
    assert_eq!(end_of(&app.admin(), &command).await["termination"], "pod_lost");
    let checkout = format!("/projects/p/checkouts/{}", session["checkout_id"].as_str().unwrap());
    let shown = app.admin().get(&checkout).await;
    assert!(shown.status == 404 || shown.data(200)["status"] != "active", "{}", shown.text);
    cluster.pod("b", "p");
    is(&app.admin(), "p", "running").await;
    let body = json!({"branch": "more"});
    app.admin().post("/projects/p/sessions", body).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_comes_through_a_restart_of_its_container_where_its_folder_does() {
    let (cluster, app) = with_pod().await;
    let session = app.session("p", "work").await;
    let path = format!("/projects/p/sessions/{}", session["id"].as_str().unwrap());
    assert_eq!(app.exec("p", &session, "echo kept > kept").await["exit_code"], 0);
    cluster.restart_container("a");
    // One that is asked for before the server has heard of it is lost.
    let works = async || (app.exec("p", &session, "cat kept").await["exit_code"] == 0).then_some(());
    eventually("the session works on", works).await;
    let workspace = cluster.workspace("a");
    std::fs::remove_dir_all(&workspace).unwrap();
    std::fs::create_dir(&workspace).unwrap();
    cluster.restart_container("a");
    eventually("the session is lost", async || {
        (app.admin().get(&path).await.data(200)["status"] == "lost").then_some(())
    })
    .await;
    app.session("p", "again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_goes_over_a_forwarded_port() {
    let (_cluster, app) = with_pod().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = json!({"new_branch": "b", "preview_port": port});
    let session = app.admin().post("/projects/p/sessions", body).await.data(201);
    let host = session["preview_url"].as_str().unwrap().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let admin = app.admin();
    let look = async || admin.send(Method::GET, "/", None, &[("host", &host)]).await;
    drop(listener);
    look().await.refusal(503, "PREVIEW_NOT_READY");
    let script = format!("python3 -m http.server --bind 127.0.0.1 {port}");
    let sid = session["id"].as_str().unwrap();
    app.admin().post(&format!("/projects/p/sessions/{sid}/exec"), json!({"script": script})).await.data(201);
    let shown = eventually("the page", async || Some(look().await).filter(|reply| reply.status == 200)).await;
    assert!(shown.text.contains("README.md"), "{}", shown.text);
}

//! Several processes, and processes that are killed: nothing is lost, and nothing that may not
//! be repeated is repeated.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{REACHABLE, Stage, of, reaches, run, show, statuses, step, step_reaches, until};
use crate::{
    jobs::and,
    support::{Ground, Server, counter::Counter, eventually},
};

/// Longest that a saga stands still when its process was killed.
const TAKEN_UP: Duration = Duration::from_secs(20);

async fn ground() -> (Arc<Ground>, Server, Counter) {
    let ground = Ground::new().await;
    let server = Server::start(&ground, &[REACHABLE]).await;
    (ground, server, Counter::start().await)
}

async fn again(ground: &Arc<Ground>, server: Server) -> Server {
    server.kill().await;
    Server::start(ground, &[REACHABLE]).await
}

fn call(out: &Counter, name: &str, path: &str) -> Value {
    step(name, "http.request", json!({"method": "POST", "url": out.at(path)}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_call_at_one_process_reaches_the_saga_that_another_drives() {
    let stage = Stage::new().await;
    let other = stage.app.sibling(&[REACHABLE]).await;
    let ask = |name: &str| step(name, "approval.request", json!({"message": "well?"}));
    let steps =
        json!([ask("q1"), stage.call("a", "/a"), ask("q2"), stage.call("b", "/b"), stage.call("c", "/status/409")]);
    let id = stage.run(steps).await;
    let mut answered = Vec::new();
    for (api, question, path) in [(stage.admin(), "q1", "/a"), (other.admin(), "q2", "/b")] {
        step_reaches(&api, &id, question, "waiting").await;
        let body = json!({"decision": "approve"});
        api.post(&format!("/sagas/{id}/approvals/{question}"), body).await.data(200);
        answered.push((Instant::now(), path));
    }
    for api in [stage.admin(), other.admin()] {
        reaches(&api, &id, "failed").await;
        let asked = stage.out.to("/status/409").len();
        api.post(&format!("/sagas/{id}/retry"), json!({})).await.data(200);
        let at = Instant::now();
        let request = stage.out.received("/status/409", asked + 1).await.remove(asked);
        assert!(request.at.saturating_duration_since(at) < Duration::from_secs(2), "{:?}", request.at - at);
    }
    for (at, path) in answered {
        let late = stage.out.to(path)[0].at.saturating_duration_since(at);
        assert!(late < Duration::from_secs(2), "{path}: {late:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_carry_each_step_out_once() {
    let stage = Stage::new().await;
    let other = stage.app.sibling(&[REACHABLE]).await;
    let mut ids = Vec::new();
    for n in 0..20 {
        let api = if n % 2 == 0 { stage.admin() } else { other.admin() };
        let steps: Vec<_> = (0..5).map(|s| stage.call(&format!("s{s}"), &format!("/{n}/{s}"))).collect();
        ids.push(run(&api, json!(steps)).await);
    }
    for id in &ids {
        reaches(&other.admin(), id, "completed").await;
    }
    let by_key = stage.out.by_key();
    assert_eq!((by_key.len(), by_key.into_values().max()), (100, Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_goes_on_elsewhere_when_its_process_is_killed() {
    let (ground, server, out) = ground().await;
    let gate = out.hold("/b");
    let steps = json!([call(&out, "a", "/a"), call(&out, "b", "/b"), call(&out, "c", "/c")]);
    let id = run(&server.admin(), steps).await;
    out.received("/b", 1).await;
    let other = Server::start(&ground, &[REACHABLE]).await;
    server.kill().await;
    let killed = Instant::now();
    out.received("/b", 2).await;
    assert!(killed.elapsed() < TAKEN_UP, "{:?}", killed.elapsed());
    gate.open();
    reaches(&other.admin(), &id, "completed").await;
    assert_eq!((out.to("/a").len(), out.to("/c").len()), (1, 1));
    out.key("/b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_was_cut_off_by_a_kill_is_repeated_under_its_key() {
    let (ground, server, out) = ground().await;
    let gate = out.hold("/b");
    let b = and(call(&out, "b", "/b"), json!({"retry_policy": {"max_retries": 0}}));
    let id = run(&server.admin(), json!([call(&out, "a", "/a"), b, call(&out, "c", "/c")])).await;
    out.received("/b", 1).await;
    let server = again(&ground, server).await;
    let started = Instant::now();
    out.received("/b", 2).await;
    assert!(started.elapsed() < TAKEN_UP, "{:?}", started.elapsed());
    gate.open();
    let saga = reaches(&server.admin(), &id, "completed").await;
    assert_eq!(of(&saga, "b")["retry_count"], 0);
    out.key("/b");
    assert_eq!((out.to("/a").len(), out.to("/b").len(), out.to("/c").len()), (1, 2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_must_not_be_repeated_is_in_doubt_after_a_kill() {
    let (ground, server, out) = ground().await;
    let gate = out.hold("/b");
    let b = and(call(&out, "b", "/b"), json!({"idempotent": false}));
    let id = run(&server.admin(), json!([call(&out, "a", "/a"), b, call(&out, "c", "/c")])).await;
    out.received("/b", 1).await;
    let server = again(&ground, server).await;
    let started = Instant::now();
    let saga = reaches(&server.admin(), &id, "failed").await;
    assert!(started.elapsed() < TAKEN_UP, "{:?}", started.elapsed());
    assert_eq!((statuses(&saga), out.to("/b").len()), (vec!["completed", "unknown", "pending"], 1));
    gate.open();
    server.admin().post(&format!("/sagas/{id}/steps/b/retry"), json!({})).await.data(200);
    reaches(&server.admin(), &id, "completed").await;
    assert_eq!(out.to("/b").len(), 2);
    out.key("/b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_that_was_cut_off_by_a_kill_is_repeated_under_its_key() {
    let (ground, server, out) = ground().await;
    let gate = out.hold("/undo/a");
    let undo = json!({"method": "DELETE", "url": out.at("/undo/a")});
    let a = and(
        call(&out, "a", "/a"),
        json!({"compensate": "http.request", "compensate_config": undo, "idempotent": false}),
    );
    let id = run(&server.admin(), json!([a])).await;
    reaches(&server.admin(), &id, "completed").await;
    server.admin().post(&format!("/sagas/{id}/rollback"), json!({})).await.data(200);
    out.received("/undo/a", 1).await;
    let server = again(&ground, server).await;
    out.received("/undo/a", 2).await;
    gate.open();
    reaches(&server.admin(), &id, "compensated").await;
    out.key("/undo/a");
    assert_eq!((out.to("/a").len(), out.to("/undo/a").len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_under_way_survives_the_kill_and_its_step_goes_on_with_it() {
    let (ground, server, out) = ground().await;
    server.admin().post("/projects", json!({"id": "p"})).await.data(201);
    let workspace = server.admin().get("/projects/p").await.data(200)["workspace"].as_str().unwrap().to_owned();
    let file = |name: &str| Path::new(&workspace).join(name);
    let script = "echo run >> runs; while ! test -e go; do sleep 0.02; done; echo done; echo well >&2";
    let command = step("a", "command.run", json!({"project_id": "p", "script": script}));
    let id = run(&server.admin(), json!([command, call(&out, "b", "/b")])).await;
    eventually("the command", async || file("runs").exists().then_some(())).await;
    let server = again(&ground, server).await;
    std::fs::write(file("go"), "").unwrap();
    let saga = reaches(&server.admin(), &id, "completed").await;
    let output = &of(&saga, "a")["output"];
    assert_eq!(
        (&output["exit_code"], &output["stdout_tail"], &output["stderr_tail"]),
        (&json!(0), &json!("done\n"), &json!("well\n"))
    );
    assert_eq!(std::fs::read_to_string(file("runs")).unwrap(), "run\n");
    let commands = server.admin().get("/projects/p/commands").await.data(200)["commands"].clone();
    assert_eq!((commands.as_array().unwrap().len(), &commands[0]["command_id"]), (1, &output["command_id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ended_while_no_server_lived_has_its_step_completed() {
    let (ground, server, out) = ground().await;
    server.admin().post("/projects", json!({"id": "p"})).await.data(201);
    let workspace = server.admin().get("/projects/p").await.data(200)["workspace"].as_str().unwrap().to_owned();
    let file = |name: &str| Path::new(&workspace).join(name);
    let script = "echo run >> runs; while ! test -e go; do sleep 0.02; done; echo done; touch done";
    let command = step("a", "command.run", json!({"project_id": "p", "script": script}));
    let id = run(&server.admin(), json!([command, call(&out, "b", "/b")])).await;
    eventually("the command", async || file("runs").exists().then_some(())).await;
    server.kill().await;
    std::fs::write(file("go"), "").unwrap();
    eventually("its end", async || file("done").exists().then_some(())).await;
    let server = Server::start(&ground, &[REACHABLE]).await;
    let saga = reaches(&server.admin(), &id, "completed").await;
    assert_eq!(of(&saga, "a")["output"]["stdout_tail"], "done\n");
    assert_eq!((std::fs::read_to_string(file("runs")).unwrap().as_str(), out.to("/b").len()), ("run\n", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_slept_through_a_kill_wakes() {
    let (ground, server, out) = ground().await;
    let sleep = |name: &str, duration: &str| step(name, "wait.sleep", json!({"duration": duration}));
    let short = run(&server.admin(), json!([sleep("s", "3s"), call(&out, "b", "/b")])).await;
    let long = run(&server.admin(), json!([sleep("s", "1h"), call(&out, "c", "/c")])).await;
    for id in [&short, &long] {
        step_reaches(&server.admin(), id, "s", "waiting").await;
    }
    let server = again(&ground, server).await;
    reaches(&server.admin(), &short, "completed").await;
    assert_eq!((out.to("/b").len(), &show(&server.admin(), &long).await["status"]), (1, &json!("waiting")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_may_come_after_a_kill() {
    let (ground, server, out) = ground().await;
    let ask = step("ask", "approval.request", json!({"message": "well?"}));
    let id = run(&server.admin(), json!([ask, call(&out, "b", "/b")])).await;
    reaches(&server.admin(), &id, "waiting").await;
    let server = again(&ground, server).await;
    let admin = server.admin();
    assert_eq!(show(&admin, &id).await["status"], "waiting");
    admin.post(&format!("/sagas/{id}/approvals/ask"), json!({"decision": "approve"})).await.data(200);
    reaches(&admin, &id, "completed").await;
    assert_eq!(out.to("/b").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_gets_to_its_end_however_often_its_process_is_killed() {
    let (ground, mut server, out) = ground().await;
    let steps: Vec<_> = (0..24).map(|n| call(&out, &format!("s{n}"), &format!("/slow/20/{n}"))).collect();
    let id = run(&server.admin(), json!(steps)).await;
    for reached in [1, 5, 6, 14] {
        out.received(&format!("/slow/20/{reached}"), 1).await;
        server = again(&ground, server).await;
    }
    let saga = until(&server.admin(), &id, "its end", |saga| saga["status"] == "completed").await;
    assert_eq!(statuses(&saga), ["completed"; 24]);
    let mut keys = Vec::new();
    for n in 0..24 {
        keys.push(out.key(&format!("/slow/20/{n}")));
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 24);
    // A kill repeats the step under way at most, never one that was done.
    let mut order = out.order();
    order.dedup();
    assert_eq!(order, (0..24).map(|n| format!("/slow/20/{n}")).collect::<Vec<_>>());
    let events = server.admin().listen(&format!("/sagas/{id}/events?after=0")).await.rest().await;
    let completed = events.iter().filter(|event| event.name == "step" && event.data["status"] == "completed");
    assert_eq!((completed.count(), events.last().unwrap().is_last()), (24, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_was_answered_for_is_there_after_a_kill() {
    let (ground, mut server, out) = ground().await;
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(run(&server.admin(), json!([call(&out, "a", &format!("/{n}"))])).await);
        server = again(&ground, server).await;
    }
    for (n, id) in ids.iter().enumerate() {
        reaches(&server.admin(), id, "completed").await;
        out.key(&format!("/{n}"));
    }
}

//! Steps of sagas that begin pipelines again and wait for them: once, whatever dies meanwhile.

use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{circuit, imported};
use crate::{
    jobs::and,
    sagas::{Stage, noop, of, reaches, refused_at, retried, run, saga, step, step_reaches},
    support::{Ground, Odd, Server, TestApp, Woodpecker, eventually},
};

const POST: &str = "POST /api/repos/40/pipelines/2";

async fn stage_on(ci: &Woodpecker) -> Stage {
    let stage = Stage::with(&ci.settings()).await;
    stage.app.project("p").await;
    imported(stage.app.db(), "p", "team/p").await;
    stage
}

async fn server_on(ci: &Woodpecker) -> (Arc<Ground>, Server) {
    let ground = Ground::new().await;
    let server = Server::start(&ground, &ci.settings()).await;
    server.admin().post("/projects", json!({"id": "p"})).await.data(201);
    imported(&ground.db, "p", "team/p").await;
    (ground, server)
}

async fn again(ci: &Woodpecker, ground: &Arc<Ground>, server: Server) -> Server {
    server.kill().await;
    Server::start(ground, &ci.settings()).await
}

fn retry(number: i64) -> Value {
    step("retry", "pipeline.retry", json!({"project_id": "p", "number": number}))
}

fn wait(number: Value) -> Value {
    step("wait", "pipeline.wait", json!({"project_id": "p", "number": number}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_begins_a_pipeline_again_and_waits_for_its_end() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    let id = stage.run(json!([retry(2), wait(json!("${steps.retry.output.number}"))])).await;
    let saga = stage.step_reaches(&id, "retry", "completed").await;
    assert_eq!(of(&saga, "retry")["output"], json!({"number": 4, "status": "pending"}));
    for status in ["pending", "running", "blocked"] {
        let asked = ci.asked("GET /api/repos/40/pipelines/4");
        ci.set("team/p", 4, status);
        eventually("two more looks", async || (ci.asked("GET /api/repos/40/pipelines/4") > asked + 1).then_some(()))
            .await;
        assert_eq!(of(&stage.show(&id).await, "wait")["status"], "running", "{status}");
    }
    ci.set("team/p", 4, "success");
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(of(&saga, "wait")["output"], json!({"number": 4, "status": "success"}));
    assert_eq!(ci.restarts("team/p", 2), [4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_end_fails_the_wait_for_good() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    for status in ["failure", "error", "killed", "declined", "skipped", "canceled"] {
        ci.set("team/p", 3, status);
        let id = stage.run(json!([wait(json!(3))])).await;
        let saga = stage.reaches(&id, "failed").await;
        let failed = of(&saga, "wait");
        let wanted = json!(format!("pipeline 3 ended: {status}"));
        assert_eq!((&failed["error"], &failed["retry_count"]), (&wanted, &json!(0)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_retry_helps_fails_at_once() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    let fails = async |step: Value, name: &str, said: &str| {
        let id = stage.run(json!([step])).await;
        let saga = stage.reaches(&id, "failed").await;
        let (error, retries) = (of(&saga, name)["error"].as_str().unwrap(), &of(&saga, name)["retry_count"]);
        assert!(error.contains(said) && *retries == 0, "{saga}");
    };
    fails(retry(77), "retry", "pipeline not found").await;
    fails(wait(json!(77)), "wait", "pipeline not found").await;
    ci.set("team/p", 1, "running");
    fails(retry(1), "retry", "still running").await;
    stage.app.project("q").await;
    fails(and(retry(1), json!({"config": {"project_id": "q", "number": 1}})), "retry", "not imported").await;
    fails(and(retry(1), json!({"config": {"project_id": "none", "number": 1}})), "retry", "project not found").await;
    ci.has_token("another");
    fails(retry(2), "retry", "RDEV_WOODPECKER_TOKEN").await;
    fails(wait(json!(2)), "wait", "RDEV_WOODPECKER_TOKEN").await;
    assert_eq!(ci.asked("POST "), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_cannot_be_is_refused_when_the_saga_is_made() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    for action in ["pipeline.retry", "pipeline.wait"] {
        for number in [json!(0), json!(-1), json!(1.5), json!("x"), Value::Null] {
            let config = json!({"project_id": "p", "number": number});
            let refused = stage.admin().post("/sagas", saga(json!([step("a", action, config)]))).await;
            refused_at(&refused, &["steps[0].config.number"]);
        }
        let refused = stage.admin().post("/sagas", saga(json!([step("a", action, json!({"number": "7"}))]))).await;
        refused_at(&refused, &["steps[0].config.project_id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ci_server_such_a_saga_is_refused_and_an_old_one_fails() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    let steps = json!([step("s", "wait.sleep", json!({"duration": "1h"})), retried(retry(1), 3)]);
    let id = stage.run(steps).await;
    stage.reaches(&id, "waiting").await;
    let Stage { app, .. } = stage;
    let stage = Stage::around(app.restart(&[]).await).await;
    stage.app.advance(TimeDelta::minutes(61));
    let saga_then = stage.reaches(&id, "failed").await;
    assert!(of(&saga_then, "retry")["error"].as_str().unwrap().contains("RDEV_WOODPECKER_URL"), "{saga_then}");
    for one in [retry(1), wait(json!(1))] {
        let refused = stage.admin().post("/sagas", saga(json!([one]))).await;
        refused_at(&refused, &["steps[0].action"]);
        assert!(refused.text.contains("RDEV_WOODPECKER_URL"), "{}", refused.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_is_asked_again_by_policy_and_no_pipeline_is_begun_twice() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    ci.plan("POST", "/pipelines/2", Odd::DoneBut(502), 1);
    let id = stage.run(json!([retry(2)])).await;
    let saga = stage.reaches(&id, "completed").await;
    let done = of(&saga, "retry");
    assert_eq!((&done["output"]["number"], &done["retry_count"]), (&json!(4), &json!(1)));
    assert_eq!((ci.restarts("team/p", 2), ci.asked(POST)), (vec![4], 1));
    ci.plan("POST", "/pipelines/2", Odd::Says(500, "oh".into()), 1);
    let id = stage.run(json!([retry(2)])).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(of(&saga, "retry")["output"]["number"], 5, "that of before is not taken for this one");
    assert_eq!(ci.restarts("team/p", 2), [4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_nobody_heard_of_is_a_persons_to_judge_where_it_must_not_be_repeated() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    ci.plan("POST", "/pipelines/2", Odd::DoneBut(502), 1);
    let id = stage.run(json!([and(retry(2), json!({"idempotent": false}))])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(of(&saga, "retry")["status"], "unknown");
    stage.tell(&id, "steps/retry/retry", json!({})).await.data(200);
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!((&of(&saga, "retry")["output"]["number"], ci.asked(POST)), (&json!(4), 1), "it was found");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_puts_a_step_off_and_that_uses_up_no_retry() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    ci.plan("GET", "", Odd::Says(500, "oh".into()), usize::MAX);
    let ids = [stage.run(json!([retried(retry(2), 2)])).await, stage.run(json!([retried(wait(json!(3)), 2)])).await];
    eventually("the breaker to open", async || (circuit(&stage.app).await["state"] == "open").then_some(())).await;
    for (id, name) in ids.iter().zip(["retry", "wait"]) {
        let saga = stage.step_reaches(id, name, "retrying").await;
        assert!(of(&saga, name)["retry_count"].as_u64() <= Some(2), "{saga}");
    }
    ci.set("team/p", 3, "success");
    ci.behaves();
    let asked = ci.asked("GET ");
    eventually("both ends", async || {
        stage.app.advance(TimeDelta::seconds(1));
        let mut statuses = Vec::new();
        for id in &ids {
            statuses.push(stage.show(id).await["status"].clone());
        }
        statuses.iter().all(|status| status == "completed").then_some(())
    })
    .await;
    assert!(ci.asked("GET ") > asked);
    assert_eq!(ci.restarts("team/p", 2), [4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_saga_waits_for_no_pipeline() {
    let ci = Woodpecker::with_failures().await;
    let stage = stage_on(&ci).await;
    ci.set("team/p", 3, "running");
    let id = stage.run(json!([wait(json!(3)), noop("b", json!(1))])).await;
    let looks = "GET /api/repos/40/pipelines/3";
    eventually("a look", async || (ci.asked(looks) > 0).then_some(())).await;
    stage.tell(&id, "cancel", json!({"compensate": false})).await.data(200);
    stage.app.advance(TimeDelta::seconds(31));
    let saga = stage.reaches(&id, "cancelled").await;
    assert_eq!(of(&saga, "b")["status"], "cancelled");
    let app: &TestApp = &stage.app;
    let seen = ci.asked(looks);
    ci.set("team/p", 3, "success");
    // Another wait comes and goes meanwhile, and nobody looks on for the first.
    let other = stage.run(json!([wait(json!(2))])).await;
    stage.reaches(&other, "failed").await;
    assert_eq!(ci.asked(looks), seen);
    assert_eq!(app.admin().get(&format!("/sagas/{id}")).await.data(200)["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_goes_on_after_a_kill() {
    let ci = Woodpecker::with_failures().await;
    let (ground, server) = server_on(&ci).await;
    ci.set("team/p", 3, "running");
    let id = run(&server.admin(), json!([wait(json!(3)), noop("b", json!(1))])).await;
    step_reaches(&server.admin(), &id, "wait", "running").await;
    eventually("a look", async || (ci.asked("GET /api/repos/40/pipelines/3") > 0).then_some(())).await;
    let server = again(&ci, &ground, server).await;
    ci.set("team/p", 3, "success");
    let saga = reaches(&server.admin(), &id, "completed").await;
    let done = of(&saga, "wait");
    assert_eq!((&done["output"]["status"], &done["retry_count"]), (&json!("success"), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_was_done_is_found_after_a_kill() {
    let ci = Woodpecker::with_failures().await;
    let (ground, server) = server_on(&ci).await;
    ci.plan("POST", "/pipelines/2", Odd::DoneSilent, 1);
    let id = run(&server.admin(), json!([retry(2)])).await;
    eventually("the restart", async || (ci.restarts("team/p", 2) == [4]).then_some(())).await;
    // Somebody else's pipelines come in between.
    ci.add("team/p", "running");
    let server = again(&ci, &ground, server).await;
    let saga = reaches(&server.admin(), &id, "completed").await;
    assert_eq!(of(&saga, "retry")["output"]["number"], 4);
    assert_eq!((ci.restarts("team/p", 2), ci.asked(POST)), (vec![4], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_never_arrived_is_asked_for_again_after_a_kill() {
    let ci = Woodpecker::with_failures().await;
    let (ground, server) = server_on(&ci).await;
    ci.plan("POST", "/pipelines/2", Odd::Silent, 1);
    let id = run(&server.admin(), json!([retry(2)])).await;
    eventually("the request", async || (ci.asked(POST) == 1).then_some(())).await;
    let server = again(&ci, &ground, server).await;
    let saga = reaches(&server.admin(), &id, "completed").await;
    assert_eq!(of(&saga, "retry")["output"]["number"], 4);
    assert_eq!((ci.restarts("team/p", 2), ci.asked(POST)), (vec![4], 2));
}

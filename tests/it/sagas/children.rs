//! Sagas that start sagas.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::{Stage, noop, of, retried, saga, statuses, step, until};
use crate::{jobs::and, support::eventually};

fn start(name: &str, config: Value) -> Value {
    step(name, "saga.start", config)
}

/// Runs a saga whose one step starts a child with these steps. Answers both ids.
async fn with_child(stage: &Stage, steps: Value, more: Value) -> (String, String) {
    let parent = stage.run(json!([start("child", and(json!({"steps": steps}), more))])).await;
    let child = eventually("the child", async || {
        let all = stage.admin().get("/sagas").await.data(200);
        let found = all.as_array().unwrap().iter().find(|one| one["id"] != parent).cloned();
        found.map(|one| one["id"].as_str().unwrap().to_owned())
    });
    let child = child.await;
    (parent, child)
}

async fn count(stage: &Stage) -> usize {
    stage.admin().get("/sagas?limit=200").await.data(200).as_array().unwrap().len()
}

async fn define(stage: &Stage, name: &str, steps: Value) -> u16 {
    let body = json!({"steps": steps}).to_string();
    stage.admin().send(Method::PUT, &format!("/saga-definitions/{name}"), Some(body), &[]).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_of_a_child_is_what_its_step_gives() {
    let stage = Stage::new().await;
    let child = json!([noop("x", json!({"for": "${vars.who}"})), noop("y", json!("${steps.x.output.for}!"))]);
    let steps = json!([
        noop("a", json!({"name": "me"})),
        start("child", json!({"steps": child, "vars": {"who": "${steps.a.output.name}"}})),
        noop("b", json!("${steps.child.output.outputs.y}")),
    ]);
    let id = stage.run(steps).await;
    let saga = stage.reaches(&id, "completed").await;
    let output = &of(&saga, "child")["output"];
    assert_eq!(output["outputs"], json!({"x": {"for": "me"}, "y": "me!"}));
    assert_eq!(saga["outputs"]["b"], "me!");
    let child = stage.show(output["saga_id"].as_str().unwrap()).await;
    assert_eq!((&child["status"], &child["outputs"]), (&json!("completed"), &output["outputs"]));
    assert_eq!(count(&stage).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_childs_steps_and_vars_are_its_own() {
    let stage = Stage::new().await;
    let child = json!([noop("x", json!("the child's")), noop("y", json!(["${steps.x.output}", "${vars.who}"]))]);
    let steps =
        json!([noop("x", json!("the parent's")), start("c", json!({"steps": child, "vars": {"who": "child"}}))]);
    let id = stage.make(and(saga(steps), json!({"vars": {"who": "parent"}}))).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(of(&saga, "c")["output"]["outputs"]["y"], json!(["the child's", "child"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_may_come_from_a_definition() {
    let stage = Stage::new().await;
    assert_eq!(define(&stage, "greet", json!([noop("x", json!("hello ${vars.who}"))])).await, 201);
    let steps = json!([start("c", json!({"definition": "greet", "vars": {"who": "you"}}))]);
    let id = stage.run(steps).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(of(&saga, "c")["output"]["outputs"], json!({"x": "hello you"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_fails_fails_the_step_that_waits_for_it() {
    let stage = Stage::new().await;
    let child = start("c", json!({"steps": [stage.call("x", "/status/409")]}));
    let id = stage.run(json!([retried(child, 0), stage.call("d", "/d")])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(statuses(&saga), ["failed", "pending"]);
    assert!(of(&saga, "c")["error"].is_string(), "{saga}");
    assert_eq!((count(&stage).await, stage.out.order()), (2, vec!["/status/409".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_nobody_waits_for_goes_its_own_way() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/x");
    let (parent, child) = with_child(&stage, json!([stage.call("x", "/x")]), json!({"wait": false})).await;
    let saga = stage.reaches(&parent, "completed").await;
    assert_eq!(of(&saga, "child")["output"]["saga_id"], child);
    stage.reaches(&child, "running").await;
    gate.open();
    stage.reaches(&child, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parent_waits_where_nothing_else_is_said() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/x");
    let (parent, child) = with_child(&stage, json!([stage.call("x", "/x")]), json!({})).await;
    stage.out.received("/x", 1).await;
    stage.step_reaches(&child, "x", "running").await;
    let status = stage.show(&parent).await["status"].clone();
    assert!(status == "running" || status == "waiting", "{status}");
    gate.open();
    stage.reaches(&parent, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_rolled_back_rolls_its_child_back() {
    let stage = Stage::new().await;
    let (parent, child) = with_child(&stage, json!([stage.undone("x"), stage.undone("y")]), json!({})).await;
    stage.reaches(&parent, "completed").await;
    stage.tell(&parent, "rollback", json!({})).await.data(200);
    let saga = stage.reaches(&parent, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated"]);
    stage.reaches(&child, "compensated").await;
    assert_eq!(stage.out.order(), ["/x", "/y", "/undo/y", "/undo/x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_rolled_back_when_a_later_step_of_its_parent_fails() {
    let stage = Stage::new().await;
    let steps =
        json!(
            [stage.undone("a"), start("c", json!({"steps": [stage.undone("x")]})), stage.call("bad", "/status/409"),]
        );
    let id = stage.make(and(saga(steps), json!({"on_failure": "compensate"}))).await;
    stage.reaches(&id, "compensated").await;
    assert_eq!(stage.out.order(), ["/a", "/x", "/status/409", "/undo/x", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_under_way_is_rolled_back_with_its_parent() {
    let stage = Stage::new().await;
    let child = json!([stage.undone("x"), step("ask", "approval.request", json!({"message": "well?"}))]);
    let (parent, child) = with_child(&stage, child, json!({"wait": false})).await;
    stage.reaches(&parent, "completed").await;
    stage.reaches(&child, "waiting").await;
    stage.tell(&parent, "rollback", json!({})).await.data(200);
    stage.reaches(&parent, "compensated").await;
    stage.reaches(&child, "compensated").await;
    assert_eq!(stage.out.order(), ["/x", "/undo/x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_belongs_to_its_parents_project() {
    let stage = Stage::new().await;
    stage.app.project("p").await;
    let steps = json!([start("c", json!({"steps": [noop("x", json!(1))]}))]);
    let id = stage.make(and(saga(steps), json!({"project_id": "p"}))).await;
    let saga = stage.reaches(&id, "completed").await;
    let child = stage.show(of(&saga, "c")["output"]["saga_id"].as_str().unwrap()).await;
    assert_eq!((&child["project_id"], &child["created_by"]), (&json!("p"), &saga["created_by"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_starts_itself_ends_with_a_failure() {
    let stage = Stage::new().await;
    assert_eq!(define(&stage, "again", json!([noop("x", json!(1))])).await, 201);
    let itself = retried(start("c", json!({"definition": "again"})), 0);
    assert_eq!(define(&stage, "again", json!([itself])).await, 200);
    let id = stage.make(json!({"name": "first", "definition": "again"})).await;
    let saga = stage.reaches(&id, "failed").await;
    assert!(of(&saga, "c")["error"].is_string(), "{saga}");
    // None is left that goes on making more.
    let all = stage.admin().get("/sagas?limit=200").await;
    assert_eq!(all.cursor(), None);
    for one in all.data(200).as_array().unwrap() {
        let id = one["id"].as_str().unwrap();
        until(&stage.admin(), id, "the end", |saga| saga["status"] == "failed").await;
    }
    let after = count(&stage).await;
    tokio::time::timeout(Duration::from_secs(30), stage.run(json!([noop("a", json!(1))]))).await.unwrap();
    assert_eq!(count(&stage).await, after + 1);
}

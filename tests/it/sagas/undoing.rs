//! Compensation: what is undone, in which order, under which key, and what becomes of a saga
//! that cannot be undone.

use serde_json::{Value, json};

use super::{Stage, after, of, retried, saga, statuses};
use crate::{
    jobs::and,
    support::{Answer, eventually},
};

fn failing(stage: &Stage) -> Value {
    stage.call("bad", "/status/409")
}

fn compensating(steps: Value) -> Value {
    and(saga(steps), json!({"on_failure": "compensate"}))
}

/// A saga that has failed after these steps.
async fn failed_after(stage: &Stage, steps: &[Value]) -> String {
    let steps: Vec<_> = steps.iter().cloned().chain([failing(stage)]).collect();
    let id = stage.run(json!(steps)).await;
    stage.reaches(&id, "failed").await;
    id
}

async fn roll_back(stage: &Stage, id: &str) -> Value {
    stage.tell(id, "rollback", json!({})).await.data(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_undoes_what_was_done_where_the_saga_says_so() {
    let stage = Stage::new().await;
    let steps = json!([stage.undone("a"), stage.undone("b"), failing(&stage), stage.undone("d")]);
    let id = stage.make(compensating(steps)).await;
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga)[..3], ["compensated", "compensated", "failed"]);
    assert!(saga["completed_at"].is_string() && saga["error"].is_string(), "{saga}");
    assert_eq!(of(&saga, "a")["compensation"]["attempts"], 1);
    assert_eq!(stage.out.order(), ["/a", "/b", "/status/409", "/undo/b", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_saga_stays_as_it_is_until_it_is_rolled_back() {
    let stage = Stage::new().await;
    let id = failed_after(&stage, &[stage.undone("a")]).await;
    assert_eq!(stage.out.order(), ["/a", "/status/409"]);
    let told = roll_back(&stage, &id).await;
    assert!(["compensating", "compensated"].contains(&told["status"].as_str().unwrap()), "{told}");
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated", "failed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_saga_can_be_rolled_back() {
    let stage = Stage::new().await;
    let id = stage.run(json!([stage.undone("a"), stage.call("b", "/b"), stage.undone("c")])).await;
    stage.reaches(&id, "completed").await;
    roll_back(&stage, &id).await;
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!((&of(&saga, "a")["status"], &of(&saga, "c")["status"]), (&json!("compensated"), &json!("compensated")));
    assert_eq!(stage.out.order(), ["/a", "/b", "/c", "/undo/c", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_saga_can_be_rolled_back() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/b");
    let id = stage.run(json!([stage.undone("a"), stage.undone("b"), stage.undone("c")])).await;
    stage.out.received("/b", 1).await;
    roll_back(&stage, &id).await;
    gate.open();
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga)[..2], ["compensated", "compensated"]);
    assert_eq!(stage.out.order(), ["/a", "/b", "/undo/b", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_undone_when_all_that_depended_on_it_are() {
    let stage = Stage::new().await;
    let steps = json!([
        stage.undone("a"),
        after(&["a"], stage.undone("b")),
        after(&["a"], stage.undone("c")),
        after(&["b", "c"], stage.undone("d")),
        stage.undone("x"),
        after(&["x"], stage.undone("y")),
    ]);
    let id = stage.run(steps).await;
    stage.reaches(&id, "completed").await;
    let (b, d) = (stage.out.hold("/undo/b"), stage.out.hold("/undo/d"));
    roll_back(&stage, &id).await;
    // One branch is at its beginning, the other one goes through.
    stage.out.received("/undo/d", 1).await;
    stage.out.received("/undo/x", 1).await;
    for early in ["/undo/a", "/undo/b", "/undo/c"] {
        assert_eq!(stage.out.to(early).len(), 0, "{early}");
    }
    d.open();
    stage.out.received("/undo/b", 1).await;
    stage.step_reaches(&id, "c", "compensated").await;
    assert_eq!((stage.out.to("/undo/a").len(), &stage.show(&id).await["status"]), (0, &json!("compensating")));
    b.open();
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated"; 6]);
    let order = stage.out.order();
    let place = |path: &str| order.iter().position(|asked| asked == path).unwrap();
    assert!(place("/undo/y") < place("/undo/x"), "{order:?}");
    assert_eq!(stage.out.requests().len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_compensation_does_not_stand_between_others() {
    let stage = Stage::new().await;
    let id = failed_after(&stage, &[stage.undone("a"), stage.call("b", "/b"), stage.undone("c")]).await;
    roll_back(&stage, &id).await;
    stage.reaches(&id, "compensated").await;
    assert_eq!(stage.out.order()[4..], ["/undo/c", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_has_a_key_of_its_own_and_knows_what_its_step_gave() {
    let stage = Stage::new().await;
    let undo = json!({"method": "DELETE",
        "url": stage.out.at("/fail/2/undo/${output.body.body.id}"),
        "body": {"id": "${output.body.body.id}", "who": "${vars.who}", "first": "${steps.first.output.n}"}});
    let mut call = stage.call("a", "/echo/a");
    call["config"]["body"] = json!({"id": 7});
    let call = and(call, json!({"compensate": "http.request", "compensate_config": undo}));
    let steps = json!([super::noop("first", json!({"n": 1})), call]);
    let id = stage.make(and(saga(steps), json!({"vars": {"who": "me"}}))).await;
    stage.reaches(&id, "completed").await;
    roll_back(&stage, &id).await;
    let saga = stage.reaches(&id, "compensated").await;
    let tries = stage.out.to("/fail/2/undo/7");
    assert_eq!((tries.len(), &of(&saga, "a")["compensation"]["attempts"]), (3, &json!(3)));
    let keys = (stage.out.key("/fail/2/undo/7"), stage.out.key("/echo/a"));
    assert!(!keys.0.is_empty() && keys.0 != keys.1, "{keys:?}");
    for request in tries {
        assert_eq!((request.method.as_str(), request.header("x-rdev-compensation")), ("DELETE", Some("true")));
        assert_eq!(request.json(), json!({"id": 7, "who": "me", "first": 1}));
    }
    assert_eq!(stage.out.to("/echo/a")[0].header("x-rdev-compensation"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_without_a_config_gets_its_steps() {
    let stage = Stage::new().await;
    let call = and(stage.call("a", "/a"), json!({"compensate": "http.request"}));
    let id = failed_after(&stage, &[call]).await;
    roll_back(&stage, &id).await;
    stage.reaches(&id, "compensated").await;
    let marks: Vec<_> =
        stage.out.to("/a").iter().map(|one| one.header("x-rdev-compensation").map(str::to_owned)).collect();
    assert_eq!(marks, [None, Some("true".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_that_cannot_be_done_leaves_its_saga_stuck() {
    let stage = Stage::new().await;
    stage.out.always("/undo/b", Answer::status(500));
    let id = failed_after(&stage, &[stage.undone("a"), retried(stage.undone("b"), 2)]).await;
    roll_back(&stage, &id).await;
    let saga = stage.reaches(&id, "stuck").await;
    assert_eq!(statuses(&saga)[..2], ["completed", "compensation_failed"]);
    let compensation = &of(&saga, "b")["compensation"];
    assert_eq!(compensation["attempts"], 3);
    assert!(compensation["error"].as_str().is_some_and(|error| error.contains("500")), "{compensation}");
    assert!(compensation["status"].is_string() && saga["error"].is_string(), "{saga}");
    assert_eq!((stage.out.to("/undo/b").len(), stage.out.to("/undo/a").len()), (3, 0));
    stage.out.key("/undo/b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_saga_can_be_rolled_back_once_more() {
    let stage = Stage::new().await;
    stage.out.always("/undo/b", Answer::status(409));
    let id = stage.make(compensating(json!([stage.undone("a"), stage.undone("b"), failing(&stage)]))).await;
    stage.reaches(&id, "stuck").await;
    assert_eq!(stage.out.to("/undo/b").len(), 1);
    stage.out.always("/undo/b", Answer::status(200));
    roll_back(&stage, &id).await;
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated", "compensated", "failed"]);
    assert_eq!((stage.out.to("/undo/b").len(), stage.out.to("/undo/a").len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_saga_is_given_up_by_an_admin_with_a_reason() {
    let stage = Stage::new().await;
    stage.out.always("/undo/a", Answer::status(409));
    let id = stage.make(compensating(json!([stage.undone("a"), failing(&stage)]))).await;
    stage.reaches(&id, "stuck").await;
    for body in [json!({}), json!({"reason": ""}), json!({"reason": null})] {
        let reply = stage.tell(&id, "abandon", body).await;
        assert_eq!(reply.status, 400, "{}", reply.text);
    }
    let worker = stage.app.someone(&["projects:read", "projects:execute"]).await;
    let body = json!({"reason": "by hand"});
    worker.post(&format!("/sagas/{id}/abandon"), body.clone()).await.refusal(403, "FORBIDDEN");
    assert_eq!(stage.show(&id).await["status"], "stuck");
    assert_eq!(stage.tell(&id, "abandon", body.clone()).await.data(200)["status"], "cancelled");
    let error = stage.tell(&id, "abandon", body).await.refusal(409, "INVALID_STATE");
    assert_eq!(error["details"]["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_under_way_end_before_a_failed_saga_is_undone() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/slow-one");
    let steps = json!([
        stage.undone("a"),
        after(&["a"], and(stage.undone("b"), json!({"config": {"method": "POST", "url": stage.out.at("/slow-one")}}))),
        after(&["b"], stage.undone("c")),
        after(&["a"], failing(&stage)),
    ]);
    let id = stage.make(compensating(steps)).await;
    stage.step_reaches(&id, "bad", "failed").await;
    stage.out.received("/slow-one", 1).await;
    gate.open();
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga)[..2], ["compensated", "compensated"]);
    assert_eq!(stage.out.to("/c").len() + stage.out.to("/undo/c").len(), 0);
    let order = stage.out.order();
    let undoing: Vec<_> = order.iter().filter(|path| path.starts_with("/undo/")).collect();
    assert_eq!(undoing, ["/undo/b", "/undo/a"]);
    eventually("nothing more", async || stage.out.open(&order).is_empty().then_some(())).await;
}

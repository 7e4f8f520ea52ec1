//! Cancelling: with and without undoing, in every state in which it may be done.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{Stage, after, noop, of, saga, statuses, step};
use crate::{
    jobs::and,
    support::{Answer, eventually},
};

async fn cancel(stage: &Stage, id: &str, body: Value) -> Value {
    stage.tell(id, "cancel", body).await.data(200)
}

/// The saga, when it has ended one way or the other.
async fn ended(stage: &Stage, id: &str) -> Value {
    let is_over = |saga: &Value| ["cancelled", "compensated"].contains(&saga["status"].as_str().unwrap());
    super::until(&stage.admin(), id, "the end", is_over).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_saga_is_undone_where_nothing_else_is_said() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/b");
    let id = stage.run(json!([stage.undone("a"), stage.undone("b"), stage.undone("c")])).await;
    stage.out.received("/b", 1).await;
    cancel(&stage, &id, json!({"reason": "changed my mind"})).await;
    gate.open();
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated", "compensated", "cancelled"]);
    assert_eq!(stage.out.order(), ["/a", "/b", "/undo/b", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_saga_is_left_as_it_is_where_that_is_asked_for() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/b");
    let id = stage.run(json!([stage.undone("a"), stage.undone("b"), stage.undone("c"), stage.undone("d")])).await;
    stage.out.received("/b", 1).await;
    let told = cancel(&stage, &id, json!({"compensate": false})).await;
    assert_eq!((&of(&told, "c")["status"], &of(&told, "d")["status"]), (&json!("cancelled"), &json!("cancelled")));
    gate.open();
    let saga = stage.reaches(&id, "cancelled").await;
    assert_eq!(statuses(&saga), ["completed", "completed", "cancelled", "cancelled"]);
    assert!(saga["completed_at"].is_string(), "{saga}");
    assert_eq!(stage.out.order(), ["/a", "/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_in_flight_gets_thirty_seconds_and_is_then_in_doubt() {
    let stage = Stage::new().await;
    let _never = stage.out.hold("/b");
    let id = stage.run(json!([stage.undone("a"), stage.undone("b"), stage.undone("c")])).await;
    stage.out.received("/b", 1).await;
    cancel(&stage, &id, json!({"compensate": false})).await;
    assert_eq!(stage.out.listener.under_way("/b"), 1);
    stage.app.advance(TimeDelta::seconds(20));
    assert_eq!(of(&stage.show(&id).await, "b")["status"], "running");
    stage.app.advance(TimeDelta::seconds(11));
    let saga = stage.reaches(&id, "cancelled").await;
    assert_eq!(statuses(&saga), ["completed", "unknown", "cancelled"]);
    eventually("its departure", async || (stage.out.listener.cancelled("/b") == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_was_cut_off_by_a_cancel_is_undone_with_the_rest() {
    let stage = Stage::new().await;
    let _never = stage.out.hold("/b");
    let id = stage.run(json!([stage.undone("a"), stage.undone("b")])).await;
    stage.out.received("/b", 1).await;
    cancel(&stage, &id, json!({"compensate": true})).await;
    stage.app.advance(TimeDelta::seconds(31));
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated", "compensated"]);
    assert_eq!(stage.out.order(), ["/a", "/b", "/undo/b", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_turn_has_not_come_ends_at_once() {
    for body in [json!({}), json!({"compensate": false})] {
        let stage = Stage::new().await;
        let gate = stage.out.hold("/first");
        let keyed = |steps: Value| and(saga(steps), json!({"concurrency_key": "k"}));
        let first = stage.make(keyed(json!([stage.call("a", "/first")]))).await;
        let second = stage.make(keyed(json!([stage.undone("a"), stage.undone("b")]))).await;
        let third = stage.make(keyed(json!([stage.call("a", "/third")]))).await;
        assert_eq!(stage.show(&second).await["status"], "pending");
        cancel(&stage, &second, body).await;
        let saga = ended(&stage, &second).await;
        assert_eq!(statuses(&saga), ["cancelled", "cancelled"]);
        gate.open();
        stage.reaches(&first, "completed").await;
        stage.reaches(&third, "completed").await;
        assert_eq!(stage.out.order(), ["/first", "/third"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_is_no_reason_to_wait() {
    for (body, status) in [(json!({}), "compensated"), (json!({"compensate": false}), "cancelled")] {
        let stage = Stage::new().await;
        let sleep = step("sleep", "wait.sleep", json!({"duration": "10h"}));
        let id = stage.run(json!([stage.undone("a"), sleep, stage.undone("c")])).await;
        stage.reaches(&id, "waiting").await;
        let started = Instant::now();
        cancel(&stage, &id, body).await;
        let saga = stage.reaches(&id, status).await;
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert_eq!(of(&saga, "c")["status"], "cancelled");
        assert_eq!(stage.out.to("/undo/a").len(), usize::from(status == "compensated"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_waits_for_its_retry_is_not_tried_again() {
    let stage = Stage::new().await;
    stage.out.always("/b", Answer::status(503).header("retry-after", "60"));
    let id = stage.run(json!([stage.undone("a"), stage.undone("b")])).await;
    stage.step_reaches(&id, "b", "retrying").await;
    cancel(&stage, &id, json!({"compensate": false})).await;
    stage.reaches(&id, "cancelled").await;
    stage.app.advance(TimeDelta::minutes(2));
    let other = stage.run(json!([noop("a", json!(1))])).await;
    stage.reaches(&other, "completed").await;
    assert_eq!(stage.out.to("/b").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_saga_is_cancelled_with_its_steps() {
    for (body, status) in [(json!({}), "compensated"), (json!({"compensate": false}), "cancelled")] {
        let stage = Stage::new().await;
        let id = stage.run(json!([stage.undone("a"), stage.call("b", "/status/409"), stage.undone("c")])).await;
        stage.reaches(&id, "failed").await;
        cancel(&stage, &id, body).await;
        let saga = stage.reaches(&id, status).await;
        let first = if status == "cancelled" { "completed" } else { "compensated" };
        assert_eq!(statuses(&saga), [first, "failed", "cancelled"]);
        stage.tell(&id, "retry", json!({})).await.refusal(409, "INVALID_STATE");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_saga_is_cancelled_and_left_as_it_is() {
    let stage = Stage::new().await;
    stage.out.always("/undo/b", Answer::status(409));
    let steps = json!([stage.undone("a"), stage.undone("b"), stage.call("c", "/status/409")]);
    let id = stage.make(and(saga(steps), json!({"on_failure": "compensate"}))).await;
    stage.reaches(&id, "stuck").await;
    cancel(&stage, &id, json!({"compensate": false})).await;
    stage.reaches(&id, "cancelled").await;
    assert_eq!(stage.out.to("/undo/a").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_branch_is_stopped() {
    let stage = Stage::new().await;
    let gates = ["/a", "/b"].map(|path| stage.out.hold(path));
    let steps = json!([
        stage.undone("a"),
        stage.undone("b"),
        after(&["a"], stage.undone("c")),
        after(&["b"], stage.undone("d")),
        after(&["c", "d"], stage.undone("e")),
    ]);
    let id = stage.run(steps).await;
    for path in ["/a", "/b"] {
        stage.out.received(path, 1).await;
    }
    cancel(&stage, &id, json!({})).await;
    gates.iter().for_each(crate::support::Gate::open);
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated", "compensated", "cancelled", "cancelled", "cancelled"]);
    assert_eq!(stage.out.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_without_a_body_is_one_with_defaults() {
    let stage = Stage::new().await;
    let id = stage.run(json!([stage.undone("a"), stage.call("b", "/status/409")])).await;
    stage.reaches(&id, "failed").await;
    let path = format!("/sagas/{id}/cancel");
    stage.admin().send(http::Method::POST, &path, None, &[]).await.data(200);
    stage.reaches(&id, "compensated").await;
}

//! Steps of which nobody knows whether they had their effect, and what a person may decide.

use serde_json::{Value, json};

use super::{Stage, of, retried, statuses, step};
use crate::{
    jobs::and,
    support::{Answer, sink::Refusing},
};

/// A step that must not be repeated unasked, and whose first call is never answered.
fn doubtful(stage: &Stage) -> Value {
    stage.out.then("/b", Answer::hangs());
    and(stage.undone("b"), json!({"idempotent": false, "timeout": "300ms"}))
}

/// A saga whose step `b` is in doubt.
async fn in_doubt(stage: &Stage) -> String {
    let id = stage.run(json!([stage.undone("a"), doubtful(stage), stage.call("c", "/c")])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(statuses(&saga), ["completed", "unknown", "pending"]);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_cut_off_of_what_must_not_be_repeated_is_in_doubt() {
    let stage = Stage::new().await;
    let id = in_doubt(&stage).await;
    let saga = stage.show(&id).await;
    let b = of(&saga, "b");
    assert_eq!((&b["idempotent"], stage.out.to("/b").len()), (&json!(false), 1));
    assert!(b["error"].is_string() && saga["error"].is_string(), "{saga}");
    assert_eq!(stage.out.to("/c").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_in_doubt_is_retried_under_the_same_key() {
    for what in ["retry", "steps/b/retry"] {
        let stage = Stage::new().await;
        let id = in_doubt(&stage).await;
        let told = stage.tell(&id, what, json!({})).await.data(200);
        assert_ne!(told["status"], "failed", "{what}");
        let saga = stage.reaches(&id, "completed").await;
        assert_eq!(statuses(&saga), ["completed"; 3]);
        assert_eq!(stage.out.to("/b").len(), 2, "{what}");
        stage.out.key("/b");
        assert_eq!(stage.out.to("/a").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_definitely_failed_is_retried_under_a_new_key() {
    let stage = Stage::new().await;
    stage.out.then("/b", Answer::status(409)).then("/b", Answer::status(500));
    let step = and(stage.call("b", "/b"), json!({"idempotent": false}));
    let id = stage.run(json!([stage.call("a", "/a"), retried(step, 1)])).await;
    stage.reaches(&id, "failed").await;
    stage.tell(&id, "steps/b/retry", json!({})).await.data(200);
    let saga = stage.reaches(&id, "completed").await;
    let keys = stage.out.keys("/b");
    assert_eq!((keys.len(), &keys[1]), (3, &keys[2]), "its retries have one key again");
    assert_ne!(keys[0], keys[1]);
    assert_eq!(of(&saga, "b").get("error"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_in_doubt_that_is_skipped_has_nothing_to_undo() {
    let stage = Stage::new().await;
    let id = in_doubt(&stage).await;
    stage.tell(&id, "steps/b/skip", json!({})).await.data(200);
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(statuses(&saga), ["completed", "skipped", "completed"]);
    stage.tell(&id, "rollback", json!({})).await.data(200);
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!((&of(&saga, "b")["status"], stage.out.to("/undo/b").len()), (&json!("skipped"), 0));
    assert_eq!(stage.out.to("/undo/a").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_in_doubt_is_undone_with_the_rest() {
    let stage = Stage::new().await;
    let id = in_doubt(&stage).await;
    stage.tell(&id, "rollback", json!({})).await.data(200);
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga)[..2], ["compensated", "compensated"]);
    assert_eq!(stage.out.order(), ["/a", "/b", "/undo/b", "/undo/a"]);
    assert_ne!(stage.out.key("/undo/b"), stage.out.key("/b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_failed_for_sure_is_not_undone() {
    let stage = Stage::new().await;
    stage.out.always("/b", Answer::status(422));
    let id = stage.run(json!([stage.undone("a"), stage.undone("b")])).await;
    stage.reaches(&id, "failed").await;
    stage.tell(&id, "rollback", json!({})).await.data(200);
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated", "failed"]);
    assert_eq!(stage.out.order(), ["/a", "/b", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_never_left_is_in_no_doubt() {
    let stage = Stage::new().await;
    let refusing = Refusing::new();
    let call = step("a", "http.request", json!({"method": "POST", "url": refusing.url}));
    let id = stage.run(json!([retried(and(call, json!({"idempotent": false})), 1)])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!((&of(&saga, "a")["status"], &of(&saga, "a")["retry_count"]), (&json!("failed"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_refuses_leaves_no_doubt() {
    let stage = Stage::new().await;
    stage.out.then("/a", Answer::status(503));
    let call = and(stage.call("a", "/a"), json!({"idempotent": false}));
    let id = stage.run(json!([call])).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!((stage.out.to("/a").len(), &of(&saga, "a")["retry_count"]), (2, &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_must_not_be_repeated_unasked_and_the_rest_may() {
    let stage = Stage::new().await;
    stage.app.project("p").await;
    let command = step("run", "command.run", json!({"project_id": "p", "args": ["true"]}));
    let told =
        and(step("told", "command.run", json!({"project_id": "p", "args": ["true"]})), json!({"idempotent": true}));
    let id = stage.run(json!([command, told, stage.call("call", "/a")])).await;
    let saga = stage.reaches(&id, "completed").await;
    let idempotent: Vec<_> = ["run", "told", "call"].iter().map(|name| of(&saga, name)["idempotent"].clone()).collect();
    assert_eq!(idempotent, [json!(false), json!(true), json!(true)]);
}

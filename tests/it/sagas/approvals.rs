//! Steps that a person decides.

use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{Stage, after, of, saga, statuses, step};
use crate::jobs::and;

fn asking(more: Value) -> Value {
    step("ask", "approval.request", and(json!({"message": "deploy?"}), more))
}

/// A saga that waits for an answer between two calls.
async fn asked(stage: &Stage, more: Value) -> String {
    let id = stage.run(json!([stage.undone("a"), asking(more), stage.call("c", "/c")])).await;
    let saga = stage.reaches(&id, "waiting").await;
    assert_eq!(statuses(&saga), ["completed", "waiting", "pending"]);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_lets_the_saga_go_on_and_says_who_gave_it() {
    let stage = Stage::new().await;
    let id = asked(&stage, json!({})).await;
    let (somebody, key) = stage.app.holder(json!({"name": "boss", "scopes": ["projects:execute"]})).await;
    let body = json!({"decision": "approve", "comment": "looks <fine>"});
    let told = somebody.post(&format!("/sagas/{id}/approvals/ask"), body).await.data(200);
    assert_eq!(of(&told, "ask")["status"], "completed");
    let saga = stage.reaches(&id, "completed").await;
    let output = json!({"decision": "approve", "by": key["id"], "comment": "looks <fine>"});
    assert_eq!(of(&saga, "ask")["output"], output);
    assert_eq!(stage.out.order(), ["/a", "/c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_approval_fails_its_step_without_retry() {
    let stage = Stage::new().await;
    let id = asked(&stage, json!({})).await;
    let body = json!({"decision": "reject", "comment": "not today"});
    stage.tell(&id, "approvals/ask", body).await.data(200);
    let saga = stage.reaches(&id, "failed").await;
    let ask = of(&saga, "ask");
    assert_eq!((&ask["status"], &ask["retry_count"]), (&json!("failed"), &json!(0)));
    assert!(ask["error"].is_string() && saga["error"].is_string(), "{saga}");
    assert_eq!(stage.out.to("/c").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_undoes_where_the_saga_says_so() {
    let stage = Stage::new().await;
    let steps = json!([stage.undone("a"), asking(json!({}))]);
    let id = stage.make(and(saga(steps), json!({"on_failure": "compensate"}))).await;
    stage.reaches(&id, "waiting").await;
    stage.tell(&id, "approvals/ask", json!({"decision": "reject"})).await.data(200);
    stage.reaches(&id, "compensated").await;
    assert_eq!(stage.out.order(), ["/a", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_can_be_asked_once_more() {
    let stage = Stage::new().await;
    let id = asked(&stage, json!({})).await;
    stage.tell(&id, "approvals/ask", json!({"decision": "reject"})).await.data(200);
    stage.reaches(&id, "failed").await;
    stage.tell(&id, "approvals/ask", json!({"decision": "approve"})).await.refusal(409, "INVALID_STATE");
    stage.tell(&id, "steps/ask/retry", json!({})).await.data(200);
    stage.reaches(&id, "waiting").await;
    stage.tell(&id, "approvals/ask", json!({"decision": "approve"})).await.data(200);
    stage.reaches(&id, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_nobody_answers_in_time_is_rejected() {
    for more in [json!({"timeout": "1h"}), json!({"timeout": "1h", "on_timeout": "reject"})] {
        let stage = Stage::new().await;
        let id = asked(&stage, more).await;
        stage.app.advance(TimeDelta::minutes(61));
        let saga = stage.reaches(&id, "failed").await;
        let ask = of(&saga, "ask");
        assert_eq!((&ask["status"], &ask["retry_count"]), (&json!("failed"), &json!(0)));
        stage.tell(&id, "approvals/ask", json!({"decision": "approve"})).await.refusal(409, "INVALID_STATE");
        assert_eq!(stage.out.to("/c").len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_a_time_waits_for_ever() {
    let stage = Stage::new().await;
    let id = asked(&stage, json!({})).await;
    stage.app.advance(TimeDelta::days(300));
    let other = stage.run(json!([stage.call("x", "/x")])).await;
    stage.reaches(&other, "completed").await;
    assert_eq!(stage.show(&id).await["status"], "waiting");
    stage.tell(&id, "approvals/ask", json!({"decision": "approve"})).await.data(200);
    stage.reaches(&id, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_answers_at_once_one_counts() {
    let stage = Stage::new().await;
    let id = asked(&stage, json!({})).await;
    let decisions = ["approve", "reject", "approve", "reject", "approve", "reject"];
    let replies =
        join_all(decisions.map(|decision| stage.tell(&id, "approvals/ask", json!({"decision": decision})))).await;
    let heard: Vec<_> = replies.iter().zip(decisions).filter(|(reply, _)| reply.status == 200).collect();
    assert_eq!(heard.len(), 1);
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        reply.refusal(409, "INVALID_STATE");
    }
    stage.reaches(&id, if heard[0].1 == "approve" { "completed" } else { "failed" }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_approve_or_reject_and_for_a_step_that_asks() {
    let stage = Stage::new().await;
    let id = asked(&stage, json!({})).await;
    for body in [json!({}), json!({"decision": "maybe"}), json!({"decision": true}), json!({"decision": ""})] {
        let reply = stage.tell(&id, "approvals/ask", body).await;
        assert_eq!(reply.status, 400, "{}", reply.text);
    }
    for (name, status) in [("a", "completed"), ("c", "pending")] {
        let reply = stage.tell(&id, &format!("approvals/{name}"), json!({"decision": "approve"})).await;
        let error = reply.refusal(409, "INVALID_STATE");
        assert_eq!(
            (&error["details"]["status"], &error["details"]["step_status"]),
            (&json!("waiting"), &json!(status))
        );
    }
    let reader = stage.app.someone(&["projects:read"]).await;
    let body = json!({"decision": "approve"});
    reader.post(&format!("/sagas/{id}/approvals/ask"), body).await.refusal(403, "FORBIDDEN");
    assert_eq!(of(&stage.show(&id).await, "ask")["status"], "waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_waits_when_only_questions_and_timers_are_left() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/b");
    let sleep = step("sleep", "wait.sleep", json!({"duration": "1h"}));
    let steps = json!([
        and(asking(json!({})), json!({"depends_on": []})),
        sleep,
        stage.call("b", "/b"),
        after(&["ask"], stage.call("c", "/c")),
        after(&["sleep", "b", "c"], stage.call("d", "/d")),
    ]);
    let id = stage.run(steps).await;
    stage.out.received("/b", 1).await;
    assert_eq!(stage.show(&id).await["status"], "running");
    gate.open();
    stage.reaches(&id, "waiting").await;
    let held = stage.out.hold("/c");
    stage.tell(&id, "approvals/ask", json!({"decision": "approve"})).await.data(200);
    stage.out.received("/c", 1).await;
    assert_eq!(stage.show(&id).await["status"], "running");
    held.open();
    let saga = stage.reaches(&id, "waiting").await;
    assert_eq!(statuses(&saga), ["completed", "waiting", "completed", "completed", "pending"]);
    stage.app.advance(TimeDelta::minutes(61));
    stage.reaches(&id, "completed").await;
}

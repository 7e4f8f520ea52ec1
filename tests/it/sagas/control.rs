//! Control calls in every state: what may be done when, and that a refusal starts nothing.

use futures::future::join_all;
use serde_json::{Value, json};

use super::{Stage, UNKNOWN, of, retried, saga, statuses, step};
use crate::{jobs::and, support::Answer};

/// One saga in each state, by its status.
async fn one_of_each(stage: &Stage) -> Vec<(&'static str, String)> {
    for held in ["/held", "/undo/held"] {
        stage.out.hold(held);
    }
    stage.out.always("/undo/bad", Answer::status(409));
    let (a, bad) = (|| stage.undone("a"), || stage.call("c", "/status/409"));
    let keyed = |steps: Value| and(saga(steps), json!({"concurrency_key": "k"}));
    let undoing = |steps: Value| and(saga(steps), json!({"on_failure": "compensate"}));
    let ask = step("b", "approval.request", json!({"message": "well?"}));
    let bodies = [
        ("running", keyed(json!([a(), stage.undone("held")]))),
        ("pending", keyed(json!([a(), stage.undone("b")]))),
        ("waiting", saga(json!([a(), ask]))),
        ("completed", saga(json!([a(), stage.undone("b")]))),
        ("failed", saga(json!([a(), bad()]))),
        ("compensated", undoing(json!([a(), bad()]))),
        ("stuck", undoing(json!([a(), stage.undone("bad"), bad()]))),
        ("cancelled", saga(json!([a(), bad()]))),
    ];
    let mut all = Vec::new();
    for (status, body) in bodies {
        let id = stage.make(body).await;
        if status == "cancelled" {
            stage.reaches(&id, "failed").await;
            stage.tell(&id, "cancel", json!({"compensate": false})).await.data(200);
        }
        stage.reaches(&id, status).await;
        all.push((status, id));
    }
    let call = stage.call("held", "/slow/1");
    let undo = json!({"compensate": "http.request",
        "compensate_config": {"method": "DELETE", "url": stage.out.at("/undo/held")}});
    let id = stage.make(undoing(json!([a(), and(call, undo), bad()]))).await;
    stage.reaches(&id, "compensating").await;
    all.push(("compensating", id));
    stage.out.received("/held", 1).await;
    stage.out.received("/undo/held", 1).await;
    all
}

/// The saga without what a look may change.
async fn at_rest(stage: &Stage, id: &str) -> Value {
    let mut saga = stage.show(id).await;
    saga.as_object_mut().unwrap().remove("updated_at");
    saga
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_not_for_this_state_is_refused_and_starts_nothing() {
    let stage = Stage::new().await;
    let sagas = one_of_each(&stage).await;
    let calls: [(&str, Value, &[&str]); 4] = [
        ("retry", json!({}), &["failed"]),
        ("rollback", json!({}), &["failed", "running", "waiting", "stuck", "completed"]),
        ("cancel", json!({}), &["pending", "running", "waiting", "failed", "stuck"]),
        ("abandon", json!({"reason": "r"}), &["stuck"]),
    ];
    let asked = stage.out.requests().len();
    for (status, id) in &sagas {
        let before = at_rest(&stage, id).await;
        for (call, body, allowed) in &calls {
            if !allowed.contains(status) {
                let error = stage.tell(id, call, body.clone()).await.refusal(409, "INVALID_STATE");
                assert_eq!(error["details"]["status"], *status, "{call} of {status}: {error}");
                assert_eq!(error["details"].get("step_status"), None, "{call} of {status}: {error}");
            }
        }
        assert_eq!(at_rest(&stage, id).await, before, "{status}");
    }
    assert_eq!(stage.out.requests().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_not_for_this_step_is_refused_and_starts_nothing() {
    let stage = Stage::new().await;
    let sagas = one_of_each(&stage).await;
    let approve = || json!({"decision": "approve"});
    let asked = stage.out.requests().len();
    for (status, id) in &sagas {
        let before = at_rest(&stage, id).await;
        let step_status = of(&before, "a")["status"].clone();
        for (call, body) in [("steps/a/retry", json!({})), ("steps/a/skip", json!({})), ("approvals/a", approve())] {
            if (*status, call) == ("pending", "steps/a/skip") {
                continue;
            }
            let error = stage.tell(id, call, body).await.refusal(409, "INVALID_STATE");
            let details = &error["details"];
            assert_eq!(
                (&details["status"], &details["step_status"]),
                (&json!(status), &step_status),
                "{call}: {error}"
            );
        }
        assert_eq!(at_rest(&stage, id).await, before, "{status}");
    }
    assert_eq!(stage.out.requests().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_at_work_or_done_are_neither_retried_nor_skipped() {
    let stage = Stage::new().await;
    let _held = stage.out.hold("/held");
    let ask = step("ask", "approval.request", json!({"message": "well?"}));
    let sleep = step("sleep", "wait.sleep", json!({"duration": "1h"}));
    let again = json!({"max_retries": 3, "backoff": "fixed", "initial_delay_ms": 3_600_000, "max_delay_ms": 3_600_000});
    let late = and(stage.call("late", "/status/500"), json!({"retry_policy": again}));
    let steps: Vec<_> = [stage.call("held", "/held"), ask, sleep, late, stage.call("done", "/done")]
        .into_iter()
        .map(|step| and(step, json!({"depends_on": []})))
        .chain([super::after(&["done"], stage.call("then", "/held"))])
        .collect();
    let id = stage.run(json!(steps)).await;
    for (name, status) in
        [("held", "running"), ("ask", "waiting"), ("sleep", "waiting"), ("late", "retrying"), ("done", "completed")]
    {
        stage.step_reaches(&id, name, status).await;
        for what in ["retry", "skip"] {
            let error = stage.tell(&id, &format!("steps/{name}/{what}"), json!({})).await.refusal(409, "INVALID_STATE");
            assert_eq!(error["details"]["step_status"], status, "{what} {name}: {error}");
        }
        assert_eq!(of(&stage.show(&id).await, name)["status"], status);
    }
    assert_eq!(stage.out.to("/status/500").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_or_a_step_that_is_not_there_is_not_found() {
    let stage = Stage::new().await;
    let id = stage.run(json!([stage.call("a", "/status/409")])).await;
    stage.reaches(&id, "failed").await;
    let approve = || json!({"decision": "approve"});
    for missing in [UNKNOWN, "nonsense"] {
        for (call, body) in [
            ("retry", json!({})),
            ("rollback", json!({})),
            ("cancel", json!({})),
            ("abandon", json!({"reason": "r"})),
            ("steps/a/retry", json!({})),
            ("steps/a/skip", json!({})),
            ("approvals/a", approve()),
        ] {
            stage.tell(missing, call, body).await.refused(404, "NOT_FOUND", "saga not found");
        }
        for path in ["", "/events", "/log"] {
            stage.admin().get(&format!("/sagas/{missing}{path}")).await.refused(404, "NOT_FOUND", "saga not found");
        }
    }
    for (call, body) in [("steps/b/retry", json!({})), ("steps/b/skip", json!({})), ("approvals/b", approve())] {
        stage.tell(&id, call, body).await.refused(404, "NOT_FOUND", "step not found");
    }
    assert_eq!(stage.out.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_retries_at_once_one_is_heard() {
    let stage = Stage::new().await;
    stage.out.then("/a", Answer::status(409));
    let id = stage.run(json!([stage.call("a", "/a")])).await;
    stage.reaches(&id, "failed").await;
    let gate = stage.out.hold("/a");
    let replies = join_all((0..8).map(|_| stage.tell(&id, "retry", json!({})))).await;
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        assert_eq!(reply.refusal(409, "INVALID_STATE")["details"]["status"], "running");
    }
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1);
    gate.open();
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!((&saga["retry_count"], stage.out.to("/a").len()), (&json!(1), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_goes_on_from_what_failed_and_repeats_nothing() {
    let stage = Stage::new().await;
    for path in ["/b", "/c"] {
        stage.out.then(path, Answer::status(409));
    }
    let steps = json!([
        stage.call("a", "/a"),
        super::after(&["a"], stage.call("b", "/b")),
        super::after(&["a"], stage.call("c", "/c")),
        super::after(&["b", "c"], stage.call("d", "/d")),
    ]);
    let id = stage.run(steps).await;
    for count in 1.. {
        let saga = super::until(&stage.admin(), &id, "rest", |saga| {
            !matches!(saga["status"].as_str(), Some("pending" | "running"))
        })
        .await;
        if saga["status"] == "completed" {
            break;
        }
        assert_eq!((&saga["status"], of(&saga, "d")["status"].as_str()), (&json!("failed"), Some("pending")));
        let told = stage.tell(&id, "retry", json!({})).await.data(200);
        assert_eq!(told["retry_count"], count);
        assert!(count <= 2, "{told}");
    }
    assert_eq!((stage.out.to("/a").len(), stage.out.to("/d").len()), (1, 1));
    assert_eq!((stage.out.to("/b").len(), stage.out.to("/c").len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_retried_has_all_its_retries_again() {
    let stage = Stage::new().await;
    let id = stage.run(json!([retried(stage.call("a", "/fail/4"), 2)])).await;
    stage.reaches(&id, "failed").await;
    let told = stage.tell(&id, "steps/a/retry", json!({})).await.data(200);
    assert_ne!(of(&told, "a")["status"], "failed");
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.to("/fail/4").len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_can_be_skipped_and_a_skipped_one_retried() {
    let stage = Stage::new().await;
    for path in ["/b", "/d"] {
        stage.out.then(path, Answer::status(409));
    }
    let id = stage.run(json!([stage.call("b", "/b"), stage.call("c", "/c"), stage.call("d", "/d")])).await;
    stage.reaches(&id, "failed").await;
    stage.tell(&id, "steps/b/skip", json!({})).await.data(200);
    let saga = stage.step_reaches(&id, "d", "failed").await;
    assert_eq!(statuses(&saga), ["skipped", "completed", "failed"]);
    stage.reaches(&id, "failed").await;
    // The other one that failed is as it was.
    stage.tell(&id, "steps/b/retry", json!({})).await.data(200);
    stage.step_reaches(&id, "b", "completed").await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(statuses(&saga), ["completed", "completed", "failed"]);
    stage.tell(&id, "steps/d/retry", json!({})).await.data(200);
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.order(), ["/b", "/c", "/d", "/b", "/d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_has_not_begun_can_be_skipped() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/a");
    let id = stage.run(json!([stage.call("a", "/a"), stage.call("b", "/b"), stage.call("c", "/c")])).await;
    stage.out.received("/a", 1).await;
    let told = stage.tell(&id, "steps/b/skip", json!({})).await.data(200);
    assert_eq!((&told["status"], statuses(&told)), (&json!("running"), vec!["running", "skipped", "pending"]));
    gate.open();
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.order(), ["/a", "/c"]);
}

//! Steps over HTTP: what is tried again, after how long, under which key, and what is not.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{Stage, of, retried, saga, step, tiny};
use crate::{
    jobs::and,
    support::{
        Answer, eventually,
        sink::{Refusing, Request},
    },
};

/// Between each request and the one before it.
fn gaps(requests: &[Request]) -> Vec<Duration> {
    requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}

fn at(step: &Value, field: &str) -> DateTime<Utc> {
    step[field].as_str().unwrap_or_else(|| panic!("no {field} in {step}")).parse().expect("RFC 3339")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_tried_again_under_one_key_until_it_succeeds() {
    let stage = Stage::new().await;
    let id = stage.run(json!([stage.call("a", "/fail/3"), stage.call("b", "/b")])).await;
    let saga = stage.reaches(&id, "completed").await;
    let a = of(&saga, "a");
    assert_eq!((&a["retry_count"], a.get("error"), &saga["retry_count"]), (&json!(3), None, &json!(0)));
    assert_eq!(stage.out.attempts("/fail/3"), ["1", "2", "3", "4"]);
    let key = stage.out.key("/fail/3");
    assert!(!key.is_empty() && key != stage.out.key("/b"), "{key}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_differ_from_saga_to_saga() {
    let stage = Stage::new().await;
    for _ in 0..3 {
        let id = stage.run(json!([stage.call("a", "/a"), stage.call("b", "/b")])).await;
        stage.reaches(&id, "completed").await;
    }
    assert_eq!(stage.out.by_key().into_values().collect::<Vec<_>>(), [1; 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_has_used_up_its_retries_fails_the_saga() {
    let stage = Stage::new().await;
    let id = stage.run(json!([retried(stage.call("a", "/status/500"), 2), stage.call("b", "/b")])).await;
    let saga = stage.reaches(&id, "failed").await;
    let (a, b) = (of(&saga, "a"), of(&saga, "b"));
    assert_eq!((&a["status"], &b["status"], &a["retry_count"]), (&json!("failed"), &json!("pending"), &json!(2)));
    assert!(a["error"].as_str().is_some_and(|error| error.contains("500")), "{a}");
    assert!(saga["error"].as_str().is_some_and(|error| !error.is_empty()) && a.get("output").is_none(), "{saga}");
    assert_eq!((stage.out.to("/status/500").len(), stage.out.to("/b").len()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_retries_in_a_policy_are_none_and_in_a_saga_three() {
    let stage = Stage::new().await;
    let none = retried(stage.call("a", "/status/500"), 0);
    let made = stage.admin().post("/sagas", and(saga(json!([none])), json!({"max_retries": 0}))).await.data(201);
    assert_eq!(made["max_retries"], 3);
    stage.reaches(made["id"].as_str().unwrap(), "failed").await;
    assert_eq!(stage.out.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_without_a_policy_takes_the_sagas_number() {
    let stage = Stage::new().await;
    let plain = json!({"name": "a", "action": "http.request",
        "config": {"method": "POST", "url": stage.out.at("/status/500")}});
    let id = stage.make(and(saga(json!([plain])), json!({"max_retries": 1}))).await;
    stage.reaches(&id, "failed").await;
    let all = stage.out.to("/status/500");
    // A second, give or take a fifth.
    assert_eq!(all.len(), 2);
    assert!(gaps(&all)[0] > Duration::from_millis(700), "{:?}", gaps(&all));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    let stage = Stage::new().await;
    for status in [408, 425, 429, 500, 502, 503, 504, 599] {
        let path = format!("/once/{status}");
        stage.out.then(&path, Answer::status(status));
        let id = stage.run(json!([stage.call("a", &path)])).await;
        stage.reaches(&id, "completed").await;
        assert_eq!(stage.out.to(&path).len(), 2, "{status}");
    }
    for status in [302, 304, 400, 401, 403, 404, 409, 410, 422, 451] {
        let path = format!("/status/{status}");
        let id = stage.run(json!([stage.call("a", &path)])).await;
        let saga = stage.reaches(&id, "failed").await;
        assert!(of(&saga, "a")["error"].as_str().unwrap().contains(&status.to_string()), "{saga}");
        assert_eq!((stage.out.to(&path).len(), &of(&saga, "a")["retry_count"]), (1, &json!(0)), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let stage = Stage::new().await;
    stage.out.always("/a", Answer::redirect(307, &stage.out.at("/elsewhere")));
    let id = stage.run(json!([stage.call("a", "/a")])).await;
    stage.reaches(&id, "failed").await;
    assert_eq!(stage.out.order(), ["/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fails_is_tried_again() {
    let stage = Stage::new().await;
    stage.out.then("/a", Answer::breaks_off());
    let id = stage.run(json!([stage.call("a", "/a")])).await;
    stage.reaches(&id, "completed").await;
    stage.out.key("/a");
    assert_eq!(stage.out.to("/a").len(), 2);
    let refusing = Refusing::new();
    let nobody = step("a", "http.request", json!({"method": "GET", "url": refusing.url}));
    let id = stage.run(json!([retried(nobody, 1)])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!((&of(&saga, "a")["retry_count"], &of(&saga, "a")["status"]), (&json!(1), &json!("failed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn delays_grow_as_the_policy_says() {
    let stage = Stage::new().await;
    let plain = json!({"max_retries": 3, "initial_delay_ms": 200, "jitter": 0});
    for (backoff, more, least) in [
        ("fixed", json!({}), [200, 200, 200]),
        ("linear", json!({}), [200, 400, 600]),
        ("exponential", json!({"multiplier": 3}), [200, 600, 1_800]),
        ("exponential", json!({"multiplier": 10, "max_delay_ms": 300}), [200, 300, 300]),
    ] {
        let path = format!("/fail/3/{backoff}/{}", least[2]);
        let policy = and(and(plain.clone(), json!({"backoff": backoff})), more);
        let id = stage.run(json!([and(stage.call("a", &path), json!({"retry_policy": policy}))])).await;
        stage.reaches(&id, "completed").await;
        for (gap, least) in gaps(&stage.out.to(&path)).into_iter().zip(least.map(Duration::from_millis)) {
            // The story's clock follows the real one by steps, and late where the machine is busy.
            assert!(gap + Duration::from_millis(120) >= least, "{backoff}: {gap:?} < {least:?}");
            assert!(gap < least + Duration::from_millis(1_600), "{backoff}: {gap:?} > {least:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_side_may_say_when_to_come_back() {
    let stage = Stage::new().await;
    stage.out.then("/a", Answer::status(429).header("retry-after", "2"));
    let id = stage.run(json!([stage.call("a", "/a")])).await;
    let waiting = stage.step_reaches(&id, "a", "retrying").await;
    assert_eq!(waiting["status"], "running");
    assert!(of(&waiting, "a")["next_attempt_at"].is_string(), "{waiting}");
    let done = stage.reaches(&id, "completed").await;
    assert_eq!(of(&done, "a").get("next_attempt_at"), None);
    let gap = gaps(&stage.out.to("/a"))[0];
    assert!(gap > Duration::from_millis(1_900), "{gap:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_side_is_waited_for_an_hour_at_most() {
    let stage = Stage::new().await;
    stage.out.then("/a", Answer::status(503).header("retry-after", "86400"));
    let id = stage.run(json!([stage.call("a", "/a")])).await;
    let waiting = stage.step_reaches(&id, "a", "retrying").await;
    let pause = at(of(&waiting, "a"), "next_attempt_at") - stage.app.clock.now();
    assert!(pause > TimeDelta::minutes(58) && pause <= TimeDelta::minutes(61), "{pause}");
    stage.app.advance(TimeDelta::minutes(61));
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.to("/a").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_says_itself_which_statuses_are_well() {
    let stage = Stage::new().await;
    for (path, expected, status) in [
        ("/status/404/a", json!(404), "completed"),
        ("/status/404/b", json!([200, 404]), "completed"),
        ("/status/503/c", json!(503), "completed"),
        ("/status/200/d", json!(201), "failed"),
        ("/status/204/e", json!([200, 201]), "failed"),
    ] {
        let mut call = stage.call("a", path);
        call["config"]["expect_status"] = expected;
        let id = stage.run(json!([call])).await;
        stage.reaches(&id, status).await;
        assert_eq!(stage.out.to(path).len(), 1, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_sent_as_it_is_written() {
    let stage = Stage::new().await;
    let config = |more: Value| and(json!({"method": "PATCH", "url": stage.out.at("/echo/x?y=z")}), more);
    for (body, text) in [(json!({"n": [1, null]}), r#"{"n":[1,null]}"#), (json!("plain"), "plain"), (json!(5), "5")] {
        let before = stage.out.requests().len();
        let config = config(json!({"headers": {"X-Own": "one"}, "body": body}));
        let id = stage.run(json!([step("a", "http.request", config)])).await;
        stage.reaches(&id, "completed").await;
        let request = stage.out.requests().remove(before);
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PATCH", "/echo/x?y=z"));
        assert_eq!((request.text(), request.header("x-own")), (text, Some("one")));
        assert_eq!(request.header("x-rdev-compensation"), None);
        assert_eq!(request.header("authorization"), None);
    }
    let id = stage.run(json!([step("a", "http.request", config(json!({})))])).await;
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.requests().pop().unwrap().body.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_json_is_kept_as_text() {
    let stage = Stage::new().await;
    stage.out.always("/text", Answer::status(200).header("content-type", "text/plain").body("hello <ü>"));
    let id = stage.run(json!([stage.call("a", "/text")])).await;
    let saga = stage.reaches(&id, "completed").await;
    let output = &of(&saga, "a")["output"];
    assert_eq!((&output["body"], &output["headers"]["content-type"]), (&json!("hello <ü>"), &json!("text/plain")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_cut_off_uses_up_no_retry() {
    let stage = Stage::new().await;
    stage.out.then("/a", Answer::hangs()).then("/a", Answer::hangs());
    let call = and(retried(stage.call("a", "/a"), 0), json!({"timeout": "300ms"}));
    let id = stage.run(json!([call])).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!((stage.out.to("/a").len(), &of(&saga, "a")["retry_count"]), (3, &json!(0)));
    stage.out.key("/a");
    eventually("their departure", async || (stage.out.listener.cancelled("/a") == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_attempts_that_were_cut_off_in_a_row_are_enough() {
    let stage = Stage::new().await;
    let call = and(retried(stage.call("a", "/hang"), 50), json!({"timeout": "500ms"}));
    let id = stage.run(json!([call])).await;
    // The circuit opens on the way.
    eventually("the end", async || {
        let saga = stage.show(&id).await;
        if of(&saga, "a")["status"] == "retrying" {
            stage.app.advance(TimeDelta::minutes(6));
        }
        (saga["status"] == "failed").then_some(())
    })
    .await;
    assert_eq!(stage.out.to("/hang").len(), 10);
    assert_eq!(of(&stage.show(&id).await, "a")["retry_count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_may_have_a_timeout_of_its_own() {
    let stage = Stage::new().await;
    stage.out.then("/a", Answer::hangs());
    let mut call = stage.call("a", "/a");
    call["config"]["timeout"] = json!("300ms");
    let id = stage.run(json!([and(call, json!({"retry_policy": tiny(1)}))])).await;
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.to("/a").len(), 2);
}

//! Circuits, which leave alone who keeps failing, and what the metrics count.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::{Stage, of, retried};
use crate::support::{Answer, TestApp, counter::Counter, eventually};

/// The circuit of this receiver, where there is one.
async fn circuit(app: &TestApp, of: &Counter) -> Option<Value> {
    let all = app.nobody().get("/health/circuits").await.data(200)["circuits"].as_array().unwrap().clone();
    all.into_iter().find(|circuit| circuit["name"].as_str().is_some_and(|name| name.contains(of.port())))
}

async fn circuit_is(app: &TestApp, of: &Counter, state: &str) -> Value {
    let found = async || circuit(app, of).await.filter(|circuit| circuit["state"] == state);
    eventually(&format!("a circuit that is {state}"), found).await
}

fn at(value: &Value, field: &str) -> DateTime<Utc> {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}")).parse().expect("RFC 3339")
}

/// The samples of a metric, without its name.
async fn samples(app: &TestApp, name: &str) -> Vec<String> {
    let text = app.nobody().get("/metrics").await.text;
    text.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
}

async fn sample(app: &TestApp, name: &str, labels: &[&str]) -> f64 {
    let all = samples(app, &format!("{name}{{")).await;
    let found = all.iter().find(|line| labels.iter().all(|label| line.contains(label)));
    let value = found.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} with {labels:?} in {all:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_five_failures_a_host_is_left_alone_and_that_uses_up_no_retry() {
    let stage = Stage::new().await;
    let (app, well) = (&stage.app, Counter::start().await);
    stage.out.always("/a", Answer::status(503));
    let id = stage.run(json!([retried(stage.call("a", "/a"), 50)])).await;
    let open = circuit_is(app, &stage.out, "open").await;
    assert!(open["failures"].as_u64() >= Some(5), "{open}");
    let pause = at(&open, "next_attempt_at") - at(&open, "opened_at");
    assert!((pause - TimeDelta::seconds(30)).abs() <= TimeDelta::seconds(1), "{open}");
    let admin = stage.admin();
    let held = super::until(&admin, &id, "a step that is put off", |saga| {
        let next = of(saga, "a")["next_attempt_at"].as_str().and_then(|next| next.parse::<DateTime<Utc>>().ok());
        next.is_some_and(|next| next > stage.app.clock.now() + TimeDelta::seconds(10))
    });
    let held = held.await;
    assert_eq!((stage.out.to("/a").len(), &held["status"]), (5, &json!("running")));
    assert!(of(&held, "a")["retry_count"].as_u64() <= Some(5), "{held}");
    // Another saga is put off before its first attempt; another host is not held back.
    let second = stage.run(json!([retried(stage.call("b", "/b"), 0)])).await;
    let put_off = super::until(&admin, &second, "put off", |saga| of(saga, "b")["next_attempt_at"].is_string());
    let put_off = put_off.await;
    assert_eq!((&of(&put_off, "b")["retry_count"], stage.out.to("/b").len()), (&json!(0), 0));
    let elsewhere = super::step("c", "http.request", json!({"method": "GET", "url": well.at("/c")}));
    let third = stage.run(json!([elsewhere])).await;
    stage.reaches(&third, "completed").await;
    stage.out.always("/a", Answer::status(200));
    stage.app.advance(TimeDelta::seconds(31));
    for id in [&id, &second] {
        eventually("the host's return", async || {
            stage.app.advance(TimeDelta::seconds(1));
            (stage.show(id).await["status"] == "completed").then_some(())
        })
        .await;
    }
    assert_eq!((stage.out.to("/a").len(), stage.out.to("/b").len()), (6, 1));
    assert_eq!(stage.out.attempts("/b"), ["1"]);
    circuit_is(app, &stage.out, "closed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_probe_is_sent_and_when_it_fails_the_pause_grows() {
    let stage = Stage::new().await;
    stage.out.always("/a", Answer::status(500));
    let id = stage.run(json!([retried(stage.call("a", "/a"), 50)])).await;
    let others = [1, 2, 3].map(|n| retried(stage.call(&format!("b{n}"), "/a"), 50));
    let first = circuit_is(&stage.app, &stage.out, "open").await;
    for other in others {
        stage.run(json!([other])).await;
    }
    stage.app.advance(TimeDelta::seconds(31));
    stage.out.received("/a", 6).await;
    let second = eventually("the second opening", async || {
        let circuit = circuit(&stage.app, &stage.out).await?;
        (circuit["state"] == "open" && circuit["next_attempt_at"] != first["next_attempt_at"]).then_some(circuit)
    });
    let left = at(&second.await, "next_attempt_at") - stage.app.clock.now();
    assert!(left > TimeDelta::seconds(35) && left <= TimeDelta::seconds(61), "{left}");
    assert_eq!(stage.out.to("/a").len(), 6);
    assert_eq!(stage.show(&id).await["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_refuses_opens_no_circuit() {
    let stage = Stage::new().await;
    for status in [400, 404, 409, 429] {
        for n in 0..3 {
            let path = format!("/status/{status}/{n}");
            let id = stage.run(json!([retried(stage.call("a", &path), 0)])).await;
            stage.reaches(&id, "failed").await;
        }
    }
    let id = stage.run(json!([stage.call("a", "/a")])).await;
    stage.reaches(&id, "completed").await;
    assert!(circuit(&stage.app, &stage.out).await.is_none_or(|circuit| circuit["state"] == "closed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_count_sagas_steps_and_retries() {
    let stage = Stage::new().await;
    let well = stage.run(json!([stage.call("a", "/fail/2"), super::noop("b", json!(1))])).await;
    stage.reaches(&well, "completed").await;
    let ill = stage.run(json!([stage.call("a", "/status/409")])).await;
    stage.reaches(&ill, "failed").await;
    let app = &stage.app;
    assert!((sample(app, "rdev_sagas_total", &["status=\"completed\""]).await - 1.0).abs() < f64::EPSILON);
    assert!((sample(app, "rdev_sagas_total", &["status=\"failed\""]).await - 1.0).abs() < f64::EPSILON);
    let retries = sample(app, "rdev_saga_step_retries_total", &["action=\"http.request\""]).await;
    assert!((retries - 2.0).abs() < f64::EPSILON, "{retries}");
    for status in ["completed", "failed"] {
        let labels = ["action=\"http.request\"", &format!("status=\"{status}\"")];
        assert!(sample(app, "rdev_saga_step_duration_seconds_count", &labels).await >= 1.0, "{status}");
    }
    let text = app.nobody().get("/metrics").await.text;
    assert!(!text.contains(&well) && !text.contains(&ill), "an id in a label");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_show_open_circuits() {
    let stage = Stage::new().await;
    stage.run(json!([retried(stage.call("a", "/status/500"), 50)])).await;
    circuit_is(&stage.app, &stage.out, "open").await;
    eventually("an open circuit", async || {
        let all = samples(&stage.app, "rdev_circuit_breaker_state{").await;
        all.iter().any(|line| line.ends_with(" 2")).then_some(())
    })
    .await;
}

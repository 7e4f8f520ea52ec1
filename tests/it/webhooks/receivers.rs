//! Receivers that are slow, dead or endless: they cost themselves alone.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::Value;

use super::{attempts, deliveries, hooked, sequences, settled, statuses};
use crate::{
    jobs::{app_on, ended, refused, submit, under_way},
    support::{Answer, Gate, PATIENCE, Sink, TestApp, Upstream, eventually, sink::Deaf},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_answer_delays_nobody_else() {
    let (upstream, sink, dead) = (Upstream::start().await, Sink::start().await, Sink::start().await);
    let gate = Gate::new();
    dead.always(Answer::status(200).wait(&gate));
    let app = app_on(&upstream, &[]).await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(submit(&app.admin(), hooked("hi", &dead.hook())).await);
    }
    eventually("four at once", async || (dead.listener.under_way("/hook") == 4).then_some(())).await;
    let other = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    assert_eq!(statuses(&settled(&app.admin(), &other).await), ["delivered"; 3]);
    assert_eq!((dead.listener.under_way("/hook"), dead.requests().len()), (4, 4));
    gate.open();
    for id in &ids {
        assert_eq!(statuses(&settled(&app.admin(), id).await), ["delivered"; 3]);
    }
    assert_eq!(dead.listener.most_at_once("/hook"), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_is_left_after_15_s() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::drips());
    let app = app_on(&upstream, &[]).await;
    let started = Instant::now();
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    eventually("the end of patience", async || (sink.listener.cancelled("/hook") == 1).then_some(())).await;
    assert!(started.elapsed() >= Duration::from_secs(14) && started.elapsed() < Duration::from_secs(20));
    let first = settled(&app.admin(), &id).await.remove(0);
    let tries = attempts(&first);
    assert!(tries[0]["error"].is_string() && tries[0].get("status_code").is_none(), "{tries:?}");
    assert!((14_000..20_000).contains(&tries[0]["duration_ms"].as_u64().unwrap()), "{tries:?}");
    assert_eq!(first["status"], "delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_come_about_is_given_up_after_5_s() {
    let (upstream, deaf) = (Upstream::start().await, Deaf::start().await);
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), hooked("hi", &deaf.url)).await;
    let tries = eventually("an attempt", async || {
        let tries = attempts(&deliveries(&app.admin(), &id).await[0]);
        (!tries.is_empty()).then_some(tries)
    });
    let tries = tries.await;
    assert!(tries[0]["error"].is_string(), "{tries:?}");
    assert!((4_500..9_000).contains(&tries[0]["duration_ms"].as_u64().unwrap()), "{tries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_beginning_of_an_endless_answer_is_read() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::endless());
    let app = app_on(&upstream, &[]).await;
    let started = Instant::now();
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    assert_eq!(statuses(&settled(&app.admin(), &id).await), ["delivered"; 3]);
    eventually("the departure", async || (sink.listener.cancelled("/hook") == 1).then_some(())).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

async fn open_circuits(app: &TestApp) -> Vec<Value> {
    let circuits = app.nobody().get("/health/circuits").await.data(200)["circuits"].as_array().unwrap().clone();
    circuits.into_iter().filter(|circuit| circuit["state"] == "open").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_ten_failures_a_host_is_left_alone_for_30_s_and_that_is_no_attempt() {
    let (upstream, sink, well) = (Upstream::start().await, Sink::start().await, Sink::start().await);
    sink.always(Answer::status(500));
    let app = app_on(&upstream, &[("RDEV_WEBHOOK_BACKOFF", "1ms")]).await;
    let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
    ended(&app.admin(), &id).await;
    // Six failures of the first webhook, four of the second.
    assert_eq!(sequences(&sink.received(10).await), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    let open = eventually("an open circuit", async || open_circuits(&app).await.into_iter().next()).await;
    assert!(open["failures"].as_u64() >= Some(10) && open["name"].is_string(), "{open}");
    let at = |name: &str| open[name].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let pause = at("next_attempt_at") - at("opened_at");
    assert!((pause - TimeDelta::seconds(30)).abs() <= TimeDelta::seconds(1), "{open}");
    // The host is this port alone, and the others are not held back.
    let other = submit(&app.admin(), hooked("hi", &well.hook())).await;
    assert_eq!(statuses(&settled(&app.admin(), &other).await), ["delivered"; 3]);
    let held = deliveries(&app.admin(), &id).await;
    assert_eq!((statuses(&held), attempts(&held[1]).len()), (vec!["failed", "pending", "pending"], 4));
    assert_eq!(sink.requests().len(), 10);
    sink.always(Answer::status(200));
    app.advance(TimeDelta::seconds(31));
    let until = Instant::now() + PATIENCE + Duration::from_secs(15);
    while sink.requests().len() < 12 {
        assert!(Instant::now() < until, "nothing is sent though the host is well again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = settled(&app.admin(), &id).await;
    assert_eq!((statuses(&after), attempts(&after[1]).len()), (vec!["failed", "delivered", "delivered"], 5));
    assert!(open_circuits(&app).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_receiver_does_not_hold_up_the_job_itself() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.always(Answer::hangs());
    let app = app_on(&upstream, &[("RDEV_WORKERS", "1")]).await;
    for _ in 0..5 {
        let id = submit(&app.admin(), hooked("hi", &sink.hook())).await;
        assert_eq!(ended(&app.admin(), &id).await["state"], "completed");
    }
    under_way(&upstream, 0).await;
    refused(&app.admin().get("/jobs/01J00000000000000000000000/deliveries").await, 404, "job not found");
}

//! Attempts that fail and are made again, or are not; jobs that are cancelled.

use std::time::Duration;

use serde_json::{Value, json};

use super::{app_on, chat, chat_with, ended, in_state, said, settings, show, submit, under_way};

fn gaps(requests: &[Request]) -> Vec<Duration> {
    requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect()
}
use crate::support::{Answer, Chat, Gate, Upstream, eventually, sink::Request};

/// What a job becomes whose first attempt goes like this and whose second one is good.
async fn after(first: Chat, own: &[(&str, &str)]) -> (Value, Upstream) {
    let upstream = Upstream::start().await;
    upstream.then(first);
    let app = app_on(&upstream, own).await;
    let job = ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    (job, upstream)
}

/// That it was tried again after 2 s ± 20 %. A slow machine is later, never earlier.
#[track_caller]
fn was_tried_again((job, upstream): (Value, Upstream)) {
    assert_eq!((&job["state"], said(&job), &job["attempt"]), (&json!("completed"), "Hello there", &json!(2)), "{job}");
    assert_eq!(job["error"], json!(null));
    let gaps = gaps(&upstream.chats());
    assert!(gaps.len() == 1 && gaps[0] >= Duration::from_millis(1600) && gaps[0] < Duration::from_secs(5), "{gaps:?}");
}

/// That it failed at once.
#[track_caller]
fn was_given_up((job, upstream): (Value, Upstream), why: &str) {
    assert_eq!((&job["state"], &job["attempt"], upstream.chats().len()), (&json!("failed"), &json!(1), 1), "{job}");
    assert!(job["error"].as_str().unwrap().contains(why), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_upstream_is_asked_again_after_2_s() {
    was_tried_again(after(Chat::busy(), &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_error_of_upstream_is_tried_again() {
    was_tried_again(after(Chat::fails(500, "llama runner process has terminated"), &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_after_the_first_token_is_tried_again() {
    was_tried_again(after(Chat::says(&["half an "]).then_error("out of memory"), &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_off_is_tried_again() {
    was_tried_again(after(Chat::says(&["half an "]).then_cut(), &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_is_tried_again() {
    was_tried_again(after(Chat::says(&["half an "]).then_reset(), &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_before_it_is_done_is_tried_again() {
    was_tried_again(after(Chat::says(&["half an "]).then_closed(), &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_accepts_and_closes_is_tried_again() {
    was_tried_again(after(Chat::instead(Answer::breaks_off()), &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_past_its_deadline_is_cut_off_and_tried_again() {
    let (job, upstream) = after(Chat::hangs(), &[("RDEV_JOB_TIMEOUT", "1s")]).await;
    assert_eq!((&job["state"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
    assert_eq!((upstream.chats().len(), upstream.chats_cancelled()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_and_too_early_are_tried_again() {
    let upstream = Upstream::with(&["a", "b", "c"]).await;
    let app = app_on(&upstream, &[]).await;
    let mut ids = Vec::new();
    for (model, status) in [("a", 408), ("b", 425), ("c", 429)] {
        upstream.then_for(model, Chat::fails(status, "later"));
        ids.push(submit(&app.admin(), chat_with(model, "hi")).await);
    }
    for id in &ids {
        let job = ended(&app.admin(), id).await;
        assert_eq!((&job["state"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_upstream_is_final() {
    let upstream = Upstream::with(&["a", "b", "c", "d", "e"]).await;
    let app = app_on(&upstream, &[]).await;
    let mut ids = Vec::new();
    for (model, status) in [("a", 400), ("b", 401), ("c", 404), ("d", 413), ("e", 422)] {
        upstream.always_for(model, Chat::fails(status, &format!("no, said {model}")));
        ids.push((model, submit(&app.admin(), chat_with(model, "hi")).await));
    }
    for (model, id) in ids {
        let job = ended(&app.admin(), &id).await;
        assert_eq!((&job["state"], &job["attempt"]), (&json!("failed"), &json!(1)), "{job}");
        assert!(job["error"].as_str().unwrap().contains(&format!("no, said {model}")), "{job}");
    }
    assert_eq!(upstream.chats().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_gone_by_the_time_fails_with_ollamas_words() {
    was_given_up(after(Chat::fails(404, "model 'llama3' not found"), &[]).await, "model 'llama3' not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_third_failure_is_final() {
    let upstream = Upstream::start().await;
    upstream.always_for("llama3", Chat::busy());
    let app = app_on(&upstream, &[]).await;
    let job = ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    assert_eq!((&job["state"], &job["attempt"], upstream.chats().len()), (&json!("failed"), &json!(3), 3), "{job}");
    assert!(job["error"].as_str().unwrap().contains("server busy"), "{job}");
    let gaps = gaps(&upstream.chats());
    assert!(gaps[0] >= Duration::from_millis(1600) && gaps[0] < Duration::from_secs(5), "{gaps:?}");
    assert!(gaps[1] >= Duration::from_millis(3200) && gaps[1] < Duration::from_secs(8), "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_many_failures_are_final_can_be_set() {
    let result = after(Chat::says(&["half an "]).then_cut(), &[("RDEV_JOB_MAX_ATTEMPTS", "1")]).await;
    was_given_up(result, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_may_say_itself_when_to_come_back() {
    let (job, upstream) = after(Chat::busy_for(4), &[]).await;
    assert_eq!((&job["state"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
    let gaps = gaps(&upstream.chats());
    assert!(gaps[0] >= Duration::from_millis(3900), "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_attempts_a_job_is_queued() {
    let upstream = Upstream::start().await;
    upstream.always_for("llama3", Chat::busy_for(3600));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    let job = eventually("the retry", async || {
        Some(show(&app.admin(), &id).await).filter(|job| job["state"] == "queued" && job["attempt"] == 1)
    });
    assert_eq!(job.await["completed_at"], json!(null));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_running_job_cuts_off_the_call() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&["a"]).wait(&gate).token("b"));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    in_state(&app.admin(), &id, "running").await;
    let reply = app.admin().delete(&format!("/jobs/{id}")).await;
    let cancelled = reply.json();
    assert_eq!((reply.status, &cancelled["state"], &cancelled["result"]), (200, &json!("cancelled"), &json!(null)));
    assert!(!cancelled["completed_at"].is_null());
    eventually("the call's end", async || (upstream.chats_cancelled() == 1).then_some(())).await;
    gate.open();
    let again = app.admin().delete(&format!("/jobs/{id}")).await;
    assert_eq!((again.status, again.json()), (200, cancelled.clone()));
    assert_eq!(show(&app.admin(), &id).await, cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_reaches_a_job_that_runs_in_another_process() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["a"]).wait(&Gate::new()));
    let app = app_on(&upstream, &[]).await;
    let other = app.sibling(&[&settings(&upstream)[..], &[("RDEV_WORKERS", "0")]].concat()).await;
    let id = submit(&app.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    assert_eq!(other.admin().delete(&format!("/jobs/{id}")).await.json()["state"], "cancelled");
    eventually("the call's end", async || (upstream.chats_cancelled() == 1).then_some(())).await;
    assert_eq!(show(&app.admin(), &id).await["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_while_it_waits_never_reaches_upstream() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&[]).wait(&gate).token("x"));
    let app = app_on(&upstream, &[("RDEV_WORKERS", "1")]).await;
    submit(&app.admin(), chat("first")).await;
    under_way(&upstream, 1).await;
    let second = submit(&app.admin(), chat("second")).await;
    let third = submit(&app.admin(), chat("third")).await;
    let cancelled = app.admin().delete(&format!("/jobs/{second}")).await.json();
    assert_eq!((&cancelled["state"], &cancelled["attempt"]), (&json!("cancelled"), &json!(0)));
    assert_eq!(cancelled["started_at"], json!(null));
    gate.open();
    ended(&app.admin(), &third).await;
    assert_eq!(upstream.asked(), ["first", "third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_between_two_attempts_is_not_tried_again() {
    let upstream = Upstream::with(&["a", "b"]).await;
    upstream.always_for("a", Chat::busy()).then_for("b", Chat::busy()).then_for("b", Chat::busy());
    let app = app_on(&upstream, &[]).await;
    let cancelled = submit(&app.admin(), chat_with("a", "cancelled")).await;
    let other = submit(&app.admin(), chat_with("b", "other")).await;
    eventually("the first failure", async || {
        let job = show(&app.admin(), &cancelled).await;
        (job["state"] == "queued" && job["attempt"] == 1).then_some(())
    })
    .await;
    assert_eq!(app.admin().delete(&format!("/jobs/{cancelled}")).await.json()["state"], "cancelled");
    // The other's third attempt comes later than the second one of this could have.
    assert_eq!(ended(&app.admin(), &other).await["attempt"], 3);
    let asked = upstream.asked();
    assert_eq!(asked.iter().filter(|text| *text == "cancelled").count(), 1, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_an_ended_job_changes_nothing() {
    let upstream = Upstream::with(&["a", "b"]).await;
    upstream.always_for("b", Chat::fails(400, "no"));
    let app = app_on(&upstream, &[]).await;
    for model in ["a", "b"] {
        let id = submit(&app.admin(), chat_with(model, "hi")).await;
        let job = ended(&app.admin(), &id).await;
        let reply = app.admin().delete(&format!("/jobs/{id}")).await;
        assert_eq!((reply.status, reply.json()), (200, job));
    }
}

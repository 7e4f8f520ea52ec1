//! Waiting for a job, lists of jobs, whose job it is, and when it is forgotten.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::json;

use super::{
    and, app_on, chat, chat_with, ended, events_of, refusal, refused, results::FIELDS, settings, show, submit,
    under_way,
};
use crate::support::{Answer, Chat, Gate, Reply, Sink, Upstream, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_over_when_the_job_is_on_every_process() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&[]).wait(&gate).token("x"));
    let app = app_on(&upstream, &[]).await;
    let other = app.sibling(&[&settings(&upstream)[..], &[("RDEV_WORKERS", "0")]].concat()).await;
    let id = submit(&app.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    let path = format!("/jobs/{id}?wait=60s");
    let (here, there) = (app.admin(), other.admin());
    let opening = async {
        tokio::task::yield_now().await;
        gate.open();
    };
    let (one, two, ()) = tokio::join!(here.get(&path), there.get(&path), opening);
    assert_eq!((&one.json()["state"], &two.json()["state"]), (&json!("completed"), &json!("completed")));
    assert_eq!(here.get(&path).await.json(), one.json());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_over_when_its_time_is_up() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::hangs());
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    let started = Instant::now();
    let reply = app.admin().get(&format!("/jobs/{id}?wait=1s")).await;
    assert_eq!((reply.status, &reply.json()["state"]), (200, &json!("running")));
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_no_duration_up_to_60_s_is_refused() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    ended(&app.admin(), &id).await;
    for wait in ["61s", "1h", "0s", "0", "-1s", "10", "soon"] {
        refusal(&app.admin().get(&format!("/jobs/{id}?wait={wait}")).await, 400);
    }
    assert_eq!(app.admin().get(&format!("/jobs/{id}?wait=60s")).await.status, 200);
}

fn ids(list: &Reply) -> Vec<String> {
    assert_eq!(list.status, 200, "{}", list.text);
    let jobs = list.json()["jobs"].as_array().unwrap().clone();
    jobs.iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_newest_first_and_shows_no_results() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(submit(&app.admin(), chat("hi")).await);
        ended(&app.admin(), made.last().unwrap()).await;
    }
    made.reverse();
    let list = app.admin().get("/jobs").await;
    assert_eq!(ids(&list), made);
    assert_eq!(list.json().as_object().unwrap().keys().collect::<Vec<_>>(), ["jobs"]);
    let mut fields: Vec<_> = list.json()["jobs"][0].as_object().unwrap().keys().cloned().collect();
    fields.sort();
    assert_eq!(fields, FIELDS.into_iter().filter(|field| !["result", "artifacts"].contains(field)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_may_be_narrowed_to_a_state_and_a_model() {
    let upstream = Upstream::with(&["a:1", "b:1"]).await;
    upstream.always_for("b:1", Chat::fails(400, "no"));
    let app = app_on(&upstream, &[]).await;
    let (one, two) =
        (submit(&app.admin(), chat_with("a:1", "x")).await, submit(&app.admin(), chat_with("b:1", "x")).await);
    ended(&app.admin(), &one).await;
    ended(&app.admin(), &two).await;
    for (query, expected) in [
        ("state=completed", vec![&one]),
        ("state=failed", vec![&two]),
        ("state=queued", vec![]),
        ("state=running", vec![]),
        ("state=cancelled", vec![]),
        ("model=a:1", vec![&one]),
        ("model=none", vec![]),
        ("model=b:1&state=failed", vec![&two]),
        ("model=a:1&state=failed", vec![]),
    ] {
        assert_eq!(
            ids(&app.admin().get(&format!("/jobs?{query}")).await).iter().collect::<Vec<_>>(),
            expected,
            "{query}"
        );
    }
    for query in ["state=done", "state=COMPLETED"] {
        refusal(&app.admin().get(&format!("/jobs?{query}")).await, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_in_pages() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "0")]).await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(submit(&app.admin(), chat("hi")).await);
    }
    made.reverse();
    let (mut seen, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let more = cursor.map_or_else(String::new, |cursor| format!("&cursor={cursor}"));
        let page = app.admin().get(&format!("/jobs?limit=2{more}")).await;
        seen.push(ids(&page));
        cursor = page.json()["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((seen.iter().map(Vec::len).collect::<Vec<_>>(), seen.concat()), (vec![2, 2, 1], made));
    for query in ["limit=0", "limit=201", "limit=x", "cursor=nonsense"] {
        refusal(&app.admin().get(&format!("/jobs?{query}")).await, 400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_its_own_keys_and_admins() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = app_on(&upstream, &[]).await;
    let scopes = ["jobs:read", "jobs:execute"];
    let (owner, other) = (app.someone(&scopes).await, app.someone(&scopes).await);
    upstream.then(Chat::says(&[&"x".repeat(300_000)]));
    let id = submit(&owner, and(chat("hi"), json!({"state_webhook_url": sink.hook()}))).await;
    let job = ended(&owner, &id).await;
    let deliveries = owner.get(&format!("/jobs/{id}/deliveries")).await.json();
    let delivery = deliveries["deliveries"][0]["id"].as_str().unwrap();
    let artifact = format!("/jobs/{id}/artifacts/result.json");
    for path in [format!("/jobs/{id}"), format!("/jobs/{id}/events"), format!("/jobs/{id}/deliveries")] {
        refused(&other.get(&path).await, 404, "job not found");
    }
    refusal(&other.get(&artifact).await, 404);
    refused(&other.delete(&format!("/jobs/{id}")).await, 404, "job not found");
    refusal(&other.post(&format!("/jobs/{id}/deliveries/{delivery}/redeliver"), json!({})).await, 404);
    assert_eq!((ids(&other.get("/jobs").await), ids(&owner.get("/jobs").await)), (vec![], vec![id.clone()]));
    assert_eq!((show(&app.admin(), &id).await, ids(&app.admin().get("/jobs").await)), (job, vec![id]));
    assert_eq!(app.admin().get(&artifact).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_key_sees_its_own_jobs_alone_though_it_is_an_admins() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    app.project("p").await;
    let (bound, _) = app.holder(json!({"name": "b", "scopes": ["admin"], "project_ids": ["p"]})).await;
    let others = submit(&app.admin(), chat("hi")).await;
    let own = submit(&bound, chat("hi")).await;
    refused(&bound.get(&format!("/jobs/{others}")).await, 404, "job not found");
    refused(&bound.delete(&format!("/jobs/{others}")).await, 404, "job not found");
    assert_eq!(ended(&bound, &own).await["state"], "completed");
    assert_eq!(ids(&bound.get("/jobs").await), [own]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_and_its_artifacts_are_gone_72_h_after_its_end() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&[]).wait(&gate).token(&"x".repeat(300_000)));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    app.advance(TimeDelta::hours(100));
    gate.open();
    let job = ended(&app.admin(), &id).await;
    app.advance(TimeDelta::hours(72) - TimeDelta::seconds(1));
    assert_eq!(show(&app.admin(), &id).await, job);
    app.advance(TimeDelta::seconds(1));
    for path in [format!("/jobs/{id}"), events_of(&id), format!("/jobs/{id}/deliveries")] {
        refused(&app.admin().get(&path).await, 404, "job not found");
    }
    refusal(&app.admin().get(&format!("/jobs/{id}/artifacts/result.json")).await, 404);
    refused(&app.admin().delete(&format!("/jobs/{id}")).await, 404, "job not found");
    assert!(ids(&app.admin().get("/jobs").await).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_an_ended_job_is_kept_can_be_set() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_JOB_TTL", "1h")]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    ended(&app.admin(), &id).await;
    app.advance(TimeDelta::minutes(59));
    show(&app.admin(), &id).await;
    app.advance(TimeDelta::minutes(1));
    refused(&app.admin().get(&format!("/jobs/{id}")).await, 404, "job not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_not_ended_is_never_too_old() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "0")]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    app.advance(TimeDelta::days(30));
    assert_eq!(show(&app.admin(), &id).await["state"], "queued");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_kept_while_a_webhook_is_still_to_be_delivered() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    sink.then(Answer::status(200)).then(Answer::status(200)).always(Answer::status(503).header("retry-after", "3600"));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), and(chat("hi"), json!({"state_webhook_url": sink.hook()}))).await;
    ended(&app.admin(), &id).await;
    sink.received(3).await;
    let path = format!("/jobs/{id}/deliveries");
    let waiting = eventually("the failed attempt", async || {
        let last = app.admin().get(&path).await.json()["deliveries"][2].clone();
        (last["attempts"].as_array().is_some_and(|attempts| attempts.len() == 1)).then_some(last)
    });
    let waiting = waiting.await;
    app.advance(TimeDelta::hours(72));
    assert_eq!(show(&app.admin(), &id).await["state"], "completed");
    sink.always(Answer::status(200));
    let again = format!("{path}/{}/redeliver", waiting["id"].as_str().unwrap());
    assert_eq!(app.admin().post(&again, json!({})).await.status, 202);
    eventually("the job is gone", async || (app.admin().get(&format!("/jobs/{id}")).await.status == 404).then_some(()))
        .await;
}

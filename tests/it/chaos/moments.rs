//! One death or one freeze at a time, at the moment that matters.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{
    fleet::{Fleet, Home},
    models::{Kind, MODELS, Models},
};
use crate::jobs;
use crate::support::{Answer, Event, Gate, Ground, Server, Upstream, eventually, sink::Listener};

/// A job that was dead or frozen with its process runs elsewhere within so long.
const ELSEWHERE: Duration = Duration::from_secs(20);

fn held(hook: &str) -> Value {
    json!({"model": MODELS[0], "messages": [{"role": "user", "content": Kind::Held.prompt(0)}], "state_webhook_url": hook})
}

struct Two {
    fleet: Fleet,
    models: Models,
    receiver: Listener,
    ground: Arc<Ground>,
}

/// Two processes that share nothing but their database.
async fn two() -> Two {
    let ground = Ground::new().await;
    let (models, receiver) = (Models::start().await, Listener::start("127.0.0.1:0", |_| Answer::status(200)).await);
    let fleet = Fleet::start(&ground.db.url, models.url(), &[Home::Own, Home::Own]).await;
    Two { fleet, models, receiver, ground }
}

impl Two {
    /// A job that runs and does not end. Answers its id, who runs it, and who does not.
    async fn held(&self) -> (String, usize, usize) {
        let reply = self.fleet.api(0).post("/jobs", held(&format!("{}/hook", self.receiver.url))).await;
        let job = reply.json()["job_id"].as_str().expect("an id").to_owned();
        eventually("the call", async || (self.models.calls(0) == 1).then_some(())).await;
        let runner = eventually("who runs it", async || self.fleet.runner_of(&job).await).await;
        (job, runner, 1 - runner)
    }

    /// It runs a second time, soon enough after the first had no chance any more.
    async fn runs_again(&self, since: Instant) -> Duration {
        eventually("the second call", async || (self.models.calls(0) == 2).then_some(())).await;
        let took = since.elapsed();
        assert!(took < ELSEWHERE, "{took:?}");
        took
    }

    async fn ended(&self, at: usize, job: &str) -> Value {
        let path = format!("/jobs/{job}");
        eventually("the job's end", async || {
            let job = self.fleet.api(at).get(&path).await.json();
            (!job["completed_at"].is_null()).then_some(job)
        })
        .await
    }

    /// It ended once, in its second run, and its receiver heard everything once and in order.
    async fn is_told_once(&self, at: usize, job: &str) {
        let events = self.fleet.api(at).listen(&format!("/jobs/{job}/events")).await.rest().await;
        let numbers: Vec<_> = events.iter().filter_map(Event::number).collect();
        assert_eq!(numbers, (1..events.len() as u64).collect::<Vec<_>>(), "{events:?}");
        let states: Vec<_> = events.iter().filter_map(|event| event.data["state"].as_str()).collect();
        assert_eq!(states, ["queued", "running", "queued", "running", "completed"]);
        let deliveries = eventually("all webhooks", async || {
            let all = self.fleet.api(at).get(&format!("/jobs/{job}/deliveries")).await.json()["deliveries"].clone();
            all.as_array().expect("a list").iter().all(|one| one["status"] == "delivered").then_some(all)
        })
        .await;
        assert_eq!(deliveries.as_array().map(Vec::len), Some(5));
        // What was on its way when its sender died, or froze, may come again.
        let mut heard = Vec::new();
        for request in self.receiver.requests() {
            let sequence = request.json()["sequence"].clone();
            if !heard.contains(&sequence) {
                heard.push(sequence);
            }
        }
        assert_eq!(json!(heard), json!([0, 1, 2, 3, 4]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_killed_process_runs_elsewhere_within_twenty_seconds() {
    let mut two = two().await;
    let (job, runner, other) = two.held().await;
    two.fleet.kill(runner).await;
    let killed = Instant::now();
    let took = two.runs_again(killed).await;
    let ended = two.ended(other, &job).await;
    assert_eq!((&ended["state"], &ended["attempt"]), (&json!("completed"), &json!(2)), "{ended}");
    two.is_told_once(other, &job).await;
    eprintln!("it ran elsewhere {took:?} after the death");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_process_that_thaws_finishes_nothing_twice() {
    let mut two = two().await;
    let (job, frozen, other) = two.held().await;
    two.fleet.freeze(frozen).await;
    let since = Instant::now();
    two.models.held.open();
    two.runs_again(since).await;
    let ended = two.ended(other, &job).await;
    assert_eq!((&ended["state"], &ended["attempt"]), (&json!("completed"), &json!(2)), "{ended}");
    two.fleet.thaw(frozen);
    two.fleet.stale_write_refused(frozen).await;
    two.is_told_once(other, &job).await;
    assert_eq!(two.ended(frozen, &job).await, ended);
    eventually("both are at work", async || {
        let pool = two.fleet.api(frozen).get("/workers/pool").await.data(200);
        (pool["capacity"]["slots"] == 8 && pool["capacity"]["used"] == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_freezes_in_a_transaction_holds_nothing_up() {
    let mut two = two().await;
    let (job, frozen, other) = two.held().await;
    let db = two.ground.db.clone();
    let pending = "select count(*) from delivery where status = 'pending'";
    eventually("the first webhooks", async || (db.count(pending).await == 0).then_some(())).await;
    // The end of the job comes as far as its webhook, its task being finished already.
    let mut holding = db.connect().await;
    sqlx::raw_sql("begin; lock table delivery in exclusive mode").execute(&mut holding).await.unwrap();
    two.models.held.open();
    let waits = "select count(*) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock' and query like '%into delivery%'";
    eventually("the end of the job", async || (db.count(waits).await > 0).then_some(())).await;
    two.fleet.freeze(frozen).await;
    let since = Instant::now();
    sqlx::raw_sql("commit").execute(&mut holding).await.unwrap();
    two.runs_again(since).await;
    let ended = two.ended(other, &job).await;
    assert_eq!((&ended["state"], &ended["attempt"]), (&json!("completed"), &json!(2)), "{ended}");
    two.fleet.thaw(frozen);
    two.is_told_once(other, &job).await;
    assert_eq!(two.ended(frozen, &job).await, ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_thaws_does_not_overwrite_the_answer_that_another_process_gave() {
    let (slow, well, ground) = (Upstream::start().await, Upstream::with(&["late"]).await, Ground::new().await);
    let first = Server::start(&ground, &[("RDEV_OLLAMA_URL", &slow.url)]).await;
    let second = Server::start(&ground, &[("RDEV_OLLAMA_URL", &well.url)]).await;
    let body = json!({"model": "late", "messages": []});
    jobs::ended(&first.admin(), &jobs::submit(&first.admin(), jobs::chat("hi")).await).await;
    // The first has the key, and asks its upstream for the model.
    slow.hold("/api/tags", &Gate::new());
    let (key, asking) = eventually("a request under way", async || {
        let (key, api, body) = (uuid::Uuid::now_v7().to_string(), first.admin(), body.clone());
        let named = key.clone();
        let asking = tokio::spawn(async move { api.once(&named, "/jobs", body).await });
        let under_way = async || (asking.is_finished() || slow.listener.under_way("/api/tags") > 0).then_some(());
        eventually("an asking", under_way).await;
        (!asking.is_finished()).then_some((key, asking))
    })
    .await;
    kill(first.pid(), Signal::SIGSTOP).unwrap();
    let answered = eventually("an answer from the second", async || {
        let reply = second.admin().once(&key, "/jobs", body.clone()).await;
        (reply.status == 202).then(|| reply.json())
    })
    .await;
    kill(first.pid(), Signal::SIGCONT).unwrap();
    let late = asking.await.expect("the first answers too");
    assert_ne!(late.status, 202, "{}", late.text);
    for server in [&first, &second] {
        let again = server.admin().once(&key, "/jobs", body.clone()).await;
        assert_eq!((again.status, again.json()), (202, answered.clone()));
    }
    assert_eq!(ground.db.count("select count(*) from job where model = 'late'").await, 1);
}

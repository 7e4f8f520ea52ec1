//! Who carries jobs out: slots, several upstreams, several processes, stops and deaths.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{
    jobs::{app_on, chat, chat_with, ended, in_state, said, settings, show, submit, under_way},
    support::{Api, Chat, Event, Gate, Ground, Server, TestApp, Upstream, eventually},
};

async fn pool(api: &Api) -> Value {
    api.get("/workers/pool").await.data(200)
}

fn keys(value: &Value) -> Vec<&String> {
    let mut keys: Vec<_> = value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().collect();
    keys.sort();
    keys
}

#[track_caller]
fn adds_up(pool: &Value) {
    let number =
        |group: &str, name: &str| pool[group][name].as_u64().unwrap_or_else(|| panic!("{group}.{name}: {pool}"));
    assert_eq!(number("workers", "total"), number("workers", "busy") + number("workers", "idle"));
    assert_eq!(number("capacity", "slots"), number("capacity", "used") + number("capacity", "available"));
    let kinds = pool["queue"]["by_kind"].as_object().unwrap().values().map(|depth| depth.as_u64().unwrap());
    assert_eq!(number("queue", "depth"), kinds.sum::<u64>(), "{pool}");
}

async fn all_completed(api: &Api, ids: &[String]) {
    for id in ids {
        let job = ended(api, id).await;
        assert_eq!((&job["state"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_shows_slots_queue_and_processes() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.always_for("llama3", Chat::says(&[]).wait(&gate).token("x"));
    let app = app_on(&upstream, &[("RDEV_WORKERS", "3")]).await;
    let idle = pool(&app.admin()).await;
    assert_eq!(keys(&idle), ["capacity", "processes", "queue", "workers"]);
    assert_eq!(keys(&idle["workers"]), ["busy", "idle", "total"]);
    assert_eq!(keys(&idle["queue"]), ["by_kind", "depth", "oldest_age_seconds"]);
    assert_eq!(idle["capacity"], json!({"slots": 3, "used": 0, "available": 3}));
    adds_up(&idle);
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(submit(&app.admin(), chat("hi")).await);
    }
    under_way(&upstream, 3).await;
    let busy = eventually("two in the queue", async || {
        Some(pool(&app.admin()).await).filter(|pool| pool["queue"]["depth"] == 2 && pool["capacity"]["used"] == 3)
    })
    .await;
    adds_up(&busy);
    assert!(busy["workers"]["busy"].as_u64() >= Some(1) && busy["queue"]["oldest_age_seconds"].is_number(), "{busy}");
    let process = &busy["processes"][0];
    assert_eq!(keys(process), ["host", "id", "last_seen_at", "slots", "started_at", "used", "version"]);
    assert_eq!((&process["slots"], &process["used"]), (&json!(3), &json!(3)));
    assert!(
        ["started_at", "last_seen_at"].iter().all(|at| process[at].as_str().is_some_and(|text| text.ends_with('Z')))
    );
    gate.open();
    all_completed(&app.admin(), &ids).await;
    eventually("an empty queue", async || {
        let pool = pool(&app.admin()).await;
        (pool["queue"]["depth"] == 0 && pool["capacity"]["used"] == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_is_that_of_all_processes() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "3")]).await;
    let other = app.sibling(&[&settings(&upstream)[..], &[("RDEV_WORKERS", "2")]].concat()).await;
    for api in [app.admin(), other.admin()] {
        let pool = pool(&api).await;
        assert_eq!((pool["capacity"]["slots"].as_u64(), pool["processes"].as_array().unwrap().len()), (Some(5), 2));
        adds_up(&pool);
    }
    other.stop().await;
    eventually("one process", async || {
        let pool = pool(&app.admin()).await;
        (pool["capacity"]["slots"] == 3 && pool["processes"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_is_for_readers_of_projects() {
    let app = TestApp::start().await;
    app.nobody().get("/workers/pool").await.refusal(401, "UNAUTHORIZED");
    app.someone(&["jobs:read"]).await.get("/workers/pool").await.refusal(403, "FORBIDDEN");
    app.someone(&["projects:read"]).await.get("/workers/pool").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_circuits_are_there_for_everybody() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    let circuits = app.nobody().get("/health/circuits").await.data(200);
    assert_eq!(keys(&circuits), ["circuits"]);
    for circuit in circuits["circuits"].as_array().unwrap() {
        assert!(circuit["name"].is_string() && circuit["failures"].is_u64(), "{circuit}");
        assert_eq!((&circuit["state"], circuit.get("opened_at")), (&json!("closed"), None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_of_the_upstream_without_its_address() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let reply = app.nobody().get("/health").await;
    let health = reply.data(200);
    assert!(health["model_upstream"].as_str().is_some_and(|state| state != "unconfigured"), "{health}");
    assert!(!reply.text.contains(upstream.url.rsplit_once(':').unwrap().1), "{}", reply.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_jobs_run_at_once_and_no_more() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.always_for("llama3", Chat::says(&[]).wait(&gate).token("x"));
    let app = app_on(&upstream, &[("RDEV_WORKERS", "2")]).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(submit(&app.admin(), chat("hi")).await);
    }
    under_way(&upstream, 2).await;
    gate.open();
    all_completed(&app.admin(), &ids).await;
    assert_eq!((upstream.most_chats_at_once(), upstream.chats().len()), (2, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_one_process_accepts_may_run_in_another() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "0")]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    assert_eq!(show(&app.admin(), &id).await["state"], "queued");
    let _worker = app.sibling(&settings(&upstream)).await;
    all_completed(&app.admin(), &[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_a_queue_and_no_job() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let other = app.sibling(&settings(&upstream)).await;
    let (mut ids, apis) = (Vec::new(), [app.admin(), other.admin()]);
    for n in 0..40 {
        ids.push(submit(&apis[n % 2], chat(&format!("{n}"))).await);
    }
    all_completed(&app.admin(), &ids).await;
    let mut asked: Vec<usize> = upstream.asked().iter().map(|text| text.parse().unwrap()).collect();
    asked.sort_unstable();
    assert_eq!(asked, (0..40).collect::<Vec<_>>());
}

// --- Several upstreams ---

async fn over_two(one: &Upstream, two: &Upstream, own: &[(&str, &str)]) -> TestApp {
    let urls = format!("{},{}", one.url, two.url);
    app_on(one, &[&[("RDEV_OLLAMA_URL", urls.as_str())], own].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_upstream_does_not_stop_the_jobs_of_another() {
    let (hung, well) = (Upstream::with(&["a"]).await, Upstream::with(&["b"]).await);
    hung.always_for("a", Chat::hangs());
    let app = over_two(&hung, &well, &[]).await;
    for _ in 0..8 {
        submit(&app.admin(), chat_with("a", "hi")).await;
    }
    eventually("it hangs", async || (hung.chats_under_way() > 0).then_some(())).await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(submit(&app.admin(), chat_with("b", "hi")).await);
    }
    all_completed(&app.admin(), &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_does_not_even_list_its_models_holds_up_nobody() {
    let (hung, well) = (Upstream::with(&["a"]).await, Upstream::with(&["b"]).await);
    for path in ["/api/tags", "/api/ps"] {
        hung.hold(path, &Gate::new());
    }
    let app = over_two(&hung, &well, &[]).await;
    let id = eventually("an accepted job", async || {
        let reply = app.admin().post("/jobs", chat_with("b", "hi")).await;
        (reply.status == 202).then(|| reply.json()["job_id"].as_str().unwrap().to_owned())
    });
    all_completed(&app.admin(), &[id.await]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_where_its_model_is() {
    let (one, two) = (Upstream::with(&["a", "c"]).await, Upstream::with(&["b", "d"]).await);
    let app = over_two(&one, &two, &[]).await;
    let mut ids = Vec::new();
    for model in ["a", "b", "c", "d"] {
        ids.push(submit(&app.admin(), chat_with(model, model)).await);
    }
    all_completed(&app.admin(), &ids).await;
    let (mut at_one, mut at_two) = (one.asked(), two.asked());
    at_one.sort();
    at_two.sort();
    assert_eq!((at_one, at_two), (vec!["a".into(), "c".into()], vec!["b".into(), "d".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_where_its_model_is_loaded() {
    let (one, two) = (Upstream::with(&["a", "b"]).await, Upstream::with(&["a", "b"]).await);
    one.load("a");
    two.load("b");
    let app = over_two(&one, &two, &[]).await;
    for model in ["b", "a", "b", "a"] {
        all_completed(&app.admin(), &[submit(&app.admin(), chat_with(model, model)).await]).await;
    }
    assert_eq!((one.asked(), two.asked()), (vec!["a".to_owned(); 2], vec!["b".to_owned(); 2]));
}

// --- Stops and deaths ---

#[tokio::test(flavor = "multi_thread")]
async fn a_job_survives_a_restart() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "0")]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    let app = app.restart(&settings(&upstream)).await;
    all_completed(&app.admin(), std::slice::from_ref(&id)).await;
    let job = show(&app.admin(), &id).await;
    let app = app.restart(&settings(&upstream)).await;
    assert_eq!(show(&app.admin(), &id).await, job);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_gives_jobs_back_and_that_claim_does_not_count() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["half an "]).wait(&Gate::new()));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    in_state(&app.admin(), &id, "running").await;
    let started = Instant::now();
    let app = app.restart(&[&settings(&upstream)[..], &[("RDEV_WORKERS", "0")]].concat()).await;
    assert!(started.elapsed() < Duration::from_secs(9), "the stop waited for the job: {:?}", started.elapsed());
    eventually("the call's end", async || (upstream.chats_cancelled() == 1).then_some(())).await;
    let given_back = show(&app.admin(), &id).await;
    assert_eq!((&given_back["state"], &given_back["attempt"]), (&json!("queued"), &json!(0)), "{given_back}");
    let app = app.restart(&settings(&upstream)).await;
    all_completed(&app.admin(), std::slice::from_ref(&id)).await;
    let events = app.admin().listen(&format!("/jobs/{id}/events")).await.rest().await;
    let numbers: Vec<_> = events.iter().filter_map(Event::number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let after = events.iter().rposition(|event| event.name == "reset").expect("a reset");
    let tokens =
        |events: &[Event]| -> String { events.iter().filter_map(|event| event.data["text"].as_str()).collect() };
    assert_eq!((tokens(&events[..after]), tokens(&events[after..])), ("half an ".to_owned(), "Hello there".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_job_runs_elsewhere_within_20_s_and_that_is_no_failure_of_its() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["half an "]).wait(&Gate::new()));
    let own = [&settings(&upstream)[..], &[("RDEV_JOB_MAX_ATTEMPTS", "1")]].concat();
    let ground = Ground::new().await;
    let first = Server::start(&ground, &own).await;
    let id = submit(&first.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    let second = Server::start(&ground, &own).await;
    first.kill().await;
    let killed = Instant::now();
    eventually("the second call", async || (upstream.chats().len() == 2).then_some(())).await;
    assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
    let job = ended(&second.admin(), &id).await;
    assert_eq!(
        (&job["state"], &job["result"]["message"]["content"]),
        (&json!("completed"), &json!("Hello there")),
        "{job}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_were_accepted_survive_a_kill() {
    let upstream = Upstream::start().await;
    let ground = Ground::new().await;
    let own = [&settings(&upstream)[..], &[("RDEV_WORKERS", "0")]].concat();
    let server = Server::start(&ground, &own).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(submit(&server.admin(), chat("hi")).await);
    }
    server.kill().await;
    let server = Server::start(&ground, &settings(&upstream)).await;
    all_completed(&server.admin(), &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_cannot_complete_the_job_a_second_time() {
    let (upstream, gate, ground) = (Upstream::start().await, Gate::new(), Ground::new().await);
    upstream.then(Chat::says(&[]).wait(&gate).token("from the first"));
    let first = Server::start(&ground, &settings(&upstream)).await;
    let id = submit(&first.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    let second = Server::start(&ground, &settings(&upstream)).await;
    // It stands still, is not dead, and knows nothing of the time that passes.
    kill(first.pid(), Signal::SIGSTOP).unwrap();
    let job = ended(&second.admin(), &id).await;
    assert_eq!((&job["state"], said(&job)), (&json!("completed"), "Hello there"), "{job}");
    gate.open();
    kill(first.pid(), Signal::SIGCONT).unwrap();
    eventually("the first call's end", async || (upstream.chats_under_way() == 0).then_some(())).await;
    // It works again, and what it had in hand is forgotten.
    let later = submit(&first.admin(), chat("later")).await;
    assert_eq!(ended(&first.admin(), &later).await["state"], "completed");
    for server in [&first, &second] {
        assert_eq!(show(&server.admin(), &id).await, job);
    }
}

//! Who wants something of the fleet: clients that submit until they have an answer, some of
//! whom change their minds; and receivers of webhooks, of whom not all are in good order.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    fleet::{Doors, Fleet},
    models::{Kind, MODELS},
};
use crate::support::{
    Answer, Event, Events, Gate,
    sink::{Listener, Request, lock},
    soon,
};

/// What one attempt to reach a process may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// What a submission may take, over all its attempts. Reached only by a test that fails.
const IN_ALL: Duration = Duration::from_secs(90);

/// Pause before another process is asked.
const AGAIN: Duration = Duration::from_millis(100);

/// A submission that was answered.
#[derive(Clone, Debug)]
pub struct Submitted {
    pub n: usize,
    pub kind: Kind,
    pub job: String,
    pub has_webhook: bool,
    /// What the answer to its cancellation said.
    pub cancelled: Option<String>,
}

/// Who follows a job, each with what it saw in the end.
type Followers = JoinSet<(String, Vec<Event>)>;

/// All clients. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    http: reqwest::Client,
    key: String,
    doors: Doors,
    hooks: Vec<String>,
    next: Arc<AtomicUsize>,
    done: Arc<Mutex<Vec<Submitted>>>,
    followers: Arc<Mutex<Followers>>,
    over: Arc<AtomicBool>,
}

impl Clients {
    pub fn new(fleet: &Fleet, receivers: &Receivers) -> Self {
        rdev::app::choose_tls();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a plain client");
        Self {
            http,
            key: fleet.key.clone(),
            doors: fleet.doors.clone(),
            hooks: receivers.urls(),
            next: Arc::default(),
            done: Arc::default(),
            followers: Arc::default(),
            over: Arc::default(),
        }
    }

    /// Submits one job after the other, until there are so many and it is over.
    pub async fn submit_all(self, jobs: u32, pause: Duration) {
        while self.next.load(Ordering::Acquire) < jobs as usize || !self.over.load(Ordering::Acquire) {
            let n = self.next.fetch_add(1, Ordering::AcqRel);
            self.submit(n, Kind::of(n)).await;
            tokio::time::sleep(pause).await;
        }
    }

    /// No more than what was promised.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Release);
    }

    pub fn submitted(&self) -> Vec<Submitted> {
        lock(&self.done).clone()
    }

    /// One job beside the others.
    pub async fn submit_held(&self) -> Submitted {
        self.submit(self.next.fetch_add(1, Ordering::AcqRel), Kind::Held).await
    }

    async fn submit(&self, n: usize, kind: Kind) -> Submitted {
        let (key, hook) = (format!("submission-{n}"), (n % 7 != 6).then(|| &self.hooks[n % self.hooks.len()]));
        let mut body =
            json!({"model": MODELS[n % MODELS.len()], "messages": [{"role": "user", "content": kind.prompt(n)}]});
        if let Some(hook) = hook {
            body["state_webhook_url"] = hook.as_str().into();
        }
        if kind == Kind::Held {
            body["priority"] = 0.into();
        }
        let job = self.submit_once(n, &key, &body).await;
        if n % 5 == 2 {
            assert_eq!(self.submit_once(n + 1, &key, &body).await, job, "a second answer to {key}");
        }
        if n % 4 == 1 {
            let (client, followed) = (self.clone(), job.clone());
            lock(&self.followers).spawn(async move { client.follow(n, followed).await });
        }
        let cancelled = if n % 8 == 4 && kind != Kind::Held { Some(self.cancel(n, &job).await) } else { None };
        let submitted = Submitted { n, kind, job, has_webhook: hook.is_some(), cancelled };
        lock(&self.done).push(submitted.clone());
        submitted
    }

    async fn submit_once(&self, door: usize, key: &str, body: &Value) -> String {
        let ask =
            |url: &str| self.http.post(format!("{url}/jobs")).header("idempotency-key", key).body(body.to_string());
        self.ask(door, 202, ask).await["job_id"].as_str().expect("an id").to_owned()
    }

    async fn cancel(&self, n: usize, job: &str) -> String {
        tokio::time::sleep(Duration::from_millis(100 * (n as u64 % 9))).await;
        let shown = self.ask(n, 200, |url| self.http.delete(format!("{url}/jobs/{job}"))).await;
        shown["state"].as_str().expect("a state").to_owned()
    }

    /// Follows a job to its end, at one process after the other: each goes on where the last one left off.
    async fn follow(self, door: usize, job: String) -> (String, Vec<Event>) {
        let mut seen: Vec<Event> = Vec::new();
        for attempt in 0.. {
            let url = self.door(door + attempt);
            let mut request = self.http.get(format!("{url}/jobs/{job}/events")).bearer_auth(&self.key);
            if let Some(last) = seen.last().and_then(|event| event.id.clone()) {
                request = request.header("last-event-id", last);
            }
            if let Ok(answer) = request.send().await
                && answer.status() == 200
            {
                let mut events = Events::new(answer);
                while let Some(event) = events.try_next().await {
                    if event.id.is_some() {
                        seen.push(event);
                    }
                }
            }
            if seen.last().is_some_and(Event::is_last) {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        (job, seen)
    }

    /// By job, what its follower saw.
    pub async fn followed(&self) -> HashMap<String, Vec<Event>> {
        let mut followers = std::mem::take(&mut *lock(&self.followers));
        let mut seen = HashMap::new();
        while let Some(one) = soon("the end of a followed job", followers.join_next()).await {
            seen.extend([one.expect("no panic")]);
        }
        seen
    }

    fn door(&self, n: usize) -> String {
        let doors = lock(&self.doors);
        doors[n % doors.len()].clone()
    }

    /// Asks one process after the other until one answers so.
    async fn ask(&self, door: usize, status: u16, ask: impl Fn(&str) -> reqwest::RequestBuilder) -> Value {
        let until = tokio::time::Instant::now() + IN_ALL;
        let mut last = String::new();
        for attempt in 0.. {
            assert!(tokio::time::Instant::now() < until, "no {status} within {IN_ALL:?}, the last was: {last}");
            let url = self.door(door + attempt);
            match ask(&url).bearer_auth(&self.key).send().await {
                Ok(answer) if answer.status() == status => match answer.json().await {
                    Ok(body) => return body,
                    Err(error) => last = error.to_string(),
                },
                Ok(answer) => {
                    last = format!("{} {:?}", answer.status(), answer.text().await);
                    let again = ["409", "503", "504"].iter().any(|again| last.starts_with(again));
                    assert!(again, "{status} was expected: {last}");
                }
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(AGAIN).await;
        }
        unreachable!("it was asserted that there is time")
    }
}

/// A receiver in good order, a slow one, and one that refuses some webhooks the first time.
pub struct Receivers(Vec<Listener>);

impl Receivers {
    pub async fn start() -> Self {
        let good = Listener::start("127.0.0.1:0", |_| Answer::status(200)).await;
        let slow = Listener::start("127.0.0.1:0", |_| {
            let gate = Gate::new();
            let opening = gate.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(150)).await;
                opening.open();
            });
            Answer::status(204).wait(&gate)
        })
        .await;
        let seen = Mutex::new(HashMap::<String, usize>::new());
        let failing = Listener::start("127.0.0.1:0", move |request| {
            let id = request.header("webhook-id").unwrap_or_default().to_owned();
            let chosen = id.ends_with(['0', '3', '7', 'b']);
            let mut seen = lock(&seen);
            let times = seen.entry(id).or_default();
            *times += 1;
            Answer::status(if chosen && *times == 1 { 500 } else { 200 })
        })
        .await;
        Self(vec![good, slow, failing])
    }

    fn urls(&self) -> Vec<String> {
        self.0.iter().map(|listener| format!("{}/hook", listener.url)).collect()
    }

    /// By job, in the order in which they came.
    pub fn arrivals(&self) -> HashMap<String, Vec<Request>> {
        let mut by_job: HashMap<String, Vec<Request>> = HashMap::new();
        for request in self.0.iter().flat_map(Listener::requests) {
            let job = request.json()["job_id"].as_str().expect("a job").to_owned();
            by_job.entry(job).or_default().push(request);
        }
        by_job
    }
}

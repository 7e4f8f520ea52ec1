//! What steps and compensations call: a receiver that answers by the words of the path and
//! keeps what it heard, so that a story can tell how often and under which key it was asked.
//!
//! `/fail/2/...` fails the first two requests with 503, `/status/409/...` always answers that,
//! `/hang/...` never, `/slow/200/...` after so many milliseconds, `/echo/...` with what was sent.
//! Any other path is well. [`Counter::then`], [`Counter::always`] and [`Counter::hold`] win over that.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    eventually,
    sink::{Answer, Gate, Listener, Request, lock},
};

/// Longest that `/slow` takes.
const SLOW_MAX: u64 = 5_000;

#[derive(Default)]
struct Script {
    next: BTreeMap<String, VecDeque<Answer>>,
    always: BTreeMap<String, Answer>,
    held: BTreeMap<String, Gate>,
    asked: BTreeMap<String, u64>,
}

/// Listens for as long as it lives, on a free port.
pub struct Counter {
    pub url: String,
    pub listener: Listener,
    script: Arc<Mutex<Script>>,
}

impl Counter {
    pub async fn start() -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let answers = script.clone();
        let listener = Listener::start("127.0.0.1:0", move |request| answer(&mut lock(&answers), request)).await;
        Self { url: listener.url.clone(), listener, script }
    }

    /// A URL on it.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// As it is called in circuits.
    pub fn port(&self) -> &str {
        self.url.rsplit_once(':').expect("a URL with a port").1
    }

    /// What the next request to this path gets that was not told anything else before.
    pub fn then(&self, path: &str, answer: Answer) -> &Self {
        lock(&self.script).next.entry(path.to_owned()).or_default().push_back(answer);
        self
    }

    pub fn always(&self, path: &str, answer: Answer) -> &Self {
        lock(&self.script).always.insert(path.to_owned(), answer);
        self
    }

    /// Answers on this path wait for the gate.
    pub fn hold(&self, path: &str) -> Gate {
        let gate = Gate::new();
        lock(&self.script).held.insert(path.to_owned(), gate.clone());
        gate
    }

    /// All requests so far, as they came.
    pub fn requests(&self) -> Vec<Request> {
        self.listener.requests()
    }

    pub fn to(&self, path: &str) -> Vec<Request> {
        self.listener.requests_to(path)
    }

    /// The requests to this path, when there are so many.
    pub async fn received(&self, path: &str, count: usize) -> Vec<Request> {
        let enough = async || Some(self.to(path)).filter(|all| all.len() >= count);
        eventually(&format!("{count} requests to {path}"), enough).await
    }

    /// The paths in the order in which they were asked for.
    pub fn order(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }

    /// The idempotency keys that came to this path, in their order.
    pub fn keys(&self, path: &str) -> Vec<String> {
        headers(&self.to(path), "idempotency-key")
    }

    /// The one idempotency key that came to this path, however often.
    #[track_caller]
    pub fn key(&self, path: &str) -> String {
        let keys = self.keys(path);
        let different: BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), 1, "keys at {path}: {keys:?}");
        keys[0].clone()
    }

    /// The attempts as their headers count them.
    pub fn attempts(&self, path: &str) -> Vec<String> {
        headers(&self.to(path), "x-rdev-attempt")
    }

    /// How often each idempotency key was used.
    pub fn by_key(&self) -> BTreeMap<String, usize> {
        let mut counted = BTreeMap::new();
        for key in headers(&self.requests(), "idempotency-key") {
            *counted.entry(key).or_default() += 1;
        }
        counted
    }

    /// Requests that wait for their answer, of these paths.
    pub fn open(&self, paths: &[String]) -> Vec<String> {
        paths.iter().filter(|path| self.listener.under_way(path) > 0).cloned().collect()
    }
}

/// This header of each request, or nothing where it has none.
fn headers(requests: &[Request], name: &str) -> Vec<String> {
    requests.iter().map(|request| request.header(name).unwrap_or_default().to_owned()).collect()
}

fn answer(script: &mut Script, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    let asked = script.asked.entry(path.to_owned()).or_default();
    *asked += 1;
    let asked = *asked;
    let told = script.next.get_mut(path).and_then(VecDeque::pop_front).or_else(|| script.always.get(path).cloned());
    let gate = script.held.get(path).cloned();
    told.unwrap_or_else(|| by_words(path, asked, request)).first(gate.iter())
}

fn by_words(path: &str, asked: u64, request: &Request) -> Answer {
    let mut words = path.trim_start_matches('/').split('/');
    let (word, number) = (words.next().unwrap_or_default(), words.next().and_then(|text| text.parse::<u64>().ok()));
    match (word, number) {
        ("fail", Some(times)) if asked <= times => Answer::json(503, &json!({"error": "not yet"})),
        ("status", Some(status)) => {
            let status = u16::try_from(status).expect("a status");
            let has_body = !matches!(status, 204 | 304);
            if has_body { Answer::json(status, &json!({"status": status})) } else { Answer::status(status) }
        }
        ("hang", _) => Answer::hangs(),
        ("slow", Some(milliseconds)) => {
            let (gate, opened) = (Gate::new(), Duration::from_millis(milliseconds.min(SLOW_MAX)));
            let timer = gate.clone();
            tokio::spawn(async move {
                tokio::time::sleep(opened).await;
                timer.open();
            });
            Answer::json(200, &json!({"ok": true})).first([gate].iter())
        }
        ("echo", _) => Answer::json(200, &echoed(request)),
        _ => Answer::json(200, &json!({"ok": true})),
    }
}

fn echoed(request: &Request) -> Value {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    json!({"method": request.method, "path": request.path, "body": body})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_answers_by_the_words_of_the_path() {
    let counter = Counter::start().await;
    let client = super::Api::new(&counter.url, None);
    let mut statuses = Vec::new();
    for path in ["/ok", "/fail/2/x", "/fail/2/x", "/fail/2/x", "/fail/1/y", "/status/409", "/slow/10"] {
        statuses.push(client.get(path).await.status);
    }
    assert_eq!(statuses, [200, 503, 503, 200, 503, 409, 200]);
    let echo = client.post("/echo/a?b=c", json!({"n": 1})).await.json();
    assert_eq!(echo, json!({"method": "POST", "path": "/echo/a?b=c", "body": {"n": 1}}));
    let hanging = client.request(http::Method::GET, "/hang", None, &[]).timeout(Duration::from_millis(200)).send();
    assert!(hanging.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_counts_keys_and_attempts() {
    let counter = Counter::start().await;
    let client = super::Api::new(&counter.url, None);
    for (path, key, attempt) in [("/a", "k", "1"), ("/a", "k", "2"), ("/b", "l", "1")] {
        let headers = [("idempotency-key", key), ("x-rdev-attempt", attempt)];
        client.send(http::Method::POST, path, None, &headers).await;
    }
    assert_eq!((counter.key("/a").as_str(), counter.attempts("/a")), ("k", vec!["1".to_owned(), "2".to_owned()]));
    assert_eq!(counter.by_key(), BTreeMap::from([("k".to_owned(), 2), ("l".to_owned(), 1)]));
    assert_eq!(counter.order(), ["/a", "/a", "/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_does_first_what_it_was_told() {
    let counter = Counter::start().await;
    counter.then("/fail/9", Answer::status(204)).always("/ok", Answer::status(418));
    let client = super::Api::new(&counter.url, None);
    assert_eq!((client.get("/fail/9").await.status, client.get("/fail/9").await.status), (204, 503));
    assert_eq!((client.get("/ok").await.status, client.get("/ok").await.status), (418, 418));
    let gate = counter.hold("/held");
    let paths = ["/held".to_owned(), "/ok".to_owned()];
    let opening = async {
        eventually("the request", async || (counter.open(&paths) == ["/held"]).then_some(())).await;
        gate.open();
    };
    let (reply, ()) = tokio::join!(client.get("/held"), opening);
    assert_eq!((reply.status, counter.open(&paths).len()), (200, 0));
}

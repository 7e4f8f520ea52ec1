//! Requests to whoever is there: repeated, at one door after the other, until somebody has answered.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;

use crate::{chaos::fleet::Doors, support::sink::lock};

/// What one attempt to reach a process may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// What a request may take, over all its attempts. Reached only by a test that fails.
const IN_ALL: Duration = Duration::from_mins(1);
const AGAIN: Duration = Duration::from_millis(100);

/// Cheap to clone.
#[derive(Clone)]
pub struct Knocking {
    http: reqwest::Client,
    key: String,
    doors: Doors,
}

impl Knocking {
    pub fn new(key: &str, doors: &Doors) -> Self {
        rdev::app::choose_tls();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a plain client");
        Self { http, key: key.to_owned(), doors: doors.clone() }
    }

    /// The body of a 200.
    pub async fn get(&self, door: usize, path: &str) -> Value {
        let (status, answer) = self.ask(door, |url| self.http.get(format!("{url}{path}"))).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Done once, however often it had to be sent. Answers the status and the body.
    pub async fn post(&self, door: usize, path: &str, key: &str, body: &Value) -> (u16, Value) {
        let ask =
            |url: &str| self.http.post(format!("{url}{path}")).header("idempotency-key", key).body(body.to_string());
        self.ask(door, ask).await
    }

    /// Something that may be repeated.
    pub async fn send(&self, method: Method, path: &str) -> (u16, Value) {
        self.ask(0, |url| self.http.request(method.clone(), format!("{url}{path}")).body("{}")).await
    }

    /// The stream of a saga, from one door alone.
    pub async fn listen(&self, door: usize, saga: &str, last: Option<&str>) -> Option<reqwest::Response> {
        let request = self.http.get(format!("{}/sagas/{saga}/events", self.door(door))).bearer_auth(&self.key);
        let request = match last {
            None => request,
            Some(last) => request.header("last-event-id", last),
        };
        request.send().await.ok().filter(|answer| answer.status() == 200)
    }

    async fn ask(&self, door: usize, ask: impl Fn(&str) -> reqwest::RequestBuilder) -> (u16, Value) {
        let (began, mut last) = (Instant::now(), String::new());
        for attempt in 0.. {
            assert!(began.elapsed() < IN_ALL, "no answer within {IN_ALL:?}, the last was: {last}");
            match ask(&self.door(door + attempt)).bearer_auth(&self.key).send().await {
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    match answer.json::<Value>().await {
                        Ok(body) if is_an_answer(status, &body) => return (status, body),
                        Ok(body) => last = format!("{status} {body}"),
                        Err(error) => last = error.to_string(),
                    }
                }
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(AGAIN).await;
        }
        unreachable!("it was asserted that there is time")
    }

    fn door(&self, n: usize) -> String {
        let doors = lock(&self.doors);
        doors[n % doors.len()].clone()
    }
}

/// And not that it has to be asked for once more.
fn is_an_answer(status: u16, body: &Value) -> bool {
    !matches!(status, 429 | 503 | 504) && body["error"]["code"] != "IDEMPOTENCY_IN_PROGRESS"
}

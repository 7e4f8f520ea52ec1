//! Sagas over HTTP: each client makes one by POST on a connection that it keeps, and sees its end
//! by one GET of its events.

use std::time::{Duration, Instant};

use memchr::memmem;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::support::{
    client::{Connection, request},
    server::Server,
};

/// Three steps that do nothing.
pub fn three() -> Value {
    let step = |n: u32| json!({"name": format!("step {n}"), "action": "noop"});
    json!({"name": "measured", "steps": [step(0), step(1), step(2)]})
}

/// Sagas a second that are made and seen to be completed.
pub async fn carry(server: &Server, clients: usize, time: Duration) -> f64 {
    let post = request("POST", "/sagas", &server.key, Some(&three()));
    let begun = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..clients {
        let (address, key, post) = (server.address, server.key.clone(), post.clone());
        all.spawn(async move {
            let mut connection = Connection::open(address).await;
            let mut done = 0_u32;
            while begun.elapsed() < time {
                let id = made(&mut connection, &post).await;
                let events = request("GET", &format!("/sagas/{id}/events"), &key, None);
                let mut events = Connection::open(address).await.listen(&events).await;
                assert!(events.count("event: complete", 1).await, "its events end with the completion");
                done += 1;
            }
            done
        });
    }
    let done: u32 = all.join_all().await.iter().sum();
    f64::from(done) / begun.elapsed().as_secs_f64()
}

/// Makes so many sagas of this body.
pub async fn make(server: &Server, body: &Value, clients: usize, count: usize) {
    let post = request("POST", "/sagas", &server.key, Some(body));
    let mut all = JoinSet::new();
    for _ in 0..clients {
        let (address, post) = (server.address, post.clone());
        all.spawn(async move {
            let mut connection = Connection::open(address).await;
            for _ in 0..count / clients {
                made(&mut connection, &post).await;
            }
        });
    }
    all.join_all().await;
}

/// The id of the saga that was made.
async fn made(connection: &mut Connection, post: &[u8]) -> String {
    let status = connection.ask(post).await;
    let body = connection.body();
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(body));
    let at = memmem::find(body, b"\"id\":\"").expect("an id") + 6;
    String::from_utf8_lossy(&body[at..at + 36]).into_owned()
}

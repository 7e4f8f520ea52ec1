//! Webhooks to a receiver on this machine that listens at 8 ports. The floor posts a body of
//! the same length over 32 kept connections and looks at the status, and does nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    routing::{get, post},
};
use http::StatusCode;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    super::{
        Bench, ROUNDS,
        support::{
            client::{Connection, request},
            server::{Server, serve_floor},
        },
    },
    rdev,
    table::{Line, Target},
};

const PORTS: usize = 8;
const CONNECTIONS: usize = 32;
const WARM: Duration = Duration::from_millis(500);
const TIME: Duration = Duration::from_secs(3);

pub async fn measure(bench: &Bench) {
    let mut line = Line::new("webhooks (floor: raw POSTs at 32 connections)", "/s");
    for _ in 0..ROUNDS {
        let receiver = Receiver::start().await;
        posts(&receiver, WARM).await;
        line.floor(posts(&receiver, TIME).await);
        line.rdev(rdev::webhooks(bench, &receiver).await);
    }
    line.print(&[Target::OfFloor(0.25)]);
}

/// The receiver, a process of its own.
pub struct Receiver {
    server: Server,
    pub ports: Vec<u16>,
}

impl Receiver {
    pub async fn start() -> Self {
        let server = Server::floor(&["receiver"]);
        let ports = ask(&server, "/ports").await;
        let ports = serde_json::from_value(ports).expect("a list of ports");
        Self { server, ports }
    }

    /// How many came so far.
    pub async fn count(&self) -> u64 {
        ask(&self.server, "/count").await.as_u64().expect("a number")
    }
}

async fn ask(server: &Server, path: &str) -> Value {
    let mut connection = Connection::open(server.address).await;
    assert_eq!(connection.ask(&request("GET", path, "", None)).await, 200);
    serde_json::from_slice(connection.body()).expect("JSON")
}

/// POSTs a second.
async fn posts(receiver: &Receiver, time: Duration) -> f64 {
    // Nothing is encrypted here, and the client must have its TLS all the same.
    ::rdev::app::choose_tls();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
    let mut all = JoinSet::new();
    let begun = Instant::now();
    for n in 0..CONNECTIONS {
        let url: reqwest::Url = format!("http://127.0.0.1:{}/", receiver.ports[n % PORTS]).parse().expect("a URL");
        let client = client.clone();
        all.spawn(async move {
            let mut count = 0_u32;
            while begun.elapsed() < time {
                let post = client.post(url.clone()).header("content-type", "application/json").body(BODY);
                assert!(post.send().await.expect("an answer").status().is_success());
                count += 1;
            }
            count
        });
    }
    let count: u32 = all.join_all().await.into_iter().sum();
    f64::from(count) / begun.elapsed().as_secs_f64()
}

/// As long as that of a job that began.
pub const BODY: &str = r#"{"id":"0193b6c1-7d2e-7c3a-9a51-0d6f5a3c2e11","event":"job.state","job_id":"01JDXC2S3T4V5W6X7Y8Z9A0B1C","state":"running","previous_state":"queued","timestamp":"2026-11-21T11:24:20.123Z","model":"measured:latest","attempt":1,"sequence":1}"#;

/// The receiver's program.
pub async fn receive() {
    let count = Arc::new(AtomicU64::new(0));
    let sink = Router::new().route("/", post(take)).with_state(count.clone());
    let mut ports = Vec::new();
    for _ in 0..PORTS {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        ports.push(listener.local_addr().expect("an address").port());
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            let _unsupported = stream.set_nodelay(true);
        });
        let serving = axum::serve(listener, sink.clone());
        tokio::spawn(async move { serving.await });
    }
    let router = Router::new()
        .route("/ports", get(|| async move { Json(ports) }))
        .route("/count", get(|State(count): State<Arc<AtomicU64>>| async move { Json(count.load(Ordering::Relaxed)) }))
        .with_state(count);
    serve_floor(router).await;
}

/// Reads the body, as any receiver would.
async fn take(State(count): State<Arc<AtomicU64>>, _body: Bytes) -> StatusCode {
    count.fetch_add(1, Ordering::Relaxed);
    StatusCode::OK
}

//! Streams of events: many subscribers to one, their latency, replay, and what an idle one
//! costs. The floor is axum with a ring in memory: each event is framed once and its bytes
//! are shared. It reads its lines from the pipe itself and stores nothing; rdev's come from
//! a command in the sandbox and are in the database before they are shown.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench is not the product, and its numbers are small"
)]

mod support;

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::json;
use support::{
    Role, block_on,
    client::{Connection, Listener, request},
    feed::{self, Pace},
    postgres::Postgres,
    report::{Row, Target, head},
    role,
    server::{DataDir, Server, fifo, serve_floor},
    stats::{cpu, percentile, resident},
    wanted,
};
use tokio::{sync::watch, task::JoinSet};

const ROUNDS: usize = 3;
const EVENT: &str = "event: output";
const IDLE: usize = 2000;

fn main() {
    match role() {
        Role::Floor(arguments) => block_on(floor(PathBuf::from(&arguments[0]))),
        Role::Measure => block_on(measure()),
        Role::Nothing => {}
    }
}

async fn measure() {
    let postgres = Postgres::start().await;
    let data = DataDir::new();
    let rdev = Server::rdev(&postgres.url("rdev"), &data);
    let project = rdev.project("measured").await;
    let workspace = PathBuf::from(project["workspace"].as_str().expect("a workspace"));
    let floor = Server::floor(&[&data.path().display().to_string()]);
    let floor = Side { server: floor, pipes: data.path(), is_rdev: false };
    let rdev = Side { server: rdev, pipes: workspace, is_rdev: true };
    println!("{ROUNDS} rounds; client, server and database share the cores");
    head();
    let us = Duration::from_micros;
    if wanted("idle") {
        idle(&floor, &rdev).await;
    }
    if wanted("fan-out") {
        fan_out(&floor, &rdev, "a flood", 100, 10_000, Pace::Flood).await;
        fan_out(&floor, &rdev, "a flood", 1000, 1_000, Pace::Flood).await;
        fan_out(&floor, &rdev, "5,000 lines/s", 100, 8_000, Pace::Every(us(200))).await;
        fan_out(&floor, &rdev, "1,000 lines/s", 1000, 1_500, Pace::Every(us(1000))).await;
    }
    if wanted("latency") {
        // The targets are 1.25 times nginx with nchan, on two quiet cores.
        paced(&floor, &rdev, 1, us(10_000), 0.16 * 1.25).await;
        paced(&floor, &rdev, 100, us(20_000), 0.77 * 1.25).await;
        paced(&floor, &rdev, 1000, us(50_000), 5.9 * 1.25).await;
    }
    if wanted("replay") {
        replay(&floor, &rdev).await;
    }
}

/// rdev or its floor, and where its pipes are.
struct Side {
    server: Server,
    pipes: PathBuf,
    is_rdev: bool,
}

/// A stream that lines can be written to.
struct Stream {
    pipe: PathBuf,
    path: String,
}

impl Side {
    async fn stream(&self) -> Stream {
        let name = format!("feed-{}", uuid::Uuid::new_v4().simple());
        let pipe = self.pipes.join(&name);
        fifo(&pipe);
        let path = if self.is_rdev {
            let body = json!({"args": ["cat", name]});
            let command = self.server.call("POST", "/projects/measured/shell", Some(&body)).await;
            command["events_url"].as_str().expect("a URL").to_owned()
        } else {
            self.server.call("POST", &format!("/feeds/{name}"), None).await;
            format!("/feeds/{name}")
        };
        Stream { pipe, path }
    }

    async fn listeners(&self, stream: &Stream, count: usize) -> Vec<Listener> {
        let mut listeners = Vec::new();
        for _ in 0..count {
            let mut listener = self.open().await.listen(&self.request(&stream.path)).await;
            assert!(listener.count("event: connected", 1).await, "a greeting comes first");
            listeners.push(listener);
        }
        listeners
    }

    async fn open(&self) -> Connection {
        Connection::open(self.server.address).await
    }

    fn request(&self, path: &str) -> Vec<u8> {
        request("GET", path, &self.server.key, None)
    }
}

/// Everybody gets everything; events delivered a second, from the first write to the last read.
async fn fan_out(floor: &Side, rdev: &Side, how: &str, subscribers: usize, lines: usize, pace: Pace) {
    let mut row = Row::new(format!("fan-out to {subscribers} of {how}, delivered"), "/s");
    let mut used = Row::new(format!("fan-out to {subscribers} of {how}, CPU of the server an event"), "us");
    for _ in 0..ROUNDS {
        let mut rates = Vec::new();
        for side in [floor, rdev] {
            let stream = side.stream().await;
            let listeners = side.listeners(&stream, subscribers).await;
            let before = cpu(side.server.pid());
            let writing = feed::write(stream.pipe.clone(), lines, pace);
            let mut all = JoinSet::new();
            for mut listener in listeners {
                all.spawn(async move { listener.count(EVENT, lines).await });
            }
            assert!(all.join_all().await.into_iter().all(|whole| whole), "everybody gets everything");
            let took = writing.await.expect("the writer").elapsed().as_secs_f64();
            let delivered = (subscribers * lines) as f64;
            rates.push((delivered / took, (cpu(side.server.pid()) - before) / delivered * 1e6));
        }
        row.add(rates[0].0, rates[1].0);
        used.add(rates[0].1, rates[1].1);
    }
    row.print(Target::ShareOfFloor(0.7));
    used.print(Target::None);
}

/// From the write of a line to its event at a subscriber.
async fn paced(floor: &Side, rdev: &Side, subscribers: usize, pause: Duration, most: f64) {
    let mut p50 = Row::new(format!("latency at {subscribers} subscribers, one line each {pause:?}, p50"), "ms");
    let mut p99 = Row::new(format!("latency at {subscribers} subscribers, one line each {pause:?}, p99"), "ms");
    let lines = if subscribers > 100 { 30 } else { 100 };
    for _ in 0..ROUNDS {
        let mut seen = Vec::new();
        for side in [floor, rdev] {
            let stream = side.stream().await;
            let listeners = side.listeners(&stream, subscribers).await;
            let writing = feed::write(stream.pipe.clone(), lines, Pace::Every(pause));
            let mut all = JoinSet::new();
            for listener in listeners {
                all.spawn(ages(listener, lines));
            }
            let ages = all.join_all().await.concat();
            writing.await.expect("the writer");
            seen.push((percentile(&ages, 0.5), percentile(&ages, 0.99)));
        }
        p50.add(seen[0].0, seen[1].0);
        p99.add(seen[0].1, seen[1].1);
    }
    p50.print(Target::AtMost(most));
    p99.print(Target::None);
}

async fn ages(mut listener: Listener, lines: usize) -> Vec<f64> {
    let mut ages = Vec::with_capacity(lines);
    while ages.len() < lines {
        ages.extend(listener.next(feed::ages, feed::OVERLAP).await.expect("the stream goes on"));
    }
    ages
}

/// 1,000 stored events to 100 who ask at the same time.
async fn replay(floor: &Side, rdev: &Side) {
    let mut row = Row::new("replay of 1,000 events to 100 at once", "s");
    let streams = [ended(floor).await, ended(rdev).await];
    for _ in 0..ROUNDS {
        let mut times = Vec::new();
        for (side, stream) in [floor, rdev].into_iter().zip(&streams) {
            let mut connections = Vec::new();
            for _ in 0..100 {
                connections.push(side.open().await);
            }
            let request = side.request(&stream.path);
            let begun = Instant::now();
            let mut all = JoinSet::new();
            for connection in connections {
                let request = request.clone();
                all.spawn(async move { connection.listen(&request).await.count(EVENT, 1000).await });
            }
            assert!(all.join_all().await.into_iter().all(|whole| whole), "everybody gets everything");
            times.push(begun.elapsed().as_secs_f64());
        }
        row.add(times[0], times[1]);
    }
    row.print(Target::AtMost(0.44));
}

async fn ended(side: &Side) -> Stream {
    let stream = side.stream().await;
    let mut listener = side.listeners(&stream, 1).await.pop().expect("one");
    feed::write(stream.pipe.clone(), 1000, Pace::Every(Duration::from_micros(100))).await.expect("the writer");
    assert!(listener.count(EVENT, 1000).await);
    if side.is_rdev {
        assert!(listener.count("event: complete", 1).await);
    }
    stream
}

/// Memory of connections on which nothing happens.
async fn idle(floor: &Side, rdev: &Side) {
    let mut row = Row::new(format!("idle connection, resident memory ({IDLE} open)"), "kB");
    let mut each = Vec::new();
    for side in [floor, rdev] {
        let path = if side.is_rdev { "/projects/measured/events" } else { "/feeds/idle" };
        // What is made once is no connection's.
        let warm = side.listeners(&Stream { pipe: PathBuf::new(), path: path.into() }, 20).await;
        drop(warm);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = resident(side.server.pid());
        let listeners = side.listeners(&Stream { pipe: PathBuf::new(), path: path.into() }, IDLE).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        each.push((resident(side.server.pid()) - before) / IDLE as f64 / 1e3);
        drop(listeners);
    }
    row.add(each[0], each[1]);
    row.print(Target::AtMost(25.0));
}

/// The floor's streams by name.
#[derive(Clone)]
struct Feeds {
    dir: Arc<FilePath>,
    feeds: Arc<Mutex<HashMap<String, Arc<Feed>>>>,
}

struct Feed {
    ring: RwLock<Vec<Bytes>>,
    bell: watch::Sender<usize>,
}

async fn floor(dir: PathBuf) {
    let feeds = Feeds { dir: dir.into(), feeds: Arc::default() };
    let router =
        Router::new().route("/feeds/{name}", get(listen)).route("/feeds/{name}", post(begin)).with_state(feeds);
    serve_floor(router).await;
}

impl Feeds {
    fn get(&self, name: &str) -> Arc<Feed> {
        let mut feeds = self.feeds.lock().expect("no panic");
        let feed = || Arc::new(Feed { ring: RwLock::default(), bell: watch::Sender::new(0) });
        feeds.entry(name.to_owned()).or_insert_with(feed).clone()
    }
}

impl Feed {
    /// Frames each line once.
    fn read(&self, pipe: &FilePath) {
        let pipe = BufReader::new(std::fs::File::open(pipe).expect("the pipe"));
        for (index, line) in pipe.lines().enumerate() {
            let line = line.expect("a line");
            let n = index + 1;
            let event = format!("{EVENT}\nid: floor:{n}\ndata: {{\"line\":\"{line}\",\"stream\":\"stdout\"}}\n\n");
            self.ring.write().expect("no panic").push(event.into());
            self.bell.send_replace(n);
        }
    }
}

async fn begin(State(feeds): State<Feeds>, Path(name): Path<String>) -> String {
    let (feed, pipe) = (feeds.get(&name), feeds.dir.join(name));
    std::thread::spawn(move || feed.read(&pipe));
    String::new()
}

async fn listen(State(feeds): State<Feeds>, Path(name): Path<String>) -> Response {
    let feed = feeds.get(&name);
    let bell = feed.bell.subscribe();
    let greeting = Bytes::from_static(b"retry: 2000\nevent: connected\ndata: {}\n\n");
    let body = futures::stream::unfold((feed, bell, 0, Some(greeting)), |(feed, mut bell, at, greeting)| async move {
        if let Some(greeting) = greeting {
            return Some((Ok::<_, std::convert::Infallible>(greeting), (feed, bell, at, None)));
        }
        loop {
            let next = feed.ring.read().expect("no panic").get(at).cloned();
            if let Some(event) = next {
                return Some((Ok(event), (feed, bell, at + 1, None)));
            }
            bell.changed().await.ok()?;
        }
    });
    Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(body)).expect("a response")
}

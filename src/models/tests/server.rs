//! A server on the loopback that says what it is told to, byte for byte, and knows what it was
//! asked and whether its client went away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use url::Url;

/// What an answer is made of.
#[derive(Clone)]
pub enum Part {
    Send(String),
    /// Goes on when the gate opens. The client may go away before.
    Wait(Gate),
    /// Says no more, and waits for the client to go away.
    Hang,
}

/// Opens once.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }
}

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub head: String,
    pub body: String,
}

struct Shared {
    answers: Mutex<HashMap<String, Vec<Part>>>,
    requests: watch::Sender<Vec<Request>>,
    gone: watch::Sender<usize>,
}

pub struct Server {
    pub url: Url,
    shared: Arc<Shared>,
    connections: JoinSet<()>,
}

impl Server {
    /// With these models, none of them loaded, each of which says "Hello".
    pub async fn with(models: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (requests, gone) = (watch::Sender::default(), watch::Sender::default());
        let shared = Arc::new(Shared { answers: Mutex::default(), requests, gone });
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, shared.clone()));
        let server = Self { url, shared, connections };
        server.has(models);
        server.loads(&[]);
        server.says("/api/chat", &[Part::Send(whole(200, "", &format!("{}{DONE}", token("Hello"))))]);
        server
    }

    pub fn has(&self, models: &[&str]) {
        self.says("/api/tags", &[Part::Send(list(models))]);
    }

    pub fn loads(&self, models: &[&str]) {
        self.says("/api/ps", &[Part::Send(list(models))]);
    }

    pub fn says(&self, path: &str, parts: &[Part]) {
        self.shared.answers.lock().unwrap().insert(path.to_owned(), parts.to_vec());
    }

    pub fn answers(&self, path: &str, text: &str) {
        self.says(path, &[Part::Send(text.to_owned())]);
    }

    /// All so far.
    pub fn requests(&self, path: &str) -> Vec<Request> {
        self.shared.requests.borrow().iter().filter(|request| request.path == path).cloned().collect()
    }

    pub fn count(&self, path: &str) -> usize {
        self.requests(path).len()
    }

    /// Until so many requests to the path came.
    pub async fn asked(&self, path: &str, times: usize) {
        let enough = |requests: &Vec<Request>| requests.iter().filter(|request| request.path == path).count() >= times;
        self.shared.requests.subscribe().wait_for(enough).await.unwrap();
    }

    /// Until so many clients went away before their answer was over.
    pub async fn left(&self, clients: usize) {
        self.shared.gone.subscribe().wait_for(|gone| *gone >= clients).await.unwrap();
    }

    pub fn gone(&self) -> usize {
        *self.shared.gone.borrow()
    }

    /// From now on connections are refused.
    pub async fn goes_away(&mut self) {
        self.connections.shutdown().await;
    }
}

pub const DONE: &str =
    "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"eval_count\":7}\n";

pub fn token(text: &str) -> String {
    json!({"model": "m", "message": {"role": "assistant", "content": text}, "done": false}).to_string() + "\n"
}

/// An answer whose length is told.
pub fn whole(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

pub fn error(status: u16, headers: &str, text: &str) -> String {
    whole(status, headers, &json!({"error": text}).to_string())
}

/// The head of an answer in chunks.
pub const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
/// The head of one that ends with its connection.
pub const CLOSED: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n";
pub const LAST_CHUNK: &str = "0\r\n\r\n";

pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn list(models: &[&str]) -> String {
    let models: Vec<Value> = models.iter().map(|model| json!({"name": model, "model": model})).collect();
    whole(200, "content-type: application/json\r\n", &json!({"models": models}).to_string())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(answer(stream, shared.clone()));
    }
}

async fn answer(mut stream: TcpStream, shared: Arc<Shared>) {
    let Some(request) = read(&mut stream).await else { return };
    let parts = shared.answers.lock().unwrap().get(&request.path).cloned();
    shared.requests.send_modify(|requests| requests.push(request));
    for part in parts.unwrap_or_else(|| vec![Part::Send(whole(404, "", "404 page not found"))]) {
        let stays = match part {
            Part::Send(text) => stream.write_all(text.as_bytes()).await.is_ok(),
            Part::Hang => !is_gone(&mut stream).await,
            Part::Wait(gate) => {
                let mut gate = gate.0.subscribe();
                tokio::select! {
                    opened = gate.wait_for(|open| *open) => opened.is_ok(),
                    gone = is_gone(&mut stream) => !gone,
                }
            }
        };
        if !stays {
            shared.gone.send_modify(|gone| *gone += 1);
            return;
        }
    }
}

/// Until the client goes away: it has said all that it says.
async fn is_gone(stream: &mut TcpStream) -> bool {
    stream.read_u8().await.is_err()
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut text = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        text.extend_from_slice(&piece[..count]);
        let Some((head, body)) = std::str::from_utf8(&text).ok().and_then(|text| text.split_once("\r\n\r\n")) else {
            continue;
        };
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            let path = head.split(' ').nth(1)?.to_owned();
            return Some(Request { path, body: body.to_owned(), head });
        }
    }
}

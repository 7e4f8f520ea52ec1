//! HTTP/1.1 on a kept connection, as little of it as loopback needs: a request is bytes
//! made once, an answer is its status and as many bytes as it announces. So the client
//! costs a write and a read a request.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use memchr::memmem;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::stats::percentile;

/// The bytes of a request.
pub fn request(method: &str, path: &str, key: &str, body: Option<&Value>) -> Vec<u8> {
    let body = body.map(ToString::to_string).unwrap_or_default();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n");
    let length = match method {
        "GET" => String::new(),
        _ => format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()),
    };
    format!("{head}{length}\r\n{body}").into_bytes()
}

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    body: std::ops::Range<usize>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, buffer: vec![0; 16 << 10], filled: 0, body: 0..0 }
    }

    /// Sends and waits for the whole answer. Answers its status.
    pub async fn ask(&mut self, request: &[u8]) -> u16 {
        self.stream.write_all(request).await.expect("the server reads");
        let head = self.head().await;
        let status = status(&self.buffer);
        let whole = head + content_length(&self.buffer[..head]);
        self.fill_to(whole).await;
        self.body = head..whole;
        status
    }

    pub fn body(&self) -> &[u8] {
        &self.buffer[self.body.clone()]
    }

    /// Sends, and leaves the body of the answer to be read as it comes.
    pub async fn listen(mut self, request: &[u8]) -> Listener {
        self.stream.write_all(request).await.expect("the server reads");
        let head = self.head().await;
        assert_eq!(status(&self.buffer), 200, "{}", String::from_utf8_lossy(&self.buffer[..self.filled]));
        let unread = self.buffer[head..self.filled].to_vec();
        Listener { stream: self.stream, buffer: vec![0; 64 << 10], looked_at: Vec::new(), unread }
    }

    /// Reads up to the end of the head and says where that is.
    async fn head(&mut self) -> usize {
        self.filled = 0;
        loop {
            self.fill_to(self.filled + 1).await;
            if let Some(end) = memmem::find(&self.buffer[..self.filled], b"\r\n\r\n") {
                return end + 4;
            }
        }
    }

    async fn fill_to(&mut self, wanted: usize) {
        while self.filled < wanted {
            if self.filled == self.buffer.len() {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            let read = self.stream.read(&mut self.buffer[self.filled..]).await.expect("the server writes");
            assert!(read > 0, "the server closed the connection");
            self.filled += read;
        }
    }
}

fn status(head: &[u8]) -> u16 {
    head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).expect("a status")
}

fn content_length(head: &[u8]) -> usize {
    // Lower case or not, as servers have it.
    let found = memmem::find(head, b"ontent-length: ").or_else(|| memmem::find(head, b"ontent-Length: "));
    let at = found.expect("an answer of announced length") + 15;
    let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// A stream of events under way.
pub struct Listener {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The end of what was looked at: a mark may lie across two reads.
    looked_at: Vec<u8>,
    /// Read, and not looked at.
    unread: Vec<u8>,
}

impl Listener {
    /// Reads until `mark` was seen `count` times, and no further. False at the end of the stream.
    pub async fn count(&mut self, mark: &str, count: usize) -> bool {
        let mut left = count;
        while self.fill().await {
            let mut found = memmem::find_iter(&self.looked_at, mark.as_bytes());
            if let Some(last) = found.nth(left - 1) {
                self.unread = self.looked_at.split_off(last + mark.len());
                self.looked_at.clear();
                return true;
            }
            left -= memmem::find_iter(&self.looked_at, mark.as_bytes()).count();
            self.keep(mark.len() - 1);
        }
        false
    }

    /// What `look` makes of the next bytes, with the last `overlap` of those before in front.
    pub async fn next<T>(&mut self, look: impl FnOnce(&[u8]) -> T, overlap: usize) -> Option<T> {
        if !self.fill().await {
            return None;
        }
        let seen = look(&self.looked_at);
        self.keep(overlap);
        Some(seen)
    }

    async fn fill(&mut self) -> bool {
        if self.unread.is_empty() {
            let read = self.stream.read(&mut self.buffer).await.unwrap_or(0);
            self.looked_at.extend_from_slice(&self.buffer[..read]);
            return read > 0;
        }
        self.looked_at.append(&mut self.unread);
        true
    }

    fn keep(&mut self, overlap: usize) {
        let before = self.looked_at.len().saturating_sub(overlap);
        self.looked_at.drain(..before);
    }
}

/// What many connections got when each asked again as soon as it was answered.
pub struct Load {
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
}

pub async fn load(address: SocketAddr, request: &[u8], connections: usize, time: Duration) -> Load {
    let mut all = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..connections {
        let request = request.to_vec();
        all.spawn(async move {
            let mut connection = Connection::open(address).await;
            let mut times = Vec::with_capacity(1 << 16);
            while begun.elapsed() < time {
                let asked = Instant::now();
                let status = connection.ask(&request).await;
                assert!((200..300).contains(&status), "{status} {}", String::from_utf8_lossy(connection.body()));
                times.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            times
        });
    }
    let times = all.join_all().await.concat();
    let took = begun.elapsed().as_secs_f64();
    Load { per_second: times.len() as f64 / took, p50: percentile(&times, 0.5), p99: percentile(&times, 0.99) }
}

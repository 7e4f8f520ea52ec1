//! Previews beside nginx as reverse proxy to the same program: requests on kept connections
//! with a small body, and one large body. rdev looks at who asks, too: by a key, and by the
//! cookie of a link.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench is not the product, and its numbers are small"
)]

mod support;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::json;
use support::{
    Role, block_on,
    client::{self, Connection},
    nginx::Nginx,
    postgres::Postgres,
    report::{Row, Target, head_beside},
    role,
    server::{DataDir, Server, until_orphaned},
    stats::{cpu, median},
    wanted,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const ROUNDS: usize = 5;
const CONNECTIONS: usize = 32;
const TIME: Duration = Duration::from_millis(1500);
const WARM: Duration = Duration::from_millis(300);
/// Of the small body.
const SMALL: usize = 512;
/// Of the large one.
const LARGE: usize = 512 << 20;
const SHARE: Target = Target::ShareOf("nginx", 0.7);

fn main() {
    match role() {
        Role::Floor(_) => block_on(program()),
        Role::Measure => block_on(measure()),
        Role::Nothing => {}
    }
}

async fn measure() {
    let (postgres, data) = (Postgres::start().await, DataDir::new());
    let rdev = Server::rdev(&postgres.url("rdev"), &data);
    let program = Server::floor(&[]);
    let nginx = Nginx::before(program.address.port()).await;
    let sides = Sides { ways: ways(&rdev, program.address).await, program, nginx, rdev };
    println!("{CONNECTIONS} connections, {ROUNDS} rounds; client, proxy and program share the cores");
    head_beside("nginx");
    if wanted("small") {
        for way in 0..sides.ways.len() {
            sides.small(way).await;
        }
    }
    if wanted("large") {
        sides.large().await;
    }
}

/// A way to be let in, and the header lines for it.
struct Way {
    name: &'static str,
    headers: String,
}

/// A session whose port is the program's.
async fn ways(rdev: &Server, program: SocketAddr) -> [Way; 2] {
    rdev.project("measured").await;
    let body = json!({"new_branch": "measured", "preview_port": program.port()});
    let session = rdev.call("POST", "/projects/measured/sessions", Some(&body)).await;
    let sid = session["id"].as_str().expect("an id");
    let link = format!("/projects/measured/sessions/{sid}/preview-links");
    let link = rdev.call("POST", &link, Some(&json!({}))).await;
    let link = link["url"].as_str().and_then(|url| url.split_once("rdev_preview=")).expect("a link").1;
    let host = format!("{sid}.localhost:{}", rdev.address.port());
    let cookie = exchanged(rdev, &host, link).await;
    let host = format!("host: {host}\r\n");
    [
        Way { name: "by a key", headers: format!("{host}authorization: Bearer {}\r\n", rdev.key) },
        Way { name: "by a link's cookie", headers: format!("{host}cookie: {cookie}\r\n") },
    ]
}

/// The cookie that a link is exchanged for.
async fn exchanged(rdev: &Server, host: &str, link: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(rdev.address).await.expect("rdev listens");
    let request = format!("GET /?rdev_preview={link} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.expect("it takes it");
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.expect("an answer");
    let cookie = answer.split("set-cookie: ").nth(1).expect("a cookie");
    cookie.split(';').next().expect("its value").to_owned()
}

struct Sides {
    rdev: Server,
    /// `Err`: why it is not there.
    nginx: Result<Nginx, &'static str>,
    program: Server,
    ways: [Way; 2],
}

impl Sides {
    fn request(&self, path: &str, way: usize) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\n{}\r\n", self.ways[way].headers).into_bytes()
    }

    async fn small(&self, way: usize) {
        let how = self.ways[way].name;
        let mut rate = Row::new(format!("GET of {SMALL} B {how}, requests"), "/s");
        let mut p50 = Row::new(format!("GET of {SMALL} B {how}, p50"), "ms");
        let mut p99 = Row::new(format!("GET of {SMALL} B {how}, p99"), "ms");
        let mut used = Row::new(format!("GET of {SMALL} B {how}, CPU of the proxy a request"), "us");
        let mut bare = Vec::new();
        let request = self.request("/small", way);
        for _ in 0..ROUNDS {
            let direct = client::load(self.program.address, &request, CONNECTIONS, TIME / 3).await;
            let rdev = load(self.rdev.address, &request, || cpu(self.rdev.pid())).await;
            bare.push(direct.per_second);
            let Ok(nginx) = &self.nginx else {
                rate.add_rdev(rdev.0.per_second);
                continue;
            };
            let nginx = load(nginx.address, &request, || nginx.cpu()).await;
            rate.add(nginx.0.per_second, rdev.0.per_second);
            p50.add(nginx.0.p50, rdev.0.p50);
            p99.add(nginx.0.p99, rdev.0.p99);
            used.add(nginx.1, rdev.1);
        }
        self.show(rate);
        [p50, p99, used].into_iter().filter(|row| !row.is_empty()).for_each(|row| row.print(Target::None));
        println!("    the program itself: {:.0}/s", median(&bare));
    }

    async fn large(&self) {
        let mut rate = Row::new(format!("GET of {} MiB, one after the other", LARGE >> 20), "MB/s");
        let mut used = Row::new("the same, CPU of the proxy a MB", "us");
        let request = self.request("/large", 0);
        for _ in 0..ROUNDS {
            let rdev = download(self.rdev.address, &request, || cpu(self.rdev.pid())).await;
            let Ok(nginx) = &self.nginx else {
                rate.add_rdev(rdev.0);
                continue;
            };
            let nginx = download(nginx.address, &request, || nginx.cpu()).await;
            rate.add(nginx.0, rdev.0);
            used.add(nginx.1, rdev.1);
        }
        self.show(rate);
        [used].into_iter().filter(|row| !row.is_empty()).for_each(|row| row.print(Target::None));
    }

    fn show(&self, row: Row) {
        match &self.nginx {
            Ok(_) => row.print(SHARE),
            Err(why) => {
                row.print(Target::None);
                println!("    nginx: {why}");
            }
        }
    }
}

/// What came through, and the proxy's CPU time for each request in us.
async fn load(address: SocketAddr, request: &[u8], cpu: impl Fn() -> f64) -> (client::Load, f64) {
    client::load(address, request, CONNECTIONS, WARM).await;
    let before = cpu();
    let load = client::load(address, request, CONNECTIONS, TIME).await;
    let each = (cpu() - before) / (load.per_second * TIME.as_secs_f64()) * 1e6;
    (load, each)
}

/// MB/s of the large body, and the proxy's CPU time for each MB in us.
async fn download(address: SocketAddr, request: &[u8], cpu: impl Fn() -> f64) -> (f64, f64) {
    // A connection to the program is kept from here on.
    assert_eq!(Connection::open(address).await.ask(&small_instead(request)).await, 200);
    let (before, begun) = (cpu(), Instant::now());
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request).await.expect("the proxy reads");
    let (mut buffer, mut read) = (vec![0; 256 << 10], 0);
    while read < LARGE {
        let more = stream.read(&mut buffer).await.expect("the proxy writes");
        assert!(more > 0, "the body ends after {read} bytes");
        read += more;
    }
    let mb = LARGE as f64 / 1e6;
    (mb / begun.elapsed().as_secs_f64(), (cpu() - before) / mb * 1e6)
}

fn small_instead(request: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(request).replacen("/large", "/small", 1).into_bytes()
}

/// The program behind the previews: bytes that are made once.
async fn program() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("listening on http://{}", listener.local_addr().expect("an address"));
    until_orphaned();
    let head = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n").into_bytes()
    };
    let small: &[u8] = [head(SMALL), vec![b'x'; SMALL]].concat().leak();
    let (large, block): (&[u8], &[u8]) = (head(LARGE).leak(), vec![b'x'; 256 << 10].leak());
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let _unsupported = stream.set_nodelay(true);
        tokio::spawn(answer(stream, small, large, block));
    }
}

/// One request after the other, until the client has gone.
async fn answer(mut stream: TcpStream, small: &[u8], large: &[u8], block: &[u8]) -> std::io::Result<()> {
    let (mut buffer, mut filled) = (vec![0; 16 << 10], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        if !buffer[..filled].ends_with(b"\r\n\r\n") {
            continue;
        }
        filled = 0;
        if buffer.starts_with(b"GET /large") {
            stream.write_all(large).await?;
            for _ in 0..LARGE / block.len() {
                stream.write_all(block).await?;
            }
        } else {
            stream.write_all(small).await?;
        }
    }
}

//! What is at the other end of a webhook: a receiver that answers as it is told, well or
//! badly, and ports where nobody answers. The model upstream stands on the same listener.

mod listener;

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

pub use self::listener::{Answer, Gate, Listener, Request, lock};
use super::{eventually, soon};

/// A receiver with a script: first what was told with [`Sink::then`], one answer a request,
/// after that always the same, 200 unless told otherwise.
pub struct Sink {
    pub listener: Listener,
    script: Arc<Mutex<(VecDeque<Answer>, Answer)>>,
}

impl Sink {
    pub async fn start() -> Self {
        Self::on("127.0.0.1:0").await
    }

    pub async fn on(address: &str) -> Self {
        let script = Arc::new(Mutex::new((VecDeque::new(), Answer::status(200))));
        let answers = script.clone();
        let handler = move |_: &Request| {
            let mut script = lock(&answers);
            script.0.pop_front().unwrap_or_else(|| script.1.clone())
        };
        Self { listener: Listener::start(address, handler).await, script }
    }

    pub fn then(&self, answer: Answer) -> &Self {
        lock(&self.script).0.push_back(answer);
        self
    }

    pub fn always(&self, answer: Answer) -> &Self {
        lock(&self.script).1 = answer;
        self
    }

    /// A URL on it.
    pub fn hook(&self) -> String {
        format!("{}/hook", self.listener.url)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.listener.requests()
    }

    /// The requests, when there are so many.
    pub async fn received(&self, count: usize) -> Vec<Request> {
        eventually(&format!("{count} requests"), async || Some(self.requests()).filter(|all| all.len() >= count)).await
    }
}

/// A port that refuses connections and that nobody else gets meanwhile.
pub struct Refusing {
    pub url: String,
    _socket: TcpSocket,
}

impl Refusing {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
        let url = format!("http://{}", socket.local_addr().expect("it is bound"));
        Self { url, _socket: socket }
    }
}

/// A port where connections neither come about nor are refused: nobody accepts, and the queue is full.
pub struct Deaf {
    pub url: String,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Deaf {
    pub async fn start() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback");
        let listener = socket.listen(1).expect("it is bound");
        let address = listener.local_addr().expect("it listens");
        let mut queue = Vec::new();
        let fill = async {
            let short = Duration::from_millis(300);
            while let Ok(Ok(stream)) = tokio::time::timeout(short, TcpStream::connect(address)).await {
                queue.push(stream);
            }
        };
        soon("a full queue", fill).await;
        Self { url: format!("http://{address}"), _listener: listener, _queue: queue }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_says_what_it_was_told_and_keeps_what_it_heard() {
    let sink = Sink::start().await;
    sink.then(Answer::status(503).header("retry-after", "7").body("busy")).then(Answer::redirect(302, "http://x/"));
    let client = super::Api::new(&sink.listener.url, None);
    let first = client.send(http::Method::POST, "/a?b=c", Some("{\"n\": 1}".into()), &[("x-own", "1")]).await;
    assert_eq!((first.status, first.header("retry-after"), first.text.as_str()), (503, "7", "busy"));
    assert_eq!((client.get("/b").await.status, client.get("/c").await.status), (302, 200));
    let seen = sink.received(3).await;
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("POST", "/a?b=c"));
    assert_eq!((seen[0].header("X-Own"), seen[0].text()), (Some("1"), "{\"n\": 1}"));
    // How many connections a client opens is its own affair.
    assert!((1..=3).contains(&sink.listener.connections()));
    assert_eq!(sink.listener.requests_to("/a").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_counts_who_is_there_at_once_and_who_goes_away() {
    let sink = Sink::start().await;
    let gate = Gate::new();
    sink.then(Answer::status(200).wait(&gate)).then(Answer::status(200).wait(&gate)).then(Answer::hangs());
    let client = super::Api::new(&sink.listener.url, None);
    let two = async { tokio::join!(client.get("/x"), client.get("/x")) };
    let opening = async {
        eventually("both", async || (sink.listener.under_way("/x") == 2).then_some(())).await;
        gate.open();
    };
    let ((one, two), ()) = tokio::join!(two, opening);
    assert_eq!((one.status, two.status, sink.listener.most_at_once("/x")), (200, 200, 2));
    let left = tokio::time::timeout(Duration::from_millis(200), client.get("/x")).await;
    assert!(left.is_err());
    eventually("the departure", async || (sink.listener.cancelled("/x") == 1).then_some(())).await;
    assert_eq!(sink.listener.under_way("/x"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_breaks_off_in_every_way_it_can() {
    let sink = Sink::start().await;
    let client = super::Api::new(&sink.listener.url, None);
    let partly = || Answer::status(200).body("part");
    for answer in
        [partly().cut(), partly().reset(), partly().chunked().cut(), partly().chunked().reset(), Answer::breaks_off()]
    {
        sink.then(answer);
        let response = client.request(http::Method::GET, "/x", None, &[]).send().await;
        let whole = match response {
            Ok(response) => response.bytes().await.is_ok(),
            Err(_) => false,
        };
        assert!(!whole, "a broken answer looks whole");
    }
    sink.then(partly().until_close()).then(partly().chunked().body("ed"));
    assert_eq!((client.get("/x").await.text.as_str(), client.get("/x").await.text.as_str()), ("part", "parted"));
    sink.listener.go_away();
    assert!(client.request(http::Method::GET, "/x", None, &[]).send().await.is_err());
    sink.listener.come_back();
    assert_eq!(client.get("/x").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_answer_and_a_dripping_one_go_on_until_the_client_leaves() {
    let sink = Sink::start().await;
    sink.then(Answer::endless()).then(Answer::drips());
    let client = super::Api::new(&sink.listener.url, None);
    let mut endless = client.request(http::Method::GET, "/x", None, &[]).send().await.unwrap();
    let mut read = 0;
    while read < 1 << 20 {
        read += endless.chunk().await.unwrap().expect("more").len();
    }
    drop(endless);
    let dripping = client.request(http::Method::GET, "/x", None, &[]).timeout(Duration::from_millis(500)).send().await;
    assert!(dripping.unwrap_err().is_timeout());
    eventually("both are left", async || (sink.listener.cancelled("/x") == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_refuses_and_another_one_does_not_even_do_that() {
    let (refusing, deaf) = (Refusing::new(), Deaf::start().await);
    let refused = TcpStream::connect(refusing.url.strip_prefix("http://").unwrap()).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let connecting = TcpStream::connect(deaf.url.strip_prefix("http://").unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(700), connecting).await.is_err());
}

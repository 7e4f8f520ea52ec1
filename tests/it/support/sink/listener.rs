//! HTTP/1.1 by hand, so that it can break every rule on purpose. Each request is kept as it
//! came; connections, requests under way and clients that went away are counted.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes, BytesMut};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Holds up an answer until the test opens it.
#[derive(Clone, Debug, Default)]
pub struct Gate(CancellationToken);

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn open(&self) {
        self.0.cancel();
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub at: Instant,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

/// How the length of an answer's body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    UntilClose,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    /// The connection is closed before the body is complete.
    Cut,
    /// The same, with a RST.
    Reset,
}

#[derive(Clone, Debug)]
enum Piece {
    /// Bytes of the body. The head goes out with the first of them.
    Body(Bytes),
    /// Bytes in place of head and body.
    Raw(Bytes),
    Wait(Gate),
    /// The same bytes for ever, with a pause before each.
    Endless(Bytes, Duration),
}

/// What the listener says to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    framing: Framing,
    pieces: Vec<Piece>,
    end: End,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), framing: Framing::Length, pieces: Vec::new(), end: End::Whole }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::status(status).header("content-type", "application/json; charset=utf-8").body(body.to_string())
    }

    pub fn redirect(status: u16, location: &str) -> Self {
        Self::status(status).header("location", location)
    }

    /// Never a byte.
    pub fn hangs() -> Self {
        Self::status(200).wait(&Gate::new())
    }

    /// Reads the request and resets the connection without a byte.
    pub fn breaks_off() -> Self {
        Self::status(200).piece(Piece::Raw(Bytes::new())).reset()
    }

    /// 200, and a body without end, as fast as it is read.
    pub fn endless() -> Self {
        Self::status(200).chunked().piece(Piece::Endless(Bytes::from(vec![b'x'; 8 << 10]), Duration::ZERO))
    }

    /// A head that is never complete, but always about to be.
    pub fn drips() -> Self {
        let drop = Piece::Endless(Bytes::from_static(b"x"), Duration::from_millis(200));
        Self::status(200).piece(Piece::Raw(Bytes::from_static(b"HTTP/1.1 200 OK\r\nx-slow: "))).piece(drop)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(self, bytes: impl Into<Bytes>) -> Self {
        self.piece(Piece::Body(bytes.into()))
    }

    /// Goes on when the gate is open. Before the first byte of the body, the head waits too.
    pub fn wait(self, gate: &Gate) -> Self {
        self.piece(Piece::Wait(gate.clone()))
    }

    /// Waits for all these before anything else.
    pub fn first<'a>(mut self, gates: impl Iterator<Item = &'a Gate>) -> Self {
        self.pieces = gates.map(|gate| Piece::Wait(gate.clone())).chain(self.pieces).collect();
        self
    }

    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// No length and no chunks: the end of the connection is the end of the body.
    pub fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self
    }

    pub fn cut(mut self) -> Self {
        self.end = End::Cut;
        self
    }

    pub fn reset(mut self) -> Self {
        self.end = End::Reset;
        self
    }

    fn piece(mut self, piece: Piece) -> Self {
        self.pieces.push(piece);
        self
    }

    fn head(&self) -> Bytes {
        let body = self.pieces.iter().map(|piece| if let Piece::Body(bytes) = piece { bytes.len() } else { 0 });
        let length = body.sum::<usize>() + usize::from(self.end != End::Whole);
        let framing = match self.framing {
            _ if matches!(self.status, 204 | 304) => String::new(),
            Framing::Length => format!("content-length: {length}\r\n"),
            Framing::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
            Framing::UntilClose => "connection: close\r\n".to_owned(),
        };
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("HTTP/1.1 {} Told\r\n{headers}{framing}\r\n", self.status).into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    UnderWay,
    Answered,
    /// The client went away first.
    Gone,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    requests: Vec<(Request, Fate)>,
    most: BTreeMap<String, usize>,
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// Listens for as long as it lives.
pub struct Listener {
    /// Without a path.
    pub url: String,
    seen: Arc<Mutex<Seen>>,
    away: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Listener {
    pub async fn start(address: &str, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.expect("an address of this machine");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let (away, seen) = (watch::Sender::new(false), Arc::<Mutex<Seen>>::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, seen.clone(), away.subscribe(), Arc::new(handler)));
        Self { url, seen, away, _tasks: tasks }
    }

    /// Every connection is reset from now on, those that are open too.
    pub fn go_away(&self) {
        self.away.send_replace(true);
    }

    pub fn come_back(&self) {
        self.away.send_replace(false);
    }

    pub fn connections(&self) -> usize {
        lock(&self.seen).connections
    }

    /// Every request so far, whatever became of it.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.seen).requests.iter().map(|(request, _)| request.clone()).collect()
    }

    /// Those on one path, without its query.
    pub fn requests_to(&self, path: &str) -> Vec<Request> {
        let all = self.requests().into_iter();
        all.filter(|request| request.path.split('?').next() == Some(path)).collect()
    }

    /// Requests on this path that wait for their answer.
    pub fn under_way(&self, path: &str) -> usize {
        self.count(path, Fate::UnderWay)
    }

    /// Most requests on this path that were under way at once.
    pub fn most_at_once(&self, path: &str) -> usize {
        lock(&self.seen).most.get(path).copied().unwrap_or(0)
    }

    /// Requests on this path whose client went away before the answer was complete.
    pub fn cancelled(&self, path: &str) -> usize {
        self.count(path, Fate::Gone)
    }

    fn count(&self, path: &str, wanted: Fate) -> usize {
        lock(&self.seen).requests.iter().filter(|(request, fate)| request.path == path && *fate == wanted).count()
    }
}

pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, seen: Arc<Mutex<Seen>>, away: watch::Receiver<bool>, handler: Arc<Handler>) {
    let mut conversations = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        lock(&seen).connections += 1;
        let (seen, mut away, handler) = (seen.clone(), away.clone(), handler.clone());
        conversations.spawn(async move {
            let mut stream = stream;
            let left = tokio::select! {
                biased;
                _ = away.wait_for(|away| *away) => true,
                () = converse(&mut stream, &seen, &*handler) => false,
            };
            if left {
                let _reset = stream.set_zero_linger();
            }
        });
    }
}

/// Answers one request after the other.
async fn converse(stream: &mut TcpStream, seen: &Mutex<Seen>, handler: &Handler) {
    let (mut buffer, _at_once) = (BytesMut::new(), stream.set_nodelay(true));
    while let Ok(Some(request)) = read_request(stream, &mut buffer).await {
        let answer = handler(&request);
        let (number, closes) =
            (begun(seen, request), answer.framing == Framing::UntilClose || answer.end != End::Whole);
        let (mut reader, mut writer) = stream.split();
        let fate = tokio::select! {
            written = write_answer(&mut writer, &answer) => if written.is_ok() { Fate::Answered } else { Fate::Gone },
            () = client_leaves(&mut reader, &mut buffer) => Fate::Gone,
        };
        lock(seen).requests[number].1 = fate;
        if answer.end == End::Reset {
            let _reset = stream.set_zero_linger();
        }
        if closes || fate == Fate::Gone {
            return;
        }
    }
}

/// Writes the request down. Answers its number.
fn begun(seen: &Mutex<Seen>, request: Request) -> usize {
    let (mut seen, path) = (lock(seen), request.path.clone());
    seen.requests.push((request, Fate::UnderWay));
    let open = seen.requests.iter().filter(|(other, fate)| other.path == path && *fate == Fate::UnderWay).count();
    let most = seen.most.entry(path).or_default();
    *most = open.max(*most);
    seen.requests.len() - 1
}

async fn write_answer(writer: &mut WriteHalf<'_>, answer: &Answer) -> io::Result<()> {
    let (mut head, mut chunked) = (Some(answer.head()), answer.framing == Framing::Chunked);
    for piece in &answer.pieces {
        match piece {
            Piece::Wait(gate) => gate.0.cancelled().await,
            Piece::Raw(bytes) => {
                (head, chunked) = (None, false);
                writer.write_all(bytes).await?;
            }
            Piece::Body(bytes) => write_body(writer, head.take(), bytes, chunked).await?,
            Piece::Endless(bytes, pause) => loop {
                tokio::time::sleep(*pause).await;
                write_body(writer, head.take(), bytes, chunked).await?;
            },
        }
    }
    if let Some(head) = head {
        writer.write_all(&head).await?;
    }
    if chunked && answer.end == End::Whole {
        writer.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

async fn write_body(writer: &mut WriteHalf<'_>, head: Option<Bytes>, body: &Bytes, chunked: bool) -> io::Result<()> {
    let mut bytes = BytesMut::from(head.unwrap_or_default());
    if chunked {
        bytes.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(body);
    if chunked {
        bytes.extend_from_slice(b"\r\n");
    }
    writer.write_all(&bytes).await
}

/// Ends when the client has closed. What it sends meanwhile is kept for later.
async fn client_leaves(reader: &mut ReadHalf<'_>, buffer: &mut BytesMut) {
    while matches!(reader.read_buf(buffer).await, Ok(count) if count > 0) {}
}

/// The next request; `None` when the client has closed between two.
async fn read_request(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<Request>> {
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break buffer.split_to(end + 4);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut request = Request { method, path, headers, body: Bytes::new(), at: Instant::now() };
    if request.header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    request.body = if request.header("transfer-encoding").is_some() {
        read_chunks(stream, buffer).await?
    } else {
        let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        read_exactly(stream, buffer, length).await?
    };
    Ok(Some(request))
}

async fn read_exactly(stream: &mut TcpStream, buffer: &mut BytesMut, length: usize) -> io::Result<Bytes> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.split_to(length).freeze())
}

async fn read_chunks(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Bytes> {
    let mut body = BytesMut::new();
    loop {
        let size = loop {
            if let Some(end) = buffer.windows(2).position(|two| two == b"\r\n") {
                let line = buffer.split_to(end + 2);
                let text = String::from_utf8_lossy(&line[..end]).into_owned();
                break usize::from_str_radix(text.trim(), 16).map_err(io::Error::other)?;
            }
            if stream.read_buf(buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let mut chunk = read_exactly(stream, buffer, size + 2).await?;
        if size == 0 {
            return Ok(body.freeze());
        }
        body.extend_from_slice(&chunk.split_to(size));
        chunk.advance(2);
    }
}

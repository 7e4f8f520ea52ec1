//! The accept loop. Every connection has a deadline for its headers, a bounded buffer and
//! a place among a bounded number; until the services are built, a small answer stands in
//! for them, and requests for streams wait.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo, response::Response};
use http::{HeaderValue, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// Connections at once; more wait in the backlog.
const CONNECTIONS: usize = 8192;
/// For a request's header, from the first byte on and between two requests of a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
const BUFFER: usize = 32 << 10;
/// How long a request for a stream waits for the start to finish.
const PATIENCE: Duration = Duration::from_secs(30);

/// The door to the outside. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    state: Arc<State>,
}

struct State {
    /// What answers until the services are built.
    starting: Router,
    router: OnceLock<Router>,
    /// Nothing new: only health is answered.
    draining: AtomicBool,
    opened: Notify,
    /// No more connections.
    closed: CancellationToken,
    done: CancellationToken,
    deadline: OnceLock<Instant>,
}

impl Front {
    /// `starting` answers until [`Front::open`] is called.
    pub fn start(listener: TcpListener, starting: Router, tasks: &TaskTracker) -> Self {
        let state = State {
            starting,
            draining: AtomicBool::new(false),
            router: OnceLock::new(),
            opened: Notify::new(),
            closed: CancellationToken::new(),
            done: CancellationToken::new(),
            deadline: OnceLock::new(),
        };
        let front = Self { state: Arc::new(state) };
        tasks.spawn(front.clone().accept(listener, tasks.clone()));
        front
    }

    /// From now on requests are answered by `router`.
    pub fn open(&self, router: Router) {
        let _once = self.state.router.set(router);
        self.state.opened.notify_waiters();
    }

    /// Still answers about its health, and nothing else that is new.
    pub fn drain(&self) {
        self.state.draining.store(true, Ordering::Release);
    }

    /// Takes no more connections, and lets those there are finish what is under way.
    pub async fn close(&self, deadline: Instant) {
        let _once = self.state.deadline.set(deadline);
        self.state.closed.cancel();
        self.state.done.cancelled().await;
    }

    async fn accept(self, listener: TcpListener, tasks: TaskTracker) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let connections = TaskTracker::new();
        let protocols = Arc::new(Protocols::new());
        loop {
            let accepted = tokio::select! {
                () = self.state.closed.cancelled() => break,
                accepted = next(&listener, &places) => accepted,
            };
            let (stream, peer, place) = accepted;
            let (front, protocols) = (self.clone(), protocols.clone());
            tasks.spawn(connections.track_future(async move {
                front.serve(&protocols, stream, peer).await;
                drop(place);
            }));
        }
        drop(listener);
        connections.close();
        let deadline = self.state.deadline.get().copied().unwrap_or_else(Instant::now);
        let _late = tokio::time::timeout_at(deadline, connections.wait()).await;
        self.state.done.cancel();
    }

    async fn serve(self, protocols: &Protocols, stream: TcpStream, peer: SocketAddr) {
        let closed = self.state.closed.clone();
        let spoken = tokio::select! {
            () = closed.cancelled() => return,
            spoken = tokio::time::timeout(HEADER_TIMEOUT, protocol(&stream)) => spoken,
        };
        let seen = Arc::new(Notify::new());
        let first = seen.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            first.notify_one();
            self.clone().answer(request, peer)
        });
        let io = TokioIo::new(stream);
        match spoken {
            Ok(Ok(Spoken::Http1)) => {
                let connection = protocols.http1.serve_connection(io, service).with_upgrades();
                see_off(connection, &closed, hyper::server::conn::http1::UpgradeableConnection::graceful_shutdown)
                    .await;
            }
            Ok(Ok(Spoken::Unclear)) => {
                let connection = protocols.either.serve_connection_with_upgrades(io, service);
                // Boxed: it is rare, and wide.
                let connection = see_off(
                    connection,
                    &closed,
                    hyper_util::server::conn::auto::UpgradeableConnection::graceful_shutdown,
                );
                within_patience(Box::pin(connection), &seen).await;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }

    async fn answer(self, request: Request<Incoming>, peer: SocketAddr) -> Result<Response, Infallible> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        if self.state.router.get().is_none() {
            self.wait_to_open(request.uri().path()).await;
        }
        let is_health = request.uri().path().starts_with("/health");
        let refused = self.state.draining.load(Ordering::Acquire) && !is_health;
        let router = self.state.router.get().filter(|_| !refused).unwrap_or(&self.state.starting);
        let mut response = router.clone().oneshot(request).await?;
        if refused {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// A browser would not come back to a stream after a 503.
    async fn wait_to_open(&self, path: &str) {
        if !path.ends_with("/events") {
            return;
        }
        let opened = self.state.opened.notified();
        if self.state.router.get().is_none() {
            let _late = tokio::time::timeout(PATIENCE, opened).await;
        }
    }
}

/// How connections are served, each with its limits.
struct Protocols {
    http1: http1::Builder,
    either: auto::Builder<TokioExecutor>,
}

impl Protocols {
    fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER);
        let mut either = auto::Builder::new(TokioExecutor::new());
        either.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER);
        either
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .max_concurrent_streams(256);
        Self { http1, either }
    }
}

enum Spoken {
    Http1,
    /// HTTP/2, or too little was sent yet to tell.
    Unclear,
}

/// Looks at the first bytes without taking them: reading them apart makes hyper's buffer, which
/// a connection keeps, twice as large.
async fn protocol(stream: &TcpStream) -> std::io::Result<Spoken> {
    let mut first = [0; 4];
    match stream.peek(&mut first).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        4 if first != *b"PRI " => Ok(Spoken::Http1),
        _ => Ok(Spoken::Unclear),
    }
}

/// Serves a connection to its end; once no more are taken, what is under way is its last.
async fn see_off<C, E>(connection: C, closed: &CancellationToken, wind_down: impl FnOnce(Pin<&mut C>))
where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = closed.cancelled() => {
            wind_down(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::trace!(%error, "a connection ended badly");
    }
}

async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit) {
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let _unsupported = stream.set_nodelay(true);
                let _unsupported = setsockopt(&stream, sockopt::KeepAlive, &true);
                let _unsupported = setsockopt(&stream, sockopt::TcpKeepIdle, &60);
                return (stream, peer, place);
            }
            Err(error) => {
                // Out of file descriptors, most likely: they come back.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection that has brought no request in time is dropped, whatever it has sent.
async fn within_patience(mut connection: impl Future<Output = ()> + Unpin, seen: &Notify) {
    tokio::select! {
        () = &mut connection => return,
        () = seen.notified() => {}
        () = tokio::time::sleep(HEADER_TIMEOUT) => return,
    }
    connection.await;
}

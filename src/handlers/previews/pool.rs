//! Connections to programs, kept for a moment after an answer: a page with many parts is not
//! as many connections. A session's connections are its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    task::Context,
    time::Duration,
};

use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    body::{Progress, Upload},
    link::{Answer, Link},
};
use crate::{
    error::{Error, Kind, Result},
    services::previews::{Guest, Previews, not_ready},
};

/// Kept of a session.
const IDLE_MAX: usize = 32;
/// Less than programs keep theirs: node closes after five seconds.
const IDLE: Duration = Duration::from_secs(3);
/// For a connection whose answer was read to become ready again.
const TURN: Duration = Duration::from_millis(50);
/// Of an answer's header. Its lines are at most 100: of more, hyper would make room on the heap for each answer.
const HEADER_MAX: usize = 64 << 10;
/// Read ahead of a client that takes its time.
const BUFFER: usize = 128 << 10;

#[derive(Clone)]
pub struct Pool {
    idle: Arc<Mutex<HashMap<Uuid, Vec<Idle>>>>,
    tasks: TaskTracker,
}

struct Idle {
    link: Link,
    since: Instant,
    over: CancellationToken,
}

/// A connection in use. Dropped, it is closed.
pub struct Lent {
    link: Link,
    /// It has carried a request before, and may have been closed since.
    pub was_idle: bool,
    pool: Pool,
    session: Uuid,
    over: CancellationToken,
    progress: Option<Progress>,
}

impl Pool {
    pub fn new(tasks: TaskTracker) -> Self {
        Self { idle: Arc::default(), tasks }
    }

    /// One that is idle, or a new one.
    ///
    /// # Errors
    /// `PREVIEW_NOT_READY` where nothing listens.
    pub async fn borrow(&self, previews: &Previews, guest: &Guest) -> Result<Lent> {
        while let Some(mut link) = self.take(guest.session()) {
            if link.is_ready() || matches!(tokio::time::timeout(TURN, link.ready()).await, Ok(true)) {
                return Ok(self.lend(guest, link, true));
            }
        }
        self.connect(previews, guest).await
    }

    /// # Errors
    /// `PREVIEW_NOT_READY` where nothing listens.
    pub async fn connect(&self, previews: &Previews, guest: &Guest) -> Result<Lent> {
        let wire = previews.connect(guest).await?.ok_or_else(|| not_ready("nothing listens there"))?;
        let mut builder = http1::Builder::new();
        builder.max_header_size(HEADER_MAX).max_buf_size(BUFFER);
        let (sender, connection) = builder.handshake(TokioIo::new(wire)).await.map_err(|error| bad_answer(&error))?;
        Ok(self.lend(guest, Link::new(sender, Box::pin(connection.with_upgrades())), false))
    }

    fn lend(&self, guest: &Guest, link: Link, was_idle: bool) -> Lent {
        let over = guest.session_over().clone();
        Lent { link, was_idle, pool: self.clone(), session: guest.session(), over, progress: None }
    }

    fn take(&self, session: Uuid) -> Option<Link> {
        let mut all = self.lock();
        let idle = all.get_mut(&session)?;
        loop {
            let mut last = idle.pop()?;
            if last.is_alive() {
                return Some(last.link);
            }
        }
    }

    /// Closes what was idle for too long; a program that serves one connection at a time waits for it.
    pub fn sweep(&self) {
        self.lock().retain(|_, idle| {
            idle.retain_mut(Idle::is_alive);
            !idle.is_empty()
        });
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn is_alive(&mut self) -> bool {
        self.since.elapsed() < IDLE && !self.over.is_cancelled() && !self.link.is_closed()
    }
}

impl Lent {
    /// Sends a request, and waits for the head of its answer.
    pub async fn send(&mut self, request: Request<Upload>, progress: Progress) -> Answer {
        if !progress.is_done() {
            self.let_go();
        }
        self.progress = Some(progress);
        self.link.send(request).await
    }

    /// From here on a task of its own does the connection's work: what goes up does not wait for what comes down.
    pub fn let_go(&mut self) {
        if let Some(work) = self.link.let_go() {
            let over = self.over.clone();
            self.pool.tasks.spawn(async move { over.run_until_cancelled(work).await });
        }
    }

    /// Does what there is to do for the connection now.
    pub fn poll_work(&mut self, cx: &mut Context<'_>) {
        self.link.poll_work(cx);
    }

    /// The answer was read whole. With a request that was not, it is of no use any more.
    pub fn give_back(mut self) {
        if self.link.is_closed() || !self.progress.is_some_and(|progress| progress.is_done()) {
            return;
        }
        let mut all = self.pool.lock();
        let idle = all.entry(self.session).or_default();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { link: self.link, since: Instant::now(), over: self.over });
        }
    }
}

/// Nothing listened after all, or what came is no answer.
pub fn no_answer(cause: &(dyn std::error::Error + 'static)) -> Error {
    let mut causes = std::iter::successors(Some(cause), |error| error.source());
    let is_refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    if causes.any(|error| error.downcast_ref().is_some_and(is_refused)) {
        return not_ready("nothing listens there");
    }
    bad_answer(&cause)
}

/// What came is no answer.
pub fn bad_answer(cause: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::BadGateway, "PREVIEW_BAD_ANSWER", "the program behind this preview gave no valid answer")
        .cause(cause)
}

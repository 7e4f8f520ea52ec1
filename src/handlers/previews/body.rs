//! Bodies on their way through: never more of one in memory than a frame, in either direction.
//! The request's tells how far it is; the answer's ends with the right to see it, and gives
//! its connection back for the next request.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use futures::ready;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{onward, pool::Lent};
use crate::services::previews::Guest;

/// How far a request's body is.
#[derive(Clone)]
pub struct Progress(Arc<Far>);

struct Far {
    moved: Mutex<Instant>,
    done: AtomicBool,
}

impl Progress {
    pub fn start(done: bool) -> Self {
        Self(Arc::new(Far { moved: Mutex::new(Instant::now()), done: AtomicBool::new(done) }))
    }

    /// When the last of it went on.
    pub fn moved(&self) -> Instant {
        *self.0.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_done(&self) -> bool {
        self.0.done.load(Ordering::Acquire)
    }

    /// More of it went on.
    pub fn moves(&self) {
        *self.0.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn ends(&self) {
        self.0.done.store(true, Ordering::Release);
        self.moves();
    }
}

/// A request's body.
pub struct Upload {
    body: Body,
    progress: Progress,
}

impl Upload {
    pub fn new(body: Body) -> (Self, Progress) {
        let progress = Progress::start(body.is_end_stream());
        (Self { body, progress: progress.clone() }, progress)
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()?.trailers_mut()) {
            onward::rewrite_trailers(trailers);
        }
        if frame.is_none() || self.body.is_end_stream() {
            self.progress.ends();
        } else {
            self.progress.moves();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body.
pub struct Download {
    body: Incoming,
    /// Given back when the body is whole.
    lent: Option<Lent>,
    guest: Guest,
    over: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// The stop of the server, for what has no end of its own.
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Why it is not whole; told after what came before it has gone out.
    failed: Option<hyper::Error>,
    is_cut: bool,
}

impl Download {
    /// `stop` is for streams of events: others are finished by an orderly stop.
    pub fn new(body: Incoming, lent: Lent, guest: Guest, stop: Option<CancellationToken>) -> Self {
        let stop = stop.map(|stop| Box::pin(stop.cancelled_owned()));
        let mut download = Self { body, lent: Some(lent), guest, over: None, stop, failed: None, is_cut: false };
        if download.body.is_end_stream() {
            download.give_back();
        }
        download
    }

    fn give_back(&mut self) {
        if let Some(lent) = self.lent.take() {
            lent.give_back();
        }
    }

    fn cut(&mut self) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.is_cut = true;
        self.lent = None;
        Poll::Ready(Some(Err(io::Error::other("the right to see this preview is gone"))))
    }

    /// Whether it must end now; looked at whenever nothing comes.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let guest = &self.guest;
        let over = self.over.get_or_insert_with(|| Box::pin(guest.over().clone().cancelled_owned()));
        if over.as_mut().poll(cx).is_ready() {
            return self.cut();
        }
        if let Some(stop) = &mut self.stop {
            ready!(stop.as_mut().poll(cx));
            self.is_cut = true;
            self.lent = None;
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.is_cut {
            return Poll::Ready(None);
        }
        if self.guest.over().is_cancelled() {
            return self.cut();
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(io::Error::other(error))));
        }
        if let Some(lent) = &mut self.lent {
            lent.poll_work(cx);
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => self.poll_end(cx),
            Poll::Ready(Some(Ok(frame))) => {
                if self.body.is_end_stream() {
                    self.give_back();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.give_back();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.lent = None;
                self.failed = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

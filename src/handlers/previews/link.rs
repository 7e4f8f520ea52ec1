//! One connection to a program, and the work it needs: reading and writing. Whoever waits for its
//! answer does that work, which spares two changes of task for each request; a request that has
//! something to upload, and what has left HTTP, leave it to a task of its own.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Waker},
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1::SendRequest},
};

use super::body::Upload;

/// Of a connection; it ends with it. How it ended, the request that it carried is told.
pub type Work = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;
/// The head of an answer, or why there is none.
pub type Answer = Result<Response<Incoming>, TrySendError<Request<Upload>>>;

pub struct Link {
    sender: SendRequest<Upload>,
    /// `None`: it is over, or in other hands.
    work: Option<Work>,
}

impl Link {
    pub fn new(sender: SendRequest<Upload>, work: Work) -> Self {
        Self { sender, work: Some(work) }
    }

    pub fn let_go(&mut self) -> Option<Work> {
        self.work.take()
    }

    pub fn poll_work(&mut self, cx: &mut Context<'_>) {
        if let Some(work) = &mut self.work
            && work.as_mut().poll(cx).is_ready()
        {
            self.work = None;
        }
    }

    /// As far as can be seen without waiting.
    pub fn is_closed(&mut self) -> bool {
        self.poll_work(&mut Context::from_waker(Waker::noop()));
        self.sender.is_closed()
    }

    /// For a request, at once.
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Waits until it is ready; false when it has closed.
    pub async fn ready(&mut self) -> bool {
        poll_fn(|cx| {
            self.poll_work(cx);
            self.sender.poll_ready(cx).map(|ready| ready.is_ok())
        })
        .await
    }

    pub async fn send(&mut self, request: Request<Upload>) -> Answer {
        let mut answer = Box::pin(self.sender.try_send_request(request));
        poll_fn(|cx| {
            self.poll_work(cx);
            answer.as_mut().poll(cx)
        })
        .await
    }
}

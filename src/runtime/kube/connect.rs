//! The way to a program that listens in a pod: a port-forward of the cluster's. That nothing
//! listens is said behind the connection's back: in time, and nothing is connected; later, and the
//! first read is refused.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use kube::api::Portforwarder;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::{cluster::Cluster, places::Container};
use crate::{error::Result, runtime::Wire};

/// A refusal comes about as soon as the connection itself.
const REFUSAL: Duration = Duration::from_millis(100);

/// `None` where nothing listens.
pub async fn to_port(cluster: &Cluster, at: &Container, port: u16) -> Result<Option<Box<dyn Wire>>> {
    let mut forwarder = cluster.forward(at, port).await?;
    let (Some(stream), Some(refusal)) = (forwarder.take_stream(port), forwarder.take_error(port)) else {
        return Ok(None);
    };
    let mut refusal = refusal.boxed();
    let refusal = match tokio::time::timeout(REFUSAL, &mut refusal).await {
        Ok(Some(said)) => {
            tracing::debug!(said, pod = at.pod, port, "nothing listens there");
            return Ok(None);
        }
        // Its end came before its reason.
        Ok(None) => return Ok(None),
        Err(_) => Some(refusal),
    };
    Ok(Some(Box::new(Forwarded { stream, refusal, _forwarder: Ends(forwarder) })))
}

/// Ends with its stream.
struct Ends(Portforwarder);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Forwarded {
    stream: DuplexStream,
    /// As long as nothing was read.
    refusal: Option<BoxFuture<'static, Option<String>>>,
    _forwarder: Ends,
}

impl Forwarded {
    /// Said so, or ended before there was anything to read.
    fn is_refused(&mut self, ended: bool, cx: &mut Context<'_>) -> bool {
        let Some(refusal) = &mut self.refusal else { return false };
        if !ended && refusal.poll_unpin(cx).is_pending() {
            return false;
        }
        self.refusal = None;
        true
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.refusal = None;
        } else if self.is_refused(matches!(read, Poll::Ready(Ok(()))), cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        read
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

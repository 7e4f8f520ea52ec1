//! What has left HTTP: bytes both ways, until one side ends, the right to look does, or the
//! server stops.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, split};
use tokio_util::sync::CancellationToken;

use crate::services::{limits::OpenStream, previews::Guest};

/// For both sides to have left HTTP.
const CHANGE: Duration = Duration::from_secs(10);
/// For the one side after the other has said its last.
const LAST_WORDS: Duration = Duration::from_secs(5);
const BUFFER: usize = 16 << 10;

/// Joins the client with the program. `open` counts against the key's streams until the end.
pub async fn join(client: OnUpgrade, program: OnUpgrade, guest: Guest, open: OpenStream, stop: CancellationToken) {
    let both = tokio::time::timeout(CHANGE, async { tokio::try_join!(client, program) });
    let Ok(Ok((client, program))) = both.await else { return };
    let client = Heard { io: TokioIo::new(client), guest: guest.clone() };
    tokio::select! {
        () = copy_both(client, TokioIo::new(program)) => {}
        () = guest.over().cancelled() => {}
        () = stop.cancelled() => {}
    }
    drop(open);
}

async fn copy_both<A, B>(client: A, program: B)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (from_client, to_client) = split(client);
    let (from_program, to_program) = split(program);
    let up = copy(from_client, to_program);
    let down = copy(from_program, to_client);
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => drop(tokio::time::timeout(LAST_WORDS, down).await),
        () = &mut down => drop(tokio::time::timeout(LAST_WORDS, up).await),
    }
}

/// To the end of one side, which the other is told.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _gone = to.shutdown().await;
}

/// The client's side: what it says is activity.
struct Heard<T> {
    io: T,
    guest: Guest,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.guest.is_active();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

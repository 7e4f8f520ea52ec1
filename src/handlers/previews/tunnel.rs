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

use super::{body::Progress, exchange::stands_still};
use crate::services::{limits::OpenStream, previews::Guest};

/// For both sides to have left HTTP.
const CHANGE: Duration = Duration::from_secs(10);
/// For the one side to say nothing after the other has said its last.
const LAST_WORDS: Duration = Duration::from_secs(5);
const BUFFER: usize = 16 << 10;

/// Joins the client with the program. `open` counts against the key's streams until the end.
pub async fn join(client: OnUpgrade, program: OnUpgrade, guest: Guest, open: OpenStream, stop: CancellationToken) {
    let both = tokio::time::timeout(CHANGE, async { tokio::try_join!(client, program) });
    let Ok(Ok((client, program))) = both.await else { return };
    let client = Heard { io: TokioIo::new(client), guest: guest.clone() };
    tokio::select! {
        () = copy_both(client, TokioIo::new(program), LAST_WORDS) => {}
        () = guest.over().cancelled() => {}
        () = stop.cancelled() => {}
    }
    drop(open);
}

async fn copy_both<A, B>(client: A, program: B, patience: Duration)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (from_client, to_client) = split(client);
    let (from_program, to_program) = split(program);
    let said = Progress::start(false);
    let up = copy(from_client, to_program, &said);
    let down = copy(from_program, to_client, &said);
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => last_words(&said, down, patience).await,
        () = &mut down => last_words(&said, up, patience).await,
    }
}

/// What one side has to say after the other has said its last.
async fn last_words(said: &Progress, left: impl Future<Output = ()>, patience: Duration) {
    tokio::select! {
        () = left => {}
        () = stands_still(said, patience) => {}
    }
}

/// To the end of one side, which the other is told.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, said: &Progress) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
        said.moves();
    }
    said.moves();
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

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn after_the_last_of_one_side_the_other_goes_on_for_as_long_as_it_says_something() {
        let (mut client, near) = duplex(64);
        let (far, mut program) = duplex(64);
        let patience = Duration::from_secs(1);
        let talks = async {
            client.shutdown().await.unwrap();
            for _ in 0..15 {
                tokio::time::sleep(patience / 10).await;
                program.write_all(b"x").await.unwrap();
            }
            // And now it says nothing, and does not end.
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, [b'x'; 15]);
        };
        tokio::join!(copy_both(near, far, patience), talks);
    }
}

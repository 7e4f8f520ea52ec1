//! The pipes of a CGI process and the two bodies of a request, joined: small pieces, in
//! constant memory, and the end of either ends the other.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, EXPIRES, PRAGMA},
    },
    response::Response,
};
use futures::{Stream, StreamExt, stream};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{ChildStderr, ChildStdin, ChildStdout},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::DropGuard;

use super::{super::git, GitPath, in_flight::Running};

const CHUNK: usize = 256 << 10;
const HEADER_LIMIT: u64 = 16 << 10;
const HEADER_DEADLINE: Duration = Duration::from_mins(2);
/// How long, and how far, a body is read on that git does not want any more: a client
/// which is still sending would not see the answer otherwise.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
const DRAIN_LIMIT: usize = 256 << 20;
const STDERR_KEPT: usize = 8 << 10;

/// The request's body into git. A client that breaks off ends the process.
pub async fn feed(body: Body, mut stdin: ChildStdin, running: Arc<Running>) {
    let mut body = body.into_data_stream();
    let stop = running.stop.clone();
    let copy = async {
        while let Some(piece) = body.next().await {
            let Ok(piece) = piece else {
                return running.stop.cancel();
            };
            running.moved();
            if stdin.write_all(&piece).await.is_err() {
                break;
            }
        }
        drop(stdin);
        drain(&mut body).await;
    };
    stop.run_until_cancelled(copy).await;
}

async fn drain(body: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin)) {
    let deadline = Instant::now() + DRAIN_DEADLINE;
    let mut left = DRAIN_LIMIT;
    while let Ok(Some(Ok(piece))) = timeout_at(deadline, body.next()).await {
        left = match left.checked_sub(piece.len()) {
            Some(left) => left,
            None => return,
        };
    }
}

/// git's answer; none where it is no answer.
pub async fn respond(stdout: ChildStdout, running: Arc<Running>, guard: DropGuard) -> Option<Response> {
    widen(&stdout);
    let mut stdout = BufReader::with_capacity(CHUNK, stdout);
    let head = timeout(HEADER_DEADLINE, read_head(&mut stdout)).await;
    let (status, headers) = head.ok()??;
    let mut response = Response::new(Body::from_stream(output(stdout, running, guard)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Some(response)
}

/// Fewer turns between git and us; where it is not granted the pipe works all the same.
#[cfg(target_os = "linux")]
fn widen(pipe: &ChildStdout) {
    let size = i32::try_from(CHUNK).expect("a chunk is small");
    let _ = nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(size));
}

#[cfg(not(target_os = "linux"))]
fn widen(_: &ChildStdout) {}

/// The CGI header. Only what git's clients know is let through.
async fn read_head(stdout: &mut BufReader<ChildStdout>) -> Option<(StatusCode, HeaderMap)> {
    let mut limited = pin!(stdout.take(HEADER_LIMIT));
    let (mut status, mut headers) = (StatusCode::OK, HeaderMap::new());
    loop {
        let mut line = String::new();
        limited.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Some((status, headers));
        }
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            status = StatusCode::from_bytes(value.split(' ').next()?.as_bytes()).ok()?;
            continue;
        }
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        if [CONTENT_TYPE, CACHE_CONTROL, EXPIRES, PRAGMA].contains(&name) {
            headers.insert(name, HeaderValue::from_str(value).ok()?);
        }
    }
}

/// git's output as the response's body. Dropped before its end (the client is gone) it
/// ends the process. A push that was ended by us says so to the client.
fn output(
    stdout: BufReader<ChildStdout>,
    running: Arc<Running>,
    guard: DropGuard,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let state = Some((stdout, running, guard, false));
    stream::unfold(state, |state| async {
        let (mut stdout, running, guard, begun) = state?;
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = stdout.read_buf(&mut chunk).await;
        if read.is_ok_and(|read| read > 0) {
            running.moved();
            return Some((Ok(chunk.into()), Some((stdout, running, guard, true))));
        }
        guard.disarm();
        let told = running.was_ended() && running.context.is_some() && !begun;
        told.then(|| (Ok(Bytes::from_static(ENDED)), None))
    })
}

/// A packet on the side band for fatal errors.
const ENDED: &[u8] = b"003a\x03rdev: the push was refused, its credential has ended\n";

pub async fn log_errors(stderr: ChildStderr, project: String, path: GitPath) {
    let Ok(bytes) = git::read_some(Some(stderr), STDERR_KEPT).await else {
        return;
    };
    let text = String::from_utf8_lossy(&bytes);
    if !text.trim().is_empty() {
        let service = path.service().name();
        tracing::debug!(project.id = project, service, stderr = text.trim(), "git said");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_about_an_ended_push_says_its_own_length() {
        let length = std::str::from_utf8(&ENDED[..4]).unwrap();
        assert_eq!(usize::from_str_radix(length, 16), Ok(ENDED.len()));
    }
}

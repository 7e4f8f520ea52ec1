//! One request and the head of its answer. A connection that was kept and is found closed is
//! replaced once. How long an answer may take counts from when the last of the request went on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use http::{Method, Request, Response, request::Parts};
use hyper::body::Incoming;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    body::{Progress, Upload},
    pool::{Lent, Pool, bad_answer, no_answer},
};
use crate::{
    error::{Error, Result},
    services::previews::{Guest, Previews},
};

/// For the head of an answer.
pub const PATIENCE: Duration = Duration::from_mins(2);
/// Informational answers before the one that counts. They are passed over.
const HINTS_MAX: usize = 64;

/// # Errors
/// `PREVIEW_NOT_READY`, `PREVIEW_BAD_ANSWER`, timeout; unauthenticated when the right to ask is gone.
pub async fn ask(
    pool: &Pool,
    previews: &Previews,
    guest: &Guest,
    request: Request<Body>,
) -> Result<(Response<Incoming>, Lent)> {
    let mut lent = pool.borrow(previews, guest).await?;
    let (parts, body) = request.into_parts();
    let (upload, progress) = Upload::new(body);
    let again = if lent.was_idle && is_repeatable(&parts, &progress) { Some(parts.clone()) } else { None };
    let mut request = Request::from_parts(parts, upload);
    let flood = hints_of(&mut request);
    loop {
        let sent = lent.send(request, progress.clone());
        let mut failed = match within(guest, &progress, &flood, sent).await? {
            Ok(response) => return Ok((response, lent)),
            Err(failed) => failed,
        };
        let unsent = failed.take_message();
        let again = again.clone().map(|parts| Request::from_parts(parts, Upload::new(Body::empty()).0));
        request = match unsent.or(again).filter(|_| lent.was_idle) {
            Some(request) => request,
            None => return Err(no_answer(failed.error())),
        };
        lent = pool.connect(previews, guest).await?;
    }
}

/// Asked twice it does what it does once, and nothing of it is gone after the first time.
fn is_repeatable(parts: &Parts, progress: &Progress) -> bool {
    matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) && progress.is_done()
}

/// Told when there were more informational answers than there may be.
fn hints_of<B>(request: &mut Request<B>) -> Arc<Notify> {
    let (seen, flood) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let told = flood.clone();
    hyper::ext::on_informational(request, move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == HINTS_MAX {
            told.notify_one();
        }
    });
    flood
}

async fn within<T>(guest: &Guest, progress: &Progress, flood: &Notify, work: impl Future<Output = T>) -> Result<T> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = guest.over().cancelled() => Err(Error::unauthenticated()),
        () = flood.notified() => Err(bad_answer(&"it does not end with informational answers")),
        () = stands_still(progress, PATIENCE) => {
            Err(Error::timeout().cause("the program behind a preview has not answered"))
        }
    }
}

/// Until nothing has gone on for so long.
pub async fn stands_still(progress: &Progress, patience: Duration) {
    loop {
        let until = progress.moved() + patience;
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use futures::{StreamExt as _, stream};
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_not_waited_for_without_end() {
        let (_, progress) = Upload::new(Body::empty());
        stands_still(&progress, Duration::from_millis(1)).await;
    }

    #[tokio::test]
    async fn what_still_goes_on_does_not_stand_still() {
        let pieces = stream::iter(0..20).then(|_| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(b"x"))
        });
        let (upload, progress) = Upload::new(Body::from_stream(pieces));
        tokio::select! {
            biased;
            whole = upload.collect() => assert_eq!(whole.unwrap().to_bytes().len(), 20),
            () = stands_still(&progress, Duration::from_millis(300)) => panic!("it went on all the time"),
        }
        assert!(progress.is_done());
    }
}

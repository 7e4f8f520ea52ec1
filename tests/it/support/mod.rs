//! What the stories are told with: an app on real parts with the clock in hand, a client in
//! the API's words, a reader of events, git itself, and the program as a process.
//!
//! Nothing here sleeps for time to pass: what depends on time moves the clock, what depends
//! on another task is looked for until it is there ([`eventually`]).

#![allow(dead_code, reason = "a tool may be for one story alone")]

mod api;
mod app;
pub mod cluster;
pub mod counter;
mod database;
pub mod git;
pub mod gitea;
mod kube;
mod proxy;
pub mod raw;
pub mod server;
pub mod sink;
pub mod sse;
pub mod upstream;
pub mod woodpecker;

use std::time::Duration;

pub use self::{
    api::{Api, Reply},
    app::{Ground, TestApp},
    database::TestDb,
    git::Clone as GitClone,
    gitea::{Fault, Gitea},
    kube::FakeCluster,
    proxy::Proxy,
    server::Server,
    sink::{Answer, Gate, Sink},
    sse::{Event, Events},
    upstream::{Chat, Upstream},
    woodpecker::{Odd, Woodpecker},
};

/// Longest that anything is waited for. Reached only by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until there is an answer.
///
/// # Panics
/// When there is none within [`PATIENCE`]; `what` says what was waited for.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Something that must be over within [`PATIENCE`].
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// Runs async work to its end from a `drop`, on the runtime that the test runs on.
pub fn finish<F: Future>(work: F) -> F::Output {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work))
}

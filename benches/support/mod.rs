//! What the benches share: a PostgreSQL of their own, rdev and its floor as processes
//! beside one another, a client that is cheaper than what it measures, and the table
//! that is printed. Two cores are shared by all of them, so absolute figures mean little:
//! floor and rdev take turns in the same minute and the ratio is what counts.
//! Of Linux, `/proc` is needed.

#![allow(dead_code, reason = "each bench uses its part")]

pub mod client;
pub mod feed;
pub mod nginx;
pub mod peer;
pub mod postgres;
pub mod report;
pub mod server;
pub mod stats;

use std::time::{Duration, Instant};

/// What `cargo bench` wants of this program: the floor's server, the measurement, or, when
/// something else starts it (a test runner), nothing.
pub enum Role {
    Floor(Vec<String>),
    Measure,
    Nothing,
}

pub fn role() -> Role {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("floor") => Role::Floor(arguments[1..].to_vec()),
        _ if arguments.iter().any(|argument| argument == "--bench") => Role::Measure,
        _ => Role::Nothing,
    }
}

/// Whether a part was asked for: `cargo bench --bench sse -- replay`; all of them when none was named.
pub fn wanted(part: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    named.peek().is_none() || named.any(|name| part.contains(&name))
}

/// Runs to the end on both cores.
pub fn block_on<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

/// Tries until it works, at most `at_most` long.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, at_most: Duration, step: impl Fn() -> F) -> T {
    let until = Instant::now() + at_most;
    loop {
        if let Some(found) = step().await {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {at_most:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

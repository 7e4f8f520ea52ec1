//! Requests that are held up, and answers that are not the cluster's own: by verb, kind and name.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use tokio::sync::watch;

use super::{FakeCluster, Inner, failure};
use crate::support::eventually;

#[derive(Default)]
pub struct Tricks {
    held: Vec<(String, watch::Receiver<bool>, Arc<watch::Sender<usize>>)>,
    answers: Vec<(String, u16, String)>,
    lost: Vec<String>,
}

/// Such requests wait until it is opened or dropped.
pub struct Gate {
    open: watch::Sender<bool>,
    arrived: watch::Receiver<usize>,
}

impl Gate {
    pub fn open(self) {
        self.open.send_replace(true);
    }

    /// Somebody waits.
    pub async fn reached(&self) {
        eventually("a request at the gate", async || (*self.arrived.borrow() > 0).then_some(())).await;
    }
}

impl FakeCluster {
    /// Holds up what is called `DELETE configmaps/a`, `GET secrets` or, of an apply that is only rehearsed,
    /// `REHEARSE configmaps/a`.
    pub fn hold(&self, what: &str) -> Gate {
        let (open, opened) = watch::channel(false);
        let (count, arrived) = watch::channel(0);
        self.fake().tricks.held.push((what.to_owned(), opened, Arc::new(count)));
        Gate { open, arrived }
    }

    /// Answers it so from now on.
    pub fn answer(&self, what: &str, code: u16, message: &str) {
        self.fake().tricks.answers.push((what.to_owned(), code, message.to_owned()));
    }

    /// Carries the next of it out, and its answer is lost.
    pub fn lose_the_answer(&self, what: &str) {
        self.fake().tricks.lost.push(what.to_owned());
    }

    pub fn be_honest(&self) {
        self.fake().tricks.answers.clear();
    }
}

pub async fn played(State(inner): State<Arc<Inner>>, request: Request, next: Next) -> Response {
    let what = name(&request);
    let held = {
        let fake = inner.state.lock().expect("nobody panics with it");
        fake.tricks
            .held
            .iter()
            .rev()
            .find(|(held, ..)| *held == what)
            .map(|(_, open, count)| (open.clone(), count.clone()))
    };
    if let Some((mut open, count)) = held {
        count.send_modify(|count| *count += 1);
        let _dropped_is_open_too = open.wait_for(|open| *open).await;
    }
    let odd = {
        let fake = inner.state.lock().expect("nobody panics with it");
        fake.tricks.answers.iter().find(|(odd, ..)| *odd == what).map(|(_, code, said)| (*code, said.clone()))
    };
    if let Some((code, said)) = odd {
        let reason = match code {
            403 => "Forbidden",
            422 => "Invalid",
            _ => "InternalError",
        };
        return failure(code, reason, &said);
    }
    let answer = next.run(request).await;
    let mut fake = inner.state.lock().expect("nobody panics with it");
    let lost = fake.tricks.lost.iter().position(|lost| *lost == what);
    match lost.map(|at| fake.tricks.lost.remove(at)) {
        Some(_) => failure(504, "Timeout", "the answer was lost"),
        None => answer,
    }
}

/// Behind the namespace.
fn name(request: &Request) -> String {
    let path = request.uri().path().split_once(super::NAMESPACE).map_or("", |(_, rest)| rest.trim_start_matches('/'));
    let rehearses = request.uri().query().is_some_and(|query| query.contains("dryRun=All"));
    let verb = if rehearses { "REHEARSE" } else { request.method().as_str() };
    format!("{verb} {path}")
}

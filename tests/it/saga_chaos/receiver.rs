//! Whom the steps call. It outlives every process, and keeps in its own order who came with which key
//! and what it said. A request that it answers well has its effect when it comes.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::plans::{Plan, Says};
use crate::support::{
    Answer, Gate,
    sink::{Listener, Request, lock},
};
use serde_json::json;

/// A request, as it came.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its place among all.
    pub order: usize,
    pub at: Instant,
    pub step: usize,
    pub undo: bool,
    /// It says of itself that it compensates.
    pub marked: bool,
    pub key: String,
    pub attempt: i64,
    /// What it was answered.
    pub status: u16,
}

impl Arrival {
    pub fn is_well(&self) -> bool {
        self.status < 300
    }
}

#[derive(Default)]
struct Seen {
    arrivals: Vec<(usize, Arrival)>,
    before: HashSet<String>,
}

/// Listens for as long as it lives.
pub struct Receiver {
    pub url: String,
    seen: Arc<Mutex<Seen>>,
    _listener: Listener,
}

impl Receiver {
    pub async fn start(plans: Arc<Vec<Plan>>) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let noted = seen.clone();
        let listener = Listener::start("127.0.0.1:0", move |request| answer(&plans, &mut lock(&noted), request)).await;
        Self { url: listener.url.clone(), seen, _listener: listener }
    }

    /// By saga, in the order in which they came.
    pub fn arrivals(&self) -> BTreeMap<usize, Vec<Arrival>> {
        let mut by_saga = BTreeMap::<usize, Vec<Arrival>>::new();
        for (saga, arrival) in &lock(&self.seen).arrivals {
            by_saga.entry(*saga).or_default().push(arrival.clone());
        }
        by_saga
    }

    pub fn count(&self) -> usize {
        lock(&self.seen).arrivals.len()
    }
}

fn answer(plans: &[Plan], seen: &mut Seen, request: &Request) -> Answer {
    let words: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let [saga, step, what] = words[..] else { panic!("a path of ours: {}", request.path) };
    let (saga, step): (usize, usize) = (saga.parse().expect("a number"), step.parse().expect("a number"));
    let (planned, undo) = (&plans[saga].steps[step], what == "undo");
    let meets = if undo { planned.undo.expect("it has a compensation") } else { planned.call };
    let is_first = seen.before.insert(request.path.clone());
    let status = match meets.says {
        Says::BusyFirst if is_first => 503,
        Says::RefusesFirst if is_first => 409,
        Says::Refuses => 409,
        _ => 200,
    };
    let header = |name| request.header(name).unwrap_or_default().to_owned();
    seen.arrivals.push((
        saga,
        Arrival {
            order: seen.arrivals.len(),
            at: request.at,
            step,
            undo,
            marked: header("x-rdev-compensation") == "true",
            key: header("idempotency-key"),
            attempt: header("x-rdev-attempt").parse().unwrap_or(-1),
            status,
        },
    ));
    let (gate, takes) = (Gate::new(), Duration::from_millis(meets.takes));
    let opening = gate.clone();
    tokio::spawn(async move {
        tokio::time::sleep(takes).await;
        opening.open();
    });
    Answer::json(status, &json!({"step": step})).first([gate].iter())
}

//! What must be true of every saga in the end, whatever died meanwhile: the saga as one process shows
//! it, its log as another one does, its events as a third one does, and what the receiver saw are one
//! story. All that is wrong is collected and told with the whole story of the sagas that it is about.

mod attempts;
mod chain;
mod database;
mod effects;

use std::fmt::Write as _;

use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::{
    people::{Done, People},
    plans::Plan,
    receiver::{Arrival, Receiver},
    storm::Storm,
};
use crate::{
    chaos::fleet::Fleet,
    support::{Api, Event},
};

/// Sagas whose story is told where something is wrong.
const TOLD: usize = 3;
/// Sagas that are read at once.
const AT_ONCE: usize = 6;

/// What is known of a saga from outside.
pub struct Story<'a> {
    plan: &'a Plan,
    id: String,
    shown: Value,
    entries: Vec<Value>,
    events: Vec<Event>,
    /// Without those that were sent too late by who did not know it.
    arrivals: Vec<Arrival>,
    done: Done,
    /// What somebody saw who followed it all the time.
    followed: Option<Vec<Event>>,
}

/// What the auditor sums up.
#[derive(Debug, Default)]
#[expect(dead_code, reason = "they are shown")]
pub struct Summary {
    sagas: usize,
    completed: usize,
    failed: usize,
    compensated: usize,
    cancelled: usize,
    requests: usize,
    /// Attempts that were cut off, and requests that were repeated under their key.
    cut_off: usize,
    repeated: usize,
    /// Times that nobody knew whether a step had its effect.
    in_doubt: usize,
    undone: usize,
    stuck: usize,
    late: usize,
}

impl Summary {
    /// Enough has happened.
    pub fn proves_something(&self) {
        let ends = [self.completed, self.failed, self.compensated, self.cancelled];
        let faults = [self.cut_off, self.repeated, self.in_doubt, self.undone];
        assert!(ends.iter().chain(&faults).all(|count| *count > 0), "too little has happened: {self:?}");
    }
}

/// Looks at everything.
///
/// # Panics
/// When anything is wrong.
pub async fn audit(
    fleet: &Fleet,
    database: &str,
    plans: &[Plan],
    people: &People,
    receiver: &Receiver,
    storm: &Storm,
) -> Summary {
    let (ids, lengths) = (people.sagas(), database::lengths(database).await);
    let mut wrong = database::judge(database, &ids, plans).await;
    let length = |id: &String| lengths.get(id).copied().unwrap_or_default();
    let mut followed = people.followed(&ids.iter().map(|(n, id)| (*n, length(id))).collect()).await;
    let mut arrivals = receiver.arrivals();
    let mut summary = Summary { sagas: ids.len(), requests: receiver.count(), ..Summary::default() };
    let known: Vec<_> = ids
        .into_iter()
        .map(|(n, id)| {
            let arrived = in_time(arrivals.remove(&n).unwrap_or_default(), storm, &mut summary);
            (&plans[n], length(&id), id, arrived, people.done(n), followed.remove(&n))
        })
        .collect();
    let apis: Vec<Api> = (0..fleet.len()).map(|n| fleet.api(n)).collect();
    let stories: Vec<Story> = stream::iter(known)
        .map(async |(plan, length, id, arrivals, done, followed)| {
            let (shown, entries, events) = read(&apis, plan.n, &id, length).await;
            Story { plan, id, shown, entries, events, arrivals, done, followed }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let (mut told, mut bad) = (String::new(), 0);
    for story in &stories {
        let of_it = story.judge(&mut summary);
        if !of_it.is_empty() {
            bad += 1;
            if bad <= TOLD {
                told.push_str(&story.tell(fleet));
            }
        }
        wrong.extend(of_it.into_iter().map(|what| format!("{} {}: {what}", story.plan.name(), story.id)));
    }
    let complaints = fleet.complaints();
    assert!(wrong.is_empty(), "{}\n{told}\n{}\ncomplaints:\n{complaints}", wrong.join("\n"), storm.told());
    summary
}

/// The saga, its log and its events, each from another process.
async fn read(apis: &[Api], n: usize, id: &str, length: usize) -> (Value, Vec<Value>, Vec<Event>) {
    let api = |more: usize| &apis[(n + more) % apis.len()];
    let shown = api(0).get(&format!("/sagas/{id}")).await.data(200);
    let log = api(1).get(&format!("/sagas/{id}/log")).await.data(200);
    let entries = log["entries"].as_array().cloned().unwrap_or_default();
    let mut stream = api(2).listen(&format!("/sagas/{id}/events")).await;
    let mut events = Vec::new();
    while events.len() < length {
        events.push(stream.next().await);
    }
    if events.last().is_some_and(Event::is_last) {
        events.extend(stream.rest().await);
    }
    (shown, entries, events)
}

/// Without what a process sent that had stood still, and did not know yet that others had gone on.
fn in_time(arrivals: Vec<Arrival>, storm: &Storm, summary: &mut Summary) -> Vec<Arrival> {
    let (mut kept, all) = (Vec::<Arrival>::new(), arrivals.len());
    for arrival in arrivals {
        let is_past = kept.iter().any(|before| {
            let overtaken = before.key == arrival.key && before.attempt > arrival.attempt;
            before.step == arrival.step && (overtaken || (before.undo && !arrival.undo))
        });
        if !(is_past && storm.is_late(arrival.at)) {
            kept.push(arrival);
        }
    }
    summary.late += all - kept.len();
    kept
}

impl Story<'_> {
    fn judge(&self, summary: &mut Summary) -> Vec<String> {
        let mut wrong = Vec::new();
        let chains = chain::judge(self, &mut wrong);
        attempts::judge(self, &chains, summary, &mut wrong);
        effects::judge(self, &chains, summary, &mut wrong);
        match self.status() {
            "completed" => summary.completed += 1,
            "failed" => summary.failed += 1,
            "compensated" => summary.compensated += 1,
            "cancelled" => summary.cancelled += 1,
            other => wrong.push(format!("it is {other} in the end")),
        }
        wrong
    }

    fn status(&self) -> &str {
        self.shown["status"].as_str().unwrap_or_default()
    }

    /// As the saga shows it.
    fn step(&self, at: usize) -> &Value {
        &self.shown["steps"][at]
    }

    /// Requests of a step, or of its compensation.
    fn arrivals(&self, step: usize, undo: bool) -> impl Iterator<Item = &Arrival> + Clone {
        self.arrivals.iter().filter(move |arrival| arrival.step == step && arrival.undo == undo)
    }

    /// Everything that is known.
    fn tell(&self, fleet: &Fleet) -> String {
        let mut told = format!("---- {:#?}\n{:#}\n", self.plan, self.shown);
        told.extend(self.entries.iter().map(|entry| format!("  log: {entry}\n")));
        for event in &self.events {
            let _in_memory = writeln!(told, "  {} {} {}", event.id.as_deref().unwrap_or("-"), event.name, event.data);
        }
        told.extend(self.arrivals.iter().map(|arrival| format!("  {arrival:?}\n")));
        told + &format!("  {:?}\n", self.done) + &fleet.said_about(&self.id)
    }
}

//! Who wants something of the sagas: those who make them, insisting until they have an answer; one who
//! looks at all of them and decides where somebody has to; and some who follow what happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    knocking::Knocking,
    plans::{Ask, Fate, Plan},
};
use crate::support::{Event, Events, eventually, sink::lock};

/// Pause between two looks at all sagas, and before a stream that broke is opened again.
const LOOK: Duration = Duration::from_millis(400);
const AGAIN: Duration = Duration::from_millis(100);
/// One in so many is followed.
const FOLLOWED: usize = 4;
/// Decisions that are made at once.
const AT_ONCE: usize = 6;

/// What has been done about a saga.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Calls that were answered well.
    pub asked: Vec<Ask>,
    /// Decisions, also those that came too late.
    decided: usize,
    /// It failed, and stays as it is.
    left: bool,
}

/// All people. Cheap to clone.
#[derive(Clone)]
pub struct People {
    knocking: Knocking,
    plans: Arc<Vec<Plan>>,
    receiver: String,
    made: Arc<Mutex<BTreeMap<usize, String>>>,
    done: Arc<Mutex<BTreeMap<usize, Done>>>,
    followed: Arc<Mutex<BTreeMap<usize, Vec<Event>>>>,
    followers: Arc<Mutex<JoinSet<()>>>,
    /// Who comes between while a saga runs.
    interrupting: Arc<Mutex<JoinSet<()>>>,
}

impl People {
    pub fn new(knocking: Knocking, plans: Arc<Vec<Plan>>, receiver: &str) -> Self {
        let receiver = receiver.to_owned();
        let (made, done, followed, followers, interrupting) = Default::default();
        Self { knocking, plans, receiver, made, done, followed, followers, interrupting }
    }

    /// Makes every so-manieth saga from this one on.
    pub async fn make(self, first: usize, every: usize, pause: Duration) {
        for plan in self.plans.iter().skip(first).step_by(every) {
            let (key, body) = (plan.name(), plan.body(&self.receiver));
            let (status, answer) = self.knocking.post(plan.n, "/sagas", &key, &body).await;
            assert_eq!(status, 201, "{answer}");
            let id = answer["data"]["id"].as_str().expect("an id").to_owned();
            lock(&self.made).insert(plan.n, id.clone());
            if plan.n % FOLLOWED == 1 {
                lock(&self.followers).spawn(self.clone().follow(plan.n, id.clone()));
            }
            let interrupted = match plan.fate {
                Fate::RolledBackAfter { millis } => Some((millis, "rollback", json!({}))),
                Fate::CancelledAfter { millis, compensate } => {
                    Some((millis, "cancel", json!({"compensate": compensate})))
                }
                _ => None,
            };
            if let Some((millis, word, body)) = interrupted {
                let (people, n) = (self.clone(), plan.n);
                lock(&self.interrupting).spawn(async move {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    people.ask(n, &id, Ask { word, step: None }, &body, "interrupted").await;
                });
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Whoever wanted to come between has done so.
    pub async fn have_interrupted(&self) {
        let interrupting = std::mem::take(&mut *lock(&self.interrupting));
        interrupting.join_all().await;
    }

    /// Looks at all sagas and decides where somebody has to, until nobody has to any more.
    ///
    /// # Panics
    /// When something is left to do so long after `over` said that all are made and nothing dies any more.
    pub async fn look_after(&self, over: impl Fn() -> Option<Instant>, rest: Duration) {
        loop {
            let (is_over, shown) = (over(), self.list().await);
            let open = self.open(&shown);
            if let Some(since) = is_over {
                if open.is_empty() && shown.len() == self.plans.len() {
                    return;
                }
                assert!(since.elapsed() < rest, "not at rest after {rest:?}: {open:?}");
            }
            let idle =
                |(_, _, status): &(usize, String, String)| !matches!(status.as_str(), "completed" | "failed" | "stuck");
            let wanting = open.into_iter().filter(|one| !idle(one));
            stream::iter(wanting).for_each_concurrent(AT_ONCE, |(n, id, _)| self.decide(n, id)).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Number, id and status of all sagas there are.
    async fn list(&self) -> Vec<(usize, String, String)> {
        let (mut found, mut path) = (Vec::new(), "/sagas?limit=200".to_owned());
        loop {
            let page = self.knocking.get(found.len(), &path).await;
            for saga in page["data"].as_array().expect("a list") {
                let text = |name: &str| saga[name].as_str().expect("a text").to_owned();
                let n = Plan::number(&text("name")).expect("one of ours");
                found.push((n, text("id"), text("status")));
            }
            let Some(cursor) = page["meta"]["next_cursor"].as_str() else { return found };
            path = format!("/sagas?limit=200&cursor={cursor}");
        }
    }

    /// Those that are not where they stay.
    fn open(&self, shown: &[(usize, String, String)]) -> Vec<(usize, String, String)> {
        let done = lock(&self.done);
        let is_left = |n: &usize| done.get(n).is_some_and(|done| done.left);
        shown.iter().filter(|(n, _, status)| !self.plans[*n].is_settled(status, is_left(n))).cloned().collect()
    }

    async fn decide(&self, n: usize, id: String) {
        let shown = self.knocking.get(n, &format!("/sagas/{id}")).await["data"].clone();
        let decided = lock(&self.done).get(&n).map_or(0, |done| done.decided);
        match self.plans[n].decide(&shown, decided) {
            Some(ask) => self.ask(n, &id, ask, &json!({}), &decided.to_string()).await,
            None if shown["status"] == "failed" => lock(&self.done).entry(n).or_default().left = true,
            None => {}
        }
    }

    /// One control call. It may come too late.
    async fn ask(&self, n: usize, id: &str, ask: Ask, body: &Value, which: &str) {
        let (path, key) = (format!("/sagas/{id}/{}", ask.path()), format!("saga-{n}-{which}"));
        let (status, answer) = self.knocking.post(n, &path, &key, body).await;
        let mut done = lock(&self.done);
        let done = done.entry(n).or_default();
        match status {
            200 => {
                done.asked.push(ask);
                // It may go on, and fail for another reason.
                done.left = false;
            }
            _ => assert_eq!(answer["error"]["code"], "INVALID_STATE", "{path}: {answer}"),
        }
        if which != "interrupted" {
            done.decided += 1;
        }
    }

    /// Follows a saga at one process after the other, each time from where the last one left off.
    async fn follow(self, n: usize, id: String) {
        let mut last: Option<String> = None;
        for attempt in 0.. {
            if let Some(answer) = self.knocking.listen(n + attempt, &id, last.as_deref()).await {
                let mut events = Events::new(answer);
                while let Some(event) = events.try_next().await {
                    if event.id.is_some() {
                        last.clone_from(&event.id);
                        lock(&self.followed).entry(n).or_default().push(event);
                    }
                }
            }
            if last.as_ref().is_some_and(|id| id.ends_with(":final")) {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// By saga, what its follower saw: all of it, once it has seen so much.
    pub async fn followed(&self, until: &BTreeMap<usize, usize>) -> BTreeMap<usize, Vec<Event>> {
        let has_ended = |seen: &Vec<Event>| seen.last().is_some_and(Event::is_last);
        eventually("what the followers see", async || {
            let seen = lock(&self.followed);
            let behind = |n: &usize| {
                let enough = |seen: &Vec<Event>| has_ended(seen) || until.get(n).is_some_and(|all| seen.len() >= *all);
                !seen.get(n).is_some_and(enough)
            };
            let followed: BTreeSet<usize> = self.sagas().into_keys().filter(|n| n % FOLLOWED == 1).collect();
            (!followed.iter().any(behind)).then_some(())
        })
        .await;
        lock(&self.followers).abort_all();
        lock(&self.followed).clone()
    }

    /// By number, the ids that were answered.
    pub fn sagas(&self) -> BTreeMap<usize, String> {
        lock(&self.made).clone()
    }

    pub fn done(&self, n: usize) -> Done {
        lock(&self.done).get(&n).cloned().unwrap_or_default()
    }
}

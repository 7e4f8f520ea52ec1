//! What must be true of every job in the end, whatever died meanwhile. All that is wrong is
//! collected and told together with the whole story of the jobs that it is about.

mod database;
mod hooks;
mod told;

use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::{
    clients::{Clients, Receivers, Submitted},
    fleet::Fleet,
    models::{Kind, Models},
};
use crate::support::{Event, sink::Request};

/// Jobs whose story is told where something is wrong.
const TOLD: usize = 4;

/// What is known of a job from outside.
pub struct Story<'a> {
    submitted: &'a Submitted,
    job: Value,
    events: Vec<Event>,
    deliveries: Vec<Value>,
    arrivals: Vec<Request>,
    /// What somebody saw who followed it all the time.
    followed: Option<Vec<Event>>,
}

/// One change of a job's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    state: String,
    previous: String,
    attempt: i64,
}

/// What the auditor sums up.
#[derive(Debug, Default)]
pub struct Summary {
    pub jobs: usize,
    pub completed: usize,
    pub failed: usize,
    pub cancelled: usize,
    /// Jobs that ran more than once although no answer was bad.
    pub rescued: usize,
    pub webhooks: usize,
    pub repeated: usize,
}

/// Looks at everything.
///
/// # Panics
/// When anything is wrong.
pub async fn audit(
    fleet: &Fleet,
    database: &str,
    models: &Models,
    receivers: &Receivers,
    clients: &Clients,
) -> Summary {
    let submitted = &clients.submitted()[..];
    let (mut arrivals, mut followed) = (receivers.arrivals(), clients.followed().await);
    let stories: Vec<Story> = stream::iter(submitted)
        .map(|one| (one, arrivals.remove(&one.job).unwrap_or_default(), followed.remove(&one.job)))
        .map(|(one, arrived, followed)| read(fleet, one, arrived, followed))
        .buffered(8)
        .collect()
        .await;
    let mut wrong = database::judge(database, submitted).await;
    wrong.extend(arrivals.keys().map(|job| format!("webhooks of a job that nobody submitted: {job}")));
    let mut told = String::new();
    let mut summary = Summary { jobs: stories.len(), ..Summary::default() };
    let mut bad = 0;
    for story in &stories {
        let of_it = story.judge(models, &mut summary);
        if !of_it.is_empty() {
            bad += 1;
            if bad <= TOLD {
                told.push_str(&story.tell(fleet, database).await);
            }
        }
        wrong.extend(
            of_it.into_iter().map(|what| format!("job {} {:?}: {what}", story.submitted.n, story.submitted.kind)),
        );
    }
    assert!(wrong.is_empty(), "{}\n{told}\ncomplaints:\n{}", wrong.join("\n"), fleet.complaints());
    summary
}

async fn read<'a>(
    fleet: &Fleet,
    submitted: &'a Submitted,
    arrivals: Vec<Request>,
    followed: Option<Vec<Event>>,
) -> Story<'a> {
    let api = fleet.api(submitted.n % fleet.len());
    let path = format!("/jobs/{}", submitted.job);
    let job = api.get(&path).await;
    assert_eq!(job.status, 200, "an accepted job is not there: {submitted:?} {}", job.text);
    let events = api.listen(&format!("{path}/events")).await.rest().await;
    let deliveries = api.get(&format!("{path}/deliveries")).await.json()["deliveries"].clone();
    let mut job = job.json();
    if job["result"]["artifact"].is_string() {
        let artifact = api.get(&format!("{path}/artifacts/result.json")).await;
        assert_eq!(artifact.status, 200, "{}", artifact.text);
        job["whole_result"] = artifact.json();
    }
    let deliveries = deliveries.as_array().cloned().unwrap_or_default();
    Story { submitted, job, events, deliveries, arrivals, followed }
}

impl Story<'_> {
    fn judge(&self, models: &Models, summary: &mut Summary) -> Vec<String> {
        let mut wrong = Vec::new();
        let changes = self.changes(&mut wrong);
        self.judge_log(&changes, &mut wrong);
        self.judge_end(models, &changes, summary, &mut wrong);
        hooks::judge(self, &changes, summary, &mut wrong);
        wrong
    }

    /// The log's changes of state. Its numbers are 1..n, and it ends once.
    fn changes(&self, wrong: &mut Vec<String>) -> Vec<Change> {
        let numbers: Vec<Option<u64>> = self.events.iter().map(Event::number).collect();
        let last = self.events.len().saturating_sub(1);
        if numbers[..last] != (1..=last as u64).map(Some).collect::<Vec<_>>()[..] {
            wrong.push(format!("the numbers of its log: {numbers:?}"));
        }
        let ends = self.events.iter().filter(|event| event.name == "complete").count();
        if ends != 1 || !self.events.last().is_some_and(|event| event.is_last() && event.name == "complete") {
            wrong.push(format!("its log has {ends} ends"));
        }
        if let Some(followed) = self.followed.as_ref().filter(|followed| **followed != self.events) {
            let ids: Vec<_> = followed.iter().map(|event| event.id.as_deref().unwrap_or("-")).collect();
            wrong.push(format!("who followed it saw something else: {ids:?}"));
        }
        let told = self.events.iter().filter(|event| matches!(event.name.as_str(), "state" | "complete"));
        told.map(|event| Change::of(&event.data)).collect()
    }

    /// States follow one another as they may, and attempts are counted.
    fn judge_log(&self, changes: &[Change], wrong: &mut Vec<String>) {
        let (mut state, mut attempt) = (String::new(), 0);
        for change in changes {
            let may = match state.as_str() {
                "" => change.state == "queued",
                "queued" => matches!(change.state.as_str(), "running" | "cancelled"),
                "running" => change.state != "running",
                _ => false,
            };
            if !may || change.previous != state {
                wrong.push(format!("after {state:?} comes {change:?}"));
            }
            let counts = match change.state.as_str() {
                "running" => change.attempt == attempt + 1,
                // A claim that was given back does not count.
                "queued" => change.attempt == attempt || change.attempt == attempt - 1,
                _ => change.attempt == attempt,
            };
            if !counts {
                wrong.push(format!("after attempt {attempt} comes {change:?}"));
            }
            (state, attempt) = (change.state.clone(), change.attempt);
        }
        if self.job["state"] != state.as_str() || self.job["attempt"] != attempt || self.job["completed_at"].is_null() {
            wrong.push(format!("its log ends with {state} at attempt {attempt}"));
        }
        let resets = self.events.iter().filter(|event| event.name == "reset").count();
        let runs = changes.iter().filter(|change| change.state == "running").count();
        if resets != runs.saturating_sub(1) {
            wrong.push(format!("{runs} runs and {resets} resets"));
        }
    }

    fn judge_end(&self, models: &Models, changes: &[Change], summary: &mut Summary, wrong: &mut Vec<String>) {
        let (n, kind, state) = (self.submitted.n, self.submitted.kind, self.job["state"].as_str().unwrap_or_default());
        if let Some(answered) = self.submitted.cancelled.as_deref().filter(|answered| *answered != state) {
            wrong.push(format!("the answer to its cancellation was {answered}"));
        }
        match state {
            "completed" => {
                summary.completed += 1;
                let whole = self.job.get("whole_result").unwrap_or(&self.job["result"]);
                let content = whole["message"]["content"].as_str().unwrap_or_default();
                if !models.answers_to(n).iter().any(|answer| answer == content) {
                    wrong.push(format!("upstream never said {:?}", content.get(..40).unwrap_or(content)));
                }
                if self.tokens_of_last_run() != content {
                    wrong.push("the tokens of its last run are not its result".to_owned());
                }
                if (kind == Kind::Large) != self.job["whole_result"].is_object() {
                    wrong.push("its result stands where it should not".to_owned());
                }
            }
            "failed" => summary.failed += 1,
            _ => summary.cancelled += 1,
        }
        if (kind == Kind::Refused && state == "completed") || (kind != Kind::Refused && state == "failed") {
            wrong.push(format!("it must not end so: {}", self.job));
        }
        if state == "cancelled" && self.submitted.cancelled.is_none() {
            wrong.push("nobody cancelled it".to_owned());
        }
        let runs = changes.iter().filter(|change| change.state == "running").count();
        let asked_twice = matches!(kind, Kind::Busy | Kind::Broken | Kind::Erring);
        summary.rescued += usize::from(runs > 1 + usize::from(asked_twice));
        // Whoever died between the claim and the call has not called.
        if models.calls(n) > runs {
            wrong.push(format!("{runs} runs and {} calls", models.calls(n)));
        }
    }

    fn tokens_of_last_run(&self) -> String {
        let begin = self.events.iter().rposition(|event| event.name == "reset").unwrap_or(0);
        self.events[begin..].iter().filter_map(|event| event.data["text"].as_str()).collect()
    }
}

impl Change {
    /// Of an event's or a webhook's data.
    fn of(data: &Value) -> Self {
        let text = |name: &str| data[name].as_str().unwrap_or("?").to_owned();
        Self { state: text("state"), previous: text("previous_state"), attempt: data["attempt"].as_i64().unwrap_or(-1) }
    }
}

//! Sagas, by what may befall them. Here are the words that their stories are told in.
//!
//! The clock goes with the time, and jumps where a story moves it.

mod actions;
mod approvals;
mod cancels;
mod children;
mod circuits;
mod control;
mod crashes;
mod definitions;
mod doubts;
mod events;
mod making;
mod places;
mod references;
mod refusals;
mod retries;
mod rights;
mod undoing;
mod waiting;

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::{Value, json};
use tokio::task::JoinSet;

pub use self::refusals::refused_at;
use super::{
    jobs::and,
    support::{Api, PATIENCE, Reply, TestApp, counter::Counter},
};

pub const UNKNOWN: &str = "01890000-0000-7000-8000-000000000000";
/// Steps and registries of the stories live on loopback.
pub const REACHABLE: (&str, &str) = ("RDEV_EGRESS_ALLOW", "127.0.0.0/8");

/// An app, and somebody whom its steps call.
pub struct Stage {
    pub app: TestApp,
    pub out: Counter,
    _time: JoinSet<()>,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(own: &[(&str, &str)]) -> Self {
        Self::around(TestApp::with(&[&[REACHABLE], own].concat()).await).await
    }

    pub async fn around(app: TestApp) -> Self {
        let (clock, mut time) = (app.clock.clone(), JoinSet::new());
        time.spawn(async move {
            let mut last = Instant::now();
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let now = Instant::now();
                clock.advance(TimeDelta::from_std(now - last).expect("a moment"));
                last = now;
            }
        });
        Self { app, out: Counter::start().await, _time: time }
    }

    pub fn admin(&self) -> Api {
        self.app.admin()
    }

    /// A step that calls this path, with patience for a busy machine.
    pub fn call(&self, name: &str, path: &str) -> Value {
        step(name, "http.request", json!({"method": "POST", "url": self.out.at(path), "timeout": "5m"}))
    }

    /// A step that calls `/NAME`, and `/undo/NAME` when it is compensated.
    pub fn undone(&self, name: &str) -> Value {
        let undo = json!({"method": "DELETE", "url": self.out.at(&format!("/undo/{name}")), "timeout": "5m"});
        let call = self.call(name, &format!("/{name}"));
        and(call, json!({"compensate": "http.request", "compensate_config": undo}))
    }

    pub async fn run(&self, steps: Value) -> String {
        run(&self.admin(), steps).await
    }

    pub async fn make(&self, body: Value) -> String {
        make(&self.admin(), body).await
    }

    pub async fn show(&self, id: &str) -> Value {
        show(&self.admin(), id).await
    }

    pub async fn reaches(&self, id: &str, status: &str) -> Value {
        reaches(&self.admin(), id, status).await
    }

    pub async fn step_reaches(&self, id: &str, name: &str, status: &str) -> Value {
        step_reaches(&self.admin(), id, name, status).await
    }

    /// One of the control calls: `retry`, `steps/a/skip`, `approvals/b`.
    pub async fn tell(&self, id: &str, what: &str, body: Value) -> Reply {
        self.admin().post(&format!("/sagas/{id}/{what}"), body).await
    }
}

/// A step whose retries do not take long.
pub fn step(name: &str, action: &str, config: Value) -> Value {
    json!({"name": name, "action": action, "config": config, "retry_policy": tiny(3)})
}

pub fn noop(name: &str, output: Value) -> Value {
    step(name, "noop", json!({"output": output}))
}

pub fn after(needs: &[&str], step: Value) -> Value {
    and(step, json!({"depends_on": needs}))
}

pub fn tiny(max_retries: u32) -> Value {
    json!({"max_retries": max_retries, "backoff": "fixed", "initial_delay_ms": 10, "jitter": 0})
}

/// With so many retries, soon after one another.
pub fn retried(step: Value, max_retries: u32) -> Value {
    and(step, json!({"retry_policy": tiny(max_retries)}))
}

pub fn saga(steps: Value) -> Value {
    json!({"name": "s", "steps": steps})
}

/// Makes a saga. Answers its id.
pub async fn make(api: &Api, body: Value) -> String {
    let made = api.post("/sagas", body).await.data(201);
    made["id"].as_str().expect("an id").to_owned()
}

pub async fn run(api: &Api, steps: Value) -> String {
    make(api, saga(steps)).await
}

pub async fn show(api: &Api, id: &str) -> Value {
    api.get(&format!("/sagas/{id}")).await.data(200)
}

/// The step of this name, as a saga shows it.
#[track_caller]
pub fn of<'a>(saga: &'a Value, name: &str) -> &'a Value {
    let steps = saga["steps"].as_array().unwrap_or_else(|| panic!("no steps in {saga}"));
    steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name} in {saga}"))
}

/// The statuses of all steps, in their order.
pub fn statuses(saga: &Value) -> Vec<&str> {
    let steps = saga["steps"].as_array().unwrap_or_else(|| panic!("no steps in {saga}"));
    steps.iter().map(|step| step["status"].as_str().expect("a status")).collect()
}

/// The saga, when it is as it should be; where it never is, the story ends with what it was last.
pub async fn until(api: &Api, id: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let saga = show(api, id).await;
        if is(&saga) {
            return saga;
        }
        assert!(Instant::now() < give_up, "waited {PATIENCE:?} in vain for {what}: {saga:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn reaches(api: &Api, id: &str, status: &str) -> Value {
    until(api, id, &format!("a saga that is {status}"), |saga| saga["status"] == status).await
}

pub async fn step_reaches(api: &Api, id: &str, name: &str, status: &str) -> Value {
    until(api, id, &format!("{name} to be {status}"), |saga| of(saga, name)["status"] == status).await
}

//! One server, started again and again on the same ground; its projects, somebody whom it calls, and a
//! model that never comes to an end.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Value, json};
use sqlx::Row as _;

use crate::{
    chaos::fleet::Doors,
    saga_chaos::knocking::Knocking,
    support::{Chat, Ground, PATIENCE, Server, Upstream, counter::Counter, eventually, server::log_of, sink::lock},
};

pub const MODEL: &str = "llama3";

/// What a story acts on, whether the server lives or not.
pub struct Place {
    pub knocking: Knocking,
    pub out: Counter,
    pub ground: Arc<Ground>,
    /// By project.
    workspaces: BTreeMap<String, PathBuf>,
    rng: Arc<Mutex<SmallRng>>,
}

/// The server.
pub struct Mortal {
    pub deaths: usize,
    server: Option<Server>,
    upstream: Upstream,
    doors: Doors,
    rng: Arc<Mutex<SmallRng>>,
}

pub fn project(n: usize) -> String {
    format!("p{n}")
}

pub async fn open(seed: u64, projects: usize) -> (Place, Mortal) {
    let (ground, upstream) = (Ground::new().await, Upstream::start().await);
    upstream.always_for(MODEL, Chat::hangs());
    let server = start(&ground, &upstream).await;
    let admin = server.admin();
    let mut workspaces = BTreeMap::new();
    for id in (0..projects).map(project) {
        let made = admin.post("/projects", json!({"id": id})).await.data(201);
        workspaces.insert(id, made["workspace"].as_str().expect("a path").into());
    }
    let doors = Arc::new(Mutex::new(vec![server.url.clone()]));
    let rng = Arc::new(Mutex::new(SmallRng::seed_from_u64(seed)));
    let knocking = Knocking::new(admin.credential(), &doors);
    let place = Place { knocking, out: Counter::start().await, ground, workspaces, rng: rng.clone() };
    (place, Mortal { deaths: 0, server: Some(server), upstream, doors, rng })
}

async fn start(ground: &Arc<Ground>, upstream: &Upstream) -> Server {
    let own = [("RDEV_OLLAMA_URL", upstream.url.as_str()), ("RDEV_EGRESS_ALLOW", "127.0.0.0/8"), ("RDEV_LOG", "debug")];
    Server::start(ground, &own).await
}

/// Some moment within such a time.
async fn pause(rng: &Mutex<SmallRng>, within: Duration) {
    let part = lock(rng).random_range(0.0..1.0);
    tokio::time::sleep(within.mul_f64(part)).await;
}

impl Mortal {
    /// At some moment within such a time, and now and then soon after it was there again. It is there in the end.
    pub async fn die(&mut self, within: Duration) {
        pause(&self.rng, within).await;
        self.restart().await;
        if lock(&self.rng).random_bool(0.3) {
            pause(&self.rng, within / 2).await;
            self.restart().await;
        }
    }

    async fn restart(&mut self) {
        self.deaths += 1;
        let server = self.server.take().expect("it runs");
        let ground = server.ground.clone();
        server.kill().await;
        let server = start(&ground, &self.upstream).await;
        lock(&self.doors)[0].clone_from(&server.url);
        self.server = Some(server);
    }

    /// The last that it said.
    pub fn said(&self) -> String {
        let log = self.server.as_ref().map(|server| std::fs::read_to_string(log_of(&server.ground)));
        let log = log.and_then(Result::ok).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("\"DEBUG\"")).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Place {
    pub async fn pause(&self, within: Duration) {
        pause(&self.rng, within).await;
    }

    /// The saga, when nothing goes on any more.
    pub async fn at_rest(&self, saga: &str) -> Value {
        let (path, began) = (format!("/sagas/{saga}"), Instant::now());
        loop {
            let shown = self.knocking.get(0, &path).await["data"].clone();
            let status = shown["status"].as_str().unwrap_or_default();
            if !matches!(status, "pending" | "running" | "waiting" | "compensating") {
                return shown;
            }
            if began.elapsed() >= PATIENCE {
                let count = async |what: &str| self.ground.db.count(&format!("select count(*) from {what}")).await;
                let (tasks, free) = (count("task").await, count("task where owner is null").await);
                let (later, parked) = (count("task_later").await, count("task_parked").await);
                let compensating = count("saga where status = 'compensating'").await;
                panic!(
                    "not at rest after {PATIENCE:?} ({tasks} tasks, {free} free, {later} later, {parked} parked, \
                     {compensating} sagas compensating): {shown:#}"
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until nothing is half-made, and nothing half-ended.
    pub async fn is_quiet(&self) {
        let sql = "select (select count(*) from task where kind ~ '^(saga|session|checkout|command)')
                        + (select count(*) from task_later where kind ~ '^(saga|session|checkout|command)')
                        + (select count(*) from session where status in ('provisioning', 'ending'))
                        + (select count(*) from checkout where status = 'pending')
                        + (select count(*) from command where status = 'running')";
        eventually("quiet", async || (self.ground.db.count(sql).await == 0).then_some(())).await;
    }

    /// Rows of two texts: what a thing is called, and how it stands.
    pub async fn things(&self, sql: &str) -> Vec<(String, String)> {
        self.ground.db.rows(sql).await.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// The lines of a file in a project's workspace; none where it is not there.
    pub fn lines(&self, project: &str, file: &str) -> usize {
        std::fs::read_to_string(self.workspaces[project].join(file)).map_or(0, |text| text.lines().count())
    }
}

//! The app on real parts: a database and a data directory of its own, a free port, the
//! clock in the test's hand. Dropping it stops it in order and removes everything.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use chrono::TimeDelta;
use rdev::{
    app::{App, Options, Why},
    config::{Config, Settings},
    domain::clock::Clock,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Api, Events, GitClone, TestDb, finish};

/// What several processes share, and what goes when the last of them has gone.
pub struct Ground {
    pub db: TestDb,
    dir: TempDir,
}

impl Ground {
    pub async fn new() -> Arc<Self> {
        // Other users must be able to enter: commands and PostgreSQL do not run as root.
        let dir = tempfile::Builder::new().prefix("rdev-it.").tempdir().expect("a temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("our own directory");
        Arc::new(Self { db: TestDb::create().await, dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    /// What every test wants to be different from the defaults.
    pub fn settings(&self, own: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut settings: BTreeMap<String, String> = [
            ("DATABASE_URL", self.db.url.as_str()),
            ("RDEV_LISTEN", "127.0.0.1:0"),
            ("RDEV_DATA_DIR", self.data_dir().to_str().expect("a path of letters")),
            ("RDEV_RATE_LIMIT", "0"),
            ("RDEV_KILL_GRACE", "500ms"),
            ("RDEV_DRAIN", "10s"),
            ("RDEV_STOP_COMMANDS", "end"),
            ("RDEV_LOG", "off"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        settings.extend(own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        settings.retain(|_, value| !value.is_empty());
        settings
    }
}

impl Ground {
    /// Supervisors of commands on this ground that still run.
    pub fn supervisors(&self) -> Vec<i32> {
        let here = self.path().to_str().expect("a path of letters");
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.split('\0').nth(1) == Some("supervise") && line.contains(here)
        })
        .collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        finish(async {
            self.db.remove().await;
            // A supervisor says how its command ended a moment before it is gone itself.
            for _ in 0..250 {
                if self.supervisors().is_empty() {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        let left = self.supervisors();
        assert!(left.is_empty() || std::thread::panicking(), "these outlived their server: {left:?}");
    }
}

/// One process's worth of rdev, inside the test.
pub struct TestApp {
    pub url: String,
    pub clock: Clock,
    pub admin_key: String,
    app: Option<App>,
    pub ground: Arc<Ground>,
}

impl TestApp {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With settings in the words of the environment.
    pub async fn with(own: &[(&str, &str)]) -> Self {
        Self::on(Ground::new().await, own).await
    }

    pub async fn on(ground: Arc<Ground>, own: &[(&str, &str)]) -> Self {
        Self::try_on(ground, own).await.unwrap_or_else(|why| panic!("the app does not start: {why:?}"))
    }

    pub async fn try_on(ground: Arc<Ground>, own: &[(&str, &str)]) -> Result<Self, Why> {
        let clock = Clock::manual(Clock::System.now());
        Self::launch(ground, own, clock, String::new()).await
    }

    /// Another process on the same database and data directory.
    pub async fn sibling(&self, own: &[(&str, &str)]) -> Self {
        let started = Self::launch(self.ground.clone(), own, self.clock.clone(), self.admin_key.clone()).await;
        started.unwrap_or_else(|why| panic!("the sibling does not start: {why:?}"))
    }

    /// Stops it in order and starts it again, on another port.
    pub async fn restart(mut self, own: &[(&str, &str)]) -> Self {
        let app = self.app.take().expect("it runs until it is dropped");
        app.stop().await;
        self.sibling(own).await
    }

    async fn launch(ground: Arc<Ground>, own: &[(&str, &str)], clock: Clock, known_key: String) -> Result<Self, Why> {
        let settings = Settings::overlay(&BTreeMap::new(), &ground.settings(own), None).map_err(Why::Setting)?;
        let config = Config::parse(&settings).map_err(Why::Setting)?;
        let first_key = Arc::new(Mutex::new(config.admin_key.as_ref().map_or(known_key, |key| key.expose().into())));
        let seen = first_key.clone();
        let options = Options {
            config,
            clock: clock.clone(),
            exe: PathBuf::from(env!("CARGO_BIN_EXE_rdev")),
            announce: Box::new(|_| {}),
            first_key: Box::new(move |key, _| key.expose().clone_into(&mut seen.lock().unwrap())),
        };
        let app = App::start(options).await?;
        let admin_key = first_key.lock().unwrap().clone();
        Ok(Self { url: app.url.clone(), clock, admin_key, app: Some(app), ground })
    }

    /// Stops it in order, leaving what it works on.
    pub async fn stop(mut self) -> Arc<Ground> {
        self.app.take().expect("it runs until it is dropped").stop().await;
        self.ground.clone()
    }

    pub fn db(&self) -> &TestDb {
        &self.ground.db
    }

    pub fn advance(&self, by: TimeDelta) {
        self.clock.advance(by);
    }

    /// A client with the admin key.
    pub fn admin(&self) -> Api {
        Api::new(&self.url, Some(&self.admin_key))
    }

    /// A client without a credential.
    pub fn nobody(&self) -> Api {
        Api::new(&self.url, None)
    }

    pub fn bearing(&self, credential: &str) -> Api {
        Api::new(&self.url, Some(credential))
    }

    /// A client with a new key of these scopes.
    pub async fn someone(&self, scopes: &[&str]) -> Api {
        self.holder(json!({"name": "someone", "scopes": scopes})).await.0
    }

    /// A client with a new key, and the key as the API shows it.
    pub async fn holder(&self, body: Value) -> (Api, Value) {
        let key = self.admin().post("/keys", body).await.data(201);
        (self.bearing(key["key"].as_str().expect("the secret, this once")), key)
    }

    /// A project with defaults.
    pub async fn project(&self, id: &str) -> Value {
        self.project_with(json!({"id": id})).await
    }

    pub async fn project_with(&self, body: Value) -> Value {
        self.admin().post("/projects", body).await.data(201)
    }

    /// Opens a session on a new branch of the project.
    pub async fn session(&self, project: &str, branch: &str) -> Value {
        let opened = self.admin().post(&format!("/projects/{project}/sessions"), json!({"new_branch": branch})).await;
        opened.data(201)
    }

    /// Runs a script in the project's workspace to its end.
    pub async fn script(&self, project: &str, script: &str) -> Value {
        let body = json!({"script": script, "wait": "30s"});
        let command = self.admin().post(&format!("/projects/{project}/shell"), body).await.data(201);
        assert_ne!(command["status"], "running", "{script:?} takes too long: {command}");
        command
    }

    /// Runs a script in a session to its end.
    pub async fn exec(&self, project: &str, session: &Value, script: &str) -> Value {
        let sid = session["id"].as_str().expect("a session has an id");
        let body = json!({"script": script, "wait": "30s"});
        let command = self.admin().post(&format!("/projects/{project}/sessions/{sid}/exec"), body).await.data(201);
        assert_ne!(command["status"], "running", "{script:?} takes too long: {command}");
        command
    }

    /// What a command of the project said, both streams.
    pub async fn output(&self, command: &Value) -> String {
        let reply = self.admin().get(command["output_url"].as_str().expect("a URL")).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.text
    }

    /// Listens with the admin key.
    pub async fn listen(&self, path: &str) -> Events {
        self.admin().listen(path).await
    }

    /// A clone by a URL that carries its credential.
    pub async fn git_clone(&self, url: &str) -> GitClone {
        GitClone::of(url, self.ground.path()).await
    }

    /// The project's repository with the admin key as password.
    pub fn admin_clone_url(&self, project: &str) -> String {
        let host = self.url.strip_prefix("http://").expect("plain http");
        format!("http://rdev:{}@{host}/git/{project}.git", self.admin_key)
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        if let Some(app) = self.app.take() {
            finish(app.stop());
        }
    }
}

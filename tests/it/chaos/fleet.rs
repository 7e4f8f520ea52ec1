//! Several processes on one database, with a log each: killed and replaced, frozen and thawed,
//! stopped in good order.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rdev::domain::api_key::ApiKey;
use sqlx::Row as _;

use crate::support::{Api, Ground, Server, cluster::rows, eventually, server::log_of, sink::lock};

/// Where clients may knock, whoever is behind it by now.
pub type Doors = Arc<Mutex<Vec<String>>>;

/// Where a member and its successors keep their files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// All in the same place, where a lock proves a death at once.
    Shared,
    /// Each start in a new place, as on another machine: the lease alone tells of a death.
    Own,
}

struct Member {
    ground: Arc<Ground>,
    home: Home,
    server: Option<Server>,
    starts: usize,
    frozen: bool,
}

pub struct Fleet {
    pub key: String,
    pub doors: Doors,
    database: String,
    upstream: String,
    members: Vec<Member>,
}

impl Fleet {
    pub async fn start(database: &str, upstream: &str, homes: &[Home]) -> Self {
        let key = ApiKey::generate(&mut rand::rng()).expose().to_owned();
        let doors = Arc::new(Mutex::new(vec![String::new(); homes.len()]));
        let (database, upstream) = (database.to_owned(), upstream.to_owned());
        let mut fleet = Self { key, doors, database, upstream, members: Vec::new() };
        for home in homes {
            let ground = Ground::new().await;
            fleet.members.push(Member { ground, home: *home, server: None, starts: 0, frozen: false });
            fleet.launch(fleet.members.len() - 1).await;
        }
        fleet
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn api(&self, n: usize) -> Api {
        Api::new(&self.server(n).url, Some(&self.key))
    }

    /// Starts a process in the place of one that is gone.
    pub async fn launch(&mut self, n: usize) {
        let dir = self.data_dir(n);
        let member = &mut self.members[n];
        member.starts += 1;
        let own = [
            ("DATABASE_URL", self.database.as_str()),
            ("RDEV_DATA_DIR", dir.to_str().expect("a path of letters")),
            ("RDEV_ADMIN_KEY", self.key.as_str()),
            ("RDEV_OLLAMA_URL", self.upstream.as_str()),
            ("RDEV_WORKERS", "4"),
            ("RDEV_WEBHOOK_BACKOFF", "200ms"),
            ("RDEV_EGRESS_ALLOW", "127.0.0.0/8"),
            ("RDEV_LOG", "info,rdev::queue=debug,rdev::services=debug"),
        ];
        let server = Server::start(&member.ground, &own).await;
        lock(&self.doors)[n].clone_from(&server.url);
        member.server = Some(server);
    }

    fn data_dir(&self, n: usize) -> PathBuf {
        match self.members[n].home {
            Home::Shared => self.members[0].ground.data_dir(),
            Home::Own => self.members[n].ground.path().join(format!("data-{}", self.members[n].starts)),
        }
    }

    pub async fn kill(&mut self, n: usize) {
        let server = self.members[n].server.take().expect("it runs");
        self.members[n].frozen = false;
        server.kill().await;
    }

    /// SIGTERM.
    pub async fn stop(&mut self, n: usize) {
        let server = self.members[n].server.take().expect("it runs");
        assert_eq!(server.terminate().await, Some(0), "{}", self.complaints());
    }

    /// It stands still when this returns.
    pub async fn freeze(&mut self, n: usize) {
        let pid = self.server(n).pid();
        kill(pid, Signal::SIGSTOP).expect("it runs");
        self.members[n].frozen = true;
        eventually("the freeze", async || stands_still(pid).then_some(())).await;
    }

    pub fn thaw(&mut self, n: usize) {
        kill(self.server(n).pid(), Signal::SIGCONT).expect("it is there");
        self.members[n].frozen = false;
    }

    pub fn is_frozen(&self, n: usize) -> bool {
        self.members[n].frozen
    }

    /// Who runs jobs now, and how many: the busiest first.
    pub async fn busy(&self) -> Vec<(usize, i64)> {
        let sql = "select p.address, count(*) from job j
                   join task t on t.kind = 'job.run' and t.subject = j.id
                   join process p on p.id = t.owner
                   where j.state = 'running' group by 1 order by 2 desc";
        let found = rows(&self.database, sql).await;
        found.iter().filter_map(|row| Some((self.at(row.get(0))?, row.get(1)))).collect()
    }

    /// Who runs this job now.
    pub async fn runner_of(&self, job: &str) -> Option<usize> {
        let sql = format!(
            "select p.address from job j
             join task t on t.kind = 'job.run' and t.subject = j.id
             join process p on p.id = t.owner
             where j.state = 'running' and j.id = '{job}'"
        );
        rows(&self.database, &sql).await.first().and_then(|row| self.at(row.get(0)))
    }

    /// The sum of a counter over its labels that begin with this.
    pub async fn counted(&self, n: usize, counter: &str) -> f64 {
        let text = self.api(n).get("/metrics").await.text;
        let lines = text.lines().filter(|line| line.starts_with(counter));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// A thawed process has found out that it was thought dead.
    pub async fn stale_write_refused(&self, n: usize) {
        let counter = "rdev_stale_writes_refused_total{kind=\"job.run\"}";
        eventually("a stale write that was refused", async || (self.counted(n, counter).await > 0.0).then_some(()))
            .await;
    }

    /// Everything that the processes said about something.
    pub fn said_about(&self, what: &str) -> String {
        let says = |line: &str| line.contains(what);
        self.said(says, 40)
    }

    /// The last warnings and errors.
    pub fn complaints(&self) -> String {
        let says = |line: &str| line.contains("\"WARN\"") || line.contains("\"ERROR\"") || line.contains("panicked");
        self.said(says, 25)
    }

    fn said(&self, wanted: impl Fn(&str) -> bool, most: usize) -> String {
        let mut told = String::new();
        for (n, member) in self.members.iter().enumerate() {
            let log = std::fs::read_to_string(log_of(&member.ground)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| wanted(line)).collect();
            let last = lines.iter().skip(lines.len().saturating_sub(most));
            told.extend(last.map(|line| format!("  member {n}: {line}\n")));
        }
        told
    }

    fn at(&self, address: &str) -> Option<usize> {
        self.members.iter().position(|member| member.server.as_ref().is_some_and(|server| server.url == address))
    }

    fn server(&self, n: usize) -> &Server {
        self.members[n].server.as_ref().expect("it runs")
    }
}

/// A signal stops a process some time after it was sent, one thread after the other.
fn stands_still(pid: Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    states.all(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T")))
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last that the processes said:\n{}", self.said(|_| true, 30));
        }
        for n in 0..self.len() {
            if self.is_frozen(n) {
                self.thaw(n);
            }
        }
    }
}

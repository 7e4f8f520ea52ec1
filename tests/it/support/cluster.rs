//! A PostgreSQL cluster of a test's own: it can crash in the middle of everything, and be
//! started again. It goes with the value.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::unistd::{User, chown, geteuid};
use sqlx::{Connection as _, PgConnection, postgres::PgRow};
use tempfile::TempDir;

use super::eventually;

/// Nothing is synced, and nothing is lost by that: what dies here is the server, not the kernel.
const OPTIONS: &str = "-c listen_addresses='' -c fsync=off -c max_connections=200";

/// Runs as long as it lives, but for the time between a crash and the return.
pub struct Cluster {
    dir: TempDir,
    bin: PathBuf,
}

impl Cluster {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("rdev-it-pg.").tempdir().expect("a temporary directory");
        if geteuid().is_root() {
            let owner = User::from_name("postgres").ok().flatten().expect("a user called postgres");
            chown(dir.path(), Some(owner.uid), Some(owner.gid)).expect("our own directory");
        }
        let cluster = Self { dir, bin: binaries() };
        let data = cluster.data();
        let flags = ["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--auth=trust", "--no-sync"];
        cluster.run("initdb", &[&["-D", data.to_str().expect("a path of letters")], &flags[..]].concat());
        cluster.come_back().await;
        cluster
    }

    /// For `DATABASE_URL`.
    pub fn url(&self) -> String {
        format!("postgres:///postgres?host={}&user=postgres", self.dir.path().display())
    }

    /// Every connection is cut, and what was not committed is gone.
    pub fn crash(&self) {
        self.control(&["-m", "immediate", "stop"]);
    }

    /// Starts it again. It answers when this returns.
    pub async fn come_back(&self) {
        let options = format!("{OPTIONS} -c unix_socket_directories={}", self.dir.path().display());
        let log = self.dir.path().join("log");
        self.control(&["-l", log.to_str().expect("a path of letters"), "-o", &options, "start"]);
        eventually("the cluster", async || PgConnection::connect(&self.url()).await.ok()).await;
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    fn control(&self, what: &[&str]) {
        let data = self.data();
        self.run("pg_ctl", &[&["-D", data.to_str().expect("a path of letters"), "-w"], what].concat());
    }

    fn run(&self, program: &str, args: &[&str]) {
        let ran = self.command(program).args(args).status().expect("it is installed");
        assert!(ran.success(), "{program} {args:?}: {ran}; see {}", self.dir.path().join("log").display());
    }

    /// PostgreSQL refuses to run as root.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.data();
        let mut stop = self.command("pg_ctl");
        let _down_already =
            stop.arg("-D").arg(data).args(["-w", "-m", "immediate", "stop"]).stderr(Stdio::null()).status();
    }
}

/// The newest that a package has put where packages put it, else that of the `PATH`.
fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let numbered = versions.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    let packaged = numbered.max().map(|(_, path)| path.join("bin"));
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).find(|dir| Path::new(dir).join("initdb").exists())
    };
    packaged.filter(|dir| dir.join("initdb").exists()).or_else(on_path).expect("PostgreSQL is installed")
}

/// Rows out of a database, by its URL.
pub async fn rows(url: &str, sql: &str) -> Vec<PgRow> {
    let mut conn = PgConnection::connect(url).await.expect("the database answers");
    sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).fetch_all(&mut conn).await.expect(sql)
}

//! A PostgreSQL cluster in a temporary directory, with the system's programs and with
//! fsync, reached by a unix socket. As root it runs as the user `postgres`.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, User},
};
use sqlx::{Connection as _, PgConnection};

use super::eventually;

pub struct Postgres {
    server: Child,
    dir: tempfile::TempDir,
}

impl Postgres {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("rdev-bench-pg-").tempdir().expect("a temporary directory");
        if Uid::effective().is_root() {
            let user = User::from_name("postgres").ok().flatten().expect("the user postgres, of PostgreSQL's package");
            std::os::unix::fs::chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).expect("chmod");
        let data = dir.path().join("data");
        let made = program("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status();
        assert!(made.expect("initdb").success(), "initdb failed");
        let server = program("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "max_connections=120", "-c", "fsync=on", "-c"])
            .arg(format!("unix_socket_directories={}", dir.path().display()))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).expect("a log"))
            .spawn()
            .expect("postgres");
        let postgres = Self { server, dir };
        let mut admin = eventually("PostgreSQL", Duration::from_secs(20), || async {
            PgConnection::connect(&postgres.url("postgres")).await.ok()
        })
        .await;
        sqlx::query("create database rdev").execute(&mut admin).await.expect("create database");
        postgres
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&user=postgres", self.dir.path().display())
    }

    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url("rdev")).await.expect("a connection")
    }

    /// How long it takes to insert one row and have it on the disk, in ms, at p50.
    pub async fn commit_time(&self) -> f64 {
        let mut conn = self.connect().await;
        let table = "create table if not exists bench_commit (n bigint, text text)";
        sqlx::query(table).execute(&mut conn).await.expect("a table");
        let mut times = Vec::new();
        for n in 0..300_i64 {
            let begun = std::time::Instant::now();
            let insert = sqlx::query("insert into bench_commit values ($1, 'a row')").bind(n);
            insert.execute(&mut conn).await.expect("an insert");
            times.push(super::stats::milliseconds(begun.elapsed()));
        }
        super::stats::median(&times)
    }
}

impl Drop for Postgres {
    /// At once: nothing of it is needed any more.
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.server.id().cast_signed());
        // Through runuser it is the child's; both hear of it.
        let _gone = kill(pid, Signal::SIGINT);
        let postmaster = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = postmaster.lines().next().and_then(|line| line.parse().ok()) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let _exit = self.server.wait();
    }
}

fn program(name: &str) -> Command {
    let path = find(name);
    if !Uid::effective().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(path);
    command
}

/// Debian keeps it beside the other versions, not on the `PATH`.
fn find(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|p| p.exists()).collect();
    found.sort_by_key(|path| version_of(path));
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}

fn version_of(path: &Path) -> u32 {
    let version = path.ancestors().nth(2).and_then(Path::file_name).and_then(|name| name.to_str());
    version.and_then(|text| text.parse().ok()).unwrap_or(0)
}

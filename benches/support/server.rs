//! rdev and the floors as processes of their own, so that each has its memory and its
//! threads to itself. They end with this process or before.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::client::{Connection, request};

/// Quotas and rate limits off.
const SETTINGS: &[(&str, &str)] = &[
    ("RDEV_LISTEN", "127.0.0.1:0"),
    ("RDEV_RATE_LIMIT", "0"),
    ("RDEV_COMMANDS_PER_PROJECT", "0"),
    ("RDEV_COMMANDS_PER_SESSION", "0"),
    ("RDEV_STREAMS_PER_KEY", "0"),
    ("RDEV_OUTPUT_LIMIT", "0"),
];

/// A server under test.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// Of an admin; empty for a floor.
    pub key: String,
    /// From its start to its line `listening on`.
    pub announced_after: Duration,
}

/// Where one rdev after the other keeps its files.
pub struct DataDir(tempfile::TempDir);

impl DataDir {
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::Builder::new().prefix("rdev-bench-").tempdir().expect("a temporary directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        Self(dir)
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().canonicalize().expect("it exists")
    }
}

impl Server {
    pub fn rdev(database: &str, data: &DataDir) -> Self {
        Self::rdev_with(database, data, &[])
    }

    pub fn rdev_with(database: &str, data: &DataDir, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rdev"));
        let log = std::fs::File::create(data.path().join("bench.log")).expect("a log");
        command.arg("serve").current_dir(data.path()).env("DATABASE_URL", database).stderr(log);
        command
            .env("RDEV_DATA_DIR", data.path().join("data"))
            .envs(SETTINGS.iter().chain(settings).copied())
            .stdin(Stdio::null());
        let mut server = Self::start(command);
        let key = std::fs::read_to_string(data.path().join("data/admin.key")).expect("the admin key");
        key.trim().clone_into(&mut server.key);
        server
    }

    /// This program again, as the bare server that rdev is compared with.
    pub fn floor(arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("floor").args(arguments).stdin(Stdio::piped()).stderr(Stdio::inherit());
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        let begun = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("the server says where it listens");
        let announced_after = begun.elapsed();
        let address = line.trim().strip_prefix("listening on http://").and_then(|text| text.parse().ok());
        let address = address.unwrap_or_else(|| panic!("the server did not start, it said {line:?}"));
        Self { child, address, key: String::new(), announced_after }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks as the admin; panics on anything but a success.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let mut connection = Connection::open(self.address).await;
        let status = connection.ask(&request(method, path, &self.key, body)).await;
        let text = String::from_utf8_lossy(connection.body()).into_owned();
        assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
        serde_json::from_str::<Value>(&text).map(|mut value| value["data"].take()).unwrap_or_default()
    }

    /// A project with its workspace.
    pub async fn project(&self, id: &str) -> Value {
        self.call("POST", "/projects", Some(&json!({"id": id, "description": "measured"}))).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(8);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                let _gone = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a floor does: serves `router` until whoever started it is gone.
pub async fn serve_floor(router: axum::Router) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("listening on http://{}", listener.local_addr().expect("an address"));
    until_orphaned();
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        let _unsupported = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await.expect("the floor serves");
}

/// Ends this process when whoever started it is gone.
pub fn until_orphaned() {
    std::thread::spawn(|| {
        let _end = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

/// A named pipe that commands, which may run as another user, can read.
pub fn fifo(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("a fifo");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
}

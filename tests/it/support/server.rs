//! The program as a process of its own, for what only a process can do: die.

use std::{path::PathBuf, process::Stdio, sync::Arc};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::{Api, Ground, finish, soon};

/// `rdev serve` on a ground's database and data directory.
pub struct Server {
    pub url: String,
    child: Option<Child>,
    pub ground: Arc<Ground>,
}

impl Server {
    pub async fn start(ground: &Arc<Ground>, own: &[(&str, &str)]) -> Self {
        let mut child = serve(ground, own).spawn().expect("the program was built");
        let stdout = child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(stdout).lines();
        let first = soon("the line with the address", lines.next_line()).await.expect("stdout is readable");
        let url = first.as_deref().and_then(|line| line.strip_prefix("listening on ")).unwrap_or_else(|| {
            panic!("the server did not start, it said: {first:?}; see {}", log_of(ground).display())
        });
        Self { url: url.to_owned(), child: Some(child), ground: ground.clone() }
    }

    /// A client with the key that the first start left in the data directory.
    pub fn admin(&self) -> Api {
        let file = self.ground.data_dir().join("admin.key");
        let key = std::fs::read_to_string(file).expect("the first start wrote the key");
        Api::new(&self.url, Some(key.trim()))
    }

    pub fn pid(&self) -> Pid {
        let id = self.child.as_ref().and_then(Child::id).expect("it runs");
        Pid::from_raw(id.try_into().expect("a pid"))
    }

    /// Ends it as a power cut would.
    pub async fn kill(mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("it runs");
        let mut child = self.child.take().expect("it runs");
        soon("the end of a killed server", child.wait()).await.expect("it is our child");
    }

    /// SIGTERM. Answers the exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        kill(self.pid(), Signal::SIGTERM).expect("it runs");
        let mut child = self.child.take().expect("it runs");
        soon("the orderly end", child.wait()).await.expect("it is our child").code()
    }
}

fn serve(ground: &Ground, own: &[(&str, &str)]) -> Command {
    let log = std::fs::File::options().create(true).append(true).open(log_of(ground)).expect("our own folder");
    let mut command = program(ground, &[&[("RDEV_LOG", "info")], own].concat());
    command.arg("serve").stdout(Stdio::piped()).stderr(log);
    command
}

/// The program with a ground's settings and nothing else of the test's environment.
pub fn program(ground: &Ground, own: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdev"));
    command
        .env_clear()
        .envs(["PATH", "HOME"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .envs(ground.settings(own))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

pub fn log_of(ground: &Ground) -> PathBuf {
    ground.path().join("server.log")
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(log_of(&self.ground)).unwrap_or_default();
            let told = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
            eprintln!("what the server said:\n{}", told.collect::<Vec<_>>().join("\n"));
        }
        if let Some(mut child) = self.child.take() {
            let _gone = child.id().map(|id| kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM));
            let _late = finish(tokio::time::timeout(std::time::Duration::from_secs(15), child.wait()));
        }
    }
}

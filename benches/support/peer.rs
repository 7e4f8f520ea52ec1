//! Peers from npm, at the versions of their lock file, installed once under a cache
//! directory. Where there is no npm they are left out; nothing but a bench asks for them.

use std::{path::PathBuf, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::process::Command;

const LOCK: &str = include_str!("../peers/package-lock.json");
const FILES: [(&str, &str); 4] = [
    ("package.json", include_str!("../peers/package.json")),
    ("package-lock.json", LOCK),
    ("graphile.mjs", include_str!("../peers/graphile.mjs")),
    ("dbos.mjs", include_str!("../peers/dbos.mjs")),
];
/// Longest that an installation or one measurement takes.
const PATIENCE: Duration = Duration::from_mins(5);

/// Where the peers are installed.
pub struct Peers {
    dir: PathBuf,
}

impl Peers {
    /// Installs what is not there yet. The error is short enough for a column of the table.
    pub async fn install() -> Result<Self, &'static str> {
        for program in ["npm", "node"] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !found.await.is_ok_and(|exit| exit.success()) {
                return Err(if program == "npm" { "no npm" } else { "no node" });
            }
        }
        // Another lock file is another directory.
        let dir = cache().join("rdev-bench").join(format!("peers-{:08x}", crc32fast::hash(LOCK.as_bytes())));
        std::fs::create_dir_all(&dir).expect("the cache directory can be written to");
        for (name, text) in FILES {
            std::fs::write(dir.join(name), text).expect("the cache directory can be written to");
        }
        // npm writes this file last.
        if !dir.join("node_modules/.package-lock.json").exists() {
            let mut npm = Command::new("npm");
            npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&dir).stdout(Stdio::null());
            let installed = tokio::time::timeout(PATIENCE, npm.kill_on_drop(true).status()).await;
            if !matches!(installed, Ok(Ok(exit)) if exit.success()) {
                return Err("npm failed");
            }
        }
        Ok(Self { dir })
    }

    /// One measurement by graphile-worker, in a process of its own.
    pub async fn graphile(&self, what: &str, url: &str, wanted: &Value) -> Value {
        self.run(&["graphile.mjs", what, url, &wanted.to_string()]).await
    }

    /// One measurement by DBOS Transact, in a process of its own.
    pub async fn dbos(&self, url: &str, wanted: &Value) -> Value {
        self.run(&["dbos.mjs", url, &wanted.to_string()]).await
    }

    async fn run(&self, words: &[&str]) -> Value {
        let mut node = Command::new("node");
        node.args(words).current_dir(&self.dir);
        node.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, node.output()).await.expect("the peer ends").expect("node starts");
        assert!(output.status.success(), "{words:?}: {}", output.status);
        serde_json::from_slice(&output.stdout).expect("a line of JSON")
    }
}

/// Where what is fetched for benches is kept.
pub fn cache() -> PathBuf {
    let named = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || named("HOME").map(|home| home.join(".cache"));
    named("XDG_CACHE_HOME").or_else(home).unwrap_or_else(std::env::temp_dir)
}

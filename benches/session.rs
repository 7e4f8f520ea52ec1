//! Sessions on a repository of 10,000 files: from the POST to its 201, and from the DELETE to its
//! answer. The floors are git alone with the same tree on the same disk: `git worktree add` and
//! `git worktree remove`.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench is not the product, and its numbers are small"
)]

mod support;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::{Value, json};
use support::{
    Role, block_on,
    postgres::Postgres,
    report::{Row, Target, head},
    role,
    server::{DataDir, Server},
    stats::{median, milliseconds, percentile},
};

const ROUNDS: usize = 3;
const SESSIONS: usize = 10;
const FILES: usize = 10_000;
const FILES_IN_A_FOLDER: usize = 50;
const LINES_IN_A_FILE: usize = 40;
const SESSIONS_URL: &str = "/projects/measured/sessions";

fn main() {
    if let Role::Measure = role() {
        block_on(measure());
    }
}

async fn measure() {
    let postgres = Postgres::start().await;
    let data = DataDir::new();
    let source = data.path().join("source");
    make_repository(&source);
    let root = data.path().display().to_string();
    let rdev = Server::rdev_with(&postgres.url("rdev"), &data, &[("RDEV_IMPORT_ROOT", &root)]);
    let import = format!("file://{}", source.display());
    rdev.call("POST", "/projects", Some(&json!({"id": "measured", "import_url": import}))).await;
    let commit = median(&[postgres.commit_time().await, postgres.commit_time().await]);
    println!("{ROUNDS} rounds of {SESSIONS} sessions, {FILES} files; client, server and database share the cores");
    head();
    let mut shown = Row::new("commit of one row, p50", "ms");
    shown.add_rdev(commit);
    shown.print(Target::None);
    let mut rows = ["opened, p50", "opened, p95", "ended, p50", "ended, p95"].map(|what| Row::new(what, "ms"));
    for round in 0..ROUNDS {
        let mut floor = Times::default();
        let mut ours = Times::default();
        // In turns, so that a disturbance meets both.
        for n in 0..SESSIONS {
            floor.bare(&source, &data.path().join("bare"));
            ours.session(&rdev, &format!("b{round}-{n}")).await;
        }
        for (row, (floor, ours)) in rows.iter_mut().zip(floor.figures().into_iter().zip(ours.figures())) {
            row.add(floor, ours);
        }
    }
    for (row, target) in rows.iter().zip([Target::AtMost(300.0), Target::None, Target::None, Target::None]) {
        row.print(target);
    }
}

/// Milliseconds that worktrees took to be there, and to be gone.
#[derive(Default)]
struct Times {
    opened: Vec<f64>,
    ended: Vec<f64>,
}

impl Times {
    fn bare(&mut self, source: &Path, worktree: &Path) {
        let path = worktree.to_str().expect("a path of letters");
        let begun = Instant::now();
        git(source, &["worktree", "add", "--quiet", "-B", "bare", path, "main"]);
        self.opened.push(milliseconds(begun.elapsed()));
        let begun = Instant::now();
        git(source, &["worktree", "remove", "--force", path]);
        self.ended.push(milliseconds(begun.elapsed()));
    }

    async fn session(&mut self, rdev: &Server, branch: &str) {
        let begun = Instant::now();
        let session: Value = rdev.call("POST", SESSIONS_URL, Some(&json!({"new_branch": branch}))).await;
        self.opened.push(milliseconds(begun.elapsed()));
        let path = format!("{SESSIONS_URL}/{}", session["id"].as_str().expect("an id"));
        let begun = Instant::now();
        rdev.call("DELETE", &path, None).await;
        self.ended.push(milliseconds(begun.elapsed()));
    }

    fn figures(&self) -> [f64; 4] {
        let both = |times: &[f64]| [percentile(times, 0.5), percentile(times, 0.95)];
        let ([a, b], [c, d]) = (both(&self.opened), both(&self.ended));
        [a, b, c, d]
    }
}

/// Sources as they are: folders of some dozen files, each of some kilobytes.
fn make_repository(dir: &Path) {
    for n in 0..FILES {
        let folder = dir.join(format!("src/part-{}", n / FILES_IN_A_FOLDER));
        std::fs::create_dir_all(&folder).expect("our own folder");
        let lines = (0..LINES_IN_A_FILE).map(|line| format!("let value_{line} = {};\n", n * line));
        std::fs::write(folder.join(format!("file_{n}.rs")), lines.collect::<Vec<_>>().concat())
            .expect("our own folder");
    }
    git(dir, &["init", "--quiet", "--initial-branch=main"]);
    git(dir, &["add", "--all"]);
    git(dir, &["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "--quiet", "-m", "all"]);
}

fn git(dir: &Path, words: &[&str]) {
    let mut git = Command::new("git");
    git.args(words).current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let ran = git.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("git is installed");
    assert!(ran.success(), "git {words:?}");
}

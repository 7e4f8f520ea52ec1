//! Sessions on a repository of 10,000 files: from the POST to its 201, and from the DELETE to its
//! answer. The floors are git alone with the same tree on the same disk: `git worktree add` and
//! `git worktree remove`. A session that lives for as long as its files take to be written leaves a
//! spare worktree to the next one; of those that end at once the next finds none. Both are measured,
//! and which it was is seen by the folder itself.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench is not the product, and its numbers are small"
)]

mod support;

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
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
/// Of those that find no spare; they are slow.
const AT_ONCE: usize = 3;
const SPARE_LIMIT: Duration = Duration::from_mins(3);
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
    let place = data.path().join("data/workspaces/measured");
    let names = ["opened with a spare, p50", "opened with a spare, p95", "ended, p50", "ended, p95"];
    let mut rows = names.map(|what| Row::new(what, "ms"));
    let mut without = Row::new("opened without a spare, p50", "ms");
    let mut made = Row::new("a spare is there again after", "ms");
    let mut took = (0, 0);
    for round in 0..ROUNDS {
        let mut floor = Times::default();
        let mut ours = Times::default();
        let mut hasty = Times::default();
        // In turns, so that a disturbance meets both.
        for n in 0..SESSIONS {
            floor.bare(&source, &data.path().join("bare"));
            made.add_rdev(spare_is_there(&place).await);
            took.0 += usize::from(ours.session(&rdev, &place, &format!("b{round}-{n}")).await);
        }
        for n in 0..AT_ONCE {
            took.1 += usize::from(hasty.session(&rdev, &place, &format!("c{round}-{n}")).await);
        }
        for (row, (floor, ours)) in rows.iter_mut().zip(floor.figures().into_iter().zip(ours.figures())) {
            row.add(floor, ours);
        }
        without.add(percentile(&floor.opened, 0.5), percentile(&hasty.opened, 0.5));
    }
    for (row, target) in rows.iter().zip([Target::AtMost(300.0), Target::None, Target::None, Target::None]) {
        row.print(target);
    }
    without.print(Target::None);
    made.print(Target::None);
    println!(
        "took a spare: {} of {} that waited for one, {} of {} one right after the other",
        took.0,
        ROUNDS * SESSIONS,
        took.1,
        ROUNDS * AT_ONCE
    );
}

/// The spare's folder, where one is whole.
fn spare(place: &Path) -> Option<PathBuf> {
    let marker = std::fs::read_to_string(place.join("main/.git/rdev-spare")).ok()?;
    Some(place.join("sessions").join(marker.lines().next()?))
}

async fn spare_is_there(place: &Path) -> f64 {
    let begun = Instant::now();
    while spare(place).is_none() {
        assert!(begun.elapsed() < SPARE_LIMIT, "no spare is made");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    milliseconds(begun.elapsed())
}

fn inode(path: impl AsRef<Path>) -> Option<u64> {
    path.as_ref().metadata().ok().map(|it| it.ino())
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

    /// Answers whether it took the spare.
    async fn session(&mut self, rdev: &Server, place: &Path, branch: &str) -> bool {
        let prepared = spare(place).and_then(inode);
        let begun = Instant::now();
        let session: Value = rdev.call("POST", SESSIONS_URL, Some(&json!({"new_branch": branch}))).await;
        self.opened.push(milliseconds(begun.elapsed()));
        let workspace = session["workspace"].as_str().expect("a folder");
        let took = prepared.is_some() && inode(workspace) == prepared;
        let path = format!("{SESSIONS_URL}/{}", session["id"].as_str().expect("an id"));
        let begun = Instant::now();
        rdev.call("DELETE", &path, None).await;
        self.ended.push(milliseconds(begun.elapsed()));
        took
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

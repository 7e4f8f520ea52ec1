//! Commands: from the POST to the first line at a subscriber, and a flood of output that is
//! stored before it is shown. The floor of the first is a bare program that starts the same
//! words through the same bubblewrap arguments and reads a line; of the second, COPY of the
//! same lines into the same PostgreSQL.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench is not the product, and its numbers are small"
)]

mod support;

use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use support::{
    Role, block_on,
    client::{Connection, Listener, request},
    eventually,
    postgres::Postgres,
    report::{Row, Target, head},
    role,
    server::{DataDir, Server},
    stats::{cpu, median, milliseconds, percentile},
    wanted,
};

const ROUNDS: usize = 3;
const STARTS: usize = 40;
const WORDS: [&str; 3] = ["bash", "-c", "echo ready"];
const LINE: usize = 80;
const LINES: usize = 1_200_000;

fn main() {
    if let Role::Measure = role() {
        block_on(measure());
    }
}

async fn measure() {
    let postgres = Postgres::start().await;
    let data = DataDir::new();
    let rdev = Server::rdev(&postgres.url("rdev"), &data);
    let project = rdev.project("measured").await;
    let workspace = PathBuf::from(project["workspace"].as_str().expect("a workspace"));
    let sandbox = sandbox(&rdev, &data).await;
    let commit = median(&[postgres.commit_time().await, postgres.commit_time().await, postgres.commit_time().await]);
    println!("{ROUNDS} rounds; client, server and database share the cores; the sandbox is {}", sandbox[0]);
    head();
    let mut shown = Row::new("commit of one row, p50", "ms");
    shown.add_rdev(commit);
    shown.print(Target::None);
    if wanted("start") {
        starts(&rdev, &sandbox, &workspace, commit).await;
    }
    if wanted("output") {
        output(&rdev, &postgres, &workspace).await;
    }
}

/// The words with which rdev starts a sandbox, up to the program in it: read off a command under way.
async fn sandbox(rdev: &Server, data: &DataDir) -> Vec<String> {
    let command = rdev.call("POST", "/projects/measured/shell", Some(&json!({"args": ["sleep", "60"]}))).await;
    let inside = data.path().display().to_string();
    let words = eventually("a sandbox", Duration::from_secs(10), || async { find_sandbox(&inside) }).await;
    let path = format!("/projects/measured/commands/{}", command["command_id"].as_str().expect("an id"));
    rdev.call("DELETE", &path, None).await;
    words
}

fn find_sandbox(mentions: &str) -> Option<Vec<String>> {
    let lines = std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(|process| {
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Some(words.collect::<Vec<_>>())
    });
    let mut sandboxes =
        lines.filter(|words| words[0].ends_with("bwrap") && words.iter().any(|word| word.contains(mentions)));
    let words = sandboxes.next()?;
    let end = words.iter().position(|word| word == "--")?;
    Some(words[..=end].to_vec())
}

async fn starts(rdev: &Server, sandbox: &[String], workspace: &Path, commit: f64) {
    let mut after = Row::new("POST to first event, stream opened on the 201, p50", "ms");
    let mut before = Row::new("POST to first event, a session's stream open before, p50", "ms");
    let mut answered = Row::new("POST to its 201, p50", "ms");
    let session = rdev.call("POST", "/projects/measured/sessions", Some(&json!({"new_branch": "bench"}))).await;
    let session = session["id"].as_str().expect("an id").to_owned();
    for _ in 0..ROUNDS {
        let mut times: [Vec<f64>; 4] = Default::default();
        // In turns, so that a disturbance meets all of them.
        for _ in 0..STARTS {
            times[0].push(bare(sandbox, workspace));
            let (to_answer, to_event) = shell(rdev).await;
            times[1].push(to_event);
            times[2].push(to_answer);
            times[3].push(in_session(rdev, &session).await);
        }
        let [floor, to_event, to_answer, in_session] = times.map(|times| percentile(&times, 0.5));
        after.add(floor, to_event);
        before.add(floor, in_session);
        answered.add_rdev(to_answer);
    }
    let most = after.floor() + 2.0 + 2.0 * commit;
    after.print(Target::AtMost(most));
    before.print(Target::AtMost(most));
    answered.print(Target::None);
}

/// To the first line of the bare program.
fn bare(sandbox: &[String], workspace: &Path) -> f64 {
    let begun = Instant::now();
    let mut child = Command::new(&sandbox[0])
        .args(&sandbox[1..sandbox.len() - 1])
        .arg("--chdir")
        .arg(workspace)
        .arg("--")
        .args(WORDS)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bubblewrap starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let took = milliseconds(begun.elapsed());
    assert_eq!(line, "ready\n");
    assert!(child.wait().expect("its end").success());
    took
}

/// To the answer, and to the first event of a stream that is opened then.
async fn shell(rdev: &Server) -> (f64, f64) {
    let mut first = Connection::open(rdev.address).await;
    let second = Connection::open(rdev.address).await;
    let post = request("POST", "/projects/measured/shell", &rdev.key, Some(&json!({"args": WORDS})));
    let begun = Instant::now();
    assert_eq!(first.ask(&post).await, 201);
    let answered = milliseconds(begun.elapsed());
    let command: Value = serde_json::from_slice(first.body()).expect("JSON");
    let path = command["data"]["events_url"].as_str().expect("a URL");
    let mut listener = second.listen(&request("GET", path, &rdev.key, None)).await;
    assert!(listener.count("event: output", 1).await);
    let took = milliseconds(begun.elapsed());
    assert!(listener.count("event: complete", 1).await);
    (answered, took)
}

/// To the first output on the session's stream, which is open already.
async fn in_session(rdev: &Server, session: &str) -> f64 {
    let path = format!("/projects/measured/sessions/{session}/events");
    let mut listener = Connection::open(rdev.address).await.listen(&request("GET", &path, &rdev.key, None)).await;
    assert!(listener.count("event: connected", 1).await);
    let mut connection = Connection::open(rdev.address).await;
    let path = format!("/projects/measured/sessions/{session}/exec");
    let post = request("POST", &path, &rdev.key, Some(&json!({"args": WORDS})));
    let begun = Instant::now();
    let (status, _) = tokio::join!(connection.ask(&post), listener.count("event: output", 1));
    let took = milliseconds(begun.elapsed());
    assert_eq!(status, 201);
    assert!(listener.count("event: complete", 1).await);
    took
}

/// A flood of lines of 80 bytes with their newline, to one subscriber.
async fn output(rdev: &Server, postgres: &Postgres, workspace: &Path) {
    let lines = lines();
    std::fs::write(workspace.join("lines"), &lines).expect("the workspace can be written to");
    let megabytes = lines.len() as f64 / 1e6;
    let mut row = Row::new("output of 80-byte lines, stored and streamed", "MB/s");
    let mut used = Row::new("output of 80-byte lines, CPU of the server a MB", "ms");
    for _ in 0..ROUNDS {
        let floor = megabytes / copy(postgres, &lines).await;
        let before = cpu(rdev.pid());
        let begun = Instant::now();
        let body = json!({"args": ["cat", "lines"]});
        let command = rdev.call("POST", "/projects/measured/shell", Some(&body)).await;
        let path = command["events_url"].as_str().expect("a URL");
        let listener = Connection::open(rdev.address).await.listen(&request("GET", path, &rdev.key, None)).await;
        receive(listener).await;
        row.add(floor, megabytes / begun.elapsed().as_secs_f64());
        used.add_rdev((cpu(rdev.pid()) - before) * 1e3 / megabytes);
    }
    row.print(Target::AtLeast(40.0));
    used.print(Target::None);
}

async fn receive(mut listener: Listener) {
    assert!(listener.count("event: output", LINES).await, "all lines come");
    assert!(listener.count("event: complete", 1).await, "and the end");
}

/// Words as a build prints them: neither all alike nor noise, so that compression has its usual work.
fn lines() -> String {
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    let words: Vec<String> = (0..500)
        .map(|_| (0..rng.random_range(3..10)).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect())
        .collect();
    let mut text = String::with_capacity(LINE * LINES);
    for n in 0..LINES {
        let begin = text.len();
        write!(text, "[{n:>8}]").expect("a String takes it");
        while text.len() - begin < LINE - 1 {
            text.push(' ');
            text.push_str(&words[rng.random_range(0..words.len())]);
        }
        text.truncate(begin + LINE - 1);
        text.push('\n');
    }
    text
}

/// Seconds that COPY takes for the same lines, a row each.
async fn copy(postgres: &Postgres, lines: &str) -> f64 {
    let mut conn = postgres.connect().await;
    for statement in ["drop table if exists bench_lines", "create table bench_lines (line text)"] {
        sqlx::query(statement).execute(&mut conn).await.expect("a table");
    }
    let begun = Instant::now();
    let mut copy = conn.copy_in_raw("copy bench_lines (line) from stdin").await.expect("COPY");
    for part in lines.as_bytes().chunks(1 << 20) {
        copy.send(part).await.expect("the server takes it");
    }
    copy.finish().await.expect("a commit");
    begun.elapsed().as_secs_f64()
}

//! The program killed at bad moments, with a real SIGKILL, and started again.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::support::{Api, Event, Ground, Server, eventually, git, sse::text_of};

/// Processes end commands when they are told to stop, so that no test leaves any behind.
async fn ground_with_project() -> (Arc<Ground>, Server) {
    let ground = Ground::new().await;
    let server = Server::start(&ground, &[]).await;
    server.admin().post("/projects", json!({"id": "p"})).await.data(201);
    (ground, server)
}

/// Says a line, again and again, until `go` is there.
const TALKER: &str = "i=0; while test $i -lt 400; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 7";

async fn start_talking(api: &Api) -> Value {
    api.post("/projects/p/shell", json!({"script": TALKER})).await.data(201)
}

/// Reads events with an id until one satisfies `enough`, or the stream breaks.
async fn read_until(api: &Api, command: &Value, seen: &mut Vec<Event>, enough: impl Fn(&Event) -> bool) {
    let last = seen.last().and_then(|event| event.id.clone());
    let mut events = api.listen_from(command["events_url"].as_str().unwrap(), last.as_deref()).await;
    while let Some(event) = events.try_next().await {
        if event.id.is_none() {
            continue;
        }
        seen.push(event);
        if enough(&seen[seen.len() - 1]) {
            return;
        }
    }
}

/// No gap, no repeat, no other numbers, the right end.
#[track_caller]
fn is_whole(seen: &[Event], command: &Value) {
    let id = command["command_id"].as_str().unwrap();
    let (last, before) = seen.split_last().expect("a stream has an end");
    assert_eq!(last.id, Some(format!("{id}:final")));
    assert_eq!((last.name.as_str(), &last.data["exit_code"]), ("complete", &json!(7)), "{last:?}");
    let numbers: Vec<_> = before.iter().filter_map(Event::number).collect();
    assert_eq!(numbers, (1..=before.len() as u64).collect::<Vec<_>>());
    let expected: String = (0..400).map(|i| format!("line {i}\n")).collect();
    assert_eq!(text_of(seen, "stdout"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_in_the_same_stream_when_its_server_is_killed() {
    let (ground, mut server) = ground_with_project().await;
    let command = start_talking(&server.admin()).await;
    let mut seen = Vec::new();
    for at in [50, 150] {
        read_until(&server.admin(), &command, &mut seen, |event| event.number() >= Some(at)).await;
        server.kill().await;
        server = Server::start(&ground, &[]).await;
    }
    read_until(&server.admin(), &command, &mut seen, Event::is_last).await;
    is_whole(&seen, &command);
    let path = format!("/projects/p/commands/{}", command["command_id"].as_str().unwrap());
    let ended = server.admin().get(&path).await.data(200);
    assert_eq!(
        (&ended["status"], &ended["exit_code"], &ended["termination"]),
        (&json!("exited"), &json!(7), &json!("exit"))
    );
    assert_eq!(server.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ended_while_no_server_lived_is_told_whole() {
    let (ground, server) = ground_with_project().await;
    let script = "echo begun; while ! test -e go; do sleep 0.02; done; seq 1 5000; touch done; exit 7";
    let admin = server.admin();
    let command = admin.post("/projects/p/shell", json!({"script": script})).await.data(201);
    let workspace = admin.get("/projects/p").await.data(200)["workspace"].as_str().unwrap().to_owned();
    let mut seen = Vec::new();
    read_until(&admin, &command, &mut seen, |_| true).await;
    server.kill().await;
    std::fs::write(Path::new(&workspace).join("go"), "").unwrap();
    eventually("the command's end", async || Path::new(&workspace).join("done").exists().then_some(())).await;
    let server = Server::start(&ground, &[]).await;
    read_until(&server.admin(), &command, &mut seen, Event::is_last).await;
    let expected: String = std::iter::once("begun\n".to_owned()).chain((1..=5000).map(|n| format!("{n}\n"))).collect();
    assert_eq!(text_of(&seen, "stdout"), expected);
    assert_eq!(seen.last().unwrap().data["exit_code"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_a_command_of_a_server_that_was_killed() {
    let (ground, server) = ground_with_project().await;
    let body = json!({"script": "echo begun; sleep 600"});
    let command = server.admin().post("/projects/p/shell", body).await.data(201);
    read_until(&server.admin(), &command, &mut Vec::new(), |_| true).await;
    server.kill().await;
    let server = Server::start(&ground, &[]).await;
    let path = format!("/projects/p/commands/{}", command["command_id"].as_str().unwrap());
    let ended = eventually("the end", async || {
        let shown = server.admin().delete(&path).await.data(200);
        (shown["status"] != "running").then_some(shown)
    });
    assert_eq!(ended.await["termination"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_holds_while_no_server_lives() {
    let (ground, server) = ground_with_project().await;
    let body = json!({"script": "echo begun; sleep 600", "timeout": "2s"});
    let command = server.admin().post("/projects/p/shell", body).await.data(201);
    let mut seen = Vec::new();
    read_until(&server.admin(), &command, &mut seen, |_| true).await;
    server.kill().await;
    let server = Server::start(&ground, &[]).await;
    read_until(&server.admin(), &command, &mut seen, Event::is_last).await;
    assert_eq!(seen.last().unwrap().data["code"], "TIMEOUT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_supervisor_is_killed_is_lost() {
    let (_ground, server) = ground_with_project().await;
    let body = json!({"script": "echo begun; sleep 600"});
    let command = server.admin().post("/projects/p/shell", body).await.data(201);
    let mut seen = Vec::new();
    read_until(&server.admin(), &command, &mut seen, |_| true).await;
    let supervisor = supervisor_of(&server, &command);
    nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGKILL).unwrap();
    let started = std::time::Instant::now();
    read_until(&server.admin(), &command, &mut seen, Event::is_last).await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let last = seen.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["code"]), ("error", &json!("STREAM_LOST")));
    let path = format!("/projects/p/commands/{}", command["command_id"].as_str().unwrap());
    let shown = server.admin().get(&path).await.data(200);
    assert_eq!((&shown["status"], &shown["exit_code"]), (&json!("lost"), &Value::Null));
    assert_eq!(shown["termination"], "supervisor_lost");
}

/// The one supervisor on the server's ground.
fn supervisor_of(server: &Server, command: &Value) -> nix::unistd::Pid {
    let found = server.ground.supervisors();
    assert_eq!(found.len(), 1, "supervisors of {command}: {found:?}");
    nix::unistd::Pid::from_raw(found[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_follows_within_20_seconds() {
    let (ground, server) = ground_with_project().await;
    let other = Server::start(&ground, &[]).await;
    let script = "echo begun; while ! test -e go; do sleep 0.02; done; echo end; exit 7";
    let command = server.admin().post("/projects/p/shell", json!({"script": script})).await.data(201);
    let workspace = server.admin().get("/projects/p").await.data(200)["workspace"].as_str().unwrap().to_owned();
    let mut events = other.admin().listen(command["events_url"].as_str().unwrap()).await;
    assert_eq!(events.next().await.line(), "begun");
    server.kill().await;
    let killed = std::time::Instant::now();
    std::fs::write(Path::new(&workspace).join("go"), "").unwrap();
    assert_eq!(events.next().await.line(), "end");
    assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
    assert_eq!(events.next().await.data["exit_code"], 7);
}

/// What a session leaves when its making or its end was cut off.
async fn nothing_is_half_made(ground: &Ground, server: &Server) {
    let sql = "select (select count(*) from task where kind like 'session%' or kind like 'checkout%')
                    + (select count(*) from task_later where kind like 'session%' or kind like 'checkout%')
                    + (select count(*) from session where status in ('provisioning', 'ending'))
                    + (select count(*) from checkout where status = 'pending')";
    eventually("nothing is under way", async || (ground.db.count(sql).await == 0).then_some(())).await;
    let admin = server.admin();
    let sessions = admin.get("/projects/p/sessions").await.data(200)["sessions"].clone();
    let active: Vec<_> = sessions.as_array().unwrap().iter().filter(|s| s["status"] == "active").collect();
    let checkouts = ground.db.count("select count(*) from checkout where status = 'active'").await;
    assert_eq!(checkouts, active.len() as i64, "a token outlived its session, or the other way round");
    for session in sessions.as_array().unwrap() {
        let there = Path::new(session["workspace"].as_str().unwrap()).exists();
        assert_eq!(there, session["status"] == "active", "the worktree of {session}");
    }
    let branches = admin.get("/projects/p/checkout/branches").await.data(200)["branches"].clone();
    let kept = ground.db.count("select count(distinct branch) from session where status <> 'failed'").await;
    let rescued =
        branches.as_array().unwrap().iter().filter(|b| b["name"].as_str().unwrap().starts_with("rdev/")).count();
    assert_eq!(
        branches.as_array().unwrap().len() - rescued,
        1 + usize::try_from(kept).unwrap(),
        "{branches} {sessions}"
    );
    for session in active {
        admin.delete(&format!("/projects/p/sessions/{}", session["id"].as_str().unwrap())).await.data(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_creation_was_cut_off_leaves_nothing_half_made() {
    let (ground, mut server) = ground_with_project().await;
    for (n, delay) in [0, 15, 40, 80, 130, 200, 300].into_iter().enumerate() {
        let admin = server.admin();
        let body = json!({"new_branch": format!("b{n}")}).to_string();
        let creating = admin.request(http::Method::POST, "/projects/p/sessions", Some(body), &[]).send();
        let killing = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            server.kill().await;
        };
        let (_cut_or_done, ()) = tokio::join!(creating, killing);
        server = Server::start(&ground, &[]).await;
        nothing_is_half_made(&ground, &server).await;
    }
    server.admin().post("/projects/p/sessions", json!({"new_branch": "last"})).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_end_was_cut_off_is_ended_and_its_work_rescued_once() {
    let (ground, mut server) = ground_with_project().await;
    for (n, delay) in [0, 20, 60, 120, 200].into_iter().enumerate() {
        let admin = server.admin();
        let session = admin.post("/projects/p/sessions", json!({"new_branch": format!("b{n}")})).await.data(201);
        let path = format!("/projects/p/sessions/{}", session["id"].as_str().unwrap());
        let body = json!({"script": "echo work > work.txt", "wait": "30s"});
        admin.post(&format!("{path}/exec"), body).await.data(201);
        let ending = admin.request(http::Method::POST, &format!("{path}/checkin"), Some("{}".into()), &[]).send();
        let killing = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            server.kill().await;
        };
        let (_cut_or_done, ()) = tokio::join!(ending, killing);
        server = Server::start(&ground, &[]).await;
        let admin = server.admin();
        let ended = eventually("the end, or that it was never begun", async || {
            let shown = admin.get(&path).await.data(200);
            (shown["status"] != "ending").then_some(shown)
        });
        let mut ended = ended.await;
        if ended["status"] == "active" {
            admin.post(&format!("{path}/checkin"), json!({})).await.data(200);
            ended = admin.get(&path).await.data(200);
        }
        assert_eq!(ended["status"], "ended", "after {delay} ms");
        let sha = ended["rescue"]["sha"].as_str().unwrap_or_else(|| panic!("no rescue after {delay} ms: {ended}"));
        assert_eq!(rescued_file(&ground, &server, sha).await, "work");
        nothing_is_half_made(&ground, &server).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_expired_while_no_server_lived_is_ended_with_its_work() {
    let ground = Ground::new().await;
    let server = Server::start(&ground, &[]).await;
    server.admin().post("/projects", json!({"id": "p"})).await.data(201);
    let body = json!({"new_branch": "feature", "expires_in": "1h"});
    let session = server.admin().post("/projects/p/sessions", body).await.data(201);
    let path = format!("/projects/p/sessions/{}", session["id"].as_str().unwrap());
    let body = json!({"script": "echo work > work.txt; echo begun; sleep 600"});
    let command = server.admin().post(&format!("{path}/exec"), body).await.data(201);
    read_until(&server.admin(), &command, &mut Vec::new(), |_| true).await;
    server.kill().await;
    for table in ["session", "checkout"] {
        ground.db.run(&format!("update {table} set expires_at = now()")).await;
    }
    let server = Server::start(&ground, &[]).await;
    let ended = eventually("its end", async || {
        let shown = server.admin().get(&path).await.data(200);
        (shown["status"] == "expired").then_some(shown)
    });
    let ended = ended.await;
    assert_eq!(rescued_file(&ground, &server, ended["rescue"]["sha"].as_str().unwrap()).await, "work");
    read_until(&server.admin(), &command, &mut Vec::new(), |event| event.data["termination"] == "session_ended").await;
    nothing_is_half_made(&ground, &server).await;
}

async fn rescued_file(ground: &Ground, server: &Server, sha: &str) -> String {
    let host = server.url.strip_prefix("http://").unwrap();
    let url = format!("http://rdev:{}@{host}/git/p.git", server.admin().credential());
    let clone = git::Clone::of(&url, ground.path()).await;
    clone.git(&["fetch", "--quiet", "origin", sha]).await.ok();
    clone.git(&["show", &format!("{sha}:work.txt")]).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_whose_creation_was_cut_off_is_there_whole_or_not_at_all() {
    let ground = Ground::new().await;
    let mut server = Server::start(&ground, &[]).await;
    for (n, delay) in [0, 20, 60, 120, 200].into_iter().enumerate() {
        let id = format!("p{n}");
        let admin = server.admin();
        let body = json!({"id": id}).to_string();
        let creating = admin.request(http::Method::POST, "/projects", Some(body), &[]).send();
        let killing = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            server.kill().await;
        };
        let (_cut_or_done, ()) = tokio::join!(creating, killing);
        server = Server::start(&ground, &[]).await;
        let admin = server.admin();
        let under_way = "select count(*) from task where kind like 'project%'";
        eventually("nothing is under way", async || (ground.db.count(under_way).await == 0).then_some(())).await;
        if admin.get(&format!("/projects/{id}")).await.status == 404 {
            admin.post("/projects", json!({"id": id})).await.data(201);
        }
        let body = json!({"script": "git log --oneline && git pull", "wait": "30s"});
        let command = admin.post(&format!("/projects/{id}/shell"), body).await.data(201);
        assert_eq!(command["exit_code"], 0, "after {delay} ms: {command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_answer_survives_a_kill_at_any_instant() {
    let (ground, mut server) = ground_with_project().await;
    for (n, delay) in [0, 5, 15, 40, 100].into_iter().enumerate() {
        let (key, body) = (format!("k{n}"), json!({"script": format!("echo x >> runs-{n}"), "wait": "5s"}));
        let admin = server.admin();
        let headers = [("idempotency-key", key.as_str())];
        let starting = admin.request(http::Method::POST, "/projects/p/shell", Some(body.to_string()), &headers).send();
        let killing = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            server.kill().await;
        };
        let (_cut_or_done, ()) = tokio::join!(starting, killing);
        server = Server::start(&ground, &[]).await;
        let admin = server.admin();
        let command = eventually("an answer", async || {
            let reply = admin.once(&key, "/projects/p/shell", body.clone()).await;
            (reply.status == 201).then(|| reply.data(201))
        });
        let path = format!("/projects/p/commands/{}", command.await["command_id"].as_str().unwrap());
        eventually("its end", async || (admin.get(&path).await.data(200)["status"] == "exited").then_some(())).await;
        let body = json!({"script": format!("cat runs-{n}"), "wait": "30s"});
        let shown = admin.post("/projects/p/shell", body).await.data(201);
        assert_eq!(admin.get(shown["output_url"].as_str().unwrap()).await.text, "x\n", "after {delay} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkins_token_is_dead_though_the_server_is_killed_after_the_answer() {
    let (ground, server) = ground_with_project().await;
    let admin = server.admin();
    let made = admin.post("/projects/p/checkout", json!({"new_branch": "x"})).await.data(201);
    let path = format!("/projects/p/checkout/{}/checkin", made["id"].as_str().unwrap());
    admin.post(&path, json!({})).await.data(200);
    server.kill().await;
    let server = Server::start(&ground, &[]).await;
    let host = server.url.strip_prefix("http://").unwrap();
    let token =
        made["clone_url"].as_str().unwrap().split_once("rdev:").unwrap().1.split_once('@').unwrap().0.to_owned();
    let url = format!("http://rdev:{token}@{host}/git/p.git");
    git::git(ground.path(), &["ls-remote", &url]).await.failed();
}

//! The server killed while a review runs and around its merge: one verdict, at most one merge,
//! nothing left behind.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{WAITS, begun, checkin, go, head, job, nothing_is_left, over, work_on, workspace};
use crate::support::{Api, GitClone, Ground, Server};

async fn ground_with(script: &str) -> (Arc<Ground>, Server) {
    let ground = Ground::new().await;
    let server = Server::start(&ground, &[]).await;
    let body = json!({"id": "p", "review_command": ["sh", "-c", script]});
    server.admin().post("/projects", body).await.data(201);
    (ground, server)
}

/// What the project's log tells of a review, in order.
async fn told(api: &Api, id: &str, until: &str) -> Vec<String> {
    let mut events = api.listen("/projects/p/events?after=0").await;
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != until) {
        let data: Value = events.next_named("activity").await.data;
        let kind = data["type"].as_str().unwrap();
        if data["id"] == id && kind.starts_with("review.") {
            told.push(kind.to_owned());
        }
    }
    told
}

async fn admins_clone(server: &Server) -> GitClone {
    let host = server.url.strip_prefix("http://").unwrap();
    let url = format!("http://rdev:{}@{host}/git/p.git", server.admin().credential());
    GitClone::of(&url, server.ground.path()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_command_is_followed_on_when_its_server_is_killed() {
    let (ground, mut server) = ground_with(WAITS).await;
    let work = work_on(&server.admin(), &ground, "feature", "a.txt", "a").await;
    let id = checkin(&server.admin(), &work, json!({"auto_merge": true})).await;
    let command = begun(&server.admin(), &id).await;
    for _ in 0..2 {
        server.kill().await;
        server = Server::start(&ground, &[]).await;
        assert_eq!(begun(&server.admin(), &id).await["command_id"], command["command_id"]);
    }
    let workspace = workspace(&server.admin()).await;
    server.kill().await;
    std::fs::write(workspace.join("go"), "").unwrap();
    let server = Server::start(&ground, &[]).await;
    let review = over(&server.admin(), &id).await;
    assert_eq!((&review["status"], &review["command_id"]), (&json!("passed"), &command["command_id"]));
    assert_eq!((&review["merge"], &review["merge_sha"]), (&json!("merged"), &json!(work.sha)));
    assert_eq!(head(&server.admin(), "main").await, Some(work.sha));
    let told = told(&server.admin(), &id, "review.merged").await;
    assert_eq!(told, ["review.queued", "review.started", "review.passed", "review.merged"]);
    nothing_is_left(&server.admin()).await;
    assert_eq!(server.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_any_moment_of_a_review_leaves_one_verdict_and_one_merge() {
    let (ground, mut server) = ground_with("exit 0").await;
    for (n, delay) in [0, 80, 180, 300, 450].into_iter().enumerate() {
        let admin = server.admin();
        let work = work_on(&admin, &ground, &format!("b{n}"), &format!("f{n}.txt"), "work").await;
        // So that each merge is one of two parents.
        let clone = admins_clone(&server).await;
        let main = clone.commit(&format!("m{n}.txt"), "main").await;
        clone.git(&["push", "--quiet", "origin", "HEAD:main"]).await.ok();
        let id = checkin(&admin, &work, json!({"auto_merge": true})).await;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        server.kill().await;
        server = Server::start(&ground, &[]).await;
        let admin = server.admin();
        let review = over(&admin, &id).await;
        assert_eq!(
            (&review["status"], &review["merge"]),
            (&json!("passed"), &json!("merged")),
            "after {delay} ms: {review}"
        );
        let merged = review["merge_sha"].as_str().unwrap();
        assert_eq!(head(&admin, "main").await.as_deref(), Some(merged), "after {delay} ms");
        let clone = admins_clone(&server).await;
        let line = clone.git(&["rev-list", "--parents", "--max-count=1", "HEAD"]).await.ok();
        assert_eq!(line, format!("{merged} {main} {}", work.sha), "after {delay} ms");
        let told = told(&admin, &id, "review.merged").await;
        assert_eq!(told, ["review.queued", "review.started", "review.passed", "review.merged"], "after {delay} ms");
        assert_eq!(job(&admin, &id).await["state"], "completed");
        nothing_is_left(&admin).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkin_that_was_cut_off_has_its_review_or_never_was() {
    let (ground, mut server) = ground_with("exit 0").await;
    for (n, delay) in [0, 10, 25, 50].into_iter().enumerate() {
        let admin = server.admin();
        let work = work_on(&admin, &ground, &format!("b{n}"), "f.txt", &n.to_string()).await;
        let path = super::checkin_path(&work);
        let ending = admin.request(http::Method::POST, &path, Some("{}".into()), &[]).send();
        let killing = async {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            server.kill().await;
        };
        let (_cut_or_done, ()) = tokio::join!(ending, killing);
        server = Server::start(&ground, &[]).await;
        let admin = server.admin();
        let shown = admin.get(path.strip_suffix("/checkin").unwrap()).await.data(200);
        let id = match shown["review_task_id"].as_str() {
            Some(id) => id.to_owned(),
            None => {
                assert_eq!(shown["status"], "active", "after {delay} ms");
                checkin(&admin, &work, json!({})).await
            }
        };
        assert_eq!(over(&admin, &id).await["status"], "passed");
    }
    go(&server.admin()).await;
}

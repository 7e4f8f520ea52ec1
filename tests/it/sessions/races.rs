//! Sessions asked for, ended and deleted by several at once.

use std::path::Path;

use futures::future::join_all;
use serde_json::{Value, json};

use super::{SESSIONS, app_with_project, path};
use crate::support::{TestApp, eventually};

fn statuses(replies: &[crate::support::Reply]) -> Vec<u16> {
    let mut statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_sessions_of_one_branch_at_once_one_is_made() {
    let app = app_with_project().await;
    let admin = app.admin();
    let replies = join_all((0..8).map(|_| admin.post(SESSIONS, json!({"new_branch": "feature"})))).await;
    assert_eq!(statuses(&replies), [201, 409, 409, 409, 409, 409, 409, 409]);
    for reply in replies.iter().filter(|reply| reply.status == 409) {
        reply.refusal(409, "SESSION_EXISTS");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_checkins_at_once_one_is_done() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.exec("p", &session, "echo loose > loose.txt").await;
    let (admin, checkin) = (app.admin(), format!("{}/checkin", path(&session)));
    let replies = join_all((0..4).map(|_| admin.post(&checkin, json!({})))).await;
    assert_eq!(statuses(&replies), [200, 400, 400, 400]);
    for reply in &replies {
        match reply.status {
            200 => assert!(reply.data(200)["rescue"]["sha"].is_string(), "{}", reply.text),
            _ => reply.refused(400, "BAD_REQUEST", "session is not active"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_nobody_asked_for_is_in_nobodys_way() {
    let app = TestApp::start().await;
    let projects = ["a", "b", "c", "d"];
    for id in projects {
        app.project_with(json!({"id": id, "preview_port": 39_321})).await;
    }
    let admin = app.admin();
    let paths = projects.map(|id| format!("/projects/{id}/sessions"));
    let opened = join_all(paths.iter().map(|path| admin.post(path, json!({"new_branch": "x"})))).await;
    let mut ports: Vec<_> = opened.iter().map(|reply| reply.data(201)["preview_port"].clone()).collect();
    assert!(ports.contains(&json!(39_321)), "{ports:?}");
    ports.sort_by_key(Value::to_string);
    ports.dedup();
    assert_eq!(ports.len(), projects.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_does_not_run_gets_no_session() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    app.db().run("update project set status = 'failed'").await;
    app.admin().post(SESSIONS, json!({"new_branch": "-x"})).await.refusal(400, "BAD_REQUEST");
    for body in [json!({"new_branch": "x"}), json!({"branch": "nope"}), json!({"branch": "main"})] {
        let reply = app.admin().post(SESSIONS, body).await;
        reply.refused(400, "BAD_REQUEST", "project pod is not running");
    }
    app.admin().post(&format!("{}/exec", path(&session)), json!({"args": ["true"]})).await.refused(
        400,
        "BAD_REQUEST",
        "project pod is not running",
    );
    app.admin().delete(&path(&session)).await.data(200);
}

/// Nothing of the project is left on disk, and it can be made again.
async fn is_gone_whole(app: &TestApp, id: &str) {
    let left = || {
        let folders = ["workspaces", "homes", "tmp"].map(|folder| app.ground.data_dir().join(folder).join(id));
        let repository = app.ground.data_dir().join(format!("git/{id}.git"));
        folders.into_iter().chain([repository]).filter(|path| Path::new(path).exists()).collect::<Vec<_>>()
    };
    eventually("nothing is left", async || left().is_empty().then_some(())).await;
    let tasks = "select count(*) from task where kind like 'session%' or kind like 'checkout%'";
    eventually("nothing is under way", async || (app.db().count(tasks).await == 0).then_some(())).await;
    app.project(id).await;
    app.session(id, "again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_is_deleted_while_a_session_is_made_goes_whole() {
    let app = TestApp::start().await;
    let admin = app.admin();
    for id in ["one", "two", "three"] {
        app.project(id).await;
        let (sessions, project) = (format!("/projects/{id}/sessions"), format!("/projects/{id}"));
        let (made, deleted) = tokio::join!(admin.post(&sessions, json!({"new_branch": "x"})), admin.delete(&project));
        deleted.data(200);
        assert!([201, 400, 404].contains(&made.status), "{}", made.text);
        is_gone_whole(&app, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_is_deleted_while_a_session_ends_goes_whole() {
    let app = TestApp::start().await;
    let admin = app.admin();
    for id in ["one", "two", "three"] {
        app.project(id).await;
        let session = app.session(id, "x").await;
        app.exec(id, &session, "echo loose > loose.txt").await;
        let checkin = format!("/projects/{id}/sessions/{}/checkin", session["id"].as_str().unwrap());
        let project = format!("/projects/{id}");
        let (ended, deleted) = tokio::join!(admin.post(&checkin, json!({})), admin.delete(&project));
        deleted.data(200);
        assert!([200, 400, 404].contains(&ended.status), "{}", ended.text);
        is_gone_whole(&app, id).await;
    }
}

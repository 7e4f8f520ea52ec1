//! What a cluster or a pod does not allow, and what the start is refused for.

use std::process::Command;

use serde_json::json;

use super::{
    super::support::{FakeCluster, Ground, TestApp, eventually},
    is, on, with_pod,
};

/// A folder with busybox's programs alone, less some.
fn busybox(cluster: &FakeCluster, less: &[&str]) -> String {
    let dir = cluster.path().join(format!("busybox-{}", less.join("-")));
    std::fs::create_dir(&dir).unwrap();
    let installed =
        Command::new("busybox").arg("--install").arg("-s").arg(&dir).status().expect("busybox is installed");
    assert!(installed.success());
    for program in less {
        std::fs::remove_file(dir.join(program)).unwrap();
    }
    dir.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_git_runs_commands_in_an_empty_folder() {
    let cluster = FakeCluster::start().await;
    cluster.pod_with("a", "p", &busybox(&cluster, &[]));
    let app = on(&cluster, &[]).await;
    is(&app.admin(), "p", "running").await;
    let ran = app.script("p", "ls; echo here").await;
    assert_eq!((app.output(&ran).await.as_str(), &ran["exit_code"]), ("here\n", &json!(0)));
    app.admin().post("/projects/p/git", json!({"args": ["log"]})).await.refusal(400, "GIT_MISSING");
    app.admin().post("/projects/p/sessions", json!({"new_branch": "b"})).await.refusal(400, "GIT_MISSING");
    let sessions = app.admin().get("/projects/p/sessions").await.data(200);
    assert_eq!(sessions["sessions"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_shell_or_a_tool_says_what_it_lacks() {
    let cluster = FakeCluster::start().await;
    cluster.pod_with("a", "p", &busybox(&cluster, &["sh"]));
    cluster.pod_with("b", "q", &busybox(&cluster, &["setsid"]));
    let app = on(&cluster, &[]).await;
    for (project, lacks) in [("p", "sh"), ("q", "setsid")] {
        is(&app.admin(), project, "running").await;
        let path = format!("/projects/{project}/shell");
        let refused = app.admin().post(&path, json!({"script": "true"})).await.refusal(400, "POD_UNSUITABLE");
        assert!(refused["message"].as_str().unwrap().contains(lacks), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_forbids_is_named() {
    let (cluster, app) = with_pod().await;
    cluster.forbid("get", "pods/exec");
    let refused =
        app.admin().post("/projects/p/sessions", json!({"new_branch": "b"})).await.refusal(502, "CLUSTER_FORBIDDEN");
    let details = json!({"verb": "get", "resource": "pods/exec", "namespace": "projects"});
    assert_eq!(refused["details"], details);
    cluster.allow_all();
    assert_eq!(app.script("p", "true").await["exit_code"], 0);
    cluster.forbid("list", "pods");
    cluster.forget_the_past();
    let told = eventually("health says so", async || {
        let shown = app.nobody().get("/health").await.json()["data"]["checks"]["discovery"].clone();
        shown["message"].as_str().is_some_and(|message| message.contains("list pods")).then_some(shown)
    });
    assert_eq!(told.await["status"], "unavailable");
    cluster.allow_all();
    eventually("health is well again", async || {
        let shown = app.nobody().get("/health").await.json();
        (shown["data"]["checks"]["discovery"]["status"] == "ok" && shown["data"]["runtime"] == "kubernetes")
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_start_never_runs() {
    let (cluster, app) = with_pod().await;
    app.script("p", "true").await;
    cluster.forbid("get", "pods/exec");
    let body = json!({"script": "echo ran >> runs", "wait": "30s", "command_id": "mine"});
    let command = app.admin().post("/projects/p/shell", body.clone()).await.data(201);
    assert_eq!((&command["termination"], &command["exit_code"]), (&json!("start_failed"), &json!(null)));
    cluster.allow_all();
    assert_eq!(app.admin().post("/projects/p/shell", body).await.data(200)["termination"], "start_failed");
    assert!(!cluster.workspace("a").join("runs").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_a_way_to_the_cluster_says_what_is_missing() {
    for (own, named) in [
        (vec![("RDEV_RUNTIME", "kubernetes")], "RDEV_RUNTIME"),
        (vec![("RDEV_RUNTIME", "kubernetes"), ("KUBECONFIG", "/nowhere")], "KUBECONFIG"),
        (vec![("RDEV_RUNTIME", "kubernetes"), ("RDEV_NAMESPACE", "No")], "RDEV_NAMESPACE"),
        (vec![("RDEV_RUNTIME", "docker")], "RDEV_RUNTIME"),
    ] {
        let Err(why) = TestApp::try_on(Ground::new().await, &own).await else { panic!("{own:?} starts") };
        let said = format!("{why:?}");
        assert!(said.contains(named), "{said}");
    }
}

//! On a cluster: places that are found, commands in pods, and what becomes of both when lines
//! break, pods go and the cluster says no. Told on a cluster that is none (`support/kube.rs`).

mod commands;
mod deploy;
mod deployments;
mod discovery;
mod gc;
mod ingress;
mod manifests;
mod objects;
mod real;
mod refusals;

use std::sync::Arc;

use serde_json::{Value, json};

use super::support::{Api, FakeCluster, Ground, TestApp, eventually};

/// A server on a cluster.
async fn on(cluster: &FakeCluster, own: &[(&str, &str)]) -> TestApp {
    on_ground(Ground::new().await, cluster, own).await
}

async fn on_ground(ground: Arc<Ground>, cluster: &FakeCluster, own: &[(&str, &str)]) -> TestApp {
    let settings = cluster.settings();
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| (*name, value.as_str())).chain(own.iter().copied()).collect();
    TestApp::on(ground, &settings).await
}

/// A server, and a pod `a` that is the place of `p`.
async fn with_pod() -> (FakeCluster, TestApp) {
    let cluster = FakeCluster::start().await;
    cluster.pod("a", "p");
    let app = on(&cluster, &[]).await;
    is(&app.admin(), "p", "running").await;
    (cluster, app)
}

/// The project, once it has this status.
async fn is(api: &Api, project: &str, status: &str) -> Value {
    let path = format!("/projects/{project}");
    eventually(&format!("{project} is {status}"), async || {
        let reply = api.get(&path).await;
        (reply.status == 200).then(|| reply.data(200)).filter(|project| project["status"] == status)
    })
    .await
}

async fn start(api: &Api, script: &str) -> Value {
    api.post("/projects/p/shell", json!({"script": script})).await.data(201)
}

/// The command, once it does not run any more.
async fn end_of(api: &Api, command: &Value) -> Value {
    let path = format!("/projects/p/commands/{}", command["command_id"].as_str().expect("an id"));
    eventually("the end of a command", async || {
        let shown = api.get(&path).await.data(200);
        (shown["status"] != "running").then_some(shown)
    })
    .await
}

//! Previews by Ingress: a Service and an Ingress for each session, which lead to rdev and to nobody's pod.

use serde_json::{Value, json};

use super::{
    super::support::{FakeCluster, TestApp, eventually},
    is, on,
};

const SETTINGS: &[(&str, &str)] = &[("RDEV_PREVIEW_INGRESS", "true"), ("RDEV_PREVIEW_DOMAIN", "preview.example.com")];

async fn with_pod() -> (FakeCluster, TestApp) {
    let cluster = FakeCluster::start().await;
    cluster.pod("a", "p");
    let app = on(&cluster, SETTINGS).await;
    is(&app.admin(), "p", "running").await;
    (cluster, app)
}

fn name_of(session: &Value) -> String {
    format!("rdev-preview-{}", session["id"].as_str().expect("an id"))
}

async fn none_left(cluster: &FakeCluster) {
    eventually("both are gone", async || cluster.names().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_a_service_and_an_ingress_that_lead_to_rdev() {
    let (cluster, app) = with_pod().await;
    let session = app.session("p", "work").await;
    let (sid, name) = (session["id"].as_str().unwrap(), name_of(&session));
    let (service, ingress) = (cluster.get("services", &name).unwrap(), cluster.get("ingresses", &name).unwrap());
    let labels = json!({"app.kubernetes.io/managed-by": "rdev", "rdev.orchard9.ai/project-id": "p",
                        "rdev.orchard9.ai/session-id": sid});
    for object in [&service, &ingress] {
        assert_eq!(object["metadata"]["labels"], labels);
        let uid = &cluster.get("pods", "a").unwrap()["metadata"]["uid"];
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], *uid);
    }
    let rule = &ingress["spec"]["rules"][0];
    assert_eq!(rule["host"], format!("{sid}.preview.example.com"));
    assert_eq!(rule["http"]["paths"][0]["backend"]["service"]["name"], name);
    // Who comes by it is let in by rdev, or is not.
    assert_eq!(service["spec"]["selector"], json!({"app.kubernetes.io/name": "rdev"}));
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "http");
    app.admin().delete(&format!("/projects/p/sessions/{sid}")).await.data(200);
    assert_eq!(cluster.names(), [""; 0], "gone by the time of the answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn they_go_with_the_pod_and_with_the_project() {
    let (cluster, app) = with_pod().await;
    app.session("p", "one").await;
    cluster.delete_pod("a");
    none_left(&cluster).await;
    cluster.pod("b", "p");
    is(&app.admin(), "p", "running").await;
    let session = eventually("a session in the new pod", async || {
        let reply = app.admin().post("/projects/p/sessions", json!({"new_branch": "two"})).await;
        (reply.status == 201).then(|| reply.data(201))
    })
    .await;
    assert!(cluster.get("ingresses", &name_of(&session)).is_some());
    let deleted = app.admin().delete("/projects/p?forget=true").await.data(200);
    assert_eq!((&deleted["undeployed"], cluster.names()), (&json!([]), Vec::new()), "the session took them along");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undeploy_finds_them_and_the_session_goes_on() {
    let (_cluster, app) = with_pod().await;
    let session = app.session("p", "work").await;
    let told = app.admin().post("/projects/p/undeploy", json!({})).await.data(200);
    let name = name_of(&session);
    assert_eq!(told["deleted"], json!([{"kind": "Ingress", "name": name}, {"kind": "Service", "name": name}]));
    assert_eq!(app.exec("p", &session, "true").await["exit_code"], 0);
    let path = format!("/projects/p/sessions/{}/checkin", session["id"].as_str().unwrap());
    app.admin().post(&path, json!({"skip_review": true})).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_undoes_the_session() {
    let (cluster, app) = with_pod().await;
    cluster.forbid("create", "ingresses");
    let body = json!({"new_branch": "work"});
    let refused = app.admin().post("/projects/p/sessions", body.clone()).await.refusal(502, "CLUSTER_FORBIDDEN");
    assert_eq!(refused["details"]["resource"], "ingresses");
    assert_eq!(cluster.names(), [""; 0]);
    cluster.allow_all();
    app.admin().post("/projects/p/sessions", body).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_holds_up_no_end_and_goes_later() {
    let (cluster, app) = with_pod().await;
    let session = app.session("p", "work").await;
    cluster.forbid("delete", "services");
    let path = format!("/projects/p/sessions/{}", session["id"].as_str().unwrap());
    app.admin().delete(&path).await.data(200);
    assert_eq!(cluster.names(), [format!("services/{}", name_of(&session))]);
    let tasks = "select (select count(*) from task where kind = 'session.hide')
                      + (select count(*) from task_later where kind = 'session.hide')";
    assert_eq!(app.db().count(tasks).await, 1);
    cluster.allow_all();
    none_left(&cluster).await;
    eventually("the task is done", async || (app.db().count(tasks).await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_nothing_is_made() {
    let (cluster, app) = super::with_pod().await;
    app.session("p", "work").await;
    assert_eq!(cluster.names(), [""; 0]);
}

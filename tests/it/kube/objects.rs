//! Undeploy: what carries a project's label and is ours goes, whatever its name, and nothing else does.

use serde_json::{Value, json};

use super::{
    super::support::{FakeCluster, TestApp, eventually},
    is, on, with_pod,
};

const OURS: (&str, &str) = ("app.kubernetes.io/managed-by", "rdev");
const KINDS: &[(&str, &str)] = &[
    ("configmaps", "ConfigMap"),
    ("deployments", "Deployment"),
    ("ingresses", "Ingress"),
    ("jobs", "Job"),
    ("persistentvolumeclaims", "PersistentVolumeClaim"),
    ("secrets", "Secret"),
    ("services", "Service"),
    ("statefulsets", "StatefulSet"),
];

fn of(project: &str) -> (&str, &str) {
    ("rdev.orchard9.ai/project-id", project)
}

/// One of each kind, and what looks like them and stays.
async fn with_objects() -> (FakeCluster, TestApp) {
    let (cluster, app) = with_pod().await;
    for (kind, _) in KINDS {
        cluster.object(kind, &format!("any-{kind}"), &[OURS, of("p"), ("app", "x")]);
        cluster.object(kind, "of-another-project", &[OURS, of("q")]);
        cluster.object(kind, "of-somebody", &[of("p")]);
        cluster.object(kind, "rdev-p", &[("app", "x")]);
    }
    (cluster, app)
}

fn left(cluster: &FakeCluster) -> Vec<String> {
    cluster.names().into_iter().filter(|name| name.contains("/any-")).collect()
}

async fn undeploy(app: &TestApp) -> Value {
    app.admin().post("/projects/p/undeploy", json!({})).await.data(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_carries_the_label_and_is_ours_goes_whatever_its_name() {
    let (cluster, app) = with_objects().await;
    let before = cluster.names().len();
    let told = undeploy(&app).await;
    assert_eq!((&told["status"], &told["id"], told.get("left")), (&json!("undeployed"), &json!("p"), None));
    let mut expected: Vec<_> =
        KINDS.iter().map(|(kind, shown)| json!({"kind": shown, "name": format!("any-{kind}")})).collect();
    expected.sort_by_key(ToString::to_string);
    assert_eq!(told["deleted"], json!(expected));
    assert_eq!((left(&cluster), cluster.names().len()), (Vec::new(), before - KINDS.len()));
    let deletes = cluster.asked().iter().filter(|asked| asked.starts_with("delete")).count();
    assert_eq!(deletes, KINDS.len(), "nothing else was even tried");
    assert_eq!(undeploy(&app).await["deleted"], json!([]));
    is(&app.admin(), "p", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_on_later_pages_go_too_also_when_the_list_has_to_begin_anew() {
    let (cluster, app) = with_pod().await;
    for number in 0..25 {
        cluster.object("configmaps", &format!("any-{number:02}"), &[OURS, of("p")]);
    }
    cluster.odd(|odd| (odd.page, odd.stale_pages) = (Some(10), 1));
    assert_eq!(undeploy(&app).await["deleted"].as_array().unwrap().len(), 25);
    assert_eq!(left(&cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_named_and_all_else_goes() {
    let (cluster, app) = with_objects().await;
    cluster.odd(|odd| odd.undying.push(("services".into(), "any-services".into())));
    cluster.forbid("delete", "secrets");
    cluster.forbid("list", "jobs");
    let refused = app.admin().post("/projects/p/undeploy", json!({})).await.refusal(502, "UNDEPLOY_INCOMPLETE");
    assert_eq!(left(&cluster), ["services/any-services", "secrets/any-secrets", "jobs/any-jobs"]);
    let details = &refused["details"];
    assert_eq!(details["deleted"].as_array().unwrap().len(), KINDS.len() - 3);
    let errors = details["errors"].as_array().unwrap();
    let of_kind = |kind: &str| errors.iter().find(|error| error["kind"] == kind || error["resource"] == kind);
    let forbidden = of_kind("jobs").expect("jobs could not be listed");
    let right = json!([forbidden["code"], forbidden["verb"], forbidden["resource"], forbidden["namespace"]]);
    assert_eq!(right, json!(["CLUSTER_FORBIDDEN", "list", "jobs", "projects"]));
    let secret = of_kind("Secret").expect("a Secret could not be deleted");
    assert_eq!((&secret["name"], &secret["verb"]), (&json!("any-secrets"), &json!("delete")));
    assert_eq!(of_kind("Service").expect("a Service could not be deleted")["code"], "UPSTREAM_UNAVAILABLE");
    cluster.allow_all();
    cluster.odd(|odd| odd.undying.clear());
    assert_eq!(undeploy(&app).await["deleted"].as_array().unwrap().len(), 3);
    assert_eq!(left(&cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_took_an_objects_name_meanwhile_is_not_hit() {
    let (cluster, app) = with_objects().await;
    cluster.odd(|odd| odd.replaced.push(("services".into(), "any-services".into())));
    let deleted = undeploy(&app).await["deleted"].clone();
    assert_eq!(deleted.as_array().unwrap().len(), KINDS.len() - 1);
    assert_eq!(left(&cluster), ["services/any-services"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_the_cluster_does_not_know_is_named() {
    let (cluster, app) = with_objects().await;
    cluster.odd(|odd| odd.without.push("ingresses".into()));
    let refused = app.admin().post("/projects/p/undeploy", json!({})).await.refusal(502, "UNDEPLOY_INCOMPLETE");
    assert_eq!(refused["details"]["errors"][0]["code"], "CLUSTER_KIND_UNKNOWN");
    assert_eq!(left(&cluster), ["ingresses/any-ingresses"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_nobody_looks_after_is_reported_and_stays() {
    let (cluster, app) = with_pod().await;
    cluster.object("pods", "alone", &[OURS, of("p")]);
    let told = undeploy(&app).await;
    assert_eq!((&told["deleted"], &told["left"]), (&json!([]), &json!([{"kind": "Pod", "name": "alone"}])));
    assert!(cluster.get("pods", "alone").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_project_undeploys_it_and_stays_failed_until_that_is_done() {
    let (cluster, app) = with_objects().await;
    let admin = app.admin();
    cluster.forbid("delete", "services");
    let refused = admin.delete("/projects/p?forget=true").await.refusal(502, "DELETE_INCOMPLETE");
    let error = &refused["details"]["errors"][0];
    assert_eq!((&error["step"], &error["errors"][0]["name"]), (&json!("undeploy"), &json!("any-services")));
    assert_eq!(refused["details"]["undeployed"].as_array().unwrap().len(), KINDS.len() - 1);
    assert_eq!(left(&cluster), ["services/any-services"]);
    // Whatever its pod does.
    cluster.change_pod("a", |pod| pod["metadata"]["annotations"]["rdev.orchard9.ai/workspace"] = "/elsewhere".into());
    eventually("the change was seen", async || {
        (is(&admin, "p", "failed").await["workspace"] == "/elsewhere").then_some(())
    })
    .await;
    cluster.allow_all();
    let deleted = admin.delete("/projects/p?forget=true").await.data(200);
    assert_eq!(deleted["undeployed"], json!([{"kind": "Service", "name": "any-services"}]));
    admin.get("/projects/p").await.refusal(404, "NOT_FOUND");
    assert_eq!(left(&cluster), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_even_be_listed_is_not_taken_for_gone() {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[]).await;
    app.project("p").await;
    cluster.object("secrets", "any-secrets", &[OURS, of("p")]);
    for (kind, _) in KINDS {
        cluster.forbid("list", kind);
    }
    app.admin().post("/projects/p/undeploy", json!({})).await.refusal(502, "UNDEPLOY_INCOMPLETE");
    app.admin().delete("/projects/p").await.refusal(502, "DELETE_INCOMPLETE");
    is(&app.admin(), "p", "failed").await;
    cluster.allow_all();
    let deleted = app.admin().delete("/projects/p").await.data(200);
    assert_eq!(deleted["undeployed"], json!([{"kind": "Secret", "name": "any-secrets"}]));
}

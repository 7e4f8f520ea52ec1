//! Rights that are lacking, in the cluster's own words.

use http::Method;
use serde_json::json;

use super::{
    super::super::support::{TestApp, eventually},
    Place, WITH_GIT,
};

const PODS: (&str, &[&str]) = ("pods", &["get", "list", "watch"]);
const EXEC: (&str, &[&str]) = ("pods/exec", &["get", "create"]);
const FORWARD: (&str, &[&str]) = ("pods/portforward", &["get", "create"]);
const MAPS: (&str, &[&str]) = ("configmaps", &["get", "list", "watch"]);

async fn limited() -> (Place, TestApp) {
    let place = Place::open().await;
    let token = place.token().await;
    place.allow(&[PODS, EXEC, FORWARD, MAPS]).await;
    let kubeconfig = place.kubeconfig("limited", |config| {
        let user = config.auth_infos[0].auth_info.as_mut().expect("a user");
        *user = kube::config::AuthInfo { token: Some(token.into()), ..kube::config::AuthInfo::default() };
    });
    let app = place.app_by(&kubeconfig).await;
    place.pod("p", WITH_GIT).await;
    super::super::is(&app.admin(), "p", "running").await;
    (place, app)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RDEV_TEST_KUBECONFIG"]
async fn the_least_role_is_enough_and_each_right_that_is_lacking_is_named() {
    let (place, app) = limited().await;
    let admin = app.admin();
    let session = admin.post("/projects/p/sessions", json!({"new_branch": "b", "preview_port": 8000})).await.data(201);
    let host = session["preview_url"].as_str().unwrap().trim_start_matches("http://").to_owned();
    let (host, path) = host.split_once('/').unwrap();
    let look = async || admin.send(Method::GET, &format!("/{path}"), None, &[("host", host)]).await;
    look().await.refusal(503, "PREVIEW_NOT_READY");

    place.allow(&[PODS, EXEC, MAPS]).await;
    let refused = eventually("the role is in force", async || Some(look().await).filter(|it| it.status == 502)).await;
    let details = refused.refusal(502, "CLUSTER_FORBIDDEN")["details"].clone();
    assert_eq!((&details["resource"], &details["namespace"]), (&json!("pods/portforward"), &json!(place.namespace)));
    assert_eq!(app.script("p", "true").await["exit_code"], 0);

    // A pod that was not made ready before, so that the answer itself is the refusal.
    place.allow(&[PODS, FORWARD, MAPS]).await;
    place.pod("q", WITH_GIT).await;
    super::super::is(&admin, "q", "running").await;
    let ask = async || admin.post("/projects/q/shell", json!({"script": "true"})).await;
    let refused = ask().await.refusal(502, "CLUSTER_FORBIDDEN");
    // Which one it takes for a WebSocket depends on the cluster's version.
    let verb = refused["details"]["verb"].as_str().unwrap();
    assert!(matches!(verb, "get" | "create"), "{refused}");
    let named = format!("{verb} pods/exec in the namespace {}", place.namespace);
    assert!(refused["message"].as_str().unwrap().ends_with(&named), "{refused}");

    for (lacking, rules) in [
        ("watch configmaps", [PODS, ("configmaps", &["get", "list"])]),
        ("list pods", [("pods", &["get", "watch"]), MAPS]),
    ] {
        place.allow(&rules).await;
        let kubeconfig = place.ground.path().join("limited");
        let app = place.app_by(&kubeconfig).await;
        eventually(&format!("health names {lacking}"), async || {
            let shown = app.nobody().get("/health").await.json()["data"]["checks"]["discovery"].clone();
            shown["message"].as_str().filter(|message| message.contains(lacking)).map(drop)
        })
        .await;
    }
}

//! Places that are made for their projects: a Deployment of one pod, made and gone with the project.

use http::Method;
use serde_json::{Value, json};

use super::{
    super::support::{FakeCluster, Ground, Server, eventually},
    is, on,
};

const IMAGE: &str = "local.test/debian-git:1";

fn deployment(cluster: &FakeCluster) -> Value {
    cluster.get("deployments", "rdev-p").expect("the Deployment is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_with_an_image_gets_its_place_and_takes_it_along() {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[("RDEV_POD_STORAGE", "fast:10Gi")]).await;
    let admin = app.admin();
    let made = app.project_with(json!({"id": "p", "image": IMAGE})).await;
    assert_eq!((&made["image"], &made["source"]), (&json!(IMAGE), &json!("api")));
    let shown = is(&admin, "p", "running").await;
    assert_eq!((&shown["pod_name"], shown.get("details")), (&json!("rdev-p-1"), None));
    assert_eq!(app.script("p", "git log --format=%an").await["exit_code"], 0);
    let session = app.session("p", "work").await;
    assert_eq!(app.exec("p", &session, "git push origin HEAD").await["exit_code"], 0);

    let claim = cluster.get("persistentvolumeclaims", "rdev-p-workspace").expect("a volume");
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "10Gi");
    assert_eq!(claim["spec"]["storageClassName"], "fast");
    let deployment = deployment(&cluster);
    let labels = json!({"app.kubernetes.io/managed-by": "rdev", "rdev.orchard9.ai/project-id": "p"});
    assert_eq!(deployment["metadata"]["labels"], labels);
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!((&pod["automountServiceAccountToken"], &pod["containers"][0]["image"]), (&json!(false), &json!(IMAGE)));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["containers"][0]["securityContext"]["capabilities"]["drop"], json!(["ALL"]));

    let deleted = admin.delete("/projects/p").await.data(200);
    let expected = json!([{"kind": "Deployment", "name": "rdev-p"}, {"kind": "PersistentVolumeClaim", "name": "rdev-p-workspace"}]);
    assert_eq!(deleted["undeployed"], expected);
    assert_eq!(cluster.names(), [""; 0]);
    assert!(cluster.get("pods", "rdev-p-1").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_image_is_every_projects_and_a_volume_only_where_it_is_wanted() {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[("RDEV_POD_IMAGE", IMAGE)]).await;
    app.project("p").await;
    is(&app.admin(), "p", "running").await;
    assert_eq!(cluster.names(), ["deployments/rdev-p"]);
    assert_eq!(deployment(&cluster)["spec"]["template"]["spec"]["volumes"][0]["emptyDir"], json!({}));
    for image in ["two words", "-x", "a;b"] {
        app.admin().post("/projects", json!({"id": "q", "image": image})).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_is_another_pod() {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[]).await;
    app.project("p").await;
    is(&app.admin(), "p", "not_found").await;
    for (image, pod) in [(IMAGE, "rdev-p-1"), ("local.test/other:2", "rdev-p-2")] {
        let changed = app.admin().patch("/projects/p", json!({"image": image})).await.data(200);
        assert_eq!(changed["image"], image);
        eventually("the new pod", async || (is(&app.admin(), "p", "running").await["pod_name"] == pod).then_some(()))
            .await;
        assert_eq!(deployment(&cluster)["spec"]["template"]["spec"]["containers"][0]["image"], image);
    }
    // Once taken away, it comes back with an image alone.
    let undeployed = app.admin().post("/projects/p/undeploy", json!({})).await.data(200);
    assert_eq!(undeployed["deleted"], json!([{"kind": "Deployment", "name": "rdev-p"}]));
    let shown = is(&app.admin(), "p", "not_found").await;
    assert_eq!((shown.get("image"), shown.get("details")), (None, None));
    app.admin().patch("/projects/p", json!({"image": IMAGE})).await.data(200);
    is(&app.admin(), "p", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_with_work_in_it_stays_in_use() {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[("RDEV_POD_STORAGE", "1Gi"), ("RDEV_POD_IMAGE", IMAGE)]).await;
    app.project("p").await;
    is(&app.admin(), "p", "running").await;
    let made = cluster.get("persistentvolumeclaims", "rdev-p-workspace").expect("a volume");
    let settings = cluster.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for storage in ["", "2Gi"] {
        let sibling = app.sibling(&[&settings, &[("RDEV_POD_STORAGE", storage)][..]].concat()).await;
        sibling.admin().patch("/projects/p", json!({"image": "local.test/other:1"})).await.data(200);
        let volume = deployment(&cluster)["spec"]["template"]["spec"]["volumes"][0].clone();
        assert_eq!(volume["persistentVolumeClaim"]["claimName"], "rdev-p-workspace");
        assert_eq!(cluster.get("persistentvolumeclaims", "rdev-p-workspace").as_ref(), Some(&made));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_pod_from_running_is_told() {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[]).await;
    let admin = app.admin();
    let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
    cluster.stick(Some(waiting));
    app.project_with(json!({"id": "p", "image": IMAGE})).await;
    let shown = is(&admin, "p", "failed").await;
    assert_eq!(shown["details"][0], json!({"pod": "rdev-p-1", "message": "ImagePullBackOff: no such image"}));
    cluster.stick(None);
    admin.patch("/projects/p", json!({"image": "local.test/other:1"})).await.data(200);
    assert_eq!(is(&admin, "p", "running").await.get("details"), None);
    cluster.let_none_be_made(Some("exceeded quota: pods=1"));
    app.project_with(json!({"id": "q", "image": IMAGE})).await;
    let shown = is(&admin, "q", "failed").await;
    assert_eq!(shown["details"], json!([{"message": "exceeded quota: pods=1"}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_fails_leaves_nothing_behind() {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[("RDEV_POD_STORAGE", "1Gi")]).await;
    cluster.forbid("create", "deployments");
    let body = json!({"id": "p", "image": IMAGE});
    let refused = app.admin().post("/projects", body.clone()).await.refusal(502, "CLUSTER_FORBIDDEN");
    let details = json!({"verb": "create", "resource": "deployments", "namespace": "projects"});
    assert_eq!(refused["details"], details);
    app.admin().get("/projects/p").await.refusal(404, "NOT_FOUND");
    assert_eq!(cluster.names(), [""; 0]);
    cluster.allow_all();
    // Somebody's object with one of our names is never touched.
    let theirs = cluster.object("deployments", "rdev-p", &[("app", "theirs")]);
    let refused = app.admin().post("/projects", body.clone()).await.refusal(409, "OBJECT_EXISTS");
    assert_eq!(refused["details"], json!({"kind": "Deployment", "name": "rdev-p"}));
    assert_eq!((deployment(&cluster), cluster.names()), (theirs, vec!["deployments/rdev-p".to_owned()]));
    cluster.delete("deployments", "rdev-p");
    app.admin().post("/projects", body).await.data(201);
    is(&app.admin(), "p", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_leaves_nothing_behind() {
    let cluster = FakeCluster::start().await;
    let ground = Ground::new().await;
    let settings = cluster.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Server::start(&ground, &settings).await;
    // The Deployment is made, and the server never hears of it.
    cluster.odd(|odd| odd.silent = true);
    let admin = server.admin();
    let body = json!({"id": "p", "image": IMAGE}).to_string();
    let creating = tokio::spawn(admin.request(Method::POST, "/projects", Some(body), &[]).send());
    eventually("the Deployment", async || cluster.get("deployments", "rdev-p")).await;
    server.kill().await;
    assert!(creating.await.unwrap().is_err(), "nobody was left to answer");
    cluster.odd(|odd| odd.silent = false);
    let server = Server::start(&ground, &settings).await;
    eventually("all is undone", async || {
        let known = server.admin().get("/projects/p").await.status;
        (known == 404 && cluster.names().is_empty()).then_some(())
    })
    .await;
    server.admin().post("/projects", json!({"id": "p", "image": IMAGE})).await.data(201);
    is(&server.admin(), "p", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_of_a_deployment_that_is_nobodys_makes_no_project() {
    let cluster = FakeCluster::start().await;
    cluster.pod_as("left", "gone", |pod| {
        pod["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "rdev".into();
        pod["metadata"]["labels"]["rdev.orchard9.ai/project-id"] = "gone".into();
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    });
    // Ours by its label, and nothing made it.
    cluster.pod_as("bare", "bare", |pod| pod["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "rdev".into());
    let app = on(&cluster, &[]).await;
    is(&app.admin(), "bare", "running").await;
    cluster.pod("z", "z");
    is(&app.admin(), "z", "running").await;
    let all = app.admin().get("/projects").await.data(200);
    let ids: Vec<_> = all["projects"].as_array().unwrap().iter().map(|project| &project["id"]).collect();
    assert_eq!(ids, ["z", "bare"]);
    // It stays, and makes no project a second time.
    app.admin().delete("/projects/bare").await.data(200);
    cluster.pod("y", "y");
    is(&app.admin(), "y", "running").await;
    app.admin().get("/projects/bare").await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_of_somebody_elses_is_not_made_anew() {
    let (cluster, app) = super::with_pod().await;
    let refused = app.admin().patch("/projects/p", json!({"image": IMAGE})).await.refusal(409, "PROJECT_DISCOVERED");
    assert_eq!(refused["details"]["pod"], "a");
    assert_eq!(cluster.names(), [""; 0]);
}

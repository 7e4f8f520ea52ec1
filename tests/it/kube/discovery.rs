//! Projects that are found, and what is found of them.

use serde_json::json;

use super::{
    super::support::{FakeCluster, eventually},
    is, on, with_pod,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_labelled_pod_is_a_project_as_long_as_it_is_there() {
    let (cluster, app) = with_pod().await;
    let admin = app.admin();
    let found = is(&admin, "p", "running").await;
    assert_eq!(
        (&found["source"], &found["pod_name"], &found["name"]),
        (&json!("discovered"), &json!("a"), &json!("p"))
    );
    assert_eq!(found["workspace"], cluster.workspace("a").to_str().unwrap());
    assert_eq!(found["default_branch"], "main");
    cluster.change_pod("a", |pod| {
        pod["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    });
    is(&admin, "p", "failed").await;
    cluster.delete_pod("a");
    is(&admin, "p", "not_found").await;
    cluster.pod("b", "p");
    assert_eq!(is(&admin, "p", "running").await["pod_name"], "b");
    let mut activity = app.listen("/projects/p/events?after=0").await;
    assert_eq!(activity.activity("project.created").await.data["id"], "p");
    for status in ["failed", "not_found", "running"] {
        assert_eq!(activity.activity("project.status").await.data["status"], status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_the_server_was_away_is_seen_at_its_start() {
    let (cluster, app) = with_pod().await;
    let settings = cluster.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    cluster.pod("c", "q");
    is(&app.admin(), "q", "running").await;
    let (ground, key) = (app.ground.clone(), app.admin_key.clone());
    drop(app);
    cluster.delete_pod("a");
    cluster.pod("d", "r");
    let app = super::super::support::TestApp::on(ground, &settings).await;
    let admin = app.bearing(&key);
    is(&admin, "p", "not_found").await;
    is(&admin, "q", "running").await;
    is(&admin, "r", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_after_it_was_cut_and_after_the_past_was_forgotten() {
    let (cluster, app) = with_pod().await;
    cluster.cut();
    cluster.pod("b", "q");
    is(&app.admin(), "q", "running").await;
    cluster.forget_the_past();
    cluster.delete_pod("b");
    cluster.pod("c", "r");
    is(&app.admin(), "r", "running").await;
    is(&app.admin(), "q", "not_found").await;
    is(&app.admin(), "p", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_ready_pod_is_the_place_and_strange_names_are_none() {
    let (cluster, app) = with_pod().await;
    cluster.pod("b", "p");
    eventually("the newer one", async || (is(&app.admin(), "p", "running").await["pod_name"] == "b").then_some(()))
        .await;
    cluster.change_pod("b", |pod| pod["status"]["conditions"][0]["status"] = "False".into());
    eventually("the ready one", async || (is(&app.admin(), "p", "running").await["pod_name"] == "a").then_some(()))
        .await;
    cluster.pod("odd", "No.Id");
    cluster.pod("z", "z");
    is(&app.admin(), "z", "running").await;
    let all = app.admin().get("/projects").await.data(200);
    assert_eq!(all["projects"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_stands_over_the_pod_and_a_patch_over_both() {
    let cluster = FakeCluster::start().await;
    cluster.config_map(
        "settings",
        "p",
        &[
            ("description", "from the map"),
            ("preview_port", "3000"),
            ("review_command", "[\"true\"]"),
            ("default_branch", "trunk"),
            ("allow_scripts", "perhaps"),
        ],
    );
    cluster.pod("a", "p");
    cluster.change_pod("a", |pod| pod["metadata"]["labels"]["rdev.orchard9.ai/description"] = "pod".into());
    let app = on(&cluster, &[]).await;
    let admin = app.admin();
    let found = is(&admin, "p", "running").await;
    assert_eq!((&found["description"], &found["preview_port"]), (&json!("from the map"), &json!(3000)));
    assert_eq!((&found["default_branch"], &found["review_command"]), (&json!("trunk"), &json!(["true"])));
    assert_eq!((&found["allow_scripts"], &found["details"][0]["key"]), (&json!(true), &json!("allow_scripts")));
    admin.patch("/projects/p", json!({"description": "mine"})).await.data(200);
    cluster.config_map("settings", "p", &[("description", "again"), ("name", "P")]);
    let changed = eventually("the map's new words", async || {
        let shown = is(&admin, "p", "running").await;
        (shown["name"] == "P").then_some(shown)
    });
    let changed = changed.await;
    assert_eq!(
        (&changed["description"], changed.get("preview_port"), changed.get("details")),
        (&json!("mine"), None, None)
    );
    cluster.delete_config_map("settings");
    eventually("the name of before", async || (is(&admin, "p", "running").await["name"] == "p").then_some(())).await;
    // Alone it makes none.
    cluster.config_map("other", "q", &[("name", "Q")]);
    cluster.pod("z", "z");
    is(&admin, "z", "running").await;
    admin.get("/projects/q").await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_do_not_fight() {
    let (cluster, app) = with_pod().await;
    let settings = cluster.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let sibling = app.sibling(&settings).await;
    for (pod, project) in [("b", "q"), ("c", "r"), ("d", "s")] {
        cluster.pod(pod, project);
        is(&sibling.admin(), project, "running").await;
        is(&app.admin(), project, "running").await;
    }
    cluster.delete_pod("b");
    is(&sibling.admin(), "q", "not_found").await;
    let told = app.admin().get("/projects/q").await.data(200);
    assert_eq!(told["status"], "not_found");
    let created =
        "select count(*) from chunk c join stream s on s.key = c.stream where s.kind = 'project' and s.name = 'q'";
    assert_eq!(app.db().count(created).await, 2, "made once, gone once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_made_by_hand_waits_for_its_pod() {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[]).await;
    let made = app.project("p").await;
    assert_eq!((&made["status"], &made["source"]), (&json!("not_found"), &json!("api")));
    let refused = app.admin().post("/projects/p/shell", json!({"script": "true"})).await.refusal(400, "BAD_REQUEST");
    assert_eq!(
        (&refused["message"], &refused["details"]["reason"]),
        (&json!("project pod is not running"), &json!("PROJECT_NOT_RUNNING"))
    );
    cluster.pod("a", "p");
    is(&app.admin(), "p", "running").await;
    assert_eq!(app.script("p", "git log --format=%an").await["exit_code"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_the_project_of_somebodys_pod_has_to_be_meant() {
    let (cluster, app) = with_pod().await;
    let refused = app.admin().delete("/projects/p").await.refusal(409, "PROJECT_DISCOVERED");
    assert_eq!(refused["details"]["pod"], "a");
    app.admin().delete("/projects/p?forget=true").await.data(200);
    cluster.pod("z", "z");
    is(&app.admin(), "z", "running").await;
    app.admin().get("/projects/p").await.refusal(404, "NOT_FOUND");
    // Another pod of that name makes one again.
    cluster.pod("b", "p");
    is(&app.admin(), "p", "running").await;
}

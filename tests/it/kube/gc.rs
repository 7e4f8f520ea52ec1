//! Objects that belong to nobody any more: an hour later they are gone, unless something speaks against it.

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{
    super::support::{Api, FakeCluster, TestApp, eventually},
    is, on, with_pod,
};

const MANAGED: (&str, &str) = ("app.kubernetes.io/managed-by", "rdev");
const PROJECT: &str = "rdev.orchard9.ai/project-id";
const SESSION: &str = "rdev.orchard9.ai/session-id";

/// A server with the project `kept`.
async fn stage() -> (FakeCluster, TestApp) {
    let cluster = FakeCluster::start().await;
    let app = on(&cluster, &[]).await;
    app.project("kept").await;
    (cluster, app)
}

fn object(cluster: &FakeCluster, kind: &str, name: &str, project: &str) -> Value {
    cluster.object(kind, name, &[MANAGED, (PROJECT, project)])
}

async fn run(api: &Api) -> Value {
    api.post("/gc/run", json!({})).await.data(200)
}

async fn dry_run(api: &Api) -> Value {
    api.post("/gc/run", json!({"dry_run": true})).await.data(200)
}

async fn report(api: &Api) -> Value {
    api.get("/gc/report").await.data(200)
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|one| one["name"].as_str().expect("a name")).collect()
}

/// Makes a project and opens the gate as soon as there is a record of it: calls of the cluster are not waited for
/// for long, and a repository takes its time.
async fn made(app: &TestApp, id: &str, open: impl FnOnce()) {
    let count = format!("select count(*) from project where id = '{id}'");
    tokio::join!(app.project(id), async {
        eventually("a record of the project", async || (app.db().count(&count).await == 1).then_some(())).await;
        open();
    });
}

/// So that all that was seen may go.
fn hour(app: &TestApp) {
    app.advance(TimeDelta::hours(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_no_project_goes_after_an_hour() {
    let (cluster, app) = stage().await;
    let orphan = object(&cluster, "configmaps", "left", "gone");
    object(&cluster, "services", "mine", "kept");
    cluster.object("secrets", "somebodys", &[(PROJECT, "gone")]);
    cluster.object("secrets", "nobodys", &[MANAGED]);
    let api = app.admin();
    let seen = dry_run(&api).await;
    let told = &seen["orphans"][0];
    assert_eq!(
        (&told["kind"], &told["name"], &told["project_id"], &told["uid"]),
        (&json!("ConfigMap"), &json!("left"), &json!("gone"), &orphan["metadata"]["uid"])
    );
    assert_eq!(
        (seen["orphans"].as_array().unwrap().len(), seen.get("blocked_by"), told.get("session_id")),
        (1, None, None)
    );
    let time = |name: &str| told[name].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert_eq!(time("deletable_at") - time("first_seen_at"), TimeDelta::hours(1));
    app.advance(TimeDelta::minutes(59));
    let early = run(&api).await;
    assert_eq!((&early["orphans"][0]["first_seen_at"], &early["removed"]), (&told["first_seen_at"], &json!([])));
    app.advance(TimeDelta::minutes(1));
    let dry = dry_run(&api).await;
    assert_eq!((names(&dry["orphans"]), &dry["removed"]), (vec!["left"], &json!([])));
    let done = run(&api).await;
    assert_eq!((&done["orphans"], names(&done["removed"])), (&json!([]), vec!["left"]));
    assert_eq!((&done["removed"][0]["kind"], done["removed"][0]["at"].is_string()), (&json!("ConfigMap"), true));
    assert_eq!(cluster.names(), ["services/mine", "secrets/nobodys", "secrets/somebodys"]);
    assert_eq!(run(&api).await["removed"], json!([]));
    let shown = report(&api).await;
    assert_eq!((&shown["orphans"], names(&shown["removed"])), (&json!([]), vec!["left"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_removes_nothing_and_starts_the_hour() {
    let (cluster, app) = stage().await;
    object(&cluster, "configmaps", "left", "gone");
    let api = app.admin();
    assert_eq!(names(&report(&api).await["orphans"]), ["left"]);
    hour(&app);
    assert_eq!(names(&report(&api).await["orphans"]), ["left"]);
    assert_eq!(names(&run(&api).await["removed"]), ["left"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_a_session_goes_with_it() {
    let (cluster, app) = with_pod().await;
    let api = app.admin();
    let session = app.session("p", "work").await;
    let sid = session["id"].as_str().unwrap();
    for (name, session) in [("of-it", sid), ("of-none", "01890000-0000-7000-8000-000000000000")] {
        cluster.object("ingresses", name, &[MANAGED, (PROJECT, "p"), (SESSION, session)]);
    }
    let seen = dry_run(&api).await;
    assert_eq!(names(&seen["orphans"]), ["of-none"]);
    api.post(&format!("/projects/p/sessions/{sid}/checkin"), json!({"on_dirty": "discard"})).await.data(200);
    let seen = dry_run(&api).await;
    assert_eq!((names(&seen["orphans"]), &seen["orphans"][0]["session_id"]), (vec!["of-it", "of-none"], &json!(sid)));
    hour(&app);
    assert_eq!(names(&run(&api).await["removed"]), ["of-it", "of-none"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_comes_back_starts_the_hour_anew() {
    let (cluster, app) = stage().await;
    object(&cluster, "configmaps", "left", "gone");
    let api = app.admin();
    dry_run(&api).await;
    app.advance(TimeDelta::minutes(50));
    app.project("gone").await;
    assert_eq!(dry_run(&api).await["orphans"], json!([]));
    app.db().run("delete from project where id = 'gone'").await;
    assert_eq!(names(&dry_run(&api).await["orphans"]), ["left"]);
    app.advance(TimeDelta::minutes(50));
    assert_eq!(run(&api).await["removed"], json!([]));
    app.advance(TimeDelta::minutes(10));
    assert_eq!(names(&run(&api).await["removed"]), ["left"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_while_the_cluster_cannot_be_read_whole() {
    let (cluster, app) = stage().await;
    object(&cluster, "configmaps", "left", "gone");
    let api = app.admin();
    dry_run(&api).await;
    hour(&app);
    cluster.forbid("list", "secrets");
    let blocked = run(&api).await;
    assert!(blocked["blocked_by"].as_str().unwrap().contains("list secrets"), "{blocked}");
    assert_eq!((names(&blocked["orphans"]), &blocked["removed"]), (vec!["left"], &json!([])));
    assert_eq!(report(&api).await["blocked_by"], blocked["blocked_by"]);
    assert_eq!(cluster.names(), ["configmaps/left"]);
    cluster.allow_all();
    assert_eq!(names(&run(&api).await["removed"]), ["left"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_when_the_database_knows_no_project_or_is_away() {
    let (cluster, app) = stage().await;
    object(&cluster, "configmaps", "left", "gone");
    let api = app.admin();
    dry_run(&api).await;
    hour(&app);
    app.db().run("delete from project").await;
    let blocked = run(&api).await;
    assert!(blocked["blocked_by"].as_str().unwrap().contains("no projects"), "{blocked}");
    app.db().run("alter table project rename to away").await;
    let refused = api.post("/gc/run", json!({})).await;
    assert!(refused.status >= 500, "{}", refused.text);
    app.db().run("alter table away rename to project").await;
    assert_eq!(cluster.names(), ["configmaps/left"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_five_or_a_fifth_of_all_go_at_once() {
    let (cluster, app) = stage().await;
    let api = app.admin();
    let many = |from: usize, to: usize, project: &str| {
        (from..to).for_each(|n| drop(object(&cluster, "configmaps", &format!("{project}-{n:02}"), project)));
    };
    many(0, 6, "gone");
    many(0, 23, "kept");
    dry_run(&api).await;
    hour(&app);
    // 6 of 29.
    let blocked = run(&api).await;
    assert_eq!(blocked["blocked_by"], "6 of 29 managed objects would go at once, at most 5 may");
    assert_eq!((names(&blocked["orphans"]).len(), &blocked["removed"]), (6, &json!([])));
    assert_eq!(dry_run(&api).await["blocked_by"], blocked["blocked_by"]);
    many(23, 24, "kept");
    // 6 of 30.
    let done = run(&api).await;
    assert_eq!((names(&done["removed"]).len(), done.get("blocked_by")), (6, None), "{done}");
    many(6, 11, "gone");
    dry_run(&api).await;
    hour(&app);
    for n in 0..24 {
        cluster.delete("configmaps", &format!("kept-{n:02}"));
    }
    // 5 of 5.
    assert_eq!(names(&run(&api).await["removed"]).len(), 5);
    assert!(cluster.names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_is_made_meanwhile_keeps_its_objects() {
    let (cluster, app) = stage().await;
    let api = app.admin();
    for name in ["a", "b"] {
        object(&cluster, "configmaps", name, name);
    }
    dry_run(&api).await;
    hour(&app);
    // Before the records are looked at.
    let gate = cluster.hold("GET secrets");
    let (running, ()) = tokio::join!(run(&api), async {
        gate.reached().await;
        made(&app, "b", || gate.open()).await;
    });
    assert_eq!(names(&running["removed"]), ["a"], "{running}");
    // After that, before its turn.
    for name in ["c", "d"] {
        object(&cluster, "configmaps", name, name);
    }
    dry_run(&api).await;
    hour(&app);
    let gate = cluster.hold("DELETE configmaps/c");
    let (running, ()) = tokio::join!(run(&api), async {
        gate.reached().await;
        // One whose objects are being removed at this moment waits.
        let refused = app.admin().post("/projects", json!({"id": "c"})).await.refusal(409, "PROJECT_BUSY");
        assert!(refused["message"].as_str().unwrap().contains("removed just now"), "{refused}");
        made(&app, "d", || gate.open()).await;
    });
    assert_eq!((names(&running["removed"]), &running["orphans"]), (vec!["c"], &json!([])), "{running}");
    assert_eq!(cluster.names(), ["configmaps/b", "configmaps/d"]);
    app.project("c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_took_an_orphans_name_stays() {
    let (cluster, app) = stage().await;
    let api = app.admin();
    object(&cluster, "configmaps", "left", "gone");
    dry_run(&api).await;
    hour(&app);
    cluster.odd(|odd| odd.replaced.push(("configmaps".into(), "left".into())));
    assert_eq!(run(&api).await["removed"], json!([]));
    assert_eq!(cluster.names(), ["configmaps/left"]);
    // An orphan of its own, with an hour of its own.
    let seen = run(&api).await;
    assert_eq!((names(&seen["orphans"]), &seen["removed"]), (vec!["left"], &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_deleted_is_named_and_holds_up_nothing_before_it() {
    let (cluster, app) = stage().await;
    let api = app.admin();
    object(&cluster, "configmaps", "a", "gone");
    object(&cluster, "secrets", "b", "gone");
    dry_run(&api).await;
    hour(&app);
    cluster.forbid("delete", "secrets");
    let blocked = run(&api).await;
    assert_eq!((names(&blocked["removed"]), names(&blocked["orphans"])), (vec!["a"], vec!["b"]));
    let why = blocked["blocked_by"].as_str().unwrap();
    assert!(why.contains("Secret b") && why.contains("delete secrets"), "{why}");
    cluster.allow_all();
    assert_eq!(names(&run(&api).await["removed"]), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_remove_an_object_once() {
    let (cluster, app) = stage().await;
    let settings = cluster.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let sibling = app.sibling(&settings).await;
    object(&cluster, "configmaps", "left", "gone");
    dry_run(&app.admin()).await;
    hour(&app);
    let (one, other) = (app.admin(), sibling.admin());
    let (one, other) = tokio::join!(run(&one), run(&other));
    assert_eq!(names(&one["removed"]).len() + names(&other["removed"]).len(), 1, "{one} {other}");
    assert_eq!(names(&report(&sibling.admin()).await["removed"]), ["left"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_for_admins_that_see_all() {
    let (_cluster, app) = stage().await;
    let reader = app.someone(&["projects:read", "projects:execute"]).await;
    reader.get("/gc/report").await.refusal(403, "FORBIDDEN");
    reader.post("/gc/run", json!({})).await.refusal(403, "FORBIDDEN");
    let bound = app.holder(json!({"name": "b", "scopes": ["admin"], "project_ids": ["kept"]})).await.0;
    bound.get("/gc/report").await.refusal(403, "FORBIDDEN");
    bound.post("/gc/run", json!({"dry_run": true})).await.refusal(403, "FORBIDDEN");
    app.admin().post("/gc/run", json!({"dry_run": "perhaps"})).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cluster_there_is_nothing() {
    let app = TestApp::start().await;
    for shown in [report(&app.admin()).await, run(&app.admin()).await] {
        assert_eq!(shown, json!({"orphans": [], "removed": []}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_found_makes_its_project_once_the_removal_is_over() {
    let (cluster, app) = stage().await;
    let api = app.admin();
    object(&cluster, "configmaps", "left", "found");
    dry_run(&api).await;
    hour(&app);
    let gate = cluster.hold("DELETE configmaps/left");
    let (running, ()) = tokio::join!(run(&api), async {
        gate.reached().await;
        cluster.pod("a", "found");
        gate.open();
    });
    assert_eq!(names(&running["removed"]), ["left"]);
    is(&api, "found", "running").await;
}

//! `deploy.apply` and its way back: what it made is removed, what it changed is what it was, whoever dies
//! and wherever it stopped.

use serde_json::{Value, json};

use super::{
    super::{
        sagas::{Stage, make, of, reaches, saga, show, step, until},
        support::{Api, FakeCluster, Ground, Server},
    },
    on,
};
use crate::jobs::and;

/// A server with the project `p`.
async fn stage() -> (FakeCluster, Stage) {
    let cluster = FakeCluster::start().await;
    let stage = Stage::around(on(&cluster, &[]).await).await;
    stage.app.project("p").await;
    (cluster, stage)
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn apply(manifest: Value) -> Value {
    step("apply", "deploy.apply", json!({"project_id": "p", "manifest": manifest}))
}

fn forced(manifest: Value) -> Value {
    step("apply", "deploy.apply", json!({"project_id": "p", "manifest": manifest, "force": true}))
}

async fn run(api: &Api, step: Value) -> String {
    make(api, saga(json!([step]))).await
}

async fn roll_back(api: &Api, id: &str) -> Value {
    api.post(&format!("/sagas/{id}/rollback"), json!({})).await.data(200);
    reaches(api, id, "compensated").await
}

/// What the step failed with.
async fn failure(api: &Api, id: &str) -> String {
    let failed = reaches(api, id, "failed").await;
    of(&failed, "apply")["error"].as_str().expect("an error").to_owned()
}

fn data(cluster: &FakeCluster, name: &str) -> Value {
    cluster.get("configmaps", name).map_or(Value::Null, |object| object["data"].clone())
}

/// As people see it: without versions.
fn seen(object: Option<Value>) -> Value {
    let mut object = object.unwrap_or_default();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("generation");
    }
    object
}

/// What the API refuses with.
async fn refused(api: &Api, config: Value) -> String {
    let error =
        api.post("/sagas", saga(json!([step("apply", "deploy.apply", config)]))).await.refusal(400, "VALIDATION");
    error["details"]["problems"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_applied_with_the_projects_labels_and_removed_again() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"token": "hush-hush"}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"mine": "yes"}},
        "spec": {"replicas": 1, "template": {"metadata": {"labels": {"app": "d"}}}}});
    let id = run(&api, apply(json!([map("a", json!({"k": "1"})), secret, deployment]))).await;
    let done = reaches(&api, &id, "completed").await;
    let applied = &of(&done, "apply")["output"]["applied"];
    let uid = cluster.get("configmaps", "a").expect("it is there")["metadata"]["uid"].clone();
    assert_eq!(
        applied[0],
        json!({"api_version": "v1", "kind": "ConfigMap", "name": "a", "uid": uid, "result": "created"})
    );
    assert_eq!((&applied[1]["kind"], &applied[2]["name"]), (&json!("Secret"), &json!("d")));
    assert!(!applied.to_string().contains("hush"), "{applied}");
    let log = api.get(&format!("/sagas/{id}/log")).await.data(200);
    assert!(!log.to_string().contains("hush"), "{log}");
    let made = cluster.get("deployments", "d").expect("it is there");
    let labels = &made["metadata"]["labels"];
    assert_eq!(
        (&labels["app.kubernetes.io/managed-by"], &labels["rdev.orchard9.ai/project-id"], &labels["mine"]),
        (&json!("rdev"), &json!("p"), &json!("yes"))
    );
    assert_eq!(made["spec"]["template"]["metadata"]["labels"], json!({"app": "d"}));
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "rdev");
    roll_back(&api, &id).await;
    assert!(cluster.names().is_empty(), "{:?}", cluster.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_is_put_back_as_it_was() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    let first = run(&api, apply(map("a", json!({"same": "0", "changed": "1", "goes": "2"})))).await;
    reaches(&api, &first, "completed").await;
    cluster.change("configmaps", "a", &json!({"data": {"theirs": "9"}, "immutable": false}), "somebody");
    let before = seen(cluster.get("configmaps", "a"));
    let second = run(&api, apply(map("a", json!({"same": "0", "changed": "x", "comes": "3"})))).await;
    let done = reaches(&api, &second, "completed").await;
    assert_eq!(of(&done, "apply")["output"]["applied"][0]["result"], "changed");
    assert_eq!(data(&cluster, "a"), json!({"same": "0", "changed": "x", "comes": "3", "theirs": "9"}));
    // What somebody else does to it in between stays.
    cluster.change("configmaps", "a", &json!({"metadata": {"labels": {"later": "yes"}}}), "somebody");
    roll_back(&api, &second).await;
    let mut after = seen(cluster.get("configmaps", "a"));
    assert_eq!(after["metadata"]["labels"].as_object_mut().unwrap().remove("later"), Some(json!("yes")));
    assert_eq!(after, before);
    // Its fields are rdev's as before: no conflict with itself, and what it does not say any more goes.
    let third = run(&api, apply(map("a", json!({"changed": "y"})))).await;
    reaches(&api, &third, "completed").await;
    assert_eq!(data(&cluster, "a"), json!({"changed": "y", "theirs": "9"}));
    let again = run(&api, apply(map("a", json!({"changed": "y"})))).await;
    assert_eq!(of(&reaches(&api, &again, "completed").await, "apply")["output"]["applied"][0]["result"], "unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn yaml_of_several_documents_is_a_manifest() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    let yaml = "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata: {k: \"${vars.k}\"}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: projects}\nspec: {ports: [{port: 80}]}\n";
    let body = and(saga(json!([apply(json!(yaml))])), json!({"vars": {"k": "v"}}));
    let id = make(&api, body).await;
    reaches(&api, &id, "completed").await;
    assert_eq!(
        (data(&cluster, "a"), cluster.names()),
        (json!({"k": "v"}), vec!["services/b".to_owned(), "configmaps/a".into()])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_applied_is_said_when_the_saga_is_made() {
    let (_cluster, stage) = stage().await;
    let api = stage.admin();
    let in_default =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "a"}});
    let mut thief = map("a", json!({}));
    thief["metadata"]["labels"] = json!({"rdev.orchard9.ai/name": "q"});
    for (manifest, why) in [
        (in_default, "must be in the namespace projects"),
        (role, "is in no namespace"),
        (thief, "must not have the label rdev.orchard9.ai/name"),
        (json!({"kind": "ConfigMap"}), "must have a metadata.name"),
        (json!([map("a", json!({})), map("a", json!({}))]), "is given twice"),
        (json!("a: ["), "is no YAML"),
        (json!([]), "at least one object"),
        (Value::Null, "is required"),
    ] {
        let said = refused(&api, json!({"project_id": "p", "manifest": manifest})).await;
        assert!(said.contains(why) && said.contains("steps[0].config.manifest"), "{said}");
    }
    let said = refused(&api, json!({"project_id": "p", "manifest": map("a", json!({})), "force": "perhaps"})).await;
    assert!(said.contains("config.force"), "{said}");
    // What is known only later fails the step.
    let mut later = map("a", json!({}));
    later["metadata"]["namespace"] = "${vars.where}".into();
    let body = and(saga(json!([apply(later)])), json!({"vars": {"where": "default"}}));
    let id = make(&api, body).await;
    assert!(failure(&api, &id).await.contains("must be in the namespace projects"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_manager_holds_is_named_and_taken_by_force() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    let before =
        seen(Some(cluster.somebodys("configmaps", map("a", json!({"k": "theirs", "more": "1"})), "kubectl-edit")));
    let id = run(&api, apply(json!([map("new", json!({})), map("a", json!({"k": "ours"}))]))).await;
    let why = failure(&api, &id).await;
    assert!(why.contains("kubectl-edit") && why.contains("ConfigMap a"), "{why}");
    assert_eq!(of(&show(&api, &id).await, "apply")["retry_count"], 0);
    // Nothing is changed unless all would be taken.
    assert_eq!(cluster.names(), ["configmaps/a"]);
    assert_eq!(seen(cluster.get("configmaps", "a")), before);
    let id = run(&api, forced(map("a", json!({"k": "ours"})))).await;
    reaches(&api, &id, "completed").await;
    assert_eq!(data(&cluster, "a"), json!({"k": "ours", "more": "1"}));
    roll_back(&api, &id).await;
    let mut after = seen(cluster.get("configmaps", "a"));
    for empty in ["labels", "annotations"] {
        let metadata = after["metadata"].as_object_mut().unwrap();
        assert!(metadata.remove(empty).is_none_or(|left| left == json!({})), "{metadata:?}");
    }
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_another_projects_stays_its_own() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    stage.app.project("q").await;
    cluster.object(
        "configmaps",
        "a",
        &[("app.kubernetes.io/managed-by", "rdev"), ("rdev.orchard9.ai/project-id", "q")],
    );
    let before = cluster.get("configmaps", "a");
    let id = run(&api, forced(map("a", json!({"k": "ours"})))).await;
    assert!(failure(&api, &id).await.contains("belongs to another project"));
    assert_eq!(cluster.get("configmaps", "a"), before);
    let bound = stage
        .app
        .holder(json!({"name": "b", "scopes": ["projects:execute", "projects:read"], "project_ids": ["q"]}))
        .await
        .0;
    let body = and(saga(json!([apply(map("b", json!({})))])), json!({"project_id": "q"}));
    let refused = bound.post("/sagas", body).await.refusal(400, "VALIDATION");
    assert!(refused.to_string().contains("project not found"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_was_applied_is_taken_back() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    cluster.somebodys("configmaps", map("old", json!({"k": "1"})), "somebody");
    cluster.answer("PATCH configmaps/bad", 422, "ConfigMap \"bad\" is invalid: data: too odd");
    let objects =
        json!([map("new", json!({})), map("old", json!({"l": "2"})), map("bad", json!({})), map("never", json!({}))]);
    let body = and(saga(json!([apply(objects)])), json!({"on_failure": "compensate"}));
    let id = make(&api, body).await;
    let back = reaches(&api, &id, "compensated").await;
    assert!(of(&back, "apply")["error"].as_str().unwrap().contains("too odd"), "{back}");
    assert_eq!((cluster.names(), data(&cluster, "old")), (vec!["configmaps/old".to_owned()], json!({"k": "1"})));
    assert!(!cluster.asked().iter().any(|asked| asked == "delete configmaps/never"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_lost_is_no_loss() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    cluster.lose_the_answer("PATCH configmaps/a");
    let id = run(&api, apply(map("a", json!({"k": "1"})))).await;
    let done = reaches(&api, &id, "completed").await;
    assert_eq!(
        (&of(&done, "apply")["retry_count"], &of(&done, "apply")["output"]["applied"][0]["result"]),
        (&json!(1), &json!("created"))
    );
    roll_back(&api, &id).await;
    assert!(cluster.names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_replaced_at_this_very_moment_is_looked_at_again() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    cluster.somebodys("configmaps", map("a", json!({"old": "1"})), "somebody");
    let gate = cluster.hold("PATCH configmaps/a");
    let id = run(&api, apply(map("a", json!({"k": "1"})))).await;
    gate.reached().await;
    cluster.delete("configmaps", "a");
    cluster.somebodys("configmaps", map("a", json!({"new": "2"})), "somebody");
    gate.open();
    let done = reaches(&api, &id, "completed").await;
    assert_eq!(of(&done, "apply")["retry_count"], 1);
    assert_eq!(data(&cluster, "a"), json!({"k": "1", "new": "2"}));
    roll_back(&api, &id).await;
    assert_eq!(data(&cluster, "a"), json!({"new": "2"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_took_an_objects_name_is_not_removed() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    let id = run(&api, apply(json!([map("a", json!({"k": "1"})), map("b", json!({}))]))).await;
    reaches(&api, &id, "completed").await;
    cluster.delete("configmaps", "a");
    cluster.somebodys("configmaps", map("a", json!({"k": "theirs"})), "somebody");
    roll_back(&api, &id).await;
    assert_eq!((cluster.names(), data(&cluster, "a")), (vec!["configmaps/a".to_owned()], json!({"k": "theirs"})));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_forbids_is_named_and_changes_nothing() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    cluster.forbid("patch", "services");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}});
    let id = run(&api, apply(json!([map("a", json!({})), service]))).await;
    assert!(failure(&api, &id).await.contains("patch services"));
    assert!(cluster.names().is_empty());
    let other = json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "g"}});
    let id = run(&api, apply(other)).await;
    let why = failure(&api, &id).await;
    assert!(why.contains("gadgets of example.com/v1"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_such_object_is_said_in_the_clusters_words_at_once() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    let words = "failed to create typed patch object: .spec.ports: element 0 omits key field \"protocol\"";
    cluster.answer("REHEARSE configmaps/a", 500, words);
    let id = run(&api, apply(map("a", json!({})))).await;
    let why = failure(&api, &id).await;
    assert!(why.contains("omits key field"), "{why}");
    assert_eq!(of(&show(&api, &id).await, "apply")["retry_count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_secret_shows_nothing_of_itself() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"token": "hush-hush"}});
    for what in ["REHEARSE secrets/s", "PATCH secrets/s"] {
        cluster.be_honest();
        cluster.answer(what, 422, "illegal base64 data near hush-hush");
        let id = run(&api, apply(secret.clone())).await;
        let why = failure(&api, &id).await;
        assert!(why.contains("refuses the Secret s") && !why.contains("hush"), "{why}");
        let log = api.get(&format!("/sagas/{id}/log")).await.data(200);
        assert!(!log.to_string().contains("hush"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_is_barred_is_tried_whole_and_again() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    let id = run(&api, apply(json!([map("a", json!({})), map("b", json!({}))]))).await;
    reaches(&api, &id, "completed").await;
    cluster.answer("DELETE configmaps/b", 403, "configmaps \"b\" is forbidden: not now");
    api.post(&format!("/sagas/{id}/rollback"), json!({})).await.data(200);
    let stuck = reaches(&api, &id, "stuck").await;
    assert!(of(&stuck, "apply")["compensation"]["error"].as_str().unwrap().contains("delete configmaps"), "{stuck}");
    assert_eq!(cluster.names(), ["configmaps/b"]);
    cluster.be_honest();
    roll_back(&api, &id).await;
    assert!(cluster.names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn undeploy_removes_what_is_the_projects_and_has_no_way_back() {
    let (cluster, stage) = stage().await;
    let api = stage.admin();
    cluster.somebodys("secrets", json!({"metadata": {"name": "theirs"}}), "somebody");
    let undeploy = step("undeploy", "deploy.undeploy", json!({"project_id": "p"}));
    let first = run(&api, apply(json!([map("a", json!({})), map("b", json!({}))]))).await;
    reaches(&api, &first, "completed").await;
    cluster.forbid("delete", "configmaps");
    let id = run(&api, undeploy.clone()).await;
    let failed = reaches(&api, &id, "failed").await;
    let why = of(&failed, "undeploy")["error"].as_str().expect("an error");
    assert!(why.contains("ConfigMap a") && why.contains("delete configmaps"), "{why}");
    cluster.allow_all();
    api.post(&format!("/sagas/{id}/retry"), json!({})).await.data(200);
    let done = reaches(&api, &id, "completed").await;
    let deleted = json!([{"kind": "ConfigMap", "name": "a"}, {"kind": "ConfigMap", "name": "b"}]);
    assert_eq!(of(&done, "undeploy")["output"], json!({"deleted": deleted}));
    assert_eq!(cluster.names(), ["secrets/theirs"]);
    roll_back(&api, &id).await;
    assert_eq!(cluster.names(), ["secrets/theirs"]);
    // Of what is gone the way back is nothing to do.
    roll_back(&api, &first).await;
}

/// A server as a process of its own, with the project `p`.
async fn killable() -> (FakeCluster, std::sync::Arc<Ground>, Server) {
    let (cluster, ground) = (FakeCluster::start().await, Ground::new().await);
    let server = start(&cluster, &ground).await;
    server.admin().post("/projects", json!({"id": "p"})).await.data(201);
    (cluster, ground, server)
}

async fn start(cluster: &FakeCluster, ground: &std::sync::Arc<Ground>) -> Server {
    let settings = cluster.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Server::start(ground, &settings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_half_way_is_followed_by_one_that_goes_on() {
    let (cluster, ground, server) = killable().await;
    cluster.somebodys("configmaps", map("old", json!({"k": "1"})), "somebody");
    let gate = cluster.hold("PATCH configmaps/b");
    let objects = json!([map("a", json!({"k": "1"})), map("old", json!({"l": "2"})), map("b", json!({}))]);
    let id = run(&server.admin(), apply(objects)).await;
    gate.reached().await;
    assert_eq!(cluster.names(), ["configmaps/a", "configmaps/old"]);
    server.kill().await;
    gate.open();
    let server = start(&cluster, &ground).await;
    let api = server.admin();
    let done = until(&api, &id, "the saga to be completed", |saga| saga["status"] == "completed").await;
    let results: Vec<_> = of(&done, "apply")["output"]["applied"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["result"].as_str().unwrap())
        .collect();
    assert_eq!(results, ["created", "changed", "created"]);
    roll_back(&api, &id).await;
    assert_eq!((cluster.names(), data(&cluster, "old")), (vec!["configmaps/old".to_owned()], json!({"k": "1"})));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_half_way_is_followed_by_one_that_takes_it_back() {
    let (cluster, ground, server) = killable().await;
    let gate = cluster.hold("PATCH configmaps/b");
    cluster.answer("PATCH configmaps/b", 422, "no");
    let body = and(
        saga(json!([apply(json!([map("a", json!({})), map("b", json!({}))]))])),
        json!({"on_failure": "compensate"}),
    );
    let id = make(&server.admin(), body).await;
    gate.reached().await;
    server.kill().await;
    gate.open();
    let removing = cluster.hold("DELETE configmaps/a");
    let server = start(&cluster, &ground).await;
    removing.reached().await;
    server.kill().await;
    removing.open();
    let server = start(&cluster, &ground).await;
    reaches(&server.admin(), &id, "compensated").await;
    assert!(cluster.names().is_empty(), "{:?}", cluster.names());
}

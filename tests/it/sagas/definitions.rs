//! Plans, which run nothing, and definitions, which have versions.

use http::Method;
use serde_json::{Value, json};

use super::{Stage, after, noop, refusals::refused_at, saga};
use crate::{
    jobs::and,
    support::{Api, Reply},
};

async fn put(api: &Api, name: &str, body: Value) -> Reply {
    api.send(Method::PUT, &format!("/saga-definitions/{name}"), Some(body.to_string()), &[]).await
}

async fn put_yaml(api: &Api, name: &str, text: &str) -> Reply {
    let headers = [("content-type", "application/yaml")];
    api.send(Method::PUT, &format!("/saga-definitions/{name}"), Some(text.to_owned()), &headers).await
}

/// Names within each group, in the order of the alphabet.
fn sorted(groups: &Value) -> Vec<Vec<&str>> {
    let groups = groups.as_array().expect("groups").iter();
    let mut sorted: Vec<Vec<_>> = groups
        .map(|group| group.as_array().expect("a group").iter().map(|name| name.as_str().unwrap()).collect())
        .collect();
    for group in &mut sorted {
        group.sort_unstable();
    }
    sorted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_shows_the_order_and_runs_nothing() {
    let stage = Stage::new().await;
    let steps = json!([
        after(&["b", "c"], stage.undone("d")),
        after(&["a"], stage.undone("b")),
        after(&["a"], stage.undone("c")),
        stage.undone("a"),
    ]);
    let plan = stage.admin().post("/sagas/plan", saga(steps)).await.data(200);
    let order: Vec<_> = plan["order"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!((order.len(), order.first(), order.last()), (4, Some(&"a"), Some(&"d")));
    assert_eq!(sorted(&plan["groups"]), [vec!["a"], vec!["b", "c"], vec!["d"]]);
    assert_eq!(sorted(&plan["compensation_order"]), [vec!["d"], vec!["b", "c"], vec!["a"]]);
    assert!(plan["warnings"].as_array().unwrap().iter().all(Value::is_string), "{plan}");
    assert_eq!(stage.admin().get("/sagas").await.data(200), json!([]));
    assert_eq!(stage.out.listener.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_without_needs_is_a_line() {
    let stage = Stage::new().await;
    let steps = json!([stage.undone("x"), stage.undone("a"), stage.undone("m")]);
    let reader = stage.app.someone(&["projects:read"]).await;
    let plan = reader.post("/sagas/plan", saga(steps)).await.data(200);
    assert_eq!(plan["order"], json!(["x", "a", "m"]));
    assert_eq!(plan["groups"], json!([["x"], ["a"], ["m"]]));
    assert_eq!(plan["compensation_order"], json!([["m"], ["a"], ["x"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_can_be_planned() {
    let stage = Stage::new().await;
    put(&stage.admin(), "two", json!({"steps": [noop("a", json!(1)), noop("b", json!(2))]})).await.data(201);
    let plan = stage.admin().post("/sagas/plan", json!({"name": "s", "definition": "two"})).await.data(200);
    assert_eq!(plan["order"], json!(["a", "b"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_gets_a_new_version_each_time() {
    let stage = Stage::new().await;
    let admin = stage.admin();
    let body = |text: &str| json!({"steps": [noop("a", json!(text))], "description": text});
    let first = put(&admin, "d", body("one")).await.data(201);
    assert_eq!((&first["name"], &first["version"]), (&json!("d"), &json!(1)));
    for (version, text) in [(2, "two"), (3, "two"), (4, "four")] {
        let next = put(&admin, "d", body(text)).await.data(200);
        assert_eq!((&next["version"], &next["description"]), (&json!(version), &json!(text)));
    }
    let shown = admin.get("/saga-definitions/d").await.data(200);
    assert_eq!((&shown["version"], &shown["description"]), (&json!(4), &json!("four")));
    assert_eq!(shown["steps"][0]["config"], json!({"output": "four"}));
    admin.get("/saga-definitions/nobody").await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_listed_in_their_newest_version() {
    let stage = Stage::new().await;
    let admin = stage.admin();
    assert_eq!(admin.get("/saga-definitions").await.data(200)["saga_definitions"], json!([]));
    for (name, status) in [("a", 201), ("b", 201), ("b", 200)] {
        put(&admin, name, json!({"steps": [noop("x", json!(1))]})).await.data(status);
    }
    let all = admin.get("/saga-definitions").await.data(200)["saga_definitions"].as_array().unwrap().clone();
    let mut listed: Vec<_> = all.iter().map(|one| (one["name"].as_str(), one["version"].as_i64())).collect();
    listed.sort_unstable();
    assert_eq!(listed, [(Some("a"), Some(1)), (Some("b"), Some(2))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_may_be_yaml() {
    let stage = Stage::new().await;
    let text = format!(
        "description: in two steps\nsteps:\n  - name: a\n    action: noop\n    config:\n      output: {{n: 7}}\n  \
         - name: b\n    action: http.request\n    depends_on: [a]\n    config:\n      method: POST\n      \
         url: {}\n      body:\n        n: ${{steps.a.output.n}}\n        who: \"${{vars.who}}\"\n",
        stage.out.at("/b")
    );
    let made = put_yaml(&stage.admin(), "d", &text).await.data(201);
    assert_eq!((&made["version"], &made["description"]), (&json!(1), &json!("in two steps")));
    let id = stage.make(json!({"name": "s", "definition": "d", "vars": {"who": "me"}})).await;
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.to("/b")[0].json(), json!({"n": 7, "who": "me"}));
    put(&stage.admin(), "d", json!({"steps": [noop("a", json!(1))]})).await.data(200);
    for text in ["steps: [", "steps:\n\t- x", "- a\n- b", "5"] {
        let reply = put_yaml(&stage.admin(), "d", text).await;
        assert_eq!(reply.status, 400, "{text}: {}", reply.text);
    }
    assert_eq!(stage.admin().get("/saga-definitions/d").await.data(200)["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_keeps_the_version_it_began_with() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/a");
    let version = |path: &str| json!({"steps": [stage.call("a", "/a"), stage.call("b", path)]});
    put(&stage.admin(), "d", version("/old")).await.data(201);
    let old = stage.make(json!({"name": "s", "definition": "d"})).await;
    stage.out.received("/a", 1).await;
    put(&stage.admin(), "d", version("/new")).await.data(200);
    let new = stage.make(json!({"name": "s", "definition": "d"})).await;
    gate.open();
    for id in [&old, &new] {
        stage.reaches(id, "completed").await;
    }
    assert_eq!((stage.out.to("/old").len(), stage.out.to("/new").len()), (1, 1));
    let url = |saga: Value| saga["steps"][1]["config"]["url"].as_str().unwrap().to_owned();
    assert_eq!(url(stage.show(&old).await), stage.out.at("/old"));
    assert_eq!(url(stage.show(&new).await), stage.out.at("/new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definitions_vars_are_checked_when_a_saga_is_made() {
    let stage = Stage::new().await;
    put(&stage.admin(), "d", json!({"steps": [noop("a", json!("for ${vars.who}"))]})).await.data(201);
    let body = json!({"name": "s", "definition": "d"});
    for vars in [json!({}), json!({"whom": "me"})] {
        let refused = stage.admin().post("/sagas", and(body.clone(), json!({"vars": vars}))).await;
        let error = refused.refusal(400, "VALIDATION");
        assert!(error["details"]["problems"].to_string().contains("who"), "{error}");
    }
    let id = stage.make(and(body, json!({"vars": {"who": "me"}}))).await;
    assert_eq!(stage.reaches(&id, "completed").await["outputs"]["a"], "for me");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_is_checked_like_a_saga() {
    let stage = Stage::new().await;
    let steps = json!([{"name": "a"}, after(&["nobody"], noop("b", json!(1))), noop("b", json!("${steps.c.output}"))]);
    let reply = put(&stage.admin(), "d", json!({"steps": steps})).await;
    refused_at(&reply, &["steps[0].action", "steps[1].depends_on", "steps[2].name", "steps[2].config"]);
    refused_at(&put(&stage.admin(), "d", json!({})).await, &["steps"]);
    stage.admin().get("/saga-definitions/d").await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_projects_reads_definitions_and_admins_write_them() {
    let stage = Stage::new().await;
    let body = json!({"steps": [noop("a", json!(1))]});
    let (reader, worker) =
        (stage.app.someone(&["projects:read"]).await, stage.app.someone(&["projects:execute"]).await);
    for api in [&reader, &worker] {
        put(api, "d", body.clone()).await.refusal(403, "FORBIDDEN");
    }
    put(&stage.admin(), "d", body).await.data(201);
    reader.get("/saga-definitions/d").await.data(200);
    reader.get("/saga-definitions").await.data(200);
    worker.get("/saga-definitions").await.refusal(403, "FORBIDDEN");
}

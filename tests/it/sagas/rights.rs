//! Whose sagas they are, who may do what, and what is never shown.

use http::Method;
use serde_json::{Value, json};

use super::{Stage, noop, of, retried, saga, step};
use crate::{
    jobs::and,
    support::{Api, TestApp, sink::Refusing},
};

async fn with_projects(own: TestApp) -> Stage {
    let stage = Stage::around(own).await;
    for project in ["p", "q"] {
        stage.app.project(project).await;
    }
    stage
}

async fn bound_to(stage: &Stage, project: &str) -> Api {
    let body = json!({"name": "bound", "scopes": ["projects:read", "projects:execute"], "project_ids": [project]});
    stage.app.holder(body).await.0
}

fn in_project(project: &str, steps: Value) -> Value {
    and(saga(steps), json!({"project_id": project}))
}

async fn reachable() -> TestApp {
    TestApp::with(&[super::REACHABLE]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_needs_its_scope() {
    let stage = with_projects(reachable().await).await;
    let id = stage.run(json!([noop("a", json!(1))])).await;
    stage.reaches(&id, "completed").await;
    let body = saga(json!([noop("a", json!(1))]));
    let reader = stage.app.someone(&["projects:read"]).await;
    let others = stage.app.someone(&["sessions:read", "sessions:execute", "jobs:read", "jobs:execute"]).await;
    for api in [&reader, &others] {
        let error = api.post("/sagas", body.clone()).await.refusal(403, "FORBIDDEN");
        assert_eq!(error["details"]["required_any"], json!(["projects:execute"]));
        api.delete(&format!("/sagas/{id}")).await.refusal(403, "FORBIDDEN");
        for call in ["retry", "rollback", "cancel", "steps/a/retry", "steps/a/skip", "approvals/a"] {
            api.post(&format!("/sagas/{id}/{call}"), json!({})).await.refusal(403, "FORBIDDEN");
        }
    }
    for path in ["", "/events", "/log"] {
        others.get(&format!("/sagas/{id}{path}")).await.refusal(403, "FORBIDDEN");
        stage.app.nobody().get(&format!("/sagas/{id}{path}")).await.refusal(401, "UNAUTHORIZED");
    }
    others.get("/sagas").await.refusal(403, "FORBIDDEN");
    others.post("/sagas/plan", body.clone()).await.refusal(403, "FORBIDDEN");
    stage.app.nobody().post("/sagas", body).await.refusal(401, "UNAUTHORIZED");
    assert_eq!(reader.get(&format!("/sagas/{id}")).await.data(200)["status"], "completed");
    reader.get(&format!("/sagas/{id}/log")).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_key_sees_the_sagas_of_its_projects_alone() {
    let stage = with_projects(reachable().await).await;
    let own = bound_to(&stage, "p").await;
    let mine = super::make(&own, in_project("p", json!([noop("a", json!(1))]))).await;
    let foreign = stage.make(in_project("q", json!([stage.call("a", "/status/409")]))).await;
    let nobodys = stage.run(json!([stage.call("a", "/status/409")])).await;
    super::reaches(&own, &mine, "completed").await;
    for id in [&foreign, &nobodys] {
        stage.reaches(id, "failed").await;
        for path in ["", "/events", "/log"] {
            own.get(&format!("/sagas/{id}{path}")).await.refused(404, "NOT_FOUND", "saga not found");
        }
        for call in ["retry", "rollback", "cancel", "steps/a/retry", "steps/a/skip"] {
            let reply = own.post(&format!("/sagas/{id}/{call}"), json!({})).await;
            reply.refused(404, "NOT_FOUND", "saga not found");
        }
        own.delete(&format!("/sagas/{id}")).await.refused(404, "NOT_FOUND", "saga not found");
        assert_eq!(stage.show(id).await["status"], "failed");
    }
    for query in ["", "?project_id=q", "?status=failed"] {
        let seen = own.get(&format!("/sagas{query}")).await.data(200);
        assert!(seen.as_array().unwrap().iter().all(|saga| saga["id"] == mine), "{query}: {seen}");
    }
    assert_eq!(own.get("/sagas").await.data(200).as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_is_made_in_a_project_that_its_key_may_see() {
    let stage = with_projects(reachable().await).await;
    let own = bound_to(&stage, "p").await;
    let steps = || json!([noop("a", json!(1))]);
    own.post("/sagas", in_project("q", steps())).await.refused(404, "NOT_FOUND", "project not found");
    stage.admin().post("/sagas", in_project("r", steps())).await.refused(404, "NOT_FOUND", "project not found");
    assert_eq!(stage.admin().get("/sagas").await.data(200), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_keys_saga_does_nothing_in_another_project() {
    let stage = with_projects(reachable().await).await;
    let own = bound_to(&stage, "p").await;
    let elsewhere = |action: &str, config: Value| {
        json!([
            noop("a", json!({"project": "q"})),
            retried(step("b", action, and(config, json!({"project_id": "${steps.a.output.project}"}))), 1),
        ])
    };
    for (action, config) in [
        ("command.run", json!({"script": "touch touched"})),
        ("checkout.create", json!({"new_branch": "b"})),
        ("session.create", json!({"new_branch": "b"})),
    ] {
        let id = super::make(&own, in_project("p", elsewhere(action, config))).await;
        let saga = super::reaches(&own, &id, "failed").await;
        assert_eq!(of(&saga, "b")["status"], "failed", "{action}");
    }
    let open = json!([step("b", "command.run", json!({"project_id": "q", "script": "touch touched"}))]);
    let reply = own.post("/sagas", in_project("p", open)).await;
    if reply.status == 201 {
        let id = reply.data(201)["id"].as_str().unwrap().to_owned();
        super::reaches(&own, &id, "failed").await;
    }
    for (list, field) in [("commands", "commands"), ("checkout", "checkouts"), ("sessions", "sessions")] {
        let found = stage.admin().get(&format!("/projects/q/{list}")).await.data(200);
        assert_eq!(found[field], json!([]), "{list}");
    }
}

/// A call with a secret beside what everybody may see.
fn secretive(stage: &Stage, path: &str) -> Value {
    let mut call = stage.call("a", path);
    call["config"]["headers"] = json!({"x-plain": "visible"});
    call["config"]["secret_headers"] = json!({"Authorization": "Bearer s3cret-of-mine"});
    call
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_header_is_sent_and_never_shown() {
    let stage = Stage::new().await;
    let undo = json!({"method": "POST", "url": stage.out.at("/undo"),
        "secret_headers": {"X-Token": "another-s3cret-of-mine"}});
    let call = and(secretive(&stage, "/a"), json!({"compensate": "http.request", "compensate_config": undo}));
    let failing = and(secretive(&stage, "/status/500"), json!({"name": "b"}));
    let body = saga(json!([call, retried(failing, 1)]));
    let made = stage.admin().once("k", "/sagas", body.clone()).await;
    let id = made.data(201)["id"].as_str().unwrap().to_owned();
    stage.reaches(&id, "failed").await;
    let rolled_back = stage.tell(&id, "rollback", json!({})).await;
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(of(&saga, "a")["config"]["headers"]["x-plain"], "visible");
    assert_eq!(stage.out.to("/a")[0].header("authorization"), Some("Bearer s3cret-of-mine"));
    assert_eq!(stage.out.to("/undo")[0].header("x-token"), Some("another-s3cret-of-mine"));
    let mut texts = vec![made.text, rolled_back.text, saga.to_string()];
    texts.push(stage.admin().once("k", "/sagas", body.clone()).await.text);
    texts.push(stage.admin().post("/sagas/plan", body).await.text);
    for path in ["/sagas".to_owned(), format!("/sagas/{id}/log")] {
        texts.push(stage.admin().get(&path).await.text);
    }
    let events = stage.app.listen(&format!("/sagas/{id}/events?after=0")).await.rest().await;
    texts.push(format!("{events:?}"));
    for text in texts {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definitions_secrets_are_kept_and_never_shown() {
    let stage = Stage::new().await;
    let body = json!({"steps": [secretive(&stage, "/a")]}).to_string();
    let put = stage.admin().send(Method::PUT, "/saga-definitions/d", Some(body), &[]).await;
    put.data(201);
    let listed = stage.admin().get("/saga-definitions").await;
    let shown = stage.admin().get("/saga-definitions/d").await;
    let id = stage.make(json!({"name": "s", "definition": "d"})).await;
    let saga = stage.reaches(&id, "completed").await;
    for text in [put.text, listed.text, shown.text, saga.to_string()] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert_eq!(stage.out.to("/a")[0].header("authorization"), Some("Bearer s3cret-of-mine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_not_called_unless_it_is_allowed() {
    let stage = Stage::around(TestApp::start().await).await;
    let port = stage.out.port().to_owned();
    for host in ["127.0.0.1", "127.1", "localhost", "[::1]", "0x7f.1"] {
        let private = format!("http://{host}:{port}/a");
        for url in [private.as_str(), "${steps.a.output}"] {
            let call = retried(step("b", "http.request", json!({"method": "GET", "url": url})), 2);
            let reply = stage.admin().post("/sagas", saga(json!([noop("a", json!(private)), call]))).await;
            // What is seen at once may be refused at once.
            if reply.status == 400 {
                reply.refusal(400, "VALIDATION");
                continue;
            }
            let id = reply.data(201)["id"].as_str().unwrap().to_owned();
            let saga = stage.reaches(&id, "failed").await;
            assert_eq!(
                (&of(&saga, "b")["status"], &of(&saga, "b")["retry_count"]),
                (&json!("failed"), &json!(0)),
                "{url}"
            );
        }
    }
    assert_eq!(stage.out.listener.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_at_a_private_address_is_not_asked_either() {
    let stage = Stage::around(TestApp::start().await).await;
    for url in [stage.out.url.clone(), Refusing::new().url] {
        let steps = json!([retried(step("r", "registry.preflight", json!({"url": url})), 0)]);
        let reply = stage.admin().post("/sagas", saga(steps)).await;
        if reply.status == 201 {
            stage.reaches(reply.data(201)["id"].as_str().unwrap(), "failed").await;
        }
    }
    assert_eq!(stage.out.listener.connections(), 0);
}

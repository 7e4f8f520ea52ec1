//! How a saga is made and in which order its steps run; the list, and the end of a saga at rest.

use serde_json::{Value, json};

use super::{Stage, after, noop, of, saga, statuses, step};
use crate::{
    jobs::and,
    support::{Gate, eventually},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_saga_is_answered_whole() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/a");
    let steps = json!([stage.call("a", "/a"), stage.undone("b")]);
    let body = json!({"name": "deploy", "steps": steps, "max_retries": 5, "on_failure": "compensate"});
    let made = stage.admin().post("/sagas", body).await.data(201);
    let me = stage.admin().get("/whoami").await.data(200);
    assert_eq!((&made["name"], &made["max_retries"], &made["retry_count"]), (&json!("deploy"), &json!(5), &json!(0)));
    assert_eq!((&made["on_failure"], &made["created_by"]), (&json!("compensate"), &me["id"]));
    assert!(["pending", "running"].contains(&made["status"].as_str().unwrap()), "{made}");
    let id = uuid::Uuid::parse_str(made["id"].as_str().unwrap()).unwrap();
    assert_eq!(id.get_version_num(), 7);
    for field in ["created_at", "updated_at"] {
        assert!(made[field].as_str().is_some_and(|at| at.ends_with('Z')), "{field}: {made}");
    }
    for absent in ["error", "completed_at", "project_id"] {
        assert_eq!(made.get(absent), None, "{made}");
    }
    let b = of(&made, "b");
    assert_eq!((&b["status"], &b["action"], &b["retry_count"]), (&json!("pending"), &json!("http.request"), &json!(0)));
    assert_eq!((&b["compensate"], &b["idempotent"]), (&json!("http.request"), &json!(true)));
    assert!(b["id"].is_string() && b["config"]["url"].is_string() && b["retry_policy"]["max_retries"] == 3, "{b}");
    for absent in ["output", "error", "started_at", "completed_at", "when", "compensation"] {
        assert_eq!(b.get(absent), None, "{b}");
    }
    gate.open();
    let done = stage.reaches(made["id"].as_str().unwrap(), "completed").await;
    assert!(done["completed_at"].is_string() && of(&done, "a")["completed_at"].is_string(), "{done}");
    assert_eq!(of(&done, "a")["id"], of(&made, "a")["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_without_needs_run_one_after_the_other() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/b");
    let id = stage.run(json!([stage.call("a", "/a"), stage.call("b", "/b"), stage.call("c", "/c")])).await;
    stage.out.received("/b", 1).await;
    let saga = stage.step_reaches(&id, "b", "running").await;
    assert_eq!((&saga["status"], &saga["current_step"]), (&json!("running"), &json!("b")));
    assert_eq!(statuses(&saga), ["completed", "running", "pending"]);
    gate.open();
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.order(), ["/a", "/b", "/c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_begins_as_soon_as_what_it_needs_is_done() {
    let stage = Stage::new().await;
    let (b, d) = (stage.out.hold("/b"), stage.out.hold("/d"));
    let steps = json!([
        after(&["b", "c"], stage.call("e", "/e")),
        stage.call("a", "/a"),
        after(&["a"], stage.call("b", "/b")),
        after(&["a"], stage.call("c", "/c")),
        stage.call("d", "/d"),
    ]);
    let id = stage.run(steps).await;
    stage.out.received("/b", 1).await;
    stage.out.received("/d", 1).await;
    let saga = stage.step_reaches(&id, "c", "completed").await;
    assert_eq!(
        (statuses(&saga), stage.out.to("/e").len()),
        (vec!["pending", "completed", "running", "completed", "running"], 0)
    );
    b.open();
    stage.step_reaches(&id, "e", "completed").await;
    d.open();
    stage.reaches(&id, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_steps_are_at_work_at_once_and_the_next_begins_when_one_ends() {
    let stage = Stage::new().await;
    let paths: Vec<String> = (0..20).map(|n| format!("/p/{n}")).collect();
    let gates: Vec<Gate> = paths.iter().map(|path| stage.out.hold(path)).collect();
    let names: Vec<String> = (0..20).map(|n| format!("p{n}")).collect();
    let mut steps: Vec<Value> = names.iter().zip(&paths).map(|(name, path)| stage.call(name, path)).collect();
    steps.push(and(noop("all", json!(1)), json!({"depends_on": names})));
    let id = stage.run(json!(steps)).await;
    for ended in 0..=4 {
        let open = eventually("sixteen calls", async || {
            Some(stage.out.open(&paths)).filter(|open| open.len() == 16 && stage.out.requests().len() >= 16 + ended)
        });
        let open = open.await;
        assert_eq!(stage.out.requests().len(), 16 + ended);
        let first = paths.iter().position(|path| *path == open[0]).unwrap();
        gates[first].open();
    }
    gates.iter().for_each(Gate::open);
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.out.requests().len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_steps_are_carried_out() {
    let stage = Stage::new().await;
    let steps: Vec<Value> = (0..1_000).map(|n| noop(&format!("s{n}"), json!({"n": n}))).collect();
    let id = stage.run(json!(steps)).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(saga["outputs"].as_object().unwrap().len(), 1_000);
    assert_eq!(of(&saga, "s999")["output"], json!({"n": 999}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_saga_shows_what_came_of_each_step() {
    let stage = Stage::new().await;
    let id = stage.run(json!([noop("a", json!({"x": [1, null]})), stage.call("b", "/echo/b")])).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(
        (&saga["outputs"]["a"], &of(&saga, "a")["output"]),
        (&json!({"x": [1, null]}), &json!({"x": [1, null]}))
    );
    let b = &saga["outputs"]["b"];
    assert_eq!((&b["status"], &b["body"]["path"]), (&json!(200), &json!("/echo/b")));
    assert!(b["headers"]["content-type"].as_str().is_some_and(|kind| kind.starts_with("application/json")), "{b}");
    assert_eq!((saga.get("error"), saga.get("current_step")), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_an_array_with_the_newest_first() {
    let stage = Stage::new().await;
    stage.app.project("p").await;
    let mut ids = Vec::new();
    for (name, path, project) in [("x", "/ok", json!("p")), ("y", "/status/409", json!("p")), ("x", "/ok", json!(null))]
    {
        let body = json!({"name": name, "steps": [stage.call("a", path)], "project_id": project});
        ids.push(stage.make(body).await);
    }
    for (id, status) in ids.iter().zip(["completed", "failed", "completed"]) {
        stage.reaches(id, status).await;
    }
    let (x, y, z) = (ids[0].as_str(), ids[1].as_str(), ids[2].as_str());
    for (query, expected) in [
        ("", &[z, y, x][..]),
        ("?name=x", &[z, x]),
        ("?status=failed", &[y]),
        ("?project_id=p", &[y, x]),
        ("?project_id=p&name=x&status=completed", &[x]),
        ("?name=nobody", &[]),
    ] {
        let all = stage.admin().get(&format!("/sagas{query}")).await.data(200);
        let listed: Vec<_> =
            all.as_array().expect("a bare array").iter().map(|one| one["id"].as_str().unwrap()).collect();
        assert_eq!(listed, expected, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_read_page_by_page() {
    let stage = Stage::new().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(stage.run(json!([noop("a", json!(1))])).await);
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let more = cursor.map_or_else(String::new, |cursor: String| format!("&cursor={cursor}"));
        let page = stage.admin().get(&format!("/sagas?limit=2&name=s{more}")).await;
        let ids = page.data(200).as_array().unwrap().clone();
        assert!(ids.len() <= 2);
        seen.extend(ids.iter().map(|saga| saga["id"].as_str().unwrap().to_owned()));
        cursor = page.cursor();
        if cursor.is_none() {
            break;
        }
    }
    made.reverse();
    assert_eq!(seen, made);
    for query in ["limit=0", "limit=201", "limit=x", "cursor=nonsense"] {
        stage.admin().get(&format!("/sagas?{query}")).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_at_work_cannot_be_deleted_and_one_at_rest_can() {
    let stage = Stage::new().await;
    let (forwards, backwards) = (stage.out.hold("/a"), stage.out.hold("/undo/b"));
    let running = stage.run(json!([stage.call("a", "/a")])).await;
    let waiting = stage.run(json!([step("ask", "approval.request", json!({"message": "well?"}))])).await;
    let body =
        and(saga(json!([stage.undone("b"), stage.call("c", "/status/409")])), json!({"on_failure": "compensate"}));
    let compensating = stage.make(body).await;
    for (id, status) in [(&running, "running"), (&waiting, "waiting"), (&compensating, "compensating")] {
        stage.reaches(id, status).await;
        stage.admin().delete(&format!("/sagas/{id}")).await.refusal(409, "SAGA_RUNNING");
        assert_eq!(stage.show(id).await["status"], status);
    }
    forwards.open();
    backwards.open();
    stage.tell(&waiting, "approvals/ask", json!({"decision": "approve"})).await.data(200);
    for (id, status) in [(&running, "completed"), (&waiting, "completed"), (&compensating, "compensated")] {
        stage.reaches(id, status).await;
        let path = format!("/sagas/{id}");
        assert_eq!(stage.admin().delete(&path).await.data(200), json!({"status": "deleted", "id": id}));
        stage.admin().get(&path).await.refused(404, "NOT_FOUND", "saga not found");
        stage.admin().delete(&path).await.refused(404, "NOT_FOUND", "saga not found");
    }
    assert_eq!(stage.admin().get("/sagas").await.data(200), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_makes_one_saga() {
    let stage = Stage::new().await;
    let body = saga(json!([stage.call("a", "/a")]));
    let first = stage.admin().once("k", "/sagas", body.clone()).await;
    let id = first.data(201)["id"].as_str().unwrap().to_owned();
    let again = stage.admin().once("k", "/sagas", body.clone()).await;
    assert_eq!((again.data(201)["id"].as_str(), again.header("idempotent-replayed")), (Some(id.as_str()), "true"));
    stage.reaches(&id, "completed").await;
    assert_eq!(stage.admin().get("/sagas").await.data(200).as_array().unwrap().len(), 1);
    assert_eq!(stage.out.requests().len(), 1);
    let other = and(body, json!({"name": "other"}));
    stage.admin().once("k", "/sagas", other).await.refusal(422, "IDEMPOTENCY_KEY_REUSED");
}

//! What is no saga: refused before anything runs, with all that is wrong at once.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use super::{REACHABLE, after, noop, saga, step};
use crate::{
    jobs::and,
    support::{Reply, TestApp},
};

/// Path and message of each problem.
#[track_caller]
pub fn problems(reply: &Reply) -> Vec<(String, String)> {
    let error = reply.refusal(400, "VALIDATION");
    let all = error["details"]["problems"].as_array().unwrap_or_else(|| panic!("no problems: {error}"));
    let text = |problem: &Value, field: &str| problem[field].as_str().expect(field).to_owned();
    let all: Vec<_> = all.iter().map(|problem| (text(problem, "path"), text(problem, "message"))).collect();
    assert!(!all.is_empty() && all.iter().all(|(_, message)| !message.is_empty()), "{error}");
    all
}

/// `steps[1].config.url` is below `steps[1].config`.
fn is_at(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Each of these places has a problem, and no other place has one.
#[track_caller]
pub fn refused_at(reply: &Reply, places: &[&str]) {
    let found = problems(reply);
    for place in places {
        assert!(found.iter().any(|(path, _)| is_at(path, place)), "nothing at {place}: {found:?}");
    }
    for (path, _) in &found {
        assert!(places.iter().any(|place| is_at(path, place)), "{path} is well: {found:?}");
    }
}

async fn app() -> TestApp {
    TestApp::with(&[REACHABLE]).await
}

/// Refuses each body at its place, and has made nothing of any.
async fn all_refused(app: &TestApp, cases: &[(Value, &[&str])]) {
    for (body, places) in cases {
        let reply = app.admin().post("/sagas", body.clone()).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.text);
        refused_at(&reply, places);
        refused_at(&app.admin().post("/sagas/plan", body.clone()).await, places);
    }
    assert_eq!(app.admin().get("/sagas").await.data(200), json!([]));
}

fn one(step: Value) -> Value {
    saga(json!([step]))
}

fn acting(action: &str, config: Value) -> Value {
    one(step("a", action, config))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_needs_a_name_and_steps_from_one_source() {
    let app = app().await;
    let steps = json!([noop("a", json!(1))]);
    let cases: [(Value, &[&str]); 7] = [
        (json!({"steps": steps}), &["name"]),
        (json!({"name": "", "steps": steps}), &["name"]),
        (json!({"name": "s"}), &["steps"]),
        (json!({"name": "s", "steps": []}), &["steps"]),
        (json!({}), &["name", "steps"]),
        (json!({"name": "s", "definition": "nobody"}), &["definition"]),
        (and(saga(steps), json!({"max_retries": 101})), &["max_retries"]),
    ];
    all_refused(&app, &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_and_steps_exclude_each_other() {
    let app = app().await;
    let body = json!({"steps": [noop("a", json!(1))]});
    app.admin().send(Method::PUT, "/saga-definitions/d", Some(body.to_string()), &[]).await.data(201);
    let both = and(saga(json!([noop("a", json!(1))])), json!({"definition": "d"}));
    let found = problems(&app.admin().post("/sagas", both).await);
    assert!(found.iter().all(|(path, _)| path == "definition" || path == "steps"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_told_at_once() {
    let app = app().await;
    let good = || noop("good", json!(1));
    let steps = json!([
        noop("a", json!(1)),
        {"action": "noop"},
        {"name": "b"},
        noop("a", json!(1)),
        after(&["nobody"], noop("c", json!(1))),
        after(&["d"], noop("d", json!(1))),
        {"name": "e", "action": "make.coffee"},
        and(noop("f", json!(1)), json!({"compensate": "drink.coffee"})),
        step("g", "http.request", json!({"method": "GET"})),
        step("h", "noop", json!({"output": "${vars.nobody}"})),
        and(noop("i", json!(1)), json!({"retry_policy": {"max_retries": 101}})),
        good(),
    ]);
    let places = [
        "name",
        "steps[1].name",
        "steps[2].action",
        "steps[3].name",
        "steps[4].depends_on",
        "steps[5].depends_on",
        "steps[6].action",
        "steps[7].compensate",
        "steps[8].config",
        "steps[9].config",
        "steps[10].retry_policy",
    ];
    all_refused(&app, &[(json!({"steps": steps}), &places)]).await;
    let twelfth: Vec<_> =
        (0..12).map(|n| noop(&format!("s{n}"), json!(1))).chain([json!({"action": "noop"})]).collect();
    let found = problems(&app.admin().post("/sagas", saga(json!(twelfth))).await);
    assert_eq!(found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["steps[12].name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_is_refused_and_shown() {
    let app = app().await;
    let steps = json!([
        noop("first", json!(1)),
        after(&["omega"], noop("alpha", json!(1))),
        after(&["first", "alpha"], noop("omega", json!(1))),
    ]);
    let reply = app.admin().post("/sagas", saga(steps)).await;
    refused_at(&reply, &["steps"]);
    let found = problems(&reply);
    assert!(found.iter().any(|(_, message)| message.contains("alpha") && message.contains("omega")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_of_a_thousand_is_refused_soon() {
    let app = app().await;
    let name = |n: usize| format!("s{}", n % 1_000);
    let steps: Vec<_> = (0..1_000).map(|n| after(&[&name(n + 1)], noop(&name(n), json!(1)))).collect();
    let started = Instant::now();
    refused_at(&app.admin().post("/sagas", saga(json!(steps))).await, &["steps"]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_thousand_steps_are_too_many() {
    let app = app().await;
    let steps: Vec<_> = (0..1_001).map(|n| json!({"name": format!("s{n}"), "action": "noop"})).collect();
    all_refused(&app, &[(saga(json!(steps)), &["steps"])]).await;
}

/// As many edges as a body can hold.
fn dense() -> Value {
    let name = |n: usize| format!("{n:x}");
    let needs = |n: usize| (n.saturating_sub(170)..n).map(name).collect::<Vec<_>>();
    let steps = (0..1_000).map(|n| json!({"name": name(n), "action": "noop", "depends_on": needs(n)}));
    saga(steps.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_full_of_edges_is_answered_soon() {
    let app = app().await;
    let (good, mut bad) = (dense(), dense());
    bad["steps"][0]["depends_on"] = json!(["3e7"]);
    assert!((900_000..1 << 20).contains(&good.to_string().len()), "{}", good.to_string().len());
    for (body, status) in [(good, 200), (bad, 400)] {
        let started = Instant::now();
        let reply = app.admin().post("/sagas/plan", body).await;
        assert_eq!(reply.status, status, "{}", &reply.text[..reply.text.len().min(2_000)]);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_edges_in_a_few_words_are_answered_soon() {
    let app = app().await;
    let names: Vec<_> = (0..1_000).map(|n| format!("s{n}")).collect();
    let step = |name: &String| format!("  - {{name: {name}, action: noop, depends_on: *all}}\n");
    let steps: String = names.iter().map(step).collect();
    let text = format!("all: &all [{}]\nsteps:\n{steps}", names.join(", "));
    let started = Instant::now();
    let headers = [("content-type", "application/yaml")];
    let reply = app.admin().send(Method::PUT, "/saga-definitions/d", Some(text), &headers).await;
    assert_eq!(reply.status, 400, "{}", &reply.text[..reply.text.len().min(2_000)]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    app.admin().get("/saga-definitions/d").await.refusal(404, "NOT_FOUND");
    let steps = names.iter().map(|name| json!({"name": name, "action": "noop", "depends_on": names}));
    let (body, started) = (saga(steps.collect()), Instant::now());
    app.admin().post("/sagas", body).await.refusal(413, "PAYLOAD_TOO_LARGE");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_its_action_cannot_take_is_refused() {
    let app = app().await;
    let url = "http://127.0.0.1:1/";
    for (action, config) in [
        ("http.request", json!({"url": url})),
        ("http.request", json!({"method": "GET"})),
        ("http.request", json!({"method": "GET", "url": 5})),
        ("http.request", json!({"method": "GET", "url": "ftp://127.0.0.1/"})),
        ("http.request", json!({"method": "GET", "url": url, "expect_status": "fine"})),
        ("http.request", json!({"method": "GET", "url": url, "timeout": "soon"})),
        ("command.run", json!({"args": ["true"]})),
        ("command.run", json!({"project_id": "p"})),
        ("command.run", json!({"project_id": "p", "args": ["true"], "script": "true"})),
        ("checkout.create", json!({"new_branch": "b"})),
        ("session.create", json!({"new_branch": "b"})),
        ("registry.preflight", json!({})),
        ("job.submit", json!({"messages": []})),
        ("saga.start", json!({})),
        ("saga.start", json!({"definition": "nobody"})),
        ("saga.start", json!({"steps": [{"name": "x", "action": "make.coffee"}]})),
        ("wait.sleep", json!({})),
        ("wait.sleep", json!({"duration": "soon"})),
        ("wait.sleep", json!({"duration": "-1s"})),
        ("wait.sleep", json!({"until": "tomorrow"})),
        ("wait.sleep", json!({"duration": "1s", "until": "2030-01-01T00:00:00Z"})),
        ("approval.request", json!({})),
        ("approval.request", json!({"message": "m", "timeout": "soon"})),
        ("approval.request", json!({"message": "m", "timeout": "1h", "on_timeout": "shrug"})),
    ] {
        all_refused(&app, &[(acting(action, config), &["steps[0].config"])]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_leads_to_an_ancestor_or_a_var() {
    let app = app().await;
    let saying = |name: &str, text: &str| noop(name, json!(text));
    let vars = json!({"vars": {"known": "x"}});
    let when = |text: &str| and(noop("b", json!(1)), json!({"when": text}));
    let linear = |second: Value| and(saga(json!([noop("a", json!(1)), second])), vars.clone());
    let cases: [(Value, &[&str]); 10] = [
        (linear(saying("b", "x ${vars.unknown}")), &["steps[1].config"]),
        (linear(saying("b", "${steps.nobody.output.x}")), &["steps[1].config"]),
        (linear(saying("b", "${steps.b.output.x}")), &["steps[1].config"]),
        (linear(saying("b", "${steps.a.status}")), &["steps[1].config"]),
        (linear(saying("b", "${steps.a.output.x")), &["steps[1].config"]),
        (linear(when("${vars.unknown} == 1")), &["steps[1].when"]),
        (linear(when("${steps.b.output.x}")), &["steps[1].when"]),
        (linear(when("${steps.a.output.x} ==")), &["steps[1].when"]),
        (saga(json!([saying("a", "${steps.b.output.x}"), noop("b", json!(1))])), &["steps[0].config"]),
        (
            saga(json!([
                noop("a", json!(1)),
                noop("b", json!(1)),
                after(&["a"], saying("c", "${steps.b.output.x}")),
                after(&["b"], noop("d", json!(["${steps.a.output.x}", "$${steps.a.output.x}"]))),
            ])),
            &["steps[2].config", "steps[3].config"],
        ),
    ];
    all_refused(&app, &cases).await;
    let grandchild = json!([
        noop("a", json!(1)),
        after(&["a"], noop("b", json!(1))),
        after(&["b"], saying("c", "${steps.a.output.x} $${vars.unknown} ${vars.known}")),
    ]);
    app.admin().post("/sagas/plan", and(saga(grandchild), vars)).await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_of_a_retry_policy_have_bounds() {
    let app = app().await;
    let with = |policy: Value| one(json!({"name": "a", "action": "noop", "retry_policy": policy}));
    for policy in [
        json!({"max_retries": -1}),
        json!({"max_retries": 101}),
        json!({"initial_delay_ms": -1}),
        json!({"initial_delay_ms": 86_400_001}),
        json!({"max_delay_ms": 86_400_001}),
        json!({"multiplier": 0.99}),
        json!({"multiplier": 10.01}),
        json!({"jitter": -0.01}),
        json!({"jitter": 1.01}),
    ] {
        let field = format!("steps[0].retry_policy.{}", policy.as_object().unwrap().keys().next().unwrap());
        all_refused(&app, &[(with(policy), &[field.as_str()])]).await;
    }
    let widest = json!({"max_retries": 100, "backoff": "linear", "initial_delay_ms": 86_400_000,
        "max_delay_ms": 86_400_000, "multiplier": 10, "jitter": 1});
    let least = json!({"max_retries": 0, "backoff": "fixed", "multiplier": 1, "jitter": 0});
    for policy in [widest, least, json!({})] {
        app.admin().post("/sagas/plan", with(policy)).await.data(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_a_duration() {
    let app = app().await;
    for timeout in ["soon", "0s", "-1s"] {
        let saga = saga(json!([noop("a", json!(1))]));
        let step = and(saga["steps"][0].clone(), json!({"timeout": timeout}));
        for body in [and(saga, json!({"timeout": timeout})), one(step)] {
            let reply = app.admin().post("/sagas", body).await;
            assert_eq!(reply.status, 400, "{}", reply.text);
        }
    }
    assert_eq!(app.admin().get("/sagas").await.data(200), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_other_types_is_no_saga() {
    let app = app().await;
    for body in
        ["", "{", "[]", "5", "{\"name\": 5}", "{\"name\": \"s\", \"steps\": {}}", "{\"name\": \"s\", \"vars\": [1]}"]
    {
        let reply = app.admin().send(Method::POST, "/sagas", Some(body.to_owned()), &[]).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.text);
    }
    let nul = saga(json!([noop("a", json!("\u{0}"))]));
    assert_eq!(app.admin().post("/sagas", nul).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_bound_to_projects_names_one() {
    let app = app().await;
    app.project("p").await;
    let key = json!({"name": "k", "scopes": ["projects:read", "projects:execute"], "project_ids": ["p"]});
    let (bound, _) = app.holder(key).await;
    let body = saga(json!([noop("a", json!(1)), {"name": "b"}]));
    refused_at(&bound.post("/sagas", body).await, &["project_id", "steps[1].action"]);
    let good = and(saga(json!([noop("a", json!(1))])), json!({"project_id": "p"}));
    assert_eq!(bound.post("/sagas", good).await.data(201)["project_id"], "p");
}

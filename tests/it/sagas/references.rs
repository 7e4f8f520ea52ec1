//! What a step takes from the ones before it, and whether it runs at all.

use serde_json::{Value, json};

use super::{Stage, after, noop, of, saga, statuses, step};
use crate::jobs::and;

fn posting(stage: &Stage, name: &str, body: Value) -> Value {
    let url = stage.out.at(&format!("/{name}"));
    step(name, "http.request", json!({"method": "POST", "url": url, "body": body}))
}

/// A step that only runs when this holds.
fn when(name: &str, condition: &str) -> Value {
    and(noop(name, json!(1)), json!({"when": condition}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_reference_keeps_its_type_and_one_in_text_becomes_text() {
    let stage = Stage::new().await;
    let answer = json!({"items": [{"id": 7, "tags": ["x", true]}], "text": "t", "none": null});
    let first = posting(&stage, "echo/a", answer);
    let body = json!({
        "id": "${steps.a.output.body.body.items.0.id}",
        "item": "${steps.a.output.body.body.items.0}",
        "none": "${steps.a.output.body.body.none}",
        "text": "id ${steps.a.output.body.body.items.0.id} of ${vars.who}, ${steps.a.output.body.body.text}!",
        "flag": ["${steps.a.output.body.body.items.0.tags.1}"],
        "literal": "$${steps.a.output} and $${",
        "var": "${vars.number}",
    });
    let steps = json!([and(first, json!({"name": "a"})), posting(&stage, "b", body)]);
    let id = stage.make(and(saga(steps), json!({"vars": {"who": "me", "number": "5"}}))).await;
    stage.reaches(&id, "completed").await;
    let expected = json!({
        "id": 7,
        "item": {"id": 7, "tags": ["x", true]},
        "none": null,
        "text": "id 7 of me, t!",
        "flag": [true],
        "literal": "${steps.a.output} and ${",
        "var": "5",
    });
    assert_eq!(stage.out.to("/b")[0].json(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn references_stand_in_any_string_of_a_config() {
    let stage = Stage::new().await;
    let config = json!({
        "method": "${vars.method}",
        "url": format!("{}/${{steps.a.output.path}}?n=${{steps.a.output.n}}", stage.out.url),
        "headers": {"x-own": "${steps.a.output.path}"},
        "body": "as it is: ${steps.a.output.n}",
    });
    let steps = json!([noop("a", json!({"path": "b", "n": 2})), step("b", "http.request", config)]);
    let id = stage.make(and(saga(steps), json!({"vars": {"method": "PUT"}}))).await;
    stage.reaches(&id, "completed").await;
    let request = stage.out.to("/b").remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/b?n=2"));
    assert_eq!((request.header("x-own"), request.text()), (Some("b"), "as it is: 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_step_gave_is_there_for_all_that_come_after_it() {
    let stage = Stage::new().await;
    let steps = json!([
        noop("a", json!({"n": 1})),
        after(&["a"], noop("b", json!({"n": "${steps.a.output.n}", "list": [1, "${steps.a.output}"]}))),
        after(&["b"], noop("c", json!(["${steps.b.output.list.1.n}", "${steps.a.output.n}", "${steps.b.output}"]))),
    ]);
    let id = stage.run(steps).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(saga["outputs"]["c"], json!([1, 1, {"n": 1, "list": [1, {"n": 1}]}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_decide_which_steps_run() {
    let stage = Stage::new().await;
    let given = json!({"n": 1, "yes": true, "no": false, "s": "x", "list": [1], "none": null, "empty": ""});
    let cases = [
        ("true", true),
        ("false", false),
        ("null", false),
        ("0", true),
        ("\"\"", true),
        ("${steps.a.output.yes}", true),
        ("${steps.a.output.no}", false),
        ("${steps.a.output.none}", false),
        ("${steps.a.output.missing}", false),
        ("${steps.a.output.missing.deeper.0}", false),
        ("${steps.a.output.list.5}", false),
        ("${steps.a.output.empty}", true),
        ("${steps.a.output.n} == 1", true),
        ("${steps.a.output.n} == \"1\"", false),
        ("${steps.a.output.n} != 2 && ${steps.a.output.s} == \"x\"", true),
        ("${steps.a.output.list.0} == 1", true),
        ("${steps.a.output.list} == [1]", true),
        ("${steps.a.output.missing} == null", true),
        ("!${steps.a.output.no}", true),
        ("!${steps.a.output.missing}", true),
        ("!(${steps.a.output.yes} && true)", false),
        ("${vars.env} == \"prod\"", true),
        ("${vars.env} == \"test\" || ${steps.a.output.n} == 1", true),
        ("true || true && false", true),
        ("(true || true) && false", false),
        ("!true == false", true),
        ("1 != 2 == 2", true),
        ("false && false == false", false),
    ];
    let conditional = cases.iter().enumerate().map(|(n, (condition, _))| when(&format!("s{n}"), condition));
    let steps: Vec<_> = [noop("a", given)].into_iter().chain(conditional).collect();
    let id = stage.make(and(saga(json!(steps)), json!({"vars": {"env": "prod"}}))).await;
    let saga = stage.reaches(&id, "completed").await;
    for (status, (condition, runs)) in statuses(&saga)[1..].iter().zip(cases) {
        assert_eq!(*status, if runs { "completed" } else { "skipped" }, "{condition}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_step_counts_as_done_and_gives_nothing() {
    let stage = Stage::new().await;
    let skipped = and(stage.undone("b"), json!({"when": "${steps.a.output.wanted}", "depends_on": ["a"]}));
    let steps = json!([
        and(noop("a", json!({"wanted": false})), json!({"depends_on": []})),
        skipped,
        after(&["b"], stage.undone("c")),
        and(after(&["b"], noop("d", json!(1))), json!({"when": "${steps.b.output.status} == null"})),
        and(after(&["b"], noop("e", json!(1))), json!({"when": "${steps.b.output.status}"})),
    ]);
    let id = stage.run(steps).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(statuses(&saga), ["completed", "skipped", "completed", "completed", "skipped"]);
    assert_eq!((of(&saga, "b").get("output"), saga["outputs"].get("b")), (None, None));
    assert_eq!(stage.out.order(), ["/c"]);
    stage.tell(&id, "rollback", json!({})).await.data(200);
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!((&of(&saga, "b")["status"], &of(&saga, "c")["status"]), (&json!("skipped"), &json!("compensated")));
    assert_eq!(stage.out.order(), ["/c", "/undo/c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_is_shown_as_it_was_given() {
    let stage = Stage::new().await;
    let id = stage.run(json!([noop("a", json!(1)), when("b", "${steps.a.output} == 1")])).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!((&of(&saga, "b")["when"], of(&saga, "a").get("when")), (&json!("${steps.a.output} == 1"), None));
}

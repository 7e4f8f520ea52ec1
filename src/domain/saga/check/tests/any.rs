//! Plans, and steps of any kind.

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn planned(value: Value) -> Plan {
    let steps = steps(value);
    let (graph, problems) = found(&steps);
    assert_eq!(problems, []);
    plan(&steps, &graph.expect("a graph"), &Actions)
}

#[test]
fn a_plan_tells_the_order_and_the_way_back() {
    let plan = planned(json!([
        {"name": "a", "action": "noop", "compensate": "noop"},
        {"name": "b", "action": "noop", "depends_on": ["a"]},
        {"name": "c", "action": "saga.start", "depends_on": ["a"], "config": {"definition": "x"}},
        {"name": "d", "action": "noop", "depends_on": ["b"], "compensate": "noop"},
    ]));
    assert_eq!(plan.order, ["a", "b", "c", "d"]);
    assert_eq!(plan.groups, [vec!["a"], vec!["b", "c"], vec!["d"]]);
    assert_eq!(plan.compensation_order, [vec!["c", "d"], vec!["a"]]);
    assert!(plan.warnings.is_empty());
}

#[test]
fn a_plan_warns_of_what_may_not_be_meant() {
    let config = json!({"project_id": "p", "url": "x"});
    let once = json!({"max_retries": 0});
    let warnings = planned(json!([
        {"name": "get", "action": "http.request", "config": config},
        {"name": "run", "action": "command.run", "config": config, "compensate": "noop"},
        {"name": "run0", "action": "command.run", "config": config, "compensate": "noop", "retry_policy": once},
        {"name": "run1", "action": "command.run", "config": config, "compensate": "noop", "idempotent": true},
        {"name": "nap", "action": "wait.sleep", "idempotent": false, "compensate_config": {}},
    ]))
    .warnings;
    let expected = [
        "\"get\" has no compensate: what http.request did stays",
        "\"run\" is not idempotent but is tried again",
        "\"nap\" has a compensate_config but no compensate",
        "\"nap\" is not idempotent but is tried again",
    ];
    assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
    assert!(warnings.iter().zip(expected).all(|(warning, begin)| warning.starts_with(begin)), "{warnings:?}");
}

/// Steps that depend on earlier ones alone, in any order, each with references to some it comes after.
fn any_sound() -> impl Strategy<Value = Vec<StepSpec>> {
    let entries = prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..12);
    (entries, any::<bool>()).prop_map(|(entries, explicit)| {
        let one = |(at, needs): (usize, &Vec<prop::sample::Index>)| {
            let needs: Vec<usize> = needs.iter().filter(|_| at > 0).map(|need| need.index(at)).collect();
            let text = needs.iter().fold("${vars.env}".to_owned(), |mut text, need| {
                let _ = write!(text, " ${{steps.s{need}.output.x}}");
                text
            });
            StepSpec {
                name: format!("s{at}"),
                action: "noop".to_owned(),
                depends_on: explicit.then(|| needs.iter().map(|need| format!("s{need}")).collect()),
                config: json!({ "output": [text] }).as_object().cloned(),
                ..StepSpec::default()
            }
        };
        entries.iter().enumerate().map(one).collect()
    })
}

fn any_step() -> impl Strategy<Value = StepSpec> {
    let name = prop_oneof![4 => "[ab]", 1 => "\\PC{0,3}"];
    let action = prop::sample::select(vec!["noop", "saga.start", "http.request", "command.run", "wait.sleep", "", "x"]);
    let names = prop::option::of(prop::collection::vec("[abc]", 0..4));
    let config = crate::domain::saga::reference::tests::any_json();
    let when = prop::option::of("([$][{](vars|steps)[.][abe]([.]output)?[}]|==|!|1|[()]){0,4}");
    (name, action.clone(), names, prop::option::of(action), config, when, any::<Option<u8>>()).prop_map(
        |(name, action, depends_on, compensate, value, when, timeout)| {
            let inner = json!([{"name": "a", "action": "noop", "config": {"x": value}}]);
            let config = json!({"url": value, "vars": value, "steps": if value.is_string() { inner } else { value }});
            StepSpec {
                name,
                action: action.to_owned(),
                depends_on,
                compensate: compensate.map(str::to_owned),
                config: config.as_object().cloned(),
                timeout: timeout.map(|seconds| format!("{seconds}s")),
                when,
                ..StepSpec::default()
            }
        },
    )
}

proptest! {
    #[test]
    fn sound_steps_are_sound_and_have_a_plan(steps in any_sound()) {
        let (graph, problems) = found(&steps);
        prop_assert_eq!(problems, vec![]);
        let plan = plan(&steps, &graph.unwrap(), &Actions);
        prop_assert_eq!(plan.order.len(), steps.len());
        prop_assert!(plan.compensation_order.is_empty());
    }

    #[test]
    fn one_reference_astray_is_one_problem_at_its_place(steps in any_sound(), at: prop::sample::Index, var: bool) {
        let mut steps = steps;
        let at = at.index(steps.len());
        let astray = if var { "${vars.no}".to_owned() } else { format!("${{steps.s{at}.output}}") };
        steps[at].config.as_mut().unwrap().insert("x".to_owned(), json!({"y": ["", astray]}));
        let (graph, problems) = found(&steps);
        prop_assert!(graph.is_some());
        let paths: Vec<_> = problems.into_iter().map(|problem| problem.path).collect();
        prop_assert_eq!(paths, [format!("steps[{at}].config.x.y[1]")]);
    }

    #[test]
    fn no_steps_panic_and_every_problem_has_its_place(steps in prop::collection::vec(any_step(), 0..5)) {
        let (graph, problems) = found(&steps);
        prop_assert!(problems.iter().all(|problem| problem.path.starts_with("steps") && !problem.message.is_empty()));
        prop_assert!(graph.is_some() || !problems.is_empty());
        if let Some(graph) = graph {
            plan(&steps, &graph, &Actions);
        }
    }
}

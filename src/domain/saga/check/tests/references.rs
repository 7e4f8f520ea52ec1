//! Whom references may name, and steps within steps.

use serde_json::json;

use super::*;

/// A saga of one step that starts the next one, and so on; the innermost has `steps`.
fn nested(levels: usize, steps: Value) -> Value {
    let around =
        |steps, level| json!([{"name": format!("l{level}"), "action": "saga.start", "config": {"steps": steps}}]);
    (0..levels).fold(steps, around)
}

#[test]
fn a_reference_leads_to_a_variable_or_to_a_step_that_came_before() {
    let references = json!([
        {"name": "a", "action": "noop"},
        {"name": "b", "action": "noop", "depends_on": ["a"]},
        {"name": "c", "action": "noop"},
        {
            "name": "d", "action": "noop", "depends_on": ["b"],
            "config": {
                "fine": ["${vars.env}", "${steps.a.output.x} and ${steps.b.output}", "$${vars.no}"],
                "var": "${vars.no}-${vars.no}",
                "far": {"deep": ["", "${steps.c.output.x}"]},
                "none": "${steps.x.output}", "own": "${steps.d.output}", "out": "${output.x}", "odd": "${x",
            },
        },
    ]);
    assert_eq!(
        told(references),
        [
            "steps[3].config.var refers to ${vars.no}, but there is no such variable",
            "steps[3].config.far.deep[1] refers to ${steps.c.output.x}, but it does not depend on \"c\", add it to \
             depends_on",
            "steps[3].config.none refers to ${steps.x.output}, but no step is called \"x\"",
            "steps[3].config.own refers to ${steps.d.output}, but a step cannot refer to itself",
            "steps[3].config.out refers to ${output.x}, but there is no output before the step has run: use \
             compensate_config",
            "steps[3].config.odd ${x has no closing }; $${ is a literal ${",
        ]
    );
}

#[test]
fn with_no_dependency_anywhere_all_earlier_steps_came_before() {
    let rows = json!([
        {"name": "a", "action": "noop", "config": {"output": "${steps.b.output}"}},
        {"name": "b", "action": "noop", "config": {"output": "${steps.a.output}"}},
    ]);
    assert_eq!(
        told(rows),
        ["steps[0].config.output refers to ${steps.b.output}, but it does not depend on \"b\", add it to depends_on"]
    );
}

#[test]
fn a_compensation_also_sees_the_output_of_its_step() {
    let step = json!([
        {"name": "a", "action": "noop"},
        {
            "name": "b", "action": "noop", "compensate": "noop",
            "compensate_config": {
                "fine": "${output} ${output.x} ${steps.a.output} ${vars.env}", "self": "${steps.b.output}",
                "later": "${steps.c.output}",
            },
        },
        {"name": "c", "action": "noop"},
    ]);
    assert_eq!(
        told(step),
        [
            "steps[1].compensate_config.self refers to ${steps.b.output}, but its own output is ${output} here",
            "steps[1].compensate_config.later refers to ${steps.c.output}, but it does not depend on \"c\", add it to \
             depends_on",
        ]
    );
}

#[test]
fn a_condition_is_well_formed_and_sees_what_a_config_sees() {
    let when =
        |when: &str| told(json!([{"name": "a", "action": "noop"}, {"name": "b", "action": "noop", "when": when}]));
    assert_eq!(when("${steps.a.output.x} == 1 && !${vars.env}"), Vec::<String>::new());
    assert_eq!(
        when("${vars.x} == ${output} || ${steps.b.output}"),
        [
            "steps[1].when refers to ${vars.x}, but there is no such variable",
            "steps[1].when refers to ${output}, but there is no output before the step has run",
            "steps[1].when refers to ${steps.b.output}, but a step cannot refer to itself",
        ]
    );
    assert!(when("${vars.env} ==")[0].starts_with("steps[1].when column "));
    assert_eq!(when("${vars.\0}"), ["steps[1].when must not contain NUL characters"]);
}

#[test]
fn the_variables_of_a_definition_come_later() {
    let named = steps(json!([{"name": "a", "action": "noop", "when": "${vars.x}", "config": {"y": "${vars.y}"}}]));
    assert_eq!(check(&named, "steps", Vars::Later, &Actions).1, []);
}

#[test]
fn a_name_with_output_in_it_is_found_by_its_longest_reading() {
    let steps = json!([
        {"name": "a.output.b", "action": "noop"},
        {"name": "ask", "action": "noop"},
        {"name": "c", "action": "noop", "config": {"x": "${steps.a.output.b.output}${steps.ask.output.body.output}"}},
    ]);
    assert_eq!(told(steps), Vec::<String>::new());
}

#[test]
fn steps_within_a_config_are_a_saga_of_their_own() {
    let child = json!([
        {"name": "a", "action": "noop", "config": {"x": "${vars.given} ${vars.env}"}},
        {"name": "a", "action": "http.request"},
        {"name": "", "action": "noop", "config": {"x": "${steps.outer.output}"}},
    ]);
    let parent = json!([
        {"name": "outer", "action": "noop"},
        {
            "name": "start", "action": "saga.start",
            "config": {"steps": child, "vars": {"given": "${steps.outer.output.x}", "bad": "${vars.given}"}},
        },
    ]);
    assert_eq!(
        told(parent),
        [
            "steps[1].config.vars.bad refers to ${vars.given}, but there is no such variable",
            "steps[1].config.steps[0].config.x refers to ${vars.env}, but there is no such variable",
            "steps[1].config.steps[1].name must be a name of its own: an earlier step is called \"a\"",
            "steps[1].config.steps[1].config.url is required",
            "steps[1].config.steps[2].name is required",
            "steps[1].config.steps[2].config.x refers to ${steps.outer.output}, but no step is called \"outer\"",
        ]
    );
}

#[test]
fn steps_within_a_config_are_a_list_of_steps() {
    let start = |steps: Value| told(json!([{"name": "a", "action": "saga.start", "config": {"steps": steps}}]));
    assert_eq!(start(json!("${vars.env}")), ["steps[0].config.steps must be a list of steps"]);
    assert_eq!(start(json!([])), ["steps[0].config.steps must hold at least one step"]);
    assert_eq!(start(Value::from(vec![1; 1_001])), ["steps[0].config.steps must hold at most 1000 steps, not 1001"]);
    assert_eq!(
        start(json!([{"name": 1}, {"name": "b"}, 7])),
        [
            "steps[0].config.steps[0] must be a step: invalid type: integer `1`, expected a string",
            "steps[0].config.steps[2] must be a step: invalid type: integer `7`, expected a step",
        ]
    );
    let named = json!([{"name": "a", "action": "saga.start", "config": {"steps": null, "definition": "x"}}]);
    assert_eq!(told(named), Vec::<String>::new());
    let referring = json!([{
        "name": "a", "action": "saga.start",
        "config": {"vars": "${vars.env}", "steps": [{"name": "b", "action": "noop", "when": "${vars.any}"}]},
    }]);
    assert_eq!(told(referring), Vec::<String>::new());
}

#[test]
fn sagas_nest_eight_deep() {
    assert_eq!(told(nested(8, json!([{"name": "a", "action": "noop"}]))), Vec::<String>::new());
    let path = format!("steps[0]{}", ".config.steps[0]".repeat(8));
    assert_eq!(
        told(nested(9, json!([{"name": "a", "action": "nap"}]))),
        [format!("{path}.config.steps must not be a saga: they nest 8 deep at most")]
    );
}

#[test]
fn a_nul_is_found_wherever_it_is_and_once() {
    let child = json!([{"name": "a", "action": "noop", "config": {"x": "\0"}, "unknown": "\0"}]);
    let with = json!([{
        "name": "a", "action": "saga.start", "config": {"more": [{"k\0": "x\0"}], "steps": child},
        "compensate_config": {"x": "\0"},
    }]);
    assert_eq!(
        told(with),
        [
            "steps[0].config.more[0] must not contain NUL characters",
            "steps[0].config.more[0].k\0 must not contain NUL characters",
            "steps[0].config.steps[0].config.x must not contain NUL characters",
            "steps[0].config.steps[0].unknown must not contain NUL characters",
            "steps[0].compensate_config.x must not contain NUL characters",
        ]
    );
}

//! Stories of what is refused and where, with actions of our own.

mod any;
mod references;

use serde_json::json;

use super::*;

/// An action with what it takes.
struct Action {
    name: &'static str,
    may_compensate: bool,
    undoes_itself: bool,
    has_effect: bool,
    idempotent: bool,
    unavailable: Option<&'static str>,
    takes: fn(&mut Fields<'_>),
    is_saga: bool,
}

const NOOP: Action = Action {
    name: "noop",
    may_compensate: true,
    undoes_itself: false,
    has_effect: false,
    idempotent: true,
    unavailable: None,
    takes: |fields| drop(fields.value("output")),
    is_saga: false,
};

const ACTIONS: [Action; 6] = [
    Action {
        name: "http.request",
        has_effect: true,
        takes: |fields| {
            fields.required_text("url");
            fields.text_map("headers");
            fields.duration("timeout");
        },
        ..NOOP
    },
    Action { name: "command.run", has_effect: true, idempotent: false, takes: |f| drop(f.project()), ..NOOP },
    Action {
        name: "saga.start",
        may_compensate: false,
        undoes_itself: true,
        has_effect: true,
        takes: |fields| {
            fields.exactly_one(&["steps", "definition"]);
            fields.text_map("vars");
        },
        is_saga: true,
        ..NOOP
    },
    Action { name: "wait.sleep", may_compensate: false, ..NOOP },
    Action { name: "cluster.only", unavailable: Some("needs a cluster"), ..NOOP },
    NOOP,
];

impl Rules for Action {
    fn may_compensate(&self) -> bool {
        self.may_compensate
    }

    fn undoes_itself(&self) -> bool {
        self.undoes_itself
    }

    fn has_effect(&self) -> bool {
        self.has_effect
    }

    fn idempotent(&self) -> bool {
        self.idempotent
    }

    fn unavailable(&self) -> Option<&str> {
        self.unavailable
    }

    fn check(&self, fields: &mut Fields<'_>) {
        (self.takes)(fields);
    }

    fn child<'c>(&self, config: &'c Map<String, Value>) -> Option<&'c Value> {
        config.get("steps").filter(|_| self.is_saga)
    }
}

struct Actions;

impl Catalog for Actions {
    fn find(&self, action: &str) -> Option<&dyn Rules> {
        ACTIONS.iter().find(|known| known.name == action).map(|known| -> &dyn Rules { known })
    }

    fn names(&self) -> Vec<&str> {
        ACTIONS.iter().map(|action| action.name).collect()
    }
}

fn steps(value: Value) -> Vec<StepSpec> {
    serde_json::from_value(value).expect("steps")
}

/// With the variable `env`.
fn found(steps: &[StepSpec]) -> (Option<Graph>, Vec<Problem>) {
    let vars = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    check(steps, "steps", Vars::Known(&vars), &Actions)
}

fn told(value: Value) -> Vec<String> {
    let problems = found(&steps(value)).1.into_iter();
    problems.map(|problem| format!("{} {}", problem.path, problem.message)).collect()
}

#[test]
fn sound_steps_have_a_graph_and_no_problem() {
    let (graph, problems) = found(&steps(json!([
        {"name": "ask", "action": "http.request", "config": {"url": "https://${vars.env}.x", "timeout": "5s"}},
        {
            "name": "run it", "action": "command.run", "config": {"project_id": "${steps.ask.output.body.project}"},
            "compensate": "http.request", "compensate_config": {"url": "https://x/${output.command_id}"},
            "retry_policy": {"max_retries": 0}, "timeout": "1h", "when": "${steps.ask.output.body.go} == true",
        },
    ])));
    assert_eq!(problems, []);
    assert_eq!(graph.unwrap().order(), [0, 1]);
}

#[test]
fn no_steps_and_too_many_are_all_that_is_told_of_them() {
    assert_eq!(told(json!([])), ["steps must hold at least one step"]);
    let many = |count| vec![json!({"action": "no"}); count];
    assert_eq!(told(Value::from(many(1_001))), ["steps must hold at most 1000 steps, not 1001"]);
    assert!(found(&steps(Value::from(many(1_001)))).0.is_none());
    assert_eq!(told(Value::from(many(500))).len(), 1_000);
}

#[test]
fn a_step_needs_a_name_and_an_action() {
    let without = json!([{"action": "noop"}, {"name": "b"}, {"name": " ", "action": ""}]);
    let expected = [
        "steps[0].name is required",
        "steps[1].action is required",
        "steps[2].name is required",
        "steps[2].action is required",
    ];
    assert_eq!(told(without), expected);
}

#[test]
fn a_name_can_be_referred_to_and_addressed() {
    let named = |name: &str| told(json!([{"name": name, "action": "noop"}]));
    let longest = "ä".repeat(128);
    for good in ["a", "Build it (2)", "a.output.b", "...", longest.as_str()] {
        assert_eq!(named(good), Vec::<String>::new(), "{good}");
    }
    assert_eq!(named(&"ä".repeat(129)), ["steps[0].name must have at most 128 characters"]);
    for bad in ["a}", "a/b", "a\0", "a\n", "a\u{7f}"] {
        assert_eq!(named(bad), ["steps[0].name must not contain }, / or control characters"], "{bad:?}");
    }
    assert_eq!((named("."), named("..").len()), (vec!["steps[0].name must be more than dots".to_owned()], 1));
}

#[test]
fn a_name_is_given_once() {
    let twice =
        json!([{"name": "a", "action": "noop"}, {"name": "b", "action": "noop"}, {"name": "a", "action": "noop"}]);
    assert_eq!(told(twice), ["steps[2].name must be a name of its own: an earlier step is called \"a\""]);
}

#[test]
fn a_step_depends_on_others_that_exist() {
    let astray = json!([
        {"name": "a", "action": "noop", "depends_on": ["b", "x"]},
        {"name": "b", "action": "noop", "depends_on": ["b"]},
    ]);
    assert_eq!(
        told(astray),
        ["steps[0].depends_on[1] no step is called \"x\"", "steps[1].depends_on[0] a step cannot depend on itself"]
    );
}

#[test]
fn a_cycle_is_shown_and_the_rest_is_told_all_the_same() {
    let ring = json!([
        {"name": "a", "action": "noop", "depends_on": ["c"]},
        {"name": "b", "action": "noop", "depends_on": ["a"]},
        {"name": "c", "action": "noop", "depends_on": ["b"], "config": {"output": "${steps.a.output}"}},
        {"name": "d", "action": "noop", "config": {"output": "${steps.a.output}"}},
    ]);
    assert!(found(&steps(ring.clone())).0.is_none());
    assert_eq!(
        told(ring),
        [
            "steps must not depend on one another in a cycle: a -> c -> b -> a",
            "steps[3].config.output refers to ${steps.a.output}, but it does not depend on \"a\", add it to depends_on",
        ]
    );
}

#[test]
fn an_action_is_one_that_exists_and_runs_here() {
    let actions = json!([{"name": "a", "action": "nap"}, {"name": "b", "action": "cluster.only"}]);
    assert_eq!(
        told(actions),
        [
            "steps[0].action \"nap\" is no action, give one of http.request, command.run, saga.start, wait.sleep, \
             cluster.only, noop",
            "steps[1].action needs a cluster",
        ]
    );
}

#[test]
fn a_config_is_what_its_action_takes() {
    let configs = json!([
        {"name": "a", "action": "http.request"},
        {"name": "b", "action": "http.request", "config": {"url": 1, "headers": {"X-Id": 2}, "timeout": "soon"}},
        {"name": "c", "action": "http.request", "config": {"url": "${vars.env}", "timeout": "${vars.env}"}},
    ]);
    assert_eq!(
        told(configs),
        [
            "steps[0].config.url is required",
            "steps[1].config.url must be a string",
            "steps[1].config.headers.X-Id must be a string",
            "steps[1].config.timeout must be a valid duration (e.g., 30s, 1h30m, or 1d to 30d)",
        ]
    );
}

#[test]
fn a_compensation_is_an_action_that_may_compensate() {
    let compensated = |by: &str| told(json!([{"name": "a", "action": "noop", "compensate": by}]));
    let known = "http.request, command.run, cluster.only, noop";
    assert_eq!(compensated("nap"), [format!("steps[0].compensate \"nap\" is no action, give one of {known}")]);
    let sleep = format!("steps[0].compensate must be an action that can compensate, one of {known}");
    assert_eq!(compensated("wait.sleep"), [sleep]);
    assert_eq!(compensated("cluster.only"), ["steps[0].compensate needs a cluster"]);
    assert_eq!((compensated("noop"), compensated("")), (vec![], vec![]));
}

#[test]
fn a_compensation_takes_its_own_config_or_the_steps() {
    let step = |own: Value| {
        json!([{
            "name": "a", "action": "noop", "config": {"url": 1}, "compensate": "http.request", "compensate_config": own,
        }])
    };
    assert_eq!(
        told(step(Value::Null)),
        ["steps[0].compensate takes the step's config: config.url must be a string, or give a compensate_config"]
    );
    assert_eq!(told(step(json!({}))), ["steps[0].compensate_config.url is required"]);
    assert_eq!(told(step(json!({"url": "x"}))), Vec::<String>::new());
    assert_eq!(told(step(json!({"url": "${output.x}"}))), Vec::<String>::new());
    let alike = json!([{"name": "a", "action": "http.request", "compensate": "http.request"}]);
    assert_eq!(told(alike), ["steps[0].config.url is required"]);
}

#[test]
fn retries_and_timeouts_are_within_bounds() {
    let numbers = json!([
        {"name": "a", "action": "noop", "retry_policy": {"max_retries": 101, "jitter": 2}, "timeout": "0s"},
        {"name": "b", "action": "noop", "timeout": "${vars.env}"},
    ]);
    assert_eq!(
        told(numbers),
        [
            "steps[0].retry_policy.max_retries must be from 0 to 100",
            "steps[0].retry_policy.jitter must be from 0 to 1",
            "steps[0].timeout must be more than zero",
            "steps[1].timeout must be a valid duration (e.g., 30s, 1h30m, or 1d to 30d)",
        ]
    );
}

#[test]
fn a_thousand_problems_are_told_and_no_more() {
    let entries: Vec<String> = (0..1_000).map(|at| format!("x{at}")).collect();
    let step = |at: usize| StepSpec {
        name: format!("s{at}"),
        action: "noop".to_owned(),
        depends_on: Some(entries.clone()),
        ..StepSpec::default()
    };
    let problems = found(&(0..1_000).map(step).collect::<Vec<_>>()).1;
    assert_eq!(problems.len(), 1_001);
    assert_eq!(problems[999].path, "steps[0].depends_on[999]");
    assert!(problems[1_000].message.starts_with("there are more"));
}

#[test]
fn what_is_told_of_long_texts_is_short() {
    let long = "k".repeat(100_000);
    let many = vec![json!("${vars.no}"); 5_000];
    let config =
        json!({"name": long, "action": long, "depends_on": [long.clone() + "x"], "config": { long.clone(): many }});
    let problems = found(&steps(json!([config]))).1;
    assert_eq!(problems.len(), 1_001);
    assert!(problems.iter().all(|problem| problem.path.len() < 300 && problem.message.len() < 600));
}

//! What is read and what is told, of configs that run and of configs that are made.

use proptest::prelude::*;
use serde_json::json;

use super::{super::reference::tests::any_json, *};

type Told = Vec<String>;

fn told(problems: Vec<Problem>) -> Told {
    problems.into_iter().map(|problem| format!("{} {}", problem.path, problem.message)).collect()
}

/// What is read of a config when the step runs, and what is told.
fn running<T>(config: Value, read: impl FnOnce(&mut Fields<'_>) -> T) -> (T, Told) {
    let Value::Object(members) = config else { panic!("no object") };
    let mut problems = Vec::new();
    let value = read(&mut Fields::new(&members, "config", &mut problems));
    (value, told(problems))
}

/// The same when the saga is made.
fn made<T>(config: Value, read: impl FnOnce(&mut Fields<'_>) -> T) -> (T, Told) {
    let Value::Object(members) = config else { panic!("no object") };
    let mut problems = Vec::new();
    let value = read(&mut Fields::unresolved(&members, "config", &mut problems));
    (value, told(problems))
}

fn one(message: &str) -> Told {
    vec![message.to_owned()]
}

#[test]
fn what_is_required_must_be_there() {
    for config in [json!({}), json!({"url": null})] {
        assert_eq!(running(config, |f| f.required_text("url")), (String::new(), one("config.url is required")));
    }
    let empty = one("config.url must not be empty");
    assert_eq!(running(json!({"url": ""}), |f| f.required_text("url")).1, empty);
    assert_eq!(running(json!({"url": []}), |f| f.required_texts("url")).1, empty);
    assert_eq!(running(json!({}), |f| f.required_texts("args")).1, one("config.args is required"));
    assert_eq!(running(json!({}), |f| f.required_whole("number", 1..=9)), (1, one("config.number is required")));
    assert_eq!(running(json!({}), |f| f.project().len()), (0, one("config.project_id is required")));
}

#[test]
fn what_is_left_out_or_null_is_nothing() {
    for config in [json!({}), json!({"x": null})] {
        let (found, told) = running(config, |f| {
            let texts = (f.text("x"), f.texts("x"), f.text_map("x"), f.one_of("x", &["a"]), f.value("x"));
            let others = (f.duration("x"), f.flag("x"), f.whole("x", 0..=1), f.statuses("x"));
            (texts, others, f.has("x"))
        });
        assert_eq!(found, ((None, None, BTreeMap::new(), None, None), (None, None, None, None), false));
        assert_eq!(told, Told::new());
    }
}

#[test]
fn what_is_well_formed_is_read() {
    let config = json!({
        "text": "", "after": "1m30s", "args": ["a", ""], "env": {"A": "1"}, "body": {"x": [1]}, "wait": false,
        "number": -7, "how": "fast", "project_id": "a-1",
    });
    let (found, told) = running(config, |f| {
        assert_eq!(f.text("text").as_deref(), Some(""));
        assert_eq!(f.duration("after"), Some(Duration::from_secs(90)));
        assert_eq!(f.required_texts("args"), ["a", ""]);
        assert_eq!(f.text_map("env"), BTreeMap::from([("A".to_owned(), "1".to_owned())]));
        assert_eq!(f.value("body"), Some(json!({"x": [1]})));
        assert_eq!(f.flag("wait"), Some(false));
        assert_eq!((f.whole("number", -9..=0), f.required_whole("number", i64::MIN..=0)), (Some(-7), -7));
        assert_eq!(f.one_of("how", &["fast", "slow"]).as_deref(), Some("fast"));
        f.project()
    });
    assert_eq!((found.as_str(), told), ("a-1", Told::new()));
}

#[test]
fn a_wrong_type_says_what_is_wanted() {
    let config = || json!({"x": {"y": 1}, "list": ["a", 2, null], "after": "soon", "none": "0s", "id": "A"});
    let told = running(config(), |f| {
        f.text("x");
        f.duration("x");
        f.texts("x");
        f.text_map("x");
        f.flag("x");
        f.whole("x", 1..=9);
        f.whole("x", 1..=i64::MAX);
        f.one_of("x", &["a", "b"]);
        f.statuses("x");
        f.texts("list");
        f.text_map("list");
        f.duration("after");
        f.duration("none");
    });
    let expected = [
        "x must be a string",
        "x must be a duration (e.g., 30s, 5m)",
        "x must be a list",
        "x.y must be a string",
        "x must be true or false",
        "x must be a whole number from 1 to 9",
        "x must be a whole number of at least 1",
        "x must be \"a\" or \"b\"",
        "x must be a status from 100 to 599",
        "list[1] must be a string",
        "list[2] must be a string",
        "list must be an object of strings",
        "after must be a valid duration (e.g., 30s, 1h30m, or 1d to 30d)",
        "none must be more than zero",
    ];
    assert_eq!(told.1, expected.map(|message| format!("config.{message}")));
}

#[test]
fn statuses_are_one_or_several() {
    let read = |value| running(json!({ "expect_status": value }), |f| f.statuses("expect_status"));
    assert_eq!(read(json!(204)), (Some(vec![204]), vec![]));
    assert_eq!(read(json!([100, "599"])), (Some(vec![100, 599]), vec![]));
    assert_eq!(read(json!([])).1, one("config.expect_status must not be empty"));
    for bad in [json!(99), json!(600), json!(200.5), json!("2xx"), json!({}), json!(true)] {
        assert_eq!(read(bad.clone()), (None, one("config.expect_status must be a status from 100 to 599")));
        assert_eq!(read(json!([200, bad])).1, one("config.expect_status[1] must be a status from 100 to 599"));
    }
}

#[test]
fn a_project_is_named_as_projects_are() {
    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method's path is of one lifetime alone")]
    let read = |id: &str| running(json!({ "project_id": id }), |f| f.project());
    let (longest, longer) = ("a".repeat(63), "a".repeat(64));
    for id in ["a", "0-a", longest.as_str()] {
        assert_eq!(read(id), (id.to_owned(), vec![]));
    }
    for id in ["", "-a", "a-", "A", "a.b", "a\n", longer.as_str()] {
        assert!(read(id).1[0].starts_with("config.project_id must be the id of a project"), "{id}");
    }
}

#[test]
fn variables_may_stand_for_numbers_and_flags() {
    let (found, told) =
        running(json!({"number": "12", "wait": "true"}), |f| (f.whole("number", 1..=99), f.flag("wait")));
    assert_eq!((found, told), ((Some(12), Some(true)), vec![]));
}

#[test]
fn exactly_one_means_one() {
    let told = |config| running(config, |f| f.exactly_one(&["args", "script"])).1;
    assert_eq!(told(json!({"args": 1, "script": null})), Told::new());
    assert_eq!(told(json!({"args": null})), one("config must hold exactly one of args, script"));
    assert_eq!(told(json!({"args": 1, "script": 2})), one("config must hold exactly one of args, script"));
}

#[test]
fn a_reference_passes_as_the_default_value() {
    let config = json!({
        "x": "${vars.x}", "part": "a ${vars.x}", "list": ["a", "${output}"], "map": {"A": "${output}", "B": "b"},
        "status": [200, "${vars.s}"], "project_id": "${vars.p}", "body": {"deep": ["${output}"]}, "shut": "$${x}",
    });
    let ((), told) = made(config, |f| {
        assert_eq!((f.required_text("x"), f.text("part"), f.required_texts("x")), (String::new(), None, vec![]));
        assert_eq!((f.duration("x"), f.flag("x"), f.whole("x", 1..=2), f.statuses("x")), (None, None, None, None));
        assert_eq!((f.one_of("x", &["a"]), f.required_whole("x", 5..=9), f.project()), (None, 5, String::new()));
        assert_eq!(f.required_texts("list"), ["a", ""]);
        let map = BTreeMap::from([("A".to_owned(), String::new()), ("B".to_owned(), "b".to_owned())]);
        assert_eq!((f.text_map("map"), f.text_map("x")), (map, BTreeMap::new()));
        assert_eq!((f.statuses("status"), f.value("x")), (Some(vec![200]), None));
        assert_eq!(f.value("body"), Some(json!({"deep": ["${output}"]})));
        let open = ["x", "part", "list", "map", "status", "body", "shut", "none"].map(|name| f.is_open(name));
        assert_eq!(open, [true, true, true, true, true, true, false, false]);
    });
    assert_eq!(told, Told::new());
}

#[test]
fn when_a_step_runs_a_text_means_what_it_says() {
    let script = "echo ${HOME}";
    let (found, told) = running(json!({ "script": script }), |f| (f.required_text("script"), f.is_open("script")));
    assert_eq!((found, told), ((script.to_owned(), false), vec![]));
    let told = running(json!({"timeout": "${vars.t}"}), |f| f.duration("timeout")).1;
    assert_eq!(told, one("config.timeout must be a valid duration (e.g., 30s, 1h30m, or 1d to 30d)"));
}

#[test]
fn no_text_holds_a_nul() {
    let config = json!({"a": "x\0", "b": ["\0"], "c": {"\0": "", "d": "\0"}, "e": {"f": ["\0"]}, "g": {"\0": 1}});
    let told = running(config, |f| {
        f.text("a");
        f.texts("b");
        f.text_map("c");
        f.value("e");
        f.value("g");
    });
    let paths = ["a", "b[0]", "c", "c.d", "e", "g"];
    assert_eq!(told.1, paths.map(|path| format!("config.{path} {NUL}")));
}

fn read_all(f: &mut Fields<'_>, name: &str) {
    f.required_text(name);
    f.text(name);
    f.duration(name);
    f.required_texts(name);
    f.texts(name);
    f.text_map(name);
    f.value(name);
    f.flag(name);
    f.whole(name, 0..=9);
    f.required_whole(name, 0..=9);
    f.one_of(name, &["a"]);
    f.statuses(name);
    f.is_open(name);
    f.exactly_one(&[name, "other"]);
}

proptest! {
    #[test]
    fn what_can_be_read_when_it_runs_was_no_problem_before(value in any_json()) {
        let config = json!({ "x": value });
        let late = running(config.clone(), |f| read_all(f, "x")).1;
        let early = made(config, |f| read_all(f, "x")).1;
        prop_assert!(early.iter().all(|problem| late.contains(problem)), "{early:?} {late:?}");
    }

    #[test]
    fn every_problem_has_a_path_within_the_config(value in any_json()) {
        let told = running(json!({ "x": value }), |f| read_all(f, "x")).1;
        prop_assert!(told.iter().all(|problem| problem.starts_with("config")), "{told:?}");
    }
}

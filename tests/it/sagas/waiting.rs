//! Time: sleeps, the end of a saga's own time, and sagas that wait for their turn.

use chrono::{SecondsFormat, TimeDelta};
use serde_json::{Value, json};

use super::{Stage, after, noop, of, saga, statuses, step};
use crate::{jobs::and, support::eventually};

fn sleep(name: &str, config: Value) -> Value {
    step(name, "wait.sleep", config)
}

fn keyed(key: &str, steps: Value) -> Value {
    and(saga(steps), json!({"concurrency_key": key}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_sleeps_as_long_as_it_was_told() {
    let stage = Stage::new().await;
    let id = stage.run(json!([sleep("s", json!({"duration": "1h"})), stage.call("b", "/b")])).await;
    let saga = stage.reaches(&id, "waiting").await;
    assert_eq!(statuses(&saga), ["waiting", "pending"]);
    stage.app.advance(TimeDelta::minutes(61));
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!((&of(&saga, "s")["output"], stage.out.to("/b").len()), (&json!({}), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_sleeps_until_a_time() {
    let stage = Stage::new().await;
    let until = (stage.app.clock.now() + TimeDelta::hours(30)).to_rfc3339_opts(SecondsFormat::Secs, true);
    let id = stage.run(json!([sleep("s", json!({"until": until})), stage.call("b", "/b")])).await;
    stage.reaches(&id, "waiting").await;
    stage.app.advance(TimeDelta::hours(31));
    stage.reaches(&id, "completed").await;
    let past = json!({"until": "2020-01-01T00:00:00Z"});
    let id = stage.run(json!([sleep("s", past)])).await;
    stage.reaches(&id, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sleeper_has_its_own_time() {
    let stage = Stage::new().await;
    let steps = json!([
        and(sleep("one", json!({"duration": "1h"})), json!({"depends_on": []})),
        sleep("two", json!({"duration": "2h"})),
        after(&["one"], stage.call("then", "/then")),
    ]);
    let id = stage.run(steps).await;
    stage.reaches(&id, "waiting").await;
    assert_eq!(stage.out.to("/then").len(), 0);
    stage.app.advance(TimeDelta::minutes(61));
    let saga = stage.step_reaches(&id, "then", "completed").await;
    assert_eq!(of(&saga, "two")["status"], "waiting");
    stage.app.advance(TimeDelta::minutes(60));
    stage.reaches(&id, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_may_come_from_elsewhere() {
    let stage = Stage::new().await;
    let steps = json!([
        noop("a", json!({"pause": "90m"})),
        sleep("s", json!({"duration": "${steps.a.output.pause}"})),
        sleep("t", json!({"duration": "${vars.pause}"})),
    ]);
    let id = stage.make(and(saga(steps), json!({"vars": {"pause": "2h"}}))).await;
    for name in ["s", "t"] {
        stage.step_reaches(&id, name, "waiting").await;
        stage.app.advance(TimeDelta::minutes(125));
        stage.step_reaches(&id, name, "completed").await;
    }
    stage.reaches(&id, "completed").await;
    let bad = json!([noop("a", json!("soon")), sleep("s", json!({"duration": "${steps.a.output}"}))]);
    let id = stage.run(bad).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(of(&saga, "s")["retry_count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sleepers_take_no_room_from_who_works() {
    let stage = Stage::new().await;
    let mut steps: Vec<_> = (0..40).map(|n| sleep(&format!("s{n}"), json!({"duration": "1h"}))).collect();
    steps.push(and(stage.call("b", "/b"), json!({"depends_on": []})));
    let id = stage.run(json!(steps)).await;
    stage.step_reaches(&id, "b", "completed").await;
    stage.reaches(&id, "waiting").await;
    stage.app.advance(TimeDelta::minutes(61));
    stage.reaches(&id, "completed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_time_is_up_fails_with_what_is_under_way() {
    let stage = Stage::new().await;
    let _never = stage.out.hold("/b");
    let steps = json!([stage.undone("a"), stage.undone("b"), stage.undone("c")]);
    let id = stage.make(and(saga(steps), json!({"timeout": "1h"}))).await;
    stage.out.received("/b", 1).await;
    stage.app.advance(TimeDelta::minutes(61));
    let saga = stage.reaches(&id, "failed").await;
    assert!(["failed", "unknown"].contains(&of(&saga, "b")["status"].as_str().unwrap()), "{saga}");
    assert!(saga["error"].is_string() && of(&saga, "b")["error"].is_string(), "{saga}");
    assert_eq!(of(&saga, "c")["status"], "pending");
    eventually("its departure", async || (stage.out.listener.cancelled("/b") == 1).then_some(())).await;
    assert_eq!(stage.out.order(), ["/a", "/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_whose_time_is_up_is_undone_where_it_says_so() {
    let stage = Stage::new().await;
    let steps = json!([stage.undone("a"), sleep("s", json!({"duration": "10h"})), stage.call("c", "/c")]);
    let id = stage.make(and(saga(steps), json!({"timeout": "1h", "on_failure": "compensate"}))).await;
    stage.reaches(&id, "waiting").await;
    stage.app.advance(TimeDelta::minutes(61));
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!((&of(&saga, "a")["status"], &of(&saga, "s")["status"]), (&json!("compensated"), &json!("failed")));
    assert_eq!(stage.out.order(), ["/a", "/undo/a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_of_one_key_come_one_after_the_other_as_they_were_made() {
    let stage = Stage::new().await;
    let paths: Vec<String> = (0..4).map(|n| format!("/s{n}")).collect();
    let gates: Vec<_> = paths.iter().map(|path| stage.out.hold(path)).collect();
    let mut ids = Vec::new();
    for path in &paths {
        ids.push(stage.make(keyed("k", json!([stage.call("a", path)]))).await);
    }
    for (n, id) in ids.iter().enumerate() {
        stage.out.received(&paths[n], 1).await;
        assert_eq!(stage.show(id).await["status"], "running");
        for later in &ids[n + 1..] {
            assert_eq!(stage.show(later).await["status"], "pending");
        }
        assert_eq!(stage.out.requests().len(), n + 1);
        gates[n].open();
        stage.reaches(id, "completed").await;
    }
    assert_eq!(stage.out.order(), paths);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_holds_back_none_but_its_own() {
    let stage = Stage::new().await;
    for project in ["p", "q"] {
        stage.app.project(project).await;
    }
    let gate = stage.out.hold("/held");
    let of_project =
        |project: &str, path: &str| and(keyed("k", json!([stage.call("a", path)])), json!({"project_id": project}));
    let first = stage.make(of_project("p", "/held")).await;
    stage.out.received("/held", 1).await;
    let second = stage.make(of_project("p", "/second")).await;
    for other in [
        of_project("q", "/ok"),
        keyed("k", json!([stage.call("a", "/ok")])),
        keyed("other", json!([stage.call("a", "/ok")])),
        saga(json!([stage.call("a", "/ok")])),
    ] {
        let id = stage.make(other).await;
        stage.reaches(&id, "completed").await;
    }
    assert_eq!(stage.show(&second).await["status"], "pending");
    gate.open();
    for id in [&first, &second] {
        stage.reaches(id, "completed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_is_still_at_work_and_one_that_failed_is_not() {
    let stage = Stage::new().await;
    let waits = stage.make(keyed("k", json!([sleep("s", json!({"duration": "1h"}))]))).await;
    stage.reaches(&waits, "waiting").await;
    let fails = stage.make(keyed("k", json!([stage.call("a", "/status/409")]))).await;
    let last = stage.make(keyed("k", json!([stage.call("a", "/last")]))).await;
    assert_eq!((&stage.show(&fails).await["status"], stage.out.requests().len()), (&json!("pending"), 0));
    stage.app.advance(TimeDelta::minutes(61));
    stage.reaches(&waits, "completed").await;
    stage.reaches(&fails, "failed").await;
    stage.reaches(&last, "completed").await;
    assert_eq!(stage.out.order(), ["/status/409", "/last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_deleted_before_its_turn_is_not_waited_for() {
    let stage = Stage::new().await;
    let gate = stage.out.hold("/first");
    let first = stage.make(keyed("k", json!([stage.call("a", "/first")]))).await;
    stage.out.received("/first", 1).await;
    let second = stage.make(keyed("k", json!([stage.call("a", "/second")]))).await;
    let third = stage.make(keyed("k", json!([stage.call("a", "/third")]))).await;
    stage.admin().delete(&format!("/sagas/{second}")).await.data(200);
    gate.open();
    for id in [&first, &third] {
        stage.reaches(id, "completed").await;
    }
    assert_eq!(stage.out.order(), ["/first", "/third"]);
}

//! Steps in projects: commands, checkouts, sessions, and what is left of them when they are undone.

use serde_json::{Value, json};

use super::{Stage, of, retried, saga, statuses, step};
use crate::{jobs::and, support::eventually};

async fn with_project() -> Stage {
    let stage = Stage::new().await;
    stage.app.project("p").await;
    stage
}

fn script(name: &str, text: &str) -> Value {
    step(name, "command.run", json!({"project_id": "p", "script": text}))
}

/// What a script in the project's workspace says.
async fn said(stage: &Stage, script: &str) -> String {
    stage.app.output(&stage.app.script("p", script).await).await
}

async fn commands(stage: &Stage) -> Vec<Value> {
    stage.admin().get("/projects/p/commands").await.data(200)["commands"].as_array().unwrap().clone()
}

async fn roll_back(stage: &Stage, id: &str) {
    stage.tell(id, "rollback", json!({})).await.data(200);
    stage.reaches(id, "compensated").await;
}

async fn checkout(stage: &Stage, id: &Value) -> Value {
    stage.admin().get(&format!("/projects/p/checkout/{}", id.as_str().expect("an id"))).await.data(200)
}

async fn session(stage: &Stage, id: &Value) -> Value {
    stage.admin().get(&format!("/projects/p/sessions/{}", id.as_str().expect("an id"))).await.data(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gives_its_exit_code_and_what_it_said() {
    let stage = with_project().await;
    let id = stage.run(json!([script("a", "echo out; echo err >&2")])).await;
    let saga = stage.reaches(&id, "completed").await;
    let output = &of(&saga, "a")["output"];
    assert_eq!(
        (&output["exit_code"], &output["stdout_tail"], &output["stderr_tail"]),
        (&json!(0), &json!("out\n"), &json!("err\n"))
    );
    let all = commands(&stage).await;
    assert_eq!((all.len(), &all[0]["command_id"]), (1, &output["command_id"]));
    assert_eq!((&all[0]["status"], &all[0]["exit_code"]), (&json!("exited"), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_takes_what_the_api_takes() {
    let stage = with_project().await;
    stage.app.script("p", "mkdir sub").await;
    let config = json!({"project_id": "p", "args": ["sh", "-c", "pwd; echo $GREETING \"$0\"", "${vars.who}"],
        "cwd": "sub", "env": {"GREETING": "hello"}});
    let body = and(saga(json!([step("a", "command.run", config)])), json!({"vars": {"who": "a b; c"}}));
    let id = stage.make(body).await;
    let saga = stage.reaches(&id, "completed").await;
    let said = of(&saga, "a")["output"]["stdout_tail"].as_str().unwrap().to_owned();
    assert!(said.ends_with("/sub\nhello a b; c\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_long_output_the_end_is_kept() {
    let stage = with_project().await;
    let text = "i=0; while test $i -lt 9000; do echo line $i; echo error $i >&2; i=$((i+1)); done; echo end";
    let id = stage.run(json!([script("a", text)])).await;
    let saga = stage.reaches(&id, "completed").await;
    for (field, end) in [("stdout_tail", "line 8999\nend\n"), ("stderr_tail", "error 8999\n")] {
        let tail = of(&saga, "a")["output"][field].as_str().unwrap();
        assert!(tail.len() <= 16 << 10 && tail.len() > 15 << 10, "{field}: {}", tail.len());
        assert!(tail.ends_with(end), "{field}: {}", &tail[tail.len() - 40..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_is_run_again_as_its_policy_says() {
    let stage = with_project().await;
    let text = "echo x >> runs; test $(wc -l < runs) -ge 3 || exit 7";
    let id = stage.run(json!([script("a", text)])).await;
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!((&of(&saga, "a")["retry_count"], commands(&stage).await.len()), (&json!(2), 3));
    let id = stage.run(json!([retried(script("a", "echo y >> other; exit 7"), 1), script("b", "touch b")])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(statuses(&saga), ["failed", "pending"]);
    assert!(of(&saga, "a")["error"].as_str().unwrap().contains('7'), "{saga}");
    assert_eq!(said(&stage, "cat runs other; test -e b || echo none").await, "x\nx\nx\ny\ny\nnone\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_long_has_failed_for_sure() {
    let stage = with_project().await;
    let config = json!({"project_id": "p", "args": ["sleep", "600"], "timeout": "1s"});
    let id = stage.run(json!([retried(step("a", "command.run", config), 0)])).await;
    let saga = stage.reaches(&id, "failed").await;
    assert_eq!(of(&saga, "a")["status"], "failed");
    assert_eq!(commands(&stage).await[0]["termination"], "timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_is_made_and_checked_in() {
    let stage = with_project().await;
    let steps = json!([
        step("make", "checkout.create", json!({"project_id": "p", "new_branch": "feature/${vars.n}"})),
        step("ask", "approval.request", json!({"message": "done?"})),
        step("end", "checkout.checkin", json!({"project_id": "p", "checkout_id": "${steps.make.output.checkout_id}"})),
    ]);
    let id = stage.make(and(saga(steps), json!({"vars": {"n": "7"}}))).await;
    let saga = stage.reaches(&id, "waiting").await;
    let output = of(&saga, "make")["output"].clone();
    assert_eq!(output["branch"], "feature/7");
    let made = checkout(&stage, &output["checkout_id"]).await;
    assert_eq!((&made["status"], &made["branch"]), (&json!("active"), &json!("feature/7")));
    assert!(!saga.to_string().contains("rdev:"), "a credential in {saga}");
    stage.tell(&id, "approvals/ask", json!({"decision": "approve"})).await.data(200);
    let saga = stage.reaches(&id, "completed").await;
    assert_eq!(checkout(&stage, &output["checkout_id"]).await["status"], "checked_in");
    assert_eq!(of(&saga, "end")["output"]["checkout_id"], output["checkout_id"]);
    roll_back(&stage, &id).await;
    assert_eq!(checkout(&stage, &output["checkout_id"]).await["status"], "checked_in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_that_is_undone_is_revoked() {
    let stage = with_project().await;
    let make = step("make", "checkout.create", json!({"project_id": "p", "new_branch": "feature"}));
    let id = stage.run(json!([make])).await;
    let saga = stage.reaches(&id, "completed").await;
    roll_back(&stage, &id).await;
    assert_eq!(checkout(&stage, &of(&saga, "make")["output"]["checkout_id"]).await["status"], "revoked");
    assert_eq!(of(&stage.show(&id).await, "make")["status"], "compensated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_is_taken_fails_the_checkout_and_undoes_the_rest() {
    let stage = with_project().await;
    let create = |name: &str| step(name, "checkout.create", json!({"project_id": "p", "new_branch": "feature"}));
    let steps = json!([create("one"), create("two")]);
    let id = stage.make(and(saga(steps), json!({"on_failure": "compensate"}))).await;
    let saga = stage.reaches(&id, "compensated").await;
    assert_eq!(statuses(&saga), ["compensated", "failed"]);
    let all = stage.admin().get("/projects/p/checkout").await.data(200)["checkouts"].clone();
    assert_eq!(all, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_opened_and_ended() {
    let stage = with_project().await;
    let steps = json!([
        step("open", "session.create", json!({"project_id": "p", "new_branch": "feature"})),
        step("ask", "approval.request", json!({"message": "done?"})),
        step("end", "session.end", json!({"project_id": "p", "session_id": "${steps.open.output.session_id}"})),
    ]);
    let id = stage.run(steps).await;
    let saga = stage.reaches(&id, "waiting").await;
    let output = of(&saga, "open")["output"].clone();
    let open = session(&stage, &output["session_id"]).await;
    assert_eq!((&open["status"], &open["preview_url"]), (&json!("active"), &output["preview_url"]));
    stage.tell(&id, "approvals/ask", json!({"decision": "approve"})).await.data(200);
    stage.reaches(&id, "completed").await;
    let ended = session(&stage, &output["session_id"]).await;
    assert!(ended["status"] == "ended" || ended["status"] == "terminated", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_undone_is_ended_with_all_that_belongs_to_it() {
    let stage = with_project().await;
    let open = step("open", "session.create", json!({"project_id": "p", "new_branch": "feature"}));
    let steps = json!([open, stage.call("bad", "/status/409")]);
    let id = stage.make(and(saga(steps), json!({"on_failure": "compensate"}))).await;
    let saga = stage.reaches(&id, "compensated").await;
    let ended = session(&stage, &of(&saga, "open")["output"]["session_id"]).await;
    assert!(ended["status"] == "ended" || ended["status"] == "terminated", "{ended}");
    let gone = async || {
        let active = "select count(*) from checkout where status = 'active'";
        let there = std::path::Path::new(ended["workspace"].as_str().unwrap()).exists();
        (stage.app.db().count(active).await == 0 && !there).then_some(())
    };
    eventually("nothing is left", gone).await;
    stage.app.session("p", "another").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_in_a_session_that_is_undone_is_rescued() {
    let stage = with_project().await;
    let steps = json!([
        step("open", "session.create", json!({"project_id": "p", "new_branch": "feature"})),
        step("ask", "approval.request", json!({"message": "done?"})),
    ]);
    let id = stage.make(and(saga(steps), json!({"on_failure": "compensate"}))).await;
    let saga = stage.reaches(&id, "waiting").await;
    let open = session(&stage, &of(&saga, "open")["output"]["session_id"]).await;
    stage.app.exec("p", &open, "echo work > work.txt").await;
    stage.tell(&id, "approvals/ask", json!({"decision": "reject"})).await.data(200);
    stage.reaches(&id, "compensated").await;
    let ended = session(&stage, &open["id"]).await;
    let sha = ended["rescue"]["sha"].as_str().unwrap_or_else(|| panic!("no rescue: {ended}"));
    assert_eq!(said(&stage, &format!("git fetch -q origin {sha}; git show {sha}:work.txt")).await, "work\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_undo_commands_and_calls() {
    let stage = with_project().await;
    let undo = |step: Value, word: &str| {
        let config = json!({"project_id": "p", "script": format!("echo {word} ${{output.exit_code}} >> log")});
        and(step, json!({"compensate": "command.run", "compensate_config": config}))
    };
    let call = and(
        stage.call("b", "/b"),
        json!({"compensate": "command.run",
            "compensate_config": {"project_id": "p", "script": "echo undone-b >> log"}}),
    );
    let id = stage.run(json!([undo(script("a", "echo done >> log"), "undone-a"), call])).await;
    stage.reaches(&id, "completed").await;
    roll_back(&stage, &id).await;
    assert_eq!(said(&stage, "cat log").await, "done\nundone-b\nundone-a 0\n");
    assert_eq!(commands(&stage).await.len(), 4);
}

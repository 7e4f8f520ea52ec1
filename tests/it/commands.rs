//! Commands: what may be asked, what they see, how they end.

use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Reply, TestApp, eventually};

const SHELL: &str = "/projects/p/shell";

async fn app_with_project() -> TestApp {
    let app = TestApp::start().await;
    app.project("p").await;
    app
}

/// Runs to the end and shows the command.
async fn run(app: &TestApp, body: Value) -> Value {
    let mut body = body;
    body["wait"] = json!("30s");
    let command = app.admin().post(SHELL, body.clone()).await.data(201);
    assert_ne!(command["status"], "running", "{body} takes too long");
    command
}

/// What it says on its standard output.
async fn said(app: &TestApp, body: Value) -> String {
    let command = run(app, body).await;
    app.output(&command).await
}

fn path_of(command: &Value) -> String {
    format!("/projects/p/commands/{}", command["command_id"].as_str().expect("an id"))
}

/// Starts a script and waits until it has said something.
async fn begun(app: &TestApp, script: &str) -> Value {
    let command = app.admin().post(SHELL, json!({"script": script})).await.data(201);
    let mut events = app.listen(command["events_url"].as_str().expect("a URL")).await;
    events.next_named("output").await;
    command
}

async fn refused_token(app: &TestApp, command: &str) -> Value {
    let error = app.admin().post(SHELL, json!({"command": command})).await.refusal(400, "COMMAND_REJECTED");
    error["details"]["token"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_answered_before_it_has_ended() {
    let app = app_with_project().await;
    let command = app.admin().post(SHELL, json!({"args": ["sleep", "60"], "cwd": "."})).await.data(201);
    assert_eq!(command["status"], "running");
    assert_eq!(command["exit_code"], Value::Null);
    assert_eq!(command["termination"], Value::Null);
    assert_eq!(command["type"], "shell");
    assert_eq!(command["args"], json!(["sleep", "60"]));
    assert_eq!(command["project_id"], "p");
    assert_eq!(command["stream_id"], command["command_id"]);
    let id = command["command_id"].as_str().unwrap();
    assert!(id.starts_with("cmd-") && id.len() == 30, "{id}");
    assert!(command.get("ended_at").is_none());
    let me = app.admin().get("/whoami").await.data(200);
    assert_eq!(command["created_by"], me["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_command_shows_its_exit_code_and_what_it_said() {
    let app = app_with_project().await;
    let command = run(&app, json!({"script": "echo out; echo err >&2; exit 3"})).await;
    assert_eq!(command["status"], "exited");
    assert_eq!(command["exit_code"], 3);
    assert_eq!(command["termination"], "exit");
    assert_eq!(command["output"], json!({"bytes": 8, "events": 2, "truncated": false}));
    assert!(command["ended_at"].is_string() && command["duration_ms"].is_u64());
    assert!(command.get("signal").is_none());
    assert_eq!(app.admin().get(&path_of(&command)).await.data(200), command);
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_args_command_and_script_is_needed() {
    let app = app_with_project().await;
    for body in [
        json!({}),
        json!({"args": ["true"], "command": "true"}),
        json!({"args": ["true"], "script": "true"}),
        json!({"command": "true", "script": "true"}),
        json!({"args": []}),
        json!({"args": [""]}),
        json!({"args": "true"}),
        json!({"command": ""}),
        json!({"command": "  "}),
        json!({"args": ["a\u{0}b"]}),
    ] {
        app.admin().post(SHELL, body.clone()).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn args_are_run_as_they_are() {
    let app = app_with_project().await;
    let words = ["a b", "$HOME", "*", ";", "ü", "", "'"];
    let mut args = vec!["printf", "%s|"];
    args.extend(words);
    assert_eq!(said(&app, json!({"args": args})).await, "a b|$HOME|*|;|ü||'|");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_split_as_a_shell_would_without_expansion() {
    let app = app_with_project().await;
    let text = r#"printf '%s|' one 'two three' "four $HOME" five\ six * ~"#;
    assert_eq!(said(&app, json!({"command": text})).await, "one|two three|four $HOME|five six|*|~|");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shell_would_take_as_an_operator_is_rejected_by_its_token() {
    let app = app_with_project().await;
    for (command, token) in [
        ("a; b", ";"),
        ("a && b", "&&"),
        ("a || b", "||"),
        ("a | b", "|"),
        ("a `b`", "`"),
        ("a $(b)", "$("),
        ("a \"$(b)\"", "$("),
        ("a > b", ">"),
        ("a >> b", ">>"),
        ("a < b", "<"),
        ("a &", "&"),
        ("a\nb", "\n"),
        ("a;b", ";"),
    ] {
        assert_eq!(refused_token(&app, command).await, token, "{command:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_destroy_a_machine_are_rejected() {
    let app = app_with_project().await;
    for command in [
        "rm -rf /",
        "rm -fr /",
        "rm -r -f /",
        "rm --recursive --force /",
        "rm -rf /*",
        "rm -rf //",
        "sudo rm -rf /",
        "rm -rf --no-preserve-root /",
        "dd if=/dev/zero of=/dev/sda",
        "mkfs /dev/sda",
        "mkfs.ext4 /dev/sda1",
    ] {
        refused_token(&app, command).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_destructive_is_run() {
    let app = app_with_project().await;
    for command in ["rm -rf ./build", "echo 'rm -rf /'", "echo 'a; b'"] {
        assert_eq!(run(&app, json!({"command": command})).await["status"], "exited", "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_quote_is_refused() {
    let app = app_with_project().await;
    for command in ["echo 'a", "echo \"a", "echo a\\"] {
        app.admin().post(SHELL, json!({"command": command})).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_run_by_a_shell() {
    let app = app_with_project().await;
    assert_eq!(said(&app, json!({"script": "echo one && echo two | tr a-z A-Z > f; cat f"})).await, "one\nTWO\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_may_switch_scripts_off() {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "allow_scripts": false})).await;
    app.admin().post(SHELL, json!({"script": "true"})).await.refusal(403, "SCRIPTS_DISABLED");
    run(&app, json!({"args": ["true"]})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_of_the_longest_length_passes_and_a_longer_one_is_refused() {
    let app = app_with_project().await;
    let longest = "x".repeat(131_071);
    let ran = run(&app, json!({"args": ["sh", "-c", "printf %s ${#1}", "sh", longest]})).await;
    assert_eq!(app.output(&ran).await, "131071");
    for body in [json!({"args": ["true", format!("{longest}x")]}), json!({"command": format!("true {longest}x")})] {
        app.admin().post(SHELL, body).await.refusal(400, "BAD_REQUEST");
    }
    let body = json!({"prompt": format!("{longest}x")});
    app.admin().post("/projects/p/claude", body).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_longer_than_an_argument_may_be_is_run_all_the_same() {
    let app = app_with_project().await;
    for length in [100_000, 131_071, 131_072, 1_000_000] {
        let script = format!("#{}\necho ran; exit 3", "x".repeat(length - 21));
        let command = run(&app, json!({"script": script})).await;
        assert_eq!((app.output(&command).await.as_str(), &command["exit_code"]), ("ran\n", &json!(3)), "{length}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_below_its_workspace() {
    let app = app_with_project().await;
    run(&app, json!({"args": ["mkdir", "-p", "sub/dir"]})).await;
    let project = app.admin().get("/projects/p").await.data(200);
    let workspace = project["workspace"].as_str().unwrap();
    assert_eq!(said(&app, json!({"args": ["pwd"]})).await, format!("{workspace}\n"));
    assert_eq!(said(&app, json!({"args": ["pwd"], "cwd": "sub/./dir/.."})).await, format!("{workspace}/sub\n"));
    for cwd in ["/etc", "..", "sub/../..", "../p"] {
        app.admin().post(SHELL, json!({"args": ["pwd"], "cwd": cwd})).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_leads_no_command_out_of_its_place() {
    let app = app_with_project().await;
    app.project("q").await;
    let other = app.admin().get("/projects/q").await.data(200);
    run(&app, json!({"args": ["ln", "-s", other["workspace"], "link"]})).await;
    let body = json!({"args": ["cat", "README.md"], "cwd": "link"});
    app.admin().post(SHELL, body).await.refusal(400, "BAD_REQUEST");
    let tried = run(&app, json!({"args": ["cat", "link/README.md"]})).await;
    assert_ne!(tried["exit_code"], 0, "{}", app.output(&tried).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_sees_its_own_environment_and_nothing_of_the_servers() {
    let app = app_with_project().await;
    let command = run(&app, json!({"args": ["env"], "env": {"MINE": "a b\nc"}})).await;
    let text = app.output(&command).await;
    for expected in [
        format!("RDEV_COMMAND_ID={}\n", command["command_id"].as_str().unwrap()),
        "RDEV_PROJECT_ID=p\n".into(),
        "RDEV_BRANCH=main\n".into(),
        "MINE=a b\nc\n".into(),
    ] {
        assert!(text.contains(&expected), "{expected:?} is missing in {text}");
    }
    let known = [
        "PATH",
        "HOME",
        "LANG",
        "TERM",
        "TMPDIR",
        "PWD",
        "SHLVL",
        "_",
        "OLDPWD",
        "MINE",
        "RDEV_PROJECT_ID",
        "RDEV_COMMAND_ID",
        "RDEV_BRANCH",
        "RUSTUP_HOME",
        "RUSTUP_TOOLCHAIN",
        "JAVA_HOME",
        "GOROOT",
    ];
    let text = text.replace("MINE=a b\nc\n", "");
    let names: Vec<_> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert!(["PATH", "HOME", "LANG", "TERM", "TMPDIR"].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_cannot_be_one_is_refused() {
    let app = app_with_project().await;
    for env in [json!({"": "x"}), json!({"A=B": "x"}), json!({"A": 1}), json!(["A"]), json!({"A": "x\u{0}"})] {
        app.admin().post(SHELL, json!({"args": ["env"], "env": env})).await.refusal(400, "BAD_REQUEST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn home_is_kept_between_commands_and_outside_of_the_tree() {
    let app = app_with_project().await;
    run(&app, json!({"script": "echo kept > $HOME/note"})).await;
    assert_eq!(said(&app, json!({"script": "cat $HOME/note; git status --porcelain"})).await, "kept\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_is_given_whole_and_then_closed() {
    let app = app_with_project().await;
    let text = "ü\n".repeat(300_000);
    assert_eq!(said(&app, json!({"args": ["wc", "-c"], "stdin": text})).await.trim(), text.len().to_string());
    assert_eq!(said(&app, json!({"args": ["wc", "-c"]})).await.trim(), "0");
    let longer = "x".repeat((1 << 20) + 1);
    app.admin().post(SHELL, json!({"args": ["cat"], "stdin": longer})).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_or_wait_that_is_no_duration_in_bounds_is_refused() {
    let app = app_with_project().await;
    for (field, value) in [
        ("timeout", "0s"),
        ("timeout", "-1s"),
        ("timeout", "24h1s"),
        ("timeout", "soon"),
        ("timeout", "10"),
        ("wait", "61s"),
        ("wait", "0s"),
        ("wait", "x"),
    ] {
        app.admin().post(SHELL, json!({"args": ["true"], field: value})).await.refusal(400, "BAD_REQUEST");
    }
    app.admin().post(SHELL, json!({"args": ["true"], "timeout": 10})).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_command_id_and_body_is_the_same_command() {
    let app = app_with_project().await;
    let body = json!({"script": "echo once >> runs", "command_id": "build-1"});
    let first = app.admin().post(SHELL, body.clone()).await.data(201);
    assert_eq!((&first["command_id"], &first["stream_id"]), (&json!("build-1"), &json!("build-1")));
    eventually("its end", async || {
        (app.admin().post(SHELL, body.clone()).await.data(200)["status"] == "exited").then_some(())
    })
    .await;
    assert_eq!(said(&app, json!({"args": ["cat", "runs"]})).await, "once\n");
    let other = json!({"script": "echo twice", "command_id": "build-1"});
    app.admin().post(SHELL, other).await.refusal(409, "COMMAND_ID_CONFLICT");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_starts_under_one_command_id_at_once_start_one() {
    let app = app_with_project().await;
    let body = json!({"script": "echo once >> runs", "command_id": "build-1", "wait": "30s"});
    let admin = app.admin();
    let (one, two) = tokio::join!(admin.post(SHELL, body.clone()), admin.post(SHELL, body.clone()));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201], "{} {}", one.text, two.text);
    assert_eq!(said(&app, json!({"args": ["cat", "runs"]})).await, "once\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_id_out_of_form_is_refused() {
    let app = app_with_project().await;
    let long = "a".repeat(65);
    for id in ["", ".", "..", "a/b", "a b", "ä", "a:1", long.as_str()] {
        app.admin().post(SHELL, json!({"args": ["true"], "command_id": id})).await.refusal(400, "BAD_REQUEST");
    }
    let longest = "a".repeat(64);
    assert_eq!(run(&app, json!({"args": ["true"], "command_id": longest})).await["command_id"], longest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_cannot_be_started() {
    let app = app_with_project().await;
    let command = run(&app, json!({"args": ["no-such-program"]})).await;
    assert_eq!((&command["status"], &command["exit_code"]), (&json!("exited"), &Value::Null));
    assert_eq!(command["termination"], "start_failed");
    let last = app.listen(command["events_url"].as_str().unwrap()).await.rest().await.pop().unwrap();
    assert_eq!((last.name.as_str(), &last.data["code"]), ("error", &json!("EXEC_FAILED")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_command_ends_with_its_whole_group() {
    let app = app_with_project().await;
    let command = begun(&app, "sleep 600 & echo $! > child; echo begun; wait").await;
    let cancelled = app.admin().delete(&path_of(&command)).await.data(200);
    assert_eq!((&cancelled["status"], &cancelled["termination"]), (&json!("exited"), &json!("cancelled")));
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    let last = events.rest().await.pop().unwrap();
    assert!(last.is_last());
    assert_eq!((last.name.as_str(), &last.data["code"]), ("error", &json!("CANCELLED")));
    assert_eq!(last.data["termination"], "cancelled");
    let alive = said(&app, json!({"script": "pgrep -f '^sleep 600$' | wc -l"})).await;
    assert_eq!(alive.trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ignores_term_is_killed_after_its_grace() {
    let app = app_with_project().await;
    let command = begun(&app, "trap '' TERM; echo begun; while :; do sleep 0.1; done").await;
    let cancelled = app.admin().delete(&path_of(&command)).await.data(200);
    assert_eq!((&cancelled["termination"], &cancelled["exit_code"]), (&json!("cancelled"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_with_which_a_cancelled_command_ends_is_kept() {
    let app = app_with_project().await;
    let command = begun(&app, "trap 'exit 7' TERM; echo begun; while :; do sleep 0.05; done").await;
    let cancelled = app.admin().delete(&path_of(&command)).await.data(200);
    assert_eq!((&cancelled["termination"], &cancelled["exit_code"]), (&json!("cancelled"), &json!(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_what_has_ended_changes_nothing() {
    let app = app_with_project().await;
    let command = run(&app, json!({"args": ["true"]})).await;
    for _ in 0..2 {
        assert_eq!(app.admin().delete(&path_of(&command)).await.data(200), command);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_past_its_timeout_is_ended() {
    let app = app_with_project().await;
    let command = run(&app, json!({"script": "echo begun; sleep 600", "timeout": "300ms"})).await;
    assert_eq!((&command["status"], &command["termination"]), (&json!("exited"), &json!("timeout")));
    let last = app.listen(command["events_url"].as_str().unwrap()).await.rest().await.pop().unwrap();
    assert_eq!((last.name.as_str(), &last.data["code"]), ("error", &json!("TIMEOUT")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_dies_of_a_signal_shows_it_and_no_exit_code() {
    let app = app_with_project().await;
    let command = run(&app, json!({"script": "kill -KILL $$"})).await;
    assert_eq!((&command["exit_code"], &command["signal"]), (&Value::Null, &json!("KILL")));
    assert_eq!(command["termination"], "signal");
    let last = app.listen(command["events_url"].as_str().unwrap()).await.rest().await.pop().unwrap();
    assert_eq!(last.name, "complete");
    assert_eq!((&last.data["exit_code"], &last.data["signal"]), (&Value::Null, &json!("KILL")));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_137_is_an_exit_code() {
    let app = app_with_project().await;
    let command = run(&app, json!({"script": "exit 137"})).await;
    assert_eq!((&command["exit_code"], &command["termination"]), (&json!(137), &json!("exit")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grandchild_that_keeps_the_pipe_open_keeps_no_command_running() {
    let app = app_with_project().await;
    let started = std::time::Instant::now();
    let command = run(&app, json!({"script": "setsid sleep 300 & echo done"})).await;
    assert_eq!((&command["exit_code"], app.output(&command).await.as_str()), (&json!(0), "done\n"));
    assert!(started.elapsed() < Duration::from_secs(25));
    let alive = said(&app, json!({"script": "pgrep -f '^sleep 300$' | wc -l"})).await;
    assert_eq!(alive.trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_past_its_output_limit_is_ended() {
    let app = TestApp::with(&[("RDEV_OUTPUT_LIMIT", "64KiB")]).await;
    app.project("p").await;
    let command = run(&app, json!({"script": "yes"})).await;
    assert_eq!((&command["termination"], &command["output"]["truncated"]), (&json!("output_limit"), &json!(true)));
    assert!(command["output"]["bytes"].as_u64().unwrap() <= 64 << 10, "{command}");
    let last = app.listen(command["events_url"].as_str().unwrap()).await.rest().await.pop().unwrap();
    assert_eq!((last.name.as_str(), &last.data["code"]), ("error", &json!("OUTPUT_LIMIT")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_cannot_read_the_rest_of_the_data_directory() {
    let app = app_with_project().await;
    app.project("q").await;
    let data = app.ground.data_dir();
    let health = app.nobody().get("/health").await.data(200);
    assert_eq!(health["checks"]["isolation"]["status"], "ok", "this machine has no sandbox: {health}");
    let other = app.admin().get("/projects/q").await.data(200);
    for path in [
        data.join("admin.key").display().to_string(),
        other["workspace"].as_str().unwrap().to_owned() + "/README.md",
        data.join("git").display().to_string(),
    ] {
        let tried = run(&app, json!({"args": ["ls", "-la", path]})).await;
        assert_ne!(tried["exit_code"], 0, "{path}: {}", app.output(&tried).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_cannot_write_outside_of_its_place() {
    let app = app_with_project().await;
    for path in ["/usr/rdev-test", "/etc/rdev-test", "/var/rdev-test"] {
        assert_ne!(run(&app, json!({"args": ["touch", path]})).await["exit_code"], 0, "{path}");
    }
    assert_eq!(run(&app, json!({"script": "touch $TMPDIR/x here"})).await["exit_code"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_listed_newest_first_by_status() {
    let app = app_with_project().await;
    let first = run(&app, json!({"args": ["true"]})).await;
    let second = begun(&app, "echo begun; sleep 60").await;
    let list = async |query: &str| -> Vec<Value> {
        let listed = app.admin().get(&format!("/projects/p/commands{query}")).await.data(200);
        listed["commands"].as_array().unwrap().iter().map(|command| command["command_id"].clone()).collect()
    };
    let (first, second) = (first["command_id"].clone(), second["command_id"].clone());
    assert_eq!(list("").await, [second.clone(), first.clone()]);
    assert_eq!(list("?status=running").await, [second]);
    assert_eq!(list("?status=exited").await, [first]);
    assert_eq!(list("?status=lost").await, [] as [Value; 0]);
    app.admin().get("/projects/p/commands?status=odd").await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_command_is_not_found() {
    let app = app_with_project().await;
    for id in ["cmd-01J00000000000000000000000", "x", "a%20b", "%ff"] {
        let path = format!("/projects/p/commands/{id}");
        app.admin().get(&path).await.refusal(404, "NOT_FOUND");
        app.admin().delete(&path).await.refusal(404, "NOT_FOUND");
        app.admin().get(&format!("{path}/output")).await.refusal(404, "NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_projects_command_is_not_found() {
    let app = app_with_project().await;
    app.project("q").await;
    let command = run(&app, json!({"args": ["true"]})).await;
    let path = path_of(&command).replace("/p/", "/q/");
    app.admin().get(&path).await.refusal(404, "NOT_FOUND");
    let id = command["command_id"].as_str().unwrap();
    app.admin().get(&format!("/projects/q/events?stream_id={id}")).await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commands_routes_ask_for_their_scopes() {
    let app = app_with_project().await;
    let command = run(&app, json!({"args": ["true"]})).await;
    let reader = app.someone(&["projects:read"]).await;
    let runner = app.someone(&["projects:execute"]).await;
    let in_sessions = app.someone(&["sessions:read", "sessions:execute"]).await;
    reader.post(SHELL, json!({"args": ["true"]})).await.refusal(403, "FORBIDDEN");
    reader.delete(&path_of(&command)).await.refusal(403, "FORBIDDEN");
    reader.get(&path_of(&command)).await.data(200);
    runner.get(&path_of(&command)).await.refusal(403, "FORBIDDEN");
    runner.delete(&path_of(&command)).await.data(200);
    in_sessions.post(SHELL, json!({"args": ["true"]})).await.refusal(403, "FORBIDDEN");
    in_sessions.get(&path_of(&command)).await.refusal(404, "NOT_FOUND");
    in_sessions.delete(&path_of(&command)).await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn git_is_run_in_the_workspace() {
    let app = app_with_project().await;
    let body = json!({"args": ["log", "--format=%an", "-1"], "wait": "30s"});
    let command = app.admin().post("/projects/p/git", body).await.data(201);
    assert_eq!((&command["type"], &command["exit_code"]), (&json!("git"), &json!(0)));
    assert_eq!(command["args"][0], "git");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_lead_git_elsewhere_are_rejected() {
    let app = app_with_project().await;
    for args in [
        &["-c", "core.pager=id", "log"][..],
        &["-ccore.pager=id", "log"],
        &["--config-env", "a=B", "log"],
        &["--config-env=a=B", "log"],
        &["-C", "/", "log"],
        &["--exec-path=/tmp", "log"],
        &["--git-dir", "/x", "log"],
        &["--git-dir=/x", "log"],
        &["--work-tree=/x", "log"],
        &["--no-pager", "-c", "a=b", "log"],
        &["fetch", "--upload-pack=id", "origin"],
        &["fetch", "--upload-pack", "id", "origin"],
        &["push", "--receive-pack=id", "origin"],
        &["clone", "ext::sh -c id"],
    ] {
        let reply = app.admin().post("/projects/p/git", json!({"args": args})).await;
        reply.refusal(400, "COMMAND_REJECTED");
    }
    app.admin().post("/projects/p/git", json!({"args": []})).await.refusal(400, "BAD_REQUEST");
    app.admin().post("/projects/p/git", json!({})).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_behind_the_subcommand_are_its_own() {
    let app = app_with_project().await;
    let body = json!({"args": ["commit", "--allow-empty", "-m", "x", "-c", "HEAD"], "wait": "30s"});
    app.admin().post("/projects/p/git", body).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_gets_the_prompt_as_one_argument() {
    let app = TestApp::start().await;
    app.project_with(json!({"id": "p", "agent_command": ["printf", "[%s]", "--say={prompt}"]})).await;
    let body = json!({"prompt": "fix $it; now", "args": ["--fast"], "wait": "30s"});
    let command = app.admin().post("/projects/p/claude", body).await.data(201);
    assert_eq!(command["type"], "claude");
    assert_eq!(app.output(&command).await, "[--say=fix $it; now][--fast]");
    app.admin().post("/projects/p/claude", json!({})).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_command() {
    let app = app_with_project().await;
    let started = std::time::Instant::now();
    let command = app.admin().post(SHELL, json!({"script": "exit 4", "wait": "60s"})).await.data(201);
    assert_eq!(command["exit_code"], 4);
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_over_shows_the_command_running() {
    let app = app_with_project().await;
    let command = app.admin().post(SHELL, json!({"args": ["sleep", "60"], "wait": "50ms"})).await.data(201);
    assert_eq!(command["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_when_its_client_goes_away() {
    let app = app_with_project().await;
    let body = json!({"script": "echo done > file", "command_id": "mine", "wait": "60s"}).to_string();
    let request = app.admin().request(http::Method::POST, SHELL, Some(body), &[]);
    let _cut = tokio::time::timeout(Duration::from_millis(100), request.send()).await;
    let exited = eventually("the end of the command", async || {
        let reply: Reply = app.admin().get("/projects/p/commands/mine").await;
        // cut before it was read, nothing was asked for
        (reply.status == 404 || reply.data(200)["status"] == "exited").then_some(reply.status)
    });
    if exited.await == 200 {
        assert_eq!(said(&app, json!({"args": ["cat", "file"]})).await, "done\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_may_end_commands() {
    let app = app_with_project().await;
    let command = begun(&app, "echo begun; sleep 600").await;
    let app = app.restart(&[]).await;
    let ended = eventually("its end", async || {
        let shown = app.admin().get(&path_of(&command)).await.data(200);
        (shown["status"] != "running").then_some(shown)
    });
    let ended = ended.await;
    assert_eq!((&ended["status"], &ended["termination"]), (&json!("exited"), &json!("server_stopped")));
    let last = app.listen(command["events_url"].as_str().unwrap()).await.rest().await.pop().unwrap();
    assert_eq!((last.name.as_str(), &last.data["code"]), ("error", &json!("SERVER_STOPPED")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_outlives_an_orderly_stop_that_keeps_commands() {
    let app = TestApp::with(&[("RDEV_STOP_COMMANDS", "keep")]).await;
    app.project("p").await;
    let command = begun(&app, "echo one; while ! test -e go; do sleep 0.05; done; echo two; exit 5").await;
    let app = app.restart(&[]).await;
    run(&app, json!({"args": ["touch", "go"]})).await;
    let mut events = app.listen(command["events_url"].as_str().unwrap()).await;
    let seen = events.rest().await;
    let lines: Vec<_> = seen.iter().map(|event| (event.number(), event.line())).collect();
    assert_eq!(lines, [(Some(1), "one"), (Some(2), "two"), (None, "")]);
    assert_eq!(seen[2].data["exit_code"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_has_only_just_begun_is_cancelled_all_the_same() {
    let app = app_with_project().await;
    for _ in 0..5 {
        let command = app.admin().post(SHELL, json!({"args": ["sleep", "600"]})).await.data(201);
        let cancelled = app.admin().delete(&path_of(&command)).await.data(200);
        assert_eq!((&cancelled["status"], &cancelled["termination"]), (&json!("exited"), &json!("cancelled")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_ends_a_command_that_has_only_just_begun() {
    let mut app = app_with_project().await;
    for _ in 0..4 {
        let body = json!({"args": ["sleep", "600"]});
        let started = futures::future::join_all((0..3).map(|_| {
            let (api, body) = (app.admin(), body.clone());
            async move { api.post(SHELL, body).await.data(201) }
        }));
        let started = started.await;
        let key = app.admin_key.clone();
        let ground = app.stop().await;
        let running = ground.db.count("select count(*) from command where status = 'running'").await;
        assert_eq!(running, 0, "the stop left some of {} running", started.len());
        app = TestApp::on(ground, &[]).await;
        app.admin_key = key;
    }
}

//! Operations: health, metrics, the document, the command line, start and stop.

use std::{collections::BTreeMap, process::Stdio};

use serde_json::{Value, json};

use super::support::{Ground, Server, TestApp, eventually, server, soon};

/// Runs the program to its end. Answers the exit code, stdout and stderr.
async fn rdev(ground: &Ground, args: &[&str], own: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = server::program(ground, own);
    let output = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = soon("the end of the program", output).await.expect("the program was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_what_is_there_and_no_secrets() {
    let app = TestApp::start().await;
    let reply = app.nobody().get("/health").await;
    let health = reply.data(200);
    assert_eq!(
        (&health["status"], &health["database"], &health["runtime"], &health["git_host"]),
        (&json!("ok"), &json!("ok"), &json!("local"), &json!("embedded"))
    );
    assert!(health["version"].is_string() && health["checks"].is_object() && health["model_upstream"].is_string());
    let data_dir = app.ground.data_dir().display().to_string();
    for secret in ["rdev_sk_", "postgres", "127.0.0.1", data_dir.as_str()] {
        assert!(!reply.text.contains(secret), "{secret}: {}", reply.text);
    }
    app.nobody().get("/health/live").await.data(200);
    app.nobody().get("/health/ready").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_count_what_was_done() {
    let app = TestApp::start().await;
    app.project("p").await;
    app.script("p", "true").await;
    app.bearing("rdev_sk_wrong").get("/projects").await.refusal(401, "UNAUTHORIZED");
    let _open = app.listen("/projects/p/events").await;
    eventually("a worker has run", async || {
        app.nobody().get("/metrics").await.text.contains("rdev_worker_last_success").then_some(())
    })
    .await;
    let reply = app.nobody().get("/metrics").await;
    assert!(reply.header("content-type").starts_with("text/plain"));
    for name in [
        "rdev_commands_total{",
        "rdev_command_duration_seconds_count{",
        "rdev_active_streams{project=\"p\"} 1",
        "rdev_auth_failures_total{reason=",
        "endpoint=\"/projects/{id}/shell\",method=\"POST\",status=\"201\"",
        "rdev_worker_runs_total{",
        "rdev_build_info",
    ] {
        assert!(reply.text.contains(name), "{name} is missing in {}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_label_has_values_that_a_client_makes_up() {
    let app = TestApp::start().await;
    for path in ["/made-up-path", "/projects/made-up-project", "/keys/made-up-key"] {
        app.admin().get(path).await.refusal(404, "NOT_FOUND");
    }
    let method = http::Method::from_bytes(b"MADEUP").unwrap();
    app.admin().send(method, "/projects", None, &[]).await;
    let text = app.nobody().get("/metrics").await.text;
    assert!(!text.contains("made-up") && !text.contains("MADEUP"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_may_have_a_listener_of_their_own() {
    let app = TestApp::with(&[("RDEV_METRICS_LISTEN", "127.0.0.1:0")]).await;
    app.nobody().get("/metrics").await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_describes_every_route_with_its_scopes() {
    let app = TestApp::start().await;
    let reply = app.nobody().get("/openapi.json").await;
    let document: Value = reply.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let routes: BTreeMap<&str, &[&str]> = [
        ("/projects", &["get", "post"][..]),
        ("/projects/{id}", &["get", "patch", "delete"]),
        ("/projects/{id}/shell", &["post"]),
        ("/projects/{id}/events", &["get"]),
        ("/projects/{id}/commands/{cid}", &["get", "delete"]),
        ("/projects/{id}/commands/{cid}/output", &["get"]),
        ("/projects/{id}/checkout/{checkout_id}/rotate", &["post"]),
        ("/projects/{id}/sessions/{sid}/exec", &["post"]),
        ("/keys/{kid}/rotate", &["post"]),
        ("/stream-tickets", &["post"]),
        ("/whoami", &["get"]),
        ("/health", &["get"]),
    ]
    .into();
    for (path, methods) in routes {
        for method in methods {
            let operation = &document["paths"][path][method];
            assert!(operation["operationId"].is_string(), "{method} {path} is not described");
        }
    }
    let rule = &document["paths"]["/projects/{id}/sessions/{sid}/exec"]["post"]["x-scopes-any"];
    assert_eq!(rule, &json!(["sessions:execute", "projects:execute"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_in_the_document_leads_somewhere() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => members.iter().for_each(|(name, member)| match member {
                Value::String(target) if name == "$ref" => found.push(target.clone()),
                member => references(member, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let app = TestApp::start().await;
    let document = app.nobody().get("/openapi.json").await.json();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("within the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_for_people_load_nothing_from_elsewhere() {
    let app = TestApp::start().await;
    for path in ["/", "/docs"] {
        let reply = app.nobody().get(path).await;
        assert_eq!(reply.status, 200);
        assert!(reply.header("content-type").starts_with("text/html"));
        assert!(!reply.text.contains("http://") && !reply.text.contains("https://"), "{}", reply.text);
        assert!(reply.header("content-security-policy").contains("default-src 'none'"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_without_work_is_quick() {
    let app = TestApp::start().await;
    app.project("p").await;
    app.script("p", "true").await;
    let started = std::time::Instant::now();
    let ground = app.stop().await;
    assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(ground.db.count("select count(*) from process").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_migrates_and_a_second_changes_nothing() {
    let app = TestApp::start().await;
    app.project("p").await;
    let before = app.db().count("select count(*) from _sqlx_migrations").await;
    let app = app.restart(&[]).await;
    assert_eq!(app.db().count("select count(*) from _sqlx_migrations").await, before);
    app.admin().get("/projects/p").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_newer_than_the_program_stops_the_start() {
    let ground = TestApp::start().await.stop().await;
    ground
        .db
        .run(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
              values (99999999, 'from the future', true, '', 0)",
        )
        .await;
    let (code, _, stderr) = rdev(&ground, &["serve"], &[]).await;
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("newer"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_auto_migrate_an_empty_database_stops_the_start() {
    let ground = Ground::new().await;
    let (code, _, stderr) = rdev(&ground, &["serve"], &[("RDEV_AUTO_MIGRATE", "false")]).await;
    assert!(code == 1 && stderr.contains("rdev migrate"), "{code}: {stderr}");
    let (code, ..) = rdev(&ground, &["migrate"], &[]).await;
    assert_eq!(code, 0);
    let server = Server::start(&ground, &[("RDEV_AUTO_MIGRATE", "false")]).await;
    server.admin().get("/whoami").await.data(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_cannot_be_used_stops_the_start_with_one_line() {
    let ground = Ground::new().await;
    for (name, value) in [
        ("RDEV_RATE_LIMIT", "many"),
        ("RDEV_RATE_LIMIT", "-1"),
        ("RDEV_LISTEN", "nowhere"),
        ("RDEV_ADMIN_KEY", "rdev_sk_short"),
        ("RDEV_KILL_GRACE", "soon"),
        ("RDEV_STOP_COMMANDS", "maybe"),
        ("RDEV_LOCAL_SANDBOX", "sometimes"),
        ("RDEV_TRUSTED_PROXIES", "10.0.0.0/99"),
        ("RDEV_OUTPUT_LIMIT", "big"),
        ("RDEV_AUTO_MIGRATE", "perhaps"),
        ("RDEV_NO_SUCH_SETTING", "1"),
        ("DATABASE_URL", "mysql://x"),
        ("RDEV_JOB_TTL", "x"),
        ("RDEV_RUNTIME", "cloud"),
    ] {
        let (code, stdout, stderr) = rdev(&ground, &["serve"], &[(name, value)]).await;
        assert_eq!((code, stdout.as_str()), (2, ""), "{name}={value}: {stderr}");
        assert!(stderr.contains(name) && stderr.trim_end().lines().count() == 1, "{name}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_belong_to_others_are_ignored() {
    let ground = Ground::new().await;
    let foreign = [
        ("RDEV_URL", "x"),
        ("RDEV_TOKEN", "x"),
        ("RDEV_TEST_X", "x"),
        ("RDEV_BENCH_X", "x"),
        ("RDEV_CLUSTER_X", "x"),
        ("RDEV_SERVICE_HOST", "x"),
        ("RDEV_PORT", "x"),
        ("RDEV_PORT_80_TCP", "x"),
        ("RDEV_PROJECT_ID", "x"),
        ("RDEV_COMMAND_ID", "x"),
        ("RDEV_SESSION_ID", "x"),
        ("RDEV_BRANCH", "x"),
    ];
    let (code, _, stderr) = rdev(&ground, &["config"], &foreign).await;
    assert_eq!(code, 0, "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_stops_the_start_with_code_1() {
    let ground = Ground::new().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, stderr) = rdev(&ground, &["serve"], &[("RDEV_LISTEN", &address)]).await;
    assert!(code == 1 && stderr.contains(&address), "{code}: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn config_shows_what_is_in_force_and_where_it_came_from() {
    let ground = Ground::new().await;
    let file = ground.path().join("rdev.toml");
    std::fs::write(&file, "rate_limit = 7\nlisten = \"127.0.0.1:1\"\nkill_grace = \"9s\"\n").unwrap();
    let secret = ground.path().join("secret");
    std::fs::write(&secret, "whsec-very-secret\n").unwrap();
    let own = [
        ("RDEV_CONFIG", file.to_str().unwrap()),
        ("RDEV_KILL_GRACE", ""),
        ("RDEV_WEBHOOK_SECRET_FILE", secret.to_str().unwrap()),
    ];
    let (code, stdout, stderr) = rdev(&ground, &["config", "--listen", "127.0.0.1:2"], &own).await;
    assert_eq!(code, 0, "{stderr}");
    let line = |name: &str| stdout.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("RDEV_LISTEN").contains("127.0.0.1:2") && line("RDEV_LISTEN").contains("flag"), "{stdout}");
    assert!(line("RDEV_RATE_LIMIT").contains('0') && line("RDEV_RATE_LIMIT").contains("environment"), "{stdout}");
    assert!(line("RDEV_KILL_GRACE").contains("9s") && line("RDEV_KILL_GRACE").contains("file"), "{stdout}");
    assert!(line("RDEV_DRAIN").contains("environment"), "{stdout}");
    assert!(line("RDEV_AUTH_FAILURE_LIMIT").contains("20") && line("RDEV_AUTH_FAILURE_LIMIT").contains("default"));
    assert!(!stdout.contains("very-secret") && !stdout.contains(&ground.db.name), "secrets are masked: {stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_of_the_file_stops_the_start() {
    let ground = Ground::new().await;
    let file = ground.path().join("rdev.toml");
    for text in ["rate_limits = 7\n", "rate_limit = [\n", "[server]\nlisten = \"x\"\n"] {
        std::fs::write(&file, text).unwrap();
        let (code, _, stderr) = rdev(&ground, &["serve", "--config", file.to_str().unwrap()], &[]).await;
        assert!(code == 2 && stderr.trim_end().lines().count() == 1, "{text:?}: {code}: {stderr}");
    }
    let (code, ..) = rdev(&ground, &["serve", "--config", "/no/such/file"], &[]).await;
    assert_eq!(code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_and_revoked_beside_a_running_server() {
    let app = TestApp::start().await;
    let args = ["keys", "create", "--name", "cli", "--scopes", "projects:read", "--json"];
    let (code, stdout, stderr) = rdev(&app.ground, &args, &[]).await;
    assert_eq!(code, 0, "{stderr}");
    let made: Value = serde_json::from_str(&stdout).unwrap();
    let holder = app.bearing(made["key"].as_str().unwrap());
    eventually("the server knows the key", async || (holder.get("/projects").await.status == 200).then_some(())).await;
    let (_, listed, _) = rdev(&app.ground, &["keys", "list"], &[]).await;
    assert!(listed.contains(made["id"].as_str().unwrap()), "{listed}");
    let (code, ..) = rdev(&app.ground, &["keys", "revoke", made["id"].as_str().unwrap()], &[]).await;
    assert_eq!(code, 0);
    holder.get("/projects").await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_of_the_command_line_is_code_2() {
    let ground = Ground::new().await;
    for args in [&["nonsense"][..], &["serve", "--nonsense"], &["keys", "revoke", "x"], &["keys"], &[]] {
        assert_eq!(rdev(&ground, args, &[]).await.0, 2, "{args:?}");
    }
    assert_eq!(rdev(&ground, &["--version"], &[]).await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_program_in_order_with_code_0() {
    let ground = Ground::new().await;
    let server = Server::start(&ground, &[]).await;
    let admin = server.admin();
    admin.post("/projects", json!({"id": "p"})).await.data(201);
    let mut events = admin.listen("/projects/p/events").await;
    assert_eq!(events.try_next().await.unwrap().name, "connected");
    let (code, rest) = tokio::join!(server.terminate(), events.rest());
    assert_eq!(code, Some(0));
    assert_eq!(rest.last().map(|event| event.name.as_str()), Some("shutdown"));
    assert_eq!(ground.db.count("select count(*) from process").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_no_secret() {
    let ground = Ground::new().await;
    let server = Server::start(&ground, &[("RDEV_LOG", "trace")]).await;
    let admin = server.admin();
    admin.post("/projects", json!({"id": "p"})).await.data(201);
    let checkout = admin.post("/projects/p/checkout", json!({"new_branch": "x"})).await.data(201);
    let url = checkout["clone_url"].as_str().unwrap();
    let token = url.split_once("rdev:").unwrap().1.split_once('@').unwrap().0.to_owned();
    super::support::git::git(ground.path(), &["ls-remote", url]).await.ok();
    let made = admin.post("/stream-tickets", json!({"path": "/projects/p/events"})).await.data(201);
    let ticket = made["ticket"].as_str().unwrap().to_owned();
    drop(admin.listen(made["url"].as_str().unwrap()).await);
    let key = admin.credential().to_owned();
    assert_eq!(server.terminate().await, Some(0));
    let log = std::fs::read_to_string(server::log_of(&ground)).unwrap();
    assert!(log.len() > 1000, "nothing was logged");
    // The very first start prints the key once, for whoever set it up.
    let log = log.replacen(&key, "", 1);
    for (what, secret) in [("key", &key[14..]), ("token", &token), ("ticket", &ticket)] {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "the {what} is in the log: {}", line.unwrap());
    }
}

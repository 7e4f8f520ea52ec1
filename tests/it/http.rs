//! What holds for every request: envelopes, order of checks, hostile input.

use http::Method;
use serde_json::{Value, json};

use super::support::{TestApp, raw::raw_request};

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_its_envelope() {
    let app = TestApp::start().await;
    let good = app.admin().get("/whoami").await.json();
    assert_eq!(good.as_object().unwrap().keys().collect::<Vec<_>>(), ["data", "meta"]);
    let bad = app.admin().get("/projects/none").await.json();
    assert_eq!(bad.as_object().unwrap().keys().collect::<Vec<_>>(), ["error", "meta"]);
    assert_eq!(bad["error"].as_object().unwrap().keys().collect::<Vec<_>>(), ["code", "message"]);
    let at = good["meta"]["timestamp"].as_str().unwrap();
    assert!(at.ends_with('Z') && at.parse::<chrono::DateTime<chrono::Utc>>().is_ok(), "{at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_taken_or_made_and_shown_everywhere() {
    let app = TestApp::start().await;
    for path in ["/whoami", "/nowhere", "/health", "/projects/BAD"] {
        let reply = app.admin().send(Method::GET, path, None, &[("x-request-id", "my.Id-1_x")]).await;
        assert_eq!(
            (reply.header("x-request-id"), &reply.json()["meta"]["request_id"]),
            ("my.Id-1_x", &json!("my.Id-1_x"))
        );
    }
    let long = "x".repeat(129);
    for bad in ["", "a b", "a/b", "ä", long.as_str()] {
        let reply = app.admin().send(Method::GET, "/whoami", None, &[("x-request-id", bad)]).await;
        let own = reply.header("x-request-id").to_owned();
        assert!(own != bad && !own.is_empty());
        assert_eq!(reply.json()["meta"]["request_id"], own);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_path_is_not_found_with_or_without_a_key() {
    let app = TestApp::start().await;
    for api in [app.admin(), app.nobody()] {
        for path in ["/nowhere", "/projects/p/nowhere", "/keys/x/nowhere", "//", "/%ff"] {
            api.get(path).await.refusal(404, "NOT_FOUND");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_method_names_the_right_ones() {
    let app = TestApp::start().await;
    for api in [app.admin(), app.nobody()] {
        let reply = api.send(Method::PUT, "/projects", None, &[]).await;
        reply.refusal(405, "METHOD_NOT_ALLOWED");
        let allow = reply.header("allow");
        assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
        api.delete("/whoami").await.refusal(405, "METHOD_NOT_ALLOWED");
        api.send(Method::TRACE, "/whoami", None, &[]).await.refusal(405, "METHOD_NOT_ALLOWED");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_with_and_without_its_trailing_slash_answers_alike() {
    let app = TestApp::start().await;
    app.project("p").await;
    for path in ["/projects", "/projects/p", "/projects/p/checkout", "/projects/p/sessions", "/keys", "/whoami"] {
        app.admin().get(path).await.data(200);
        app.admin().get(&format!("{path}/")).await.data(200);
    }
    app.admin().get("/projects/?limit=1").await.data(200);
    app.admin().post("/projects/p/checkout/", json!({"new_branch": "x"})).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checks_come_in_one_order() {
    let app = TestApp::start().await;
    let executor = app.someone(&["jobs:read"]).await;
    let (bound, _) = app.holder(json!({"name": "b", "scopes": ["admin"], "project_ids": ["other"]})).await;
    app.project("p").await;
    app.nobody().post("/projects/BAD/shell", json!([])).await.refusal(401, "UNAUTHORIZED");
    executor.post("/projects/BAD/shell", json!([])).await.refused(400, "BAD_REQUEST", "invalid project id");
    executor.post("/projects/none/shell", json!([])).await.refusal(403, "FORBIDDEN");
    app.admin().post("/projects/none/shell", json!([])).await.refused(404, "NOT_FOUND", "project not found");
    bound.post("/projects/p/shell", json!([])).await.refused(404, "NOT_FOUND", "project not found");
    app.admin().post("/projects/p/shell", json!([])).await.refused(400, "BAD_REQUEST", "invalid request body");
    let sid = "/projects/p/sessions/01890000-0000-7000-8000-000000000000/exec";
    app.admin().post(sid, json!({"args": []})).await.refusal(400, "BAD_REQUEST");
    app.admin().post(sid, json!({"args": ["true"]})).await.refused(404, "NOT_FOUND", "session not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_body_is_told_what_was_wrong_and_where() {
    let app = TestApp::start().await;
    for body in
        ["{", "[]", "null", "\"x\"", "{\"id\": 1}", "{\"id\": \"p\",}", "{\"id\": \"p\"} x", "\u{feff}{}", "id=p"]
    {
        let reply = app.admin().send(Method::POST, "/projects", Some(body.into()), &[]).await;
        reply.refused(400, "BAD_REQUEST", "invalid request body");
        assert!(reply.json()["error"]["details"]["reason"].is_string(), "{body}: {}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_are_a_malformed_body() {
    let app = TestApp::start().await;
    let address = app.url.strip_prefix("http://").unwrap();
    let mut request = format!(
        "POST /projects HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: 12\r\n\r\n",
        app.admin_key
    )
    .into_bytes();
    request.extend_from_slice(b"{\"id\":\"\xff\xfe\"} ");
    let answer = raw_request(&app.url, &request).await;
    assert!(answer.status == 400 && answer.text.contains("invalid request body"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_and_the_content_type_are_ignored() {
    let app = TestApp::start().await;
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let body = json!({"id": "p", "surprise": {"deep": [1]}}).to_string();
    app.admin().send(Method::POST, "/projects", Some(body), &headers).await.data(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_body_is_an_empty_object_where_nothing_is_needed() {
    let app = TestApp::start().await;
    app.project("p").await;
    app.admin().send(Method::POST, "/projects/p/undeploy", None, &[]).await.data(200);
    app.admin().send(Method::PATCH, "/projects/p", Some(" \n".into()), &[]).await.data(200);
    app.admin().send(Method::POST, "/projects", None, &[]).await.refused(400, "BAD_REQUEST", "invalid request body");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_its_routes_limit_is_too_large() {
    let app = TestApp::start().await;
    app.project("p").await;
    let padded = |bytes: usize| json!({"id": "q", "pad": "x".repeat(bytes)}).to_string();
    let send = async |path: &str, body: String| app.admin().send(Method::POST, path, Some(body), &[]).await;
    send("/projects", padded((1 << 20) + 1)).await.refusal(413, "PAYLOAD_TOO_LARGE");
    send("/projects", padded((1 << 20) - 100)).await.data(201);
    let command = |bytes: usize| json!({"args": ["true"], "pad": "x".repeat(bytes)}).to_string();
    send("/projects/p/shell", command((4 << 20) - 100)).await.data(201);
    send("/projects/p/shell", command(4 << 20)).await.refusal(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_chunks_is_measured_too() {
    let app = TestApp::start().await;
    let chunks = (0..40).map(|_| Ok::<_, std::io::Error>(vec![b' '; 32 << 10]));
    let request = app.admin().request(Method::POST, "/projects", None, &[]);
    let response = request.body(reqwest::Body::wrap_stream(futures::stream::iter(chunks))).send().await.unwrap();
    assert_eq!(response.status(), 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nul_is_refused_wherever_it_stands() {
    let app = TestApp::start().await;
    app.project("p").await;
    for body in [
        json!({"id": "q", "name": "a\u{0}"}),
        json!({"id": "q", "labels": {"a": "\u{0}"}}),
        json!({"id": "q", "labels": {"\u{0}": "a"}}),
        json!({"id": "q", "review_command": ["a", "\u{0}"]}),
    ] {
        app.admin().post("/projects", body).await.refusal(400, "BAD_REQUEST");
    }
    let script = json!({"script": "true", "stdin": "a\u{0}b"});
    app.admin().post("/projects/p/shell", script).await.refusal(400, "BAD_REQUEST");
    app.admin().get("/projects/p/commands?status=%00").await.refusal(400, "BAD_REQUEST");
    app.admin().get("/projects/p/events?stream_id=%00").await.refusal(400, "BAD_REQUEST");
    for path in ["/projects/%00", "/projects/a%00"] {
        app.admin().get(path).await.refused(400, "BAD_REQUEST", "invalid project id");
    }
    app.admin().get("/keys/%00").await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doubled_field_does_not_slip_past() {
    let app = TestApp::start().await;
    let body = "{\"id\": \"p\", \"id\": \"q\"}";
    let reply = app.admin().send(Method::POST, "/projects", Some(body.into()), &[]).await;
    assert!(matches!(reply.status, 201 | 400), "{}", reply.text);
    let deep = format!("{{\"id\": \"r\", \"x\": {}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    app.admin().send(Method::POST, "/projects", Some(deep), &[]).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_host_is_needed() {
    let app = TestApp::start().await;
    for hosts in ["", "host: a\r\nhost: b\r\n"] {
        let request = format!("GET /health/live HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        assert_eq!(raw_request(&app.url, request.as_bytes()).await.status, 400, "{hosts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_none_are_refused_and_harm_nobody() {
    let app = TestApp::start().await;
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    let path = format!("GET /{} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "y".repeat(20_000));
    for request in [
        "nonsense\r\n\r\n".as_bytes(),
        b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n",
        b"POST /projects HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n",
        b"POST /projects HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        long.as_bytes(),
        path.as_bytes(),
    ] {
        let answer = raw_request_then_close(&app.url, request).await;
        assert!(answer == 0 || (400..500).contains(&answer), "{answer}");
    }
    app.nobody().get("/health/live").await.data(200);
}

/// As [`raw_request`], with the sending side closed so that a half request is one for good.
async fn raw_request_then_close(url: &str, bytes: &[u8]) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = super::support::raw::connect(url).await;
    let _refused_early = stream.write_all(bytes).await;
    let _closed = stream.shutdown().await;
    let mut answer = Vec::new();
    let _reset = super::support::soon("the answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_out_of_form_is_simply_not_found() {
    let app = TestApp::start().await;
    app.project("p").await;
    for id in ["x", "..%2f..", "%F0%9F", "'--", "01890000-0000-7000-8000-00000000000G"] {
        for path in [
            format!("/projects/p/sessions/{id}"),
            format!("/projects/p/checkout/{id}"),
            format!("/projects/p/commands/{id}"),
            format!("/keys/{id}"),
        ] {
            app.admin().get(&path).await.refusal(404, "NOT_FOUND");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_a_503_and_comes_back_by_itself() {
    let app = TestApp::start().await;
    app.project("p").await;
    app.db().take_away().await;
    for _ in 0..3 {
        let reply = app.admin().get("/projects/p").await;
        reply.refusal(503, "UPSTREAM_UNAVAILABLE");
        assert!(reply.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert!(!reply.text.contains("rdev_test_"), "no internals: {}", reply.text);
    }
    app.nobody().get("/health/live").await.data(200);
    assert_eq!(app.nobody().get("/health/ready").await.status, 503);
    assert_eq!(app.nobody().get("/health").await.status, 503);
    app.db().bring_back().await;
    super::support::eventually("it is back", async || {
        (app.admin().get("/projects/p").await.status == 200).then_some(())
    })
    .await;
    app.script("p", "true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_configured_origins_may_call() {
    let app = TestApp::with(&[("RDEV_CORS_ORIGINS", "https://app.example.com")]).await;
    for (origin, allowed) in [("https://app.example.com", "https://app.example.com"), ("https://evil.example.com", "")]
    {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,idempotency-key"),
        ];
        let preflight = app.nobody().send(Method::OPTIONS, "/projects", None, &headers).await;
        assert_eq!(preflight.header("access-control-allow-origin"), allowed);
        let reply = app.admin().send(Method::GET, "/whoami", None, &[("origin", origin)]).await;
        assert_eq!(reply.header("access-control-allow-origin"), allowed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_path_has_native_errors() {
    let app = TestApp::start().await;
    let reply = app.nobody().get("/jobs/none").await;
    let body: Value = reply.json();
    assert!(body["error"].is_string() && body.get("meta").is_none(), "{body}");
    assert_eq!(reply.header("content-type"), "application/json");
}

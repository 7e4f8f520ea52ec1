//! Ollama's own routes: what upstream says is passed on as it is, and nothing else of it is in reach.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::{
    jobs::{and, app_on, chat, chat_with, refusal, refused, under_way},
    support::{
        Answer, Api, Chat, Gate, Reply, Sink, TestApp, Upstream, eventually,
        sink::{Refusing, Request},
        soon,
    },
};

const CHAT: &str = "/api/chat";

/// The same request to upstream itself and through the app.
async fn both(upstream: &Upstream, app: &TestApp, body: Value) -> (Reply, Reply) {
    (Api::new(&upstream.url, None).post(CHAT, body.clone()).await, app.admin().post(CHAT, body).await)
}

#[track_caller]
fn are_alike((direct, passed): &(Reply, Reply)) {
    assert_eq!((passed.status, passed.text.as_str()), (direct.status, direct.text.as_str()));
    assert_eq!(passed.header("content-type"), direct.header("content-type"));
}

async fn open(app: &TestApp, body: Value) -> reqwest::Response {
    let response = app.admin().request(Method::POST, CHAT, Some(body.to_string()), &[]).send();
    soon("the head of the answer", response).await.expect("the server answers")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_chat_is_passed_on_byte_for_byte() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let said = || {
        Chat::says(&["a <b> & ", "ü😀", "\u{2028}\"\\\n"])
            .thinking("hm")
            .tool_calls(json!([{"function": {"name": "f", "arguments": {}}}]))
    };
    upstream.then(said()).then(said());
    let replies = both(&upstream, &app, chat("hi")).await;
    are_alike(&replies);
    assert_eq!((replies.1.status, replies.1.header("content-type")), (200, "application/x-ndjson"));
    assert_eq!(replies.1.text.lines().count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_in_one_is_passed_on_byte_for_byte() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let replies = both(&upstream, &app, and(chat("hi"), json!({"stream": false}))).await;
    are_alike(&replies);
    assert_eq!(replies.1.json()["message"]["content"], "Hello there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_passed_on_when_it_is_there() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&["one"]).wait(&gate).token("two"));
    let app = app_on(&upstream, &[]).await;
    let mut response = open(&app, chat("hi")).await;
    let first = soon("the first line", response.chunk()).await.unwrap().unwrap();
    let first: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!((&first["message"]["content"], upstream.chats_under_way()), (&json!("one"), 1));
    gate.open();
    let rest = soon("the rest", response.text()).await.unwrap();
    assert_eq!(rest.lines().count(), 2, "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_reaches_upstream_as_it_was_written() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let body = and(chat("hi"), json!({"options": {"seed": 7}, "tools": [], "keep_alive": -1, "format": "json"}));
    app.admin().post(CHAT, body.clone()).await;
    let chats = upstream.chats();
    assert_eq!((chats.len(), chats[0].json()), (1, body));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_callers_credentials_reaches_upstream() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let headers = [("cookie", "session=secret"), ("x-api-key", "secret")];
    app.admin().send(Method::POST, CHAT, Some(chat("hi").to_string()), &headers).await;
    app.admin().send(Method::GET, "/api/tags", None, &headers).await;
    app.admin().send(Method::POST, "/api/show", Some(json!({"model": "llama3"}).to_string()), &headers).await;
    let paths: Vec<_> = upstream.listener.requests().into_iter().map(|request| request.path).collect();
    assert!([CHAT, "/api/tags", "/api/show"].iter().all(|path| paths.iter().any(|seen| seen == path)), "{paths:?}");
    for request in upstream.listener.requests() {
        let all = format!("{:?} {}", request.headers, String::from_utf8_lossy(&request.body));
        assert!(!all.contains(&app.admin_key[..14]) && !all.contains("secret"), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_errors_are_passed_on_with_their_status_and_text() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for (status, error) in
        [(400, "invalid options"), (404, "model 'llama3' not found"), (429, "slow down"), (500, "no memory")]
    {
        upstream.then(Chat::fails(status, error)).then(Chat::fails(status, error));
        let replies = both(&upstream, &app, chat("hi")).await;
        are_alike(&replies);
        assert_eq!((replies.1.status, replies.1.json()), (status, json!({"error": error})));
    }
    upstream.then(Chat::busy());
    let busy = app.admin().post(CHAT, chat("hi")).await;
    let text = "{\"error\":\"server busy, please try again.  maximum pending requests exceeded\"}";
    assert_eq!((busy.status, busy.text.as_str()), (503, text));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_to_come_back_is_passed_on() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    upstream.then(Chat::busy_for(7));
    let busy = app.admin().post(CHAT, chat("hi")).await;
    assert_eq!((busy.status, busy.header("retry-after")), (503, "7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_the_stream_is_passed_on_in_the_stream() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    upstream.then(Chat::says(&["a"]).then_error("no memory"));
    let reply = app.admin().post(CHAT, chat("hi")).await;
    assert_eq!((reply.status, reply.text.lines().last()), (200, Some("{\"error\":\"no memory\"}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_with_a_model_that_nobody_has_is_not_found() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let reply = app.admin().post(CHAT, chat_with("nope", "hi")).await;
    assert!(reply.status == 404 && reply.json()["error"].as_str().unwrap().contains("not found"), "{}", reply.text);
}

/// That the client hears of the break: its reading ends with an error, after this many lines.
async fn breaks_off(chat_that_breaks: Chat, body: Value) {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(chat_that_breaks.clone().wait(&gate));
    let app = app_on(&upstream, &[]).await;
    let mut response = open(&app, body).await;
    assert!(soon("the first line", response.chunk()).await.unwrap().is_some());
    gate.open();
    let end = loop {
        match soon("the end", response.chunk()).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "{chat_that_breaks:?} ends cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_off_breaks_off_here_too() {
    breaks_off(Chat::says(&["a"]).then_cut(), chat("hi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_breaks_off_here_too() {
    breaks_off(Chat::says(&["a"]).then_reset(), chat("hi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_before_it_is_done_breaks_off_here_too() {
    breaks_off(Chat::says(&["a"]).then_closed(), chat("hi")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_one_that_is_cut_off_is_never_a_whole_one() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for broken in [Chat::says(&["a"]).then_cut(), Chat::says(&["a"]).then_reset()] {
        upstream.then(broken);
        let response = open(&app, and(chat("hi"), json!({"stream": false}))).await;
        let (status, body) = (response.status().as_u16(), soon("the end", response.bytes()).await);
        assert!(body.is_err() || status >= 500, "{status} {body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_cancels_the_call() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["a"]).wait(&Gate::new()));
    let app = app_on(&upstream, &[]).await;
    let mut response = open(&app, chat("hi")).await;
    assert!(soon("the first line", response.chunk()).await.unwrap().is_some());
    drop(response);
    eventually("the call's end", async || (upstream.chats_cancelled() == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_before_the_first_byte_cancels_the_call() {
    let upstream = Upstream::start().await;
    upstream.always_for("llama3", Chat::hangs());
    let app = app_on(&upstream, &[]).await;
    for (n, stream) in [true, false].into_iter().enumerate() {
        let body = and(chat("hi"), json!({"stream": stream})).to_string();
        let request = app.admin().request(Method::POST, CHAT, Some(body), &[]);
        let leaving = async {
            under_way(&upstream, 1).await;
        };
        // The request is dropped when upstream has it.
        tokio::select! {
            _ = request.send() => panic!("nothing was said"),
            () = leaving => {}
        }
        eventually("the call's end", async || (upstream.chats_cancelled() == n + 1).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_no_job_and_tells_no_webhook() {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app = app_on(&upstream, &[]).await;
    for url in [sink.hook(), "http://10.0.0.1/".into(), "nonsense".into()] {
        let reply = app.admin().post(CHAT, and(chat("hi"), json!({"state_webhook_url": url}))).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    assert_eq!(app.admin().get("/jobs").await.json(), json!({"jobs": []}));
    assert_eq!(sink.listener.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_workers_passes_chats_on() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "0")]).await;
    assert_eq!(app.admin().post(CHAT, chat("hi")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_may_be_of_16_mib_and_no_larger() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let frame = chat("").to_string().len();
    let body = |size: usize| chat(&"x".repeat(size - frame));
    refusal(&app.admin().post(CHAT, body((16 << 20) + 1)).await, 413);
    let reply = app.admin().post(CHAT, body(16 << 20)).await;
    assert_eq!((reply.status, upstream.chats()[0].body.len()), (200, 16 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_upstream_ollamas_routes_say_so() {
    let app = TestApp::start().await;
    for reply in [
        app.admin().post(CHAT, chat("hi")).await,
        app.admin().get("/api/tags").await,
        app.admin().get("/api/version").await,
        app.admin().get("/api/ps").await,
        app.admin().post("/api/show", json!({"model": "llama3"})).await,
    ] {
        refused(&reply, 503, "no model upstream configured");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_out_of_reach_is_a_503() {
    let refusing = Refusing::new();
    let app = TestApp::with(&[("RDEV_OLLAMA_URL", &refusing.url)]).await;
    for reply in [app.admin().post(CHAT, chat("hi")).await, app.admin().get("/api/version").await] {
        let message = refusal(&reply, 503);
        assert!(!message.contains("127.0.0.1"), "{message}");
        assert!(!reply.header("retry-after").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ollamas_routes_need_a_key_with_the_scope() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let (reader, doer) = (app.someone(&["jobs:read"]).await, app.someone(&["jobs:execute"]).await);
    refused(&app.nobody().post(CHAT, chat("hi")).await, 401, "invalid or missing API key");
    assert!(refusal(&reader.post(CHAT, chat("hi")).await, 403).contains("jobs:execute"));
    assert_eq!(doer.post(CHAT, chat("hi")).await.status, 200);
    let show = || json!({"model": "llama3"});
    for path in ["/api/tags", "/api/version", "/api/ps"] {
        refused(&app.nobody().get(path).await, 401, "invalid or missing API key");
        assert!(refusal(&doer.get(path).await, 403).contains("jobs:read"), "{path}");
        assert_eq!(reader.get(path).await.status, 200, "{path}");
    }
    assert!(refusal(&doer.post("/api/show", show()).await, 403).contains("jobs:read"));
    assert_eq!(reader.post("/api/show", show()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_upstreams_lists_are_its_own() {
    let upstream = Upstream::with(&["llama3", "tiny:1b"]).await;
    upstream.load("tiny:1b");
    let (app, direct) = (app_on(&upstream, &[]).await, Api::new(&upstream.url, None));
    for path in ["/api/tags", "/api/ps", "/api/version"] {
        let (passed, own) = (app.admin().get(path).await, direct.get(path).await);
        assert_eq!((passed.status, passed.json()), (200, own.json()), "{path}");
        assert!(passed.header("content-type").starts_with("application/json"));
    }
    let unknown = app.admin().post("/api/show", json!({"model": "nope"})).await;
    assert!(unknown.status == 404 && unknown.json()["error"].is_string(), "{}", unknown.text);
    let known = app.admin().post("/api/show", json!({"model": "tiny:1b"})).await;
    assert_eq!((known.status, &known.json()["details"]["family"]), (200, &json!("llama")));
}

async fn over_two(one: &Upstream, two: &Upstream) -> TestApp {
    app_on(one, &[("RDEV_OLLAMA_URL", &format!("{}, {}", one.url, two.url))]).await
}

fn names(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.text);
    let models = reply.json()["models"].as_array().unwrap().clone();
    let mut names: Vec<_> = models.iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn two_upstreams_look_like_one() {
    let (one, two) = (Upstream::with(&["a:1", "shared:1"]).await, Upstream::with(&["b:1", "shared:1"]).await);
    one.load("a:1");
    two.load("b:1");
    let app = over_two(&one, &two).await;
    let tags = app.admin().get("/api/tags").await;
    assert_eq!(names(&tags), ["a:1", "b:1", "shared:1"]);
    assert!(
        tags.json()["models"]
            .as_array()
            .unwrap()
            .iter()
            .all(|model| model["digest"].is_string() && model["size"].is_u64())
    );
    assert_eq!(names(&app.admin().get("/api/ps").await), ["a:1", "b:1"]);
    assert!(app.admin().get("/api/version").await.json()["version"].is_string());
    for model in ["a:1", "b:1", "shared:1"] {
        assert_eq!(app.admin().post("/api/show", json!({"model": model})).await.status, 200, "{model}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_goes_to_the_upstream_that_has_the_model() {
    let (one, two) = (Upstream::with(&["a:1"]).await, Upstream::with(&["b:1"]).await);
    let app = over_two(&one, &two).await;
    for (model, upstream) in [("a:1", &one), ("b:1", &two)] {
        assert_eq!(app.admin().post(CHAT, chat_with(model, model)).await.status, 200);
        assert_eq!(upstream.asked(), [model]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_what_is_there_while_one_upstream_is_away() {
    let (one, two) = (Upstream::with(&["a:1"]).await, Upstream::with(&["b:1"]).await);
    let app = over_two(&one, &two).await;
    assert_eq!(names(&app.admin().get("/api/tags").await), ["a:1", "b:1"]);
    one.listener.go_away();
    let left = app.admin().get("/api/tags").await;
    assert!(names(&left).contains(&"b:1".to_owned()), "{}", left.text);
    assert_eq!(app.admin().post(CHAT, chat_with("b:1", "hi")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_route_of_upstream_is_in_reach() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for path in
        ["pull", "push", "create", "copy", "delete", "generate", "embed", "embeddings", "blobs/sha256:0", "nowhere"]
    {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            refusal(&app.admin().send(method, &format!("/api/{path}"), Some(chat("hi").to_string()), &[]).await, 404);
        }
    }
    for path in
        ["/api/tags/x", "/api/%2e%2e/api/pull", "/api/tags/%2e%2e/pull", "/api/chat/../pull", "/v1/chat/completions"]
    {
        let reply = app.admin().send(Method::POST, path, Some(chat("hi").to_string()), &[]).await;
        assert!(reply.status == 404, "{path}: {} {}", reply.status, reply.text);
    }
    for (method, path) in
        [(Method::GET, CHAT), (Method::DELETE, CHAT), (Method::POST, "/api/tags"), (Method::GET, "/api/show")]
    {
        refusal(&app.admin().send(method, path, Some("{}".into()), &[]).await, 405);
    }
    // What the inventory is made of is asked for anyway.
    let known = |request: &Request| ["/api/tags", "/api/ps", "/api/version"].contains(&request.path.as_str());
    let reached: Vec<_> = upstream.listener.requests().into_iter().filter(|request| !known(request)).collect();
    assert!(reached.is_empty(), "{reached:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_of_upstreams_is_not_followed() {
    let (upstream, elsewhere) = (Upstream::start().await, Sink::start().await);
    upstream.then(Chat::instead(Answer::redirect(307, &elsewhere.hook())));
    let app = app_on(&upstream, &[]).await;
    let reply = app.admin().post(CHAT, chat("hi")).await;
    assert!(reply.status >= 300, "{} {}", reply.status, reply.text);
    assert_eq!((upstream.chats().len(), elsewhere.listener.connections()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_does_not_wait_for_the_jobs_before_it() {
    let upstream = Upstream::with(&["llama3", "slow"]).await;
    upstream.always_for("slow", Chat::hangs());
    let app = app_on(&upstream, &[("RDEV_WORKERS", "1")]).await;
    super::jobs::submit(&app.admin(), chat_with("slow", "hi")).await;
    under_way(&upstream, 1).await;
    let reply = tokio::time::timeout(Duration::from_secs(10), app.admin().post(CHAT, chat("hi"))).await;
    assert_eq!(reply.expect("an answer").status, 200);
}

//! Real clients: Ollama's own library for Python, and the Standard Webhooks libraries for
//! Python and Node. `tests/clients/install.sh` fetches them, and what a browser is led by; the
//! scripts are beside it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    jobs::{and, app_on, chat, submit},
    support::{Chat, Sink, TestApp, Upstream, sink::Request, soon},
};

/// Where the clients were installed.
pub fn folder() -> PathBuf {
    std::env::var_os("RDEV_TEST_CLIENTS").map(PathBuf::from).expect("RDEV_TEST_CLIENTS is not set: run ./dev test")
}

/// Runs a script to its end. Answers whether it succeeded, and the one JSON value that it printed.
async fn run(program: &Path, script: &str, args: &[&str], own: &[(&str, &str)], input: &str) -> (bool, Value) {
    soon(script, led(program, script, args, own, input)).await
}

/// As [`run`], for as long as it takes.
pub async fn led(program: &Path, script: &str, args: &[&str], own: &[(&str, &str)], input: &str) -> (bool, Value) {
    let mut child = Command::new(program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script))
        .args(args)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("RDEV_TEST_CLIENTS", folder())
        .envs(own.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; run ./dev test", program.display()));
    let mut stdin = child.stdin.take().expect("it is piped");
    // A script that does not read closes its end.
    let _closed = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.expect("it is our child");
    let said = serde_json::from_slice(&output.stdout);
    let said = said.unwrap_or_else(|error| panic!("{script}: {error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), said)
}

/// What Ollama's library makes of the server at this URL.
async fn ollama(url: &str, key: Option<&str>, args: &[&str]) -> Value {
    let own: Vec<_> = key.map(|key| ("RDEV_TOKEN", key)).into_iter().collect();
    let python = folder().join("venv/bin/python");
    run(&python, "ollama_chat.py", &[&[url], args].concat(), &own, "").await.1
}

async fn models_say(url: &str, key: Option<&str>) {
    let expected = json!({"chunks": ["Hello", " there", ""], "done": true});
    assert_eq!(ollama(url, key, &["stream", "llama3"]).await, expected);
    let whole = ollama(url, key, &["whole", "llama3"]).await;
    assert_eq!(whole, json!({"content": "Hello there", "role": "assistant", "done": true, "done_reason": "stop"}));
    assert_eq!(ollama(url, key, &["list"]).await, json!({"models": ["llama3:latest", "tiny:1b"]}));
    let unknown = ollama(url, key, &["whole", "nope"]).await;
    assert_eq!(unknown["status"], 404);
    assert!(unknown["error"].as_str().unwrap().contains("not found"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ollamas_library_takes_the_tests_upstream_for_ollama() {
    let upstream = Upstream::with(&["llama3", "tiny:1b"]).await;
    models_say(&upstream.url, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ollamas_library_talks_to_models_through_rdev() {
    let upstream = Upstream::with(&["llama3", "tiny:1b"]).await;
    let app = app_on(&upstream, &[]).await;
    models_say(&app.url, Some(&app.admin_key)).await;
    let refused = ollama(&app.url, Some("rdev_sk_wrong"), &["whole", "llama3"]).await;
    assert_eq!(refused, json!({"status": 401, "error": "invalid or missing API key"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn ollamas_library_hears_of_an_error_in_the_stream() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["half an "]).then_error("no memory"));
    let app = app_on(&upstream, &[]).await;
    let heard = ollama(&app.url, Some(&app.admin_key), &["stream", "llama3"]).await;
    assert_eq!(heard["error"], "no memory");
}

#[tokio::test(flavor = "multi_thread")]
async fn ollamas_library_does_not_take_a_broken_stream_for_a_whole_one() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["half an "]).then_cut());
    let app = app_on(&upstream, &[]).await;
    let heard = ollama(&app.url, Some(&app.admin_key), &["stream", "llama3"]).await;
    assert_eq!(upstream.chats().len(), 1);
    assert!(heard["error"].is_string() && heard.get("done").is_none() && heard.get("status").is_none(), "{heard}");
}

/// What each library says of a delivery under a secret: the event that it verified, or `None`.
async fn verified(secret: &str, request: &Request) -> [Option<Value>; 2] {
    let headers: serde_json::Map<_, _> =
        request.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    let input = json!({"secret": secret, "headers": headers, "body": request.text()}).to_string();
    let (python, node) = (folder().join("venv/bin/python"), PathBuf::from("node"));
    let (by_python, by_node) =
        tokio::join!(run(&python, "verify.py", &[], &[], &input), run(&node, "verify.mjs", &[], &[], &input));
    [by_python, by_node].map(|(good, said)| {
        assert_eq!(good, said.get("refused").is_none(), "{said}");
        good.then(|| said["event"].clone())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_libraries_believe_a_signature_made_by_hand_and_no_other() {
    let (key, body) = ([7, 0, 0xff, 1, 2, 3], r#"{"event":"job.state","ü":1}"#);
    let at = chrono::Utc::now().timestamp().to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("msg-1.{at}.{body}").as_bytes());
    let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    let headers = [("webhook-id", "msg-1"), ("webhook-timestamp", &at), ("webhook-signature", &signature)];
    let mut request = Request {
        method: "POST".into(),
        path: "/".into(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        body: body.into(),
        at: std::time::Instant::now(),
    };
    let secret = format!("whsec_{}", STANDARD.encode(key));
    let event: Value = serde_json::from_str(body).unwrap();
    assert_eq!(verified(&secret, &request).await, [Some(event.clone()), Some(event)]);
    assert_eq!(verified(&format!("whsec_{}", STANDARD.encode("other")), &request).await, [None, None]);
    request.body = body.replace('1', "2").into();
    assert_eq!(verified(&secret, &request).await, [None, None]);
}

/// The last webhook of a job under these secrets.
async fn delivery(secrets: &str) -> Request {
    let (upstream, sink) = (Upstream::start().await, Sink::start().await);
    let app: TestApp = app_on(&upstream, &[("RDEV_WEBHOOK_SECRET", secrets)]).await;
    submit(&app.admin(), and(chat("hi <ü>"), json!({"state_webhook_url": sink.hook()}))).await;
    sink.received(3).await.remove(2)
}

async fn is_believed(secret: &str, request: &Request) {
    for event in verified(secret, request).await {
        let event = event.unwrap_or_else(|| panic!("not verified under {secret}: {request:?}"));
        assert_eq!((&event, &event["state"]), (&request.json(), &json!("completed")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_libraries_verify_a_delivery_under_any_text_as_secret() {
    let request = delivery("a text, no base64").await;
    is_believed("a text", &request).await;
    assert_eq!(verified("another", &request).await, [None, None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_libraries_verify_a_delivery_under_a_whsec_secret() {
    let secret = format!("whsec_{}", STANDARD.encode([0xff, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0x80, 0x81, 14, 15]));
    is_believed(&secret, &delivery(&secret).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_libraries_verify_a_delivery_under_either_secret_of_two() {
    let [new, old] =
        ["the new key, 24 bytes :)", "the old key, 24 bytes :("].map(|key| format!("whsec_{}", STANDARD.encode(key)));
    let request = delivery(&format!("{new},{old}")).await;
    is_believed(&new, &request).await;
    is_believed(&old, &request).await;
}

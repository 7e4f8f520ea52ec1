//! What a job shows, and its result: whole, as artifacts, served.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, TimeDelta, Utc};
use http::Method;
use serde_json::{Value, json};

use super::{app_on, chat, chat_with, ended, get_with, in_state, refusal, refused, said, show, submit, under_way};

fn time(value: &Value) -> DateTime<Utc> {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    assert!(text.ends_with('Z'), "{text}");
    text.parse().unwrap()
}
use crate::support::{Chat, Gate, TestApp, Upstream, raw::raw_request, soon};

/// In the order of the alphabet.
pub const FIELDS: [&str; 10] =
    ["artifacts", "attempt", "completed_at", "created_at", "error", "job_id", "model", "result", "started_at", "state"];

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_job_shows_every_field_and_null_for_what_is_not_yet() {
    let upstream = Upstream::with(&["tiny:1b"]).await;
    let app = app_on(&upstream, &[("RDEV_WORKERS", "0")]).await;
    let id = submit(&app.admin(), chat_with("tiny:1b", "hi")).await;
    let job = show(&app.admin(), &id).await;
    let mut fields: Vec<_> = job.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, FIELDS);
    let expected = json!({
        "job_id": id, "state": "queued", "model": "tiny:1b", "created_at": job["created_at"], "started_at": null,
        "completed_at": null, "attempt": 0, "result": null, "error": null, "artifacts": [],
    });
    assert_eq!(job, expected);
    assert!((time(&job["created_at"]) - app.clock.now()).abs() < TimeDelta::seconds(1), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_shows_when_it_was_started_and_when_it_ended() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&[]).wait(&gate).token("x"));
    let app = app_on(&upstream, &[]).await;
    let id = submit(&app.admin(), chat("hi")).await;
    under_way(&upstream, 1).await;
    let running = in_state(&app.admin(), &id, "running").await;
    assert_eq!(
        (&running["attempt"], &running["completed_at"], &running["result"]),
        (&json!(1), &json!(null), &json!(null))
    );
    app.advance(TimeDelta::seconds(90));
    gate.open();
    let job = ended(&app.admin(), &id).await;
    assert_eq!((&job["state"], &job["attempt"], &job["error"]), (&json!("completed"), &json!(1), &json!(null)));
    assert_eq!((&job["created_at"], &job["started_at"]), (&running["created_at"], &running["started_at"]));
    assert!(time(&job["created_at"]) <= time(&job["started_at"]));
    assert!(time(&job["completed_at"]) - time(&job["started_at"]) >= TimeDelta::seconds(90), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_says_why_and_has_no_result() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::fails(400, "invalid options: temperature"));
    let app = app_on(&upstream, &[]).await;
    let job = ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    assert_eq!((&job["state"], &job["result"], &job["artifacts"]), (&json!("failed"), &json!(null), &json!([])));
    assert!(job["error"].as_str().unwrap().contains("invalid options: temperature"), "{job}");
    assert!(!job["completed_at"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_upstreams_last_object_with_the_whole_message_in_it() {
    let upstream = Upstream::start().await;
    let call = |name: &str| json!([{"function": {"name": name, "arguments": {"city": "Tokyo", "days": 3}}}]);
    let chat_of_all = Chat::says(&[]).thinking("let ").thinking("me <see>").token("The ").token("ü😀\n");
    upstream.then(chat_of_all.tool_calls(call("one")).tool_calls(call("two")).token("\"end\""));
    let app = app_on(&upstream, &[]).await;
    let job = ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    let expected = json!({
        "model": "llama3", "created_at": "2026-01-25T07:00:00.000000008Z", "done": true, "done_reason": "stop",
        "message": {
            "role": "assistant", "content": "The ü😀\n\"end\"", "thinking": "let me <see>",
            "tool_calls": [call("one")[0], call("two")[0]],
        },
        "total_duration": 4_883_583_458_u64, "load_duration": 1_334_875, "prompt_eval_count": 26,
        "prompt_eval_duration": 342_546_000, "eval_count": 7, "eval_duration": 4_535_599_000_u64,
    });
    assert_eq!(job["result"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_comes_in_parts_is_one_line() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["ü", "😀 and more", "e\u{301}"]).torn());
    let app = app_on(&upstream, &[]).await;
    let job = ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    assert_eq!(said(&job), "ü😀 and more\u{65}\u{301}");
}

/// The job of one answer of so many letters.
async fn job_of(app: &TestApp, upstream: &Upstream, letters: usize) -> Value {
    upstream.then(Chat::says(&[&"x".repeat(letters)]));
    ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_of_up_to_262144_bytes_is_inline_and_a_larger_one_an_artifact() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let frame = job_of(&app, &upstream, 1).await["result"].to_string().len() - 1;
    let inline = job_of(&app, &upstream, 262_144 - frame).await;
    assert_eq!((said(&inline).len(), &inline["artifacts"]), (262_144 - frame, &json!([])));
    let job = job_of(&app, &upstream, 262_145 - frame).await;
    assert_eq!(job["state"], "completed", "{}", job["error"]);
    assert_eq!(job["result"], json!({"artifact": "result.json", "size": 262_145}));
    let path = format!("/jobs/{}/artifacts/result.json", job["job_id"].as_str().unwrap());
    let expected = json!([{"name": "result.json", "content_type": "application/json", "size": 262_145, "url": path}]);
    assert_eq!(job["artifacts"], expected);
    let artifact = app.admin().get(&path).await;
    assert_eq!(
        (artifact.status, artifact.header("content-type"), artifact.text.len()),
        (200, "application/json", 262_145)
    );
    let whole = artifact.json();
    assert_eq!(whole["message"]["content"].as_str().map(str::len), Some(262_145 - frame));
    assert_eq!((&whole["done"], &whole["done_reason"]), (&json!(true), &json!("stop")));
}

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0";
const JPEG: &[u8] = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xd9";
const GIF: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0;";
const WEBP: &[u8] = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\0\0\0\x10\x07\xff";

async fn bytes_of(app: &TestApp, path: &str) -> (String, bytes::Bytes) {
    let response = app.admin().request(Method::GET, path, None, &[]).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    (kind, soon("the bytes", response.bytes()).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_become_artifacts_whose_type_is_told_from_their_bytes() {
    let upstream = Upstream::start().await;
    let images = [PNG, JPEG, GIF, WEBP].map(|bytes| STANDARD.encode(bytes));
    upstream.then(Chat::says(&["look"]).images(&[&images[0]]).images(&[&images[1], &images[2]]).images(&[&images[3]]));
    let app = app_on(&upstream, &[]).await;
    let job = ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    assert_eq!(job["result"]["message"].get("images"), None, "{job}");
    assert_eq!(said(&job), "look");
    let artifacts = job["artifacts"].as_array().unwrap();
    let kinds = [("png", "image/png"), ("jpg", "image/jpeg"), ("gif", "image/gif"), ("webp", "image/webp")];
    assert_eq!(artifacts.len(), kinds.len(), "{job}");
    let mut numbers = Vec::new();
    for (((artifact, (ending, kind)), bytes), base64) in
        artifacts.iter().zip(kinds).zip([PNG, JPEG, GIF, WEBP]).zip(images)
    {
        let name = artifact["name"].as_str().unwrap();
        let (number, found) = name.strip_prefix("image-").and_then(|rest| rest.split_once('.')).expect(name);
        assert_eq!(found.replace("jpeg", "jpg"), ending);
        numbers.push(number.parse::<usize>().unwrap());
        let expected =
            json!({"name": name, "content_type": kind, "size": bytes.len(), "data": base64, "encoding": "base64"});
        assert_eq!(artifact, &expected);
        let path = format!("/jobs/{}/artifacts/{name}", job["job_id"].as_str().unwrap());
        assert_eq!(bytes_of(&app, &path).await, (kind.to_owned(), bytes::Bytes::from_static(bytes)));
    }
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_calls_itself_an_image_is_not_served_as_one() {
    let upstream = Upstream::start().await;
    let page = "<html><script>alert(1)</script></html>";
    upstream.then(Chat::says(&[]).images(&[&STANDARD.encode(page)]));
    let app = app_on(&upstream, &[]).await;
    let job = ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
    let artifact = &job["artifacts"][0];
    // It is UTF-8, so it is shown as it is.
    assert_eq!((&artifact["data"], artifact.get("encoding")), (&json!(page), None), "{job}");
    let path = format!("/jobs/{}/artifacts/{}", job["job_id"].as_str().unwrap(), artifact["name"].as_str().unwrap());
    let (kind, bytes) = bytes_of(&app, &path).await;
    assert_eq!(bytes, page);
    assert!(!kind.contains("html") && !kind.starts_with("image/"), "{kind}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_more_than_262144_bytes_is_named_by_its_url() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    for (size, inline) in [(262_144, true), (262_145, false)] {
        let mut image = PNG.to_vec();
        image.resize(size, 0xff);
        upstream.then(Chat::says(&["x"]).images(&[&STANDARD.encode(&image)]));
        let job = ended(&app.admin(), &submit(&app.admin(), chat("hi")).await).await;
        let artifact = &job["artifacts"][0];
        assert_eq!((&artifact["size"], artifact.get("data").is_some()), (&json!(size), inline));
        assert_eq!(artifact.get("url").is_some(), !inline);
        let path =
            format!("/jobs/{}/artifacts/{}", job["job_id"].as_str().unwrap(), artifact["name"].as_str().unwrap());
        assert!(inline || artifact["url"] == path, "{}", artifact["url"]);
        assert_eq!(bytes_of(&app, &path).await.1, image);
    }
}

/// A job with `result.json` of some 300,000 bytes. Answers the artifact's path.
async fn with_artifact(upstream: &Upstream, app: &TestApp) -> String {
    upstream.then(Chat::says(&[&"x".repeat(300_000)]));
    let id = submit(&app.admin(), chat("hi")).await;
    ended(&app.admin(), &id).await;
    format!("/jobs/{id}/artifacts/result.json")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_served_so_that_no_browser_runs_it() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let path = with_artifact(&upstream, &app).await;
    let whole = app.admin().get(&path).await;
    assert_eq!((whole.status, whole.header("x-content-type-options")), (200, "nosniff"));
    assert_eq!(whole.header("content-disposition").split(';').next(), Some("attachment"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_the_client_has_is_not_sent_again() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let path = with_artifact(&upstream, &app).await;
    let etag = app.admin().get(&path).await.header("etag").to_owned();
    assert!(etag.ends_with('"') && etag.trim_start_matches("W/").starts_with('"'), "{etag}");
    for known in
        [etag.clone(), format!("\"other\", {etag}"), "*".into(), format!("W/{}", etag.trim_start_matches("W/"))]
    {
        let reply = get_with(&app, &path, "if-none-match", &known).await;
        assert_eq!((reply.status, reply.text.as_str(), reply.header("etag")), (304, "", etag.as_str()), "{known}");
    }
    assert_eq!(get_with(&app, &path, "if-none-match", "\"other\"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_an_artifact_may_be_asked_for() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let path = with_artifact(&upstream, &app).await;
    let whole = app.admin().get(&path).await;
    let (text, size) = (whole.text.as_str(), whole.text.len());
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let (from, last) = (size - 10, size - 1);
    for (range, part, place) in [
        ("bytes=0-9".to_owned(), &text[..10], format!("bytes 0-9/{size}")),
        ("bytes=-10".to_owned(), &text[from..], format!("bytes {from}-{last}/{size}")),
        (format!("bytes={from}-"), &text[from..], format!("bytes {from}-{last}/{size}")),
        (format!("bytes={from}-{}", size + 50), &text[from..], format!("bytes {from}-{last}/{size}")),
    ] {
        let reply = get_with(&app, &path, "range", &range).await;
        assert_eq!(
            (reply.status, reply.text.as_str(), reply.header("content-range")),
            (206, part, place.as_str()),
            "{range}"
        );
    }
    let beyond = get_with(&app, &path, "range", &format!("bytes={size}-")).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, format!("bytes */{size}").as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_is_not_there_is_not_found() {
    let upstream = Upstream::start().await;
    let app = app_on(&upstream, &[]).await;
    let path = with_artifact(&upstream, &app).await;
    let folder = path.strip_suffix("result.json").unwrap();
    for name in ["other", "..%2fresult.json", "result.json%00", "a%20b", &"x".repeat(129)] {
        refused(&app.admin().get(&format!("{folder}{name}")).await, 404, "artifact not found");
    }
    // A well-behaved client would take these for the folder above.
    for name in [".", "..", "%2e", "%2e%2e"] {
        let request = format!(
            "GET {folder}{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
            app.admin_key
        );
        assert_eq!(raw_request(&app.url, request.as_bytes()).await.status, 404, "{name}");
    }
    let none = "/jobs/01J00000000000000000000000/artifacts/result.json";
    refusal(&app.admin().get(none).await, 404);
}

//! Numbered logs, read live and again: server-sent events and stored output.

use http::Method;
use serde_json::{Value, json};

use super::support::{Event, Reply, TestApp, eventually, sse::text_of};

const SHELL: &str = "/projects/p/shell";

async fn app_with_project() -> TestApp {
    let app = TestApp::start().await;
    app.project("p").await;
    app
}

fn url(command: &Value) -> &str {
    command["events_url"].as_str().expect("a URL")
}

fn id(command: &Value) -> &str {
    command["command_id"].as_str().expect("an id")
}

/// `n` goes from 1 without a gap, and the end is there once, at the end.
#[track_caller]
fn is_whole(events: &[Event], stream: &str) {
    let (last, before) = events.split_last().expect("a stream has an end");
    assert_eq!(last.id, Some(format!("{stream}:final")));
    let ids: Vec<_> = before.iter().map(|event| event.id.clone().unwrap_or_default()).collect();
    let expected: Vec<_> = (1..=before.len()).map(|n| format!("{stream}:{n}")).collect();
    assert_eq!(ids, expected);
}

async fn events_from(app: &TestApp, command: &Value, last_id: &str) -> Vec<Event> {
    app.admin().listen_from(url(command), Some(last_id)).await.rest().await
}

async fn get_with(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Reply {
    app.admin().send(Method::GET, path, None, headers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_retry_and_connected() {
    let app = app_with_project().await;
    let command = app.script("p", "true").await;
    let mut events = app.listen(url(&command)).await;
    let first = events.try_next().await.unwrap();
    assert_eq!(first.name, "connected");
    assert_eq!(first.data, json!({"project": "p", "stream_id": id(&command)}));
    assert_eq!((first.id, events.retry), (None, Some(2000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streams_headers_keep_everybody_from_holding_it_back() {
    let app = app_with_project().await;
    let command = app.script("p", "true").await;
    let headers = [("accept-encoding", "gzip, br, deflate")];
    let request = app.admin().request(Method::GET, url(&command), None, &headers);
    let response = request.send().await.unwrap();
    let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("text/event-stream"));
    assert_eq!(header("cache-control"), Some("no-cache"));
    assert_eq!(header("x-accel-buffering"), Some("no"));
    assert_eq!(header("content-encoding"), None);
    assert_eq!(header("access-control-allow-origin"), None);
    assert!(header("x-request-id").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commands_stream_is_numbered_from_1_and_ends_once() {
    let app = app_with_project().await;
    let command = app.script("p", "for i in 1 2 3; do echo $i; done; exit 2").await;
    let events = app.listen(url(&command)).await.rest().await;
    is_whole(&events, id(&command));
    assert_eq!(text_of(&events, "stdout"), "1\n2\n3\n");
    let last = events.last().unwrap();
    assert_eq!(
        (last.name.as_str(), &last.data["exit_code"], &last.data["termination"]),
        ("complete", &json!(2), &json!("exit"))
    );
    assert!(last.data["duration_ms"].is_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_command_is_seen_live() {
    let app = app_with_project().await;
    let script = "echo one; while ! test -e go; do sleep 0.02; done; echo two";
    let command = app.admin().post(SHELL, json!({"script": script})).await.data(201);
    let mut events = app.listen(url(&command)).await;
    assert_eq!(events.next_named("output").await.line(), "one");
    app.script("p", "touch go").await;
    assert_eq!(events.next_named("output").await.line(), "two");
    assert!(events.next().await.is_last());
    assert!(events.try_next().await.is_none(), "the server closes after the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_another_process_is_seen_live() {
    let app = app_with_project().await;
    let other = app.sibling(&[]).await;
    let script = "echo one; while ! test -e go; do sleep 0.02; done; echo two";
    let command = app.admin().post(SHELL, json!({"script": script})).await.data(201);
    let mut events = other.listen(url(&command)).await;
    assert_eq!(events.next_named("output").await.line(), "one");
    app.script("p", "touch go").await;
    assert_eq!(events.next_named("output").await.line(), "two");
    assert!(events.next().await.is_last());
}

#[tokio::test(flavor = "multi_thread")]
async fn order_within_each_output_is_the_programs_own() {
    let app = app_with_project().await;
    let script = "i=0; while test $i -lt 500; do echo o$i; echo e$i >&2; i=$((i+1)); done";
    let command = app.script("p", script).await;
    let events = app.listen(url(&command)).await.rest().await;
    is_whole(&events, id(&command));
    for (stream, letter) in [("stdout", 'o'), ("stderr", 'e')] {
        let expected: String = (0..500).map(|i| format!("{letter}{i}\n")).collect();
        assert_eq!(text_of(&events, stream), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_go_on_after_any_event() {
    let app = app_with_project().await;
    let command = app.script("p", "for i in 1 2 3 4; do echo $i; done").await;
    let all = app.listen(url(&command)).await.rest().await;
    for n in 0..all.len() {
        let after = format!("{}:{n}", id(&command));
        assert_eq!(events_from(&app, &command, &after).await, all[n.min(all.len() - 1)..], "after {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_in_the_query_resumes_and_the_header_wins() {
    let app = app_with_project().await;
    let command = app.script("p", "for i in 1 2 3 4; do echo $i; done").await;
    let path = format!("{}&after=3", url(&command));
    let by_query = app.listen(&path).await.rest().await;
    assert_eq!(by_query[0].number(), Some(4));
    let header = format!("{}:1", id(&command));
    let by_header = app.admin().listen_from(&path, Some(&header)).await.rest().await;
    assert_eq!(by_header[0].number(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_seen_the_end_gets_204() {
    let app = app_with_project().await;
    let command = app.script("p", "echo x").await;
    let last = format!("{}:final", id(&command));
    let reply = get_with(&app, url(&command), &[("last-event-id", &last)]).await;
    assert_eq!((reply.status, reply.text.as_str()), (204, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_past_the_end_of_an_ended_stream_gets_the_end() {
    let app = app_with_project().await;
    let command = app.script("p", "echo x").await;
    for n in ["2", "999", "9223372036854775807"] {
        let events = events_from(&app, &command, &format!("{}:{n}", id(&command))).await;
        assert_eq!(events.len(), 1, "after {n}: {events:?}");
        assert!(events[0].is_last());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_past_the_end_waits_for_it() {
    let app = app_with_project().await;
    let script = "echo one; while ! test -e go; do sleep 0.02; done; echo two; echo three; echo four";
    let command = app.admin().post(SHELL, json!({"script": script})).await.data(201);
    let after = format!("{}:3", id(&command));
    let mut events = app.admin().listen_from(url(&command), Some(&after)).await;
    assert_eq!(events.try_next().await.unwrap().name, "connected");
    app.script("p", "touch go").await;
    let next = events.next().await;
    assert_eq!((next.number(), next.line()), (Some(4), "four"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_id_that_is_none_or_anothers_is_refused() {
    let app = app_with_project().await;
    let command = app.script("p", "echo x").await;
    let own = id(&command);
    let bad = ["x", "cmd-01J00000000000000000000000:1", ":1", "p:1", "1", "final"].map(str::to_owned);
    let malformed = ["-1", "", "1x", "99999999999999999999", "01", "+1", " 1"].map(|n| format!("{own}:{n}"));
    for header in bad.iter().chain(&malformed) {
        get_with(&app, url(&command), &[("last-event-id", header)]).await.refusal(400, "BAD_EVENT_ID");
    }
    for after in ["x", "-1", "1.5", "99999999999999999999"] {
        let path = format!("{}&after={after}", url(&command));
        app.admin().get(&path).await.refusal(400, "BAD_EVENT_ID");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_stream_is_not_found_as_json() {
    let app = app_with_project().await;
    app.admin().get("/projects/q/events").await.refused(404, "NOT_FOUND", "project not found");
    for stream in ["cmd-01J00000000000000000000000", "x", "%ff"] {
        let reply = app.admin().get(&format!("/projects/p/events?stream_id={stream}")).await;
        reply.refusal(404, "NOT_FOUND");
        assert_eq!(reply.header("content-type"), "application/json");
    }
    for sid in ["01890000-0000-7000-8000-000000000000", "x"] {
        let reply = app.admin().get(&format!("/projects/p/sessions/{sid}/events")).await;
        reply.refused(404, "NOT_FOUND", "session not found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_line_is_split_at_a_character_and_its_parts_join() {
    let app = app_with_project().await;
    let command = app.script("p", "head -c 150001 /dev/zero | tr '\\0' x; printf 'üüü\\nend\\n'").await;
    let events = app.listen(url(&command)).await.rest().await;
    let outputs: Vec<_> = events.iter().filter(|event| event.name == "output").collect();
    assert!(outputs.iter().all(|event| event.line().len() <= 65_536));
    assert_eq!(text_of(&events, "stdout"), format!("{}üüü\nend\n", "x".repeat(150_001)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_exactly_the_limit_is_whole() {
    let app = app_with_project().await;
    let command = app.script("p", "head -c 65536 /dev/zero | tr '\\0' x; echo; echo end").await;
    let events = app.listen(url(&command)).await.rest().await;
    let lengths: Vec<_> = events
        .iter()
        .filter(|e| e.name == "output")
        .map(|e| (e.line().len(), e.data.get("partial").is_some()))
        .collect();
    assert_eq!(lengths, [(65_536, false), (3, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_line_without_its_end_is_partial() {
    let app = app_with_project().await;
    let command = app.script("p", "printf 'a\\nb'").await;
    let events = app.listen(url(&command)).await.rest().await;
    assert_eq!(events[0].data, json!({"line": "a", "stream": "stdout"}));
    assert_eq!(events[1].data, json!({"line": "b", "stream": "stdout", "partial": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_shown_though_its_line_has_no_end() {
    let app = app_with_project().await;
    let script = "printf 'password: '; while ! test -e go; do sleep 0.02; done; echo given";
    let command = app.admin().post(SHELL, json!({"script": script})).await.data(201);
    let mut events = app.listen(url(&command)).await;
    let prompt = events.next_named("output").await;
    assert_eq!(prompt.data, json!({"line": "password: ", "stream": "stdout", "partial": true}));
    app.script("p", "touch go").await;
    assert_eq!(events.next().await.data, json!({"line": "given", "stream": "stdout"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_come_as_base64_and_a_return_is_data() {
    let app = app_with_project().await;
    let command = app.script("p", "printf '\\377\\376\\n10%%\\r20%%\\r\\n\"\\\\\\001\\n'").await;
    let events = app.listen(url(&command)).await.rest().await;
    assert_eq!(events[0].data, json!({"data_base64": "//4=", "stream": "stdout"}));
    assert_eq!(events[1].line(), "10%\r20%\r");
    assert_eq!(events[2].line(), "\"\\\u{1}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_see_the_same() {
    let app = app_with_project().await;
    let script =
        "while ! test -e go; do sleep 0.02; done; i=0; while test $i -lt 2000; do echo line $i; i=$((i+1)); done";
    let command = app.admin().post(SHELL, json!({"script": script})).await.data(201);
    let mut readers = Vec::new();
    for _ in 0..8 {
        readers.push(app.listen(url(&command)).await);
    }
    app.script("p", "touch go").await;
    let mut seen = futures::future::join_all(readers.iter_mut().map(|reader| reader.rest())).await;
    let first = seen.pop().unwrap();
    is_whole(&first, id(&command));
    assert_eq!(first.len(), 2001);
    assert!(seen.iter().all(|other| *other == first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_cut_off_in_the_middle_goes_on_without_gap_or_repeat() {
    let app = app_with_project().await;
    let script = "i=0; while test $i -lt 3000; do echo line $i; i=$((i+1)); done";
    let command = app.admin().post(SHELL, json!({"script": script})).await.data(201);
    let (mut seen, mut cuts) = (Vec::<Event>::new(), 0);
    while seen.last().is_none_or(|event| !event.is_last()) {
        let last = seen.last().and_then(|event| event.id.clone());
        let mut events = app.admin().listen_from(url(&command), last.as_deref()).await;
        for _ in 0..701 {
            match events.try_next().await {
                Some(event) if event.id.is_some() => seen.push(event),
                Some(_) => {}
                None => break,
            }
        }
        cuts += 1;
    }
    assert!(cuts > 3);
    is_whole(&seen, id(&command));
    assert_eq!(text_of(&seen, "stdout"), (0..3000).map(|i| format!("line {i}\n")).collect::<String>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projects_stream_begins_with_what_is_new() {
    let app = app_with_project().await;
    app.script("p", "true").await;
    let mut events = app.listen("/projects/p/events").await;
    assert_eq!(events.try_next().await.unwrap().data, json!({"project": "p", "stream_id": "p"}));
    app.admin().post("/projects/p/checkout", json!({"new_branch": "feature"})).await.data(201);
    let next = events.next().await;
    assert_eq!((next.name.as_str(), &next.data["type"]), ("activity", &json!("checkout.created")));
    assert!(next.data["id"].is_string() && next.data["at"].is_string() && next.data["actor"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projects_stream_carries_no_output_and_resumes() {
    let app = app_with_project().await;
    app.script("p", "echo secret").await;
    let mut events = app.listen("/projects/p/events?after=0").await;
    let mut seen = vec![events.activity("project.created").await];
    seen.push(events.next().await);
    seen.push(events.next().await);
    assert!(seen.iter().all(|event| event.name == "activity"), "{seen:?}");
    let ids: Vec<_> = seen.iter().map(|event| event.id.clone().unwrap()).collect();
    assert_eq!(ids, ["p:1", "p:2", "p:3"]);
    let mut again = app.admin().listen_from("/projects/p/events", Some("p:2")).await;
    assert_eq!(again.next().await, seen[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_stream_carries_its_commands_and_its_own() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let sid = session["id"].as_str().unwrap();
    let command = app.exec("p", &session, "echo hello; exit 3").await;
    app.script("p", "echo elsewhere").await;
    app.admin().delete(&format!("/projects/p/sessions/{sid}")).await.data(200);
    let events = app.listen(&format!("/projects/p/sessions/{sid}/events?after=0")).await.rest().await;
    is_whole(&events, sid);
    assert_eq!((events[0].name.as_str(), &events[0].data["type"]), ("activity", &json!("session.created")));
    let of_command: Vec<_> = events.iter().filter(|event| event.data["command_id"] == *id(&command)).collect();
    assert_eq!((of_command[0].name.as_str(), of_command[0].line()), ("output", "hello"));
    let end = of_command.iter().find(|event| event.name == "complete").expect("the command's end is shown");
    assert_eq!(end.data["exit_code"], 3);
    assert!(end.number().is_some(), "a command's end is numbered here");
    assert!(!events.iter().any(|event| event.line() == "elsewhere"));
    let last = events.last().unwrap();
    assert_eq!(
        (last.name.as_str(), &last.data),
        ("complete", &json!({"status": "terminated", "end_reason": "terminated"}))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_within_its_sessions_route_is_its_own_stream() {
    let app = app_with_project().await;
    let session = app.session("p", "feature").await;
    let sid = session["id"].as_str().unwrap();
    let command = app.exec("p", &session, "echo hello").await;
    let path = format!("/projects/p/sessions/{sid}/events?stream_id={}", id(&command));
    let events = app.listen(&path).await.rest().await;
    is_whole(&events, id(&command));
    let other = app.script("p", "true").await;
    let foreign = format!("/projects/p/sessions/{sid}/events?stream_id={}", id(&other));
    app.admin().get(&foreign).await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_output_is_the_bytes_as_they_came() {
    let app = app_with_project().await;
    let command = app.script("p", "printf 'a\\r\\n\\377\\n'; sleep 0.3; printf err >&2").await;
    let path = command["output_url"].as_str().unwrap();
    let response = app.admin().request(Method::GET, path, None, &[]).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    assert_eq!(&response.bytes().await.unwrap()[..], b"a\r\n\xff\nerr");
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_output_may_be_of_one_stream_or_after_an_event() {
    let app = app_with_project().await;
    let command = app.script("p", "echo o1; sleep 0.2; echo e1 >&2; sleep 0.2; echo o2").await;
    let path = command["output_url"].as_str().unwrap();
    for (query, expected) in [
        ("", "o1\ne1\no2\n"),
        ("?stream=stdout", "o1\no2\n"),
        ("?stream=stderr", "e1\n"),
        ("?after=1", "e1\no2\n"),
        ("?after=1&stream=stdout", "o2\n"),
        ("?after=99", ""),
        ("?after=0", "o1\ne1\no2\n"),
    ] {
        assert_eq!(app.admin().get(&format!("{path}{query}")).await.text, expected, "{query}");
    }
    app.admin().get(&format!("{path}?stream=other")).await.refusal(400, "BAD_REQUEST");
    app.admin().get(&format!("{path}?after=x")).await.refusal(400, "BAD_EVENT_ID");
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_output_is_cut_out_by_ranges() {
    let app = app_with_project().await;
    let command = app.script("p", "printf 0123456789").await;
    let path = command["output_url"].as_str().unwrap();
    for (range, status, text, content_range) in [
        ("bytes=0-3", 206, "0123", "bytes 0-3/10"),
        ("bytes=4-", 206, "456789", "bytes 4-9/10"),
        ("bytes=-2", 206, "89", "bytes 8-9/10"),
        ("bytes=8-100", 206, "89", "bytes 8-9/10"),
        ("bytes=-100", 206, "0123456789", "bytes 0-9/10"),
        ("lines=1-2", 200, "0123456789", ""),
    ] {
        let reply = get_with(&app, path, &[("range", range)]).await;
        assert_eq!((reply.status, reply.text.as_str(), reply.header("content-range")), (status, text, content_range));
    }
    let beyond = get_with(&app, path, &[("range", "bytes=10-")]).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */10"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_output_as_lines_of_json_includes_the_end() {
    let app = app_with_project().await;
    let command = app.script("p", "echo a; sleep 0.2; echo b >&2").await;
    let path = command["output_url"].as_str().unwrap();
    let reply = get_with(&app, path, &[("accept", "application/x-ndjson")]).await;
    assert_eq!(reply.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> = reply.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let name = id(&command);
    assert_eq!(
        lines[0],
        json!({"id": format!("{name}:1"), "event": "output", "data": {"line": "a", "stream": "stdout"}})
    );
    assert_eq!(lines[1]["data"]["stream"], "stderr");
    assert_eq!((&lines[2]["id"], &lines[2]["event"]), (&json!(format!("{name}:final")), &json!("complete")));
    assert_eq!(lines.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_output_is_stored_whole() {
    let app = app_with_project().await;
    let command = app.script("p", "seq 1 200000").await;
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(app.output(&command).await == expected, "two hundred thousand lines, each once and in order");
    let path = format!("{}?stream=stdout", command["output_url"].as_str().unwrap());
    let middle = get_with(&app, &path, &[("range", "bytes=600000-600099")]).await;
    assert_eq!(middle.text, expected[600_000..=600_099]);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_of_a_revoked_key_are_closed() {
    let app = app_with_project().await;
    let (holder, key) = app.holder(json!({"name": "x", "scopes": ["projects:read"]})).await;
    let mut events = holder.listen("/projects/p/events").await;
    assert_eq!(events.try_next().await.unwrap().name, "connected");
    let started = std::time::Instant::now();
    app.admin().delete(&format!("/keys/{}", key["id"].as_str().unwrap())).await.data(200);
    events.rest().await;
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_of_an_expired_key_are_closed() {
    let app = app_with_project().await;
    let (holder, _) = app.holder(json!({"name": "x", "scopes": ["projects:read"], "expires_in": "1h"})).await;
    let mut events = holder.listen("/projects/p/events").await;
    assert_eq!(events.try_next().await.unwrap().name, "connected");
    app.advance(chrono::TimeDelta::hours(1));
    let started = std::time::Instant::now();
    events.rest().await;
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_says_goodbye_to_its_streams() {
    let app = app_with_project().await;
    let mut events = app.listen("/projects/p/events").await;
    assert_eq!(events.try_next().await.unwrap().name, "connected");
    let stopping = tokio::spawn(app.stop());
    let word = eventually_shutdown(&mut events).await;
    assert!((1000..=5000).contains(&word), "retry: {word}");
    assert!(events.try_next().await.is_none());
    stopping.await.unwrap();
}

async fn eventually_shutdown(events: &mut super::support::Events) -> u64 {
    loop {
        let event = events.try_next().await.expect("a word before the end");
        if event.name == "shutdown" {
            return events.retry.expect("a time to come back");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_outlives_a_database_that_is_away() {
    let app = app_with_project().await;
    let script = "echo one; while ! test -e go; do sleep 0.02; done; echo two";
    let command = app.admin().post(SHELL, json!({"script": script})).await.data(201);
    let project = app.admin().get("/projects/p").await.data(200);
    let mut events = app.listen(url(&command)).await;
    assert_eq!(events.next_named("output").await.line(), "one");
    app.db().take_away().await;
    eventually("it is noticed", async || (app.nobody().get("/health/ready").await.status == 503).then_some(())).await;
    std::fs::write(std::path::Path::new(project["workspace"].as_str().unwrap()).join("go"), "").unwrap();
    app.db().bring_back().await;
    assert_eq!(events.next_named("output").await.line(), "two");
    assert!(events.next().await.is_last());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_stream_waits_for_a_database_that_is_away() {
    let app = app_with_project().await;
    let command = app.script("p", "echo x").await;
    app.db().take_away().await;
    let admin = app.admin();
    let waiting = admin.get(url(&command));
    let other = async {
        let reply = admin.get("/projects").await;
        assert_eq!(reply.status, 503, "{}", reply.text);
        app.db().bring_back().await;
    };
    let (reply, ()) = tokio::join!(waiting, other);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.text.contains(":final"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_retention_removed_is_a_gap() {
    let app = app_with_project().await;
    let command = app.script("p", "echo one; sleep 0.4; echo two; sleep 0.4; echo three").await;
    app.db()
        .run("with first as (delete from chunk using stream
                where stream.key = chunk.stream and stream.kind = 'command' and chunk.from_n = 1 returning chunk.stream, to_n)
              update stream set trimmed_to = first.to_n from first where stream.key = first.stream")
        .await;
    let app = app.restart(&[]).await;
    let events = app.listen(url(&command)).await.rest().await;
    assert_eq!((events[0].name.as_str(), &events[0].data["from"]), ("gap", &json!(1)), "{events:?}");
    let to = events[0].data["to"].as_u64().unwrap();
    assert_eq!(events[1].number(), Some(to + 1));
    assert!(events.last().unwrap().is_last());
}

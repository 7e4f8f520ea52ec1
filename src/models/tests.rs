//! Against small real servers on the loopback. Whether an upstream was called, and whether a
//! call was cut off, the server says.

mod server;

use std::{sync::Once, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use url::Url;

use self::server::{CHUNKED, CLOSED, DONE, Gate, LAST_CHUNK, Part, Server, chunk, error, token, whole};
use super::*;
use crate::domain::breaker::State;
use crate::error::Kind;

const CHAT: &str = "/api/chat";
const LONG: Duration = Duration::from_secs(20);
/// For what is meant to take too long.
const SHORT: Duration = Duration::from_millis(150);

fn clock() -> Clock {
    Clock::manual(DateTime::<Utc>::from_timestamp(1_800_000_000, 0).unwrap())
}

fn upstreams_with(servers: &[&Server], slots: usize, clock: &Clock, timeouts: Timeouts) -> Upstreams {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let urls = servers.iter().map(|server| server.url.clone()).collect();
    Upstreams::build(urls, slots, clock.clone(), timeouts).unwrap()
}

fn upstreams(servers: &[&Server], slots: usize) -> Upstreams {
    upstreams_with(servers, slots, &clock(), Timeouts { connect: LONG, list: LONG, show: LONG })
}

/// After a first look.
async fn looked(servers: &[&Server], slots: usize) -> Upstreams {
    let upstreams = upstreams(servers, slots);
    upstreams.refresh_stale().await;
    upstreams
}

/// As if the last look were so much longer ago.
async fn passes(upstreams: &Upstreams, time: Duration) {
    let mut looked = upstreams.inner.looked.lock().await;
    *looked = looked.map(|at| at.checked_sub(time).unwrap());
}

fn ask(model: &str) -> Bytes {
    json!({"model": model, "messages": []}).to_string().into()
}

/// The tokens and the end of a conversation.
async fn converse(upstreams: &Upstreams, within: Duration) -> (Vec<String>, Result<Value, CallError>) {
    let seat = upstreams.seat("m").expect("a seat");
    let mut tokens = Vec::new();
    let mut stream = match seat.chat(ask("m"), within).await {
        Ok(stream) => stream,
        Err(error) => return (tokens, Err(error)),
    };
    loop {
        match stream.next().await {
            Ok(Some(Step::Tokens(more))) => tokens.extend(more),
            Ok(Some(Step::Done(whole))) => {
                assert_eq!(stream.next().await, Ok(None));
                return (tokens, Ok(whole));
            }
            Ok(None) => panic!("an end without an end"),
            Err(error) => return (tokens, Err(error)),
        }
    }
}

/// How a chat fails that is answered like this.
async fn failure(parts: &[Part]) -> (CallError, Upstreams) {
    let server = Server::with(&["m"]).await;
    server.says(CHAT, parts);
    let upstreams = looked(&[&server], 1).await;
    let error = converse(&upstreams, LONG).await.1.unwrap_err();
    let address = server.url.authority().to_owned();
    assert!(!error.message.contains(&address), "{error:?}");
    (error, upstreams)
}

fn send(text: impl Into<String>) -> Part {
    Part::Send(text.into())
}

fn failures(upstreams: &Upstreams) -> u32 {
    upstreams.circuits()[0].1.failures
}

async fn body(passed: Passed) -> (u16, String, bool) {
    let items: Vec<_> = passed.body.collect().await;
    let whole = items.iter().all(Result::is_ok);
    let bytes = items.into_iter().flatten().flatten().collect();
    (passed.status, String::from_utf8(bytes).unwrap(), whole)
}

// --- Inventory ---

#[tokio::test]
async fn any_number_of_requests_at_once_look_once() {
    let server = Server::with(&["m"]).await;
    let upstreams = upstreams(&[&server], 1);
    let asked = join_all((0..20).map(|n| {
        let upstreams = upstreams.clone();
        async move { upstreams.knows(&format!("no-{n}")).await.unwrap() }
    }));
    assert_eq!(asked.await, [false; 20]);
    assert_eq!((server.count("/api/tags"), server.count("/api/ps")), (1, 1));
    assert!(upstreams.knows("m").await.unwrap() && upstreams.knows("m:latest").await.unwrap());
    assert_eq!(server.count("/api/tags"), 1);
}

#[tokio::test]
async fn a_name_that_is_not_known_is_looked_up_again_after_two_seconds() {
    let server = Server::with(&["m"]).await;
    let upstreams = upstreams(&[&server], 1);
    assert!(!upstreams.knows("new").await.unwrap());
    server.has(&["m", "new:latest"]);
    assert!(!upstreams.knows("new").await.unwrap());
    passes(&upstreams, Duration::from_secs(2)).await;
    assert!(upstreams.knows("new").await.unwrap());
    assert_eq!(server.count("/api/tags"), 2);
}

#[tokio::test]
async fn a_look_that_is_given_up_is_taken_up_by_the_next() {
    let server = Server::with(&["m"]).await;
    let gate = Gate::new();
    server.says("/api/ps", &[Part::Wait(gate.clone()), send(whole(200, "", "{}"))]);
    let upstreams = upstreams(&[&server], 1);
    tokio::select! {
        _ = upstreams.knows("x") => panic!("it has no answer yet"),
        () = server.asked("/api/ps", 1) => {}
    }
    gate.open();
    assert!(!upstreams.knows("x").await.unwrap());
    assert_eq!(server.count("/api/tags"), 2);
}

#[tokio::test]
async fn nobody_can_tell_while_an_inventory_was_never_seen() {
    let (here, mut away) = (Server::with(&["m"]).await, Server::with(&["other"]).await);
    away.goes_away().await;
    let alone = upstreams(&[&away], 1);
    assert_eq!(alone.is_up(), None);
    let refused = alone.knows("m").await.unwrap_err();
    assert_eq!((refused.kind(), alone.is_up()), (Kind::Unavailable, Some(false)));
    let both = upstreams(&[&away, &here], 2);
    assert!(both.knows("m").await.unwrap());
    assert_eq!(both.knows("other").await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(both.is_up(), Some(true));
    let none = upstreams(&[], 1);
    assert!(!none.is_configured() && !none.knows("m").await.unwrap() && none.seat("m").is_none());
}

#[tokio::test]
async fn what_was_known_stays_known_while_upstream_is_away() {
    let mut server = Server::with(&["m"]).await;
    let upstreams = looked(&[&server], 1).await;
    server.goes_away().await;
    passes(&upstreams, Duration::from_mins(1)).await;
    upstreams.refresh_stale().await;
    assert_eq!(upstreams.is_up(), Some(false));
    assert!(upstreams.knows("m").await.unwrap());
    assert!(!upstreams.knows("x").await.unwrap());
}

#[tokio::test]
async fn an_upstream_that_hangs_holds_up_no_look_for_long() {
    let (here, hung) = (Server::with(&["m"]).await, Server::with(&[]).await);
    hung.says("/api/tags", &[Part::Hang]);
    let timeouts = Timeouts { connect: LONG, list: SHORT, show: LONG };
    let upstreams = upstreams_with(&[&hung, &here], 2, &clock(), timeouts);
    assert!(upstreams.knows("m").await.unwrap());
    hung.left(1).await;
}

#[tokio::test]
async fn only_what_is_stale_is_looked_at_again() {
    let (one, two) = (Server::with(&["m"]).await, Server::with(&["m"]).await);
    let upstreams = looked(&[&one, &two], 2).await;
    upstreams.refresh_stale().await;
    assert_eq!((one.count("/api/tags"), one.count("/api/ps")), (1, 2));
    passes(&upstreams, Duration::from_secs(20)).await;
    upstreams.refresh_stale().await;
    assert_eq!((two.count("/api/tags"), two.count("/api/ps")), (2, 3));
}

// --- Seats ---

#[tokio::test]
async fn there_are_so_many_seats_and_one_that_is_freed_rings() {
    let server = Server::with(&["m"]).await;
    let upstreams = looked(&[&server], 2).await;
    let seats = [upstreams.seat("m").unwrap(), upstreams.seat("m").unwrap()];
    assert!(upstreams.seat("m").is_none());
    assert_eq!((upstreams.used(), upstreams.slots(), upstreams.total_free()), (2, 2, 0));
    assert_eq!(upstreams.room(&["m".to_owned()]), [0]);
    // What rang before is heard here.
    let freed = upstreams.freed();
    freed.notified().await;
    drop(seats);
    freed.notified().await;
    assert_eq!((upstreams.used(), upstreams.room(&["m".to_owned()])), (0, vec![2]));
}

#[tokio::test]
async fn no_upstream_takes_all_seats() {
    let (one, two) = (Server::with(&["m", "a"]).await, Server::with(&["m"]).await);
    let upstreams = looked(&[&one, &two], 3).await;
    assert_eq!(upstreams.room(&["m".to_owned(), "a:latest".to_owned()]), [3, 2]);
    let _of_one = [upstreams.seat("a").unwrap(), upstreams.seat("a").unwrap()];
    assert!(upstreams.seat("a").is_none());
    let other = upstreams.seat("m").unwrap();
    assert_eq!(other.at, 1);
    assert!(upstreams.seat("m").is_none(), "that is all of them");
}

#[tokio::test]
async fn one_that_has_it_loaded_is_preferred_then_the_one_with_least_to_do() {
    let (one, two) = (Server::with(&["m", "n"]).await, Server::with(&["m", "n"]).await);
    two.loads(&["m:latest"]);
    let upstreams = looked(&[&one, &two], 4).await;
    let loaded = upstreams.seat("m").unwrap();
    let idle = upstreams.seat("n").unwrap();
    assert_eq!((loaded.at, idle.at), (1, 0));
    drop((loaded, idle));
    // What was used last is loaded.
    let seat = upstreams.seat("n").unwrap();
    let mut stream = seat.chat(ask("n"), LONG).await.unwrap();
    while let Some(step) = stream.next().await.unwrap() {
        assert!(step != Step::Tokens(Vec::new()));
    }
    let _busy = [seat, upstreams.seat("m").unwrap()];
    assert_eq!(upstreams.seat("n").unwrap().at, 0);
}

#[tokio::test]
async fn a_model_that_nobody_has_is_asked_for_all_the_same() {
    let server = Server::with(&["m"]).await;
    let upstreams = looked(&[&server], 1).await;
    assert!(!upstreams.has("x"));
    assert_eq!(upstreams.room(&["x".to_owned()]), [1]);
    assert!(upstreams.seat("x").is_some());
}

// --- A job's chat ---

#[tokio::test]
async fn a_chat_gives_its_tokens_and_its_whole() {
    let server = Server::with(&["m"]).await;
    let gate = Gate::new();
    let first = send(format!("{CHUNKED}{}{}", chunk(&token("Hel")), chunk(&token("lo"))));
    let last = send(format!("{}{LAST_CHUNK}", chunk(DONE)));
    server.says(CHAT, &[first, Part::Wait(gate.clone()), last]);
    let upstreams = looked(&[&server], 1).await;
    let seat = upstreams.seat("m").unwrap();
    let mut stream = seat.chat(ask("m"), LONG).await.unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < 2 {
        let Some(Step::Tokens(more)) = stream.next().await.unwrap() else { panic!("it is not over") };
        tokens.extend(more);
    }
    assert_eq!(tokens, ["Hel", "lo"]);
    gate.open();
    let Some(Step::Done(whole)) = stream.next().await.unwrap() else { panic!("it is over") };
    assert_eq!((&whole["message"]["content"], &whole["eval_count"]), (&json!("Hello"), &json!(7)));
    assert_eq!(server.gone(), 0);
    let request = &server.requests(CHAT)[0];
    assert_eq!(request.body.as_bytes(), ask("m"));
    let mut names: Vec<_> =
        request.head.lines().skip(1).filter_map(|line| line.split_once(": ")).map(|h| h.0).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "content-length", "content-type", "host", "user-agent"]);
}

#[tokio::test]
async fn an_end_with_the_connection_is_an_end_when_it_is_done() {
    let server = Server::with(&["m"]).await;
    let text = format!("{CLOSED}{}{}", token("a"), DONE.trim_end());
    server.answers(CHAT, &text);
    let (tokens, end) = converse(&looked(&[&server], 1).await, LONG).await;
    assert_eq!((tokens, end.unwrap()["done"].clone()), (vec!["a".to_owned()], json!(true)));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_none() {
    let unfinished = token("half an ");
    for text in [
        format!("{CHUNKED}{}", chunk(&unfinished)),
        format!("{CHUNKED}{}{LAST_CHUNK}", chunk(&unfinished)),
        format!("{CLOSED}{unfinished}"),
        format!("{CLOSED}{unfinished}{{\"done\":tr"),
        CLOSED.to_owned(),
        String::new(),
    ] {
        let (error, upstreams) = failure(&[send(text.as_str())]).await;
        assert_eq!((error.retry, failures(&upstreams)), (Retry::Later(None), 1), "{text}: {error:?}");
    }
}

#[tokio::test]
async fn an_error_after_the_first_byte_is_one_to_try_again() {
    let text = format!("{CHUNKED}{}{}{LAST_CHUNK}", chunk(&token("a")), chunk("{\"error\":\"out of\\nmemory\"}\n"));
    let (error, upstreams) = failure(&[send(text)]).await;
    assert_eq!((error.retry, failures(&upstreams)), (Retry::Later(None), 0));
    assert!(error.message.contains("out of memory"), "{error:?}");
}

#[tokio::test]
async fn what_is_tried_again_and_what_is_not() {
    for (status, again) in [(400, false), (401, false), (404, false), (422, false), (302, false)] {
        let (error, _) = failure(&[send(self::error(status, "", "because"))]).await;
        assert_eq!((error.retry.map(|_| ()).is_some(), error.model_missing), (again, status == 404), "{status}");
        assert_eq!(error.message, format!("the model upstream answered {status}: because"));
    }
    for (status, trouble) in [(408, 0), (425, 0), (429, 0), (500, 1), (503, 1)] {
        let (error, upstreams) = failure(&[send(self::error(status, "", "because"))]).await;
        assert_eq!((error.retry, failures(&upstreams)), (Retry::Later(None), trouble), "{status}");
    }
}

#[tokio::test]
async fn a_busy_upstream_says_when_to_come_back() {
    for (asked, seconds) in [("7", 7), ("86400", 3600), ("Fri, 15 Jan 2027 08:00:10 GMT", 10)] {
        let (error, _) = failure(&[send(error(503, &format!("retry-after: {asked}\r\n"), "server busy"))]).await;
        assert_eq!(error.retry, Retry::Later(Some(Duration::from_secs(seconds))), "{asked}");
    }
}

#[tokio::test]
async fn a_model_that_is_gone_is_looked_for_elsewhere() {
    let (one, two) = (Server::with(&["m"]).await, Server::with(&["m"]).await);
    for server in [&one, &two] {
        server.answers(CHAT, &error(404, "", "model 'm' not found"));
    }
    let upstreams = looked(&[&one, &two], 2).await;
    assert!(converse(&upstreams, LONG).await.1.unwrap_err().model_missing);
    assert!(upstreams.has("m"));
    assert!(converse(&upstreams, LONG).await.1.unwrap_err().model_missing);
    assert!(!upstreams.has("m"));
    assert_eq!((one.count(CHAT), two.count(CHAT)), (1, 1));
}

#[tokio::test]
async fn a_model_that_is_not_here_may_be_where_nobody_has_looked_yet() {
    let (one, two) = (Server::with(&["other"]).await, Server::with(&["m"]).await);
    one.answers(CHAT, &error(404, "", "model 'm' not found"));
    let upstreams = upstreams(&[&one, &two], 2);
    assert!(converse(&upstreams, LONG).await.1.unwrap_err().model_missing);
    assert!(upstreams.has("m"));
    assert!(converse(&upstreams, LONG).await.1.is_ok());
    assert_eq!(two.count(CHAT), 1);
}

#[tokio::test]
async fn a_chat_ends_with_its_deadline() {
    for parts in [vec![Part::Hang], vec![send(CHUNKED), send(chunk(&token("a"))), Part::Hang]] {
        let server = Server::with(&["m"]).await;
        server.says(CHAT, &parts);
        let upstreams = looked(&[&server], 1).await;
        let (_, end) = converse(&upstreams, SHORT).await;
        assert_eq!((end.unwrap_err().retry, failures(&upstreams)), (Retry::Later(None), 1));
        server.left(1).await;
    }
}

#[tokio::test]
async fn a_chat_that_is_dropped_is_cut_off_and_says_nothing() {
    let server = Server::with(&["m"]).await;
    let upstreams = looked(&[&server], 1).await;
    server.says(CHAT, &[Part::Hang]);
    let seat = upstreams.seat("m").unwrap();
    tokio::select! {
        _ = seat.chat(ask("m"), LONG) => panic!("it has no answer"),
        () = server.asked(CHAT, 1) => {}
    }
    server.left(1).await;
    server.says(CHAT, &[send(CHUNKED), send(chunk(&token("a"))), Part::Hang]);
    let mut stream = seat.chat(ask("m"), LONG).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(Step::Tokens(vec!["a".to_owned()])));
    drop(stream);
    server.left(2).await;
    assert_eq!(failures(&upstreams), 0);
}

#[tokio::test]
async fn a_connection_that_is_refused_is_tried_again() {
    let mut server = Server::with(&["m"]).await;
    let upstreams = looked(&[&server], 1).await;
    server.goes_away().await;
    let error = converse(&upstreams, LONG).await.1.unwrap_err();
    assert_eq!(error.message, "the model upstream is out of reach: connection refused");
    assert_eq!((error.retry, failures(&upstreams), upstreams.is_up()), (Retry::Later(None), 1, Some(false)));
}

// --- Circuits ---

#[tokio::test]
async fn what_keeps_failing_is_left_alone_and_then_probed_once() {
    let (server, clock) = (Server::with(&["m"]).await, clock());
    server.answers(CHAT, &error(500, "", "no"));
    let upstreams = upstreams_with(&[&server], 2, &clock, Timeouts::default());
    upstreams.refresh_stale().await;
    for _ in 0..5 {
        converse(&upstreams, LONG).await.1.unwrap_err();
    }
    let state = || upstreams.circuits().remove(0);
    assert_eq!((state().0.as_str(), state().1.state), ("model_upstream", State::Open));
    assert!(upstreams.seat("m").is_none());
    assert_eq!((upstreams.room(&["m".to_owned()]), upstreams.total_free()), (vec![0], 0));
    clock.advance(TimeDelta::seconds(30));
    assert_eq!(upstreams.room(&["m".to_owned()]), [1]);
    // A probe that nobody uses makes way for the next.
    let unused = upstreams.seat("m").unwrap();
    assert!(upstreams.seat("m").is_none());
    drop(unused);
    let gate = Gate::new();
    let end = send(format!("{}{LAST_CHUNK}", chunk(DONE)));
    server.says(CHAT, &[send(CHUNKED), send(chunk(&token("a"))), Part::Wait(gate.clone()), end]);
    let probe = upstreams.seat("m").unwrap();
    let mut stream = probe.chat(ask("m"), LONG).await.unwrap();
    assert!(upstreams.seat("m").is_none());
    // It answers: that is enough for others to go on.
    assert_eq!(stream.next().await.unwrap(), Some(Step::Tokens(vec!["a".to_owned()])));
    assert_eq!((state().1.state, upstreams.room(&["m".to_owned()])), (State::Closed, vec![1]));
    gate.open();
    assert!(matches!(stream.next().await, Ok(Some(Step::Done(_)))));
}

#[tokio::test]
async fn a_hung_upstream_holds_up_no_other() {
    let (hung, here) = (Server::with(&["m"]).await, Server::with(&["m"]).await);
    hung.says(CHAT, &[Part::Hang]);
    hung.loads(&["m"]);
    let upstreams = looked(&[&hung, &here], 2).await;
    let stuck = upstreams.seat("m").unwrap();
    assert_eq!(stuck.at, 0);
    let mut waiting = Box::pin(stuck.chat(ask("m"), LONG));
    tokio::select! {
        _ = &mut waiting => panic!("it hangs"),
        () = hung.asked(CHAT, 1) => {}
    }
    for _ in 0..3 {
        assert!(converse(&upstreams, LONG).await.1.is_ok());
    }
    assert_eq!(here.count(CHAT), 3);
}

// --- Passed on ---

#[tokio::test]
async fn a_conversation_is_passed_on_as_it_came() {
    let server = Server::with(&["m"]).await;
    let said = format!("{}\n{DONE}", token("  a"));
    server.answers(CHAT, &format!("{CHUNKED}{}{LAST_CHUNK}", chunk(&said)));
    let upstreams = upstreams(&[&server], 0);
    let asked = Bytes::from_static(b" {\"model\" : \"m\"}\n");
    let passed = upstreams.pass_chat(asked.clone()).await.unwrap();
    assert_eq!(passed.content_type.as_ref().unwrap(), "application/x-ndjson");
    assert_eq!(body(passed).await, (200, said, true));
    assert_eq!(server.requests(CHAT)[0].body.as_bytes(), asked);
    server.answers(CHAT, &error(503, "retry-after: 7\r\n", "server busy"));
    assert_eq!(upstreams.pass_chat(asked.clone()).await.unwrap().retry_after.unwrap(), "7");
    server.answers(CHAT, &error(404, "", "model 'm' not found"));
    let refused = body(upstreams.pass_chat(asked).await.unwrap()).await;
    assert_eq!(refused, (404, r#"{"error":"model 'm' not found"}"#.to_owned(), true));
}

#[tokio::test]
async fn what_upstream_breaks_off_breaks_off() {
    let unfinished = token("half an ");
    let server = Server::with(&["m"]).await;
    let upstreams = upstreams(&[&server], 1);
    for text in [
        format!("{CHUNKED}{}", chunk(&unfinished)),
        format!("{CHUNKED}{}{LAST_CHUNK}", chunk(&unfinished)),
        format!("{CLOSED}{unfinished}"),
        CLOSED.to_owned(),
    ] {
        server.answers(CHAT, &text);
        let (status, _, whole) = body(upstreams.pass_chat(ask("m")).await.unwrap()).await;
        assert_eq!((status, whole), (200, false), "{text}");
    }
    server.answers(CHAT, &format!("{CLOSED}{unfinished}{{\"error\":\"no\"}}"));
    assert!(body(upstreams.pass_chat(ask("m")).await.unwrap()).await.2, "upstream said so itself");
    server.answers(CHAT, &whole(200, "", "{\"message\":{}}"));
    let in_one = Bytes::from_static(b"{\"model\":\"m\",\"stream\":false}");
    assert!(body(upstreams.pass_chat(in_one).await.unwrap()).await.2, "it is not streamed");
    server.answers(CHAT, "");
    assert_eq!(upstreams.pass_chat(ask("m")).await.err().unwrap().kind(), Kind::BadGateway);
}

#[tokio::test]
async fn a_client_that_goes_away_cuts_upstream_off() {
    let server = Server::with(&["m"]).await;
    let upstreams = upstreams(&[&server], 1);
    server.says(CHAT, &[Part::Hang]);
    tokio::select! {
        _ = upstreams.pass_chat(ask("m")) => panic!("it has no answer"),
        () = server.asked(CHAT, 1) => {}
    }
    server.left(1).await;
    server.says(CHAT, &[send(CHUNKED), send(chunk(&token("a"))), Part::Hang]);
    let mut passed = upstreams.pass_chat(ask("m")).await.unwrap();
    assert_eq!(passed.body.next().await.unwrap().unwrap(), token("a"));
    drop(passed);
    server.left(2).await;
    assert_eq!(failures(&upstreams), 0);
}

#[tokio::test]
async fn a_conversation_goes_where_its_model_is() {
    let (one, two) = (Server::with(&["a"]).await, Server::with(&["a"]).await);
    let upstreams = looked(&[&one, &two], 2).await;
    two.has(&["a", "b"]);
    passes(&upstreams, Duration::from_secs(2)).await;
    assert_eq!(body(upstreams.pass_chat(ask("b")).await.unwrap()).await.0, 200);
    assert_eq!((one.count(CHAT), two.count(CHAT)), (0, 1));
    // Nobody has it: the first one says so.
    one.answers(CHAT, &error(404, "", "model 'c' not found"));
    assert_eq!(body(upstreams.pass_chat(ask("c")).await.unwrap()).await.0, 404);
}

#[tokio::test]
async fn a_conversation_goes_to_the_next_that_can_be_reached() {
    let (mut one, mut two) = (Server::with(&["m"]).await, Server::with(&["m"]).await);
    let upstreams = looked(&[&one, &two], 2).await;
    one.goes_away().await;
    assert_eq!(body(upstreams.pass_chat(ask("m")).await.unwrap()).await.0, 200);
    assert_eq!(two.count(CHAT), 1);
    two.goes_away().await;
    let error = upstreams.pass_chat(ask("m")).await.err().unwrap();
    assert_eq!((error.kind(), error.stable_code()), (Kind::Unavailable, "UPSTREAM_UNAVAILABLE"));
}

#[tokio::test]
async fn one_that_has_not_the_model_does_not_answer_for_one_that_has() {
    let (mut one, two) = (Server::with(&["m"]).await, Server::with(&["other"]).await);
    let upstreams = looked(&[&one, &two], 2).await;
    one.goes_away().await;
    assert_eq!(upstreams.pass_chat(ask("m")).await.err().unwrap().kind(), Kind::Unavailable);
    assert_eq!(two.count(CHAT), 0);
}

#[tokio::test]
async fn whoever_waits_hears_upstreams_own_words_though_its_circuit_is_open() {
    let server = Server::with(&["m"]).await;
    server.answers(CHAT, &error(500, "", "no"));
    let upstreams = upstreams(&[&server], 1);
    for _ in 0..7 {
        assert_eq!(body(upstreams.pass_chat(ask("m")).await.unwrap()).await.0, 500);
    }
    assert_eq!(upstreams.circuits()[0].1.state, State::Open);
}

#[tokio::test]
async fn lists_are_passed_on_and_put_together() {
    let (one, mut two) = (Server::with(&["a", "b"]).await, Server::with(&["b", "c"]).await);
    one.answers("/api/version", &whole(200, "content-type: application/json\r\n", "{ \"version\": \"1\" }"));
    two.answers("/api/show", &whole(200, "", "{\"license\": \"mine\"}"));
    let alone = upstreams(&[&two], 1);
    let tags = alone.tags().await.unwrap();
    assert_eq!(tags.content_type.as_ref().unwrap(), "application/json");
    assert!(body(tags).await.1.starts_with(r#"{"models":[{"#));
    let both = looked(&[&one, &two], 2).await;
    let names = |text: &str| -> Vec<String> {
        let list: Value = serde_json::from_str(text).unwrap();
        list["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&body(both.tags().await.unwrap()).await.1), ["a", "b", "c"]);
    assert_eq!(body(both.ps().await.unwrap()).await.1, r#"{"models":[]}"#);
    assert_eq!(body(both.version().await.unwrap()).await.1, "{ \"version\": \"1\" }");
    let shown = both.show(Bytes::from_static(b"{\"model\":\"c\"}")).await.unwrap();
    assert_eq!(body(shown).await, (200, "{\"license\": \"mine\"}".to_owned(), true));
    two.goes_away().await;
    assert_eq!(names(&body(both.tags().await.unwrap()).await.1), ["a", "b"]);
    assert_eq!(alone.tags().await.err().unwrap().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_base_url_may_have_a_path() {
    let server = Server::with(&[]).await;
    server.answers("/ollama/api/version", &whole(200, "", "{}"));
    let mut url = server.url.clone();
    url.set_path("/ollama/");
    let upstreams = upstreams_with(&[], 1, &clock(), Timeouts::default());
    assert!(!upstreams.is_configured());
    let upstreams = Upstreams::new(vec![Url::parse(url.as_str()).unwrap()], 1, clock()).unwrap();
    assert_eq!(body(upstreams.version().await.unwrap()).await.1, "{}");
}

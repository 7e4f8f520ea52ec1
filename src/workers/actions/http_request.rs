//! `http.request`: one call to a server that the maker of the saga named. What the server says
//! decides whether it is called again, and it is told by a key that it is the same request.

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::{Map, Value, json};

use super::{ATTEMPTS, ended, excerpt, kept};
use crate::{
    domain::{
        backoff, durations,
        egress::Target,
        saga::{Nature, Outcome, Retry, check::Rules, fields::Fields},
    },
    services::{
        callouts::{self, Answer, Call, Callouts, Failure, Unanswered},
        sagas::{Action, Attempt},
    },
};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_mins(10);
/// Of an answer.
const BODY_MAX: usize = 1 << 20;
/// Of an answer that is a failure, as its error shows it.
const SHOWN: usize = 500;
/// Of a request, in each of the two lists.
const HEADERS_MAX: usize = 100;
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const ATTEMPT: HeaderName = HeaderName::from_static("x-rdev-attempt");
const COMPENSATION: HeaderName = HeaderName::from_static("x-rdev-compensation");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub struct HttpRequest {
    pub callouts: Callouts,
}

struct Config {
    method: Method,
    /// None where it is not known yet.
    target: Option<Target>,
    headers: HeaderMap,
    body: Bytes,
    expected: Option<Vec<u16>>,
    timeout: Duration,
}

impl Config {
    fn read(fields: &mut Fields<'_>) -> Self {
        let (method, target) = (method(fields), target(fields));
        let mut headers = HeaderMap::new();
        put_headers(fields, "headers", &mut headers);
        put_headers(fields, "secret_headers", &mut headers);
        let body = match fields.value("body") {
            None => Bytes::new(),
            Some(Value::String(text)) => text.into(),
            Some(value) => {
                headers.entry(header::CONTENT_TYPE).or_insert(JSON);
                value.to_string().into()
            }
        };
        let timeout = fields.duration("timeout").unwrap_or(TIMEOUT_DEFAULT);
        if timeout > TIMEOUT_MAX {
            fields.problem("timeout", &format!("must be at most {}", durations::format_short(TIMEOUT_MAX)));
        }
        Self { method, target, headers, body, expected: fields.statuses("expect_status"), timeout }
    }
}

fn method(fields: &mut Fields<'_>) -> Method {
    let name = fields.required_text("method");
    let known = METHODS.into_iter().find(|method| method.as_str().eq_ignore_ascii_case(&name));
    if known.is_none() && !name.is_empty() {
        fields.problem("method", &format!("must be one of {}", METHODS.each_ref().map(Method::as_str).join(", ")));
    }
    known.unwrap_or_default()
}

/// An address that may not be called is refused when it is called: what may be, the operator says.
pub fn target(fields: &mut Fields<'_>) -> Option<Target> {
    let url = fields.required_text("url");
    if url.is_empty() {
        return None;
    }
    Target::parse(&url).map_err(|refused| fields.problem("url", &format!("cannot be called: {refused}"))).ok()
}

fn put_headers(fields: &mut Fields<'_>, list: &str, headers: &mut HeaderMap) {
    let given = fields.text_map(list);
    if given.len() > HEADERS_MAX {
        return fields.problem(list, &format!("must hold at most {HEADERS_MAX} headers"));
    }
    for (name, text) in given {
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(text.as_bytes())) {
            (Ok(known), Ok(mut value)) => {
                value.set_sensitive(list != "headers");
                headers.insert(known, value);
            }
            (Err(_), _) => fields.problem(&format!("{list}.{name}"), "is not the name of a header"),
            (_, Err(_)) => fields.problem(&format!("{list}.{name}"), "must not contain control characters"),
        }
    }
}

/// What is the engine's to say; nobody else says it.
fn sign(headers: &mut HeaderMap, key: &str, attempt: i32, undo: bool) {
    headers.insert(KEY, HeaderValue::from_str(key).expect("ids and numbers are a header's characters"));
    headers.insert(ATTEMPT, attempt.into());
    headers.remove(COMPENSATION);
    if undo {
        headers.insert(COMPENSATION, HeaderValue::from_static("true"));
    }
}

impl HttpRequest {
    async fn request(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let Config { method, target, mut headers, body, expected, timeout } = attempt.read(Config::read)?;
        let target = target.ok_or_else(|| Outcome::never("config.url: is required"))?;
        sign(&mut headers, attempt.key(), attempt.number(), attempt.is_undo());
        let server = callouts::server(&target);
        let call = Call { method, target, headers, body, timeout, answer_max: BODY_MAX };
        let answer = self.callouts.call(call).await.map_err(|error| unanswered(error, &server))?;
        let verdict = verdict(answer.status, expected.as_deref());
        if verdict == Verdict::Success {
            return output(&answer);
        }
        let error = said(answer.status, &answer.body);
        if verdict == Verdict::Never {
            return Err(Outcome::never(error));
        }
        let asked = answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let asked = asked.and_then(|text| backoff::retry_after(text, attempt.sagas().now()));
        Err(Outcome::Failed { error, retry: Retry::After(asked), partly: false })
    }
}

/// What was sent in secret, and may come back in what a server says.
fn secrets(attempt: &Attempt) -> Vec<String> {
    let given = attempt.begin.config.get("secret_headers").and_then(Value::as_object);
    given.into_iter().flat_map(|given| given.values()).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What it means that no answer came.
fn unanswered(error: Unanswered, server: &str) -> Outcome {
    match error {
        Unanswered::PutOff { until } => put_off(until, server),
        Unanswered::Failed(Failure::Refused(why)) => Outcome::never(format!("the URL cannot be called: {why}")),
        Unanswered::Failed(failure @ Failure::Unreachable(_)) => Outcome::failed(failure.to_string()),
        // The request may have been sent.
        Unanswered::Failed(failure @ Failure::Timeout(_)) => Outcome::CutOff(failure.to_string()),
        Unanswered::Failed(failure) => Outcome::Broken(failure.to_string()),
    }
}

pub fn put_off(until: chrono::DateTime<chrono::Utc>, server: &str) -> Outcome {
    Outcome::PutOff { until, why: format!("{server} keeps failing and is left alone until its next probe") }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Success,
    Again,
    Never,
}

fn verdict(status: u16, expected: Option<&[u16]>) -> Verdict {
    let is_success = expected.map_or((200..300).contains(&status), |expected| expected.contains(&status));
    match status {
        _ if is_success => Verdict::Success,
        408 | 425 | 429 | 500.. => Verdict::Again,
        _ => Verdict::Never,
    }
}

fn said(status: u16, body: &[u8]) -> String {
    let shown = excerpt(body, SHOWN);
    let colon = if shown.is_empty() { "" } else { ": " };
    format!("the server answered {status}{colon}{shown}")
}

fn output(answer: &Answer) -> Result<Value, Outcome> {
    let is_cut = !answer.complete;
    if is_cut && answer.body.len() < BODY_MAX {
        return Err(Outcome::Broken(format!("the server answered {}, but its answer broke off", answer.status)));
    }
    let text = || Value::String(String::from_utf8_lossy(&answer.body).into_owned());
    // A part of an answer means something else than the answer.
    let body = if is_cut { text() } else { serde_json::from_slice(&answer.body).map_or_else(|_| text(), kept) };
    let mut output = json!({"status": answer.status, "headers": shown(&answer.headers), "body": body});
    if is_cut {
        output["truncated"] = true.into();
    }
    Ok(output)
}

/// One text for each name.
fn shown(headers: &HeaderMap) -> Map<String, Value> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let all = |name| headers.get_all(name).iter().map(text).collect::<Vec<_>>().join(", ");
    headers.keys().map(|name| (name.as_str().to_owned(), all(name).into())).collect()
}

impl Rules for HttpRequest {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        true
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        Config::read(fields);
    }
}

impl Action for HttpRequest {
    fn name(&self) -> &'static str {
        "http.request"
    }

    fn nature(&self) -> Nature {
        Nature { leaves_doubt: true, ..ATTEMPTS }
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.request(attempt).await).without(&secrets(attempt)) }.boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(members: Value) -> Result<Config, String> {
        let base = json!({"method": "post", "url": "https://example.com/a"});
        let mut all = base.as_object().expect("an object").clone();
        all.extend(members.as_object().expect("an object").clone());
        super::super::read(&all, Config::read)
    }

    fn answer(status: u16, body: &str, complete: bool) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: Bytes::from(body.to_owned()), complete }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let read = config(json!({})).expect("it is in order");
        assert_eq!((read.method, read.timeout, read.body), (Method::POST, TIMEOUT_DEFAULT, Bytes::new()));
        assert!(read.headers.is_empty() && read.expected.is_none());
    }

    #[test]
    fn a_text_goes_as_it_is_and_anything_else_as_json() {
        let text = config(json!({"body": "a=1"})).expect("it is in order");
        assert_eq!((&*text.body, text.headers.len()), (&b"a=1"[..], 0));
        let object = config(json!({"body": {"a": [1]}})).expect("it is in order");
        assert_eq!(&*object.body, br#"{"a":[1]}"#);
        assert_eq!(object.headers[header::CONTENT_TYPE], "application/json");
        let own = json!({"body": {}, "headers": {"Content-Type": "application/merge-patch+json"}});
        let own = config(own).expect("it is in order");
        assert_eq!(own.headers[header::CONTENT_TYPE], "application/merge-patch+json");
    }

    #[test]
    fn secret_headers_are_sent_like_others_and_shown_to_no_log() {
        let read = config(json!({"headers": {"a": "1"}, "secret_headers": {"Authorization": "Bearer x"}}));
        let headers = read.expect("it is in order").headers;
        assert_eq!((&headers["a"], &headers["authorization"]), (&"1".parse().unwrap(), &"Bearer x".parse().unwrap()));
        assert!(!format!("{headers:?}").contains("Bearer"));
    }

    #[test]
    fn what_cannot_be_sent_is_told_with_its_path() {
        let many: Map<String, Value> = (0..=HEADERS_MAX).map(|n| (format!("h{n}"), "".into())).collect();
        for (members, path) in [
            (json!({"method": "BREW"}), "config.method"),
            (json!({"method": "CONNECT"}), "config.method"),
            (json!({"url": "ftp://example.com/"}), "config.url"),
            (json!({"url": "nowhere"}), "config.url"),
            (json!({"headers": {"a b": "1"}}), "config.headers.a b"),
            (json!({"headers": {"a": "1\n2"}}), "config.headers.a"),
            (json!({"secret_headers": {"a": "1\n2"}}), "config.secret_headers.a"),
            (json!({"headers": many}), "config.headers"),
            (json!({"timeout": "11m"}), "config.timeout"),
            (json!({"expect_status": "fine"}), "config.expect_status"),
        ] {
            let told = config(members.clone()).err().unwrap_or_default();
            assert!(told.starts_with(&format!("{path}: ")), "{members}: {told}");
        }
    }

    #[test]
    fn nobody_else_says_which_request_it_is() {
        let own = json!({"headers": {"IDEMPOTENCY-key": "mine", "X-Rdev-Attempt": "9", "x-rdev-compensation": "true"}});
        let mut headers = config(own).expect("it is in order").headers;
        sign(&mut headers, "the-key", 2, false);
        assert_eq!((&headers[KEY], &headers[ATTEMPT]), (&"the-key".parse().unwrap(), &"2".parse().unwrap()));
        assert_eq!(headers.len(), 2);
        sign(&mut headers, "another", 1, true);
        assert_eq!((&headers[KEY], &headers[COMPENSATION]), (&"another".parse().unwrap(), &"true".parse().unwrap()));
    }

    #[test]
    fn a_status_is_a_success_a_reason_to_try_again_or_the_end() {
        for (status, is) in [
            (200, Verdict::Success),
            (299, Verdict::Success),
            (301, Verdict::Never),
            (400, Verdict::Never),
            (408, Verdict::Again),
            (409, Verdict::Never),
            (425, Verdict::Again),
            (429, Verdict::Again),
            (500, Verdict::Again),
            (599, Verdict::Again),
        ] {
            assert_eq!(verdict(status, None), is, "{status}");
        }
        assert_eq!(verdict(503, Some(&[404, 503])), Verdict::Success, "it was expected");
        assert_eq!(verdict(200, Some(&[404])), Verdict::Never);
        assert_eq!(verdict(503, Some(&[404])), Verdict::Again);
    }

    #[test]
    fn an_answer_is_json_where_it_is() {
        for (body, value) in
            [("{\"a\": 1}", json!({"a": 1})), ("7", json!(7)), ("fine", json!("fine")), ("", json!(""))]
        {
            assert_eq!(output(&answer(200, body, true)), Ok(json!({"status": 200, "headers": {}, "body": value})));
        }
    }

    #[test]
    fn headers_are_one_text_each() {
        let mut headers = HeaderMap::new();
        headers.append("Set-Cookie", "a=1".parse().unwrap());
        headers.append("set-cookie", "b=2".parse().unwrap());
        assert_eq!(Value::Object(shown(&headers)), json!({"set-cookie": "a=1, b=2"}));
    }

    #[test]
    fn an_answer_that_is_longer_is_cut_and_one_that_broke_off_is_none() {
        let long = output(&answer(200, &"1".repeat(BODY_MAX), false)).expect("its beginning");
        assert_eq!((&long["truncated"], long["body"].is_string()), (&json!(true), true));
        assert!(matches!(output(&answer(200, "1", false)), Err(Outcome::Broken(_))));
    }

    #[test]
    fn whether_the_request_may_have_been_sent_decides() {
        let of = |failure| unanswered(Unanswered::Failed(failure), "example.com:443");
        assert_eq!(of(Failure::Unreachable("connection refused".into())), Outcome::failed("connection refused"));
        assert!(matches!(of(Failure::Timeout(Duration::from_secs(1))), Outcome::CutOff(_)));
        assert!(matches!(of(Failure::Broken("connection reset".into())), Outcome::Broken(_)));
    }

    #[test]
    fn an_error_shows_what_the_server_said() {
        assert_eq!(said(409, b" taken\n"), "the server answered 409: taken");
        assert_eq!(said(502, b""), "the server answered 502");
        assert!(said(500, &[b'x'; 5000]).len() < 600);
    }

    proptest! {
        #[test]
        fn no_config_panics(
            method in "\\PC{0,8}", url in "(https?://)?\\PC{0,20}", name in "\\PC{0,10}", value in "\\PC{0,10}|[\\x00-\\x1f]",
        ) {
            let read = config(json!({"method": method, "url": url, "headers": {name: value}}));
            if let Ok(read) = read {
                prop_assert!(read.target.is_some());
            }
        }
    }
}

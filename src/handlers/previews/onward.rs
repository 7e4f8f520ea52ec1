//! What of a request goes on to the program: everything but what is between the client and
//! rdev. Keys, cookies and links of rdev's stay here, and who is on the other end is said by
//! the server alone.

use std::{borrow::Cow, net::IpAddr};

use axum::body::Body;
use base64::{
    Engine as _,
    alphabet::{Alphabet, STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use http_body::Body as _;
use url::form_urlencoded;

use super::cookies;

/// In the query of a link.
pub const LINK: &str = "rdev_preview";
/// How every API key begins.
const KEY: &str = "rdev_sk_";

/// For the next hop alone.
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authentication-info"),
];

/// What the program is told of the client.
pub struct Told<'a> {
    /// `localhost:<port>`.
    pub host: &'a str,
    pub client: Option<IpAddr>,
    /// The host that the client asked for.
    pub asked: &'a str,
    pub scheme: &'static str,
    pub prefix: Option<&'a str>,
}

/// The API key that a request carries, as bearer or as password. Only the text decides: one
/// that is mistyped is ours as well, and goes no further.
pub fn key(headers: &HeaderMap) -> Option<String> {
    headers.get_all(header::AUTHORIZATION).iter().find_map(key_in)
}

fn key_in(value: &HeaderValue) -> Option<String> {
    let bytes = value.as_bytes();
    if let Some(at) = memchr::memmem::find(bytes, KEY.as_bytes()) {
        return Some(String::from_utf8_lossy(&bytes[at..]).trim().to_owned());
    }
    let text = String::from_utf8_lossy(bytes);
    let (_, encoded) = text.split_once([' ', '\t']).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))?;
    let decoded = decoded(encoded.trim())?;
    let decoded = String::from_utf8_lossy(&decoded);
    decoded.split(':').find(|part| part.starts_with(KEY)).map(str::to_owned)
}

/// As any program behind would read it: with the padding or without, in either alphabet.
fn decoded(base64: &str) -> Option<Vec<u8>> {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let by = |alphabet: &Alphabet| GeneralPurpose::new(alphabet, lenient).decode(base64).ok();
    by(&STANDARD).or_else(|| by(&URL_SAFE))
}

/// The protocol that the client wants to go on with. HTTP/2 is none of them: programs are
/// asked by HTTP/1.1, and what is said inside of it would not be looked at.
pub fn upgrade(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get(header::UPGRADE)?;
    let is_asked = named_in_connection(headers).iter().any(|name| name == "upgrade");
    let is_http2 = wanted.to_str().map_or(true, |text| text.to_ascii_lowercase().contains("h2c"));
    (is_asked && !is_http2 && method != Method::CONNECT).then(|| wanted.clone())
}

/// Turns the client's headers into those that the program gets.
pub fn rewrite(headers: &mut HeaderMap, told: &Told<'_>, upgrade: Option<HeaderValue>) {
    strip_hop_by_hop(headers);
    remove_ours(headers);
    // How long the body is, the connection that it goes over says anew.
    headers.remove(header::CONTENT_LENGTH);
    retain(headers, &header::AUTHORIZATION, |value| key_in(value).is_none());
    retain(headers, &header::REFERER, |value| !has_link(value));
    cookies::hide(headers);
    set(headers, header::HOST, told.host);
    if let Some(client) = told.client {
        set(headers, HeaderName::from_static("x-forwarded-for"), &client.to_string());
    }
    set(headers, HeaderName::from_static("x-forwarded-host"), told.asked);
    set(headers, HeaderName::from_static("x-forwarded-proto"), told.scheme);
    if let Some(prefix) = told.prefix {
        set(headers, HeaderName::from_static("x-forwarded-prefix"), prefix);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
}

/// What the server alone says. Many programs take an underscore in a name for a hyphen.
fn remove_ours(headers: &mut HeaderMap) {
    let is_ours = |name: &HeaderName| {
        let name = name.as_str();
        let name = if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) };
        name.starts_with("x-forwarded-")
            || matches!(name.as_ref(), "forwarded" | "x-real-ip" | "expect" | "http2-settings")
    };
    let ours: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// What is said after a body is said of it alone: neither who asks, nor by which right.
pub fn rewrite_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    remove_ours(trailers);
    for name in [header::HOST, header::CONTENT_LENGTH, header::AUTHORIZATION, header::COOKIE] {
        trailers.remove(name);
    }
}

/// Of a body's length, what the connection to the program would not say: that nothing was sent,
/// and that a GET brings a body.
pub fn framing(method: &Method, headers: &HeaderMap, body: &Body) -> Option<(HeaderName, HeaderValue)> {
    if body.is_end_stream() {
        let is_said = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length == "0");
        return is_said.then(|| (header::CONTENT_LENGTH, HeaderValue::from_static("0")));
    }
    let is_left_out = matches!(*method, Method::GET | Method::HEAD) && body.size_hint().exact().is_none();
    is_left_out.then(|| (header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")))
}

/// Takes away what is for the next hop alone, and what `Connection` says is.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in named_in_connection(headers) {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn named_in_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

/// The link in a query, and the query without it.
pub fn link(target: &str) -> (Option<String>, String) {
    let Some((path, query)) = target.split_once('?') else { return (None, target.to_owned()) };
    let found = query.split('&').find_map(link_in);
    if found.is_none() {
        return (None, target.to_owned());
    }
    let rest: Vec<&str> = query.split('&').filter(|pair| link_in(pair).is_none()).collect();
    let clean = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    (found, clean)
}

/// However the pair came to be encoded on its way through mails and chats.
fn link_in(pair: &str) -> Option<String> {
    let (name, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
    (name == LINK).then(|| value.into_owned())
}

fn has_link(referer: &HeaderValue) -> bool {
    contains(referer.as_bytes(), LINK.as_bytes()) || link(&String::from_utf8_lossy(referer.as_bytes())).0.is_some()
}

/// Keeps of a header's values those that may stay.
fn retain(headers: &mut HeaderMap, name: &HeaderName, stays: impl Fn(&HeaderValue) -> bool) {
    if headers.get_all(name).iter().all(&stays) {
        return;
    }
    let all: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
    headers.remove(name);
    for value in all.into_iter().filter(|value| stays(value)) {
        headers.append(name, value);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(bytes, text).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (name.parse().unwrap(), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    fn sent(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = headers(pairs);
        let client = "192.0.2.7".parse().ok();
        let told = Told { host: "localhost:3000", client, asked: "s.localhost", scheme: "http", prefix: None };
        rewrite(&mut headers, &told, None);
        headers
    }

    #[test]
    fn a_key_is_known_however_it_is_sent() {
        for value in [
            "Bearer rdev_sk_x",
            "bearer   rdev_sk_x",
            "rdev_sk_x",
            "Token rdev_sk_x",
            "Basic eDpyZGV2X3NrX3g=",
            "Basic eDpyZGV2X3NrX3g",
            "basic  eDpyZGV2X3NrX3h",
            "Basic\teDpyZGV2X3NrX3g=",
            // "<?>:rdev_sk_x", of the other alphabet.
            "Basic PD8-OnJkZXZfc2tfeA",
        ] {
            assert_eq!(key(&headers(&[("authorization", value)])).as_deref(), Some("rdev_sk_x"), "{value}");
            assert!(!sent(&[("authorization", value)]).contains_key("authorization"), "{value}");
        }
        for value in ["Bearer eyJ", "Basic dTpw", "rdev", ""] {
            assert_eq!(key(&headers(&[("authorization", value)])), None, "{value}");
            assert_eq!(sent(&[("authorization", value)])["authorization"], value);
        }
    }

    #[test]
    fn of_two_credentials_only_the_programs_goes_on() {
        let mut two = headers(&[("authorization", "Basic dTpw")]);
        two.append("authorization", "Bearer rdev_sk_x".parse().unwrap());
        let told = Told { host: "h", client: None, asked: "a", scheme: "http", prefix: None };
        rewrite(&mut two, &told, None);
        assert_eq!(two.get_all("authorization").iter().collect::<Vec<_>>(), ["Basic dTpw"]);
    }

    #[test]
    fn who_asks_is_said_by_the_server_alone() {
        let sent = sent(&[
            ("host", "s.localhost"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-prefix", "/evil"),
            ("x-forwarded-user", "root"),
            ("forwarded", "for=10.0.0.1"),
            ("x-real-ip", "10.0.0.1"),
            ("x_forwarded_for", "10.0.0.1"),
            ("x_forwarded-host", "evil.example"),
            ("x-real_ip", "10.0.0.1"),
            ("connection", "x-forwarded-host, host, x-own"),
            ("x-own", "1"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic x"),
        ]);
        assert_eq!(
            (&sent["host"], &sent["x-forwarded-for"]),
            (&"localhost:3000".parse().unwrap(), &"192.0.2.7".parse().unwrap())
        );
        assert_eq!(sent["x-forwarded-host"], "s.localhost");
        assert_eq!(sent.len(), 4, "{sent:?}");
    }

    #[test]
    fn an_upgrade_is_asked_for_in_both_places_and_is_not_http2() {
        let asks = |pairs: &[(&str, &str)]| upgrade(&Method::GET, &headers(pairs)).is_some();
        assert!(asks(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(asks(&[("connection", "upgrade"), ("upgrade", "my-own")]));
        assert!(!asks(&[("connection", "keep-alive"), ("upgrade", "websocket")]));
        assert!(!asks(&[("connection", "upgrade, http2-settings"), ("upgrade", "H2C")]));
    }

    #[test]
    fn a_referer_with_a_link_stays_here() {
        for link in ["rdev_preview=abc", "a&rdev%5Fpreview=abc"] {
            let referer = format!("http://s.localhost/?{link}");
            assert!(!sent(&[("referer", &referer)]).contains_key("referer"), "{referer}");
        }
        assert!(sent(&[("referer", "http://s.localhost/a")]).contains_key("referer"));
    }

    #[test]
    fn a_link_is_taken_out_of_the_query() {
        for (target, found, clean) in [
            ("/a", None, "/a"),
            ("/?rdev_preview=x", Some("x"), "/"),
            ("/a?b=1&rdev_preview=x&c", Some("x"), "/a?b=1&c"),
            ("/a?rdev_preview=x&rdev_preview=y", Some("x"), "/a"),
            ("/a?rdev_preview", Some(""), "/a"),
            ("/a?rdev%5Fpreview=x%2D&b", Some("x-"), "/a?b"),
            ("/a?%72dev_preview=x", Some("x"), "/a"),
            ("/a?xrdev_preview=x", None, "/a?xrdev_preview=x"),
            ("/a?", None, "/a?"),
        ] {
            assert_eq!(link(target), (found.map(str::to_owned), clean.to_owned()), "{target}");
        }
    }

    #[test]
    fn what_is_said_after_a_body_is_not_who_asks() {
        let mut trailers = headers(&[
            ("x-checksum", "1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("X_Real_IP", "10.0.0.1"),
            ("authorization", "Bearer rdev_sk_x"),
            ("cookie", "a=b"),
            ("host", "evil.example"),
        ]);
        rewrite_trailers(&mut trailers);
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-checksum"]);
    }

    proptest! {
        #[test]
        fn no_link_is_left_in_a_query(target in "/[a-z]{0,3}\\?((rdev_preview|rdev%5[fF]preview|a|b)(=[a-z&=]{0,3})?&){0,4}") {
            prop_assert_eq!(link(&link(&target).1).0, None);
        }
    }
}

//! What a person sees in place of a preview: the same that a client is told, as a page.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, header};

use crate::error::{Error, Kind};

/// No sandbox: a page that looks again by itself could not.
const CSP: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The refusal, as a page where the client asks for one.
pub fn refusal(error: Error, as_page: bool) -> Response {
    let html = as_page.then(|| page(&error));
    let mut response = error.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(html) = html {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        *response.body_mut() = Body::from(html);
    }
    response
}

/// Whether the client asks for HTML.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| range.trim_start().starts_with("text/html"))
}

fn page(error: &Error) -> String {
    let (title, text) = match (error.stable_code(), error.kind()) {
        (_, Kind::Unauthenticated) => (
            "This preview is private",
            "Ask whoever sent you here for a new preview link: this one is missing, has ended, or is for another preview.",
        ),
        (_, Kind::Forbidden) => ("This preview is private", "Your key may not read this session."),
        (_, Kind::NotFound) => ("There is no such preview", "Its session is not known here."),
        (_, Kind::Gone) => ("This preview has ended", "Its session was checked in, has expired, or was ended."),
        ("PREVIEW_NOT_READY", _) => {
            ("Nothing answers here yet", "No program listens on the session's port. This page looks again by itself.")
        }
        ("PREVIEW_BAD_ANSWER", _) => ("This preview cannot be shown", "The program behind it gave no valid answer."),
        (_, Kind::Timeout) => ("The program takes too long", "It listens, and has not answered in time."),
        _ => ("This preview cannot be shown", error.message()),
    };
    let again = if error.kind() == Kind::Unavailable { "<meta http-equiv=\"refresh\" content=\"2\">" } else { "" };
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">{again}<title>{title}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:20vh auto;padding:0 1rem}}</style>\
         <h1>{title}</h1><p>{}</p><p><small>{}</small></p></html>\n",
        in_html(text),
        error.stable_code()
    )
}

fn in_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_a_client_is_told() {
        let limited = Error::new(Kind::Limited, "RATE_LIMITED", "too many <tries> & more");
        assert!(page(&limited).contains("<p>too many &lt;tries&gt; &amp; more</p>"));
        let away = page(&Error::unavailable("the database", "refused"));
        assert!(away.contains("the database is out of reach") && away.contains("refresh"), "{away}");
        assert!(!away.contains("listens"), "{away}");
        let invalid = page(&Error::invalid("a preview is no proxy"));
        assert!(invalid.contains("a preview is no proxy") && !invalid.contains("refresh"), "{invalid}");
    }
}

//! What a person sees who opens the server's address in a browser: where things are, and
//! the routes of the OpenAPI document, with no asset from elsewhere.

use std::fmt::Write as _;

use axum::{Router, response::Html, routing::get};
use http::{HeaderName, HeaderValue, header};
use serde_json::Value;

const CSP: &str = "default-src 'none'; style-src 'sha256-9beVR8edRgZFHMqO+Ur73+aHy/OITQspMF8AzRYrRWk='; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}code{white-space:nowrap}";

/// `/` and `/docs`, made once.
pub fn router(document: &Value) -> Router {
    let home = page(
        "rdev",
        "<p>This is an rdev server. Its routes are <a href=\"/docs\">listed here</a>, \
        as a document for machines at <a href=\"/openapi.json\">/openapi.json</a>; \
        its condition is at <a href=\"/health\">/health</a>.</p>",
    );
    let docs = page("rdev: routes", &table(document));
    Router::new().route("/", get(async move || show(home))).route("/docs", get(async move || show(docs)))
}

fn show(html: String) -> ([(HeaderName, HeaderValue); 2], Html<String>) {
    let csp = (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
    let nosniff = (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    ([csp, nosniff], Html(html))
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}</html>"
    )
}

fn table(document: &Value) -> String {
    let mut rows = String::new();
    let paths = document["paths"].as_object().into_iter().flatten();
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().into_iter().flatten() {
            let summary = operation["summary"].as_str().unwrap_or_default();
            let scopes = operation["x-scopes-any"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let scopes = scopes.collect::<Vec<_>>().join(", ");
            let line = format!("<tr><td><code>{} {path}</code><td>{summary}<td>{scopes}", method.to_uppercase());
            writeln!(rows, "{line}").expect("writing to a String succeeds");
        }
    }
    format!("<table><tr><th>route<th>what it does<th>any of these scopes{rows}</table>")
}

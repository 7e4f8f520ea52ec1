//! Who may look.

use http::Method;
use serde_json::json;

use super::{super::support::TestApp, program::Preview};

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_is_private() {
    let preview = Preview::shows().await;
    let nobody = preview.app.nobody();
    let reply = preview.asked(&nobody, "/", &[]).await;
    reply.refused(401, "UNAUTHORIZED", "invalid or missing API key");
    assert_eq!(reply.header("www-authenticate"), "Bearer");
    let page = preview.asked(&nobody, "/", &[("accept", "text/html,application/xhtml+xml")]).await;
    assert_eq!((page.status, page.header("content-type")), (401, "text/html; charset=utf-8"));
    assert!(page.text.contains("private"), "{}", page.text);
    let app = &preview.app;
    for key in [format!("{}x", app.admin_key), "rdev_sk_".into(), format!("rdev_sk_{}", "0".repeat(44))] {
        preview.asked(&app.bearing(&key), "/", &[]).await.refusal(401, "UNAUTHORIZED");
    }
    preview.asked(&nobody, "/", &[("authorization", "Basic dTpw")]).await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_read_the_session_opens_its_preview() {
    let preview = Preview::shows().await;
    for scope in ["sessions:read", "projects:read", "admin"] {
        let key = preview.app.someone(&[scope]).await;
        assert_eq!(preview.asked(&key, "/", &[]).await.status, 200, "{scope}");
    }
    for scope in ["sessions:execute", "projects:execute", "jobs:read"] {
        let key = preview.app.someone(&[scope]).await;
        let error = preview.asked(&key, "/", &[]).await.refusal(403, "FORBIDDEN");
        assert_eq!(error["details"]["required_any"], json!(["sessions:read", "projects:read"]));
    }
    let bound = json!({"name": "b", "scopes": ["sessions:read"], "project_ids": ["q"]});
    let (bound, _) = preview.app.holder(bound).await;
    preview.asked(&bound, "/", &[]).await.refusal(404, "NOT_FOUND");
    let elsewhere = json!({"name": "c", "scopes": ["sessions:read"], "allowed_cidrs": ["192.0.2.0/24"]});
    let (elsewhere, _) = preview.app.holder(elsewhere).await;
    preview.asked(&elsewhere, "/", &[]).await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_sees_its_own_authorization_and_never_a_key() {
    let preview = Preview::shows().await;
    let seen = preview.get("/").await.json();
    assert!(!seen.to_string().contains("rdev_sk_"), "{seen}");
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({})).await).await;
    let nobody = preview.app.nobody();
    for own in ["Basic dTpw", "Bearer eyJhbGciOi"] {
        let headers = [("cookie", cookie.as_str()), ("authorization", own)];
        let seen = preview.asked(&nobody, "/", &headers).await.json();
        assert_eq!(seen["headers"]["authorization"], own);
    }
    let stale = [("cookie", cookie.as_str()), ("authorization", "Bearer rdev_sk_stale")];
    preview.asked(&nobody, "/", &stale).await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_not_known_is_not_found() {
    let app = TestApp::start().await;
    let port = app.url.rsplit_once(':').unwrap().1;
    for label in ["01890000-0000-7000-8000-000000000000", "x", "a.b"] {
        let host = format!("{label}.localhost:{port}");
        let reply = app.admin().send(Method::GET, "/projects", None, &[("host", &host)]).await;
        reply.refusal(404, "NOT_FOUND");
    }
    let host = format!("LOCALHOST:{port}");
    app.admin().send(Method::GET, "/projects", None, &[("host", &host)]).await.data(200);
    app.admin().get("/preview/01890000-0000-7000-8000-000000000000/").await.refusal(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_keys_at_a_preview_is_limited_and_old_cookies_are_no_guesses() {
    let preview = Preview::with(&[("RDEV_AUTH_FAILURE_LIMIT", "3")], super::SHOWS).await;
    let nobody = preview.app.nobody();
    for _ in 0..6 {
        preview.asked(&nobody, "/", &[("cookie", "rdev_preview=old")]).await.refusal(401, "UNAUTHORIZED");
    }
    let guess = preview.app.bearing("rdev_sk_guess");
    for _ in 0..3 {
        preview.asked(&guess, "/", &[]).await.refusal(401, "UNAUTHORIZED");
    }
    preview.asked(&guess, "/", &[]).await.refusal(429, "RATE_LIMITED");
    assert_eq!(preview.get("/").await.status, 200);
}

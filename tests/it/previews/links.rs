//! Links: a browser's way in, for as long as the link, its session and its key live.

use chrono::TimeDelta;
use http::Method;
use serde_json::json;

use super::{
    super::{
        keys::with_checksum,
        support::{TestApp, eventually},
    },
    program::Preview,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_link_becomes_a_cookie_of_the_previews_origin() {
    let preview = Preview::shows().await;
    let link = preview.link(&preview.app.admin(), json!({})).await;
    let nobody = preview.app.nobody();
    let reply = preview.asked(&nobody, &link, &[]).await;
    assert_eq!((reply.status, reply.header("location")), (303, "/"));
    assert_eq!((reply.header("referrer-policy"), reply.header("cache-control")), ("no-referrer", "no-store"));
    let set = reply.header("set-cookie");
    for part in ["; Path=/", "; Max-Age=3600", "; HttpOnly", "; SameSite=Lax"] {
        assert!(set.contains(part), "{set}");
    }
    assert!(!set.to_lowercase().contains("domain"), "{set}");
    let cookie = set.split(';').next().unwrap();
    let seen = preview.asked(&nobody, "/x?y=1", &[("cookie", &format!("a=1; {cookie}; b=2"))]).await.json();
    assert_eq!((&seen["url"], &seen["headers"]["cookie"]), (&json!("/x?y=1"), &json!("a=1; b=2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_can_lead_deeper() {
    let preview = Preview::shows().await;
    let link = preview.link(&preview.app.admin(), json!({})).await;
    let token = link.strip_prefix("/?").unwrap();
    for (path, clean) in [("/a/b?c=1&", "/a/b?c=1"), ("//evil.example/?", "/.//evil.example/"), ("/?a&", "/?a")] {
        let reply = preview.asked(&preview.app.nobody(), &format!("{path}{token}"), &[]).await;
        assert_eq!((reply.status, reply.header("location")), (303, clean));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_never_sees_a_link() {
    let preview = Preview::shows().await;
    let link = preview.link(&preview.app.admin(), json!({})).await;
    let cookie = preview.cookie(&link).await;
    let nobody = preview.app.nobody();
    let referer = format!("http://{}{link}", preview.host);
    let headers = [("cookie", cookie.as_str()), ("referer", referer.as_str())];
    let seen = preview.by(&nobody, Method::POST, &format!("/x{}&a=1", &link[1..]), Some("b"), &headers).await.json();
    assert_eq!(seen["url"], "/x?a=1");
    let token = link.split_once('=').unwrap().1;
    assert!(!seen.to_string().contains(token), "{seen}");
    assert!(seen["headers"].get("cookie").is_none() && seen["headers"].get("referer").is_none(), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_and_its_cookie_live_as_long_as_was_asked() {
    let preview = Preview::shows().await;
    let (app, nobody) = (&preview.app, preview.app.nobody());
    let made =
        app.admin().post(&format!("{}/preview-links", preview.session_path()), json!({"expires_in": "90m"})).await;
    let until: chrono::DateTime<chrono::Utc> = made.data(201)["expires_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(until - app.clock.now(), TimeDelta::minutes(90));
    let link = preview.link(&app.admin(), json!({})).await;
    app.advance(TimeDelta::minutes(50));
    let reply = preview.asked(&nobody, &link, &[]).await;
    let set = reply.header("set-cookie");
    assert!(set.contains("; Max-Age=600;"), "{set}");
    let cookie = set.split(';').next().unwrap();
    assert_eq!(preview.asked(&nobody, "/", &[("cookie", cookie)]).await.status, 200);
    app.advance(TimeDelta::minutes(10));
    preview.asked(&nobody, "/", &[("cookie", cookie)]).await.refusal(401, "UNAUTHORIZED");
    preview.asked(&nobody, &link, &[]).await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_link_does_no_harm_to_who_is_in() {
    let preview = Preview::shows().await;
    let old = preview.link(&preview.app.admin(), json!({"expires_in": "1m"})).await;
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({})).await).await;
    preview.app.advance(TimeDelta::minutes(2));
    let reply = preview.asked(&preview.app.nobody(), &old, &[("cookie", &cookie)]).await;
    assert_eq!((reply.status, reply.header("location"), reply.header("set-cookie")), (303, "/", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_dies_with_its_key() {
    let preview = Preview::shows().await;
    let (holder, key) = preview.app.holder(json!({"name": "x", "scopes": ["sessions:execute"]})).await;
    let link = preview.link(&holder, json!({})).await;
    let cookie = preview.cookie(&link).await;
    let nobody = preview.app.nobody();
    assert_eq!(preview.asked(&nobody, "/", &[("cookie", &cookie)]).await.status, 200);
    preview.app.admin().delete(&format!("/keys/{}", key["id"].as_str().unwrap())).await.data(200);
    preview.asked(&nobody, "/", &[("cookie", &cookie)]).await.refusal(401, "UNAUTHORIZED");
    preview.asked(&nobody, &link, &[]).await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_dies_with_its_session() {
    let preview = Preview::shows().await;
    let link = preview.link(&preview.app.admin(), json!({"expires_in": "24h"})).await;
    let cookie = preview.cookie(&link).await;
    preview.app.admin().post(&format!("{}/checkin", preview.session_path()), json!({})).await.data(200);
    let nobody = preview.app.nobody();
    preview.asked(&nobody, "/", &[("cookie", &cookie)]).await.refusal(410, "PREVIEW_GONE");
    preview.asked(&nobody, &link, &[]).await.refusal(410, "PREVIEW_GONE");
    let again = preview.app.admin().post(&format!("{}/preview-links", preview.session_path()), json!({})).await;
    again.refused(400, "BAD_REQUEST", "session is not active");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_opens_no_other_preview() {
    let preview = Preview::shows().await;
    preview.app.project("q").await;
    let other = preview.app.session("q", "feature").await;
    let link = preview.link(&preview.app.admin(), json!({})).await;
    let cookie = preview.cookie(&link).await;
    let host = preview.host.replace(preview.id(), other["id"].as_str().unwrap());
    let nobody = preview.app.nobody();
    for (path, headers) in [("/", vec![("cookie", cookie.as_str())]), (link.as_str(), vec![])] {
        let headers = [headers, vec![("host", host.as_str())]].concat();
        nobody.send(Method::GET, path, None, &headers).await.refusal(401, "UNAUTHORIZED");
    }
    let flipped = format!("{}{}", &link[..link.len() - 1], if link.ends_with('A') { 'B' } else { 'A' });
    for forged in [flipped, "/?rdev_preview=".into(), "/?rdev_preview=x".into(), format!("{link}x")] {
        preview.asked(&nobody, &forged, &[]).await.refusal(401, "UNAUTHORIZED");
    }
    let ticket = preview.app.admin().post("/stream-tickets", json!({"path": "/projects/p/events"})).await.data(201);
    let ticket = format!("/?rdev_preview={}", ticket["ticket"].as_str().unwrap());
    preview.asked(&nobody, &ticket, &[]).await.refusal(401, "UNAUTHORIZED");
    let as_key = preview.app.bearing(link.split_once('=').unwrap().1);
    as_key.get("/whoami").await.refusal(401, "UNAUTHORIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_beside_a_false_one_still_opens() {
    let preview = Preview::shows().await;
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({})).await).await;
    for tossed in [1, 50] {
        let both = format!("{}{cookie}", "rdev_preview=tossed; ".repeat(tossed));
        let seen = preview.asked(&preview.app.nobody(), "/", &[("cookie", &both)]).await.json();
        assert!(seen["headers"].get("cookie").is_none(), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_of_any_letters_shuts_nobody_out() {
    let preview = Preview::shows().await;
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({})).await).await;
    let nobody = preview.app.nobody();
    for all in [format!("user=Jürgen; {cookie}"), format!("{cookie}; ü=1")] {
        let reply = preview.asked(&nobody, "/", &[("cookie", &all)]).await;
        assert_eq!(reply.status, 200, "{all}: {}", reply.text);
        assert!(reply.json()["headers"].get("cookie").is_some(), "the program's own goes on");
    }
    let set = preview.get("/answer?header=set-cookie:%20user=J%C3%BCrgen;%20Domain=localhost").await;
    let set = set.headers["set-cookie"].as_bytes();
    // In which of the two encodings, node has its own mind about.
    assert!(set == "user=Jürgen".as_bytes() || set == b"user=J\xfcrgen", "{set:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_encoded_on_its_way_opens() {
    let preview = Preview::shows().await;
    let link = preview.link(&preview.app.admin(), json!({})).await;
    let cookie = preview.cookie(&link.replace("rdev_preview", "rdev%5Fpreview")).await;
    let again = format!("/x{}&a=1", link[1..].replace("rdev_preview", "rdev%5fpreview"));
    let nobody = preview.app.nobody();
    let seen = preview.by(&nobody, Method::POST, &again, Some("b"), &[("cookie", &cookie)]).await.json();
    assert_eq!(seen["url"], "/x?a=1", "no program sees it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_preview_does_not_act_here() {
    let preview = Preview::shows().await;
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({})).await).await;
    let own = format!("http://{}", preview.host);
    let other = own.replace(preview.id(), "01890000-0000-7000-8000-000000000000");
    let nobody = preview.app.nobody();
    let post = async |origin: &str| {
        let headers = [("cookie", cookie.as_str()), ("origin", origin)];
        preview.by(&nobody, Method::POST, "/", Some("x"), &headers).await
    };
    assert_eq!(post(&own).await.status, 200);
    let elsewhere = format!("{own}1");
    for foreign in [other.as_str(), &elsewhere, "null", "http://example.org", "https://[", ""] {
        post(foreign).await.refusal(401, "UNAUTHORIZED");
    }
    let by_key = preview.send(Method::POST, "/", Some("x"), &[("origin", &other)]).await;
    assert_eq!(by_key.status, 200, "no browser brings a key along");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_elsewhere_shows_nothing_of_a_preview() {
    let preview = Preview::shows().await;
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({})).await).await;
    let nobody = preview.app.nobody();
    let asked = async |method: Method, site: &str, mode: &str, dest: &str, origin: Option<&str>| {
        let said = [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
        let origin: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
        let headers = [&said[..], &origin, &[("cookie", cookie.as_str())]].concat();
        preview.by(&nobody, method, "/", None, &headers).await.status
    };
    for site in ["same-site", "cross-site"] {
        for dest in ["script", "image", "iframe", "empty"] {
            assert_eq!(asked(Method::GET, site, "no-cors", dest, None).await, 401, "{site} {dest}");
            assert_eq!(asked(Method::GET, site, "navigate", dest, None).await, 401, "{site} {dest}");
        }
        assert_eq!(asked(Method::POST, site, "navigate", "document", Some("null")).await, 401, "{site}");
        assert_eq!(asked(Method::GET, site, "navigate", "document", None).await, 200, "a link is followed");
    }
    assert_eq!(asked(Method::GET, "same-origin", "no-cors", "script", None).await, 200);
    assert_eq!(asked(Method::POST, "same-origin", "cors", "empty", Some("null")).await, 200, "no referrer is sent");
    assert_eq!(asked(Method::GET, "none", "navigate", "document", None).await, 200);
    let by_key = [("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")];
    assert_eq!(preview.send(Method::GET, "/", None, &by_key).await.status, 200, "a key is no cookie");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_too_long_a_life_is_refused() {
    let app = TestApp::start().await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    let path = format!("/projects/p/sessions/{}/preview-links", session["id"].as_str().unwrap());
    for expires_in in ["25h", "2d", "0s", "-1h", "x", "31d"] {
        app.admin().post(&path, json!({"expires_in": expires_in})).await.refusal(400, "BAD_REQUEST");
    }
    app.someone(&["sessions:read"]).await.post(&path, json!({})).await.refusal(403, "FORBIDDEN");
    let (bound, _) = app.holder(json!({"name": "b", "scopes": ["sessions:execute"], "project_ids": ["q"]})).await;
    bound.post(&path, json!({})).await.refused(404, "NOT_FOUND", "project not found");
    let unknown = path.replace(session["id"].as_str().unwrap(), "01890000-0000-7000-8000-000000000000");
    app.admin().post(&unknown, json!({})).await.refused(404, "NOT_FOUND", "session not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_asked_for_twice_is_not_kept() {
    let preview = Preview::shows().await;
    let path = format!("{}/preview-links", preview.session_path());
    preview.app.admin().once("k", &path, json!({})).await.data(201);
    let again = preview.app.admin().once("k", &path, json!({})).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.data(201)["url"], "[redacted]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_works_on_every_process() {
    let preview = Preview::shows().await;
    let link = preview.link(&preview.app.admin(), json!({})).await;
    let other = Preview::silent(preview.app.sibling(&[]).await, preview.session.clone());
    let cookie = other.cookie(&link).await;
    assert_eq!(other.asked(&other.app.nobody(), "/", &[("cookie", &cookie)]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_https_nobody_else_can_set_the_cookie() {
    let own = [("RDEV_PUBLIC_URL", "https://rdev.example.com"), ("RDEV_PREVIEW_DOMAIN", "preview.example.com")];
    let app = TestApp::with(&own).await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    let host = format!("{}.preview.example.com", session["id"].as_str().unwrap());
    let mut preview = Preview::silent(app, session);
    preview.host = host.clone();
    let path = format!("{}/preview-links", preview.session_path());
    let made = preview.app.admin().post(&path, json!({})).await.data(201);
    let link = made["url"].as_str().unwrap().strip_prefix(&format!("https://{host}")).unwrap().to_owned();
    let reply = preview.asked(&preview.app.nobody(), &link, &[]).await;
    let set = reply.header("set-cookie");
    assert!(set.starts_with("__Host-rdev_preview=") && set.ends_with("; Secure"), "{set}");
    let cookie = set.split(';').next().unwrap();
    preview.asked(&preview.app.nobody(), "/", &[("cookie", cookie)]).await.refusal(503, "PREVIEW_NOT_READY");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_ends_with_the_link() {
    let preview = Preview::shows().await;
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({"expires_in": "10m"})).await).await;
    let headers = [("cookie", cookie.as_str()), ("host", preview.host.as_str())];
    let open = preview.app.nobody().request(Method::GET, "/open", None, &headers).send().await.unwrap();
    preview.app.advance(TimeDelta::minutes(11));
    let read = super::super::support::soon("the end of what was open", open.text()).await;
    assert!(read.is_err(), "it is cut, not ended: {read:?}");
    eventually("nobody is let in", async || {
        (preview.asked(&preview.app.nobody(), "/", &[("cookie", &cookie)]).await.status == 401).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_no_link_and_a_link_no_cookie() {
    let preview = Preview::shows().await;
    let link = preview.link(&preview.app.admin(), json!({})).await;
    let cookie = preview.cookie(&link).await;
    let nobody = preview.app.nobody();
    let (name, text) = cookie.split_once('=').unwrap();
    preview.asked(&nobody, &format!("/?rdev_preview={text}"), &[]).await.refusal(401, "UNAUTHORIZED");
    let token = link.split_once('=').unwrap().1;
    let as_cookie = format!("{name}={token}");
    preview.asked(&nobody, "/", &[("cookie", &as_cookie)]).await.refusal(401, "UNAUTHORIZED");
    assert_eq!(preview.asked(&nobody, "/", &[("cookie", &cookie)]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_the_first_admin_key_end_with_it() {
    let [first, second] = ["B", "C"].map(|letter| with_checksum(&format!("rdev_sk_AAAAAA{}", letter.repeat(32))));
    let app = TestApp::with(&[("RDEV_ADMIN_KEY", &first)]).await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    let preview = Preview::silent(app, session);
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({})).await).await;
    let Preview { app, session, .. } = preview;
    for (key, code) in [(&first, (503, "PREVIEW_NOT_READY")), (&second, (401, "UNAUTHORIZED"))] {
        let again = Preview::silent(app.sibling(&[("RDEV_ADMIN_KEY", key)]).await, session.clone());
        again.asked(&again.app.nobody(), "/", &[("cookie", &cookie)]).await.refusal(code.0, code.1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_ends_with_the_link_while_the_database_is_away() {
    let preview = Preview::shows().await;
    let cookie = preview.cookie(&preview.link(&preview.app.admin(), json!({"expires_in": "10m"})).await).await;
    let host = ("host", preview.host.as_str());
    let mut others = Vec::new();
    for _ in 0..6 {
        let reader = preview.app.someone(&["sessions:read"]).await;
        others.push(reader.request(Method::GET, "/open", None, &[host]).send().await.unwrap());
    }
    let headers = [("cookie", cookie.as_str()), host];
    let open = preview.app.nobody().request(Method::GET, "/open", None, &headers).send().await.unwrap();
    preview.app.db().take_away().await;
    preview.app.advance(TimeDelta::minutes(11));
    let read = super::super::support::soon("the end of what was open", open.text()).await;
    assert!(read.is_err(), "it is cut, not ended: {read:?}");
    drop(others);
    preview.app.db().bring_back().await;
}

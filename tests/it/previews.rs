//! Previews: what a program in a session is asked, and what of its answers comes back.

mod attacks;
mod browser;
mod by_path;
mod links;
mod program;
mod rights;
mod streams;
mod upgrades;

use http::Method;
use serde_json::json;

use self::program::{Preview, SHOWS};
use super::support::TestApp;

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_seen_at_the_sessions_own_origin() {
    let app = TestApp::start().await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    let script = "echo hello > page.txt; exec python3 -m http.server --bind 127.0.0.1 $PORT";
    let preview = Preview::of(app, session, json!({"script": script})).await;
    let page = preview.get("/page.txt").await;
    assert_eq!((page.status, page.text.as_str()), (200, "hello\n"));
    assert_eq!(preview.get("/none").await.status, 404);
    let (host, port) = preview.host.rsplit_once(':').unwrap();
    assert_eq!(preview.session["preview_url"], format!("http://{host}:{port}/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_on_as_it_came() {
    let preview = Preview::shows().await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        let method: Method = method.parse().unwrap();
        let sent = preview.send(method.clone(), "/a//b/c%2Fd/?q=1&q=%20", Some("body"), &[("x-own", "1")]).await;
        let seen = sent.json();
        assert_eq!((&seen["method"], &seen["bytes"]), (&json!(method.as_str()), &json!(4)), "{seen}");
        assert_eq!(seen["url"], "/a//b/c%2Fd/?q=1&q=%20");
        assert_eq!(seen["headers"]["x-own"], "1");
        assert_eq!(sent.header("x-request-id").len(), 36);
    }
    assert_eq!(preview.send(Method::HEAD, "/", None, &[]).await.status, 200);
    assert_eq!(preview.get("/jobs").await.json()["url"], "/jobs", "a preview's paths are its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_is_said_by_the_server_alone() {
    let preview = Preview::shows().await;
    let forged = [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/evil"),
        ("x-forwarded-user", "root"),
        ("x_forwarded_for", "10.0.0.1"),
        ("x_real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("connection", "x-forwarded-for, x-gone"),
        ("x-gone", "1"),
        ("te", "trailers"),
    ];
    let seen = preview.send(Method::GET, "/", None, &forged).await.json();
    let headers = seen["headers"].as_object().unwrap();
    let port = &preview.session["preview_port"];
    for (name, value) in [
        ("host", format!("localhost:{port}")),
        ("x-forwarded-for", "127.0.0.1".into()),
        ("x-forwarded-host", preview.host.clone()),
        ("x-forwarded-proto", "http".into()),
    ] {
        assert_eq!(headers[name], value);
    }
    let none = ["x-forwarded-prefix", "x-forwarded-user", "x_forwarded_for", "x_real-ip", "forwarded"];
    for name in none.into_iter().chain(["x-gone", "te", "authorization"]) {
        assert!(!headers.contains_key(name), "{name}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_is_told_whose_page_asks() {
    let preview = Preview::shows().await;
    let own = format!("http://{}", preview.host);
    for origin in [own.as_str(), "https://example.org"] {
        let referer = format!("{origin}/a?b");
        let headers = [("origin", origin), ("referer", referer.as_str())];
        let told = preview.send(Method::POST, "/", Some("x"), &headers).await.json()["headers"].clone();
        assert_eq!((&told["origin"], &told["referer"]), (&json!(origin), &json!(referer)));
        assert_eq!(told["x-forwarded-host"], preview.host, "what the preview's own is to be compared with");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_is_believed() {
    let preview = Preview::with(&[("RDEV_TRUSTED_PROXIES", "127.0.0.0/8")], SHOWS).await;
    let said = [("x-forwarded-for", "10.9.9.9, 192.0.2.7"), ("x-forwarded-proto", "https")];
    let seen = preview.send(Method::GET, "/", None, &said).await.json();
    assert_eq!(seen["headers"]["x-forwarded-for"], "192.0.2.7");
    assert_eq!(seen["headers"]["x-forwarded-proto"], "https");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_listens_on_ipv6_alone_is_found() {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        return;
    }
    let preview = Preview::started(&[], json!({"args": ["node", "-e", SHOWS], "env": {"AT": "::1"}})).await;
    assert_eq!(preview.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_listens_the_preview_is_not_ready() {
    let app = TestApp::start().await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    let preview = Preview::silent(app, session);
    let reply = preview.get("/").await;
    reply.refusal(503, "PREVIEW_NOT_READY");
    assert!(reply.header("retry-after").parse::<u32>().unwrap() > 0);
    let page = preview.send(Method::GET, "/", None, &[("accept", "text/html,*/*;q=0.8")]).await;
    assert_eq!((page.status, page.header("content-type")), (503, "text/html; charset=utf-8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_ends_with_its_session() {
    let preview = Preview::shows().await;
    assert_eq!(preview.get("/").await.status, 200);
    preview.app.admin().delete(&preview.session_path()).await.data(200);
    preview.get("/").await.refusal(410, "PREVIEW_GONE");
    let page = preview.send(Method::GET, "/", None, &[("accept", "text/html")]).await;
    assert_eq!((page.status, page.text.contains("has ended")), (410, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_shows_it_too_and_hears_of_its_end() {
    let preview = Preview::shows().await;
    let other = Preview::silent(preview.app.sibling(&[]).await, preview.session.clone());
    assert_eq!(other.get("/").await.status, 200);
    preview.app.admin().delete(&preview.session_path()).await.data(200);
    super::support::eventually("the other process hears of the end", async || {
        (other.get("/").await.status == 410).then_some(())
    })
    .await;
}

/// One that ends after ten quiet minutes.
async fn restless() -> Preview {
    let app = TestApp::start().await;
    app.project("p").await;
    let body = json!({"new_branch": "feature", "idle_timeout": "10m"});
    let session = app.admin().post("/projects/p/sessions", body).await.data(201);
    Preview::silent(app, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visit_is_activity() {
    let preview = restless().await;
    let _program = preview.listens("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    for _ in 0..4 {
        preview.app.advance(chrono::TimeDelta::minutes(6));
        assert_eq!(preview.get("/").await.text, "ok");
        let shown = preview.app.admin().get(&preview.session_path()).await.data(200);
        assert_eq!(shown["status"], "active");
        let at: chrono::DateTime<chrono::Utc> = shown["last_activity_at"].as_str().unwrap().parse().unwrap();
        assert_eq!(at, preview.app.clock.now());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_waits_for_a_program_keeps_no_session_alive() {
    let preview = restless().await;
    let begun = preview.app.admin().get(&preview.session_path()).await.data(200)["last_activity_at"].clone();
    preview.app.advance(chrono::TimeDelta::minutes(6));
    preview.get("/").await.refusal(503, "PREVIEW_NOT_READY");
    let shown = preview.app.admin().get(&preview.session_path()).await.data(200);
    assert_eq!(shown["last_activity_at"], begun);
    preview.app.advance(chrono::TimeDelta::minutes(5));
    super::support::eventually("it ends as one that nobody uses", async || {
        (preview.get("/").await.status == 410).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_answer_hears_that_the_session_has_ended() {
    let app = TestApp::start().await;
    app.project("p").await;
    let session = app.session("p", "feature").await;
    let preview = Preview::silent(app, session);
    let _program = preview.listens("").await;
    let admin = preview.app.admin();
    let deleted = async {
        super::support::eventually("the program is asked", async || {
            let shown = admin.get(&preview.session_path()).await.data(200);
            (shown["last_activity_at"] != preview.session["last_activity_at"]).then_some(())
        })
        .await;
        admin.delete(&preview.session_path()).await.data(200);
    };
    preview.app.advance(chrono::TimeDelta::minutes(1));
    let (reply, ()) = tokio::join!(preview.get("/"), deleted);
    reply.refusal(410, "PREVIEW_GONE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_its_session_ends_is_no_bad_one() {
    let preview = Preview::shows().await;
    let admin = preview.app.admin();
    let ended = async {
        let asked = async || {
            let shown = admin.get("/metrics").await.text;
            shown.contains("endpoint=\"preview\"").then_some(())
        };
        super::support::eventually("previews are asked", asked).await;
        admin.delete(&preview.session_path()).await.data(200);
    };
    let waiting = futures::future::join_all((0..8).map(|_| preview.get("/hang")));
    let (replies, ()) = tokio::join!(waiting, ended);
    for reply in replies {
        let told = (reply.status, reply.json()["error"]["code"].clone());
        assert!(told == (503, json!("PREVIEW_NOT_READY")) || told == (410, json!("PREVIEW_GONE")), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_without_their_paths() {
    let preview = Preview::shows().await;
    preview.send("PROPFIND".parse().unwrap(), "/secret", None, &[]).await;
    preview.get("/answer?status=404").await;
    let counted = preview.app.admin().get("/metrics").await.text;
    for labels in [r#"method="other",status="2xx""#, r#"method="GET",status="4xx""#] {
        let line = format!("rdev_api_request_duration_seconds_count{{endpoint=\"preview\",{labels}}}");
        assert!(counted.contains(&line), "{line}: {counted}");
    }
    assert!(!counted.contains("secret") && !counted.contains("PROPFIND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_stands_still_everybody_hears_it_soon() {
    let preview = Preview::shows().await;
    let began = std::time::Instant::now();
    let mut stop = preview.app.db().connect().await;
    let run = async |conn: &mut sqlx::PgConnection, sql: &'static str| {
        sqlx::Executor::execute(conn, sql).await.expect(sql);
    };
    run(&mut stop, "begin").await;
    run(&mut stop, "lock table session in access exclusive mode").await;
    super::support::eventually("what was read a moment ago is not trusted any more", async || {
        (preview.get("/").await.status == 503).then_some(())
    })
    .await;
    let all = futures::future::join_all((0..40).map(|_| preview.get("/"))).await;
    assert!(all.iter().all(|reply| reply.status == 503));
    assert!(began.elapsed().as_secs() < 60, "they waited one after the other: {:?}", began.elapsed());
    run(&mut stop, "rollback").await;
    super::support::eventually("it is shown again", async || (preview.get("/").await.status == 200).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_many_parts_does_not_use_up_the_keys_rate() {
    let preview = Preview::with(&[("RDEV_RATE_LIMIT", "100")], SHOWS).await;
    let parts = futures::future::join_all((0..200).map(|n| {
        let (preview, path) = (&preview, format!("/{n}"));
        async move { preview.get(&path).await.status }
    }));
    assert!(parts.await.iter().all(|status| *status == 200));
    assert_eq!(preview.app.admin().get("/whoami").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_program_are_used_again() {
    let preview = Preview::shows().await;
    let first = preview.get("/").await.json()["socket"].clone();
    let mut sockets = Vec::new();
    for _ in 0..10 {
        sockets.push(preview.get("/").await.json()["socket"].clone());
    }
    assert!(sockets.iter().filter(|socket| **socket == first).count() > 5, "{first}: {sockets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ports_of_another_process_are_not_shown_either() {
    let preview = Preview::shows().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let _other = preview.app.sibling(&[("RDEV_METRICS_LISTEN", &format!("127.0.0.1:{port}"))]).await;
    super::support::eventually("it is known who listens there", async || {
        let sql = format!("select count(*) from process where {port} = any(ports)");
        (preview.app.db().count(&sql).await == 1).then_some(())
    })
    .await;
    preview.app.db().run(&format!("update session set preview_port = {port}")).await;
    super::support::eventually("the port is looked at", async || {
        let reply = preview.get("/metrics").await;
        (reply.status == 503 && reply.text.contains("PREVIEW_NOT_READY")).then_some(())
    })
    .await;
    preview.app.project("q").await;
    let body = json!({"new_branch": "feature", "preview_port": port});
    preview.app.admin().post("/projects/q/sessions", body).await.refused(
        400,
        "BAD_REQUEST",
        "preview_port is one of rdev's own ports",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_rdevs_own_is_never_shown() {
    let preview = Preview::shows().await;
    // A server that comes to listen there later, as after a restart on another port.
    let own = preview.app.url.rsplit_once(':').unwrap().1;
    preview.app.db().run(&format!("update session set preview_port = {own}")).await;
    super::support::eventually("the port is looked at", async || {
        let reply = preview.get("/health").await;
        (reply.status == 503 && reply.text.contains("PREVIEW_NOT_READY")).then_some(())
    })
    .await;
}

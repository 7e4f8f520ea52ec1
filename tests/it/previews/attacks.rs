//! Programs and clients that mean harm.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use serde_json::json;

use super::{
    super::support::{Reply, raw},
    program::Preview,
};

/// What is made of an answer of these bytes.
async fn answered(preview: &Preview, bytes: &str) -> Reply {
    preview.get(&format!("/{}", URL_SAFE_NO_PAD.encode(bytes))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_is_a_bad_gateway() {
    let preview = Preview::attacks().await;
    for bytes in [
        "",
        "hello\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: unfinished",
    ] {
        answered(&preview, bytes).await.refusal(502, "PREVIEW_BAD_ANSWER");
    }
    preview.get("/hangup").await.refusal(502, "PREVIEW_BAD_ANSWER");
    let page = preview.send(Method::GET, "/hangup", None, &[("accept", "text/html")]).await;
    assert_eq!((page.status, page.header("content-type")), (502, "text/html; charset=utf-8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_a_body_without_an_end_is_a_bad_gateway() {
    let preview = Preview::attacks().await;
    for endless in ["/headers", "/line", "/hints"] {
        preview.get(endless).await.refusal(502, "PREVIEW_BAD_ANSWER");
    }
    assert_eq!(preview.get("/ready").await.text, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_answers_are_passed_over() {
    let preview = Preview::attacks().await;
    let bytes = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let reply = answered(&preview, bytes).await;
    assert_eq!((reply.status, reply.text.as_str(), reply.header("link")), (200, "ok", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_lengths_the_chunks_count() {
    let preview = Preview::attacks().await;
    let bytes = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond";
    for _ in 0..3 {
        let reply = answered(&preview, bytes).await;
        assert_eq!((reply.status, reply.text.as_str(), reply.header("content-length")), (200, "ok", ""));
        assert_eq!(preview.get("/ready").await.text, "ok", "what was left over answers nobody");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_says_beyond_its_answer_answers_nobody() {
    let preview = Preview::attacks().await;
    let more = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond";
    for (method, first, text) in [
        (Method::GET, "200 OK\r\nContent-Length: 2\r\n\r\nok", "ok"),
        (Method::GET, "200 OK\r\nContent-Length: 2\r\n\r\nok\r\n", "ok"),
        (Method::GET, "204 No Content\r\nContent-Length: 4\r\n\r\nmore", ""),
        (Method::GET, "304 Not Modified\r\n\r\n", ""),
        (Method::HEAD, "200 OK\r\nContent-Length: 4\r\n\r\nmore", ""),
    ] {
        let path = format!("/kept.{}", URL_SAFE_NO_PAD.encode(format!("HTTP/1.1 {first}{more}")));
        let reply = preview.send(method.clone(), &path, None, &[]).await;
        assert_eq!(reply.text, text, "{method} {first}");
        for _ in 0..3 {
            assert_eq!(preview.get("/ready").await.text, "ok", "{method} {first}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_shorter_than_announced_is_not_whole() {
    let preview = Preview::attacks().await;
    for body in ["Content-Length: 50\r\n\r\nshort", "Transfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"] {
        let path = format!("/{}", URL_SAFE_NO_PAD.encode(format!("HTTP/1.1 200 OK\r\n{body}")));
        let asked = preview.app.admin().request(Method::GET, &path, None, &[("host", &preview.host)]);
        let reply = asked.send().await.expect("a head");
        assert_eq!(reply.status(), 200);
        assert!(reply.text().await.is_err(), "it is cut, not ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_previews_host_reaches_the_api() {
    let preview = Preview::shows().await;
    let (key, id) = (&preview.app.admin_key, preview.id());
    let port = preview.app.url.rsplit_once(':').expect("a port").1;
    let asked = async |host: &str| {
        let text =
            format!("GET /whoami HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n");
        raw::raw_request(&preview.app.url, text.as_bytes()).await
    };
    for host in [
        format!("{id}.localhost"),
        format!("{id}.localhost:1"),
        format!("{id}.LocalHost.:{port}"),
        format!("{}.localhost..", id.to_uppercase()),
        format!("127.0.0.1@{id}.localhost"),
        format!("{id}.localhost:"),
        format!("{id}.localhost:port"),
    ] {
        let answer = asked(&host).await;
        assert!(answer.text.contains(r#""url":"/whoami""#), "{host}: {}", answer.text);
    }
    for host in [
        format!("127.0.0.1.{id}.localhost"),
        format!("{id}.localhost@x.localhost"),
        format!("{id}%2elocalhost"),
        format!("{id}.localhost, 127.0.0.1"),
        format!("{id}.localhost/"),
        format!("{id}.localhost#"),
        format!(".localhost:{port}"),
    ] {
        let answer = asked(&host).await;
        assert!([400, 404].contains(&answer.status), "{host}: {}", answer.text);
    }
    for host in [format!("127.0.0.1:{port}"), format!("[::1]:{port}"), format!("{id}.localhost@127.0.0.1")] {
        let answer = asked(&host).await;
        assert!(answer.text.contains("\"data\""), "{host} is the API's: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_stay_with_the_preview() {
    let preview = Preview::shows().await;
    let path = "/answer?header=set-cookie:%20a=1;%20Domain=.localhost;%20HttpOnly\
        &header=set-cookie:%20rdev_preview=evil;%20Path=/x&header=set-cookie:%20=rdev_preview=evil\
        &header=set-cookie:%20__Host-rdev_preview=evil&header=set-cookie:%20b=2;%20Path=/b\
        &header=clear-site-data:%20cookies&header=alt-svc:%20h2=x";
    let reply = preview.get(path).await;
    let set: Vec<_> = reply.headers.get_all("set-cookie").iter().collect();
    assert_eq!(set, ["a=1; HttpOnly", "b=2; Path=/b"]);
    assert!(!reply.headers.contains_key("clear-site-data") && !reply.headers.contains_key("alt-svc"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_refusals_and_redirects_are_its_own() {
    let preview = Preview::shows().await;
    let reply = preview.get("/answer?status=401&header=www-authenticate:%20Basic%20realm=x").await;
    assert_eq!(
        (reply.status, reply.text.as_str(), reply.header("www-authenticate")),
        (401, "answered", "Basic realm=x")
    );
    let port = &preview.session["preview_port"];
    for (to, led) in [
        (format!("http://localhost:{port}/x"), "/x"),
        (format!("http://localhost:{port}//evil.example/"), "/.//evil.example/"),
        ("https://example.com/".into(), "https://example.com/"),
        ("x/y".into(), "x/y"),
    ] {
        let reply = preview.get(&format!("/answer?status=302&header=location:%20{to}")).await;
        assert_eq!((reply.status, reply.header("location")), (302, led));
    }
    let reply = preview.get("/answer?header=x-request-id:%20forged&header=connection:%20x-hop&header=x-hop:%201").await;
    assert_eq!((reply.header("x-request-id").len(), reply.header("x-hop")), (36, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_smuggles_no_request() {
    let preview = Preview::shows().await;
    let key = &preview.app.admin_key;
    let host = &preview.host;
    let two = format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nContent-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n"
    );
    let answer = raw::raw_request(&preview.app.url, two.as_bytes()).await;
    assert!(!answer.text.contains("smuggled"), "{}", answer.text);
    assert_eq!(answer.text.matches("HTTP/1.1 ").count(), 1, "{}", answer.text);
    for bad in [
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("GET http://127.0.0.1/projects HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        format!("GET http://{host}/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"),
    ] {
        let answer = raw::raw_request(&preview.app.url, bad.as_bytes()).await;
        assert_eq!(answer.status, 400, "{bad}: {}", answer.text);
    }
    let connect = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    assert_eq!(raw::raw_request(&preview.app.url, connect.as_bytes()).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_page_cannot_reach_the_api_by_its_host() {
    let preview = Preview::shows().await;
    let seen = preview.send(Method::POST, "/projects", Some(&json!({"id": "evil"}).to_string()), &[]).await;
    assert_eq!(seen.json()["url"], "/projects");
    preview.app.admin().get("/projects/evil").await.refusal(404, "NOT_FOUND");
}

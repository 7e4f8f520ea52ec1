//! Connections that leave HTTP.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    super::support::{raw, soon},
    program::{ATTACKS, Preview, SHOWS},
};

/// Asks for a change of protocol, and reads the head of the answer.
async fn upgrade(preview: &Preview, protocol: &str, headers: &str) -> (TcpStream, String) {
    upgrade_at(preview, "/x", protocol, headers).await
}

async fn upgrade_at(preview: &Preview, path: &str, protocol: &str, headers: &str) -> (TcpStream, String) {
    let mut stream = raw::connect(&preview.app.url).await;
    let host = &preview.host;
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("the head", stream.read_u8()).await.expect("an answer"));
    }
    (stream, String::from_utf8(answer).unwrap())
}

fn by_admin(preview: &Preview) -> String {
    format!("Authorization: Bearer {}\r\n", preview.app.admin_key)
}

async fn echoes(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    soon("the echo", stream.read_exact(&mut back)).await.expect("the echo");
    assert_eq!(back, text);
}

async fn ends(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _reset_or_closed = soon("the end of the connection", stream.read_to_end(&mut rest)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_speaks_both_ways() {
    let preview = Preview::shows().await;
    let key = STANDARD.encode([7; 16]);
    let (admin, host) = (by_admin(&preview), &preview.host);
    let headers = format!("{admin}Origin: http://{host}\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n");
    let (mut stream, head) = upgrade(&preview, "websocket", &headers).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let head = head.to_ascii_lowercase();
    let local = format!("x-origin: http://localhost:{}\r\n", preview.session["preview_port"]);
    assert!(head.contains(&local), "the program compares it with its host: {head}");
    assert!(head.contains("upgrade: websocket") && head.contains("sec-websocket-accept: "), "{head}");
    for text in ["hello", "again"] {
        let mask = [1, 2, 3, 4];
        let length = u8::try_from(text.len()).unwrap();
        let masked = text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let frame: Vec<u8> = [0x81, 0x80 | length].into_iter().chain(mask).chain(masked).collect();
        stream.write_all(&frame).await.unwrap();
        let mut back = vec![0; 2 + text.len()];
        soon("the frame", stream.read_exact(&mut back)).await.unwrap();
        assert_eq!((&back[..2], &back[2..]), (&[0x81, length][..], text.as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_protocol_can_be_changed_to() {
    let preview = Preview::shows().await;
    let (mut stream, head) = upgrade(&preview, "my-own/1", &by_admin(&preview)).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let large = vec![b'x'; 300_000];
    for text in [b"a".as_slice(), b"\0\r\n\r\nGET / HTTP/1.1\r\n\r\n"] {
        echoes(&mut stream, text).await;
    }
    let (mut read, mut write) = stream.split();
    let mut back = vec![0; large.len()];
    let (sent, got) = tokio::join!(write.write_all(&large), soon("all of it", read.read_exact(&mut back)));
    sent.unwrap();
    got.unwrap();
    assert_eq!(back, large);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_the_program_refuses_is_an_answer_like_others() {
    let preview = Preview::with(&[("RDEV_STREAMS_PER_KEY", "1")], ATTACKS).await;
    let refusal = URL_SAFE_NO_PAD.encode("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    for _ in 0..3 {
        let path = format!("/kept.{refusal}");
        let (mut stream, head) = upgrade_at(&preview, &path, "websocket", &by_admin(&preview)).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        assert!(!head.to_ascii_lowercase().contains("upgrade"), "{head}");
        let mut body = [0; 2];
        soon("the body", stream.read_exact(&mut body)).await.unwrap();
        assert_eq!(&body, b"no");
        // The connection is HTTP's still.
        let again = format!("GET /ready HTTP/1.1\r\nHost: {}\r\n{}\r\n", preview.host, by_admin(&preview));
        stream.write_all(again.as_bytes()).await.unwrap();
        let mut line = [0; 15];
        soon("the next answer", stream.read_exact(&mut line)).await.unwrap();
        assert_eq!(&line, b"HTTP/1.1 200 OK");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_not_changed_to() {
    let preview = Preview::shows().await;
    let headers = format!("{}HTTP2-Settings: AAMAAABk\r\n", by_admin(&preview));
    let (_, head) = upgrade(&preview, "h2c", &headers).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_websocket_ends_with_the_key_of_its_link() {
    let preview = Preview::shows().await;
    let (holder, key) = preview.app.holder(json!({"name": "x", "scopes": ["sessions:execute"]})).await;
    let cookie = preview.cookie(&preview.link(&holder, json!({})).await).await;
    let (mut stream, _) = upgrade(&preview, "own", &format!("Cookie: {cookie}\r\n")).await;
    echoes(&mut stream, b"hello").await;
    let (mut kept, _) = upgrade(&preview, "own", &by_admin(&preview)).await;
    preview.app.admin().delete(&format!("/keys/{}", key["id"].as_str().unwrap())).await.data(200);
    let revoked = std::time::Instant::now();
    ends(stream).await;
    assert!(revoked.elapsed().as_secs() < 5);
    echoes(&mut kept, b"others stay").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_websockets_end_with_the_session() {
    let preview = Preview::shows().await;
    let sibling = Preview::silent(preview.app.sibling(&[]).await, preview.session.clone());
    let (here, _) = upgrade(&preview, "own", &by_admin(&preview)).await;
    let (there, _) = upgrade(&sibling, "own", &by_admin(&preview)).await;
    preview.app.admin().delete(&preview.session_path()).await.data(200);
    ends(here).await;
    ends(there).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_websockets_end_with_an_orderly_stop() {
    let preview = Preview::shows().await;
    let (mut stream, _) = upgrade(&preview, "own", &by_admin(&preview)).await;
    echoes(&mut stream, b"hello").await;
    let began = std::time::Instant::now();
    drop(preview);
    ends(stream).await;
    assert!(began.elapsed().as_secs() < 8, "the stop does not wait for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_websockets_count_as_streams_of_their_key() {
    let preview = Preview::with(&[("RDEV_STREAMS_PER_KEY", "2")], SHOWS).await;
    let (first, _) = upgrade(&preview, "own", &by_admin(&preview)).await;
    let (_second, _) = upgrade(&preview, "own", &by_admin(&preview)).await;
    let (_, refused) = upgrade(&preview, "own", &by_admin(&preview)).await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    drop(first);
    super::super::support::eventually("one has ended", async || {
        let (_, head) = upgrade(&preview, "own", &by_admin(&preview)).await;
        head.starts_with("HTTP/1.1 101 ").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_in_a_websocket_is_activity() {
    let preview = Preview::shows().await;
    let (mut stream, _) = upgrade(&preview, "own", &by_admin(&preview)).await;
    preview.app.advance(chrono::TimeDelta::minutes(1));
    echoes(&mut stream, b"hello").await;
    let now = preview.app.clock.now();
    super::super::support::eventually("the session's activity", async || {
        let shown = preview.app.admin().get(&preview.session_path()).await.data(200);
        let at: chrono::DateTime<chrono::Utc> = shown["last_activity_at"].as_str()?.parse().ok()?;
        (at == now).then_some(())
    })
    .await;
}

//! Bodies that are large, slow or endless.

use axum::body::Bytes;
use futures::{StreamExt as _, stream};
use http::Method;
use sha2::{Digest as _, Sha256};

use super::{
    super::support::{eventually, raw, soon},
    program::Preview,
};

const MIB: usize = 1 << 20;

/// Memory of this process that is in use, in MiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() / 1024
}

fn request(preview: &Preview, method: Method, path: &str) -> reqwest::RequestBuilder {
    preview.app.admin().request(method, path, None, &[("host", &preview.host)])
}

fn blocks(mib: usize) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    let block = Bytes::from(vec![b'x'; MIB / 4]);
    stream::iter((0..mib * 4).map(move |_| Ok(block.clone())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_goes_through_in_little_memory() {
    let preview = Preview::shows().await;
    let before = resident();
    let sent = request(&preview, Method::PUT, "/").body(reqwest::Body::wrap_stream(blocks(100))).send();
    let seen: serde_json::Value = serde_json::from_str(&sent.await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(seen["bytes"], 100 * MIB);
    let hash = blocks(100).fold(Sha256::new(), |hash, block| async move { hash.chain_update(block.unwrap()) }).await;
    let expected: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(seen["sha"], expected);
    assert!(resident() < before + 40, "{} MiB more", resident() - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_download_comes_through_in_little_memory() {
    let preview = Preview::shows().await;
    for sized in ["", "&sized"] {
        let before = resident();
        let path = format!("/flood?bytes={}{sized}", 100 * MIB);
        let mut got = request(&preview, Method::GET, &path).send().await.unwrap();
        let announced = got.content_length();
        assert_eq!(announced.is_some(), !sized.is_empty());
        let (mut length, mut most) = (0, 0);
        while let Some(chunk) = soon("the next piece", got.chunk()).await.unwrap() {
            length += chunk.len();
            most = most.max(resident());
        }
        assert_eq!(length, 100 * MIB);
        assert!(most < before + 40, "{} MiB more", most - before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_comes_back_while_it_is_sent() {
    let preview = Preview::shows().await;
    let (say, said) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let words = stream::unfold(said, |mut said| async move {
        said.recv().await.map(|word| (Ok::<_, std::io::Error>(Bytes::from(word)), said))
    });
    say.send("one").unwrap();
    let mut got =
        request(&preview, Method::POST, "/echo").body(reqwest::Body::wrap_stream(words)).send().await.unwrap();
    assert_eq!(soon("the first word", got.chunk()).await.unwrap().unwrap(), "one");
    say.send("two").unwrap();
    assert_eq!(soon("the second word", got.chunk()).await.unwrap().unwrap(), "two");
    drop(say);
    assert_eq!(soon("the end", got.chunk()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_are_said() {
    let preview = Preview::shows().await;
    let mut got = request(&preview, Method::GET, "/events").send().await.unwrap();
    assert_eq!(soon("the first event", got.chunk()).await.unwrap().unwrap(), "data: begun\n\n");
    preview.app.admin().delete(&preview.session_path()).await.data(200);
    let _cut_or_ended = soon("its end", got.chunk()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_answer_ends_with_its_key() {
    let preview = Preview::shows().await;
    let (holder, key) = preview.app.holder(serde_json::json!({"name": "x", "scopes": ["sessions:read"]})).await;
    let open = holder.request(Method::GET, "/open", None, &[("host", &preview.host)]).send().await.unwrap();
    preview.app.admin().delete(&format!("/keys/{}", key["id"].as_str().unwrap())).await.data(200);
    assert!(soon("its end", open.text()).await.is_err(), "it is cut, not ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_program_do_not_hold_up_an_orderly_stop() {
    let preview = Preview::shows().await;
    let mut got = request(&preview, Method::GET, "/events").send().await.unwrap();
    soon("the first event", got.chunk()).await.unwrap();
    let began = std::time::Instant::now();
    drop(preview);
    assert!(began.elapsed().as_secs() < 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let preview = Preview::shows().await;
    for _ in 0..40 {
        let mut got = request(&preview, Method::GET, "/flood?bytes=1000000000").send().await.unwrap();
        got.chunk().await.unwrap();
    }
    let port = preview.session["preview_port"].as_i64().unwrap();
    let hex = format!(":{port:04X} 01");
    eventually("connections to the program are closed", async || {
        let open = std::fs::read_to_string("/proc/net/tcp").unwrap().lines().filter(|line| line.contains(&hex)).count();
        (open < 5).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_to_an_upload_is_heard() {
    let preview = Preview::shows().await;
    let sent = request(&preview, Method::POST, "/early").body(reqwest::Body::wrap_stream(blocks(8))).send().await;
    // A client may as well find that nobody reads on.
    if let Ok(reply) = sent {
        assert_eq!(reply.status(), 413);
    }
    assert_eq!(preview.get("/").await.status, 200);
}

/// A request by the admin, as it stands.
async fn sent(preview: &Preview, method: &str, rest: &str) -> String {
    let (host, key) = (&preview.host, &preview.app.admin_key);
    let head = format!("{method} / HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n");
    raw::raw_request(&preview.app.url, format!("{head}{rest}").as_bytes()).await.text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_nothing_is_said_to_be_one() {
    let preview = Preview::shows().await;
    for method in ["POST", "PUT", "GET"] {
        let seen = sent(&preview, method, "Content-Length: 0\r\n\r\n").await;
        assert!(seen.contains(r#""content-length":"0""#), "{method}: {seen}");
        let seen = sent(&preview, method, "\r\n").await;
        assert!(seen.contains(r#""bytes":0"#) && !seen.contains(r#""content-length""#), "{method}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_chunks_goes_on_with_any_method() {
    let preview = Preview::shows().await;
    for method in ["GET", "DELETE", "OPTIONS", "POST"] {
        let body = "4\r\nbody\r\n3\r\ny x\r\n0\r\n\r\n";
        let seen = sent(&preview, method, &format!("Transfer-Encoding: chunked\r\n\r\n{body}")).await;
        assert!(seen.contains(r#""bytes":7"#), "{method}: {seen}");
        assert_eq!(preview.get("/").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_body_does_not_say_who_asks() {
    let preview = Preview::shows().await;
    let names = "X-Checksum, X-Forwarded-For, X_Real_IP, Cookie";
    let after = "X-Checksum: 1\r\nX-Forwarded-For: 10.0.0.1\r\nX_Real_IP: 10.0.0.1\r\nCookie: a=b\r\n";
    let body = format!("4\r\nbody\r\n0\r\n{after}\r\n");
    let rest = format!("Transfer-Encoding: chunked\r\nTrailer: {names}\r\n\r\n{body}");
    let seen = sent(&preview, "POST", &rest).await;
    assert!(seen.contains(r#""trailers":{"x-checksum":"1"}"#), "{seen}");
}

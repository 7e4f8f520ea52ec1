//! Bodies that are large, slow or endless.

use axum::body::Bytes;
use futures::{StreamExt as _, stream};
use http::Method;
use sha2::{Digest as _, Sha256};

use super::{
    super::support::{eventually, soon},
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

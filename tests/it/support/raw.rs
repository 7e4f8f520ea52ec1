//! Requests that no well-behaved client sends.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::soon;

/// Status line, headers and body as they came.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub text: String,
}

/// Sends these bytes and reads until the server closes.
pub async fn raw_request(url: &str, bytes: &[u8]) -> RawAnswer {
    let mut stream = connect(url).await;
    stream.write_all(bytes).await.expect("the server reads");
    let mut answer = Vec::new();
    // A reset after the answer is as good as a close.
    let _closed_or_reset = soon("the answer", stream.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    RawAnswer { status, text }
}

pub async fn connect(url: &str) -> TcpStream {
    let address = url.strip_prefix("http://").expect("plain http");
    TcpStream::connect(address).await.expect("the server listens")
}

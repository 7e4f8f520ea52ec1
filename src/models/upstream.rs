//! The requests themselves. They say what is asked and in which type, and nothing of who asks.
//! No proxy, no redirects, no decompression: what comes is what upstream said.

use std::{error::Error, io, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, header};
use reqwest::{Client, Request, Response};
use tokio::time::timeout;
use url::Url;

use crate::outward::client::{self, Trust};

/// What is read of an answer that is kept whole.
const WHOLE_MAX: usize = 32 << 20;
const JSON: HeaderValue = HeaderValue::from_static("application/json");

pub struct Upstream {
    number: usize,
    base: Url,
    client: Client,
}

/// An answer that came whole.
pub struct Whole {
    pub status: u16,
    pub content_type: Option<HeaderValue>,
    pub retry_after: Option<HeaderValue>,
    pub body: Bytes,
}

/// Why none came, in words for users: no address is in them.
#[derive(Debug)]
pub struct Unanswered {
    pub why: String,
    /// Nothing was sent: another upstream may be asked instead.
    pub unsent: bool,
}

/// One for each URL.
pub fn open(urls: Vec<Url>, connect: Duration) -> Result<Vec<Upstream>, String> {
    if urls.is_empty() {
        return Ok(Vec::new());
    }
    let (client, _) = client::build(connect, Trust::System, |plain| plain)?;
    let numbered = urls.into_iter().zip(1..);
    Ok(numbered.map(|(base, number)| Upstream { number, base, client: client.clone() }).collect())
}

impl Upstream {
    /// As circuits and logs name it.
    pub fn name(&self) -> String {
        match self.number {
            1 => "model_upstream".to_owned(),
            number => format!("model_upstream_{number}"),
        }
    }

    /// The answer's head; dropped before it comes, the request is cut off.
    pub async fn send(&self, path: &str, body: Option<Bytes>) -> Result<Response, Unanswered> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        let request = match body {
            None => Request::new(Method::GET, url),
            Some(body) => {
                let mut request = Request::new(Method::POST, url);
                request.headers_mut().insert(header::CONTENT_TYPE, JSON);
                *request.body_mut() = Some(body.into());
                request
            }
        };
        self.client.execute(request).await.map_err(|error| Unanswered::new(&error))
    }

    /// The whole answer, within this time.
    pub async fn ask(&self, path: &str, body: Option<Bytes>, within: Duration) -> Result<Whole, Unanswered> {
        let whole = async {
            let response = self.send(path, body).await?;
            let status = response.status().as_u16();
            let [content_type, retry_after] = told(&response);
            let body = read(response, WHOLE_MAX).await.map_err(|error| Unanswered::new(&error))?;
            let body = body.ok_or_else(|| Unanswered::sent(format!("its answer is over {} MiB", WHOLE_MAX >> 20)))?;
            Ok(Whole { status, content_type, retry_after, body })
        };
        timeout(within, whole).await.unwrap_or_else(|_| Err(Unanswered::sent(format!("no answer within {within:?}"))))
    }
}

/// The headers that are passed on: the type, and when to come back.
pub fn told(response: &Response) -> [Option<HeaderValue>; 2] {
    [header::CONTENT_TYPE, header::RETRY_AFTER].map(|name| response.headers().get(name).cloned())
}

/// `None` where it is more than `most`.
async fn read(mut response: Response, most: usize) -> Result<Option<Bytes>, reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if chunk.len() > most - body.len() {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}

impl Unanswered {
    pub fn new(error: &reqwest::Error) -> Self {
        tracing::debug!(?error, "a call to a model upstream failed");
        Self { why: sentence(error).to_owned(), unsent: error.is_connect() }
    }

    fn sent(why: String) -> Self {
        Self { why, unsent: false }
    }
}

/// What lies at the bottom of the client's chain of errors; what lies above it may hold the URL.
fn sentence(error: &reqwest::Error) -> &'static str {
    if error.is_connect() && error.is_timeout() {
        return "no connection in time";
    }
    let mut at: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = at {
        if error.is::<rustls::Error>() {
            return "the TLS handshake failed";
        }
        let io = error.downcast_ref::<io::Error>();
        // What an I/O error wraps is not among its sources.
        let wrapped = io.and_then(io::Error::get_ref).map(|inner| inner as &(dyn Error + 'static));
        if let (Some(io), None) = (io, wrapped) {
            return broken(io);
        }
        at = wrapped.or_else(|| error.source());
    }
    if error.is_connect() { "no connection" } else { "the connection was closed too early" }
}

fn broken(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route to the host",
        io::ErrorKind::TimedOut => "the connection timed out",
        io::ErrorKind::UnexpectedEof => "the connection was closed too early",
        _ => "the connection failed",
    }
}

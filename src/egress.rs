//! The one HTTP client that may call an address a user gave. What it may reach is decided in
//! `domain::egress`; here is what makes the decision hold: a literal is judged before each
//! call, a name where it is resolved for the connection, and the connection goes to those
//! very addresses, so that a name cannot change its mind in between.
//!
//! It follows no redirects, asks no proxy, keeps no cookies, and ends every wait.

mod guard;
mod names;
mod told;

use std::{
    fmt, mem,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http::{HeaderMap, Method, header};
use ipnet::IpNet;
use reqwest::{Certificate, Client, Request, Response};
use tokio::time::{self, Sleep};

use self::{
    guard::{Guard, interfaces},
    names::{Lookup, NameError, Names, system_lookup},
};
pub use crate::domain::egress::{Refused, Target};
use crate::outward::client::{self, Trust};

/// Of an answer that is only looked at.
pub const ANSWER_MAX: usize = 16 * 1024;

/// For the look-up, TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(5);
/// How long whoever hands in a URL waits for its name.
const DOOR: Duration = Duration::from_secs(3);
const IDLE_AT_ONCE: usize = 64;
/// So that an answer over HTTP/2 that nobody reads does not pile up here.
const HTTP2_WINDOW: u32 = 64 * 1024;

/// What a connection says about itself is the client's word, not the caller's: with these,
/// one request could pass for two, or for one to somebody else.
const CLIENTS_OWN: [&str; 11] = [
    "host",
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Egress {
    client: Client,
    guard: Arc<Guard>,
    names: Names,
    /// Whether there is any CA certificate to check a server by.
    trusts: bool,
}

pub struct Call {
    pub method: Method,
    pub target: Target,
    /// `user-agent` and `accept` have defaults; headers that frame or route the request are left out.
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Covers everything from the look-up to the end of the answer.
    pub timeout: Duration,
    /// Bytes of the answer that are read.
    pub answer_max: usize,
}

/// What the server said. Its status counts however the body went on.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// No more than was asked for.
    pub body: Bytes,
    /// False where the body was longer, did not come in time, or broke off.
    pub complete: bool,
}

/// Why there is no answer. Displayed, it is for the user, a short sentence without the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was sent, and another attempt would change nothing.
    Refused(Refused),
    /// Nothing was sent.
    Unreachable(String),
    /// The request may have been sent.
    Timeout(Duration),
    /// The request may have been sent.
    Broken(String),
}

impl Egress {
    /// `allow` is what may be called although it is not public. On a machine without CA
    /// certificates calls to https URLs fail, saying so. A rustls provider must be installed.
    pub fn new(allow: Vec<IpNet>) -> Result<Self, String> {
        Self::build(Guard::new(allow, interfaces)?, Arc::new(system_lookup), None)
    }

    fn build(guard: Guard, lookup: Lookup, roots: Option<Vec<Certificate>>) -> Result<Self, String> {
        let guard = Arc::new(guard);
        let names = Names::new(guard.clone(), lookup);
        let (client, trusts) = client(&names, roots)?;
        Ok(Self { client, guard, names, trusts })
    }

    /// What a URL is asked when it is handed in. A name that does not resolve, or not in a few
    /// seconds, passes: it is judged again at each call.
    pub async fn check(&self, text: &str) -> Result<Target, Refused> {
        let target = Target::parse(text)?;
        self.judge_literal(&target)?;
        self.judge_name(&target, DOOR).await?;
        Ok(target)
    }

    /// One attempt. A request is sent again only where nothing of it was taken: the server had
    /// closed the kept connection, or says so in HTTP/2's words.
    pub async fn call(&self, call: Call) -> Result<Answer, Failure> {
        self.judge_literal(&call.target).map_err(Failure::Refused)?;
        let (timeout, most) = (call.timeout, call.answer_max);
        let request = request(call).map_err(Failure::Refused)?;
        let mut deadline = pin!(time::sleep(timeout));
        let sent = tokio::select! {
            biased;
            sent = self.client.execute(request) => sent,
            () = &mut deadline => return Err(Failure::Timeout(timeout)),
        };
        match sent {
            Ok(response) => Ok(answer(response, most, deadline).await),
            Err(error) => Err(told::failure(&error.without_url(), self.trusts)),
        }
    }

    async fn judge_name(&self, target: &Target, within: Duration) -> Result<(), Refused> {
        let Some(name) = target.url().domain() else { return Ok(()) };
        match time::timeout(within, self.names.addresses(name.to_owned())).await {
            Ok(Err(NameError::Refused(why))) => Err(why),
            Ok(Ok(_) | Err(NameError::Unresolved)) | Err(_) => Ok(()),
        }
    }

    /// The client's resolver is not asked for literals.
    fn judge_literal(&self, target: &Target) -> Result<(), Refused> {
        let Some(address) = target.literal() else { return Ok(()) };
        match self.guard.refusal(address) {
            Some(kind) => Err(Refused::new(format!("{} is {kind}", address.to_canonical()))),
            None => Ok(()),
        }
    }
}

/// Believes the certificates of `roots`, or of the system's; true where there are any.
fn client(names: &Names, roots: Option<Vec<Certificate>>) -> Result<(Client, bool), String> {
    let is_given = roots.is_some();
    let (client, trusts) = client::build(CONNECT, roots.map_or(Trust::System, Trust::Only), |plain| {
        plain
            .dns_resolver(names.clone())
            .pool_max_idle_per_host(IDLE_AT_ONCE)
            .http2_initial_stream_window_size(HTTP2_WINDOW)
    })?;
    if !trusts && !is_given {
        tracing::warn!("there are no CA certificates on this machine: calls to https URLs will fail");
    }
    Ok((client, trusts))
}

fn request(call: Call) -> Result<Request, Refused> {
    if call.method == Method::CONNECT {
        return Err(Refused::new("CONNECT is no method for a call"));
    }
    let mut request = Request::new(call.method, call.target.url().clone());
    *request.headers_mut() = call.headers;
    for name in CLIENTS_OWN {
        request.headers_mut().remove(name);
    }
    if !call.body.is_empty() {
        *request.body_mut() = Some(call.body.into());
    } else if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
        request.headers_mut().insert(header::CONTENT_LENGTH, 0.into());
    }
    Ok(request)
}

/// A body that ends in time and within the limit leaves the connection to the next call;
/// any other is dropped with its connection.
async fn answer(mut response: Response, most: usize, mut deadline: Pin<&mut Sleep>) -> Answer {
    let (status, headers) = (response.status().as_u16(), mem::take(response.headers_mut()));
    let mut body = BytesMut::new();
    let complete = loop {
        let chunk = tokio::select! {
            biased;
            chunk = response.chunk() => chunk,
            () = &mut deadline => break false,
        };
        let Ok(Some(chunk)) = chunk else { break chunk.is_ok() };
        let room = most - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() >= room {
            // Is it the end, or is there more? Known by now, or not worth a wait.
            break chunk.len() == room && matches!(response.chunk().now_or_never(), Some(Ok(None)));
        }
    };
    Answer { status, headers, body: body.freeze(), complete }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => why.fmt(f),
            Self::Unreachable(why) | Self::Broken(why) => f.write_str(why),
            Self::Timeout(after) => write!(f, "no answer within {after:?}"),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests;

//! Previews: what listens in a session, shown to who may see it, and the links that let a
//! browser in. A preview is no API call: it has no deadline and no limit on bodies, does not
//! count against its key's rate, and what it answers is the program's.

mod address;
mod body;
mod cookies;
mod exchange;
mod inward;
mod link;
mod links;
mod onward;
mod origin;
mod page;
mod pool;
mod tunnel;

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{body::Body, extract::Request, response::Response};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, request::Parts};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use self::{
    address::{Addresses, Asked},
    links::routes,
    pool::Pool,
};
use self::{body::Download, onward::Told};
use super::{context, guard::Door};
use crate::{
    error::{Error, Kind, Result},
    services::{
        limits::OpenStream,
        previews::{Guest, Previews},
        sessions::Sessions,
    },
};

/// How often connections are looked at that are idle.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Service {
    pub previews: Previews,
    pub sessions: Sessions,
    pub door: Arc<Door>,
    pub addresses: Addresses,
    pub pool: Pool,
    /// Connections that have left HTTP.
    pub tunnels: TaskTracker,
    /// The server stops: what has no end of its own ends.
    pub stop: CancellationToken,
}

/// Whose right an answer was given by.
#[derive(Clone, Copy)]
struct By(Uuid);

impl Service {
    /// Answers with what the session's program answers, or says why not. One line in the log, without
    /// path and query: they are the program's, and may hold a link.
    pub async fn answer(&self, asked: Result<Asked>, request: Request, scheme: &'static str) -> Response {
        let started = Instant::now();
        let (method, as_page) = (request.method().clone(), page::is_wanted(request.headers()));
        let session = asked.as_ref().map_or(Uuid::nil(), |asked| asked.session);
        let shown = AssertUnwindSafe(async {
            match asked {
                Ok(asked) => self.serve(&asked, request, scheme).await,
                Err(error) => page::refusal(error, as_page),
            }
        });
        let panicked = |_| page::refusal(Error::internal("a preview panicked"), as_page);
        let mut response = shown.catch_unwind().await.unwrap_or_else(panicked);
        let key = response.extensions_mut().remove::<By>().map_or(Uuid::nil(), |by| by.0);
        let (status, took) = (response.status(), started.elapsed());
        self.door.metrics.preview(&method, status, took);
        let (id, took) = (context::current().request_id, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        tracing::debug!(request.id = %id, session.id = %session, key.id = %key, http.method = %method, http.status = status.as_u16(), duration_ms = took, "a preview's request");
        response
    }

    async fn serve(&self, asked: &Asked, request: Request, scheme: &'static str) -> Response {
        let (parts, body) = request.into_parts();
        let as_page = page::is_wanted(&parts.headers);
        let is_sending = parts.version < Version::HTTP_2 && !body.is_end_stream();
        let passed = self.pass(asked, parts, body, scheme).await;
        passed.unwrap_or_else(|error| {
            let mut response = page::refusal(error, as_page);
            if is_sending {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        })
    }

    /// Looks after what is open and what is idle, until the stop.
    pub async fn keep(self) {
        let sweep = async {
            while tokio::time::timeout(SWEEP, self.stop.cancelled()).await.is_err() {
                self.pool.sweep();
            }
            self.pool.clear();
        };
        tokio::join!(sweep, self.previews.keep(self.stop.clone()));
    }

    async fn pass(&self, asked: &Asked, parts: Parts, body: Body, scheme: &'static str) -> Result<Response> {
        if parts.method == Method::CONNECT {
            return Err(Error::invalid("a preview is no proxy"));
        }
        let (link, target) = onward::link(&asked.target);
        let is_visit = matches!(parts.method, Method::GET | Method::HEAD);
        if let Some(link) = link.filter(|_| is_visit && asked.prefix.is_none()) {
            return self.exchange_link(asked, &parts.headers, &link, &target).await;
        }
        let guest = self.admit(asked, &parts.method, &parts.headers).await?;
        if let Some(prefix) = asked.prefix.as_deref().filter(|_| asked.lacks_slash) {
            return Ok(redirect(StatusCode::PERMANENT_REDIRECT, &format!("{prefix}{target}")));
        }
        self.forward(asked, guest, parts, body, &target, scheme).await
    }

    /// A link that opens becomes a cookie, and the browser goes on without it.
    async fn exchange_link(&self, asked: &Asked, headers: &HeaderMap, link: &str, target: &str) -> Result<Response> {
        let mut response = redirect(StatusCode::SEE_OTHER, target);
        match self.previews.by_link(asked.session, link).await {
            Ok(shown) => {
                if let Some(cookie) = cookies::pass(&shown.text, shown.life, self.addresses.is_https()) {
                    response.headers_mut().insert(header::SET_COOKIE, cookie);
                }
            }
            // An old link, where the browser has been let in by another.
            Err(error) if error.kind() == Kind::Unauthenticated => {
                self.enter(asked, &Method::GET, headers).await.map_err(|error| self.failed(error, true))?;
            }
            Err(error) => return Err(error),
        }
        Ok(response)
    }

    async fn admit(&self, asked: &Asked, method: &Method, headers: &HeaderMap) -> Result<Guest> {
        self.enter(asked, method, headers).await.map_err(|error| self.failed(error, onward::key(headers).is_some()))
    }

    /// By a key, else by the cookie of a link.
    async fn enter(&self, asked: &Asked, method: &Method, headers: &HeaderMap) -> Result<Guest> {
        if let Some(key) = onward::key(headers) {
            return self.previews.by_key(asked.session, &key, context::current().client).await;
        }
        if asked.prefix.is_some() || origin::is_foreign(&self.addresses, asked, method, headers) {
            return Err(Error::unauthenticated());
        }
        self.previews.by_cookie(asked.session, cookies::shown(headers, self.addresses.is_https())).await
    }

    /// Without a credential, or with a cookie that has ended, nobody has tried anything.
    fn failed(&self, error: Error, tried: bool) -> Error {
        if error.kind() != Kind::Unauthenticated {
            return error;
        }
        self.door.metrics.auth_failure(if tried { "invalid" } else { "missing" });
        let client = context::current().client.filter(|_| tried);
        self.door.limits.failure(client).err().unwrap_or(error)
    }

    async fn forward(
        &self,
        asked: &Asked,
        guest: Guest,
        mut parts: Parts,
        body: Body,
        target: &str,
        scheme: &'static str,
    ) -> Result<Response> {
        let wanted = onward::upgrade(&parts.method, &parts.headers);
        let client = parts.extensions.remove::<OnUpgrade>().filter(|_| wanted.is_some());
        let leaving = match client {
            Some(client) => Some((client, self.door.limits.stream(guest.key())?)),
            None => None,
        };
        let host = format!("localhost:{}", guest.port());
        let told = Told {
            host: &host,
            client: context::current().client,
            asked: &asked.host,
            scheme,
            prefix: asked.prefix.as_deref(),
        };
        let framing = onward::framing(&parts.method, &parts.headers, &body);
        if leaving.is_some() {
            origin::localize(&mut parts.headers, &self.addresses, asked, &host);
        }
        onward::rewrite(&mut parts.headers, &told, wanted.filter(|_| leaving.is_some()));
        parts.headers.extend(framing);
        parts.uri = target.parse().map_err(|_| Error::invalid("the path cannot be passed on"))?;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let request = Request::from_parts(parts, body);
        let (response, mut lent) = match exchange::ask(&self.pool, &self.previews, &guest, request).await {
            Ok(answered) => answered,
            Err(error) => return Err(self.previews.why(&guest, error).await),
        };
        self.previews.seen(&guest).await;
        let (mut head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            lent.let_go();
            return self.leave_http(asked, guest, head, leaving);
        }
        inward::rewrite(&mut head, asked, guest.port(), false);
        head.extensions.insert(By(guest.key()));
        let stop = is_events(&head.headers).then(|| self.stop.clone());
        Ok(Response::from_parts(head, Body::new(Download::new(body, lent, guest, stop))))
    }

    fn leave_http(
        &self,
        asked: &Asked,
        guest: Guest,
        mut head: http::response::Parts,
        leaving: Option<(OnUpgrade, OpenStream)>,
    ) -> Result<Response> {
        let program = head.extensions.remove::<OnUpgrade>();
        let (Some((client, open)), Some(program)) = (leaving, program) else {
            return Err(pool::bad_answer(&"it changed to a protocol that nobody asked for"));
        };
        inward::rewrite(&mut head, asked, guest.port(), true);
        head.extensions.insert(By(guest.key()));
        self.tunnels.spawn(tunnel::join(client, program, guest, open, self.stop.clone()));
        Ok(Response::from_parts(head, Body::empty()))
    }
}

fn is_events(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.len() >= 17 && kind[..17].eq_ignore_ascii_case(b"text/event-stream"))
}

fn redirect(status: StatusCode, to: &str) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let (path, query) = to.split_once('?').map_or((to, None), |(path, query)| (path, Some(query)));
    if let Ok(to) = HeaderValue::from_str(&in_ascii(&inward::local(path, query, None))) {
        headers.insert(header::LOCATION, to);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// As all clients read it alike.
fn in_ascii(reference: &str) -> String {
    let byte = |byte: u8| if byte.is_ascii() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    reference.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_a_path_of_this_host_whatever_its_letters() {
        for (to, led) in [("/ü?ä=ö", "/%C3%BC?%C3%A4=%C3%B6"), ("//x/ü", "/.//x/%C3%BC"), ("/%2F?a", "/%2F?a")] {
            assert_eq!(redirect(StatusCode::SEE_OTHER, to).headers()["location"], led);
        }
    }
}

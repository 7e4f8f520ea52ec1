//! Mounts the handler modules, and the layers that every request passes: the request's
//! id, the client's address, CORS, answers for what no route knows, one line in the log.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, Method, Uri, header, uri::Authority};
use tower_http::cors::{AllowOrigin, CorsLayer};
use uuid::{Builder, NoContext, Timestamp, Uuid};

use crate::{
    error::{Error, Kind},
    handlers::{
        self, chat, checkouts,
        context::{self, Context},
        git,
        guard::{Door, client_address},
        jobs, ops, page, pipelines, pool, previews, projects, reviews,
        routes::{Document, Routes},
        saga_definitions, sagas, sessions, streams, tickets,
    },
    services::{
        chats::Chats, commands::Commands, gc::Gc, keys::Keys, pipelines::Pipelines, pool::Pool, reviews::Reviews,
    },
};

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the handlers are made of.
pub struct Services {
    pub door: Arc<Door>,
    pub keys: Keys,
    pub projects: projects::Service,
    pub commands: Commands,
    pub checkouts: checkouts::Service,
    pub reviews: Reviews,
    pub sessions: sessions::Service,
    pub streams: streams::Service,
    pub tickets: tickets::Service,
    pub git: git::Service,
    pub jobs: jobs::Service,
    pub sagas: sagas::Service,
    pub chats: Chats,
    pub pipelines: Pipelines,
    pub pool: Pool,
    pub gc: Gc,
    pub previews: previews::Service,
    pub ops: ops::Service,
}

/// What the outermost layer needs.
#[derive(Clone)]
struct Edge {
    trusted_proxies: Arc<[ipnet::IpNet]>,
    previews: Option<Arc<previews::Service>>,
}

/// The whole of it.
pub fn build(services: Services, trusted_proxies: Vec<ipnet::IpNet>, cors_origins: &[String]) -> Router {
    let mut document = Document::default();
    let door = services.door.clone();
    let mut mounted = Router::new();
    let document_slot = services.ops.document.clone();
    mounted = mount(mounted, &mut document, &door, handlers::keys::routes(services.keys));
    mounted = mount(mounted, &mut document, &door, projects::routes(services.projects));
    mounted = mount(mounted, &mut document, &door, handlers::commands::routes(services.commands));
    mounted = mount(mounted, &mut document, &door, checkouts::routes(services.checkouts));
    mounted = mount(mounted, &mut document, &door, sessions::routes(services.sessions));
    mounted = mount(mounted, &mut document, &door, reviews::routes(services.reviews));
    mounted = mount(mounted, &mut document, &door, streams::routes(services.streams));
    mounted = mount(mounted, &mut document, &door, tickets::routes(services.tickets));
    mounted = mount(mounted, &mut document, &door, jobs::routes(services.jobs));
    let at_the_edge = services.previews.clone();
    mounted = mount(mounted, &mut document, &door, previews::routes(services.previews));
    let definitions = saga_definitions::routes(services.sagas.sagas.clone());
    mounted = mount(mounted, &mut document, &door, sagas::routes(services.sagas));
    mounted = mount(mounted, &mut document, &door, definitions);
    mounted = mount(mounted, &mut document, &door, chat::routes(services.chats));
    mounted = mount(mounted, &mut document, &door, pipelines::routes(services.pipelines));
    mounted = mount(mounted, &mut document, &door, pool::routes(services.pool));
    mounted = mount(mounted, &mut document, &door, handlers::gc::routes(services.gc));
    mounted = mount(mounted, &mut document, &door, ops::routes(services.ops));
    let document = document.render();
    let _set_once = document_slot.set(document.to_string().into());
    let mounted = mounted
        .merge(page::router(&document))
        .merge(git::router(services.git))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    edged(cors(cors_origins).map_or(mounted.clone(), |cors| mounted.layer(cors)), trusted_proxies, Some(at_the_edge))
}

fn mount<S: Clone + Send + Sync + 'static>(
    router: Router,
    document: &mut Document,
    door: &Arc<Door>,
    table: Routes<S>,
) -> Router {
    let (endpoints, described) = table.build(door);
    document.merge(described);
    router.merge(endpoints)
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    if origins.is_empty() {
        return None;
    }
    let ours = ["authorization", "content-type", "idempotency-key", "last-event-id", "x-request-id"];
    let shown = [
        "x-request-id",
        "retry-after",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "idempotent-replayed",
    ];
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(ours.map(HeaderName::from_static))
        .expose_headers(shown.map(HeaderName::from_static));
    Some(cors)
}

/// What is answered while the program starts.
pub fn starting(trusted_proxies: Vec<ipnet::IpNet>) -> Router {
    let unavailable = async || Error::unavailable("the server", "it is starting");
    edged(ops::starting().fallback(unavailable), trusted_proxies, None)
}

/// Puts the edge around a router, before it looks for a route.
fn edged(inner: Router, trusted_proxies: Vec<ipnet::IpNet>, previews: Option<previews::Service>) -> Router {
    let edge = Edge { trusted_proxies: trusted_proxies.into(), previews: previews.map(Arc::new) };
    Router::new().fallback_service(inner).layer(axum::middleware::from_fn_with_state(edge, edge_of_request))
}

/// The first and the last to see a request.
async fn edge_of_request(State(edge): State<Edge>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let context = context_of(&request, peer, &edge.trusted_proxies);
    let id = context.request_id.clone();
    let strange = refuse_strange(&request);
    if let Some(previews) = edge.previews.as_ref().filter(|_| strange.is_none())
        && let Some(asked) = previews.addresses.of(&request).transpose()
    {
        let scheme = previews.addresses.scheme(peer, request.headers(), &edge.trusted_proxies);
        let shown = previews.answer(asked, request, scheme);
        return named(context::within(Context { native: false, ..context }, shown).await, &id);
    }
    without_trailing_slash(request.uri_mut());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let may_be_sending = brings_a_body(&request) && !path.starts_with("/git/");
    let mut response = match strange {
        Some(error) => context::within(context.clone(), async { error.into_response() }).await,
        None => context::within(context.clone(), next.run(request)).await,
    };
    let status = response.status().as_u16();
    if may_be_sending && matches!(status, 401 | 403 | 404 | 405 | 429) {
        // Refused at the door, with the body unread: said, so that the client's next request is not lost.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::debug!(request.id = %id, http.method = %method, http.path = path, http.status = status, duration_ms = took, "request");
    named(response, &id)
}

fn named(mut response: Response, id: &str) -> Response {
    response.headers_mut().insert(REQUEST_ID.clone(), HeaderValue::try_from(id).expect("an id is a header"));
    response
}

/// Over HTTP/1, where what was not read is in the way of the next request.
fn brings_a_body(request: &Request) -> bool {
    let headers = request.headers();
    let announced = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    request.version() < http::Version::HTTP_2 && (announced || headers.contains_key(header::TRANSFER_ENCODING))
}

fn context_of(request: &Request, peer: Option<IpAddr>, trusted: &[ipnet::IpNet]) -> Context {
    let given =
        request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|text| is_request_id(text));
    let path = request.uri().path();
    let under = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    Context {
        request_id: given.map_or_else(|| fresh_id().to_string().into(), Into::into),
        native: under("/jobs") || under("/api"),
        client: client_address(peer, request.headers(), trusted),
    }
}

/// A `UUIDv7` without a call of the system: `now_v7` asks it for every one.
fn fresh_id() -> Uuid {
    let (seconds, nanos) = Timestamp::now(NoContext).to_unix();
    let millis = seconds * 1000 + u64::from(nanos / 1_000_000);
    Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

fn is_request_id(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A path with and without the trailing slash answer alike; git's paths are its own.
fn without_trailing_slash(uri: &mut Uri) {
    let path = uri.path();
    if path.len() < 2 || !path.ends_with('/') || path.starts_with("/git/") {
        return;
    }
    let trimmed = match uri.query() {
        None => path.trim_end_matches('/').to_owned(),
        Some(query) => format!("{}?{query}", path.trim_end_matches('/')),
    };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = trimmed.parse().ok().or(parts.path_and_query);
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

/// What passes hyper and means nothing here: requests without one clear `Host`.
fn refuse_strange(request: &Request) -> Option<Error> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let needs_host = request.version() == http::Version::HTTP_11;
    let host = request
        .headers()
        .get(header::HOST)
        .map(|value| value.to_str().ok().and_then(|text| text.parse::<Authority>().ok()));
    let is_strange = hosts > 1 || (needs_host && hosts == 0) || matches!(host, Some(None));
    is_strange.then(|| Error::invalid("exactly one Host header is needed, with the name of a host"))
}

async fn not_found() -> Error {
    Error::not_found("there is no such path")
}

async fn method_not_allowed() -> Response {
    let error = Error::new(Kind::Invalid, "METHOD_NOT_ALLOWED", "this path is not used with this method");
    let mut response = error.into_response();
    *response.status_mut() = http::StatusCode::METHOD_NOT_ALLOWED;
    response
}

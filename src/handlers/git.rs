//! Git's smart HTTP protocol under `/git/<project>.git`. Answers are git's own, errors are
//! plain text that git shows to the user; no deadline and no body limit stand here.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{context, guard::Door, reply};
use crate::{
    error::{Error, Kind},
    forge::{EmbeddedHost, GitPath, GitPathError},
    services::git_access::GitAccess,
};

#[derive(Clone)]
pub struct Service {
    pub access: GitAccess,
    /// None where another host has the repositories.
    pub host: Option<EmbeddedHost>,
    pub door: Arc<Door>,
}

pub fn router(service: Service) -> Router {
    Router::new().route("/git/{*path}", axum::routing::any(serve)).with_state(service)
}

async fn serve(State(service): State<Service>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches("/git/").to_owned();
    let (Some((project, rest)), Some(host)) = (path.split_once(".git/"), &service.host) else {
        return plain(StatusCode::NOT_FOUND, "there is no repository at this path");
    };
    let git_path = match GitPath::parse(rest, request.uri().query(), request.method()) {
        Ok(git_path) => git_path,
        Err(error) => return refuse_path(error),
    };
    let Some(credential) = password(request.headers()) else { return ask_for_password() };
    let client = context::current().client;
    match service.access.open(project, &credential, client, git_path.needs_push()).await {
        Ok(grant) => host.serve(project, git_path, grant, request).await,
        Err(error) => refuse(&service.door, error),
    }
}

/// What git sends as password; a token as user name alone is taken too.
fn password(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(if password.is_empty() { user } else { password }.to_owned()).filter(|credential| !credential.is_empty())
}

fn refuse_path(error: GitPathError) -> Response {
    match error {
        GitPathError::NotFound => plain(StatusCode::NOT_FOUND, "there is no repository at this path"),
        GitPathError::Dumb => {
            plain(StatusCode::FORBIDDEN, "this git client is too old: only the smart HTTP protocol is spoken here")
        }
        GitPathError::Method(allowed) => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "this path is not used with this method");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            response
        }
    }
}

fn ask_for_password() -> Response {
    let mut response =
        plain(StatusCode::UNAUTHORIZED, "a credential is needed: a checkout's token or an API key, as password");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"rdev\""));
    response
}

fn refuse(door: &Door, error: Error) -> Response {
    if error.kind() == Kind::Unauthenticated {
        door.metrics.auth_failure("invalid");
        return match door.limits.failure(context::current().client) {
            Ok(()) => ask_for_password(),
            Err(limited) => limited.into_response(),
        };
    }
    let mut response = plain(reply::status(error.kind()), error.message());
    if let Some(wait) = error.wait() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    if error.hidden_cause().is_some() {
        tracing::warn!(%error, "a git request failed");
    }
    response
}

fn plain(status: StatusCode, text: &str) -> Response {
    let mut response = Response::new(Body::from(format!("{text}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

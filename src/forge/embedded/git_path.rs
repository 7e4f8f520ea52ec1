//! The part of a git URL after `<project>.git/`. Smart HTTP knows three requests, and
//! these are served; the dumb protocol, which reads files, is not.

use std::fmt;

use axum::{
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};

/// A request that git's smart HTTP protocol knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitPath {
    /// `GET info/refs?service=…`: what there is.
    Advertise(Service),
    /// `POST git-…-pack`: the exchange itself.
    Exchange(Service),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    UploadPack,
    ReceivePack,
}

/// Why a request is none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitPathError {
    NotFound,
    /// The path is known, but with this method.
    Method(&'static str),
    Dumb,
}

impl GitPath {
    /// `rest` is the path after `<project>.git/`.
    pub fn parse(rest: &str, query: Option<&str>, method: &Method) -> Result<Self, GitPathError> {
        let (path, wanted) = match rest {
            "info/refs" => (Self::advertise(query), Method::GET),
            "git-upload-pack" => (Ok(Self::Exchange(Service::UploadPack)), Method::POST),
            "git-receive-pack" => (Ok(Self::Exchange(Service::ReceivePack)), Method::POST),
            _ => return Err(GitPathError::NotFound),
        };
        if *method != wanted {
            return Err(GitPathError::Method(if wanted == Method::GET { "GET" } else { "POST" }));
        }
        path
    }

    /// Whether the caller needs the right to push, already for the first of the two requests.
    pub fn needs_push(self) -> bool {
        self.service() == Service::ReceivePack
    }

    pub fn service(self) -> Service {
        match self {
            Self::Advertise(service) | Self::Exchange(service) => service,
        }
    }

    pub(super) fn path_info(self) -> &'static str {
        match self {
            Self::Advertise(_) => "info/refs",
            Self::Exchange(service) => service.name(),
        }
    }

    fn advertise(query: Option<&str>) -> Result<Self, GitPathError> {
        let mut pairs = query.unwrap_or_default().split('&');
        match pairs.find_map(|pair| pair.strip_prefix("service=")) {
            Some("git-upload-pack") => Ok(Self::Advertise(Service::UploadPack)),
            Some("git-receive-pack") => Ok(Self::Advertise(Service::ReceivePack)),
            Some(_) => Err(GitPathError::NotFound),
            None => Err(GitPathError::Dumb),
        }
    }
}

impl Service {
    pub fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }
}

impl fmt::Display for GitPathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Method(_) => "method not allowed",
            Self::Dumb => "git's dumb HTTP protocol is not served, use git 1.6.6 or newer",
        })
    }
}

impl std::error::Error for GitPathError {}

impl IntoResponse for GitPathError {
    fn into_response(self) -> Response {
        let text = format!("{self}\n");
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, text).into_response(),
            Self::Dumb => (StatusCode::FORBIDDEN, text).into_response(),
            Self::Method(allow) => (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, allow)], text).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_requests_are_known_and_nothing_else() {
        let get = |rest, query| GitPath::parse(rest, query, &Method::GET);
        let upload = Some("service=git-upload-pack");
        assert_eq!(get("info/refs", upload), Ok(GitPath::Advertise(Service::UploadPack)));
        assert!(get("info/refs", Some("service=git-receive-pack")).is_ok_and(GitPath::needs_push));
        assert_eq!(get("info/refs", Some("service=git-archive")), Err(GitPathError::NotFound));
        assert_eq!(get("info/refs", None), Err(GitPathError::Dumb));
        for rest in ["", "HEAD", "objects/info/packs", "info/refs/", "../x.git/info/refs", "config"] {
            assert_eq!(get(rest, upload), Err(GitPathError::NotFound), "{rest:?}");
        }
        assert_eq!(get("git-receive-pack", None), Err(GitPathError::Method("POST")));
        let post = GitPath::parse("git-receive-pack", None, &Method::POST);
        assert_eq!(post, Ok(GitPath::Exchange(Service::ReceivePack)));
        let wrong = GitPath::parse("info/refs", upload, &Method::HEAD);
        assert_eq!(wrong, Err(GitPathError::Method("GET")));
    }
}

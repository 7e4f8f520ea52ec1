//! One error in the words of the domain. It knows what went wrong and what the
//! caller may do about it; it does not know HTTP. `handlers/reply.rs` is the only
//! place that turns a [`Kind`] into a status.
//!
//! A message is for the client: a stable sentence. What only the log may see
//! (the cause of an internal error) is kept apart and never shown.

use std::{borrow::Cow, fmt, time::Duration};

use serde_json::{Map, Value};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the caller's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be carried out as it stands.
    Invalid,
    Unauthenticated,
    Forbidden,
    NotFound,
    /// The request collides with something that exists.
    Conflict,
    /// It was here and will not come back.
    Gone,
    TooLarge,
    /// The same idempotency key came with another body.
    Mismatch,
    /// A rate or a quota is used up.
    Limited,
    /// Somebody else's server failed us.
    BadGateway,
    /// Something that we need is out of reach for now.
    Unavailable,
    /// The deadline of this kind of work has passed.
    Timeout,
    Internal,
}

/// See the module.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    code: &'static str,
    message: Cow<'static, str>,
    details: Map<String, Value>,
    retry_after: Option<Duration>,
    cause: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            code,
            message: message.into(),
            details: Map::new(),
            retry_after: None,
            cause: None,
        }))
    }

    /// 400-like with the general code.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Invalid, "BAD_REQUEST", message)
    }

    pub fn unauthenticated() -> Self {
        Self::new(Kind::Unauthenticated, "UNAUTHORIZED", "invalid or missing API key")
    }

    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Forbidden, "FORBIDDEN", message)
    }

    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::NotFound, "NOT_FOUND", message)
    }

    pub fn conflict(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Conflict, code, message)
    }

    /// A quota: `used` of `max` are taken.
    pub fn quota(limit: &'static str, used: i64, max: i64) -> Self {
        Self::new(
            Kind::Limited,
            "QUOTA_EXCEEDED",
            format!("the quota of {limit} is used up ({used} of {max}); end one and try again"),
        )
        .detail("limit", limit)
        .detail("used", used)
        .detail("max", max)
        .retry_after(Duration::from_secs(1))
    }

    pub fn unavailable(what: &str, cause: impl fmt::Display) -> Self {
        Self::new(Kind::Unavailable, "UPSTREAM_UNAVAILABLE", format!("{what} is out of reach, try again shortly"))
            .retry_after(Duration::from_secs(2))
            .cause(cause)
    }

    pub fn timeout() -> Self {
        Self::new(Kind::Timeout, "TIMEOUT", "the request took longer than its deadline; what was begun goes on")
    }

    /// The client sees a fixed sentence, the log sees the cause.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(Kind::Internal, "INTERNAL_ERROR", "internal error").cause(cause)
    }

    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.0.code = code;
        self
    }

    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.details.insert(name.to_owned(), value.into());
        self
    }

    /// `details.reason`: a code where the message is fixed, or what was wrong and where.
    #[must_use]
    pub fn reason(self, reason: impl Into<Value>) -> Self {
        self.detail("reason", reason)
    }

    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    pub fn stable_code(&self) -> &'static str {
        self.0.code
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn details(&self) -> &Map<String, Value> {
        &self.0.details
    }

    pub fn wait(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// For the log alone.
    pub fn hidden_cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)?;
        match &self.0.cause {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

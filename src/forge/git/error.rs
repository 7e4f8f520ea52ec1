//! What can go wrong with a repository, and what may be said about it.

use std::{fmt, io, time::Duration};

use crate::error::{Error, Kind};

/// What went wrong with a repository. Fit for the log; may name paths of the server.
#[derive(Debug)]
pub enum GitError {
    /// No git that can do the work.
    Unusable(String),
    /// No such repository, or no such branch in it.
    NotFound(String),
    /// There is such a repository already.
    Exists,
    Timeout {
        what: String,
        after: Duration,
    },
    Failed {
        what: String,
        stderr: String,
    },
    Io {
        what: String,
        error: io::Error,
    },
    /// The git host did not answer, or not as one does that is in order.
    Away(String),
    /// It keeps failing, and was not asked: it may be after so long.
    PutOff(Duration),
    /// The git host answered, and will not do it.
    Refused(String),
}

impl fmt::Display for GitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(why) => f.write_str(why),
            Self::NotFound(what) => write!(f, "{what} does not exist"),
            Self::Exists => f.write_str("the repository exists already"),
            Self::Timeout { what, after } => {
                write!(f, "{what} took longer than {} s and was ended", after.as_secs())
            }
            Self::Failed { what, stderr } => write!(f, "{what} failed: {}", scrub(stderr)),
            Self::Io { what, error } => write!(f, "{what}: {error}"),
            Self::Away(why) => write!(f, "the git host is out of reach: {}", scrub(why)),
            Self::PutOff(after) => write!(f, "the git host is left alone for {} s", after.as_secs()),
            Self::Refused(why) => write!(f, "the git host refused: {}", scrub(why)),
        }
    }
}

impl std::error::Error for GitError {}

/// In the caller's terms; what git or the host said is for the log.
impl From<GitError> for Error {
    fn from(error: GitError) -> Self {
        match &error {
            GitError::Away(why) => Self::unavailable("the git host", scrub(why)),
            GitError::PutOff(after) => Self::new(
                Kind::Unavailable,
                "CIRCUIT_OPEN",
                "the git host keeps failing and is left alone for a while, try again later",
            )
            .retry_after(*after)
            .cause(&error),
            GitError::Refused(_) => Self::new(
                Kind::BadGateway,
                "GIT_HOST_REFUSED",
                "the git host refused what rdev asked of it; the server's log says what and why",
            )
            .cause(&error),
            _ => Self::internal(error),
        }
    }
}

/// Takes user info out of every URL in `text`.
pub fn scrub(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let authority = after.find(|c: char| c == '/' || c.is_whitespace() || "'\"".contains(c));
        let end = authority.unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(user_info) => &after[user_info + 1..],
            None => after,
        };
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_info_is_taken_out_of_urls() {
        let text = "fatal: unable to access 'https://me:s3c@ret@host:8443/a@b/': no\nsee http://x@y";
        assert_eq!(scrub(text), "fatal: unable to access 'https://host:8443/a@b/': no\nsee http://y");
        assert_eq!(scrub("mail me@example.org"), "mail me@example.org");
    }
}

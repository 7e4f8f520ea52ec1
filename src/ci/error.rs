//! What can go wrong with the CI server, and what may be said about it. Clients get sentences of our
//! own; what the server said is the cause, for the log.

use std::time::Duration;

use crate::{
    error::{Error, Kind},
    outward::PutOff,
};

#[derive(Debug)]
pub enum CiError {
    NotConfigured,
    /// It has no such repository, or does not show it to this account.
    NoRepository(String),
    NoPipeline,
    /// It did not answer, or not as one does that is in order; after how long it wants to be asked again.
    Away {
        why: String,
        asked: Option<Duration>,
    },
    /// Likewise, and it may have begun a pipeline all the same.
    Unsure {
        why: String,
        timed_out: bool,
    },
    /// It keeps failing, and was not asked.
    PutOff(PutOff),
    /// The token opens nothing.
    Token,
    /// The token does not open this, or the server will not do it.
    Refused(String),
    /// It answers elsewhere.
    Redirect(u16),
    /// Its answer is not what a Woodpecker says.
    Nonsense(String),
}

impl From<CiError> for Error {
    fn from(error: CiError) -> Self {
        let bad = |code, message: &'static str| Self::new(Kind::BadGateway, code, message);
        match error {
            CiError::NotConfigured => Self::new(
                Kind::Unavailable,
                "CI_NOT_CONFIGURED",
                "no CI server is configured: RDEV_WOODPECKER_URL and RDEV_WOODPECKER_TOKEN are both needed",
            ),
            CiError::NoRepository(name) => Self::not_found(format!(
                "the CI server does not know the repository {name}, or does not show it to rdev's account"
            )),
            CiError::NoPipeline => Self::not_found("pipeline not found"),
            CiError::Away { why, asked } => {
                let error = Self::unavailable("the CI server", why);
                asked.into_iter().fold(error, Self::retry_after)
            }
            CiError::Unsure { why, timed_out } => unsure(timed_out).cause(why),
            CiError::PutOff(put_off) => Self::new(
                Kind::Unavailable,
                "CIRCUIT_OPEN",
                "the CI server keeps failing and is left alone for a while, try again later",
            )
            .retry_after(put_off.after),
            CiError::Token => bad("CI_REFUSED", "the CI server does not accept RDEV_WOODPECKER_TOKEN"),
            CiError::Refused(why) => bad(
                "CI_REFUSED",
                "the CI server refused what rdev asked of it: the account of RDEV_WOODPECKER_TOKEN must be allowed to \
                 push to the repository; the server's log says more",
            )
            .cause(why),
            CiError::Redirect(status) => bad(
                "CI_BAD_ANSWER",
                "the CI server answered with a redirect: RDEV_WOODPECKER_URL must be the address at which it answers",
            )
            .cause(format!("HTTP {status}")),
            CiError::Nonsense(why) => {
                bad("CI_BAD_ANSWER", "the CI server's answer is not Woodpecker's: is RDEV_WOODPECKER_URL its address?")
                    .cause(why)
            }
        }
    }
}

/// `details.may_have_begun` says that the same once more may make a second pipeline.
fn unsure(timed_out: bool) -> Error {
    const SAID: &str = "the CI server did not say what became of it: it may have begun a new pipeline all the same";
    let error = if timed_out {
        Error::new(Kind::Timeout, "TIMEOUT", SAID)
    } else {
        Error::new(Kind::Unavailable, "UPSTREAM_UNAVAILABLE", SAID).retry_after(Duration::from_secs(2))
    };
    error.detail("may_have_begun", true)
}

//! Tickets for browsers: a signed word that opens one path and query until it expires, on
//! any process, and dies with its key. Nothing is stored; it never appears in a log.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::Uri;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    domain::clock::Clock,
    error::{Error, Result},
};

/// Key's id, expiry in seconds, the first half of the SHA-256 of path and query.
const CLAIM: usize = 16 + 8 + 16;
const MAC: usize = 32;

#[derive(Clone)]
pub struct Tickets {
    secret: [u8; 32],
    clock: Clock,
}

impl Tickets {
    /// `secret` is the same in all processes on a database.
    pub fn new(secret: [u8; 32], clock: Clock) -> Self {
        Self { secret, clock }
    }

    /// A ticket for `path`, which may carry a query.
    pub fn issue(&self, key: Uuid, path: &str, until: DateTime<Utc>) -> String {
        let mut bytes = Vec::with_capacity(CLAIM + MAC);
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(&until.timestamp().to_be_bytes());
        bytes.extend_from_slice(&target(path)[..16]);
        let mac = self.mac(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The id of the key whose ticket this is.
    ///
    /// # Errors
    /// Unauthenticated: forged, expired, or for something else.
    pub fn open(&self, ticket: &str, uri: &Uri) -> Result<Uuid> {
        let bytes = URL_SAFE_NO_PAD.decode(ticket).map_err(|_| Error::unauthenticated())?;
        if bytes.len() != CLAIM + MAC {
            return Err(Error::unauthenticated());
        }
        let (claim, mac) = bytes.split_at(CLAIM);
        self.mac(claim).verify_slice(mac).map_err(|_| Error::unauthenticated())?;
        let until = i64::from_be_bytes(claim[16..24].try_into().expect("eight bytes of a claim"));
        let asked = uri.path_and_query().map_or(uri.path(), |whole| whole.as_str());
        if self.clock.now().timestamp() >= until || target(asked)[..16] != claim[24..] {
            return Err(Error::unauthenticated());
        }
        Ok(Uuid::from_bytes(claim[..16].try_into().expect("sixteen bytes of a claim")))
    }

    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        mac.update(b"rdev stream ticket\0");
        mac.update(bytes);
        mac
    }
}

/// The ticket in a query string.
pub fn in_query(query: Option<&str>) -> Option<String> {
    query?.split('&').find_map(|pair| pair.strip_prefix("ticket=")).map(str::to_owned)
}

/// Path and query without what may be added to them: the ticket itself and `after`.
fn target(path_and_query: &str) -> [u8; 32] {
    let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
    let kept = query.split('&').filter(|pair| !pair.is_empty());
    let kept: Vec<&str> = kept.filter(|pair| !matches!(pair.split('=').next(), Some("ticket" | "after"))).collect();
    Sha256::digest(format!("{path}?{}", kept.join("&"))).into()
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, TimeZone as _};

    use super::*;

    fn tickets() -> (Tickets, DateTime<Utc>) {
        let now = Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).unwrap();
        (Tickets::new([7; 32], Clock::manual(now)), now + TimeDelta::minutes(10))
    }

    #[test]
    fn a_ticket_opens_its_path_with_after_added() {
        let (tickets, until) = tickets();
        let key = Uuid::now_v7();
        let ticket = tickets.issue(key, "/projects/p/events?stream_id=c", until);
        let uri = format!("/projects/p/events?stream_id=c&ticket={ticket}&after=5").parse().unwrap();
        assert_eq!(tickets.open(&ticket, &uri).unwrap(), key);
    }

    #[test]
    fn a_ticket_opens_nothing_else() {
        let (tickets, until) = tickets();
        let ticket = tickets.issue(Uuid::now_v7(), "/projects/p/events?stream_id=c", until);
        for other in ["/projects/q/events?stream_id=c", "/projects/p/events?stream_id=d", "/projects/p/events", "/keys"]
        {
            assert!(tickets.open(&ticket, &other.parse().unwrap()).is_err(), "{other}");
        }
    }

    #[test]
    fn a_ticket_that_was_changed_or_is_old_opens_nothing() {
        let (tickets, until) = tickets();
        let path = "/projects/p/events";
        let ticket = tickets.issue(Uuid::now_v7(), path, until);
        let mut forged = URL_SAFE_NO_PAD.decode(&ticket).unwrap();
        forged[20] ^= 1;
        assert!(tickets.open(&URL_SAFE_NO_PAD.encode(forged), &path.parse().unwrap()).is_err());
        tickets.clock.advance(TimeDelta::minutes(10));
        assert!(tickets.open(&ticket, &path.parse().unwrap()).is_err());
    }
}

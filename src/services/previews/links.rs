//! What a preview link carries: whose right, to which session, until when, signed. The same
//! text is the value of the cookie that the link is exchanged for. Nothing is stored.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use uuid::Uuid;

/// Key, session, expiry in microseconds.
const CLAIM: usize = 16 + 16 + 8;
const MAC: usize = 32;

/// A right to look that was given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub key: Uuid,
    pub session: Uuid,
    pub until: DateTime<Utc>,
}

pub fn sign(secret: &[u8; 32], link: &Link) -> String {
    let mut bytes = Vec::with_capacity(CLAIM + MAC);
    bytes.extend_from_slice(link.key.as_bytes());
    bytes.extend_from_slice(link.session.as_bytes());
    bytes.extend_from_slice(&link.until.timestamp_micros().to_be_bytes());
    let mac = mac(secret, &bytes).finalize().into_bytes();
    bytes.extend_from_slice(&mac);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// `None` for what was not signed here.
pub fn open(secret: &[u8; 32], text: &str) -> Option<Link> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == CLAIM + MAC)?;
    let (claim, proof) = bytes.split_at(CLAIM);
    mac(secret, claim).verify_slice(proof).ok()?;
    let uuid = |at: usize| Uuid::from_slice(&claim[at..at + 16]).ok();
    let until = i64::from_be_bytes(claim[32..].try_into().ok()?);
    Some(Link { key: uuid(0)?, session: uuid(16)?, until: DateTime::from_timestamp_micros(until)? })
}

fn mac(secret: &[u8; 32], claim: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(b"rdev preview link\0");
    mac.update(claim);
    mac
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn link(key: u128, session: u128, until: i64) -> Link {
        let until = DateTime::from_timestamp_micros(until).unwrap();
        Link { key: Uuid::from_u128(key), session: Uuid::from_u128(session), until }
    }

    proptest! {
        #[test]
        fn a_link_reads_back(key: u128, session: u128, until in 0..4_000_000_000_000_000i64) {
            let link = link(key, session, until);
            prop_assert_eq!(open(&SECRET, &sign(&SECRET, &link)), Some(link));
        }

        #[test]
        fn a_link_that_was_changed_opens_nothing(at in 0..CLAIM + MAC, bit in 0..8u8) {
            let text = sign(&SECRET, &link(1, 2, 3));
            let mut bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(open(&SECRET, &URL_SAFE_NO_PAD.encode(bytes)), None);
        }

        #[test]
        fn no_text_is_a_link_by_chance(text in ".{0,200}") {
            prop_assert_eq!(open(&SECRET, &text), None);
        }
    }

    #[test]
    fn another_servers_link_opens_nothing() {
        assert_eq!(open(&SECRET, &sign(&[8; 32], &link(1, 2, 3))), None);
    }
}

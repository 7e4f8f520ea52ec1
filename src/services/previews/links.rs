//! What a preview link carries: whose right, to which session, until when, signed. The cookie
//! that it is exchanged for carries the same and is signed as a cookie: others on a host may get
//! to see it, and can make no link of it. Nothing is stored.

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

/// What a text is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Link,
    Cookie,
}

/// `generation`: what of the key must be the same for the text to open anything.
pub fn sign(secret: &[u8; 32], what: Use, link: &Link, generation: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(CLAIM + MAC);
    bytes.extend_from_slice(link.key.as_bytes());
    bytes.extend_from_slice(link.session.as_bytes());
    bytes.extend_from_slice(&link.until.timestamp_micros().to_be_bytes());
    let mac = mac(secret, what, &bytes, generation).finalize().into_bytes();
    bytes.extend_from_slice(&mac);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// `None` for what was not signed here for this use, and by the key's generation.
pub fn open<G: AsRef<[u8]>>(secret: &[u8; 32], what: Use, text: &str, generation: impl Fn(Uuid) -> G) -> Option<Link> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == CLAIM + MAC)?;
    let (claim, proof) = bytes.split_at(CLAIM);
    let uuid = |at: usize| Uuid::from_slice(&claim[at..at + 16]).ok();
    let key = uuid(0)?;
    mac(secret, what, claim, generation(key).as_ref()).verify_slice(proof).ok()?;
    let until = i64::from_be_bytes(claim[32..].try_into().ok()?);
    Some(Link { key, session: uuid(16)?, until: DateTime::from_timestamp_micros(until)? })
}

/// The claim has a fixed length, so what follows it cannot be taken for a part of it.
fn mac(secret: &[u8; 32], what: Use, claim: &[u8], generation: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(match what {
        Use::Link => b"rdev preview link\0".as_slice(),
        Use::Cookie => b"rdev preview cookie\0",
    });
    mac.update(claim);
    mac.update(generation);
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

    fn opened(what: Use, text: &str) -> Option<Link> {
        open(&SECRET, what, text, |_| [])
    }

    proptest! {
        #[test]
        fn a_link_reads_back(key: u128, session: u128, until in 0..4_000_000_000_000_000i64) {
            let link = link(key, session, until);
            for (what, other) in [(Use::Link, Use::Cookie), (Use::Cookie, Use::Link)] {
                let text = sign(&SECRET, what, &link, &[]);
                prop_assert_eq!(opened(what, &text), Some(link));
                prop_assert_eq!(opened(other, &text), None);
            }
        }

        #[test]
        fn a_link_that_was_changed_opens_nothing(at in 0..CLAIM + MAC, bit in 0..8u8) {
            let text = sign(&SECRET, Use::Link, &link(1, 2, 3), &[]);
            let mut bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(opened(Use::Link, &URL_SAFE_NO_PAD.encode(bytes)), None);
        }

        #[test]
        fn no_text_is_a_link_by_chance(text in ".{0,200}") {
            prop_assert_eq!(opened(Use::Link, &text), None);
        }
    }

    #[test]
    fn another_servers_link_opens_nothing() {
        assert_eq!(opened(Use::Link, &sign(&[8; 32], Use::Link, &link(1, 2, 3), &[])), None);
    }

    #[test]
    fn a_link_of_a_keys_former_secret_opens_nothing() {
        let link = link(1, 2, 3);
        let text = sign(&SECRET, Use::Link, &link, b"first");
        assert_eq!(open(&SECRET, Use::Link, &text, |_| b"first"), Some(link));
        assert_eq!(open(&SECRET, Use::Link, &text, |_| b"second"), None);
    }
}

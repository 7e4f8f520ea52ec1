//! Tokens as they lie in the database: sealed under a key that only who knows the account's
//! password can make, so that all processes open them and a copy of the database does not.

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};
use uuid::Uuid;

use crate::domain::api_key::GitToken;

pub struct Seal(LessSafeKey);

impl Seal {
    pub fn new(password: &str) -> Self {
        let derived = Salt::new(HKDF_SHA256, b"rdev").extract(password.as_bytes());
        let key = derived.expand(&[b"git tokens of checkouts"], &CHACHA20_POLY1305).map(UnboundKey::from);
        Self(LessSafeKey::new(key.expect("a key of the cipher's own length can be derived")))
    }

    /// Bound to the checkout: in another one's row it does not open.
    pub fn close(&self, checkout: Uuid, token: &GitToken) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut text = token.expose().as_bytes().to_vec();
        let sealed = self.0.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(checkout.as_bytes()),
            &mut text,
        );
        sealed.expect("a token is far from the cipher's longest text");
        [&nonce[..], &text].concat()
    }

    /// `None` for what was sealed under another password, or for another checkout.
    pub fn open(&self, checkout: Uuid, sealed: &[u8]) -> Option<GitToken> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::from(checkout.as_bytes()), &mut text).ok()?;
        GitToken::of_host(std::str::from_utf8(opened).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sealed_opens_for_its_checkout_alone(text in "[0-9a-f]{40}", other in "[!-~]{1,20}") {
            let (seal, checkout, token) = (Seal::new("secret"), Uuid::now_v7(), GitToken::of_host(&text).unwrap());
            let sealed = seal.close(checkout, &token);
            prop_assert!(!sealed.windows(40).any(|part| part == text.as_bytes()));
            prop_assert_eq!(Seal::new("secret").open(checkout, &sealed), Some(token));
            prop_assert_eq!(seal.open(Uuid::now_v7(), &sealed), None);
            prop_assume!(other != "secret");
            prop_assert_eq!(Seal::new(&other).open(checkout, &sealed), None);
        }

        #[test]
        fn what_was_never_sealed_does_not_open(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(Seal::new("secret").open(Uuid::now_v7(), &bytes), None);
        }
    }
}

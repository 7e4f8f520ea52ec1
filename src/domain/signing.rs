//! Signatures of webhooks: what a receiver checks to know that a request is from here and new.
//! Two kinds side by side: one over the body alone, and the Standard Webhooks one over id, time
//! and body, which cannot be replayed later.
//!
//! The keys go in as text and never come out: neither `Debug` nor an error shows them.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

const MARK: &str = "whsec_";

/// The secrets in force: the one to sign with, and during a rotation a second one.
#[derive(Clone)]
pub struct Secrets {
    first: Hmac<Sha256>,
    second: Option<Hmac<Sha256>>,
}

/// The values of a request's two headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signatures {
    /// `X-Foreman-Signature`: `sha256=` and hex, over the body, by the first secret.
    pub foreman: String,
    /// `webhook-signature`: `v1,` and base64 for each secret, separated by a space.
    pub standard: String,
}

impl Secrets {
    /// The value of `RDEV_WEBHOOK_SECRET`: one secret or two, comma-separated, spaces around them
    /// left out. The key is what the base64 behind `whsec_` decodes to, else the text's bytes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = text.split(',').map(|secret| key(secret.trim()));
        let first = keys.next().unwrap_or(Err(BLANK)).map_err(unusable)?;
        let second = keys.next().transpose().map_err(unusable)?;
        match keys.next() {
            None => Ok(Self { first, second }),
            Some(_) => Err(unusable("it must be one secret or two; a secret itself has no comma in it")),
        }
    }

    /// `id` is the `webhook-id`, `timestamp` the `webhook-timestamp`: seconds of this attempt.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Signatures {
        let signed = |key: &Hmac<Sha256>| {
            let mac = key.clone().chain_update(format!("{id}.{timestamp}.")).chain_update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        let mut standard = signed(&self.first);
        if let Some(second) = &self.second {
            standard = format!("{standard} {}", signed(second));
        }
        let foreman = self.first.clone().chain_update(body).finalize().into_bytes();
        Signatures { foreman: format!("sha256={}", hex(&foreman)), standard }
    }
}

/// Two lower-case digits a byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
        text.extend([digit(byte >> 4), digit(byte & 15)]);
        text
    })
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", 1 + usize::from(self.second.is_some()))
    }
}

const BLANK: &str = "no secret may be blank; set one, or two with a comma between them";

fn key(secret: &str) -> Result<Hmac<Sha256>, &'static str> {
    let decoded;
    let key = match secret.strip_prefix(MARK) {
        None => secret.as_bytes(),
        Some(encoded) => {
            let broken = "what follows whsec_ must be base64, with its = at the end; copy the secret whole";
            decoded = STANDARD.decode(encoded).map_err(|_| broken)?;
            &decoded
        }
    };
    if key.is_empty() {
        return Err(BLANK);
    }
    Ok(Hmac::new_from_slice(key).expect("HMAC takes a key of any length"))
}

fn unusable(why: &str) -> String {
    format!("RDEV_WEBHOOK_SECRET: not usable; {why}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENCODED: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const PLAIN: &str = "a plain secret ä";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn sign(secrets: &str) -> Signatures {
        Secrets::parse(secrets).unwrap().sign(ID, TIMESTAMP, BODY)
    }

    /// The expected values were computed with Python's `hmac`.
    #[test]
    fn a_marked_secret_signs_with_what_its_base64_decodes_to() {
        let signatures = sign(ENCODED);
        assert_eq!(signatures.standard, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(signatures.foreman, "sha256=e2cb4f5251572539d458bfb8a7adb533b08801e6a794467e06f771debbb0818b");
    }

    #[test]
    fn any_other_secret_signs_with_its_bytes() {
        let signatures = sign(PLAIN);
        assert_eq!(signatures.standard, "v1,GucXnF6RvBeXpsaIIy9o7t6Cmr3LIjtyp2jZvDBeHms=");
        assert_eq!(signatures.foreman, "sha256=4db9c969916ce1a2a5736d8eb20771bbb7c454cf5d666d21154663fa477eaef6");
    }

    /// RFC 4231, test case 2.
    #[test]
    fn the_body_alone_is_signed_as_the_rfc_has_it() {
        let foreman = Secrets::parse("Jefe").unwrap().sign("", 0, b"what do ya want for nothing?").foreman;
        assert_eq!(foreman, "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn during_a_rotation_both_sign_and_the_first_alone_signs_the_body() {
        let both = sign(&format!(" {PLAIN} ,{ENCODED}\n"));
        let (first, second) = (sign(PLAIN), sign(ENCODED));
        assert_eq!(both.standard, format!("{} {}", first.standard, second.standard));
        assert_eq!(both.foreman, first.foreman);
    }

    #[test]
    fn what_cannot_be_used_is_told_by_name_and_never_shown() {
        for text in ["", " ", ",", "swordfish,", ",swordfish", "swordfish, ,swordfish", "whsec_", "swordfish,whsec_"] {
            let error = Secrets::parse(text).unwrap_err();
            assert!(error.starts_with("RDEV_WEBHOOK_SECRET: not usable; no secret may be blank"), "{text:?}: {error}");
            assert!(!error.contains("swordfish"), "{error}");
        }
        for text in ["whsec_sword_fish", "swordfish,whsec_sword", "whsec_sword=fish"] {
            let error = Secrets::parse(text).unwrap_err();
            assert!(error.starts_with("RDEV_WEBHOOK_SECRET: ") && error.contains("base64"), "{text:?}: {error}");
            assert!(!error.contains("sword"), "{error}");
        }
        assert!(Secrets::parse("swordfish,b,c").unwrap_err().contains("one secret or two"));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", Secrets::parse("swordfish").unwrap()), "Secrets(1)");
        assert_eq!(format!("{:?}", Secrets::parse("swordfish,b").unwrap()), "Secrets(2)");
    }

    proptest! {
        /// As a receiver does it, by the Standard Webhooks rules: any of the signatures may fit.
        #[test]
        fn a_receiver_with_either_secret_accepts(
            one in "[a-z ]{0,9}[a-z]", two: [u8; 24], id in "[a-z0-9-]{1,40}", timestamp: i64, body: Vec<u8>,
        ) {
            let secrets = Secrets::parse(&format!("{one},whsec_{}", STANDARD.encode(two))).unwrap();
            let signatures = secrets.sign(&id, timestamp, &body);
            let accepts = |key: &[u8], content: &[u8]| signatures.standard.split(' ').any(|signature| {
                let mac = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
                Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(content).verify_slice(&mac).is_ok()
            });
            let mut content = format!("{id}.{timestamp}.").into_bytes();
            content.extend_from_slice(&body);
            prop_assert!(accepts(one.trim().as_bytes(), &content) && accepts(&two, &content));
            content.push(b'!');
            prop_assert!(!accepts(one.trim().as_bytes(), &content) && !accepts(&two, &content));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}|(whsec_)?[A-Za-z0-9+/=,]{0,30}") {
            let _ = Secrets::parse(&text);
        }
    }
}

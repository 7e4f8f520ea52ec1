//! The texts that open doors: API keys and git tokens. Their format is fixed, so that a
//! scanner can recognise one and a mistyped key is refused without a look-up.
//!
//! Neither can be printed: `Debug` and `Display` show what tells one from another at most.
//! Who a key belongs to and whether it still lives is known elsewhere, by its hash.

use std::fmt;

use rand::CryptoRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `rdev_sk_`, 6 characters of id, 32 of secret, 6 of checksum.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    const MARK: &str = "rdev_sk_";
    const PREFIX_LEN: usize = 14;
    const CHECKED_LEN: usize = 46;
    const LEN: usize = 52;

    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut text = random(Self::MARK, Self::CHECKED_LEN, rng);
        text.push_str(&checksum(&text));
        Self(text)
    }

    /// `None` unless length, alphabet and checksum are right.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != Self::LEN || !is_base62(text.strip_prefix(Self::MARK)?) {
            return None;
        }
        let (checked, sum) = text.split_at(Self::CHECKED_LEN);
        (checksum(checked) == sum).then(|| Self(text.to_owned()))
    }

    /// The mark and the id part: all of a key that may be stored or shown.
    pub fn prefix(&self) -> &str {
        &self.0[..Self::PREFIX_LEN]
    }

    /// SHA-256 of the whole text: what is stored and looked up.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.0)
    }

    /// The whole text, for the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.prefix())
    }
}

/// `rdev_git_` and 40 characters of secret: the password of one checkout. Or a git host's own token.
#[derive(Clone)]
pub struct GitToken(String);

impl GitToken {
    const MARK: &str = "rdev_git_";
    const LEN: usize = 49;
    const OF_HOST_MAX: usize = 255;

    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self(random(Self::MARK, Self::LEN, rng))
    }

    /// `None` unless length and alphabet are right.
    pub fn parse(text: &str) -> Option<Self> {
        let sound = text.len() == Self::LEN && is_base62(text.strip_prefix(Self::MARK)?);
        sound.then(|| Self(text.to_owned()))
    }

    /// One that a git host has made. `None` unless it can stand in a URL as it is.
    pub fn of_host(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        ((1..=Self::OF_HOST_MAX).contains(&text.len()) && text.bytes().all(plain)).then(|| Self(text.to_owned()))
    }

    /// SHA-256 of the whole text.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.0)
    }

    /// The whole text, for the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GitToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", Self::MARK)
    }
}

macro_rules! secret {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        /// In constant time.
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
            }
        }

        impl Eq for $name {}
    };
}

secret!(ApiKey);
secret!(GitToken);

fn sha256(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn is_base62(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// `mark`, filled up to `len` with characters that are all equally likely: a byte beyond
/// the last whole multiple of 62 is thrown away.
fn random(mark: &str, len: usize, rng: &mut impl CryptoRng) -> String {
    let mut text = String::with_capacity(ApiKey::LEN);
    text.push_str(mark);
    let mut bytes = [0_u8; 64];
    while text.len() < len {
        rng.fill_bytes(&mut bytes);
        let fair = bytes.iter().filter(|b| **b < 62 * 4).map(|b| char::from(BASE62[usize::from(b % 62)]));
        text.extend(fair.take(len - text.len()));
    }
    text
}

/// CRC-32 (IEEE) in base62: six digits, the most significant first.
fn checksum(text: &str) -> String {
    let crc = crc32fast::hash(text.as_bytes());
    let digit = |place: u32| char::from(BASE62[(u64::from(crc) / 62_u64.pow(place) % 62) as usize]);
    (0..6).rev().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn key(seed: u64) -> ApiKey {
        ApiKey::generate(&mut StdRng::seed_from_u64(seed))
    }

    #[test]
    fn a_known_key_has_its_known_checksum() {
        // CRC-32 of the 46 characters by Python's zlib: 0x5182cc5a.
        let body = "rdev_sk_0123450123456789ABCDEFGHIJKLMNOPQRSTUV";
        assert_eq!(body.len(), ApiKey::CHECKED_LEN);
        assert_eq!(checksum(body), "1UY06s");
        assert!(ApiKey::parse(&format!("{body}1UY06s")).is_some());
    }

    #[test]
    fn a_key_says_its_prefix_and_hides_the_rest() {
        let key = key(1);
        assert_eq!(key.expose().len(), 52);
        assert_eq!(key.prefix(), &key.expose()[..14]);
        assert_eq!(format!("{key:?}"), format!("ApiKey({}…)", key.prefix()));
        assert_eq!(key.to_string(), format!("{}…", key.prefix()));
        let token = GitToken::generate(&mut StdRng::seed_from_u64(1));
        assert_eq!(format!("{token:?} {token}"), "GitToken(rdev_git_…) rdev_git_…");
    }

    #[test]
    fn the_hash_is_of_the_whole_text() {
        let (one, other) = (key(2), key(3));
        assert_eq!(one.hash(), <[u8; 32]>::from(Sha256::digest(one.expose())));
        assert_ne!(one.hash(), other.hash());
    }

    #[test]
    fn texts_of_another_form_are_no_keys() {
        let good = key(4).expose().to_owned();
        let token = GitToken::generate(&mut StdRng::seed_from_u64(4)).expose().to_owned();
        let swapped = good.replacen("rdev_sk_", "rdev_pk_", 1);
        for text in ["", "rdev_sk_", &good[..51], &format!("{good}0"), &format!(" {good}"), &swapped, &token] {
            assert_eq!(ApiKey::parse(text), None, "{text}");
        }
        assert_eq!(token.len(), 49);
        assert_eq!(GitToken::parse(&token).unwrap().expose(), token);
        for text in [&token[..48], &format!("{token}0"), &token.replace("_git_", "_got_"), &good] {
            assert_eq!(GitToken::parse(text), None, "{text}");
        }
    }

    #[test]
    fn all_characters_are_equally_likely() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut counts = [0_u32; 128];
        for _ in 0..5_000 {
            let token = GitToken::generate(&mut rng);
            token.expose()[GitToken::MARK.len()..].bytes().for_each(|b| counts[usize::from(b)] += 1);
        }
        // 200,000 characters over 62: 3,226 each, give or take 57.
        for b in BASE62 {
            let count = counts[usize::from(*b)];
            assert!((2_900..3_550).contains(&count), "{}: {count}", char::from(*b));
        }
    }

    proptest! {
        #[test]
        fn a_key_reads_back_and_one_wrong_character_is_noticed(seed: u64, at in 8_usize..52, by in 1_usize..62) {
            let key = key(seed);
            prop_assert_eq!(ApiKey::parse(key.expose()), Some(key.clone()));
            let mut text = key.expose().as_bytes().to_vec();
            let digit = BASE62.iter().position(|b| *b == text[at]).unwrap();
            text[at] = BASE62[(digit + by) % 62];
            prop_assert_eq!(ApiKey::parse(str::from_utf8(&text).unwrap()), None);
        }

        #[test]
        fn no_text_panics(text in "rdev_(sk|git)_\\PC{0,60}", any in "\\PC{40,60}") {
            prop_assert_eq!(ApiKey::parse(&text).or(ApiKey::parse(&any)), None);
            let _ = GitToken::parse(&text);
        }
    }
}

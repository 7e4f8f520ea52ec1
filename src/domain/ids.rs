//! The ids of things, parsed at the door. What holds one of these need not look at it again.
//! Ids that the server makes need a source of time and chance, which is handed in.

use std::fmt;

use serde::{Deserialize, Serialize};
use ulid::Ulid;
use uuid::Uuid;

/// `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`: also a valid DNS label and Kubernetes label value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProjectId(String);

impl ProjectId {
    const MAX_LEN: usize = 63;

    pub fn parse(text: &str) -> Result<Self, IdError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let sound = (1..=Self::MAX_LEN).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if sound { Ok(Self(text.to_owned())) } else { Err(IdError::Project) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `^[A-Za-z0-9._-]{1,64}$` and neither `.` nor `..`, so that it is safe as a file name too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommandId(String);

impl CommandId {
    const MAX_LEN: usize = 64;

    /// The server's own choice: `cmd-` and the ULID.
    pub fn generate(ulid: Ulid) -> Self {
        Self(format!("cmd-{ulid}"))
    }

    /// One that the client chose, or one from a path.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let sound =
            (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) && !matches!(text, "." | "..");
        if sound { Ok(Self(text.to_owned())) } else { Err(IdError::Command) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether the text is a ULID as this server writes them: 26 upper-case characters.
/// Other spellings of the same number name nothing.
pub fn is_ulid(text: &str) -> bool {
    let alphabet =
        |b: u8| matches!(b, b'0'..=b'9' | b'A'..=b'H' | b'J' | b'K' | b'M' | b'N' | b'P'..=b'T' | b'V'..=b'Z');
    // 26 × 5 bits are two more than 128, so the first digit has three.
    text.len() == 26 && text.bytes().all(alphabet) && matches!(text.as_bytes()[0], b'0'..=b'7')
}

/// A UUID as this server writes them: lower-case, with hyphens. Other spellings name nothing.
pub fn uuid_from_path(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    let mut canonical = Uuid::encode_buffer();
    (uuid.hyphenated().encode_lower(&mut canonical) == text).then_some(uuid)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdError {
    Project,
    Command,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Project => "invalid project id",
            Self::Command => {
                "command_id must be 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-', and not '.' or '..'"
            }
        })
    }
}

impl std::error::Error for IdError {}

macro_rules! text_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

text_id!(ProjectId);
text_id!(CommandId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_project_id_is_a_dns_label() {
        for text in ["a", "0", "pantheon", "a-b", "a--b", "1-2", &"x".repeat(63)] {
            assert_eq!(ProjectId::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "-", "-a", "a-", "A", "a_b", "a.b", "a/b", "ä", " a", "a\n", &"x".repeat(64)] {
            assert_eq!(ProjectId::parse(text), Err(IdError::Project), "{text:?}");
        }
        assert_eq!(IdError::Project.to_string(), "invalid project id");
    }

    #[test]
    fn a_command_id_can_be_chosen_but_is_no_path() {
        for text in ["a", "...", "a.b", "A_b-9", "cmd-01J", &"x".repeat(64)] {
            assert_eq!(CommandId::parse(text).unwrap().to_string(), text);
        }
        for text in ["", ".", "..", "a/b", "a:1", "a b", "é", "a\0", &"x".repeat(65)] {
            assert_eq!(CommandId::parse(text), Err(IdError::Command), "{text:?}");
        }
    }

    #[test]
    fn the_servers_command_id_is_one_a_client_could_send_back() {
        let id = CommandId::generate(Ulid::from_parts(1_700_000_000_000, 42));
        assert_eq!(id.as_str().len(), 30);
        assert!(is_ulid(id.as_str().strip_prefix("cmd-").unwrap()));
        assert_eq!(CommandId::parse(id.as_str()), Ok(id));
    }

    #[test]
    fn ids_are_checked_when_they_come_as_json() {
        assert_eq!(serde_json::from_str::<ProjectId>("\"a-b\"").unwrap().as_str(), "a-b");
        assert!(serde_json::from_str::<ProjectId>("\"A\"").unwrap_err().to_string().contains("invalid project id"));
        assert!(serde_json::from_str::<CommandId>("\"..\"").is_err());
        assert_eq!(serde_json::to_string(&CommandId::parse("x").unwrap()).unwrap(), "\"x\"");
    }

    #[test]
    fn only_the_canonical_spelling_of_a_uuid_is_an_id() {
        let text = "0190a6f0-3b2c-7def-8123-456789abcdef";
        assert_eq!(uuid_from_path(text).unwrap().to_string(), text);
        let compact = text.replace('-', "");
        for other in [&text.to_uppercase(), &compact, &format!("{{{text}}}"), &format!("urn:uuid:{text}"), "", "x"] {
            assert_eq!(uuid_from_path(other), None, "{other}");
        }
    }

    #[test]
    fn only_the_canonical_spelling_of_a_ulid_is_an_id() {
        assert!(is_ulid("01ARZ3NDEKTSV4RRFFQ69G5FAV"));
        assert!(is_ulid("7ZZZZZZZZZZZZZZZZZZZZZZZZZ"));
        for text in [
            "",
            "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "01arz3ndektsv4rrffq69g5fav",
            "01ARZ3NDEKTSV4RRFFQ69G5FAI",
            "01ARZ3NDEKTSV4RRFFQ69G5FA",
        ] {
            assert!(!is_ulid(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_ulid_and_uuid_reads_back(number: u128) {
            prop_assert!(is_ulid(&Ulid::from(number).to_string()));
            let uuid = Uuid::from_u128(number);
            prop_assert_eq!(uuid_from_path(&uuid.to_string()), Some(uuid));
        }
    }
}

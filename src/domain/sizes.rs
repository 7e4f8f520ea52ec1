//! Amounts of bytes as settings give them: `64MiB`, `10MB`, `65536`. Powers of 1024 have an
//! `i`, those of 1000 have none. Fractions are not understood, so nothing is ever rounded.

use std::fmt;

const UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

/// Digits and a unit, which may be left out; upper or lower case, one space between them at most.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').filter(|unit| !unit.is_empty()).unwrap_or(unit);
    let (_, factor) = UNITS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or(SizeError::Invalid)?;
    if digits.is_empty() {
        return Err(SizeError::Invalid);
    }
    let count: Option<u64> = digits.parse().ok();
    count.and_then(|count| count.checked_mul(factor)).ok_or(SizeError::TooLarge)
}

/// In the greatest unit of 1024 that leaves no rest: `64MiB`, `3KiB`, `1000B`, `0`.
pub fn format_bytes(bytes: u64) -> String {
    let fits = |(_, factor): &(&str, u64)| bytes.is_multiple_of(*factor);
    match UNITS[..4].iter().find(|unit| fits(unit)) {
        _ if bytes == 0 => "0".to_owned(),
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// Displayed, it follows the name of the setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeError {
    Invalid,
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "must be a size in bytes (e.g., 64MiB, 1GiB, 10MB, 65536)",
            Self::TooLarge => "must be less than 16 EiB",
        })
    }
}

impl std::error::Error for SizeError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_of_1024_and_of_1000_are_told_apart() {
        let cases = [
            ("0", 0),
            ("65536", 65_536),
            ("10B", 10),
            ("64MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("10MB", 10_000_000),
            ("3kb", 3_000),
            ("2TiB", 2 << 40),
            ("2TB", 2_000_000_000_000),
            ("007KiB", 7 << 10),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", " ", "MiB", "-1", "+1", "1.5GiB", "64M", "64Mib/s", " 1", "1 ", "1  KB", "1e3", "٣", "0x10"] {
            assert_eq!(parse_bytes(text), Err(SizeError::Invalid), "{text:?}");
        }
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999999KB"] {
            assert_eq!(parse_bytes(text), Err(SizeError::TooLarge), "{text}");
        }
    }

    #[test]
    fn a_size_is_printed_without_a_rest() {
        for (bytes, text) in
            [(0, "0"), (1, "1B"), (1000, "1000B"), (1536, "1536B"), (64 << 20, "64MiB"), (3 << 40, "3TiB")]
        {
            assert_eq!(format_bytes(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes: u64, shift in 0_u32..45) {
            for bytes in [bytes, bytes >> shift << shift] {
                prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
            }
        }
    }
}

//! The `Range` header (RFC 9110, section 14) over content of a known length: one range of
//! bytes, or none. What it does not understand it ignores, as the RFC wants it, and so
//! it ignores several ranges at once, which only a multipart answer could serve.

use std::fmt;

/// Bytes `first` to `last`, both included, of `total`. Displayed, it is a `Content-Range`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    pub first: u64,
    pub last: u64,
    pub total: u64,
}

impl ByteRange {
    /// How many bytes, never 0.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u64 {
        self.last - self.first + 1
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/{}", self.first, self.last, self.total)
    }
}

/// What a header asks of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requested {
    /// 206 with this part.
    Part(ByteRange),
    /// 416 with [`unsatisfied`].
    Unsatisfiable,
    /// 200 with everything: malformed, another unit, several ranges, or the end of nothing.
    Ignored,
}

/// Reads the header's value for content of `total` bytes.
pub fn parse(header: &str, total: u64) -> Requested {
    resolve(header, total).unwrap_or(Requested::Ignored)
}

/// The `Content-Range` of a 416.
pub fn unsatisfied(total: u64) -> String {
    format!("bytes */{total}")
}

fn resolve(header: &str, total: u64) -> Option<Requested> {
    let (unit, range) = header.split_once('=')?;
    let range = range.trim_matches([' ', '\t']);
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = match range.split_once('-')? {
        ("", suffix) => {
            let suffix = number(suffix)?;
            if suffix == 0 {
                return Some(Requested::Unsatisfiable);
            }
            // A suffix of nothing is satisfiable to the RFC, yet no 206 can say so.
            (total.saturating_sub(suffix), total.checked_sub(1)?)
        }
        (first, "") => (number(first)?, u64::MAX),
        (first, last) => (number(first)?, number(last)?),
    };
    if last < first {
        return None;
    }
    if first >= total {
        return Some(Requested::Unsatisfiable);
    }
    Some(Requested::Part(ByteRange { first, last: last.min(total - 1), total }))
}

/// Digits alone; more than 64 bits are as good as the greatest number.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(header: &str, total: u64) -> Option<(u64, u64)> {
        match parse(header, total) {
            Requested::Part(range) => Some((range.first, range.last)),
            _ => None,
        }
    }

    #[test]
    fn one_range_is_cut_to_the_content() {
        assert_eq!(part("bytes=0-0", 10), Some((0, 0)));
        assert_eq!(part("bytes=2-5", 10), Some((2, 5)));
        assert_eq!(part("bytes=2-", 10), Some((2, 9)));
        assert_eq!(part("bytes=2-99", 10), Some((2, 9)));
        assert_eq!(part("bytes=-3", 10), Some((7, 9)));
        assert_eq!(part("bytes=-99", 10), Some((0, 9)));
        assert_eq!(part("Bytes= 1-2 ", 10), Some((1, 2)));
        assert_eq!(part("bytes=0-99999999999999999999999", 10), Some((0, 9)));
    }

    #[test]
    fn a_range_outside_the_content_cannot_be_satisfied() {
        for header in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(parse(header, 10), Requested::Unsatisfiable, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Requested::Unsatisfiable);
        assert_eq!(unsatisfied(10), "bytes */10");
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=1",
            "bytes=+1-2",
            "bytes=--1",
            "bytes=1-2-3",
            "lines=1-2",
            "bytes =1-2",
            "bytes=0-1,3-4",
            "bytes=1 - 2",
            "bytes=0x1-2",
        ] {
            assert_eq!(parse(header, 10), Requested::Ignored, "{header}");
        }
        assert_eq!(parse("bytes=-5", 0), Requested::Ignored);
    }

    #[test]
    fn a_range_is_displayed_as_a_content_range() {
        let range = ByteRange { first: 2, last: 5, total: 10 };
        assert_eq!((range.to_string().as_str(), range.len()), ("bytes 2-5/10", 4));
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_content(first: Option<u64>, last: Option<u64>, total: u64) {
            let show = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
            let header = format!("bytes={}-{}", show(first), show(last));
            if let Requested::Part(range) = parse(&header, total) {
                prop_assert!(range.first <= range.last && range.last < range.total);
                prop_assert!((1..=total).contains(&range.len()));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}|bytes=[0-9, -]{0,12}", total: u64) {
            let _ = parse(&text, total);
        }
    }
}

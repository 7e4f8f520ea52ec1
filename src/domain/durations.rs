//! The one parser for every duration that a client or the configuration gives: Go's
//! `time.ParseDuration` to the letter, else a whole number of days from `1d` to `30d`.
//!
//! The rules and messages of `expires_in` stand here too. Defaults, and the limits of a
//! particular field (a `timeout` of at most a day, say), belong to whoever has that field.

use std::{fmt, time::Duration};

const DAY: Duration = Duration::from_hours(24);
const MAX_DAYS: u32 = 30;
const MAX: Duration = Duration::from_hours(30 * 24);

/// Go's grammar: `300ms`, `-1.5h`, `2h45m`, `0`. A negative one is an error of its own,
/// because a [`Duration`] has no sign. What does not fit 64 bits of nanoseconds is invalid.
pub fn parse_go(text: &str) -> Result<Duration, DurationError> {
    let (negative, magnitude) = go::parse(text).ok_or(DurationError::Invalid)?;
    if negative && magnitude > 0 {
        return Err(DurationError::Negative);
    }
    Ok(Duration::from_nanos(magnitude))
}

/// Go's grammar or whole days; more than zero. For `timeout`, `wait` and settings.
pub fn parse_positive(text: &str) -> Result<Duration, DurationError> {
    match parse_any(text)? {
        Duration::ZERO => Err(DurationError::Zero),
        duration => Ok(duration),
    }
}

/// For `overlap`: zero is allowed, more than 30 days is not.
pub fn parse_overlap(text: &str) -> Result<Duration, DurationError> {
    let duration = parse_any(text)?;
    if duration > MAX { Err(DurationError::TooLong) } else { Ok(duration) }
}

/// As Go would print it, without parts that are zero: `1m`, `1h30m`, `1.5s`, `500ms`, `0s`.
/// [`parse_go`] reads it back.
pub fn format_short(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if seconds == 0 {
        return match nanos {
            0 => "0s".to_owned(),
            1..1_000 => format!("{nanos}ns"),
            1_000..1_000_000 => decimal(nanos.into(), 1_000, "µs"),
            _ => decimal(nanos.into(), 1_000_000, "ms"),
        };
    }
    let part = |count: u64, unit: char| if count > 0 { format!("{count}{unit}") } else { String::new() };
    let rest = Duration::new(seconds % 60, nanos);
    let rest = if rest.is_zero() { String::new() } else { decimal(rest.as_nanos(), 1_000_000_000, "s") };
    part(seconds / 3600, 'h') + &part(seconds / 60 % 60, 'm') + &rest
}

/// The rules of the field `expires_in`.
pub struct ExpiresIn;

impl ExpiresIn {
    /// The life of a checkout or session that asks for none.
    pub const DEFAULT: Duration = DAY;
    pub const MAX: Duration = MAX;

    /// A duration of at least `min` and at most 30 days. `min` zero: any positive one.
    pub fn parse(text: &str, min: Duration) -> Result<Duration, ExpiresInError> {
        let duration = parse_positive(text).map_err(|_| ExpiresInError::Invalid)?;
        if duration > MAX {
            return Err(ExpiresInError::TooLong);
        }
        if duration < min {
            return Err(ExpiresInError::TooShort { min });
        }
        Ok(duration)
    }

    /// As [`parse`](Self::parse); `None` where the field was left out or empty.
    pub fn parse_optional(text: Option<&str>, min: Duration) -> Result<Option<Duration>, ExpiresInError> {
        text.filter(|text| !text.is_empty()).map(|text| Self::parse(text, min)).transpose()
    }
}

/// Why a text is no usable duration. Displayed, it follows the name of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurationError {
    Invalid,
    Zero,
    Negative,
    TooLong,
}

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "must be a valid duration (e.g., 30s, 1h30m, or 1d to 30d)",
            Self::Zero => "must be more than zero",
            Self::Negative => "must not be negative",
            Self::TooLong => "cannot exceed 30 days",
        })
    }
}

impl std::error::Error for DurationError {}

/// Displayed, the contract's sentence, field name included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiresInError {
    /// Also zero, negative, `31d`, and what 64 bits of nanoseconds cannot hold.
    Invalid,
    TooLong,
    TooShort {
        min: Duration,
    },
}

impl fmt::Display for ExpiresInError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid => f.write_str("expires_in must be a valid duration (e.g., 24h, 7d)"),
            Self::TooLong => f.write_str("expires_in cannot exceed 30 days"),
            Self::TooShort { min } => write!(f, "expires_in must be at least {}", format_short(*min)),
        }
    }
}

impl std::error::Error for ExpiresInError {}

fn parse_any(text: &str) -> Result<Duration, DurationError> {
    match parse_go(text) {
        Err(DurationError::Invalid) => whole_days(text).ok_or(DurationError::Invalid),
        other => other,
    }
}

/// `1d` to `30d`, written as one writes a number: no sign, no leading zero.
fn whole_days(text: &str) -> Option<Duration> {
    let digits = text.strip_suffix('d')?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
        return None;
    }
    let days: u32 = digits.parse().ok()?;
    (1..=MAX_DAYS).contains(&days).then(|| DAY * days)
}

/// `value / unit` with as many decimals as it takes.
fn decimal(value: u128, unit: u128, suffix: &str) -> String {
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", value % unit);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{}{point}{fraction}{suffix}", value / unit)
}

/// Go's `time.ParseDuration` (`src/time/format.go`), with its rounding and its overflows.
mod go {
    /// The least negative of Go's durations has this magnitude, so intermediate sums may reach it.
    const LIMIT: u64 = 1 << 63;

    /// Sign and nanoseconds.
    pub(super) fn parse(text: &str) -> Option<(bool, u64)> {
        let negative = text.starts_with('-');
        let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
        if rest == "0" {
            return Some((false, 0));
        }
        if rest.is_empty() {
            return None;
        }
        let mut total = 0_u64;
        while !rest.is_empty() {
            let (nanos, after) = term(rest)?;
            total = total.checked_add(nanos).filter(|sum| *sum <= LIMIT)?;
            rest = after;
        }
        (negative || total < LIMIT).then_some((negative, total))
    }

    /// One number with its unit, such as `1.5h`; what follows it.
    fn term(text: &str) -> Option<(u64, &str)> {
        let (whole_digits, rest) = digits(text);
        let whole = whole(whole_digits)?;
        let (fraction_digits, rest) = rest.strip_prefix('.').map_or(("", rest), digits);
        if whole_digits.is_empty() && fraction_digits.is_empty() {
            return None;
        }
        let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = unit(&rest[..end])?;
        let nanos = whole.checked_mul(unit).filter(|nanos| *nanos <= LIMIT)?;
        let nanos = nanos.checked_add(part(fraction_digits, unit)).filter(|nanos| *nanos <= LIMIT)?;
        Some((nanos, &rest[end..]))
    }

    fn digits(text: &str) -> (&str, &str) {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text.split_at(end)
    }

    fn whole(digits: &str) -> Option<u64> {
        digits.bytes().try_fold(0_u64, |value, digit| {
            let value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
            (value <= LIMIT).then_some(value)
        })
    }

    /// A fraction of a unit in nanoseconds. Digits beyond 64 bits are dropped, as Go drops them.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "Go's own arithmetic, result for result"
    )]
    fn part(digits: &str, unit: u64) -> u64 {
        let (mut value, mut scale) = (0_u64, 1_f64);
        for digit in digits.bytes() {
            if value > (LIMIT - 1) / 10 {
                break;
            }
            let next = value * 10 + u64::from(digit - b'0');
            if next > LIMIT {
                break;
            }
            (value, scale) = (next, scale * 10.0);
        }
        (value as f64 * (unit as f64 / scale)) as u64
    }

    fn unit(name: &str) -> Option<u64> {
        Some(match name {
            "ns" => 1,
            // The micro sign and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn expires_in(text: &str) -> Result<Duration, String> {
        ExpiresIn::parse(text, MINUTE).map_err(|error| error.to_string())
    }

    #[test]
    fn gos_own_examples_parse_as_in_go() {
        // From `parseDurationTests` of Go's src/time/time_test.go: text, nanoseconds.
        let cases: &[(&str, u64)] = &[
            ("0", 0),
            ("-0", 0),
            ("+0", 0),
            ("-0s", 0),
            ("5s", 5_000_000_000),
            ("1478s", 1_478_000_000_000),
            ("+5s", 5_000_000_000),
            ("5.0s", 5_000_000_000),
            ("5.6s", 5_600_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.0040s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12µs", 12_000),
            ("12μs", 12_000),
            ("13ms", 13_000_000),
            ("3h30m", 12_600_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("39h9m14.425s", 140_954_425_000_000),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("9007199254740993ns", 9_007_199_254_740_993),
            ("9223372036854775807ns", 9_223_372_036_854_775_807),
            ("9223372036854775.807us", 9_223_372_036_854_775_807),
            ("9223372036s854ms775us807ns", 9_223_372_036_854_775_807),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.830103483285477580700h", 2_988_372_539_827),
            ("0.1ns", 0),
        ];
        for (text, nanos) in cases {
            assert_eq!(parse_go(text), Ok(Duration::from_nanos(*nanos)), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let cases = [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "1 h",
            " 1h",
            "1h ",
            "1H",
            "1e3s",
            "--1s",
            "1h-1m",
            "\u{85}85",
            "\u{ffff}",
            "hello \u{ffff} world",
            "٣s",
            "1.5.s",
            "1..5s",
            "9223372036854775810ns",
            "9223372036854775808ns",
            "9223372036854775.808us",
            "9223372036854ms775us808ns",
            "9999999h",
            "-9223372036854775809ns",
            "18446744073709551616ns",
            "99999999999999999999999s",
        ];
        for text in cases {
            assert_eq!(parse_go(text), Err(DurationError::Invalid), "{text:?}");
        }
        for text in ["-1ns", "-1.5h", "-9223372036854775808ns", "-721h"] {
            assert_eq!(parse_go(text), Err(DurationError::Negative), "{text:?}");
        }
    }

    #[test]
    fn expires_in_takes_hours_and_whole_days_up_to_thirty() {
        assert_eq!(expires_in("24h"), Ok(DAY));
        assert_eq!(expires_in("1d"), Ok(DAY));
        assert_eq!(expires_in("30d"), Ok(MAX));
        assert_eq!(expires_in("720h"), Ok(MAX));
        assert_eq!(expires_in("1m"), Ok(MINUTE));
        assert_eq!(ExpiresIn::parse("1ns", Duration::ZERO), Ok(Duration::from_nanos(1)));
    }

    #[test]
    fn expires_in_refuses_with_the_contracts_sentences() {
        let invalid = "expires_in must be a valid duration (e.g., 24h, 7d)";
        let days = ["31d", "0d", "-1d", "+1d", "1.5d", "07d", "d", "1D", " 1d", "1d12h", "99999999999d", "٣d"];
        let others = ["", "0", "0s", "-1h", "-721h", "soon", "24", "9999999h", "0.1ns"];
        for text in days.into_iter().chain(others) {
            assert_eq!(expires_in(text), Err(invalid.into()), "{text:?}");
        }
        for text in ["721h", "720h1ns", "2562047h"] {
            assert_eq!(expires_in(text), Err("expires_in cannot exceed 30 days".into()), "{text:?}");
        }
        assert_eq!(expires_in("59s"), Err("expires_in must be at least 1m".into()));
        let error = ExpiresIn::parse("1ms", Duration::from_secs(90)).unwrap_err();
        assert_eq!(error.to_string(), "expires_in must be at least 1m30s");
    }

    #[test]
    fn an_expires_in_left_out_or_empty_is_nobodys_error() {
        assert_eq!(ExpiresIn::parse_optional(None, MINUTE), Ok(None));
        assert_eq!(ExpiresIn::parse_optional(Some(""), MINUTE), Ok(None));
        assert_eq!(ExpiresIn::parse_optional(Some("2m"), MINUTE), Ok(Some(MINUTE * 2)));
        assert_eq!(ExpiresIn::parse_optional(Some(" "), MINUTE), Err(ExpiresInError::Invalid));
    }

    #[test]
    fn only_an_overlap_may_be_zero() {
        assert_eq!(parse_positive("7d"), Ok(DAY * 7));
        assert_eq!(parse_positive("2000h"), Ok(Duration::from_hours(2000)));
        assert_eq!(parse_positive("0s"), Err(DurationError::Zero));
        assert_eq!(parse_positive("-5s"), Err(DurationError::Negative));
        assert_eq!(parse_overlap("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_overlap("30d"), Ok(MAX));
        assert_eq!(parse_overlap("721h"), Err(DurationError::TooLong));
        assert_eq!(parse_overlap("-1s"), Err(DurationError::Negative));
        assert_eq!(parse_overlap("31d"), Err(DurationError::Invalid));
    }

    #[test]
    fn a_duration_is_printed_short() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m"),
            (90_000_000_000, "1m30s"),
            (60_010_000_000, "1m0.01s"),
            (3_600_000_000_000, "1h"),
            (3_601_000_000_000, "1h1s"),
            (86_400_000_000_000, "24h"),
        ];
        for (nanos, text) in cases {
            assert_eq!(format_short(Duration::from_nanos(nanos)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(nanos in 0..=u64::MAX / 2, short in 0_u64..2_000_000_000) {
            for nanos in [nanos, short] {
                let duration = Duration::from_nanos(nanos);
                prop_assert_eq!(parse_go(&format_short(duration)), Ok(duration));
            }
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.hmsnuµd]{0,24}") {
            let _ = (parse_go(&text), parse_overlap(&text), ExpiresIn::parse(&text, MINUTE));
        }
    }
}

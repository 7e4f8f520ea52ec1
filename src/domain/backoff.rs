//! How long to wait before something is tried again: twice as long each time, give or take a
//! fifth, so that what failed together does not come back together; or what was asked for.
//! Chance and the time are handed in.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// The first retry of a job waits so long.
const JOB_FIRST: Duration = Duration::from_secs(2);
const JOB_MAX: Duration = Duration::from_mins(1);
/// Nobody is waited for longer, whatever its `Retry-After` says.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);
/// A delay is off by as much as this part of it.
const SPREAD: f64 = 0.2;

/// The delay before retry `n` of a job, counted from 1: 2, 4, 8 … s ± 20 %, at most 60 s.
/// `unit` is chance, in `0.0..1.0`.
pub fn job(n: u32, unit: f64) -> Duration {
    exponential(JOB_FIRST, n, Some(JOB_MAX), unit)
}

/// The delay before retry `n` of a webhook, counted from 1: `first`, twice that, … ± 20 %.
pub fn webhook(first: Duration, n: u32, unit: f64) -> Duration {
    exponential(first, n, None, unit)
}

/// `first` doubled with each retry after the first, times a factor of 0.8 to 1.2 that `unit`
/// chooses; never over `cap`.
pub fn exponential(first: Duration, n: u32, cap: Option<Duration>, unit: f64) -> Duration {
    let cap = cap.unwrap_or(Duration::MAX);
    let doubled = first.saturating_mul(2_u32.saturating_pow(n.saturating_sub(1)));
    // Cut on both sides of the chance: delays at the cap still differ, and none is over it.
    jittered(doubled.min(cap), unit).min(cap)
}

/// What a `Retry-After` header asks for: seconds or a date. An hour at most; a past date is zero.
/// `None` where it makes no sense.
pub fn retry_after(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let value = value.trim();
    let asked = seconds(value).or_else(|| Some((date(value)? - now).to_std().unwrap_or(Duration::ZERO)))?;
    Some(asked.min(RETRY_AFTER_MAX))
}

fn jittered(delay: Duration, unit: f64) -> Duration {
    let unit = if unit.is_nan() { 0.5 } else { unit.clamp(0.0, 1.0) };
    let factor = 1.0 + SPREAD * (2.0 * unit - 1.0);
    Duration::try_from_secs_f64(delay.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// Whole seconds as the RFC has them, or with a fraction, as some send them.
fn seconds(value: &str) -> Option<Duration> {
    if !value.starts_with(|c: char| c.is_ascii_digit()) || !value.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let seconds: f64 = value.parse().ok()?;
    Duration::try_from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64())).ok()
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, and what resembles it: another zone, a day of the week that
/// is wrong or missing, or RFC 3339.
fn date(value: &str) -> Option<DateTime<Utc>> {
    let dated = value.split_once(',').map_or(value, |(_, date)| date.trim_start());
    DateTime::parse_from_rfc2822(dated).or_else(|_| DateTime::parse_from_rfc3339(value)).map(|date| date.to_utc()).ok()
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, TimeZone as _};
    use proptest::prelude::*;

    use super::*;

    fn now() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 1, 1, 12, 0, 0).unwrap()
    }

    fn http_date(at: DateTime<Utc>) -> String {
        at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }

    #[test]
    fn the_pauses_of_a_job_double_up_to_a_minute() {
        let pauses: Vec<u64> = [1, 2, 3, 4, 5, 6, 7, u32::MAX].map(|n| job(n, 0.5).as_secs()).into();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn the_pauses_of_a_webhook_double_from_the_one_that_was_set() {
        let pauses = |first: Duration| [1, 2, 3, 4, 5].map(|n| webhook(first, n, 0.5).as_millis());
        assert_eq!(pauses(Duration::from_secs(1)), [1_000, 2_000, 4_000, 8_000, 16_000]);
        assert_eq!(pauses(Duration::from_millis(10)), [10, 20, 40, 80, 160]);
    }

    #[test]
    fn chance_moves_a_pause_by_a_fifth_either_way() {
        assert_eq!(job(1, 0.0), Duration::from_millis(1_600));
        assert_eq!(job(1, 1.0), Duration::from_millis(2_400));
        // At the cap too, downwards alone.
        assert_eq!(job(9, 0.0), Duration::from_secs(48));
        assert_eq!(job(9, 1.0), Duration::from_mins(1));
    }

    #[test]
    fn a_receiver_may_ask_for_seconds() {
        for (value, millis) in
            [("0", 0), ("7", 7_000), (" 120 ", 120_000), ("1.5", 1_500), ("3600", 3_600_000), ("3601", 3_600_000)]
        {
            assert_eq!(retry_after(value, now()), Some(Duration::from_millis(millis)), "{value}");
        }
        assert_eq!(retry_after(&"9".repeat(500), now()), Some(RETRY_AFTER_MAX));
    }

    #[test]
    fn a_receiver_may_name_a_date() {
        for (value, seconds) in [
            ("Thu, 01 Jan 2026 12:00:30 GMT", 30),
            ("Mon, 01 Jan 2026 12:00:30 GMT", 30),
            ("01 Jan 2026 12:00:30 GMT", 30),
            ("Thu, 01 Jan 2026 13:00:30 +0100", 30),
            ("2026-01-01T12:00:30Z", 30),
            ("Thu, 01 Jan 2026 11:59:59 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 3_600),
        ] {
            assert_eq!(retry_after(value, now()), Some(Duration::from_secs(seconds)), "{value}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_ignored() {
        for value in ["", " ", "-1", "+1", ".5", "1.2.3", "1e3", "NaN", "inf", "soon", "Thu, 32 Jan 2026 12:00:30 GMT"]
        {
            assert_eq!(retry_after(value, now()), None, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn a_pause_is_within_a_fifth_and_under_the_cap(millis in 0..100_000_u64, n in 0..80_u32, unit in 0.0..1.0) {
            let first = Duration::from_millis(millis);
            let exact = first.as_secs_f64() * 2_f64.powi(i32::try_from(n.max(1)).unwrap() - 1).min(f64::from(u32::MAX));
            let pause = exponential(first, n, None, unit).as_secs_f64();
            prop_assert!(pause >= exact * 0.799_999 - 1e-8 && pause <= exact * 1.200_001 + 1e-8, "{pause} {exact}");

            let capped = job(n, unit);
            prop_assert!(capped <= JOB_MAX && capped >= Duration::from_millis(1_600));
        }

        #[test]
        fn a_later_retry_never_waits_less(first: Duration, n: u32, cap: Option<Duration>, unit in 0.0..1.0) {
            let pause = |n| exponential(first, n, cap, unit);
            prop_assert!(pause(n) <= pause(n.saturating_add(1)));
        }

        #[test]
        fn no_chance_panics(first: Duration, n: u32, cap: Option<Duration>, unit in any::<f64>()) {
            prop_assert!(exponential(first, n, cap, unit) <= cap.unwrap_or(Duration::MAX));
            prop_assert!(exponential(first, n, cap, f64::NAN) <= cap.unwrap_or(Duration::MAX));
        }

        #[test]
        fn a_date_is_waited_for_but_an_hour_at_most(seconds in -100_000..100_000_i64) {
            let value = http_date(now() + TimeDelta::seconds(seconds));
            let expected = Duration::from_secs(u64::try_from(seconds.clamp(0, 3_600)).unwrap());
            prop_assert_eq!(retry_after(&value, now()), Some(expected));
        }

        #[test]
        fn no_text_panics_or_asks_for_more_than_an_hour(
            text in "\\PC{0,40}|[0-9.]{0,30}|(Mon, )?[0-9]{1,3} (Jan|Feb|x) [0-9]{1,7} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT",
        ) {
            prop_assert!(retry_after(&text, now()).is_none_or(|asked| asked <= RETRY_AFTER_MAX));
        }
    }
}

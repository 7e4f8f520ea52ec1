//! When a step that failed is tried again: how often, and how long before. Chance is handed in.
//!
//! Numbers that make no sense can be held, so that [`RetryPolicy::problems`] can tell of each by
//! its path; a delay is a sound one all the same.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::Problem;
use crate::domain::backoff;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(from = "Wire")]
pub struct RetryPolicy {
    /// Attempts after the first.
    #[schema(required = false, default = 3, minimum = 0, maximum = 100)]
    pub max_retries: i64,
    #[schema(required = false, default = "exponential")]
    pub backoff: Backoff,
    #[schema(required = false, default = 1000, minimum = 0, maximum = 86_400_000)]
    pub initial_delay_ms: i64,
    /// Before jitter.
    #[schema(required = false, default = 60000, minimum = 0, maximum = 86_400_000)]
    pub max_delay_ms: i64,
    /// Of exponential backoff.
    #[schema(required = false, default = 2.0, minimum = 1, maximum = 10)]
    pub multiplier: f64,
    /// The part of a delay by which chance may move it, either way.
    #[schema(required = false, default = 0.2, minimum = 0, maximum = 1)]
    pub jitter: f64,
}

/// How delays grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    #[default]
    Exponential,
    Linear,
    Fixed,
}

impl RetryPolicy {
    pub const RETRIES: RangeInclusive<i64> = 0..=100;
    /// Up to a day.
    pub const DELAY_MS: RangeInclusive<i64> = 0..=86_400_000;
    pub const MULTIPLIER: RangeInclusive<f64> = 1.0..=10.0;
    pub const JITTER: RangeInclusive<f64> = 0.0..=1.0;

    /// Of a step that has none: its saga says how often.
    pub fn with_max_retries(max_retries: i64) -> Self {
        Self { max_retries, ..Self::default() }
    }

    /// `at` is its own path, such as `steps[2].retry_policy`.
    pub fn problems(&self, at: &str) -> Vec<Problem> {
        let found = [
            bounded("max_retries", self.max_retries, Self::RETRIES),
            bounded("initial_delay_ms", self.initial_delay_ms, Self::DELAY_MS),
            bounded("max_delay_ms", self.max_delay_ms, Self::DELAY_MS),
            bounded("multiplier", self.multiplier, Self::MULTIPLIER),
            bounded("jitter", self.jitter, Self::JITTER),
        ];
        let found = found.into_iter().flatten();
        found.map(|(name, message)| Problem::new(&format!("{at}.{name}"), &message)).collect()
    }

    /// Retries that may be made.
    pub fn retries(&self) -> i32 {
        i32::try_from(self.max_retries.clamp(*Self::RETRIES.start(), *Self::RETRIES.end())).unwrap_or(0)
    }

    /// The delay before retry `n`, counted from 1. `unit` is chance, in `0.0..1.0`.
    pub fn delay(&self, n: u32, unit: f64) -> Duration {
        let n = f64::from(n.max(1));
        let growth = match self.backoff {
            Backoff::Fixed => 1.0,
            Backoff::Linear => n,
            // Infinite for a large n, until it is cut.
            Backoff::Exponential => within(self.multiplier, &Self::MULTIPLIER).powf(n - 1.0),
        };
        let (first, most) = (milliseconds(self.initial_delay_ms), milliseconds(self.max_delay_ms));
        // Zero times infinity is no number.
        let exact = if first > 0.0 { (first * growth).min(most) } else { 0.0 };
        let factor = 1.0 + within(self.jitter, &Self::JITTER) * (2.0 * within(unit, &(0.0..=1.0)) - 1.0);
        Duration::try_from_secs_f64(exact * factor / 1_000.0).unwrap_or_default()
    }
}

/// A delay, or what the other side asked for where that is more; of which an hour counts at most.
pub fn raised(delay: Duration, asked: Option<Duration>) -> Duration {
    delay.max(asked.unwrap_or_default().min(backoff::RETRY_AFTER_MAX))
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: 3,
            backoff: Backoff::Exponential,
            initial_delay_ms: 1_000,
            max_delay_ms: 60_000,
            multiplier: 2.0,
            jitter: 0.2,
        }
    }
}

/// As it is sent: what is left out, or null, is as by default.
#[derive(Deserialize)]
#[serde(expecting = "a retry policy")]
struct Wire {
    max_retries: Option<i64>,
    backoff: Option<Backoff>,
    initial_delay_ms: Option<i64>,
    max_delay_ms: Option<i64>,
    multiplier: Option<f64>,
    jitter: Option<f64>,
}

impl From<Wire> for RetryPolicy {
    fn from(wire: Wire) -> Self {
        let default = Self::default();
        Self {
            max_retries: wire.max_retries.unwrap_or(default.max_retries),
            backoff: wire.backoff.unwrap_or(default.backoff),
            initial_delay_ms: wire.initial_delay_ms.unwrap_or(default.initial_delay_ms),
            max_delay_ms: wire.max_delay_ms.unwrap_or(default.max_delay_ms),
            multiplier: wire.multiplier.unwrap_or(default.multiplier),
            jitter: wire.jitter.unwrap_or(default.jitter),
        }
    }
}

/// The member's name and what is wrong with it. What is no number is out of bounds too.
fn bounded<T: PartialOrd + Display>(
    name: &'static str,
    value: T,
    bounds: RangeInclusive<T>,
) -> Option<(&'static str, String)> {
    (!bounds.contains(&value)).then(|| (name, format!("must be from {} to {}", bounds.start(), bounds.end())))
}

/// The nearest within bounds; what is no number becomes the least.
fn within(value: f64, bounds: &RangeInclusive<f64>) -> f64 {
    if value.is_nan() { *bounds.start() } else { value.clamp(*bounds.start(), *bounds.end()) }
}

fn milliseconds(value: i64) -> f64 {
    let bounds = RetryPolicy::DELAY_MS;
    value.clamp(*bounds.start(), *bounds.end()) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn policy(value: Value) -> RetryPolicy {
        serde_json::from_value(value).expect("a policy")
    }

    fn pauses(value: Value) -> Vec<u128> {
        let policy = policy(value);
        [1, 2, 3, 4, 5, u32::MAX].map(|n| policy.delay(n, 0.5).as_millis()).into()
    }

    #[test]
    fn every_member_may_be_left_out() {
        let default = json!({
            "max_retries": 3, "backoff": "exponential", "initial_delay_ms": 1000, "max_delay_ms": 60000,
            "multiplier": 2.0, "jitter": 0.2,
        });
        assert_eq!(serde_json::to_value(policy(json!({}))).unwrap(), default);
        assert_eq!(policy(json!({"max_retries": null, "backoff": null, "jitter": null})), RetryPolicy::default());
        assert_eq!(policy(json!({"max_retries": 7})), RetryPolicy::with_max_retries(7));
        assert_eq!(policy(json!({"multiplier": 3})).multiplier.to_string(), "3");
        assert!(serde_json::from_value::<RetryPolicy>(json!({"backoff": "random"})).is_err());
    }

    #[test]
    fn delays_grow_as_they_are_told_to() {
        assert_eq!(pauses(json!({})), [1_000, 2_000, 4_000, 8_000, 16_000, 60_000]);
        assert_eq!(pauses(json!({"backoff": "linear"})), [1_000, 2_000, 3_000, 4_000, 5_000, 60_000]);
        assert_eq!(pauses(json!({"backoff": "fixed"})), [1_000; 6]);
        assert_eq!(
            pauses(json!({"multiplier": 1.5, "max_delay_ms": 2000})),
            [1_000, 1_500, 2_000, 2_000, 2_000, 2_000]
        );
        assert_eq!(pauses(json!({"initial_delay_ms": 0, "multiplier": 10})), [0; 6]);
        assert_eq!(pauses(json!({"max_delay_ms": 10})), [10; 6]);
    }

    #[test]
    fn chance_moves_a_delay_at_the_cap_too() {
        let policy = policy(json!({"initial_delay_ms": 100_000, "jitter": 0.5}));
        let moved = [0.0, 0.25, 0.5, 1.0].map(|unit| policy.delay(1, unit).as_millis());
        assert_eq!(moved, [30_000, 45_000, 60_000, 90_000]);
        let still = RetryPolicy { jitter: 0.0, ..policy };
        assert_eq!(still.delay(1, 0.0), still.delay(1, 1.0));
    }

    #[test]
    fn what_the_other_side_asks_for_raises_a_delay_up_to_an_hour() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_hours(1));
        assert_eq!(raised(second, None), second);
        assert_eq!(raised(second, Some(Duration::ZERO)), second);
        assert_eq!(raised(second, Some(second * 9)), second * 9);
        assert_eq!(raised(second, Some(Duration::MAX)), hour);
        assert_eq!(raised(hour * 3, Some(hour * 9)), hour * 3);
    }

    #[test]
    fn each_number_out_of_bounds_is_told_by_its_path() {
        let told = |value| {
            let problems = policy(value).problems("steps[2].retry_policy").into_iter();
            problems.map(|problem| format!("{} {}", problem.path, problem.message)).collect::<Vec<_>>()
        };
        let worst = json!({
            "max_retries": 101, "initial_delay_ms": -1, "max_delay_ms": 86_400_001, "multiplier": 0.9, "jitter": 1.1,
        });
        assert_eq!(
            told(worst),
            [
                "steps[2].retry_policy.max_retries must be from 0 to 100",
                "steps[2].retry_policy.initial_delay_ms must be from 0 to 86400000",
                "steps[2].retry_policy.max_delay_ms must be from 0 to 86400000",
                "steps[2].retry_policy.multiplier must be from 1 to 10",
                "steps[2].retry_policy.jitter must be from 0 to 1",
            ]
        );
        let least = json!({
            "max_retries": 0, "initial_delay_ms": 0, "max_delay_ms": 0, "multiplier": 1, "jitter": 0,
        });
        let most = json!({
            "max_retries": 100, "initial_delay_ms": 86_400_000, "max_delay_ms": 86_400_000, "multiplier": 10,
            "jitter": 1,
        });
        assert_eq!((told(least), told(most), told(json!({}))), (vec![], vec![], vec![]));
        let nothing = RetryPolicy { multiplier: f64::NAN, jitter: f64::NAN, ..RetryPolicy::default() };
        assert_eq!(nothing.problems("").len(), 2);
    }

    fn any_policy() -> impl Strategy<Value = RetryPolicy> {
        let backoff = prop_oneof![Just(Backoff::Exponential), Just(Backoff::Linear), Just(Backoff::Fixed)];
        let numbers = (any::<i64>(), any::<i64>(), any::<i64>(), any::<f64>(), any::<f64>());
        (backoff, numbers).prop_map(|(backoff, (max_retries, initial_delay_ms, max_delay_ms, multiplier, jitter))| {
            RetryPolicy { max_retries, backoff, initial_delay_ms, max_delay_ms, multiplier, jitter }
        })
    }

    fn sound_policy() -> impl Strategy<Value = RetryPolicy> {
        let numbers = (0..=100_i64, 0..=86_400_000_i64, 0..=86_400_000_i64, 1.0..=10.0_f64, 0.0..=1.0_f64);
        (any_policy(), numbers).prop_map(|(any, (max_retries, initial_delay_ms, max_delay_ms, multiplier, jitter))| {
            RetryPolicy { max_retries, initial_delay_ms, max_delay_ms, multiplier, jitter, ..any }
        })
    }

    proptest! {
        #[test]
        fn no_number_panics_or_waits_beyond_two_days(policy in any_policy(), n: u32, unit in any::<f64>()) {
            prop_assert!(policy.delay(n, unit) <= DAY * 2);
            prop_assert!(policy.delay(n, f64::NAN) <= DAY * 2);
            prop_assert!((0..=100).contains(&policy.retries()));
        }

        #[test]
        fn a_delay_is_the_capped_one_give_or_take_jitter(policy in sound_policy(), n in 1..60_u32, unit in 0.0..1.0) {
            prop_assert_eq!(policy.problems(""), vec![]);
            let first = policy.initial_delay_ms as f64;
            let exact = match policy.backoff {
                Backoff::Fixed => first,
                Backoff::Linear => first * f64::from(n),
                Backoff::Exponential => (1..n).fold(first, |delay, _| delay * policy.multiplier),
            };
            let capped = exact.min(policy.max_delay_ms as f64);
            let delay = policy.delay(n, unit).as_secs_f64() * 1_000.0;
            prop_assert!(delay >= capped * (1.0 - policy.jitter) * 0.999_999 - 1e-3, "{delay} {capped}");
            prop_assert!(delay <= capped * (1.0 + policy.jitter) * 1.000_001 + 1e-3, "{delay} {capped}");
        }

        #[test]
        fn a_later_retry_never_waits_less(policy in any_policy(), n: u32, unit in 0.0..1.0) {
            prop_assert!(policy.delay(n, unit) <= policy.delay(n.saturating_add(1), unit));
        }

        #[test]
        fn what_is_kept_is_read_back(policy in sound_policy()) {
            let kept = serde_json::to_value(&policy).unwrap();
            prop_assert_eq!(serde_json::from_value::<RetryPolicy>(kept).unwrap(), policy);
        }
    }
}

//! `wait.sleep`: a timer that no process keeps.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Map, Value, json};

use super::ATTEMPTS;
use crate::{
    domain::saga::{Nature, Outcome, Performs, check::Rules, fields::Fields},
    services::sagas::{Action, Attempt},
};

pub struct Sleep;

enum End {
    After(Duration),
    At(DateTime<Utc>),
}

/// None where it is not known yet.
fn read(fields: &mut Fields<'_>) -> Option<End> {
    fields.exactly_one(&["duration", "until"]);
    if let Some(duration) = fields.duration("duration") {
        return Some(End::After(duration));
    }
    match DateTime::parse_from_rfc3339(&fields.text("until")?) {
        Ok(until) => Some(End::At(until.to_utc())),
        Err(_) => {
            fields.problem("until", "must be a time (e.g., 2030-01-31T12:00:00Z)");
            None
        }
    }
}

fn until(config: &Map<String, Value>, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, String> {
    match super::read(config, read)? {
        None => Err("config must hold exactly one of duration, until".into()),
        Some(End::At(until)) => Ok(Some(until)),
        Some(End::After(duration)) => {
            let end = TimeDelta::from_std(duration).ok().and_then(|duration| now.checked_add_signed(duration));
            end.map(Some).ok_or_else(|| "config.duration: is too long".into())
        }
    }
}

fn over(_: &Map<String, Value>) -> Outcome {
    Outcome::Done(json!({}))
}

impl Rules for Sleep {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        false
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        read(fields);
    }
}

impl Action for Sleep {
    fn name(&self) -> &'static str {
        "wait.sleep"
    }

    fn nature(&self) -> Nature {
        Nature { performs: Performs::Waits { until, over, answerable: false }, ..ATTEMPTS }
    }

    fn run<'a>(&'a self, _: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { Outcome::never("a wait cannot compensate") }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
    }

    fn end(config: Value) -> Result<Option<DateTime<Utc>>, String> {
        until(config.as_object().expect("an object"), now())
    }

    #[test]
    fn it_ends_after_a_while_or_at_a_time() {
        assert_eq!(end(json!({"duration": "1m30s"})), Ok(Some(now() + TimeDelta::seconds(90))));
        assert_eq!(end(json!({"duration": null, "until": "2027-01-15T09:00:00+01:00"})), Ok(Some(now())));
        let past = end(json!({"until": "2000-01-01T00:00:00Z"})).expect("a time is a time");
        assert!(past.is_some_and(|past| past < now()), "it is over at once");
    }

    #[test]
    fn it_needs_one_of_both_and_no_more() {
        for config in [
            json!({}),
            json!({"duration": "1s", "until": "2030-01-01T00:00:00Z"}),
            json!({"duration": "soon"}),
            json!({"duration": "-1s"}),
            json!({"duration": 5}),
            json!({"until": "tomorrow"}),
            json!({"until": "2030-01-01"}),
        ] {
            assert!(end(config.clone()).is_err(), "{config}");
        }
    }
}

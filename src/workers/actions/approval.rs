//! `approval.request`: a person decides. The engine takes the answer; here is when it is too late.

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Map, Value};

use super::ATTEMPTS;
use crate::{
    domain::saga::{Nature, Outcome, Performs, check::Rules, fields::Fields},
    services::sagas::{Action, Attempt},
};

pub struct Approval;

/// How long the answer is waited for.
fn read(fields: &mut Fields<'_>) -> Option<std::time::Duration> {
    fields.required_text("message");
    fields.one_of("on_timeout", &["reject"]);
    fields.duration("timeout")
}

fn until(config: &Map<String, Value>, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, String> {
    let timeout = super::read(config, read)?;
    let end = timeout.map(|timeout| TimeDelta::from_std(timeout).ok().and_then(|t| now.checked_add_signed(t)));
    end.map(|end| end.ok_or_else(|| "config.timeout: is too long".into())).transpose()
}

fn over(_: &Map<String, Value>) -> Outcome {
    Outcome::never("timed out: nobody decided")
}

impl Rules for Approval {
    fn may_compensate(&self) -> bool {
        false
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

impl Action for Approval {
    fn name(&self) -> &'static str {
        "approval.request"
    }

    fn nature(&self) -> Nature {
        Nature { performs: Performs::Waits { until, over, answerable: true }, ..ATTEMPTS }
    }

    fn run<'a>(&'a self, _: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { Outcome::never("a wait cannot compensate") }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn end(config: Value) -> Result<Option<DateTime<Utc>>, String> {
        until(config.as_object().expect("an object"), DateTime::UNIX_EPOCH)
    }

    #[test]
    fn it_waits_for_ever_or_until_its_time_is_up() {
        assert_eq!(end(json!({"message": "go?"})), Ok(None));
        let hour = json!({"message": "go?", "timeout": "1h", "on_timeout": "reject"});
        assert_eq!(end(hour), Ok(Some(DateTime::UNIX_EPOCH + TimeDelta::hours(1))));
    }

    #[test]
    fn it_says_what_is_to_be_decided_and_knows_one_way_out() {
        for config in [
            json!({}),
            json!({"message": ""}),
            json!({"message": "go?", "timeout": "soon"}),
            json!({"message": "go?", "timeout": "1h", "on_timeout": "shrug"}),
        ] {
            assert!(end(config.clone()).is_err(), "{config}");
        }
    }
}

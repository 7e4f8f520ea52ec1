//! What the two actions with pipelines share: their config, their output, and what an error of the CI
//! server means for a step.

use serde_json::{Value, json};

use crate::{
    domain::{
        pipeline::Pipeline,
        saga::{Outcome, fields::Fields},
    },
    error::{Error, Kind},
    services::sagas::{Attempt, outcome},
};

/// Why there is nothing to ask.
pub const UNCONFIGURED: &str = "needs RDEV_WOODPECKER_URL and RDEV_WOODPECKER_TOKEN, which are not both set";

pub struct Config {
    pub project: String,
    pub number: i64,
}

impl Config {
    pub fn read(fields: &mut Fields<'_>) -> Self {
        Self { project: fields.project(), number: fields.required_whole("number", 1..=i64::MAX) }
    }
}

pub fn output(pipeline: &Pipeline) -> Value {
    json!({"number": pipeline.number, "status": pipeline.status.text()})
}

pub fn failed(attempt: &Attempt, error: &Error) -> Outcome {
    let said = error.message().to_owned();
    match (error.stable_code(), error.kind()) {
        ("CIRCUIT_OPEN", _) => {
            let wait = error.wait().and_then(|wait| chrono::TimeDelta::from_std(wait).ok()).unwrap_or_default();
            Outcome::PutOff { until: attempt.sagas().now() + wait, why: said }
        }
        // Neither the settings nor the token change while it waits.
        ("CI_NOT_CONFIGURED" | "CI_REFUSED", _) => Outcome::never(said),
        _ if !error.details().contains_key("may_have_begun") => outcome(error),
        (_, Kind::Timeout) => Outcome::CutOff(said),
        _ => Outcome::Broken(said),
    }
}

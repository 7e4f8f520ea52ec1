//! How an attempt ended, as its action says.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Done(Value),
    Failed {
        error: String,
        retry: Retry,
        /// It may have done a part all the same.
        partly: bool,
    },
    /// Cut off before its result was known.
    CutOff(String),
    /// The other side broke off: a failure like another, but nobody knows what it did before.
    Broken(String),
    /// It was not made; it may be at this time.
    PutOff {
        until: DateTime<Utc>,
        why: String,
    },
}

impl Outcome {
    /// Another attempt would fail the same way.
    pub fn never(error: impl Into<String>) -> Self {
        Self::Failed { error: error.into(), retry: Retry::Never, partly: false }
    }

    /// Another attempt may go better.
    pub fn failed(error: impl Into<String>) -> Self {
        Self::Failed { error: error.into(), retry: Retry::After(None), partly: false }
    }
}

/// Shorter words stand in too many texts by chance.
const SECRET_MIN: usize = 6;

impl Outcome {
    /// The same without these words, wherever they stand.
    #[must_use]
    pub fn without(self, secrets: &[String]) -> Self {
        let secrets: Vec<&String> = secrets.iter().filter(|secret| secret.len() >= SECRET_MIN).collect();
        if secrets.is_empty() {
            return self;
        }
        let clean =
            |text: String| secrets.iter().fold(text, |text, secret| text.replace(secret.as_str(), "[redacted]"));
        match self {
            Self::Done(value) => Self::Done(each_text(value, &clean)),
            Self::Failed { error, retry, partly } => Self::Failed { error: clean(error), retry, partly },
            Self::CutOff(why) => Self::CutOff(clean(why)),
            Self::Broken(why) => Self::Broken(clean(why)),
            Self::PutOff { until, why } => Self::PutOff { until, why: clean(why) },
        }
    }
}

fn each_text(value: Value, change: &impl Fn(String) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(items) => items.into_iter().map(|item| each_text(item, change)).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(name, member)| (change(name), each_text(member, change))).collect()
        }
        other => other,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Never,
    /// By policy; not before what the other side asked for.
    After(Option<Duration>),
}

/// As the log words it.
pub(super) fn words(outcome: &Outcome) -> (&'static str, Option<String>) {
    match outcome {
        Outcome::Done(_) => ("completed", None),
        Outcome::Failed { error, .. } | Outcome::Broken(error) => ("failed", Some(error.clone())),
        Outcome::CutOff(why) => ("cut_off", Some(why.clone())),
        Outcome::PutOff { why, .. } => ("put_off", Some(why.clone())),
    }
}

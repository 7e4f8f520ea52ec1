//! A step as it comes over the wire, and as it is kept. Nothing is looked at here but its form:
//! `check.rs` says what is wrong with it, in [`Problem`]s.
//!
//! Values of `secret_headers` are masked here for everybody who is shown a step.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::retry::RetryPolicy;

/// Problems that are told at once; one more says that there are others.
pub const PROBLEMS_MAX: usize = 1_000;
/// What takes the place of a secret.
const REDACTED: &str = "[redacted]";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(expecting = "a step")]
pub struct StepSpec {
    /// At most 128 characters, no `/`, no `}`.
    #[serde(default, deserialize_with = "or_empty")]
    #[schema(required = true, max_length = 128)]
    pub name: String,
    #[serde(default, deserialize_with = "or_empty")]
    #[schema(required = true)]
    pub action: String,
    /// Names of steps. With none anywhere the steps run one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depends_on: Option<Vec<String>>,
    /// The action that undoes it.
    #[serde(default, deserialize_with = "unless_empty", skip_serializing_if = "Option::is_none")]
    pub compensate: Option<String>,
    /// Of the compensation; `${output}` is the step's. Left out: `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub compensate_config: Option<Map<String, Value>>,
    /// As the action wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_policy: Option<RetryPolicy>,
    /// Of one attempt, such as `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// An attempt that was cut off may be made again. True, but for `command.run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotent: Option<bool>,
    /// Where it is false or null, the step is skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

/// One thing that is wrong with what was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// Such as `steps[12].config.url`.
    pub path: String,
    /// Reads on from the path: `must be a string`.
    pub message: String,
}

impl StepSpec {
    /// The action that undoes it, if it names one.
    pub fn compensation(&self) -> Option<&str> {
        self.compensate.as_deref().filter(|action| !action.is_empty())
    }

    /// When it runs, if that is not always.
    pub fn condition(&self) -> Option<&str> {
        self.when.as_deref().filter(|when| !when.trim().is_empty())
    }

    /// As it may be shown.
    #[must_use]
    pub fn masked(&self) -> Self {
        Self {
            config: self.config.as_ref().map(masked),
            compensate_config: self.compensate_config.as_ref().map(masked),
            ..self.clone()
        }
    }
}

/// A config without the values of its `secret_headers`, its own and those of the steps within.
#[must_use]
pub fn masked(config: &Map<String, Value>) -> Map<String, Value> {
    let mut config = config.clone();
    mask(&mut config);
    config
}

impl Problem {
    /// Longer ones are cut, so that all of them together stay small whatever was sent.
    const PATH_MAX: usize = 512;
    const MESSAGE_MAX: usize = 2_000;

    pub fn new(path: &str, message: &str) -> Self {
        Self { path: cut(path, Self::PATH_MAX), message: cut(message, Self::MESSAGE_MAX) }
    }

    /// Adds one to those found so far. Beyond [`PROBLEMS_MAX`] one says that there are others.
    pub fn add(problems: &mut Vec<Self>, path: &str, message: &str) {
        if problems.len() < PROBLEMS_MAX {
            problems.push(Self::new(path, message));
        } else if problems.len() == PROBLEMS_MAX {
            let message = format!("there are more problems than these {PROBLEMS_MAX}; mend them and try again");
            problems.push(Self::new("", &message));
        }
    }

    /// No further one would be told.
    pub fn are_enough(problems: &[Self]) -> bool {
        problems.len() > PROBLEMS_MAX
    }
}

/// A text in quotes, as a message shows it.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text, 128))
}

/// The first so many characters.
pub(super) fn cut(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn mask(config: &mut Map<String, Value>) {
    match config.get_mut("secret_headers") {
        Some(Value::Object(headers)) => headers.values_mut().for_each(|value| *value = REDACTED.into()),
        None | Some(Value::Null) => {}
        Some(other) => *other = REDACTED.into(),
    }
    let Some(Value::Array(steps)) = config.get_mut("steps") else { return };
    for step in steps.iter_mut().filter_map(Value::as_object_mut) {
        for name in ["config", "compensate_config"] {
            if let Some(Value::Object(config)) = step.get_mut(name) {
                mask(config);
            }
        }
    }
}

fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn unless_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> StepSpec {
        serde_json::from_value(value).expect("a step")
    }

    #[test]
    fn what_was_left_out_stays_out() {
        let given = json!({"name": "a", "action": "noop"});
        assert_eq!(serde_json::to_value(spec(given.clone())).unwrap(), given);
    }

    #[test]
    fn all_that_was_given_is_kept() {
        let given = json!({
            "name": "a",
            "action": "http.request",
            "depends_on": ["b"],
            "compensate": "noop",
            "compensate_config": {"x": 1},
            "config": {"url": "${vars.url}"},
            "retry_policy": {
                "max_retries": 1, "backoff": "linear", "initial_delay_ms": 2, "max_delay_ms": 3, "multiplier": 4.5,
                "jitter": 0.5,
            },
            "timeout": "5s",
            "idempotent": false,
            "when": "true",
        });
        assert_eq!(serde_json::to_value(spec(given.clone())).unwrap(), given);
    }

    #[test]
    fn null_and_nothing_are_one() {
        let nulls = json!({
            "name": null, "action": null, "depends_on": null, "compensate": null, "compensate_config": null,
            "config": null, "retry_policy": null, "timeout": null, "idempotent": null, "when": null,
        });
        assert_eq!(spec(nulls), StepSpec::default());
        assert_eq!(spec(json!({"compensate": "", "more": 1})), StepSpec::default());
        let unparsed = StepSpec { compensate: Some(String::new()), ..StepSpec::default() };
        assert_eq!(unparsed.compensation(), None);
    }

    #[test]
    fn secret_headers_are_masked_wherever_steps_are() {
        let config =
            |secret: &str| json!({"headers": {"X": "shown"}, "secret_headers": {"A": secret, "X-Key": secret}});
        let step = |secret: &str| {
            let child = json!({
                "action": "http.request", "config": config(secret), "compensate_config": config(secret),
            });
            let grandchild = json!({"action": "saga.start", "config": {"steps": [child]}});
            json!({
                "name": "a", "action": "saga.start",
                "config": {"secret_headers": {"A": secret}, "steps": [child, 7, null, grandchild]},
                "compensate_config": config(secret),
            })
        };
        assert_eq!(spec(step("hush")).masked(), spec(step("[redacted]")));
    }

    #[test]
    fn what_is_no_object_of_headers_is_masked_whole() {
        let shown = |secrets: Value| masked(json!({ "secret_headers": secrets }).as_object().unwrap());
        assert_eq!(Value::from(shown(json!("hush"))), json!({"secret_headers": "[redacted]"}));
        assert_eq!(Value::from(shown(json!(["hush"]))), json!({"secret_headers": "[redacted]"}));
        assert_eq!(Value::from(shown(json!({"A": ["hush"]}))), json!({"secret_headers": {"A": "[redacted]"}}));
        assert_eq!(Value::from(shown(json!(null))), json!({"secret_headers": null}));
    }

    #[test]
    fn problems_are_few_and_short() {
        let mut problems = Vec::new();
        for _ in 0..PROBLEMS_MAX * 2 {
            assert!(!Problem::are_enough(&problems) || problems.len() == PROBLEMS_MAX + 1);
            Problem::add(&mut problems, &"ä".repeat(5_000), &"ä".repeat(5_000));
        }
        assert_eq!(problems.len(), PROBLEMS_MAX + 1);
        assert!(Problem::are_enough(&problems));
        assert!(problems.iter().all(|problem| problem.path.len() + problem.message.len() < 5_100));
        assert!(problems[PROBLEMS_MAX].message.starts_with("there are more"));
    }

    proptest! {
        #[test]
        fn what_is_kept_is_read_back(
            name in ".{0,4}",
            depends_on: Option<Vec<String>>,
            compensate in proptest::option::of(".{1,4}"),
            idempotent: Option<bool>,
            when: Option<String>,
            retries in proptest::option::of(any::<i64>()),
        ) {
            let retry_policy = retries.map(RetryPolicy::with_max_retries);
            let step = StepSpec {
                name, depends_on, compensate, retry_policy, idempotent, when, ..StepSpec::default()
            };
            let kept = serde_json::to_string(&step).unwrap();
            prop_assert_eq!(serde_json::from_str::<StepSpec>(&kept).unwrap(), step);
        }

        #[test]
        fn a_cut_text_is_a_beginning(text in "\\PC{0,12}", most in 0..12_usize) {
            let shown = cut(&text, most);
            prop_assert!(shown.chars().count() <= most + 1);
            prop_assert!(shown == text || text.starts_with(shown.strip_suffix('…').unwrap()));
        }
    }
}

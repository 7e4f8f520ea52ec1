//! The one way in which an action says what its config must be: it reads the members that it
//! wants, and what is wrong with them is told with their paths.
//!
//! The same words serve twice. When a saga is made, texts may hold references: such a text
//! passes, and reads as the default value ([`Fields::unresolved`]). When the step runs all is
//! resolved, and `${` is a text like another ([`Fields::new`]).

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use serde_json::{Map, Value};

use super::{
    reference::contains_reference,
    spec::{Problem, quoted},
};
use crate::domain::{durations, ids::ProjectId};

const STATUSES: RangeInclusive<i64> = 100..=599;
pub(super) const NUL: &str = "must not contain NUL characters";

/// The members of a config. What is null counts as left out.
pub struct Fields<'a> {
    members: &'a Map<String, Value>,
    at: &'a str,
    problems: &'a mut Vec<Problem>,
    may_refer: bool,
}

type Read<T> = Result<T, String>;

impl<'a> Fields<'a> {
    /// Of a step that runs. `at` is the path of the config itself.
    pub fn new(members: &'a Map<String, Value>, at: &'a str, problems: &'a mut Vec<Problem>) -> Self {
        Self { members, at, problems, may_refer: false }
    }

    /// Of a step that is to run one day. NUL characters and the references themselves are
    /// looked at elsewhere, for the config as a whole.
    pub(super) fn unresolved(members: &'a Map<String, Value>, at: &'a str, problems: &'a mut Vec<Problem>) -> Self {
        Self { members, at, problems, may_refer: true }
    }

    /// Not empty.
    pub fn required_text(&mut self, name: &str) -> String {
        if !self.require(name) {
            return String::new();
        }
        let text = self.text(name);
        if text.as_ref().is_some_and(String::is_empty) {
            self.problem(name, "must not be empty");
        }
        text.unwrap_or_default()
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.read(name, |fields, value| fields.plain(value).map(str::to_owned))
    }

    /// More than zero.
    pub fn duration(&mut self, name: &str) -> Option<Duration> {
        self.read(name, |_, value| {
            let text = value.as_str().ok_or("must be a duration (e.g., 30s, 5m)")?;
            durations::parse_positive(text).map_err(|error| error.to_string())
        })
    }

    /// At least one.
    pub fn required_texts(&mut self, name: &str) -> Vec<String> {
        if !self.require(name) {
            return Vec::new();
        }
        let texts = self.texts(name);
        if texts.as_ref().is_some_and(Vec::is_empty) {
            self.problem(name, "must not be empty");
        }
        texts.unwrap_or_default()
    }

    /// Those that hold a reference are empty.
    pub fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        let items = self.list(name)?;
        let item = |(at, value)| self.part(&format!("{name}[{at}]"), value);
        Some((0..items.len()).zip(items).map(item).collect())
    }

    /// An object of texts; those that hold a reference are empty, but their keys are there.
    pub fn text_map(&mut self, name: &str) -> BTreeMap<String, String> {
        let members =
            self.read(name, |_, value| value.as_object().ok_or_else(|| "must be an object of strings".to_owned()));
        let mut texts = BTreeMap::new();
        for (key, value) in members.into_iter().flatten() {
            if !self.may_refer && key.contains('\0') {
                self.problem(name, NUL);
            }
            texts.insert(key.clone(), self.part(&format!("{name}.{key}"), value));
        }
        texts
    }

    /// As it is, with the references that are within. `None` where it is one.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.read(
            name,
            |fields, value| {
                if !fields.may_refer && has_nul(value) { Err(NUL.to_owned()) } else { Ok(value.clone()) }
            },
        )
    }

    pub fn flag(&mut self, name: &str) -> Option<bool> {
        self.read(name, |_, value| match value {
            Value::Bool(flag) => Ok(*flag),
            // A variable is always a text.
            Value::String(text) if text == "true" => Ok(true),
            Value::String(text) if text == "false" => Ok(false),
            _ => Err("must be true or false".to_owned()),
        })
    }

    pub fn whole(&mut self, name: &str, range: RangeInclusive<i64>) -> Option<i64> {
        self.read(name, |_, value| whole_number(value, &range))
    }

    pub fn required_whole(&mut self, name: &str, range: RangeInclusive<i64>) -> i64 {
        let default = *range.start();
        if self.require(name) { self.whole(name, range).unwrap_or(default) } else { default }
    }

    pub fn one_of(&mut self, name: &str, choices: &[&str]) -> Option<String> {
        self.read(name, |_, value| {
            let chosen = value.as_str().filter(|text| choices.contains(text));
            chosen.map(str::to_owned).ok_or_else(|| format!("must be {}", either(choices)))
        })
    }

    /// One status of HTTP, or a list of them, of which those that are references are left out.
    pub fn statuses(&mut self, name: &str) -> Option<Vec<u16>> {
        if !matches!(self.members.get(name), Some(Value::Array(_))) {
            return self.read(name, |_, value| status(value)).map(|one| vec![one]);
        }
        let items = self.list(name)?;
        if items.is_empty() {
            self.problem(name, "must not be empty");
        }
        let mut statuses = Vec::with_capacity(items.len());
        for (at, value) in items.iter().enumerate() {
            match status(value) {
                _ if self.refers(value) => {}
                Ok(status) => statuses.push(status),
                Err(message) => self.problem(&format!("{name}[{at}]"), &message),
            }
        }
        Some(statuses)
    }

    /// The `project_id`, which nothing can do without.
    pub fn project(&mut self) -> String {
        const NAME: &str = "project_id";
        if !self.require(NAME) {
            return String::new();
        }
        let id = self.read(NAME, |_, value| {
            let id = value.as_str().and_then(|text| ProjectId::parse(text).ok());
            let id = id.ok_or("must be the id of a project: lower-case letters, digits and hyphens, at most 63")?;
            Ok(id.as_str().to_owned())
        });
        id.unwrap_or_default()
    }

    /// A problem of the config as a whole, unless one of these is there and no other.
    pub fn exactly_one(&mut self, names: &[&str]) {
        if names.iter().filter(|name| self.has(name)).count() != 1 {
            let message = format!("must hold exactly one of {}", names.join(", "));
            self.problem("", &message);
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.given(name).is_some()
    }

    /// It holds a reference somewhere, so it will be another value when the step runs.
    pub fn is_open(&self, name: &str) -> bool {
        self.may_refer && self.given(name).is_some_and(holds_reference)
    }

    /// With a member, or with the config as a whole where the name is empty. The message reads
    /// on from the path.
    pub fn problem(&mut self, name: &str, message: &str) {
        if Problem::are_enough(self.problems) {
            return;
        }
        let dot = if name.is_empty() || self.at.is_empty() { "" } else { "." };
        Problem::add(self.problems, &format!("{}{dot}{name}", self.at), message);
    }

    fn given(&self, name: &str) -> Option<&'a Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    fn require(&mut self, name: &str) -> bool {
        let has = self.has(name);
        if !has {
            self.problem(name, "is required");
        }
        has
    }

    fn read<T>(&mut self, name: &str, read: impl FnOnce(&Self, &'a Value) -> Read<T>) -> Option<T> {
        let value = self.given(name).filter(|value| !self.refers(value))?;
        read(self, value).map_err(|message| self.problem(name, &message)).ok()
    }

    fn list(&mut self, name: &str) -> Option<&'a Vec<Value>> {
        self.read(name, |_, value| value.as_array().ok_or_else(|| "must be a list".to_owned()))
    }

    /// One text of several.
    fn part(&mut self, name: &str, value: &Value) -> String {
        if self.refers(value) {
            return String::new();
        }
        let text = self.plain(value).map(str::to_owned);
        text.map_err(|message| self.problem(name, &message)).unwrap_or_default()
    }

    fn plain<'v>(&self, value: &'v Value) -> Read<&'v str> {
        let text = value.as_str().ok_or("must be a string")?;
        if !self.may_refer && text.contains('\0') { Err(NUL.to_owned()) } else { Ok(text) }
    }

    fn refers(&self, value: &Value) -> bool {
        self.may_refer && value.as_str().is_some_and(contains_reference)
    }
}

/// Digits in a text will do: a variable is always a text.
fn whole_number(value: &Value, range: &RangeInclusive<i64>) -> Read<i64> {
    let number = value.as_i64().or_else(|| value.as_str()?.parse().ok());
    number.filter(|number| range.contains(number)).ok_or_else(|| match (*range.start(), *range.end()) {
        (least, i64::MAX) => format!("must be a whole number of at least {least}"),
        (least, most) => format!("must be a whole number from {least} to {most}"),
    })
}

fn status(value: &Value) -> Read<u16> {
    let number = whole_number(value, &STATUSES).ok().and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| "must be a status from 100 to 599".to_owned())
}

fn either(choices: &[&str]) -> String {
    choices.iter().map(|choice| quoted(choice)).collect::<Vec<_>>().join(" or ")
}

fn holds_reference(value: &Value) -> bool {
    match value {
        Value::String(text) => contains_reference(text),
        Value::Array(items) => items.iter().any(holds_reference),
        Value::Object(members) => members.values().any(holds_reference),
        _ => false,
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => members.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}

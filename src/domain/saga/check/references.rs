//! To whom a step's references may lead: to variables there are, and to steps that are done
//! whenever it runs. Everything else is told, with the place of the text that holds it.

use std::{collections::HashMap, fmt};

use serde_json::{Map, Value};

use super::Vars;
use crate::domain::saga::{
    graph::Ancestors,
    reference::{Reference, references},
    spec::{Problem, cut, quoted},
};

/// Where a reference stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Config,
    Compensation,
    When,
}

/// What a step sees.
pub(super) struct Scope<'a> {
    /// The step's own position.
    pub own: usize,
    pub names: &'a [&'a str],
    pub positions: &'a HashMap<&'a str, usize>,
    pub ancestors: &'a Ancestors,
    pub vars: Vars<'a>,
}

/// A text of a config.
#[derive(Debug, Clone, Copy)]
pub(super) enum Text<'a> {
    Key(&'a str),
    Value(&'a Value, &'a str),
}

/// Where a text stands. It is put into words only where it must be told: there may be very
/// many texts below very long keys.
#[derive(Debug, Clone, Copy)]
pub(super) enum Path<'a> {
    Root(&'a str),
    Key(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl Scope<'_> {
    /// Tells what is wrong with the references of a text. One and the same is told once.
    pub fn follow(&self, text: Text<'_>, path: &Path<'_>, place: Place, problems: &mut Vec<Problem>) {
        let Text::Value(value, text) = text else { return };
        if !text.contains("${") || Problem::are_enough(problems) {
            return;
        }
        let mut last = None;
        for (_, reference) in references(value) {
            let message = match reference {
                Ok(reference) => self.refusal(&reference, place),
                Err(malformed) => Some(malformed.message),
            };
            if let Some(message) = message.filter(|message| last.as_ref() != Some(message)) {
                Problem::add(problems, &path.to_string(), &message);
                last = Some(message);
            }
        }
    }

    /// Why a reference leads nowhere.
    pub fn refusal(&self, reference: &Reference, place: Place) -> Option<String> {
        let reference = reference.settled(|name| self.positions.contains_key(name));
        let why = match &*reference {
            Reference::Var(name) => match self.vars {
                Vars::Known(vars) if !vars.contains_key(name) => "there is no such variable".to_owned(),
                _ => return None,
            },
            Reference::Output { .. } => match place {
                Place::Compensation => return None,
                Place::Config => "there is no output before the step has run: use compensate_config".to_owned(),
                Place::When => "there is no output before the step has run".to_owned(),
            },
            Reference::Step { name, .. } => self.why_not_before(name, place)?,
        };
        Some(format!("refers to ${{{}}}, but {why}", cut(&reference.to_string(), 200)))
    }

    fn why_not_before(&self, name: &str, place: Place) -> Option<String> {
        match self.positions.get(name) {
            None => Some(format!("no step is called {}", quoted(name))),
            Some(_) if name == self.names[self.own] => Some(match place {
                Place::Compensation => "its own output is ${output} here".to_owned(),
                Place::Config | Place::When => "a step cannot refer to itself".to_owned(),
            }),
            Some(other) if self.ancestors.contains(self.own, *other) => None,
            Some(_) => Some(format!("it does not depend on {}, add it to depends_on", quoted(name))),
        }
    }
}

impl<'a> Text<'a> {
    pub fn shown(self) -> &'a str {
        match self {
            Self::Key(text) | Self::Value(_, text) => text,
        }
    }
}

/// As `steps[0].config.headers.X-Id` or `steps[0].config.args[2]`.
impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(at) => f.write_str(at),
            Self::Key(parent, key) => write!(f, "{parent}.{}", cut(key, 200)),
            Self::Item(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

/// Each string and each key of a config that stands at `at`, with the member that it belongs
/// to. A key has the path of its object.
pub(super) fn each_text(members: &Map<String, Value>, at: &str, look: &mut dyn FnMut(&Value, &Path<'_>, Text<'_>)) {
    let root = Path::Root(at);
    for (key, member) in members {
        look(member, &root, Text::Key(key));
        below(member, &Path::Key(&root, key), &mut |path, text| look(member, path, text));
    }
}

fn below(value: &Value, path: &Path<'_>, look: &mut dyn FnMut(&Path<'_>, Text<'_>)) {
    match value {
        Value::String(text) => look(path, Text::Value(value, text)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| below(item, &Path::Item(path, at), look));
        }
        Value::Object(members) => {
            for (key, member) in members {
                look(path, Text::Key(key));
                below(member, &Path::Key(path, key), look);
            }
        }
        _ => {}
    }
}

//! What is found of a project's settings outside of the API, and how it meets what was set by
//! hand: a `ConfigMap`'s word over a pod's, a PATCH over both. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    branch::{BranchName, Protected},
    project::ProjectSettings,
};

/// Those that count for as long as they stand there.
const LASTING: &[&str] = &[
    "name",
    "description",
    "labels",
    "allow_scripts",
    "protected_branches",
    "preview_port",
    "review_command",
    "agent_command",
];
/// Those that count at first sight.
const FIRST: &[&str] = &["default_branch", "import_url"];
/// Their values are texts; anything else is JSON.
const TEXTS: &[&str] = &["name", "description", "default_branch", "import_url"];

/// Places before that are remembered.
const BEFORE_MAX: usize = 8;

/// What is remembered of a project from one sight to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The pod that is its place.
    pub uid: Option<String>,
    /// Pods that were, the latest last.
    pub before: Vec<String>,
    /// The container of it that ran last.
    pub container: Option<String>,
    /// What came from outside and is in force.
    pub applied: BTreeMap<String, Value>,
    /// What was set by hand.
    pub patched: BTreeSet<String>,
    /// What could not be used, for whoever looks at the project.
    pub details: Vec<Value>,
    /// A deletion of it failed in part.
    pub deleting: bool,
}

/// What is said of a project outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub fields: BTreeMap<String, Value>,
    pub details: Vec<Value>,
}

impl Found {
    /// `ConfigMap`s in the order of their names: a later one's word stands.
    pub fn read<'a>(
        description: Option<&str>,
        configs: impl IntoIterator<Item = (&'a str, &'a BTreeMap<String, String>)>,
    ) -> Self {
        let mut found = Self::default();
        if let Some(description) = description {
            found.fields.insert("description".into(), description.into());
        }
        for (name, data) in configs.into_iter().collect::<BTreeMap<_, _>>() {
            for (key, text) in data.iter().filter(|(key, _)| is_known(key)) {
                match value(key, text) {
                    Ok(value) => drop(found.fields.insert(key.clone(), value)),
                    Err(message) => found.details.push(json!({"config_map": name, "key": key, "message": message})),
                }
            }
        }
        found
    }

    pub fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field).and_then(Value::as_str)
    }

    /// The lasting ones.
    pub fn lasting(&self) -> BTreeMap<String, Value> {
        self.fields
            .iter()
            .filter(|(key, _)| LASTING.contains(&key.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }
}

impl Memory {
    /// Whether the place that is seen is another one than was known, so that whoever sees it late would be wrong.
    pub fn differs(&self, seen: Option<&str>) -> bool {
        self.uid.as_deref() != seen
            && (self.uid.is_some() || seen.is_some_and(|seen| self.before.iter().any(|before| before == seen)))
    }

    /// This pod is the place now, or none is.
    pub fn moves(&mut self, place: Option<String>) {
        if self.uid == place {
            return;
        }
        self.before.extend(self.uid.take());
        let over = self.before.len().saturating_sub(BEFORE_MAX);
        self.before.drain(..over);
        self.uid = place;
    }

    /// What of the project has to change so that what was found is in force; nothing where it is.
    pub fn learn(&mut self, id: &str, found: &Found) -> Option<ProjectSettings> {
        let wanted = found.lasting();
        let mut settings = ProjectSettings::default();
        let mut changed = false;
        for field in LASTING.iter().filter(|field| !self.patched.contains(**field)) {
            let (want, had) = (wanted.get(*field), self.applied.get(*field));
            if want == had {
                continue;
            }
            changed = true;
            match want.cloned().or_else(|| otherwise(id, field)) {
                Some(value) => set(&mut settings, field, value),
                None => settings.unset.push(field),
            }
            match want {
                Some(value) => drop(self.applied.insert((*field).to_owned(), value.clone())),
                None => drop(self.applied.remove(*field)),
            }
        }
        self.details.clone_from(&found.details);
        changed.then_some(settings)
    }

    /// From now on these are what was set by hand.
    pub fn set_by_hand(&mut self, settings: &ProjectSettings) {
        let given = [
            ("name", settings.name.is_some()),
            ("description", settings.description.is_some()),
            ("labels", settings.labels.is_some()),
            ("allow_scripts", settings.allow_scripts.is_some()),
            ("protected_branches", settings.protected_branches.is_some()),
            ("preview_port", settings.preview_port.is_some()),
            ("review_command", settings.review_command.is_some()),
            ("agent_command", settings.agent_command.is_some()),
        ];
        let given = given.iter().filter(|(_, is_given)| *is_given).map(|(name, _)| *name);
        self.patched.extend(given.chain(settings.unset.iter().copied()).map(str::to_owned));
    }
}

fn is_known(key: &str) -> bool {
    LASTING.contains(&key) || FIRST.contains(&key)
}

/// A field's value in its sound form.
fn value(key: &str, text: &str) -> Result<Value, String> {
    if text.contains('\0') {
        return Err("a NUL byte".into());
    }
    if TEXTS.contains(&key) {
        return match key {
            "name" if text.trim().is_empty() => Err("must not be empty".into()),
            "default_branch" => BranchName::parse(text).map(|_| text.into()).map_err(|error| error.to_string()),
            _ => Ok(text.into()),
        };
    }
    let value: Value = serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
    let words = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).map_err(|error| error.to_string());
    match key {
        "allow_scripts" => value.as_bool().map(drop).ok_or("must be true or false")?,
        "preview_port" => {
            value
                .as_u64()
                .filter(|port| (1..=65_535).contains(port))
                .map(drop)
                .ok_or("must be a port from 1 to 65535")?;
        }
        "labels" => {
            drop(serde_json::from_value::<BTreeMap<String, String>>(value.clone()).map_err(|error| error.to_string())?);
        }
        "protected_branches" => drop(Protected::new("", &words(&value)?).map_err(|error| error.to_string())?),
        _ => {
            if words(&value)?.first().is_none_or(String::is_empty) {
                return Err("must be a list of words, the program first".into());
            }
        }
    }
    Ok(value)
}

/// What is in force where nobody says anything; nothing for those that may be without.
fn otherwise(id: &str, field: &str) -> Option<Value> {
    match field {
        "name" => Some(id.into()),
        "description" => Some("".into()),
        "labels" => Some(json!({})),
        "allow_scripts" => Some(true.into()),
        "protected_branches" => Some(json!([])),
        _ => None,
    }
}

fn set(settings: &mut ProjectSettings, field: &str, value: Value) {
    match field {
        "name" => settings.name = serde_json::from_value(value).ok(),
        "description" => settings.description = serde_json::from_value(value).ok(),
        "labels" => settings.labels = serde_json::from_value(value).ok(),
        "allow_scripts" => settings.allow_scripts = value.as_bool(),
        "protected_branches" => settings.protected_branches = serde_json::from_value(value).ok(),
        "preview_port" => settings.preview_port = serde_json::from_value(value).ok(),
        "review_command" => settings.review_command = serde_json::from_value(value).ok(),
        "agent_command" => settings.agent_command = serde_json::from_value(value).ok(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_went_is_doubted_when_it_is_seen_again() {
        let mut memory = Memory::default();
        assert!(!memory.differs(None) && !memory.differs(Some("a")), "the first is believed");
        memory.moves(Some("a".into()));
        assert!(memory.differs(None) && memory.differs(Some("b")) && !memory.differs(Some("a")));
        memory.moves(None);
        assert!(memory.differs(Some("a")) && !memory.differs(Some("b")) && !memory.differs(None));
        for one in 0..20 {
            memory.moves(Some(one.to_string()));
        }
        assert_eq!((memory.before.len(), memory.uid.as_deref()), (BEFORE_MAX, Some("19")));
    }

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_config_map_stands_over_the_pod_and_a_later_one_over_an_earlier() {
        let (a, b) = (data(&[("description", "a"), ("name", "A")]), data(&[("description", "b"), ("odd", "x")]));
        let found = Found::read(Some("pod"), [("b", &b), ("a", &a)]);
        assert_eq!((found.text("description"), found.text("name")), (Some("b"), Some("A")));
        assert_eq!(found.fields.len(), 2);
    }

    #[test]
    fn a_bad_value_is_told_and_the_others_count() {
        let bad = data(&[
            ("preview_port", "70000"),
            ("allow_scripts", "yes"),
            ("agent_command", "[]"),
            ("labels", "{\"a\":1}"),
            ("default_branch", "a..b"),
            ("name", " "),
            ("review_command", r#"["cargo","test"]"#),
        ]);
        let found = Found::read(None, [("m", &bad)]);
        assert_eq!(found.fields, [("review_command".to_owned(), json!(["cargo", "test"]))].into());
        assert_eq!(found.details.len(), 6, "{:?}", found.details);
        assert!(found.details.iter().all(|one| one["config_map"] == "m" && one["message"].is_string()));
    }

    #[test]
    fn what_was_set_by_hand_stays() {
        let mut memory = Memory::default();
        let first = data(&[("description", "one"), ("preview_port", "3000")]);
        let settings = memory.learn("p", &Found::read(None, [("m", &first)])).expect("something new");
        assert_eq!((settings.description.as_deref(), settings.preview_port), (Some("one"), Some(3000)));
        assert!(memory.learn("p", &Found::read(None, [("m", &first)])).is_none(), "it is in force");
        memory.set_by_hand(&ProjectSettings { description: Some("mine".into()), ..ProjectSettings::default() });
        let second = data(&[("description", "two")]);
        let settings = memory.learn("p", &Found::read(None, [("m", &second)])).expect("the port is gone");
        assert_eq!((settings.description, settings.unset), (None, vec!["preview_port"]));
        let settings = memory.learn("p", &Found::default());
        assert!(settings.is_none(), "{settings:?}");
    }

    #[test]
    fn a_memory_reads_back_what_it_writes_and_an_older_one_too() {
        let memory = Memory { uid: Some("u".into()), ..Memory::default() };
        let text = serde_json::to_vec(&memory).expect("json");
        assert_eq!(serde_json::from_slice::<Memory>(&text).expect("a memory"), memory);
        assert_eq!(serde_json::from_str::<Memory>("{}").expect("a memory"), Memory::default());
    }
}

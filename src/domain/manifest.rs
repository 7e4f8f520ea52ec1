//! Objects as somebody wants them on the cluster: read, held up against what may be said in the
//! name of a project, and marked as the project's. And the way back: which patch makes an object
//! what it was.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::yaml;

/// Of all objects together, as JSON.
pub const BYTES_MAX: usize = 1 << 20;
pub const OBJECTS_MAX: usize = 100;

const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const PROJECT_ID: &str = "rdev.orchard9.ai/project-id";
const SESSION_ID: &str = "rdev.orchard9.ai/session-id";
const NAME: &str = "rdev.orchard9.ai/name";
/// Says which step applied an object last.
const APPLIED_BY: &str = "rdev.orchard9.ai/applied-by";

/// Where labels stand that say whose something is: an object's own, and those of what is made from it.
const LABELS: &[&str] = &[
    "/metadata/labels",
    "/spec/template/metadata/labels",
    "/spec/jobTemplate/metadata/labels",
    "/spec/jobTemplate/spec/template/metadata/labels",
];

/// Well-known kinds that are in no namespace.
const CLUSTER_WIDE: &[&str] = &[
    "Namespace",
    "Node",
    "PersistentVolume",
    "StorageClass",
    "PriorityClass",
    "RuntimeClass",
    "IngressClass",
    "CSIDriver",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "APIService",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "CertificateSigningRequest",
    "PodSecurityPolicy",
];

/// What the cluster itself writes into an object.
const WRITTEN_BY_CLUSTER: &[&str] =
    &["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"];

/// In whose name objects are applied.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub project: &'a str,
    /// The only one there is; where it is known.
    pub namespace: Option<&'a str>,
    /// Texts may hold references, which will be something else one day.
    pub is_open: bool,
}

/// The objects of a manifest, one after another.
///
/// # Errors
/// Why it is none, to be read on from its path.
pub fn read(manifest: &Value) -> Result<Vec<Value>, String> {
    let given = match manifest {
        Value::String(text) => yaml::read_all(text, BYTES_MAX).map_err(|error| format!("is no YAML: {error}"))?,
        other => vec![other.clone()],
    };
    let mut objects = Vec::new();
    for value in given {
        unfold(value, &mut objects);
    }
    if objects.is_empty() {
        return Err("must hold at least one object".into());
    }
    if objects.len() > OBJECTS_MAX {
        return Err(format!("must hold at most {OBJECTS_MAX} objects"));
    }
    if !matches!(manifest, Value::String(_)) && manifest.to_string().len() > BYTES_MAX {
        return Err(format!("must be at most {BYTES_MAX} bytes"));
    }
    Ok(objects)
}

/// Lists, and lists as the cluster writes them.
fn unfold(value: Value, objects: &mut Vec<Value>) {
    match value {
        Value::Array(items) => items.into_iter().for_each(|item| unfold(item, objects)),
        Value::Object(mut members)
            if members.get("kind").is_some_and(|kind| kind == "List") && members.contains_key("items") =>
        {
            unfold(members.remove("items").unwrap_or_default(), objects);
        }
        other => objects.push(other),
    }
}

/// Everything that is wrong with the objects, to be read on from the manifest's path.
pub fn problems(objects: &[Value], place: Place<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    for (at, object) in objects.iter().enumerate() {
        let name = shown(object, at);
        problems.extend(wrong_with(object, place).into_iter().map(|message| format!("{name} {message}")));
        let id = ["/apiVersion", "/kind", "/metadata/name"].map(|path| text(object, path).unwrap_or_default());
        if id.iter().all(|word| !word.is_empty() && !place.is_unknown(word)) && !known.insert(id) {
            problems.push(format!("{name} is given twice"));
        }
    }
    problems
}

impl Place<'_> {
    fn is_unknown(&self, text: &str) -> bool {
        self.is_open && text.contains("${")
    }
}

fn wrong_with(object: &Value, place: Place<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in ["/apiVersion", "/kind", "/metadata/name"] {
        match object.pointer(path) {
            Some(Value::String(word)) if !word.is_empty() => {}
            _ => wrong.push(format!("must have a {}", path[1..].replace('/', "."))),
        }
    }
    if let Some(kind) = text(object, "/kind").filter(|kind| CLUSTER_WIDE.contains(kind)) {
        wrong.push(format!("is in no namespace: a {kind} cannot be applied for a project"));
    }
    match (object.pointer("/metadata/namespace"), place.namespace) {
        (None | Some(Value::Null), _) | (Some(Value::String(_)), None) => {}
        (Some(Value::String(theirs)), Some(ours)) if theirs == ours || place.is_unknown(theirs) => {}
        (Some(theirs), ours) => {
            wrong.push(format!("must be in the namespace {}, not in {theirs}", ours.unwrap_or("of this server")));
        }
    }
    for path in ["/metadata/labels", "/metadata/annotations"] {
        if object.pointer(path).is_some_and(|it| !it.is_null() && !it.is_object()) {
            wrong.push(format!("must have an object as {}", path[1..].replace('/', ".")));
        }
    }
    for path in LABELS {
        let labels = object.pointer(path).and_then(Value::as_object);
        wrong.extend(labels.into_iter().flat_map(|labels| claims(labels, place)));
    }
    wrong
}

/// Labels that say it is somebody else's: of another project no place is to be taken, and sessions have their
/// own things.
fn claims(labels: &Map<String, Value>, place: Place<'_>) -> Vec<String> {
    let is_other = |value: &Value| value.as_str().is_none_or(|it| it != place.project && !place.is_unknown(it));
    let of_another = [NAME, PROJECT_ID]
        .into_iter()
        .filter(|name| labels.get(*name).is_some_and(is_other))
        .map(|name| format!("must not have the label {name} with another value than {}", place.project));
    let of_a_session = labels.contains_key(SESSION_ID).then(|| format!("must not have the label {SESSION_ID}"));
    of_another.chain(of_a_session).collect()
}

/// As it is named where something is wrong with it.
pub fn shown(object: &Value, at: usize) -> String {
    match (text(object, "/kind"), text(object, "/metadata/name")) {
        (Some(kind), Some(name)) => format!("({kind} {name})"),
        _ => format!("(object {})", at + 1),
    }
}

/// Marks an object as the project's, and as applied by this step. What is made from it (pods of a Deployment) is not
/// marked: it goes with the object, and a change of marks would start it anew.
pub fn mark(object: &mut Value, project: &str, step: &str) {
    let metadata = &mut object["metadata"];
    for (name, marks) in
        [("labels", vec![(MANAGED_BY, "rdev"), (PROJECT_ID, project)]), ("annotations", vec![(APPLIED_BY, step)])]
    {
        if !metadata[name].is_object() {
            metadata[name] = json!({});
        }
        for (key, value) in marks {
            metadata[name][key] = value.into();
        }
    }
}

/// Whether this step was the last to apply it.
pub fn is_marked(object: &Value, step: &str) -> bool {
    object["metadata"]["annotations"][APPLIED_BY] == step
}

/// The JSON merge patch that makes `from` what `to` was, as far as people wrote it; `None` where there is nothing
/// to be done.
pub fn way_back(from: &Value, to: &Value) -> Option<Value> {
    difference(&written(from), &written(to))
}

/// Whether the two say the same but for who applied them.
pub fn says_the_same(one: &Value, other: &Value) -> bool {
    let unmarked = |object: &Value| {
        let mut object = written(object);
        let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
        let is_bare = annotations.is_none_or(|annotations| {
            annotations.remove(APPLIED_BY);
            annotations.is_empty()
        });
        if is_bare && let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            metadata.remove("annotations");
        }
        object
    };
    unmarked(one) == unmarked(other)
}

/// Without what the cluster writes.
fn written(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(members) = object.as_object_mut() {
        members.remove("status");
    }
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !WRITTEN_BY_CLUSTER.contains(&name.as_str()));
    }
    object
}

fn difference(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let gone = before.keys().filter(|name| !after.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    let changed = after.iter().filter_map(|(name, value)| {
        let patch = before.get(name).map_or_else(|| Some(value.clone()), |old| difference(old, value));
        Some((name.clone(), patch?))
    });
    let patch: Map<String, Value> = gone.chain(changed).collect();
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn text<'a>(object: &'a Value, path: &str) -> Option<&'a str> {
    object.pointer(path).and_then(Value::as_str)
}

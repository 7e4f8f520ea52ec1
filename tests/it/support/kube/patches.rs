//! Patches as the cluster takes them: server-side apply with fields that have managers, also as a
//! rehearsal, and JSON merge patches. Lists are one field, as far as these stories go.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::Bytes,
    extract::{Path as InPath, RawQuery, State},
    http::{HeaderMap, Uri},
    response::Response,
};
use serde_json::{Map, Value, json};

use super::{FakeCluster, Inner, api, failure, json_response};

type Paths = BTreeSet<Vec<String>>;

pub async fn patch(
    State(inner): State<Arc<Inner>>,
    uri: Uri,
    InPath(path): InPath<std::collections::BTreeMap<String, String>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (kind, name) = (api::plural(&uri), path["name"].clone());
    let query = query.unwrap_or_default();
    let rehearses = query.contains("dryRun=All");
    if let Some(refused) = inner.refusal("patch", &kind, &format!("{kind}/{name}")).or_else(|| inner.unknown(&kind)) {
        return refused;
    }
    let given: Value = serde_json::from_slice(&body).expect("JSON");
    let before = {
        let mut fake = inner.state.lock().expect("nobody panics with it");
        // Fields of which no more is known than who holds them.
        let holder = fake.odd.held.iter().position(|(k, n, _)| *k == kind && *n == name);
        if let Some(at) = holder {
            if !query.contains("force=true") {
                return conflict(&BTreeSet::from([fake.odd.held[at].2.clone()]));
            }
            fake.odd.held.remove(at);
        }
        fake.objects.get(&kind, &name)
    };
    let is_new = before.is_none();
    if is_new && let Some(refused) = inner.refusal("create", &kind, &format!("{kind}/{name}")) {
        return refused;
    }
    if let Some(refused) = changed_meanwhile(&kind, &name, &given, before.as_ref()) {
        return refused;
    }
    let manager = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "fieldManager");
    let manager = manager.map_or_else(|| "unknown".to_owned(), |(_, manager)| manager.into_owned());
    let applies = headers["content-type"] == "application/apply-patch+yaml";
    let made = match (applies, before) {
        (true, before) => applied(given, before, &manager, query.contains("force=true")),
        (false, None) => return failure(404, "NotFound", &format!("{kind} \"{name}\" not found")),
        (false, Some(before)) => Ok(merged(&given, before, &manager)),
    };
    match made {
        Err(holders) => conflict(&holders),
        Ok(object) if rehearses => json_response(&object),
        Ok(object) => {
            let made = inner.put(&kind, &name, object);
            let is_silent = inner.state.lock().expect("nobody panics with it").odd.silent;
            if is_silent && is_new && kind == "deployments" {
                std::future::pending::<()>().await;
            }
            json_response(&made)
        }
    }
}

/// By whoever sent it: a version or a UID that was seen, and is not the one of now.
fn changed_meanwhile(kind: &str, name: &str, given: &Value, before: Option<&Value>) -> Option<Response> {
    let now = |field: &str| before.map_or(&Value::Null, |before| &before["metadata"][field]);
    ["uid", "resourceVersion"].into_iter().find_map(|field| {
        let meant = &given["metadata"][field];
        let is_other = !meant.is_null() && meant != now(field);
        if is_other && field == "uid" && before.is_some() {
            let message =
                format!("{kind} \"{name}\" is invalid: metadata.uid: Invalid value: {meant}: field is immutable");
            return Some(failure(422, "Invalid", &message));
        }
        let message = format!(
            "Operation cannot be fulfilled on {kind} \"{name}\": Precondition failed: {} in precondition: {meant}",
            field.to_uppercase()
        );
        is_other.then(|| failure(409, "Conflict", &message))
    })
}

/// What others hold is theirs, unless force takes it; what this manager does not say any more goes.
fn applied(given: Value, before: Option<Value>, manager: &str, force: bool) -> Result<Value, BTreeSet<String>> {
    let mut object = before.unwrap_or_else(|| json!({}));
    let mut held = managers(&object);
    let mut said = Paths::new();
    leaves(&given, &mut Vec::new(), &mut said);
    said.retain(|path| !is_identity(path));
    let differs = |path: &[String]| at(&object, path) != at(&given, path);
    let mine = (manager.to_owned(), "Apply".to_owned());
    let against: BTreeSet<String> = held
        .iter()
        .filter(|(who, paths)| *who != mine && paths.iter().any(|path| said.contains(path) && differs(path)))
        .map(|((who, _), _)| who.clone())
        .collect();
    if !against.is_empty() && !force {
        return Err(against);
    }
    let taken: Paths = said.iter().filter(|path| differs(path)).cloned().collect();
    held.iter_mut().filter(|(who, _)| *who != mine).for_each(|(_, paths)| paths.retain(|path| !taken.contains(path)));
    let before = held.iter().position(|(who, _)| *who == mine).map(|at| held.remove(at).1).unwrap_or_default();
    for path in before.difference(&said).filter(|path| held.iter().all(|(_, paths)| !paths.contains(*path))) {
        remove(&mut object, path);
    }
    let mut given = given;
    for field in ["uid", "resourceVersion"] {
        given["metadata"].as_object_mut().expect("an object").remove(field);
    }
    merge(&mut object, &given);
    held.push((mine, said));
    write(&mut object, held);
    Ok(object)
}

/// Whoever changes a field holds it, alone; holders that are given are the holders before that.
fn merged(given: &Value, mut object: Value, manager: &str) -> Value {
    let before = object.clone();
    merge(&mut object, given);
    let mut held = managers(&object);
    let mut all = Paths::new();
    leaves(&before, &mut Vec::new(), &mut all);
    leaves(&object, &mut Vec::new(), &mut all);
    let changed: Paths =
        all.into_iter().filter(|path| !is_identity(path) && at(&before, path) != at(&object, path)).collect();
    for (_, paths) in &mut held {
        paths.retain(|path| !changed.contains(path));
    }
    let mine = (manager.to_owned(), "Update".to_owned());
    if !changed.is_empty() {
        match held.iter_mut().find(|(who, _)| *who == mine) {
            Some((_, paths)) => paths.extend(changed),
            None => held.push((mine, changed)),
        }
    }
    write(&mut object, held);
    object
}

impl FakeCluster {
    /// An object as somebody else makes it, who holds all that it says.
    pub fn somebodys(&self, kind: &str, object: Value, manager: &str) -> Value {
        let mut object = object;
        object["metadata"]["namespace"] = super::NAMESPACE.into();
        let mut said = Paths::new();
        leaves(&object, &mut Vec::new(), &mut said);
        said.retain(|path| !is_identity(path));
        write(&mut object, vec![((manager.to_owned(), "Update".to_owned()), said)]);
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        self.inner.put(kind, &name, object)
    }

    /// Changes an object as somebody else would.
    pub fn change(&self, kind: &str, name: &str, patch: &Value, manager: &str) {
        let before = self.get(kind, name).expect("it is there");
        self.inner.put(kind, name, merged(patch, before, manager));
    }
}

type Held = Vec<((String, String), Paths)>;

fn managers(object: &Value) -> Held {
    let fields = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let word = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let paths = |entry: &Value| serde_json::from_value(entry["fieldsV1"]["paths"].clone()).unwrap_or_default();
    fields.iter().map(|entry| ((word(entry, "manager"), word(entry, "operation")), paths(entry))).collect()
}

fn write(object: &mut Value, held: Held) {
    let entries = held.into_iter().filter(|(_, paths)| !paths.is_empty()).map(|((manager, operation), paths)| {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1",
               "time": "2026-01-01T00:00:00Z", "fieldsV1": {"paths": paths}})
    });
    object["metadata"]["managedFields"] = entries.collect();
}

/// Nobody's: what names the object, and what the cluster writes.
fn is_identity(path: &[String]) -> bool {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(words.as_slice(), ["apiVersion" | "kind" | "status", ..])
        || matches!(
            words.as_slice(),
            [
                "metadata",
                "name" | "namespace" | "uid" | "resourceVersion" | "managedFields" | "creationTimestamp" | "generation",
                ..
            ]
        )
}

fn leaves(value: &Value, at: &mut Vec<String>, found: &mut Paths) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                at.push(name.clone());
                leaves(member, at, found);
                at.pop();
            }
        }
        _ => drop(found.insert(at.clone())),
    }
}

fn at<'a>(object: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(object, |value, name| value.get(name).unwrap_or(&Value::Null))
}

fn remove(object: &mut Value, path: &[String]) {
    let Some((last, parents)) = path.split_last() else { return };
    let parent = parents.iter().try_fold(object, |value, name| value.get_mut(name));
    parent.and_then(Value::as_object_mut).map(|members| members.remove(last));
}

/// RFC 7396.
fn merge(into: &mut Value, given: &Value) {
    let Value::Object(given) = given else {
        *into = given.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in given {
        if value.is_null() {
            into.as_object_mut().expect("an object").remove(name);
        } else {
            merge(&mut into[name], value);
        }
    }
}

fn conflict(holders: &BTreeSet<String>) -> Response {
    let messages: Vec<_> = holders.iter().map(|manager| format!("conflict with \"{manager}\" using v1")).collect();
    let causes: Vec<_> = messages
        .iter()
        .map(|message| json!({"reason": "FieldManagerConflict", "message": message, "field": ".data"}))
        .collect();
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Conflict", "code": 409,
        "message": format!("Apply failed with {} conflicts: {}", messages.len(), messages.join(", ")),
        "details": {"causes": causes},
    });
    Response::builder()
        .status(409)
        .header("content-type", "application/json")
        .body(axum::body::Body::from(status.to_string()))
        .expect("a response")
}

//! Objects of any kind over the cluster's API: one is asked for, applied and deleted. A
//! Deployment that is made or changed is followed by its pod, as a controller would.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{Path as InPath, State},
    http::Uri,
    response::Response,
};
use serde_json::{Value, json};

use super::{Inner, NAMESPACE, failure, json_response};

/// What there is of kinds.
pub const KNOWN: &[&str] = &[
    "pods",
    "services",
    "configmaps",
    "secrets",
    "persistentvolumeclaims",
    "deployments",
    "statefulsets",
    "jobs",
    "ingresses",
];

/// How the cluster treats an object, or a kind, other than it should.
#[derive(Default)]
pub struct Oddities {
    /// Kinds that it does not know.
    pub without: Vec<String>,
    /// Kind and name of what it fails to delete.
    pub undying: Vec<(String, String)>,
    /// Kind, name and manager of fields that somebody holds.
    pub held: Vec<(String, String, String)>,
    /// Objects in one answer, at most.
    pub page: Option<usize>,
    /// A Deployment is made, and nothing is said of it.
    pub silent: bool,
    /// So many continued lists are too old.
    pub stale_pages: usize,
    /// Kind and name of what somebody replaces just before it is deleted.
    pub replaced: Vec<(String, String)>,
}

/// The kind's plural, out of the path: also of one with a group.
pub fn plural(uri: &Uri) -> String {
    let mut parts = uri.path().split('/').skip_while(|part| *part != NAMESPACE).skip(1);
    parts.next().unwrap_or_default().to_owned()
}

impl Inner {
    pub fn unknown(&self, kind: &str) -> Option<Response> {
        let fake = self.state.lock().expect("nobody panics with it");
        let unknown = !KNOWN.contains(&kind) || fake.odd.without.iter().any(|it| it == kind);
        unknown.then(|| failure(404, "NotFound", "the server could not find the requested resource"))
    }

    /// Somebody was quicker.
    fn replace_just_now(&self, kind: &str, name: &str) {
        let mut fake = self.state.lock().expect("nobody panics with it");
        let before = fake.odd.replaced.len();
        fake.odd.replaced.retain(|(k, n)| k != kind || n != name);
        if fake.odd.replaced.len() < before
            && let Some(mut object) = fake.objects.get(kind, name)
        {
            object["metadata"]["uid"] = fake.objects.next_uid().into();
            fake.objects.put(kind, name, object);
        }
    }

    fn not_found(kind: &str, name: &str) -> Response {
        failure(404, "NotFound", &format!("{kind} \"{name}\" not found"))
    }
}

pub async fn one(
    State(inner): State<Arc<Inner>>,
    uri: Uri,
    InPath(path): InPath<std::collections::BTreeMap<String, String>>,
) -> Response {
    let (kind, name) = (plural(&uri), path["name"].clone());
    if let Some(refused) = inner.refusal("get", &kind, &format!("{kind}/{name}")).or_else(|| inner.unknown(&kind)) {
        return refused;
    }
    let found = inner.state.lock().expect("nobody panics with it").objects.get(&kind, &name);
    found.map_or_else(|| Inner::not_found(&kind, &name), |object| json_response(&object))
}

pub async fn delete(
    State(inner): State<Arc<Inner>>,
    uri: Uri,
    InPath(path): InPath<std::collections::BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    let (kind, name) = (plural(&uri), path["name"].clone());
    if let Some(refused) = inner.refusal("delete", &kind, &format!("{kind}/{name}")).or_else(|| inner.unknown(&kind)) {
        return refused;
    }
    let options: Value = serde_json::from_slice(&body).unwrap_or_default();
    inner.replace_just_now(&kind, &name);
    let found = inner.state.lock().expect("nobody panics with it").objects.get(&kind, &name);
    let Some(found) = found else { return Inner::not_found(&kind, &name) };
    let (meant, is) = (&options["preconditions"]["uid"], &found["metadata"]["uid"]);
    if !meant.is_null() && meant != is {
        let message = format!(
            "Operation cannot be fulfilled on {kind} \"{name}\": Precondition failed: UID in precondition: {meant}, UID in object meta: {is}"
        );
        return failure(409, "Conflict", &message);
    }
    let undying = inner
        .state
        .lock()
        .expect("nobody panics with it")
        .odd
        .undying
        .iter()
        .any(|it| *it == (kind.clone(), name.clone()));
    if undying {
        return failure(500, "InternalError", "an admission webhook failed");
    }
    inner.remove(&kind, &name);
    json_response(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
}

//! What there is: kept with its versions, listed in pages and by labels, and watched from a version on.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::Uri,
    response::Response,
};
use futures::stream;
use serde_json::{Value, json};

use super::{Inner, failure, json_response};

#[derive(Default)]
pub struct Objects {
    version: u64,
    /// What happened before is not known any more.
    oldest: u64,
    made: u64,
    known: BTreeMap<(String, String), Value>,
    log: Vec<(u64, String, Value)>,
}

impl Objects {
    pub fn next_uid(&mut self) -> String {
        self.made += 1;
        // Another cluster's pod has another one.
        format!("{}-{}", uuid::Uuid::now_v7(), self.made)
    }

    pub fn count(&self) -> u64 {
        self.made
    }

    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.known.get(&(kind.to_owned(), name.to_owned())).cloned()
    }

    pub fn put(&mut self, kind: &str, name: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let before = self.known.insert((kind.to_owned(), name.to_owned()), object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.log.push((self.version, kind.to_owned(), json!({"type": what, "object": object})));
        object
    }

    pub fn delete(&mut self, kind: &str, name: &str) {
        let Some(mut object) = self.known.remove(&(kind.to_owned(), name.to_owned())) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.log.push((self.version, kind.to_owned(), json!({"type": "DELETED", "object": object})));
    }

    pub fn forget_the_past(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.log.clear();
    }

    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.known.iter().filter(|((k, _), _)| k == kind).map(|(_, object)| object).collect()
    }

    /// A page of them: those after a name, no more than `most`.
    fn list(&self, kind: &str, selector: &str, after: &str, most: usize) -> Value {
        let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut items: Vec<_> =
            self.all(kind).into_iter().filter(|it| carries(it, selector) && *name(it) > *after).collect();
        let mut meta = json!({"resourceVersion": self.version.to_string()});
        if items.len() > most {
            items.truncate(most);
            meta["continue"] = items.last().map(|last| name(last)).into();
        }
        json!({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items})
    }

    /// What happened after a version, one to a line, and the version now. `None`: that is too long ago.
    fn since(&self, kind: &str, selector: &str, version: u64) -> Option<(String, u64)> {
        if version < self.oldest {
            return None;
        }
        let told = |event: &Value| carries(&event["object"], selector);
        let events = self.log.iter().filter(|(at, of, event)| *at > version && of == kind && told(event));
        let mut lines = events.map(|(_, _, event)| format!("{event}\n")).collect::<String>();
        if lines.is_empty() && self.version > version {
            // Other kinds changed: a bookmark says so.
            let kind = if kind == "pods" { "Pod" } else { "ConfigMap" };
            let object = json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": self.version.to_string(), "name": ""}});
            lines = format!("{}\n", json!({"type": "BOOKMARK", "object": object}));
        }
        Some((lines, self.version))
    }
}

/// Whether it has the labels of a selector, each `name=value`.
fn carries(object: &Value, selector: &str) -> bool {
    selector.split(',').filter(|pair| !pair.is_empty()).all(|pair| {
        let (name, value) = pair.split_once('=').expect("name=value");
        object["metadata"]["labels"][name] == value
    })
}

pub fn pod(name: &str, uid: &str, project: &str, workspace: &Path, container: &str, age: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": super::NAMESPACE, "uid": uid,
            "creationTimestamp": format!("2026-01-01T{:02}:{:02}:00Z", age / 60 % 24, age % 60),
            "labels": {"rdev.orchard9.ai/project": "true", "rdev.orchard9.ai/name": project},
            "annotations": {"rdev.orchard9.ai/workspace": workspace},
        },
        "spec": {"containers": [{"name": "main", "image": "local.test/it:1"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "main", "image": "local.test/it:1", "imageID": "", "ready": true, "restartCount": 0,
                "containerID": container, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }],
        },
    })
}

pub fn config_map(name: &str, uid: &str, project: &str, data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": super::NAMESPACE, "uid": uid,
            "labels": {"rdev.orchard9.ai/project": "true", "rdev.orchard9.ai/name": project},
        },
        "data": data,
    })
}

/// A list, or a watch.
pub async fn collection(State(inner): State<Arc<Inner>>, uri: Uri, RawQuery(query): RawQuery) -> Response {
    let kind = super::api::plural(&uri);
    let query = query.unwrap_or_default();
    let asked: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let watches = asked.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
    let verb = if watches { "watch" } else { "list" };
    if let Some(refused) = inner.refusal(verb, &kind, &kind).or_else(|| inner.unknown(&kind)) {
        return refused;
    }
    let selector = asked.get("labelSelector").cloned().unwrap_or_default();
    if !watches {
        return list(&inner, &kind, &selector, &asked);
    }
    let from: u64 = asked.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    if inner.state.lock().expect("nobody panics with it").objects.since(&kind, &selector, from).is_none() {
        return failure(410, "Expired", "too old resource version");
    }
    let (news, cuts) = (inner.news.subscribe(), inner.cuts.subscribe());
    let begin = (inner, (kind, selector), from, news, cuts);
    let events = stream::unfold(begin, async |(inner, what, from, mut news, mut cuts)| {
        loop {
            news.borrow_and_update();
            let told = inner.state.lock().expect("nobody panics with it").objects.since(&what.0, &what.1, from);
            let (lines, version) = told?;
            if !lines.is_empty() {
                return Some((Ok::<_, std::io::Error>(lines), (inner, what, version, news, cuts)));
            }
            tokio::select! {
                _ = news.changed() => {}
                _ = cuts.changed() => return None,
            }
        }
    });
    Response::builder().header("content-type", "application/json").body(Body::from_stream(events)).expect("a response")
}

fn list(inner: &Inner, kind: &str, selector: &str, asked: &BTreeMap<String, String>) -> Response {
    let mut fake = inner.state.lock().expect("nobody panics with it");
    let after = asked.get("continue").cloned().unwrap_or_default();
    if !after.is_empty() && fake.odd.stale_pages > 0 {
        fake.odd.stale_pages -= 1;
        return failure(410, "Expired", "The provided continue parameter is too old");
    }
    let limit = asked.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let most = fake.odd.page.map_or(limit, |page| page.min(limit));
    json_response(&fake.objects.list(kind, selector, &after, most))
}

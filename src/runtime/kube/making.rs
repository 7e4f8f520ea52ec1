//! What is made on a cluster for a project and for a session: the Deployment of one pod that is a
//! project's place, with a volume for its workspace, and the Service and Ingress of a preview.
//! What has one of our names already and is not ours is never touched.

use serde_json::{Value, json};
use url::Url;

use super::{
    objects::{APPLY_CONFLICT, Objects},
    places::{Container, WORKSPACE_DEFAULT},
};
use crate::{
    domain::storage::Storage,
    error::{Error, Result},
    runtime::objects::{Object, Removal, labels},
};

/// Whom containers run as; the workspace is its group's.
const USER: u32 = 1000;

/// Keeps a container for commands, whatever its image would run by itself, reaps what is left to it, and goes when asked to.
const STAY: &str = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";

/// The pods of this program itself, and the name of their port: where previews by Ingress go.
const SERVER: (&str, &str) = ("app.kubernetes.io/name", "rdev");
const SERVER_PORT: &str = "http";

/// Somebody else may make or remove an object at the same moment; not for ever.
const ATTEMPTS: usize = 3;

/// How a Deployment fares that has no pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fares {
    /// There is none.
    Missing,
    /// Its pod is to come.
    Comes,
    /// No pod can be made, for this reason.
    Fails(String),
}

/// A session's preview, and where it is to be reached.
#[derive(Debug, Clone, Copy)]
pub struct Exposed<'a> {
    pub project: &'a str,
    pub session: &'a str,
    /// As its users write it.
    pub url: &'a str,
    /// The place, as [`Runtime::place`](crate::runtime::Runtime::place) names it.
    pub place: &'a str,
}

impl Objects {
    /// Makes the project's place, or brings it to this image.
    ///
    /// # Errors
    /// `OBJECT_EXISTS` where one of our names is somebody else's; those of the cluster.
    pub async fn deploy(&self, project: &str, image: &str, storage: Option<&Storage>) -> Result<()> {
        // One that is there is kept as it is, whatever is wanted now: work lies in it.
        let kept = self.is_ours("v1", "PersistentVolumeClaim", &volume_name(project), project).await?;
        if !kept && let Some(storage) = storage {
            self.make(claim(project, storage), project).await?;
        }
        self.make(deployment(project, image, kept || storage.is_some()), project).await
    }

    /// How the project's Deployment fares.
    ///
    /// # Errors
    /// Those of the cluster.
    pub async fn fares(&self, project: &str) -> Result<Fares> {
        let found = self.find("apps/v1", "Deployment", &name_of(project)).await?;
        let Some((_, it)) = found.filter(|(object, _)| is_its(object, project) && !object.going) else {
            return Ok(Fares::Missing);
        };
        let conditions = it.pointer("/status/conditions").and_then(Value::as_array);
        let failing =
            conditions.into_iter().flatten().find(|one| one["type"] == "ReplicaFailure" && one["status"] == "True");
        Ok(failing.map_or(Fares::Comes, |one| {
            Fares::Fails(one["message"].as_str().unwrap_or("no pod can be made").to_owned())
        }))
    }

    /// Makes the Service and the Ingress of a session's preview, which lead to this program: it lets in whom it lets in
    /// by every other way. They go with the pod.
    ///
    /// # Errors
    /// As [`Objects::deploy`].
    pub async fn expose(&self, preview: &Exposed<'_>) -> Result<()> {
        self.make(service(preview), preview.project).await?;
        self.make(ingress(preview), preview.project).await
    }

    /// Removes what was made for a session's preview.
    ///
    /// # Errors
    /// Those of the cluster; each was tried.
    pub async fn hide(&self, session: &str) -> Result<()> {
        let name = preview_name(session);
        let mut outcome = Ok(());
        for (api_version, kind) in [("networking.k8s.io/v1", "Ingress"), ("v1", "Service")] {
            let removed = async {
                match self.find(api_version, kind, &name).await? {
                    Some((it, _)) if it.managed && it.session.as_deref() == Some(session) => self.delete(&it).await,
                    _ => Ok(Removal::Gone),
                }
            };
            outcome = removed.await.map(drop).and(outcome);
        }
        outcome
    }

    async fn is_ours(&self, api_version: &str, kind: &str, name: &str, project: &str) -> Result<bool> {
        Ok(self.find(api_version, kind, name).await?.is_some_and(|(it, _)| is_its(&it, project) && !it.going))
    }

    /// Makes an object of the project's, or makes it what it should be.
    async fn make(&self, object: Value, project: &str) -> Result<()> {
        let word = |path| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind, name) = (word("/apiVersion"), word("/kind"), word("/metadata/name"));
        for _ in 0..ATTEMPTS {
            match self.find(api_version, kind, name).await? {
                // By an apply, so that a later one may take fields away. What came in between holds its own.
                None => match self.apply(object.clone(), false).await {
                    Err(error) if error.stable_code() == APPLY_CONFLICT => {}
                    outcome => return outcome.map(drop),
                },
                Some((there, _)) if there.going => {
                    return Err(Error::unavailable("the cluster", format!("{kind} {name} is being removed")));
                }
                Some((there, _)) if is_its(&there, project) => return self.apply(object, true).await.map(drop),
                Some(_) => {
                    let message = format!("the cluster has a {kind} {name} already, which is not this project's");
                    return Err(Error::conflict("OBJECT_EXISTS", message).detail("kind", kind).detail("name", name));
                }
            }
        }
        Err(Error::unavailable("the cluster", format!("{kind} {name} comes and goes")))
    }
}

fn is_its(object: &Object, project: &str) -> bool {
    object.managed && object.project.as_deref() == Some(project)
}

fn name_of(project: &str) -> String {
    format!("rdev-{project}")
}

fn volume_name(project: &str) -> String {
    format!("rdev-{project}-workspace")
}

fn preview_name(session: &str) -> String {
    format!("rdev-preview-{session}")
}

fn claim(project: &str, storage: &Storage) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage.size}}});
    if let Some(class) = &storage.class {
        spec["storageClassName"] = class.as_str().into();
    }
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": volume_name(project), "labels": labels(project, None)},
        "spec": spec,
    })
}

fn deployment(project: &str, image: &str, has_volume: bool) -> Value {
    let found = json!({"rdev.orchard9.ai/project": "true", "rdev.orchard9.ai/name": project});
    let mut pod = json!(labels(project, None));
    if let (Value::Object(pod), Value::Object(found)) = (&mut pod, found.clone()) {
        pod.extend(found);
    }
    let volume = if has_volume {
        json!({"name": "workspace", "persistentVolumeClaim": {"claimName": volume_name(project)}})
    } else {
        json!({"name": "workspace", "emptyDir": {}})
    };
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name_of(project), "labels": labels(project, None)},
        "spec": {
            "replicas": 1,
            // Two pods would share a volume, and a project has one place.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": found},
            "template": {
                "metadata": {"labels": pod},
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                        "fsGroupChangePolicy": "OnRootMismatch",
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [{
                        "name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c", STAY],
                        "workingDir": WORKSPACE_DEFAULT,
                        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                        "volumeMounts": [{"name": "workspace", "mountPath": WORKSPACE_DEFAULT}],
                    }],
                    "volumes": [volume],
                },
            },
        },
    })
}

fn service(it: &Exposed<'_>) -> Value {
    let (label, server) = SERVER;
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": preview(it),
        "spec": {
            "type": "ClusterIP",
            "selector": {label: server},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": SERVER_PORT}],
        },
    })
}

fn ingress(it: &Exposed<'_>) -> Value {
    let url = Url::parse(it.url).ok();
    // An address is no host of an Ingress: then every host will do.
    let host = url.as_ref().and_then(Url::domain);
    let path = url.as_ref().map_or("/", Url::path);
    let backend = json!({"service": {"name": preview_name(it.session), "port": {"name": "http"}}});
    let mut rule = json!({"http": {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]}});
    let mut spec = json!({});
    if let Some(host) = host {
        rule["host"] = host.into();
        if it.url.starts_with("https:") {
            spec["tls"] = json!([{"hosts": [host]}]);
        }
    }
    spec["rules"] = json!([rule]);
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": preview(it), "spec": spec})
}

fn preview(it: &Exposed<'_>) -> Value {
    let mut metadata = json!({"name": preview_name(it.session), "labels": labels(it.project, Some(it.session))});
    if let Some(at) = Container::parse(it.place) {
        metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": at.pod, "uid": at.uid}]);
    }
    metadata
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::Deployment,
        core::v1::{PersistentVolumeClaim, Service},
        networking::v1::Ingress,
    };

    use super::*;

    fn at(url: &str) -> Exposed<'_> {
        Exposed { project: "p", session: "s", url, place: "pod/uid/main/id" }
    }

    #[test]
    fn every_object_is_one_in_the_clusters_own_words() {
        let storage = Storage { size: "1Gi".into(), class: Some("fast".into()) };
        let claim: PersistentVolumeClaim = serde_json::from_value(claim("p", &storage)).expect("a claim");
        assert_eq!(claim.spec.and_then(|spec| spec.storage_class_name).as_deref(), Some("fast"));
        let made: Deployment = serde_json::from_value(deployment("p", "i:1", true)).expect("a Deployment");
        let spec = made.spec.expect("a spec");
        let labels = spec.template.metadata.and_then(|meta| meta.labels).expect("labels");
        assert!(spec.selector.match_labels.expect("a selector").iter().all(|(name, value)| labels[name] == *value));
        let it = at("https://s.example.com/");
        let service: Service = serde_json::from_value(service(&it)).expect("a Service");
        let ingress: Ingress = serde_json::from_value(ingress(&it)).expect("an Ingress");
        assert_eq!(service.metadata.name, ingress.metadata.name);
        assert_eq!(service.metadata.owner_references.expect("an owner")[0].uid, "uid");
    }

    #[test]
    fn an_ingress_is_for_what_users_write() {
        for (url, host, path, tls) in [
            ("https://s.example.com/", json!("s.example.com"), "/", true),
            ("http://s.localhost:8080/", json!("s.localhost"), "/", false),
            ("http://10.0.0.1:80/preview/s/", Value::Null, "/preview/s/", false),
        ] {
            let made = ingress(&at(url));
            let rule = &made["spec"]["rules"][0];
            assert_eq!((&rule["host"], &rule["http"]["paths"][0]["path"]), (&host, &json!(path)), "{url}");
            assert_eq!(made["spec"].get("tls").is_some(), tls, "{url}");
        }
    }

    /// A pod of it would lead around whoever may look at it.
    #[test]
    fn a_preview_never_leads_to_a_projects_pod() {
        let selector = service(&at("http://s.localhost/"))["spec"]["selector"].clone();
        let pod = deployment("p", "i:1", false)["spec"]["template"]["metadata"]["labels"].clone();
        assert!(selector.as_object().expect("a selector").iter().any(|(name, value)| pod[name] != *value));
    }
}

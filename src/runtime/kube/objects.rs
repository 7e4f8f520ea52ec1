//! Objects that carry our labels: listed, applied and removed. Lists fetch names and labels
//! alone, never what is in a Secret. A removal names the UID that was seen, so what took an
//! object's name meanwhile is never hit.

mod changes;

use futures::future::join_all;
use kube::{
    Api,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, ObjectMeta, Patch, PatchParams,
        Preconditions, TypeMeta,
    },
};
use serde_json::Value;

use super::cluster::{Cluster, Right, away, forbidden};
use crate::{
    error::{Error, Kind, Result},
    runtime::objects::{Listing, MANAGED_BY, OURS, Object, PROJECT_ID, Removal, SESSION_ID},
};

/// What undeploy and GC cover: group, version, kind, plural.
const COVERED: &[(&str, &str, &str, &str)] = &[
    ("apps", "v1", "Deployment", "deployments"),
    ("apps", "v1", "StatefulSet", "statefulsets"),
    ("batch", "v1", "Job", "jobs"),
    ("", "v1", "Service", "services"),
    ("networking.k8s.io", "v1", "Ingress", "ingresses"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "Secret", "secrets"),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
];

/// Looked at without being covered: what the runtime may list anyway.
const SEEN_TOO: (&str, &str, &str, &str) = ("", "v1", "Pod", "pods");

/// Objects in one answer of the cluster.
const PAGE: u32 = 250;
/// Listing begins anew so often when the cluster has forgotten where it was.
const ANEW: usize = 3;

/// Somebody else holds fields of it.
pub const APPLY_CONFLICT: &str = "APPLY_CONFLICT";
/// Whose fields an applied object's are.
const MANAGER: &str = "rdev";

/// The objects in our namespace. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    cluster: Cluster,
}

impl Objects {
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    pub fn namespace(&self) -> &str {
        self.cluster.namespace()
    }

    /// Whether objects of this kind are found by [`Objects::managed`] and [`Objects::of_project`].
    pub fn covers(api_version: &str, kind: &str) -> bool {
        COVERED.iter().any(|(group, version, covered, _)| {
            *covered == kind && resource(group, version, covered, "").api_version == api_version
        })
    }

    /// All that is ours, of the kinds that are covered.
    pub async fn managed(&self) -> Listing {
        self.list(&format!("{MANAGED_BY}={OURS}")).await
    }

    /// What is ours and this project's, of the kinds that are covered.
    pub async fn of_project(&self, project: &str) -> Listing {
        self.list(&format!("{MANAGED_BY}={OURS},{PROJECT_ID}={project}")).await
    }

    /// What is ours and this session's, of the kinds that are covered.
    pub async fn of_session(&self, session: &str) -> Listing {
        self.list(&format!("{MANAGED_BY}={OURS},{SESSION_ID}={session}")).await
    }

    /// What carries the project's label, is ours and stays: of a kind that is not covered, and not made by another
    /// object. As far as this server may see such.
    pub async fn beyond(&self, project: &str) -> Vec<Object> {
        let (group, version, kind, plural) = SEEN_TOO;
        let selector = format!("{MANAGED_BY}={OURS},{PROJECT_ID}={project}");
        match self.of_kind(&resource(group, version, kind, plural), &selector).await {
            Ok(found) => found.into_iter().filter(|object| !object.owned && !object.going).collect(),
            Err(error) => {
                tracing::debug!(%error, project.id = project, "pods were not looked at");
                Vec::new()
            }
        }
    }

    async fn list(&self, selector: &str) -> Listing {
        let kinds = COVERED.iter().map(|(group, version, kind, plural)| async move {
            self.of_kind(&resource(group, version, kind, plural), selector).await
        });
        let mut listing = Listing::default();
        for told in join_all(kinds).await {
            match told {
                Ok(found) => listing.objects.extend(found),
                Err(error) => listing.errors.push(error),
            }
        }
        listing.objects.sort();
        listing
    }

    /// Every page. Names that are there while one turns the pages are there in the end.
    async fn of_kind(&self, resource: &ApiResource, selector: &str) -> Result<Vec<Object>> {
        let api = self.api(resource);
        let right = Right { verb: "list", resource: &resource.plural };
        let mut found = Vec::new();
        let (mut next, mut anew) = (None, 0);
        loop {
            let mut params = ListParams::default().labels(selector).limit(PAGE);
            params.continue_token = next.take();
            let page = match self.cluster.told(api.list_metadata(&params)).await? {
                Ok(page) => page,
                Err(kube::Error::Api(status)) if status.code == 410 && anew < ANEW => {
                    anew += 1;
                    found.clear();
                    continue;
                }
                Err(error) => return Err(self.refused(&error, right, &resource.api_version)),
            };
            found.extend(page.items.into_iter().filter_map(|item| object(resource, item.metadata)));
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// The object of this name as it is now, whoever made it.
    ///
    /// # Errors
    /// Those of the cluster.
    pub async fn find(&self, api_version: &str, kind: &str, name: &str) -> Result<Option<(Object, Value)>> {
        let resource = resource_of(api_version, kind);
        let right = Right { verb: "get", resource: &resource.plural };
        let found = self.cluster.told(self.api(&resource).get_opt(name)).await?;
        let found = found.map_err(|error| self.refused(&error, right, &resource.api_version))?;
        Ok(found.and_then(|it| Some((object(&resource, it.metadata.clone())?, serde_json::to_value(it).ok()?))))
    }

    /// Removes it, and what it owns after it.
    ///
    /// # Errors
    /// Those of the cluster: then it may be there still.
    pub async fn delete(&self, object: &Object) -> Result<Removal> {
        let resource = resource_of(&object.api_version, &object.kind);
        let right = Right { verb: "delete", resource: &resource.plural };
        let only = Preconditions { uid: Some(object.uid.clone()), resource_version: None };
        let params = DeleteParams::background().preconditions(only);
        match self.cluster.told(self.api(&resource).delete(&object.name, &params)).await? {
            Ok(_) => Ok(Removal::Removed),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Removal::Gone),
            Err(kube::Error::Api(status)) if status.code == 409 && status.message.contains("UID") => {
                Ok(Removal::Replaced)
            }
            Err(error) => Err(self.refused(&error, right, &resource.api_version)),
        }
    }

    /// Server-side apply of any kind of object; what it does not say stays as it is.
    ///
    /// # Errors
    /// 400 for what is no object or names another namespace; 409 `APPLY_CONFLICT` with `managers` where other managers
    /// hold fields and `force` does not take them over; `OBJECT_REFUSED` with the cluster's reason; those of the cluster.
    pub async fn apply(&self, object: Value, force: bool) -> Result<Object> {
        let (resource, applied) = self.patched(object, force, false).await?;
        self::object(&resource, applied.metadata)
            .ok_or_else(|| away("an object that was applied came back without a name"))
    }

    async fn patched(&self, mut object: Value, force: bool, dry_run: bool) -> Result<(ApiResource, DynamicObject)> {
        let (resource, name) = self.own(&mut object)?;
        let right = Right { verb: "patch", resource: &resource.plural };
        let mut params = PatchParams::apply(MANAGER);
        params.force = force;
        params.dry_run = dry_run;
        let patch = Patch::Apply(object);
        match self.cluster.told(self.api(&resource).patch(&name, &params, &patch)).await? {
            Ok(applied) => Ok((resource, applied)),
            Err(kube::Error::Api(status)) if status.code == 409 || is_replaced(&status.message) => {
                let causes = status.details.iter().flat_map(|details| &details.causes);
                let mut managers: Vec<String> = causes.filter_map(|cause| manager(&cause.message)).collect();
                managers.sort();
                managers.dedup();
                let message = match managers.join(", ") {
                    nobody if nobody.is_empty() => format!("{} {name} was changed at this very moment", resource.kind),
                    who => format!("{} {name} has fields that are held by {who}", resource.kind),
                };
                Err(Error::conflict(APPLY_CONFLICT, message).detail("managers", managers).reason(status.message))
            }
            Err(error) => Err(self.refused(&error, right, &resource.api_version)),
        }
    }

    /// An object's kind and name; from here on it says our namespace.
    fn own(&self, object: &mut Value) -> Result<(ApiResource, String)> {
        let word = |object: &Value, path: &str| {
            let word = object.pointer(path).and_then(Value::as_str).filter(|word| !word.is_empty());
            word.map(str::to_owned)
                .ok_or_else(|| Error::invalid(format!("an object of the manifest has no {}", &path[1..])))
        };
        let types = TypeMeta { api_version: word(object, "/apiVersion")?, kind: word(object, "/kind")? };
        let name = word(object, "/metadata/name")?;
        let namespace = self.namespace();
        if object.pointer("/metadata/namespace").is_some_and(|its| !its.is_null() && its != namespace) {
            let message = format!("{} {name} is for another namespace than {namespace}", types.kind);
            return Err(Error::invalid(message));
        }
        object["metadata"]["namespace"] = namespace.into();
        Ok((resource_of(&types.api_version, &types.kind), name))
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        self.cluster.dynamic(resource)
    }

    fn refused(&self, error: &kube::Error, right: Right<'_>, api_version: &str) -> Error {
        let kube::Error::Api(status) = error else { return away(error) };
        match status.code {
            // Told apart from a quota, or from a policy of the namespace.
            403 if status.message.contains(" cannot ") || right.verb != "patch" => {
                forbidden(&status.message, right, self.namespace())
            }
            404 if right.verb == "list" || right.verb == "patch" => Error::new(
                Kind::BadGateway,
                "CLUSTER_KIND_UNKNOWN",
                format!("the cluster has no {} of {api_version} in the namespace {}", right.resource, self.namespace()),
            )
            .cause(&status.message),
            400 | 403 | 409 | 413 | 415 | 422 => refusal(&status.message),
            // Not the cluster's fault, though older ones say so: a field that it does not know, or a key that is left out.
            500 if status.message.contains("typed patch object") => refusal(&status.message),
            _ => away(error),
        }
    }
}

/// The cluster understood what was asked for and will not have it.
fn refusal(message: &str) -> Error {
    Error::new(Kind::BadGateway, "OBJECT_REFUSED", format!("the cluster refuses this object: {message}"))
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

fn resource_of(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn object(resource: &ApiResource, meta: ObjectMeta) -> Option<Object> {
    let labels = meta.labels.unwrap_or_default();
    Some(Object {
        kind: resource.kind.clone(),
        api_version: resource.api_version.clone(),
        name: meta.name?,
        uid: meta.uid?,
        project: labels.get(PROJECT_ID).cloned(),
        session: labels.get(SESSION_ID).cloned(),
        managed: labels.get(MANAGED_BY).is_some_and(|by| by == OURS),
        going: meta.deletion_timestamp.is_some(),
        owned: meta.owner_references.into_iter().flatten().any(|owner| owner.controller == Some(true)),
    })
}

/// The UID that was named is another object's by now: of one that is there it is a field that cannot change.
fn is_replaced(message: &str) -> bool {
    message.contains("metadata.uid: Invalid value")
}

/// `conflict with "kubectl" using apps/v1`.
fn manager(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("conflict with \"")?;
    rest.split_once('"').map(|(manager, _)| manager.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covered_kinds_are_named_as_the_cluster_names_them() {
        for (group, version, kind, plural) in COVERED.iter().chain([&SEEN_TOO]) {
            let it = resource(group, version, kind, plural);
            assert_eq!(resource_of(&it.api_version, kind), it);
        }
        assert!(Objects::covers("networking.k8s.io/v1", "Ingress") && Objects::covers("v1", "Secret"));
        assert!(!Objects::covers("v1", "Pod") && !Objects::covers("extensions/v1beta1", "Ingress"));
    }

    #[test]
    fn a_conflict_names_who_holds_the_field() {
        assert_eq!(manager("conflict with \"kubectl edit\" using apps/v1").as_deref(), Some("kubectl edit"));
        assert_eq!(manager("conflict"), None);
    }
}

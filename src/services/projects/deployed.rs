//! Places on a cluster that are made for their projects, and taking away all that a project has
//! there. Whatever carries a project's label and is ours goes, whatever its name; each object is
//! tried even when another one stays.

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{CREATE_TASK, DELETE_TASK, Projects};
use crate::{
    domain::{
        project::{Placed, Project, ProjectStatus},
        storage::Storage,
    },
    error::{Error, Kind, Result},
    runtime::{
        SeenPod,
        objects::{Fares, Object, Objects, Removal},
    },
    store,
};

/// Removed at once.
const AT_ONCE: usize = 8;

/// What places are made of that are made here.
#[derive(Clone, Debug, Default)]
pub struct PodDefaults {
    pub image: Option<String>,
    pub storage: Option<Storage>,
}

/// What was taken away of a project, and what stays although it carries the project's label.
#[derive(Debug, Default)]
pub struct Undeployed {
    pub deleted: Vec<Object>,
    pub left: Vec<Object>,
}

impl Undeployed {
    /// Kind and name of each.
    pub fn deleted_names(&self) -> Vec<(String, String)> {
        names(&self.deleted)
    }

    /// Likewise.
    pub fn left_names(&self) -> Vec<(String, String)> {
        names(&self.left)
    }
}

fn names(objects: &[Object]) -> Vec<(String, String)> {
    objects.iter().map(|object| (object.kind.clone(), object.name.clone())).collect()
}

impl Projects {
    /// Removes what the project has on a cluster, its place too where that is made here: until an image is asked for again.
    ///
    /// # Errors
    /// As [`Projects::take_away`].
    pub async fn undeploy(&self, project: &str) -> Result<Undeployed> {
        if self.objects().is_some() {
            store::projects::forget_image(&mut self.inner.db.conn().await?, project).await?;
        }
        self.take_away(project).await
    }

    /// Removes what is ours on a cluster and carries the project's label; nothing where there is no cluster.
    ///
    /// # Errors
    /// `UNDEPLOY_INCOMPLETE` with what was `deleted` and the `errors` of what was not.
    pub async fn take_away(&self, project: &str) -> Result<Undeployed> {
        let Some(objects) = self.objects() else { return Ok(Undeployed::default()) };
        let listing = objects.of_project(project).await;
        let mut errors: Vec<Value> = listing.errors.iter().map(|error| told(None, error)).collect();
        let going = listing.objects.into_iter().filter(|object| !object.going);
        let mut outcomes =
            stream::iter(going).map(|object| async { (objects.delete(&object).await, object) }).buffered(AT_ONCE);
        let mut deleted = Vec::new();
        while let Some((outcome, object)) = outcomes.next().await {
            match outcome {
                Ok(Removal::Removed) => deleted.push(object),
                Ok(Removal::Gone | Removal::Replaced) => {}
                Err(error) => errors.push(told(Some(&object), &error)),
            }
        }
        if errors.is_empty() {
            return Ok(Undeployed { deleted, left: objects.beyond(project).await });
        }
        tracing::warn!(project.id = project, errors = errors.len(), "not everything of a project was undeployed");
        let message = "not everything of this project could be removed from the cluster; repeat the call";
        Err(Error::new(Kind::BadGateway, "UNDEPLOY_INCOMPLETE", message)
            .detail("deleted", deleted.iter().map(shown).collect::<Vec<_>>())
            .detail("errors", errors))
    }

    /// The image of a new project's place, where that is to be made here.
    pub(super) fn image_for(&self, asked: Option<&String>) -> Option<String> {
        self.objects()?;
        asked.or(self.inner.pods.image.as_ref()).cloned()
    }

    /// Makes a new project's place; another one that is there already is the place.
    pub(super) async fn deploy_new(
        &self,
        id: &str,
        image: &str,
        asked: bool,
        pod: Option<&SeenPod>,
    ) -> Result<Option<Placed>> {
        match pod.filter(|pod| !pod.made) {
            Some(pod) if asked => Err(somebodys(&pod.name)),
            Some(_) => Ok(None),
            None => {
                self.deploy(id, image).await?;
                let workspace = self.inner.workspaces.runtime().paths(id).workspace;
                Ok(Some(Placed {
                    status: ProjectStatus::Pending,
                    pod: String::new(),
                    workspace,
                    address: String::new(),
                }))
            }
        }
    }

    /// Makes the project's place of this image from now on. Answers with the image, where there is a cluster for it.
    ///
    /// # Errors
    /// `PROJECT_DISCOVERED` where its place is somebody else's; `PROJECT_BUSY`; those of the cluster.
    pub(super) async fn redeploy(&self, project: &Project, image: Option<&String>) -> Result<Option<String>> {
        let runtime = self.inner.workspaces.runtime();
        let (Some(image), Some(seen)) = (image, runtime.seen()) else { return Ok(None) };
        let pod = seen.borrow().projects.get(&project.id).and_then(|sight| sight.pod.clone());
        if let Some(pod) = pod.filter(|pod| !pod.made) {
            return Err(somebodys(&pod.name));
        }
        let mut conn = self.inner.db.conn().await?;
        if store::tasks::one_exists(&mut conn, &[CREATE_TASK, DELETE_TASK], &project.id).await? {
            return Err(busy());
        }
        drop(conn);
        self.deploy(&project.id, image).await?;
        Ok(Some(image.clone()))
    }

    async fn deploy(&self, id: &str, image: &str) -> Result<()> {
        let Some(objects) = self.objects() else { return Ok(()) };
        objects.deploy(id, image, self.inner.pods.storage.as_ref()).await
    }

    /// How a project is whose place is made here and has no pod, and why.
    ///
    /// # Errors
    /// Those of the cluster.
    pub async fn without_pod(&self, project: &Project) -> Result<(ProjectStatus, Option<String>)> {
        let (Some(objects), Some(_)) = (self.objects(), &project.image) else {
            return Ok((ProjectStatus::NotFound, None));
        };
        Ok(match objects.fares(&project.id).await {
            Ok(Fares::Missing) => {
                (ProjectStatus::NotFound, Some("its Deployment is gone; PATCH image to make it again".into()))
            }
            Ok(Fares::Comes) => (ProjectStatus::Pending, None),
            Ok(Fares::Fails(why)) => (ProjectStatus::Failed, Some(why)),
            // A right that is missing does not come back by asking again.
            Err(error) if error.kind() == Kind::BadGateway => {
                (ProjectStatus::NotFound, Some(error.message().to_owned()))
            }
            Err(error) => return Err(error),
        })
    }

    fn objects(&self) -> Option<Objects> {
        self.inner.workspaces.runtime().objects()
    }
}

/// It is under way, one way or the other.
pub fn busy() -> Error {
    Error::conflict("PROJECT_BUSY", "this project is being made or deleted just now, try again when that has ended")
}

fn somebodys(pod: &str) -> Error {
    let message = "a pod which rdev does not manage is this project's place; delete the pod, or leave image out";
    Error::conflict("PROJECT_DISCOVERED", message).detail("pod", pod)
}

/// As clients see it.
pub fn shown(object: &Object) -> Value {
    json!({"kind": object.kind, "name": object.name})
}

fn told(object: Option<&Object>, error: &Error) -> Value {
    let mut told = json!({"code": error.stable_code(), "message": error.message()});
    if let Some(object) = object {
        told["kind"] = object.kind.as_str().into();
        told["name"] = object.name.as_str().into();
    }
    for (name, value) in error.details() {
        told[name.as_str()] = value.clone();
    }
    told
}

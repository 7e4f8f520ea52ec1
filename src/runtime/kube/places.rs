//! Which pod is a project's place, and how it is. Decided from what the cluster says of pods
//! alone; nothing here asks anybody.

use k8s_openapi::api::core::v1::{ConfigMap, ContainerState, ContainerStatus, Pod};
use kube::ResourceExt as _;

use crate::{
    domain::{ids::ProjectId, project::ProjectStatus},
    runtime::objects::{MANAGED_BY, OURS, PROJECT_ID},
};

pub const SELECTOR: &str = "rdev.orchard9.ai/project=true";
const NAME: &str = "rdev.orchard9.ai/name";
const DESCRIPTION: &str = "rdev.orchard9.ai/description";
const WORKSPACE: &str = "rdev.orchard9.ai/workspace";
const CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Where the workspace is unless the pod says otherwise.
pub const WORKSPACE_DEFAULT: &str = "/workspace";

/// Reasons for which a container waits that do not pass by themselves.
const STUCK: &[&str] = &[
    "CrashLoopBackOff",
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// A container that runs, and so a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub pod: String,
    pub uid: String,
    pub name: String,
    /// Another one after each restart.
    pub id: String,
}

impl Container {
    /// One text, for the row of a command.
    pub fn text(&self) -> String {
        format!("{}/{}/{}/{}", self.pod, self.uid, self.name, self.id)
    }

    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '/').map(str::to_owned);
        Some(Self { pod: parts.next()?, uid: parts.next()?, name: parts.next()?, id: parts.next()? })
    }
}

/// A pod that may be a project's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub project: String,
    pub description: Option<String>,
    pub pod: String,
    pub uid: String,
    pub status: ProjectStatus,
    /// Where it runs.
    pub container: Option<Container>,
    pub image: String,
    pub workspace: String,
    /// Its label says that it is ours.
    pub managed: bool,
    /// It is ours, for this very project, and something else looks after it.
    pub made: bool,
    /// Why it does not run, where the cluster says so.
    pub trouble: Option<String>,
    ready: bool,
    created: i64,
}

/// `None` for one that is no project's: no sound name, or on its way out.
pub fn candidate(pod: &Pod) -> Option<Candidate> {
    let labels = pod.labels();
    let project = labels.get(NAME).filter(|name| ProjectId::parse(name).is_ok())?;
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let wanted = pod.annotations().get(CONTAINER);
    let chosen = wanted.and_then(|name| spec.containers.iter().find(|container| container.name == *name));
    let chosen = chosen.or_else(|| spec.containers.first())?;
    let told = status_of(pod, &chosen.name);
    let container = running(pod, told);
    let ready = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_managed = labels.get(MANAGED_BY).is_some_and(|by| by == OURS);
    Some(Candidate {
        project: project.clone(),
        description: labels.get(DESCRIPTION).or_else(|| pod.annotations().get(DESCRIPTION)).cloned(),
        pod: pod.name_any(),
        uid: pod.uid()?,
        status: status(pod, told),
        image: chosen.image.clone().unwrap_or_default(),
        workspace: workspace(pod),
        managed: is_managed,
        made: is_managed && labels.get(PROJECT_ID) == Some(project) && is_controlled(pod),
        trouble: trouble(pod, told).filter(|_| container.is_none()),
        container,
        ready: ready.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        created: pod.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_millisecond()),
    })
}

/// Finds the pods of one project.
pub fn selector(project: &str) -> String {
    format!("{SELECTOR},{NAME}={project}")
}

/// The newest that is Ready; where none is, the newest that runs, else the newest.
pub fn place<'a>(candidates: impl IntoIterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    candidates.into_iter().max_by_key(|c| (c.ready, c.container.is_some(), c.created, c.uid.clone()))
}

/// The container of this name in the pod, as it is now; `None` when it does not run.
pub fn container(pod: &Pod, name: &str) -> Option<Container> {
    running(pod, status_of(pod, name))
}

/// The project that a labelled `ConfigMap` is about.
pub fn configured(map: &ConfigMap) -> Option<String> {
    map.labels().get(NAME).filter(|name| ProjectId::parse(name).is_ok()).cloned()
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|status| status.name == container)
}

fn running(pod: &Pod, told: Option<&ContainerStatus>) -> Option<Container> {
    let told = told?;
    told.state.as_ref()?.running.as_ref()?;
    Some(Container {
        pod: pod.name_any(),
        uid: pod.uid()?,
        name: told.name.clone(),
        id: told.container_id.clone().unwrap_or_else(|| told.restart_count.to_string()),
    })
}

fn status(pod: &Pod, told: Option<&ContainerStatus>) -> ProjectStatus {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let state = told.and_then(|told| told.state.as_ref());
    match state {
        Some(ContainerState { running: Some(_), .. }) => ProjectStatus::Running,
        _ if matches!(phase, "Failed" | "Succeeded") => ProjectStatus::Failed,
        Some(ContainerState { terminated: Some(_), .. }) => ProjectStatus::Failed,
        Some(ContainerState { waiting: Some(waiting), .. })
            if waiting.reason.as_deref().is_some_and(|reason| STUCK.contains(&reason)) =>
        {
            ProjectStatus::Failed
        }
        _ => ProjectStatus::Pending,
    }
}

fn is_controlled(pod: &Pod) -> bool {
    pod.owner_references().iter().any(|owner| owner.controller == Some(true))
}

/// What keeps a pod from running, in the cluster's words; nothing of one that is being started.
fn trouble(pod: &Pod, told: Option<&ContainerStatus>) -> Option<String> {
    let words = |reason: Option<&String>, message: Option<&String>| match (reason, message) {
        (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
        (reason, message) => reason.or(message).cloned(),
    };
    match told.and_then(|told| told.state.as_ref()) {
        Some(ContainerState { waiting: Some(waiting), .. })
            if waiting.reason.as_deref() != Some("ContainerCreating") =>
        {
            return words(waiting.reason.as_ref(), waiting.message.as_ref());
        }
        Some(ContainerState { terminated: Some(ended), .. }) => {
            let reason = ended.reason.as_deref().unwrap_or("it ended");
            return Some(format!("{reason}: exit code {}", ended.exit_code));
        }
        _ => {}
    }
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() == Some("Failed") {
        return words(status.reason.as_ref(), status.message.as_ref());
    }
    let unplaced = status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False")?;
    words(unplaced.reason.as_ref(), unplaced.message.as_ref())
}

/// Absolute and without tricks, else the default.
fn workspace(pod: &Pod) -> String {
    let wanted = pod.annotations().get(WORKSPACE).map(|path| path.trim_end_matches('/'));
    let sound = |path: &&str| {
        path.len() > 1 && path.starts_with('/') && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
    };
    wanted.filter(sound).unwrap_or(WORKSPACE_DEFAULT).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, created: &str, ready: &str, state: Value) -> Pod {
        let pod = json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": created,
                         "labels": {"rdev.orchard9.ai/project": "true", NAME: "p", DESCRIPTION: "words"}},
            "spec": {"containers": [{"name": "main", "image": "i"}, {"name": "other"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}],
                       "containerStatuses": [{"name": "main", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                                              "containerID": "containerd://abc/d", "state": state}]},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    fn runs() -> Value {
        json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    }

    #[test]
    fn the_newest_ready_one_is_the_place() {
        let old = candidate(&pod("old", "2026-01-01T00:00:00Z", "True", runs())).expect("one");
        let new = candidate(&pod("new", "2026-01-02T00:00:00Z", "True", runs())).expect("one");
        let newest = candidate(&pod("newest", "2026-01-03T00:00:00Z", "False", runs())).expect("one");
        assert_eq!(place([&old, &new, &newest]).expect("one").pod, "new");
        assert_eq!(place([&newest]).expect("one").pod, "newest");
        assert_eq!(place([]), None);
    }

    #[test]
    fn a_place_reads_back_what_it_writes() {
        let found = candidate(&pod("a", "2026-01-01T00:00:00Z", "True", runs())).expect("one");
        let container = found.container.expect("it runs");
        assert_eq!(Container::parse(&container.text()), Some(container));
        assert_eq!(Container::parse("a/b/c"), None);
    }

    #[test]
    fn status_is_the_containers() {
        for (state, status) in [
            (runs(), ProjectStatus::Running),
            (json!({"waiting": {"reason": "ContainerCreating"}}), ProjectStatus::Pending),
            (json!({"waiting": {"reason": "CrashLoopBackOff"}}), ProjectStatus::Failed),
            (json!({"terminated": {"exitCode": 0}}), ProjectStatus::Failed),
        ] {
            let found = candidate(&pod("a", "2026-01-01T00:00:00Z", "True", state.clone())).expect("one");
            assert_eq!(found.status, status, "{state}");
            assert_eq!(found.container.is_some(), status == ProjectStatus::Running);
        }
    }

    #[test]
    fn those_that_go_and_names_that_are_no_ids_are_nobodys() {
        let mut going = pod("a", "2026-01-01T00:00:00Z", "True", runs());
        going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
        assert_eq!(candidate(&going), None);
        let mut strange = pod("a", "2026-01-01T00:00:00Z", "True", runs());
        strange.labels_mut().insert(NAME.into(), "No.Id".into());
        assert_eq!(candidate(&strange), None);
    }

    #[test]
    fn annotations_choose_container_and_workspace() {
        let mut it = pod("a", "2026-01-01T00:00:00Z", "True", runs());
        it.annotations_mut().insert(CONTAINER.into(), "other".into());
        for (given, path) in
            [("/src/app/", "/src/app"), ("src", "/workspace"), ("/a/../b", "/workspace"), ("/", "/workspace")]
        {
            it.annotations_mut().insert(WORKSPACE.into(), given.into());
            let found = candidate(&it).expect("one");
            assert_eq!((found.workspace.as_str(), found.status), (path, ProjectStatus::Pending), "{given}");
        }
    }
}

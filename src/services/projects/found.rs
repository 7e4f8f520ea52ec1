//! Projects that are found by themselves: how one is made, what could not be used of what was
//! found, and letting one go whose pod is somebody else's.

use std::collections::HashMap;

use super::{super::receipts::Answer, NewProject, Projects};
use crate::{
    database::Conn,
    domain::{
        discovered::Memory,
        project::{Placed, Project, ProjectStatus},
    },
    error::{Error, Result},
    runtime::SeenPod,
    store,
};

impl Projects {
    /// Makes the project of a pod that was found.
    ///
    /// # Errors
    /// As [`Projects::create`].
    pub async fn discover(&self, new: NewProject, memory: &Memory) -> Result<Project> {
        self.create_as("discovered", None, new, memory, Answer::none()).await
    }

    /// Whether projects are found by themselves here.
    pub(super) fn finds_projects(&self) -> bool {
        self.inner.workspaces.runtime().seen().is_some()
    }

    /// Its deletion failed in part: whatever its pod does, it is `failed` until it is deleted.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn stays_failed(&self, tx: &mut Conn, id: &str) -> Result<()> {
        if self.finds_projects() {
            let memory = Memory { deleting: true, ..store::discovered::find(tx, id).await? };
            store::discovered::put(tx, id, &memory).await?;
        }
        Ok(())
    }

    /// What of the settings that were found for these projects could not be used.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn details(&self, projects: &[Project]) -> Result<HashMap<String, Vec<serde_json::Value>>> {
        if !self.finds_projects() {
            return Ok(HashMap::new());
        }
        let ids: Vec<String> = projects.iter().map(|project| project.id.clone()).collect();
        let found = store::discovered::all(&mut self.inner.db.conn().await?, &ids).await?;
        let told = found.into_iter().filter(|(_, memory)| !memory.details.is_empty());
        Ok(told.map(|(id, memory)| (id, memory.details)).collect())
    }

    /// A pod that somebody else made would make its project anew: deleting that has to be meant.
    ///
    /// # Errors
    /// `PROJECT_DISCOVERED`.
    pub async fn let_go(&self, project: &Project, forget: bool) -> Result<()> {
        let Some(seen) = self.inner.workspaces.runtime().seen() else { return Ok(()) };
        let sight = seen.borrow().projects.get(&project.id).cloned().unwrap_or_default();
        let Some(pod) = sight.pod.filter(|pod| !pod.made) else { return Ok(()) };
        if !pod.managed && !forget {
            let message =
                "this project is that of a pod which rdev does not manage; delete the pod, or repeat with forget=true";
            return Err(Error::conflict("PROJECT_DISCOVERED", message).detail("pod", pod.name));
        }
        let mut conn = self.inner.db.conn().await?;
        for uid in &sight.pods {
            store::discovered::ignore(&mut conn, uid).await?;
        }
        Ok(())
    }
}

/// As the surroundings show it; nothing is in it yet.
pub(super) fn placed(pod: Option<&SeenPod>, otherwise: String) -> Placed {
    Placed {
        status: pod.map_or(ProjectStatus::NotFound, |pod| pod.status),
        pod: pod.map(|pod| pod.name.clone()).unwrap_or_default(),
        workspace: pod.map_or(otherwise, |pod| pod.workspace.clone()),
        address: String::new(),
    }
}

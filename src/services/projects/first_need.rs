//! The workspace at first need: where places come and go by themselves, a clone is made in one
//! when something is to run there. Several processes may be at it at once: the credential whose
//! hash is stored is the one that has to be in the place, and whoever finds another one writes anew.

use super::{Projects, ProjectsReady};
use crate::{
    domain::project::Project,
    error::{Error, Result},
    forge::Credential,
    store,
};

/// Another process may write at the same moment; not for ever.
const ATTEMPTS: usize = 5;

impl Projects {
    /// Makes the workspace where it is not there yet. Answers whether there is git in the place: without it
    /// commands run in an empty folder.
    ///
    /// # Errors
    /// "project pod is not running", what keeps a pod from being a place, those of git.
    pub async fn make_ready(&self, project: &Project) -> Result<bool> {
        let inner = &self.inner;
        let Some(place) = inner.workspaces.runtime().place(&project.id)? else { return Ok(true) };
        if let Some(git) = inner.ready.known(&project.id, &place) {
            return Ok(git);
        }
        let turn = inner.ready.turn(&project.id);
        let _turn = turn.lock().await;
        if let Some(git) = inner.ready.known(&project.id, &place) {
            return Ok(git);
        }
        let git = inner.workspaces.runtime().has_git(&project.id).await?;
        if git {
            self.make_workspace(project).await?;
        }
        inner.ready.note(&project.id, &place, git);
        Ok(git)
    }

    /// Whether the workspace, with all that lies beside it, came through a restart of its container: one on no volume
    /// has not.
    ///
    /// # Errors
    /// Those of the place.
    pub async fn kept_its_workspace(&self, project: &str) -> Result<bool> {
        let inner = &self.inner;
        Ok(inner.workspaces.look(project, &inner.site.local).await?.is_some())
    }

    async fn make_workspace(&self, project: &Project) -> Result<()> {
        let inner = &self.inner;
        let (id, base) = (project.id.as_str(), inner.site.local.as_str());
        // A token that was made and not stored may have taken the stored one's place at the host.
        let mut overtaken = false;
        for _ in 0..ATTEMPTS {
            let there = inner.workspaces.look(id, base).await?;
            let known = store::projects::read_token(&mut inner.db.conn().await?, id).await?;
            if !overtaken && there.is_some() && there == known.as_deref().map(hex) {
                return Ok(());
            }
            let Credential { token, .. } = inner.forge.reader(id).await?;
            let mut conn = inner.db.conn().await?;
            overtaken = !store::projects::replace_read_token(&mut conn, id, known.as_deref(), &token.hash()).await?;
            drop(conn);
            if overtaken {
                continue;
            }
            inner.workspaces.provision(id, &project.default_branch, base, token.expose()).await?;
            store::projects::set_address(&mut inner.db.conn().await?, id, base).await?;
        }
        Err(Error::unavailable("the workspace", "other processes are making it"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

impl ProjectsReady {
    fn known(&self, project: &str, place: &str) -> Option<bool> {
        self.lock().get(project).and_then(|ready| ready.made.as_ref()).filter(|(made, _)| made == place).map(|it| it.1)
    }

    fn note(&self, project: &str, place: &str, git: bool) {
        self.lock().entry(project.to_owned()).or_default().made = Some((place.to_owned(), git));
    }

    /// One at a time makes a project's workspace here.
    fn turn(&self, project: &str) -> std::sync::Arc<tokio::sync::Mutex<()>> {
        self.lock().entry(project.to_owned()).or_default().turn.clone()
    }
}

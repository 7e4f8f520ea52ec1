//! Pipelines of a project at the CI server: begun again, and looked at. The server keeps them; rdev
//! keeps nothing but, for a step of a saga, what it takes to know a restart again.

use std::sync::Arc;

use crate::{
    ci::{Ci, CiError, Repository},
    database::Db,
    domain::{breaker::Snapshot, key::Key, pipeline::Pipeline, pipeline::PipelineStatus, project::Project},
    error::{Error, Result},
    store,
};

use super::receipts::Answer;

#[derive(Clone)]
pub struct Pipelines {
    inner: Arc<Parts>,
}

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub ci: Ci,
    /// Whose the repositories are, on a git host that the CI server knows too.
    pub owner: Option<String>,
}

/// A pipeline that was begun again.
#[derive(Debug, Clone)]
pub struct Retried {
    pub project_id: String,
    pub retried_from: i64,
    pub pipeline: Pipeline,
    /// For people.
    pub url: String,
}

/// By what a restart is known again: the newest pipeline that there was before it was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Before(pub i64);

impl Pipelines {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    /// Whether there is a CI server at all.
    pub fn is_configured(&self) -> bool {
        self.inner.ci.is_configured()
    }

    /// Its circuit, where there is one.
    pub fn circuit(&self) -> Option<(String, Snapshot)> {
        self.inner.ci.circuit()
    }

    /// Begins a pipeline again that has ended.
    ///
    /// # Errors
    /// `CI_NOT_CONFIGURED`, not found, `PIPELINE_RUNNING`, those of the CI server.
    pub async fn retry(&self, caller: &Key, project: &Project, number: i64) -> Result<Retried> {
        let repository = self.repository(project).await?;
        self.must_have_ended(&repository, number).await?;
        let retried = self.restart(project, &repository, number).await?;
        let (key, made) = (caller.id, retried.pipeline.number);
        tracing::info!(project.id = project.id, key.id = %key, pipeline = number, retried_as = made, "retried");
        Ok(retried)
    }

    /// As [`Pipelines::retry`], but once for all who share a note: what is kept by `answer` before the
    /// server is asked comes back as `before`, and a restart that came after that is taken for theirs.
    ///
    /// # Errors
    /// Likewise; those of the keeper, and nothing was asked for then.
    pub async fn retry_once(
        &self,
        project: &Project,
        number: i64,
        before: Option<Before>,
        answer: Answer<Before>,
    ) -> Result<Retried> {
        let repository = self.repository(project).await?;
        if let Some(before) = before
            && let Some(retried) = self.begun(project, &repository, number, before).await?
        {
            return Ok(retried);
        }
        self.must_have_ended(&repository, number).await?;
        let before = match before {
            Some(before) => before,
            None => Before(self.inner.ci.newest(&repository).await?),
        };
        let mut tx = self.inner.db.begin().await?;
        answer.keep(&mut tx, &before).await?;
        tx.commit().await?;
        self.restart(project, &repository, number).await
    }

    /// The restart that somebody asked for after `before`, where there is one.
    ///
    /// # Errors
    /// `CI_NOT_CONFIGURED`, not found, those of the CI server.
    pub async fn find_retried(&self, project: &Project, number: i64, before: Before) -> Result<Option<Retried>> {
        let repository = self.repository(project).await?;
        self.begun(project, &repository, number, before).await
    }

    /// # Errors
    /// `CI_NOT_CONFIGURED`, not found, those of the CI server.
    pub async fn get(&self, project: &Project, number: i64) -> Result<Pipeline> {
        let repository = self.repository(project).await?;
        Ok(self.inner.ci.pipeline(&repository, number).await?)
    }

    async fn begun(
        &self,
        project: &Project,
        repository: &Repository,
        number: i64,
        before: Before,
    ) -> Result<Option<Retried>> {
        let found = self.inner.ci.restarted(repository, number, before.0).await?;
        Ok(found.map(|pipeline| self.retried(project, repository, number, pipeline)))
    }

    async fn restart(&self, project: &Project, repository: &Repository, number: i64) -> Result<Retried> {
        let pipeline = self.inner.ci.restart(repository, number).await?;
        Ok(self.retried(project, repository, number, pipeline))
    }

    fn retried(&self, project: &Project, repository: &Repository, number: i64, pipeline: Pipeline) -> Retried {
        let url = self.inner.ci.page(repository, pipeline.number);
        Retried { project_id: project.id.clone(), retried_from: number, pipeline, url }
    }

    async fn must_have_ended(&self, repository: &Repository, number: i64) -> Result<()> {
        let Pipeline { status, is_over, .. } = self.inner.ci.pipeline(repository, number).await?;
        if is_over {
            return Ok(());
        }
        let message = match status {
            PipelineStatus::Blocked => {
                "the pipeline waits for somebody to approve it; it can be retried when it has ended"
            }
            _ => "the pipeline is still running; it can be retried when it has ended",
        };
        Err(Error::conflict("PIPELINE_RUNNING", message).detail("status", status.text()))
    }

    /// The project's repository as the CI server knows it.
    async fn repository(&self, project: &Project) -> Result<Repository> {
        if !self.is_configured() {
            return Err(CiError::NotConfigured.into());
        }
        let name = match &self.inner.owner {
            Some(owner) => Some(format!("{owner}/{}", project.id)),
            None => store::imports::find(&mut self.inner.db.conn().await?, &project.id).await?,
        };
        let name = name.ok_or_else(|| {
            Error::not_found(
                "no CI server knows this project's repository: it was not imported from one, and lives in rdev alone",
            )
        })?;
        Ok(self.inner.ci.repository(&name).await?)
    }
}

//! `pipeline.wait`: waits for the end of a pipeline at the CI server, however long that takes. Only a
//! success is one: what is skipped or declined has done nothing.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::Value;

use super::{
    ATTEMPTS, LOOK, ended,
    pipeline::{Config, UNCONFIGURED, failed, output},
};
use crate::{
    domain::{
        pipeline::{Pipeline, PipelineStatus},
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
    },
    services::{
        pipelines::Pipelines,
        sagas::{Action, Attempt},
    },
};

/// Longest pause between two looks; nobody tells rdev of the end.
const LOOK_MAX: Duration = Duration::from_secs(5);

pub struct PipelineWait {
    pub pipelines: Pipelines,
}

impl PipelineWait {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let Config { project, number } = attempt.read(Config::read)?;
        let (_, project) = attempt.project(&project).await?;
        let mut pause = LOOK;
        loop {
            let pipeline = self.pipelines.get(&project, number).await;
            let pipeline = pipeline.map_err(|error| failed(attempt, &error))?;
            if pipeline.is_over {
                return verdict(&pipeline);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOK_MAX);
        }
    }
}

fn verdict(pipeline: &Pipeline) -> Result<Value, Outcome> {
    match pipeline.status {
        PipelineStatus::Success => Ok(output(pipeline)),
        status => Err(Outcome::never(format!("pipeline {} ended: {}", pipeline.number, status.text()))),
    }
}

impl Rules for PipelineWait {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        false
    }

    fn unavailable(&self) -> Option<&str> {
        (!self.pipelines.is_configured()).then_some(UNCONFIGURED)
    }

    fn check(&self, fields: &mut Fields<'_>) {
        Config::read(fields);
    }
}

impl Action for PipelineWait {
    fn name(&self) -> &'static str {
        "pipeline.wait"
    }

    fn nature(&self) -> Nature {
        Nature { resumes: true, ..ATTEMPTS }
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::ProjectsRead, Scope::ProjectsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }
}

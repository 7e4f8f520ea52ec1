//! `pipeline.retry`: a pipeline begun again at the CI server, which knows no idempotency key. So the
//! newest pipeline is noted before it is asked, and whoever comes after a crash looks among those that
//! came later for a restart before there is a second one.

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};

use super::{
    ATTEMPTS, LOOK, ended, noted,
    pipeline::{Config, UNCONFIGURED, failed, output},
};
use crate::{
    domain::{
        project::Project,
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
    },
    services::{
        pipelines::{Before, Pipelines},
        sagas::{Action, Attempt},
    },
};

/// What was asked for has shown itself by then, or did not arrive.
const SETTLED: TimeDelta = TimeDelta::seconds(5);

pub struct PipelineRetry {
    pub pipelines: Pipelines,
}

impl PipelineRetry {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let found = noted(attempt).and_then(|noted| Some((Before(noted.note["before"].as_i64()?), noted)));
        match found {
            None => self.ask(attempt, None).await,
            Some((before, noted)) if noted.resumed => {
                self.resume(attempt, before, asked_at(&noted.note)).await.map_err(in_doubt)
            }
            Some((before, _)) => self.ask(attempt, Some(before)).await.map_err(in_doubt),
        }
    }

    async fn ask(&self, attempt: &Attempt, before: Option<Before>) -> Result<Value, Outcome> {
        let (project, number) = target(attempt).await?;
        let now = attempt.sagas().now();
        let answer = attempt.answer(move |before: &Before| json!({"before": before.0, "asked_at": now}));
        let retried = self.pipelines.retry_once(&project, number, before, answer).await;
        retried.map(|retried| output(&retried.pipeline)).map_err(|error| failed(attempt, &error))
    }

    /// Nobody heard what the server said to this very attempt.
    async fn resume(
        &self,
        attempt: &Attempt,
        before: Before,
        asked_at: Option<DateTime<Utc>>,
    ) -> Result<Value, Outcome> {
        let (project, number) = target(attempt).await?;
        let until = asked_at.unwrap_or_else(|| attempt.sagas().now()) + SETTLED;
        loop {
            let is_settled = attempt.sagas().now() >= until;
            let begun = self.pipelines.find_retried(&project, number, before).await;
            if let Some(retried) = begun.map_err(|error| failed(attempt, &error))? {
                return Ok(output(&retried.pipeline));
            }
            if is_settled {
                let why = "it was cut off when it was asked for, and no new pipeline has come of it";
                return Err(Outcome::CutOff(why.into()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn target(attempt: &Attempt) -> Result<(Project, i64), Outcome> {
    let Config { project, number } = attempt.read(Config::read)?;
    let (_, project) = attempt.project(&project).await?;
    Ok((project, number))
}

fn asked_at(note: &Value) -> Option<DateTime<Utc>> {
    note["asked_at"].as_str()?.parse().ok()
}

/// The note stays: whoever comes next looks as well.
fn in_doubt(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Failed { error, retry, .. } => Outcome::Failed { error, retry, partly: true },
        other => other,
    }
}

impl Rules for PipelineRetry {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        false
    }

    fn has_effect(&self) -> bool {
        true
    }

    fn unavailable(&self) -> Option<&str> {
        (!self.pipelines.is_configured()).then_some(UNCONFIGURED)
    }

    fn check(&self, fields: &mut Fields<'_>) {
        Config::read(fields);
    }
}

impl Action for PipelineRetry {
    fn name(&self) -> &'static str {
        "pipeline.retry"
    }

    /// An attempt that wrote nothing down has asked for nothing.
    fn nature(&self) -> Nature {
        ATTEMPTS
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::ProjectsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}

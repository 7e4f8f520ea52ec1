//! `job.wait`: waits for a job that the saga's maker has submitted, however long it takes.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};

use super::{ATTEMPTS, LOOK, ended, failed, insistently, kept};
use crate::{
    domain::{
        ids,
        job::{Job, JobState},
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
    },
    services::{
        jobs::Jobs,
        sagas::{Action, Attempt},
    },
};

/// Of one wait; there are as many as it takes.
const SLICE: Duration = Duration::from_mins(10);

pub struct JobWait {
    pub jobs: Jobs,
}

fn read(fields: &mut Fields<'_>) -> String {
    fields.required_text("job_id")
}

impl JobWait {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let id = attempt.read(read)?;
        if !ids::is_ulid(&id) {
            return Err(Outcome::never("job not found"));
        }
        let caller = insistently(|| attempt.caller()).await.map_err(failed)?;
        let job = insistently(|| self.jobs.get_own(&caller, &id)).await.map_err(failed)?;
        let job = self.end(job).await?;
        let said = job.error.as_deref().unwrap_or("no reason is known").to_owned();
        match job.state {
            JobState::Completed => {
                let whole = insistently(|| self.jobs.whole(job.clone())).await.map_err(failed)?;
                let result = whole.result.and_then(|result| serde_json::from_str(result.get()).ok());
                Ok(json!({"state": job.state, "result": kept(result.unwrap_or_default())}))
            }
            JobState::Cancelled => Err(Outcome::never("the job was cancelled")),
            _ => Err(Outcome::never(format!("the job failed: {said}"))),
        }
    }

    async fn end(&self, mut job: Job) -> Result<Job, Outcome> {
        while !job.state.is_ended() {
            job = insistently(|| self.jobs.wait(job.clone(), SLICE)).await.map_err(failed)?;
            if !job.state.is_ended() {
                // At the server's stop nobody is made to wait.
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(job)
    }
}

impl Rules for JobWait {
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
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        read(fields);
    }
}

impl Action for JobWait {
    fn name(&self) -> &'static str {
        "job.wait"
    }

    fn nature(&self) -> Nature {
        Nature { resumes: true, ..ATTEMPTS }
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::JobsRead, Scope::JobsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }
}

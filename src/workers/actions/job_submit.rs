//! `job.submit`: a job for a model, as POST `/jobs` takes one. Its config is the request.

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};

use super::{ATTEMPTS, ended, failed, made, noted};
use crate::{
    domain::{
        job::PRIORITY_MAX,
        saga::{Nature, Outcome, check::Rules, fields::Fields},
        scopes::Scope,
        task::PRIORITY,
    },
    error::Kind,
    services::{
        jobs::{Jobs, Submission},
        sagas::{Action, Attempt},
    },
};

pub struct JobSubmit {
    pub jobs: Jobs,
}

struct Config {
    model: String,
    priority: i16,
    webhook_url: Option<String>,
}

impl Config {
    fn read(fields: &mut Fields<'_>) -> Self {
        let model = fields.required_text("model");
        if !fields.has("messages") {
            fields.problem("messages", "is required");
        } else if fields.value("messages").is_some_and(|messages| !messages.is_array()) {
            fields.problem("messages", "must be a list");
        }
        let priority = fields.whole("priority", 0..=PRIORITY_MAX.into()).and_then(|n| i16::try_from(n).ok());
        let webhook_url = fields.text("state_webhook_url").filter(|url| !url.is_empty());
        Self { model, priority: priority.unwrap_or(PRIORITY), webhook_url }
    }
}

impl JobSubmit {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        if let Some(noted) = noted(attempt) {
            return Ok(json!({"job_id": noted.note["job_id"]}));
        }
        let Config { model, priority, webhook_url } = attempt.read(Config::read)?;
        let caller = attempt.caller().await.map_err(failed)?;
        let payload = attempt.begin.config.to_string().into();
        let answer = attempt.answer(|id: &String| json!({"job_id": id}));
        let new = Submission { model, priority, webhook_url, payload };
        let id = self.jobs.submit(&caller, new, answer).await.map_err(failed)?;
        Ok(json!({"job_id": id}))
    }

    async fn cancel(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let Some(id) = made(attempt, "job_id") else { return Ok(Value::Null) };
        let cancelled = async {
            let caller = attempt.caller().await?;
            let job = self.jobs.get_own(&caller, &id).await?;
            self.jobs.cancel(&job, Some(caller.id)).await
        };
        match cancelled.await {
            Err(error) if error.kind() != Kind::NotFound => Err(failed(error)),
            _ => Ok(Value::Null),
        }
    }
}

impl Rules for JobSubmit {
    fn may_compensate(&self) -> bool {
        true
    }

    fn undoes_itself(&self) -> bool {
        true
    }

    fn has_effect(&self) -> bool {
        true
    }

    fn unavailable(&self) -> Option<&str> {
        None
    }

    fn check(&self, fields: &mut Fields<'_>) {
        Config::read(fields);
    }
}

impl Action for JobSubmit {
    fn name(&self) -> &'static str {
        "job.submit"
    }

    fn nature(&self) -> Nature {
        Nature { undoes_itself: true, ..ATTEMPTS }
    }

    fn scopes(&self) -> &'static [Scope] {
        &[Scope::JobsExecute]
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }

    fn undo<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.cancel(attempt).await) }.boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(config: Value) -> Result<Config, String> {
        super::super::read(config.as_object().expect("an object"), Config::read)
    }

    #[test]
    fn it_is_as_a_job_is_posted() {
        let read = config(json!({"model": "m", "messages": [], "options": {"seed": 1}})).expect("it is in order");
        assert_eq!((read.model.as_str(), read.priority, read.webhook_url), ("m", PRIORITY, None));
        for (members, path) in [
            (json!({"messages": []}), "config.model"),
            (json!({"model": "m"}), "config.messages"),
            (json!({"model": "m", "messages": "hello"}), "config.messages"),
            (json!({"model": "m", "messages": [], "priority": 10}), "config.priority"),
        ] {
            let told = config(members.clone()).err().unwrap_or_default();
            assert!(told.starts_with(&format!("{path}: ")), "{members}: {told}");
        }
    }
}

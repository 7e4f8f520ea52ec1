//! `saga.start`: a saga as a step of another one. It is started once, whatever dies; what becomes of
//! it is what becomes of the step, and undoing the step rolls it back.

use std::collections::BTreeMap;

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{ATTEMPTS, LOOK, ended, failed, insistently, kept, made, noted};
use crate::{
    domain::saga::{Control, Nature, Outcome, Retry, SagaStatus, check::Rules, fields::Fields, spec::StepSpec},
    error::{Kind, Result},
    services::sagas::{Action, Attempt, StartChild},
};

pub struct SagaStart;

struct Config {
    definition: Option<String>,
    steps: Option<Value>,
    vars: BTreeMap<String, String>,
    name: Option<String>,
    wait: bool,
}

impl Config {
    fn read(fields: &mut Fields<'_>) -> Self {
        fields.exactly_one(&["definition", "steps"]);
        let definition = fields.has("definition").then(|| fields.required_text("definition"));
        let name = fields.has("name").then(|| fields.required_text("name"));
        let (steps, vars) = (fields.value("steps"), fields.text_map("vars"));
        Self { definition, steps, vars, name, wait: fields.flag("wait").unwrap_or(true) }
    }

    fn child(self) -> Result<StartChild, Outcome> {
        let steps = self.steps.map(serde_json::from_value::<Vec<StepSpec>>).transpose();
        let steps = steps.map_err(|error| Outcome::never(format!("config.steps: {error}")))?;
        Ok(StartChild { name: self.name, definition: self.definition, steps, vars: self.vars })
    }
}

impl SagaStart {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let config = attempt.read(Config::read)?;
        let wait = config.wait;
        let id = match begun(attempt).await? {
            Some(id) => id,
            None => attempt.sagas().start_child(attempt, config.child()?).await?,
        };
        if !wait {
            return Ok(json!({"saga_id": id}));
        }
        let (status, error) = status_once(attempt, id, is_at_rest).await.map_err(failed)?;
        if status == SagaStatus::Completed {
            let outputs = insistently(|| attempt.sagas().outputs(id)).await.map_err(failed)?;
            return Ok(json!({"saga_id": id, "outputs": kept(outputs)}));
        }
        let why = error.map(|error| format!(": {error}")).unwrap_or_default();
        Err(Outcome::Failed {
            error: format!("the saga {id} is {}{why}", status.text()),
            retry: Retry::Never,
            partly: status != SagaStatus::Compensated,
        })
    }

    /// Rolls the child back, wherever it stands.
    async fn roll_back(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let Some(id) = made(attempt, "saga_id").and_then(|id| id.parse::<Uuid>().ok()) else { return Ok(Value::Null) };
        let mut asked = false;
        loop {
            let seen = status_once(attempt, id, |status| status != SagaStatus::Compensating).await;
            let (status, error) = match seen {
                Err(error) if error.kind() == Kind::NotFound => return Ok(Value::Null),
                seen => seen.map_err(failed)?,
            };
            let control = match status {
                SagaStatus::Compensated | SagaStatus::Cancelled => return Ok(Value::Null),
                SagaStatus::Stuck if asked => {
                    return Err(Outcome::failed(format!("the saga {id} is stuck: {}", error.unwrap_or_default())));
                }
                SagaStatus::Pending | SagaStatus::Running | SagaStatus::Waiting => {
                    cancel("the step that started it is undone")
                }
                _ => Control::Rollback,
            };
            match insistently(|| attempt.sagas().control_as(attempt, id, control.clone())).await {
                Ok(_) => asked = true,
                // It has moved meanwhile, or is gone.
                Err(error) if matches!(error.kind(), Kind::Conflict | Kind::NotFound) => {
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    async fn give_up(&self, attempt: &Attempt, why: String) -> Outcome {
        let id = noted(attempt).filter(|_| !attempt.begin.itself).and_then(|noted| child_of(&noted.note));
        let Some(id) = id else { return Outcome::CutOff(why) };
        match attempt.sagas().control_as(attempt, id, cancel(&why)).await {
            Err(error) if error.kind() == Kind::NotFound => return Outcome::CutOff(why),
            Err(error) => tracing::debug!(%error, saga.id = %id, "a saga that is given up was not cancelled"),
            Ok(_) => {}
        }
        Outcome::Failed { error: why, retry: Retry::Never, partly: true }
    }
}

/// The child that this attempt had started before its process died; or that of an earlier one, set
/// going again where it had failed.
async fn begun(attempt: &Attempt) -> Result<Option<Uuid>, Outcome> {
    let Some(noted) = noted(attempt) else { return Ok(None) };
    let Some(id) = child_of(&noted.note) else { return Ok(None) };
    if noted.resumed {
        return Ok(Some(id));
    }
    loop {
        let status = match status_once(attempt, id, |status| status != SagaStatus::Compensating).await {
            Ok((status, _)) => status,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match status {
            SagaStatus::Cancelled | SagaStatus::Compensated => return Ok(None),
            SagaStatus::Failed => {}
            _ => return Ok(Some(id)),
        }
        match insistently(|| attempt.sagas().control_as(attempt, id, Control::Retry)).await {
            Ok(_) => return Ok(Some(id)),
            // Somebody else was quicker.
            Err(error) if error.kind() == Kind::Conflict => tokio::time::sleep(LOOK).await,
            Err(error) => return Err(failed(error)),
        }
    }
}

fn child_of(note: &Value) -> Option<Uuid> {
    note["saga_id"].as_str()?.parse().ok()
}

async fn status_once(
    attempt: &Attempt,
    id: Uuid,
    holds: fn(SagaStatus) -> bool,
) -> Result<(SagaStatus, Option<String>)> {
    insistently(|| attempt.sagas().wait_for(id, holds)).await
}

fn is_at_rest(status: SagaStatus) -> bool {
    !status.is_at_work() && status != SagaStatus::Pending
}

fn cancel(reason: &str) -> Control {
    Control::Cancel { compensate: true, reason: Some(reason.to_owned()) }
}

impl Rules for SagaStart {
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

    fn child<'c>(&self, config: &'c Map<String, Value>) -> Option<&'c Value> {
        config.get("steps")
    }
}

impl Action for SagaStart {
    fn name(&self) -> &'static str {
        "saga.start"
    }

    fn nature(&self) -> Nature {
        Nature { undoes_itself: true, verbatim: Some("steps"), ..ATTEMPTS }
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.run(attempt).await) }.boxed()
    }

    fn undo<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.roll_back(attempt).await) }.boxed()
    }

    fn cut<'a>(&'a self, attempt: &'a Attempt, why: String) -> BoxFuture<'a, Outcome> {
        self.give_up(attempt, why).boxed()
    }
}

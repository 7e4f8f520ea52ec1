//! What steps of sagas can do: a file for each action, and all of them in one list.
//!
//! An action reads its config by one function, when the saga is made and when the step runs. What
//! it makes is noted in the transaction that makes it, so an attempt that comes after a crash finds
//! it and goes on. A crash may be between any two lines here.

mod approval;
mod checkout_checkin;
mod checkout_create;
mod command_run;
mod deploy_apply;
mod deploy_undeploy;
mod http_request;
mod job_submit;
mod job_wait;
mod noop;
mod pipeline;
mod pipeline_retry;
mod pipeline_wait;
mod registry_preflight;
mod saga_start;
mod session_create;
mod session_end;
mod sleep;
mod works;

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio_util::task::TaskTracker;

use self::works::Works;
use crate::{
    domain::saga::{Nature, Outcome, Performs, fields::Fields},
    error::{Error, Kind, Result},
    services::{
        callouts::Callouts,
        checkouts::Checkouts,
        commands::Commands,
        deploys::Deploys,
        jobs::Jobs,
        output::Outputs,
        pipelines::Pipelines,
        projects::Projects,
        sagas::{Action, Attempt, outcome},
        sessions::Sessions,
    },
};

/// What actions are made of.
pub struct Services {
    pub callouts: Callouts,
    pub checkouts: Checkouts,
    pub commands: Commands,
    pub deploys: Deploys,
    pub jobs: Jobs,
    pub outputs: Outputs,
    pub pipelines: Pipelines,
    pub projects: Projects,
    pub sessions: Sessions,
    /// Shortest life of a checkout or session.
    pub min_expires_in: Duration,
    /// Where calls of services run that must not stop half-way.
    pub tasks: TaskTracker,
}

/// Every action there is.
pub fn all(services: Services) -> Vec<Arc<dyn Action>> {
    let Services {
        callouts,
        checkouts,
        commands,
        deploys,
        jobs,
        outputs,
        pipelines,
        projects,
        sessions,
        min_expires_in,
        tasks,
    } = services;
    let works = Works::new(tasks);
    vec![
        Arc::new(noop::Noop),
        Arc::new(sleep::Sleep),
        Arc::new(approval::Approval),
        Arc::new(http_request::HttpRequest { callouts: callouts.clone() }),
        Arc::new(registry_preflight::RegistryPreflight { callouts }),
        Arc::new(command_run::CommandRun { commands, outputs, works: works.clone() }),
        Arc::new(checkout_create::CheckoutCreate {
            checkouts: checkouts.clone(),
            min_expires_in,
            works: works.clone(),
        }),
        Arc::new(checkout_checkin::CheckoutCheckin { checkouts: checkouts.clone(), works: works.clone() }),
        Arc::new(session_create::SessionCreate {
            sessions: sessions.clone(),
            checkouts,
            min_expires_in,
            works: works.clone(),
        }),
        Arc::new(session_end::SessionEnd { sessions, works: works.clone() }),
        Arc::new(deploy_apply::DeployApply { deploys: deploys.clone(), works: works.clone() }),
        Arc::new(deploy_undeploy::DeployUndeploy { deploys, projects, works }),
        Arc::new(job_submit::JobSubmit { jobs: jobs.clone() }),
        Arc::new(job_wait::JobWait { jobs }),
        Arc::new(saga_start::SagaStart),
        Arc::new(pipeline_retry::PipelineRetry { pipelines: pipelines.clone() }),
        Arc::new(pipeline_wait::PipelineWait { pipelines }),
    ]
}

/// Of most actions.
const ATTEMPTS: Nature = Nature {
    performs: Performs::Attempts,
    idempotent: true,
    leaves_doubt: false,
    resumes: false,
    undoes_itself: false,
    verbatim: None,
};

/// Pause before somebody else's work is looked at again.
const LOOK: Duration = Duration::from_millis(300);
/// While the database is away.
const AGAIN: Duration = Duration::from_secs(1);
/// What nests deeper is kept as text: what is stored must be read back, with what is around it.
const DEPTH_MAX: usize = 64;

/// How an attempt ended whose failures were passed up.
fn ended(result: Result<Value, Outcome>) -> Outcome {
    result.map_or_else(|failed| failed, Outcome::Done)
}

fn failed(error: Error) -> Outcome {
    outcome(&error)
}

/// What an attempt of this step made.
struct Noted {
    note: Value,
    /// It was this very attempt: the process that made it died.
    resumed: bool,
}

/// As [`Attempt::note`], unless it is of the step that is compensated by another action.
fn noted(attempt: &Attempt) -> Option<Noted> {
    let note = attempt.note()?;
    let of_undo = note["undo"] == true;
    let resumed = note["attempt"] == attempt.number();
    (of_undo == attempt.is_undo()).then_some(Noted { note, resumed })
}

/// All that most undoes want of a config.
fn project(fields: &mut Fields<'_>) -> String {
    fields.project()
}

/// What the step made that is undone: by its output, or by what it noted on the way.
fn made(attempt: &Attempt, name: &str) -> Option<String> {
    let of = |value: &Value| value[name].as_str().map(str::to_owned);
    attempt.output().and_then(of).or_else(|| attempt.note().as_ref().and_then(of))
}

/// Asks for as long as the database is away: what goes on elsewhere goes on meanwhile, and is not
/// begun once more because nobody could look at it.
async fn insistently<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> Result<T> {
    loop {
        match ask().await {
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => {
                tracing::debug!(%error, "a step of a saga asks again shortly");
                tokio::time::sleep(AGAIN).await;
            }
            answer => return answer,
        }
    }
}

/// Reads the config of an action that is not carried out in attempts.
fn read<T>(members: &Map<String, Value>, read: impl FnOnce(&mut Fields<'_>) -> T) -> Result<T, String> {
    let mut problems = Vec::new();
    let config = read(&mut Fields::new(members, "config", &mut problems));
    if problems.is_empty() {
        return Ok(config);
    }
    let said: Vec<String> = problems.iter().map(|one| format!("{}: {}", one.path, one.message)).collect();
    Err(said.join("; "))
}

/// The value, or its text where it nests too deep to be kept as it is.
fn kept(value: Value) -> Value {
    if nests_deeper(&value, DEPTH_MAX) { Value::String(value.to_string()) } else { value }
}

fn nests_deeper(value: &Value, than: usize) -> bool {
    match value {
        Value::Array(items) => than == 0 || items.iter().any(|item| nests_deeper(item, than - 1)),
        Value::Object(members) => than == 0 || members.values().any(|member| nests_deeper(member, than - 1)),
        _ => false,
    }
}

/// The first `most` bytes as text that can be shown and stored.
fn excerpt(bytes: &[u8], most: usize) -> String {
    let cut = bytes.len() > most;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(most)]);
    let text = text.trim().replace('\0', "\u{fffd}");
    if cut { format!("{text}…") } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nests_too_deep_is_kept_as_text() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(kept(nested(DEPTH_MAX)), nested(DEPTH_MAX));
        assert_eq!(kept(nested(DEPTH_MAX + 1)), Value::String(nested(DEPTH_MAX + 1).to_string()));
        assert_eq!(kept(json!({"a": [1, {"b": null}]})), json!({"a": [1, {"b": null}]}));
    }

    #[test]
    fn an_excerpt_says_that_there_is_more() {
        assert_eq!(excerpt(b" nobody is here\n", 100), "nobody is here");
        assert_eq!(excerpt(b"nobody is here", 6), "nobody…");
        assert_eq!(excerpt("é".as_bytes(), 1), "\u{fffd}…");
        assert_eq!(excerpt(b"a\0b", 100), "a\u{fffd}b");
    }

    proptest! {
        #[test]
        fn no_excerpt_is_much_longer_than_asked_or_holds_a_nul(bytes: Vec<u8>, most in 0..100_usize) {
            let text = excerpt(&bytes, most);
            prop_assert!(text.chars().count() <= most + 1 && !text.contains('\0'));
        }
    }
}

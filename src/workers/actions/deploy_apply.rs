//! `deploy.apply`: objects of a project on the cluster, by server-side apply. Undone by itself: what
//! it made is removed, what it changed is put back, after a crash half-way too.

use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};

use super::{ATTEMPTS, ended, failed, noted, works::Works};
use crate::{
    domain::{
        manifest::{self, Place},
        saga::{Nature, Outcome, check::Rules, fields::Fields},
    },
    error::Error,
    services::{
        deploys::{Applied, Deployment, Deploys, Record, is_passing_conflict},
        sagas::{Action, Attempt},
    },
};

/// Why it cannot run on this server.
pub const NO_CLUSTER: &str = "needs a Kubernetes runtime, which this server does not have";
/// Refusals that stay: another attempt with the same objects would hear the same.
const FINAL: [&str; 2] = ["OBJECT_REFUSED", "CLUSTER_KIND_UNKNOWN"];

pub struct DeployApply {
    pub deploys: Deploys,
    pub works: Works,
}

struct Config {
    project: String,
    /// None where they are not known yet.
    objects: Vec<Value>,
    force: bool,
}

impl Config {
    fn read(fields: &mut Fields<'_>, namespace: Option<&str>) -> Self {
        let (project, force) = (fields.project(), fields.flag("force").unwrap_or(false));
        let is_open = fields.is_open("manifest");
        if !fields.has("manifest") {
            fields.problem("manifest", "is required");
        }
        let objects = fields.value("manifest").map(|manifest| manifest::read(&manifest)).transpose();
        let objects = objects.map_err(|why| fields.problem("manifest", &why)).ok().flatten().unwrap_or_default();
        // Whose labels may be there is known with the project.
        if !project.is_empty() {
            for message in manifest::problems(&objects, Place { project: &project, namespace, is_open }) {
                fields.problem("manifest", &message);
            }
        }
        Self { project, objects, force }
    }
}

impl DeployApply {
    async fn run(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let namespace = self.deploys.namespace();
        let Config { project, objects, force } = attempt.read(|fields| Config::read(fields, namespace.as_deref()))?;
        let (_, project) = attempt.project(&project).await?;
        let deployment = Deployment {
            project: project.id,
            step: step(attempt),
            objects,
            force,
            known: noted(attempt).and_then(|noted| record(&noted.note)),
        };
        let keep = attempt.answer(|record: &Record| json!({ "record": record }));
        let deploys = self.deploys.clone();
        let applied = self.works.through(attempt, async move { deploys.apply(deployment, keep).await }).await;
        match applied {
            Ok(applied) => Ok(json!({"applied": applied.iter().map(shown).collect::<Vec<_>>()})),
            Err(error) => Err(refused(error, noted(attempt).is_some())),
        }
    }

    async fn take_back(&self, attempt: &Attempt) -> Result<Value, Outcome> {
        let Some(record) = attempt.note().as_ref().and_then(record) else { return Ok(Value::Null) };
        let (deploys, step) = (self.deploys.clone(), step(attempt));
        let take_back = async move { deploys.take_back(&record, &step).await };
        self.works.through(attempt, take_back).await.map(|()| Value::Null).map_err(|error| refused(error, true))
    }
}

/// The same over all attempts of a step.
fn step(attempt: &Attempt) -> String {
    format!("{}.{}", attempt.saga, attempt.begin.step)
}

fn record(note: &Value) -> Option<Record> {
    serde_json::from_value(note.get("record")?.clone()).ok()
}

/// Nothing of what is in it.
fn shown(applied: &Applied) -> Value {
    let Applied { object, result } = applied;
    json!({"api_version": object.api_version, "kind": object.kind, "name": object.name, "uid": object.uid,
           "result": result})
}

/// `begun`: a part of it may be done.
fn refused(error: Error, begun: bool) -> Outcome {
    let outcome = if is_passing_conflict(&error) {
        Outcome::failed(error.message().to_owned())
    } else if FINAL.contains(&error.stable_code()) {
        Outcome::never(error.message().to_owned())
    } else {
        failed(error)
    };
    match outcome {
        Outcome::Failed { error, retry, partly } => Outcome::Failed { error, retry, partly: partly || begun },
        other => other,
    }
}

impl Rules for DeployApply {
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
        self.deploys.namespace().is_none().then_some(NO_CLUSTER)
    }

    fn check(&self, fields: &mut Fields<'_>) {
        Config::read(fields, self.deploys.namespace().as_deref());
    }
}

impl Action for DeployApply {
    fn name(&self) -> &'static str {
        "deploy.apply"
    }

    fn nature(&self) -> Nature {
        Nature { undoes_itself: true, ..ATTEMPTS }
    }

    fn run<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(Box::pin(self.run(attempt)).await) }.boxed()
    }

    fn undo<'a>(&'a self, attempt: &'a Attempt) -> BoxFuture<'a, Outcome> {
        async { ended(self.take_back(attempt).await) }.boxed()
    }

    /// What it changes still is changed before anything else is done about it.
    fn cut<'a>(&'a self, attempt: &'a Attempt, why: String) -> BoxFuture<'a, Outcome> {
        async {
            self.works.settled(attempt).await;
            Outcome::CutOff(why)
        }
        .boxed()
    }

    fn ends_soon(&self) -> bool {
        true
    }
}

//! Making a saga: everything that is wrong with it is said at once, and one that is answered with
//! its id is durable, with the task that carries it.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use super::{Attempt, Error, Key, Lane, Result, Row, Sagas, StepSpec, Whole, outcome, run_task, store, turns};
use crate::{
    database::Conn,
    domain::saga::{
        OnFailure, Outcome,
        check::{self, Plan, Vars},
        spec::Problem,
    },
    services::receipts::Answer,
    store::sagas::New,
};

/// Sagas above one another, at most.
const DEPTH_MAX: i16 = 8;

/// The action that starts a saga.
const START: &str = "saga.start";

/// A saga asked for.
#[derive(Default)]
pub struct NewSaga {
    pub name: String,
    pub definition: Option<String>,
    pub vars: BTreeMap<String, String>,
    pub max_retries: Option<i64>,
    pub steps: Option<Vec<StepSpec>>,
    pub project_id: Option<String>,
    pub on_failure: OnFailure,
    pub concurrency_key: Option<String>,
    pub timeout: Option<TimeDelta>,
    /// What is wrong with it already, before anything is looked up.
    pub problems: Vec<Problem>,
}

/// A saga that a step of another one starts.
pub struct StartChild {
    pub name: Option<String>,
    pub definition: Option<String>,
    pub steps: Option<Vec<StepSpec>>,
    pub vars: BTreeMap<String, String>,
}

/// One that may be made.
struct Checked {
    new: NewSaga,
    steps: Vec<StepSpec>,
    definition_version: Option<i32>,
    plan: Plan,
}

/// Where a saga comes from.
struct Origin {
    by: Uuid,
    parent: Option<Uuid>,
    depth: i16,
}

impl Sagas {
    /// # Errors
    /// `VALIDATION` with everything that is wrong; 403 where an action needs a scope that the caller lacks;
    /// "project not found".
    pub async fn create(&self, caller: &Key, new: NewSaga, answer: Answer<Whole>) -> Result<Whole> {
        let checked = self.check(caller, new).await?;
        let origin = Origin { by: caller.id, parent: None, depth: 0 };
        let parts = &self.inner.parts;
        let row = if answer.has_slot() || checked.new.concurrency_key.is_some() {
            let mut tx = parts.db.begin().await?;
            let row = self.insert(&mut tx, &checked, &origin).await?;
            let whole = self.untouched(row, checked.steps.clone());
            answer.keep(&mut tx, &whole).await?;
            tx.commit().await?;
            whole.row
        } else {
            self.insert(&mut parts.db.conn().await?, &checked, &origin).await?
        };
        parts.queue.wake(Lane::Sagas, "");
        Ok(self.untouched(row, checked.steps))
    }

    /// What a create body would do; nothing is done.
    ///
    /// # Errors
    /// As [`Sagas::create`].
    pub async fn plan(&self, caller: &Key, new: NewSaga) -> Result<Plan> {
        Ok(self.check(caller, new).await?.plan)
    }

    /// Starts a saga for a step of another one: once, whatever dies, because the step notes it in the
    /// transaction that makes it.
    ///
    /// # Errors
    /// A failure of the step.
    pub async fn start_child(&self, attempt: &Attempt, child: StartChild) -> Result<Uuid, Outcome> {
        if attempt.depth >= DEPTH_MAX {
            return Err(Outcome::never(format!("sagas start one another at most {DEPTH_MAX} deep")));
        }
        let caller = attempt.caller().await.map_err(|error| outcome(&error))?;
        let name = child.name.or_else(|| child.definition.clone());
        let new = NewSaga {
            name: name.unwrap_or_else(|| "child".to_owned()),
            definition: child.definition,
            vars: child.vars,
            steps: child.steps,
            project_id: attempt.project_id.clone(),
            ..NewSaga::default()
        };
        let origin = Origin { by: attempt.created_by, parent: Some(attempt.saga), depth: attempt.depth + 1 };
        let made = async {
            let checked = self.check(&caller, new).await?;
            let mut tx = self.inner.parts.db.begin().await?;
            let row = self.insert(&mut tx, &checked, &origin).await?;
            let id = row.id;
            let note = attempt.answer(|id: &Uuid| json!({"saga_id": id}));
            note.keep(&mut tx, &id).await?;
            tx.commit().await?;
            Ok::<_, Error>(id)
        };
        let id = made.await.map_err(|error| match error.details().get("problems") {
            Some(problems) => Outcome::never(format!("the saga to start is not in order: {problems}")),
            None => outcome(&error),
        })?;
        self.inner.parts.queue.wake(Lane::Sagas, "");
        Ok(id)
    }

    async fn check(&self, caller: &Key, mut new: NewSaga) -> Result<Checked> {
        let parts = &self.inner.parts;
        let mut problems = std::mem::take(&mut new.problems);
        let given = new.steps.take().filter(|steps| !steps.is_empty());
        if given.is_some() && new.definition.is_some() {
            problems.push(Problem::new("definition", "give either a definition or steps, not both"));
        }
        let named = match new.definition.as_deref().filter(|_| given.is_none()) {
            None => None,
            Some(name) => store::sagas::definition(&mut parts.db.conn().await?, name).await?,
        };
        let definition_version = named.as_ref().map(|found| found.version);
        let is_missing = new.definition.is_some() && given.is_none() && named.is_none();
        let steps: Vec<StepSpec> = match named {
            Some(found) => serde_json::from_str(&found.steps).map_err(Error::internal)?,
            None => given.unwrap_or_default(),
        };
        let graph = if is_missing {
            problems.push(Problem::new("definition", "there is no saga definition of this name"));
            None
        } else {
            let (graph, found) = check::check(&steps, "steps", Vars::Known(&new.vars), &parts.actions);
            problems.extend(found);
            graph
        };
        self.missing_children(&steps, &mut problems).await?;
        if caller.is_bound() {
            if new.project_id.is_none() {
                problems.push(Problem::new("project_id", "is needed from a key that is bound to projects"));
            }
            foreign_projects(caller, &steps, &mut problems);
        }
        refused(problems)?;
        self.may(caller, &steps)?;
        if let Some(project) = &new.project_id {
            let known = caller.sees(project) && parts.projects.find(project).await?.is_some();
            if !known {
                return Err(Error::not_found("project not found"));
            }
        }
        let graph = graph.ok_or_else(|| Error::internal("a saga without problems has no graph"))?;
        let plan = check::plan(&steps, &graph, &parts.actions);
        Ok(Checked { new, steps, definition_version, plan })
    }

    /// Definitions that steps would start, where they are named in so many words and there are none.
    async fn missing_children(&self, steps: &[StepSpec], problems: &mut Vec<Problem>) -> Result<()> {
        for (at, spec) in steps.iter().enumerate() {
            let config = spec.config.as_ref().filter(|_| spec.action == START);
            let named = config.and_then(|config| config.get("definition")?.as_str());
            let Some(name) = named.filter(|name| !name.is_empty() && !name.contains("${")) else { continue };
            if store::sagas::definition(&mut self.inner.parts.db.conn().await?, name).await?.is_none() {
                let path = format!("steps[{at}].config.definition");
                Problem::add(problems, &path, "there is no saga definition of this name");
            }
        }
        Ok(())
    }

    /// A key makes no saga that does what the key may not.
    fn may(&self, caller: &Key, steps: &[StepSpec]) -> Result<()> {
        for spec in steps {
            let named = [Some(spec.action.as_str()), spec.compensation()];
            for action in named.into_iter().flatten().filter_map(|name| self.inner.parts.actions.get(name)) {
                let needed = action.scopes();
                if !needed.is_empty() && !caller.may(needed) {
                    let scopes: Vec<_> = needed.iter().map(|scope| scope.name()).collect();
                    let message = format!("this key lacks a scope that the action {} needs", action.name());
                    return Err(Error::forbidden(message).detail("required_any", scopes));
                }
            }
        }
        Ok(())
    }

    async fn insert(&self, c: &mut Conn, checked: &Checked, origin: &Origin) -> Result<Row> {
        let new = &checked.new;
        let turn = turns::ask(c, new.project_id.as_deref(), new.concurrency_key.as_deref()).await?;
        let id = Uuid::now_v7();
        let task = run_task(id);
        let steps = serde_json::to_string(&checked.steps).map_err(Error::internal)?;
        let vars = serde_json::to_string(&new.vars).map_err(Error::internal)?;
        let max_retries = new.max_retries.filter(|n| *n != 0).unwrap_or(3);
        let new = New {
            id,
            name: &new.name,
            project_id: new.project_id.as_deref(),
            created_by: origin.by,
            created_at: self.inner.parts.clock.now(),
            parent: origin.parent,
            depth: origin.depth,
            max_retries: i32::try_from(max_retries).unwrap_or(3),
            on_failure: new.on_failure,
            definition: new.definition.as_deref(),
            definition_version: checked.definition_version,
            concurrency_key: new.concurrency_key.as_deref(),
            turn,
            timeout_ms: new.timeout.map(|timeout| timeout.num_milliseconds()),
            steps: &steps,
            vars: &vars,
            task: turns::may_go(turn).then_some(&task),
        };
        Ok(store::sagas::insert(c, &new).await?)
    }
}

/// A project that a bound key does not see, where a config names it in so many words.
fn foreign_projects(caller: &Key, steps: &[StepSpec], problems: &mut Vec<Problem>) {
    for (at, spec) in steps.iter().enumerate() {
        for (member, config) in [("config", &spec.config), ("compensate_config", &spec.compensate_config)] {
            let named = config.as_ref().and_then(|config| config.get("project_id")?.as_str());
            if named.is_some_and(|id| !id.contains("${") && !caller.sees(id)) {
                problems.push(Problem::new(&format!("steps[{at}].{member}.project_id"), "project not found"));
            }
        }
    }
}

/// Refuses what has problems.
pub fn refused(problems: Vec<Problem>) -> Result<()> {
    if problems.is_empty() { Ok(()) } else { Err(invalid(problems)) }
}

fn invalid(problems: Vec<Problem>) -> Error {
    let count = problems.len();
    let first = problems.first().map(|one| format!("{}: {}", one.path, one.message)).unwrap_or_default();
    let message = if count == 1 { first } else { format!("{first} (and {} more in details.problems)", count - 1) };
    Error::invalid(message).code("VALIDATION").detail("problems", serde_json::to_value(problems).unwrap_or_default())
}

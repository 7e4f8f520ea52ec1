//! Sagas: made, looked at, controlled, driven. The decisions are `domain/saga`'s; here they are
//! written down, each in one transaction with its events, its log and the task that carries it on.
//!
//! `sagas/create.rs` makes them, `control.rs` does what people ask, `driving.rs` carries them
//! through, `record.rs` is how they are kept, `turns.rs` lets one of a concurrency key be at work.

pub mod action;
mod control;
mod create;
mod definitions;
mod driving;
mod flight;
mod in_hand;
mod keeping;
mod record;
mod room;
mod turns;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{keys::Keys, projects::Projects};
use crate::{
    database::{Conn, Db},
    domain::{
        clock::Clock,
        key::Key,
        saga::{SagaStatus, Step, spec::StepSpec},
        task::{Lane, NewTask, PRIORITY},
    },
    error::{Error, Result},
    metrics::Metrics,
    queue::{Group, Queue},
    store::{
        self,
        sagas::{Filter, LogRow, Write},
    },
    streams::{Found, Streams},
};

pub use self::{
    action::{Action, Attempt, Registry, outcome},
    control::Asked,
    create::{NewSaga, StartChild},
    definitions::Definition,
    driving::Driver,
    room::Room,
};

pub use crate::store::sagas::Row;

pub const RUN_TASK: &str = "saga.run";

/// Sagas written by one statement, at most.
const WRITES: usize = 64;
/// A saga that nobody tells of is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// Sagas whose time has come, brought forward at once.
const DUE_AT_ONCE: i64 = 500;

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    /// For what drives.
    pub core: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub metrics: Metrics,
    pub keys: Keys,
    pub projects: Projects,
    pub actions: Registry,
    /// The server stops.
    pub stop: CancellationToken,
}

#[derive(Clone)]
pub struct Sagas {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    /// Writes of drivers. Answers the number of the last event; none where somebody else moved the saga.
    writes: Group<Arc<Write>, Option<i64>>,
    in_hand: in_hand::Hands,
}

/// A saga as clients see it.
pub struct Whole {
    pub row: Row,
    pub specs: Vec<StepSpec>,
    /// As many as there are specs.
    pub steps: Vec<Step>,
    /// Likewise: whether an attempt may be repeated that was cut off.
    pub idempotent: Vec<bool>,
}

impl Sagas {
    /// The service and the writer of what its drivers decide.
    pub fn new(parts: Parts) -> (Self, impl Future<Output = ()> + Send) {
        let db = parts.core.clone();
        let (writes, writing) = Group::new(WRITES, move |items: &[Arc<Write>]| {
            let (db, items) = (db.clone(), items.to_vec());
            async move {
                let writes: Vec<Write> = items.iter().map(|item| (**item).clone()).collect();
                let written = store::sagas::write_all(&mut db.conn().await?, &writes).await?;
                let written: std::collections::HashMap<Uuid, i64> = written.into_iter().collect();
                Ok(items.iter().map(|item| written.get(&item.row.id).copied()).collect())
            }
        });
        (Self { inner: Arc::new(Inner { parts, writes, in_hand: in_hand::Hands::default() }) }, writing)
    }

    /// The saga, where the caller may see it.
    ///
    /// # Errors
    /// "saga not found".
    pub async fn get(&self, caller: &Key, id: Uuid) -> Result<Row> {
        let found = store::sagas::find(&mut self.inner.parts.db.conn().await?, id).await?;
        found.filter(|row| is_in_sight(caller, row)).ok_or_else(not_found)
    }

    /// With its steps.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn whole(&self, row: Row) -> Result<Whole> {
        let mut conn = self.inner.parts.db.conn().await?;
        self.whole_with(&mut conn, row).await
    }

    async fn whole_with(&self, c: &mut Conn, row: Row) -> Result<Whole> {
        let plan = store::sagas::plans(c, &[row.id]).await?.pop().ok_or_else(not_found)?;
        let specs: Vec<StepSpec> = serde_json::from_str(&plan.steps).map_err(Error::internal)?;
        let touched = store::sagas::steps(c, &[row.id]).await?;
        Ok(Whole { steps: record::steps(specs.len(), touched)?, ..self.untouched(row, specs) })
    }

    /// One of which nothing has begun.
    fn untouched(&self, row: Row, specs: Vec<StepSpec>) -> Whole {
        let actions = &self.inner.parts.actions;
        let by_default = |spec: &StepSpec| actions.get(&spec.action).is_none_or(|action| action.nature().idempotent);
        let idempotent = specs.iter().map(|spec| spec.idempotent.unwrap_or_else(|| by_default(spec))).collect();
        Whole { steps: vec![Step::default(); specs.len()], row, specs, idempotent }
    }

    /// Newest first, one more than `limit` where there are more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn page(
        &self,
        caller: &Key,
        name: Option<&str>,
        status: Option<SagaStatus>,
        project_id: Option<&str>,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Row>> {
        let filter = Filter { name, status, project_id, among: caller.project_ids.as_deref() };
        Ok(store::sagas::page(&mut self.inner.parts.db.conn().await?, &filter, before, limit + 1).await?)
    }

    /// Every attempt and every control call, as they ended.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn log(&self, row: &Row) -> Result<Vec<LogRow>> {
        Ok(store::sagas::log(&mut self.inner.parts.db.conn().await?, row.id).await?)
    }

    /// Its events, for whoever listens.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn events(&self, row: &Row) -> Result<Found> {
        let found = store::streams::find_by_key(&mut self.inner.parts.db.conn().await?, row.stream).await?;
        found.ok_or_else(not_found)
    }

    /// Outputs of its steps, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn outputs(&self, id: Uuid) -> Result<Value> {
        let row = store::sagas::find(&mut self.inner.parts.core.conn().await?, id).await?.ok_or_else(not_found)?;
        Ok(Value::Object(self.whole(row).await?.outputs()))
    }

    /// Waits until the saga has a status of which that holds. Answers it, and what went wrong.
    ///
    /// # Errors
    /// Those of the database; not found when it is deleted meanwhile.
    pub async fn wait_for(&self, id: Uuid, holds: impl Fn(SagaStatus) -> bool) -> Result<(SagaStatus, Option<String>)> {
        let parts = &self.inner.parts;
        let row = store::sagas::find(&mut parts.core.conn().await?, id).await?.ok_or_else(not_found)?;
        let live = parts.streams.hub.join(row.stream);
        let mut bell = live.listen();
        loop {
            bell.mark_unchanged();
            let row = store::sagas::find(&mut parts.core.conn().await?, id).await?.ok_or_else(not_found)?;
            if holds(row.status) {
                return Ok((row.status, row.error));
            }
            let _rung_or_not = tokio::time::timeout(LOOK, bell.changed()).await;
        }
    }

    /// Brings forward what has come due by the clock that is handed in, whatever the database's says.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn bring_due(&self) -> Result<()> {
        let parts = &self.inner.parts;
        let mut conn = parts.db.conn().await?;
        let due = store::sagas::due(&mut conn, parts.clock.now(), DUE_AT_ONCE).await?;
        if due.is_empty() {
            return Ok(());
        }
        store::tasks::bring_forward(&mut conn, RUN_TASK, &due).await?;
        drop(conn);
        parts.queue.wake(Lane::Sagas, "");
        Ok(())
    }

    /// Looks whether others have moved what this process has in hand.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn look_after(&self) -> Result<()> {
        let ids = self.inner.in_hand.ids();
        if ids.is_empty() {
            return Ok(());
        }
        let versions = store::sagas::versions(&mut self.inner.parts.core.conn().await?, &ids).await?;
        self.inner.in_hand.compare(&versions);
        Ok(())
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.inner.parts.clock.now()
    }
}

impl Whole {
    /// Outputs of its steps, by name.
    pub fn outputs(&self) -> Map<String, Value> {
        let given = |(spec, step): (&StepSpec, &Step)| Some((spec.name.clone(), step.output.clone()?));
        self.specs.iter().zip(&self.steps).filter_map(given).collect()
    }
}

/// The task that carries a saga.
fn run_task(id: Uuid) -> NewTask {
    NewTask { lane: Lane::Sagas, queue: String::new(), priority: PRIORITY, kind: RUN_TASK, subject: id.to_string() }
}

/// A bound key sees its projects' sagas alone.
fn is_in_sight(caller: &Key, row: &Row) -> bool {
    match &row.project_id {
        Some(project) => caller.sees(project),
        None => !caller.is_bound(),
    }
}

fn not_found() -> Error {
    Error::not_found("saga not found")
}

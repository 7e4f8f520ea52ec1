//! Reading sagas to be decided on, and writing what was decided: alone, or with what else goes with
//! it (the project's activity, the turn of the next saga).

use std::{collections::HashMap, sync::Arc};

use uuid::Uuid;

use super::{
    Conn, Error, Lane, Result, Row, Sagas,
    record::{Held, activities},
    store, turns,
};
use crate::{
    domain::saga::{Changes, SagaStatus},
    store::sagas::{Then, Write},
    streams::{Chunk, Owner, Unshown},
};

impl Sagas {
    /// Sagas as they are kept, ready to be decided on.
    pub(super) async fn load(&self, ids: Vec<Uuid>) -> Result<HashMap<Uuid, Result<Held>>> {
        let parts = &self.inner.parts;
        let mut conn = parts.core.conn().await?;
        // The rows first: whoever moves a saga meanwhile raises its version, and the write is refused.
        let rows = store::sagas::rows(&mut conn, &ids).await?;
        let plans = store::sagas::plans(&mut conn, &ids).await?;
        let mut steps: HashMap<Uuid, Vec<_>> = HashMap::new();
        for step in store::sagas::steps(&mut conn, &ids).await? {
            steps.entry(step.saga_id).or_default().push(step);
        }
        drop(conn);
        let mut plans: HashMap<Uuid, _> = plans.into_iter().map(|plan| (plan.saga_id, plan)).collect();
        let mut held = HashMap::new();
        for row in rows {
            let Some(plan) = plans.remove(&row.id) else { continue };
            let touched = steps.remove(&row.id).unwrap_or_default();
            held.insert(row.id, Held::of(row, &plan, touched, &parts.actions));
        }
        Ok(held)
    }

    pub(super) async fn note_of(&self, id: Uuid, step: i32) -> Result<Option<serde_json::Value>> {
        let note = store::sagas::note_of(&mut self.inner.parts.core.conn().await?, id, step).await?;
        note.map(|note| serde_json::from_str(&note)).transpose().map_err(Error::internal)
    }

    /// Writes a driver's decision. Answers the number of the last event; none where somebody else has
    /// moved the saga, or has its task.
    pub(super) async fn write(&self, held: &mut Held, changes: &Changes, write: Write) -> Result<Option<i64>> {
        let parts = &self.inner.parts;
        let has_extras = (held.row.project_id.is_some() && !activities(changes).is_empty())
            || (held.row.turn == turns::HAS && !held.saga.status.is_at_work());
        let (write, written) = if has_extras {
            let written = self.write_with_extras(held, changes, &write).await?;
            (Arc::new(write), written)
        } else {
            let write = Arc::new(write);
            let written = self.inner.writes.put(write.clone()).await?;
            (write, written)
        };
        let Some(last_n) = written else { return Ok(None) };
        parts.streams.show(shown(&write, last_n));
        held.written(&write);
        held.measure(changes, &parts.metrics);
        if let Then::Later(_) = write.then {
            parts.queue.wake_later();
        }
        Ok(Some(last_n))
    }

    /// With what else goes with it: the project's activity, the turn of the next saga.
    async fn write_with_extras(&self, held: &Held, changes: &Changes, write: &Write) -> Result<Option<i64>> {
        let parts = &self.inner.parts;
        let mut tx = parts.core.begin().await?;
        turns::hold(&mut tx, &held.row).await?;
        let written = store::sagas::write_all(&mut tx, std::slice::from_ref(write)).await?;
        let Some((_, last_n)) = written.into_iter().next() else { return Ok(None) };
        let (unshown, is_next) = self.extras(&mut tx, &held.row, changes, held.saga.status).await?;
        tx.commit().await?;
        parts.streams.show(unshown);
        if is_next {
            parts.queue.wake(Lane::Sagas, "");
        }
        Ok(Some(last_n))
    }

    /// Writes what goes with a change beside the saga's own rows. True where another saga may go now.
    pub(super) async fn extras(
        &self,
        tx: &mut Conn,
        row: &Row,
        changes: &Changes,
        status: SagaStatus,
    ) -> Result<(Unshown, bool)> {
        let is_next = turns::let_go(tx, row, status).await?;
        let mut unshown = Unshown::default();
        if let Some(project) = &row.project_id {
            for kind in activities(changes) {
                let id = row.id.to_string();
                unshown.extend(self.inner.parts.projects.activity(tx, project, kind, &id, None).await?);
            }
        }
        Ok((unshown, is_next))
    }
}

/// The events of a write that is durable.
pub fn shown(write: &Write, last_n: i64) -> Unshown {
    let mut unshown = Unshown::default();
    if write.count == 0 {
        return unshown;
    }
    let owner = Owner::new(write.row.stream, &write.row.id.to_string());
    let before_last = last_n - i64::from(write.last.is_some());
    if !write.events.is_empty() {
        unshown.add(Chunk::own(owner.clone(), last_n - write.count + 1, before_last, write.events.clone()));
    }
    if let Some(last) = &write.last {
        unshown.add(Chunk::own(owner, last_n, last_n, last.clone()));
    }
    unshown
}

//! Control calls: the saga is locked, asked whether it may do this now, changed, and the work is
//! scheduled, in one transaction; the answer is the new state.

use serde_json::json;
use uuid::Uuid;

use super::{Attempt, Lane, Result, Row, Sagas, Whole, is_in_sight, not_found, record::Held, run_task, store, turns};
use crate::{
    database::Conn,
    domain::{
        key::Key,
        saga::{Control, Refused, SagaStatus},
    },
    error::Error,
    services::receipts::Answer,
    store::sagas::Then,
    streams::{Owner, Unshown},
};

/// What a client asks for, steps by name.
pub enum Asked {
    Retry,
    Rollback,
    RetryStep(String),
    SkipStep(String),
    Cancel { compensate: bool, reason: Option<String> },
    Abandon { reason: String },
    Answer { step: String, approve: bool, comment: Option<String> },
}

impl Sagas {
    /// Does what is asked of a saga, or nothing.
    ///
    /// # Errors
    /// "saga not found", "step not found", `INVALID_STATE`.
    pub async fn control(&self, caller: &Key, id: Uuid, asked: Asked, answer: Answer<Whole>) -> Result<Whole> {
        let mut tx = self.inner.parts.db.begin().await?;
        let row = locked(&mut tx, id).await?.filter(|row| is_in_sight(caller, row)).ok_or_else(not_found)?;
        let held = self.load_with(&mut tx, row).await?;
        let control = positioned(&held, asked)?;
        self.carry_out(tx, held, control, caller.id, Some(answer)).await?.ok_or_else(not_found)
    }

    /// The same, in the name of an attempt of the saga above.
    ///
    /// # Errors
    /// As [`Sagas::control`].
    pub async fn control_as(&self, attempt: &Attempt, id: Uuid, control: Control) -> Result<SagaStatus> {
        let mut tx = self.inner.parts.db.begin().await?;
        let row = locked(&mut tx, id).await?.ok_or_else(not_found)?;
        let held = self.load_with(&mut tx, row).await?;
        self.carry_out(tx, held, control, attempt.created_by, None).await?;
        let row = store::sagas::find(&mut self.inner.parts.db.conn().await?, id).await?.ok_or_else(not_found)?;
        Ok(row.status)
    }

    async fn carry_out(
        &self,
        mut tx: Conn,
        mut held: Held,
        control: Control,
        by: Uuid,
        answer: Option<Answer<Whole>>,
    ) -> Result<Option<Whole>> {
        let parts = &self.inner.parts;
        let turn = match held.row.turn {
            turns::HAS => turns::HAS,
            _ => turns::ask(&mut tx, held.row.project_id.as_deref(), held.row.concurrency_key.as_deref()).await?,
        };
        let now = parts.clock.now();
        let had_ended = held.saga.status.is_end();
        let changes = held.saga.control(&control, by, now, turns::may_go(turn)).map_err(refused)?;
        if had_ended {
            store::sagas::reopen_log(&mut tx, held.row.stream).await?;
        }
        let write = held.write(&changes, now, None, Then::Keep);
        let written = store::sagas::write_all(&mut tx, std::slice::from_ref(&write)).await?;
        let (_, last_n) = written.into_iter().next().ok_or_else(crate::queue::stale)?;
        held.written(&write);
        let status = held.saga.status;
        let goes_on = status.is_at_work() || status == SagaStatus::Pending;
        if goes_on && held.row.turn != turn {
            store::sagas::set_turn(&mut tx, held.row.id, turn).await?;
            held.row.turn = turn;
        }
        let (unshown, is_next) = self.extras(&mut tx, &held.row, &changes, status).await?;
        let needs_driver = goes_on && turns::may_go(turn);
        if needs_driver {
            store::tasks::insert_once(&mut tx, &run_task(held.row.id)).await?;
        }
        let whole = match answer {
            None => None,
            Some(answer) => {
                let row = Row { version: held.row.version, ..held.row.clone() };
                let whole = self.whole_with(&mut tx, row).await?;
                answer.keep(&mut tx, &whole).await?;
                Some(whole)
            }
        };
        tx.commit().await?;
        parts.streams.show(unshown);
        parts.streams.show(super::keeping::shown(&write, last_n));
        held.measure(&changes, &parts.metrics);
        if needs_driver || is_next {
            parts.queue.wake(Lane::Sagas, "");
        }
        Ok(whole)
    }

    /// The saga that this transaction holds.
    async fn load_with(&self, tx: &mut Conn, row: Row) -> Result<Held> {
        let plan = store::sagas::plans(tx, &[row.id]).await?.pop().ok_or_else(not_found)?;
        let touched = store::sagas::steps(tx, &[row.id]).await?;
        Held::of(row, &plan, touched, &self.inner.parts.actions)
    }

    /// Removes a saga that is at rest, with all that is known of it.
    ///
    /// # Errors
    /// "saga not found"; `SAGA_RUNNING`.
    pub async fn delete(&self, caller: &Key, id: Uuid) -> Result<()> {
        let mut tx = self.inner.parts.db.begin().await?;
        let row = locked(&mut tx, id).await?.filter(|row| is_in_sight(caller, row)).ok_or_else(not_found)?;
        if row.status.is_at_work() {
            let running = Error::conflict("SAGA_RUNNING", "the saga is at work; cancel it first, or wait for its end");
            return Err(running.detail("status", row.status.text()));
        }
        store::tasks::cancel(&mut tx, super::RUN_TASK, &id.to_string()).await?;
        let is_next = turns::let_go(&mut tx, &row, SagaStatus::Cancelled).await?;
        let said = self.last_words(&mut tx, &row).await?;
        store::sagas::delete(&mut tx, id).await?;
        tx.commit().await?;
        self.inner.parts.streams.show(said);
        if is_next {
            self.inner.parts.queue.wake(Lane::Sagas, "");
        }
        Ok(())
    }

    /// What those hear who still listen to one that is deleted.
    async fn last_words(&self, tx: &mut Conn, row: &Row) -> Result<Unshown> {
        let owner = Owner::new(row.stream, &row.id.to_string());
        let data = json!({"saga_id": row.id, "status": "deleted"});
        Ok(self.inner.parts.streams.record_final(tx, &owner, "complete", &data).await?)
    }
}

/// The saga, held until the transaction ends; its concurrency key first.
async fn locked(tx: &mut Conn, id: Uuid) -> Result<Option<Row>> {
    let Some(row) = store::sagas::find(tx, id).await? else { return Ok(None) };
    turns::hold(tx, &row).await?;
    Ok(store::sagas::lock(tx, id).await?)
}

fn positioned(held: &Held, asked: Asked) -> Result<Control> {
    let at = |name: &str| held.saga.plan.position(name).ok_or_else(|| Error::not_found("step not found"));
    Ok(match asked {
        Asked::Retry => Control::Retry,
        Asked::Rollback => Control::Rollback,
        Asked::RetryStep(step) => Control::RetryStep(at(&step)?),
        Asked::SkipStep(step) => Control::SkipStep(at(&step)?),
        Asked::Cancel { compensate, reason } => Control::Cancel { compensate, reason },
        Asked::Abandon { reason } => Control::Abandon { reason },
        Asked::Answer { step, approve, comment } => Control::Answer { step: at(&step)?, approve, comment },
    })
}

fn refused(refused: Refused) -> Error {
    let status = refused.status.text();
    let message = match refused.step_status {
        None => format!("a saga that is {status} cannot do this"),
        Some(step) => format!("a step that is {} in a saga that is {status} cannot do this", step.text()),
    };
    let error = Error::conflict("INVALID_STATE", message).detail("status", status);
    match refused.step_status {
        None => error,
        Some(step) => error.detail("step_status", json!(step.text())),
    }
}

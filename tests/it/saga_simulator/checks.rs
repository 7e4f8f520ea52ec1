//! What must hold of a decision, after every move, and at the end of a history. What a saga has
//! been through is in `book.rs`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rdev::domain::saga::{Changes, Control, Happening, Outcome, Saga, SagaStatus, StepStatus};

use super::{
    database::{Database, Row, Turn, is_the_same},
    ensure,
    plans::Kind,
    rules::{Standing, may_ask},
    time,
};

#[derive(Default)]
pub struct Witness {
    breaches: Vec<String>,
    pub tally: BTreeMap<&'static str, u64>,
    /// Sagas moved since the last check.
    pub dirty: Vec<usize>,
}

impl Witness {
    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.breaches.push(what());
        }
    }

    pub fn hold(&mut self, saga: usize, held: Result<(), String>) {
        if let Err(what) = held {
            self.breaches.push(format!("saga {saga}: {what}"));
        }
    }
}

impl Database {
    /// By the table.
    pub fn may_ask(&self, id: usize, asked: &Control) -> bool {
        let row = &self.rows[id];
        let step = match asked {
            Control::RetryStep(step) | Control::SkipStep(step) | Control::Answer { step, .. } => Some(*step),
            _ => None,
        };
        let now = Standing {
            saga: row.book.told(),
            is_stopping: row.stored.stop_by.is_some(),
            step: step.map(|step| row.book.told_of(step)),
            is_approval: step.is_some_and(|step| row.kinds[step] == Kind::Approval),
        };
        may_ask(asked, now)
    }

    /// After a move.
    pub fn check(&mut self) -> Result<(), String> {
        while let Some(id) = self.seen.dirty.pop() {
            let row = &self.rows[id];
            match row.ready_at() {
                Some(at) => drop(self.ready.insert(id, at)),
                None => drop(self.ready.remove(&id)),
            }
            let held = check_tasks(row).and_then(|()| self.check_turns(row));
            if let Err(what) = held {
                self.seen.breaches.push(format!("saga {id} ({:?}): {what}", row.stored.status));
            }
        }
        match self.seen.breaches.first() {
            None => Ok(()),
            Some(breach) => Err(breach.clone()),
        }
    }

    /// Of a key one is at work; the others wait, and do nothing meanwhile.
    fn check_turns(&self, row: &Row) -> Result<(), String> {
        if row.key.is_none() {
            return Ok(());
        }
        let among = self.rows.iter().filter(|other| other.key == row.key && other.turn == Turn::Has);
        ensure(among.count() <= 1, || "two have the turn".to_owned())?;
        let idle = row.book.is_idle();
        let (status, turn) = (row.stored.status, row.turn);
        let agree = match turn {
            Turn::Has => status.is_at_work() || status == SagaStatus::Pending,
            Turn::Waits => idle && matches!(status, SagaStatus::Pending | SagaStatus::Compensating),
            Turn::None => idle && !status.is_at_work() && status != SagaStatus::Pending,
        };
        ensure(agree, || format!("its turn is {turn:?}"))
    }

    /// When nothing moves any more.
    pub fn check_end(&mut self) -> Result<(), String> {
        self.seen.dirty = (0..self.rows.len()).collect();
        self.check()?;
        for (id, row) in self.rows.iter().enumerate() {
            for at in 0..row.plan.steps.len() {
                let held = row.book.stands_by_its_effect(at, &row.stored, &row.kinds);
                held.map_err(|what| format!("saga {id} at the end: {what}"))?;
            }
        }
        Ok(())
    }

    /// Nothing happens to it any more without somebody.
    pub fn is_at_rest(&self, row: &Row) -> bool {
        let status = row.stored.status;
        if row.tasks() > 0 {
            return false;
        }
        let waits = row.turn == Turn::Waits
            && self.rows.iter().any(|other| other.key == row.key && other.turn == Turn::Has && is_declared_wait(other));
        waits || is_declared_wait(row) || !(status.is_at_work() || status == SagaStatus::Pending)
    }
}

/// A saga that is not at rest has exactly one task, or waits for somebody.
fn check_tasks(row: &Row) -> Result<(), String> {
    let (tasks, status) = (row.tasks(), row.stored.status);
    ensure(tasks <= 1, || format!("it has {tasks} tasks"))?;
    let is_open = status.is_at_work() || status == SagaStatus::Pending;
    let waits = row.turn == Turn::Waits || is_declared_wait(row);
    ensure(!is_open || waits || tasks == 1, || "it has 0 tasks".to_owned())?;
    if let Some(at) = row.later {
        let due = next_due(&row.stored);
        let late = due.is_some_and(|due| due < time(at - 1));
        ensure(!late || !is_open, || format!("its task is for {}, it is due at {due:?}", time(at)))?;
    }
    Ok(())
}

/// Nothing but approvals without an end.
fn is_declared_wait(row: &Row) -> bool {
    let saga = &row.stored;
    saga.status == SagaStatus::Waiting
        && next_due(saga).is_none()
        && saga.steps.iter().all(|step| !matches!(step.status, StepStatus::Running | StepStatus::Retrying))
}

/// Worked out anew, from all there is.
pub fn next_due(saga: &Saga) -> Option<DateTime<Utc>> {
    if !saga.status.is_at_work() {
        return None;
    }
    let deadline = saga.deadline.filter(|_| saga.status != SagaStatus::Compensating && saga.stop_by.is_none());
    let steps = saga.steps.iter().filter_map(|step| match step.status {
        StepStatus::Compensating => step.undo.as_ref().and_then(|undo| undo.due_at),
        status if status.is_under_way() => step.due_at,
        _ => None,
    });
    steps.chain(deadline).chain(saga.stop_by).min()
}

/// Nothing that was due is left.
pub fn check_due(saga: &Saga, changes: &Changes, now: DateTime<Utc>) -> Result<(), String> {
    let due = saga.next_due();
    ensure(due == next_due(saga), || format!("it is due at {due:?}, not {:?}", next_due(saga)))?;
    ensure(changes.more || due.is_none_or(|due| due >= now), || format!("it was due at {due:?}, and is not done"))
}

/// What follows from the rest is as if worked out anew; an end counts once.
pub fn check_decision(
    before: &Saga,
    after: &Saga,
    happening: &Happening,
    changes: &Changes,
    now: DateTime<Utc>,
) -> Result<(), String> {
    ensure(changes.any || is_the_same(before, after), || "it changed although nothing did".to_owned())?;
    let mut fresh = after.clone();
    fresh.derive();
    let shown = |saga: &Saga| (saga.next_due(), saga.is_busy(), saga.current_step());
    ensure(shown(&fresh) == shown(after), || format!("shown is {:?}, not {:?}", shown(after), shown(&fresh)))?;
    let later = after.next_due().filter(|_| !changes.more).unwrap_or(now);
    let mut kept = after.clone();
    let of_kept = kept.decide(Happening::Look, later, 0.5);
    let of_fresh = fresh.decide(Happening::Look, later, 0.5);
    ensure(of_kept == of_fresh, || format!("a look gives {of_kept:?}, worked out anew {of_fresh:?}"))?;
    let is_due = after.next_due().is_some_and(|due| due <= now);
    ensure(changes.more || is_due || later > now || !of_kept.any, || format!("another look changes {of_kept:?}"))?;
    if changes.more || is_due { Ok(()) } else { check_stale(after, happening, now) }
}

/// The same end once more changes nothing, nor does that of an attempt before.
fn check_stale(after: &Saga, happening: &Happening, now: DateTime<Utc>) -> Result<(), String> {
    let stale = match happening.clone() {
        // It has begun again at once, as the same attempt.
        Happening::Ended { outcome: Outcome::PutOff { until, .. }, .. }
        | Happening::UndoEnded { outcome: Outcome::PutOff { until, .. }, .. }
            if until <= now =>
        {
            return Ok(());
        }
        Happening::Ended { step, attempt, outcome, note } => {
            let before = Happening::Ended { step, attempt: attempt - 1, outcome, note };
            vec![happening.clone(), before]
        }
        Happening::UndoEnded { .. } => vec![happening.clone()],
        _ => return Ok(()),
    };
    for stale in stale {
        let mut again = after.clone();
        let of_stale = again.decide(stale.clone(), now, 0.5);
        let nothing = of_stale == Changes::default() && is_the_same(&again, after);
        ensure(nothing, || format!("{stale:?} counts: {of_stale:?}"))?;
    }
    Ok(())
}

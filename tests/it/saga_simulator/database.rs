//! The database in memory: sagas as they are stored, their tasks and turns, and each transaction
//! of `store/` and `services/` on them as one operation. A rule can be broken on purpose, so that
//! the checks are checked too.

use std::{collections::BTreeMap, sync::Arc};

use rdev::domain::saga::{Changes, Control, Plan, Saga, SagaStatus, Step, StepStatus};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Millis,
    book::{Book, By, Commit},
    checks::Witness,
    plans::{Drawn, Kind},
    time,
};

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    WritesWithoutTheVersion,
    WritesUnderAnOldFence,
    /// A driver that waits for a time drops its task.
    ForgetsTheTask,
    /// What an attempt wrote down on its way is lost when somebody else writes the step.
    SkipsTheNoteRule,
    /// Attempts begin before the decision is durable.
    BeginsTooEarly,
    /// What ended is forgotten where the write is refused.
    ForgetsWhatEnded,
    /// Attempts that a decision gives up go on.
    CutsNothing,
    /// After a change by somebody else, attempts that it gave up go on.
    LeavesTheSuperseded,
    /// Only events ring, and a change without one is not heard of.
    IsDeafToQuietChanges,
    /// A saga that is given up is so although that was not written.
    GivesUpUnwritten,
    /// Whoever claims a saga takes it, also where another one has the turn.
    TakesOutOfTurn,
    /// The turn is passed, and whoever holds the saga does not learn of it.
    PassesTheTurnQuietly,
    /// The engine does not know of one dependency.
    MissesADependency,
    /// The engine does not know of one compensation.
    MissesACompensation,
    TellsNotEverything,
    StoresNotEverything,
    /// A failed control call changes the saga nevertheless.
    HalfRefuses,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Nobody,
    Lives(u64),
    /// Until its lease has run out.
    Dead(Millis),
}

#[derive(Debug, Clone, Copy)]
pub struct Task {
    pub owner: Owner,
    pub fence: u64,
}

/// As of a concurrency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    None,
    Has,
    Waits,
}

/// What becomes of the task after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Keep,
    Finish,
    Later(Millis),
}

pub struct Row {
    /// As the contract has it; the engine's may be another where a flaw says so.
    pub plan: Arc<Plan>,
    pub kinds: Vec<Kind>,
    /// What follows from it is not kept: [`Database::load`] works it out.
    pub stored: Saga,
    pub version: u64,
    pub events: u64,
    /// When somebody last wrote it.
    pub moved_at: Millis,
    pub key: Option<u8>,
    pub turn: Turn,
    pub task: Option<Task>,
    pub later: Option<Millis>,
    pub book: Book,
}

/// A saga in a process's memory.
pub struct Held {
    pub saga: Saga,
    pub version: u64,
    pub turn: Turn,
    /// The last event that it knows.
    pub seen: u64,
}

#[derive(Default)]
pub struct Database {
    pub now: Millis,
    pub flaw: Option<Flaw>,
    pub rows: Vec<Row>,
    pub seen: Witness,
    /// What may be claimed, and from when on.
    pub ready: BTreeMap<usize, Millis>,
    fences: u64,
}

impl Row {
    /// Claimable, and from when on.
    pub fn ready_at(&self) -> Option<Millis> {
        match self.task {
            None => self.later,
            Some(Task { owner: Owner::Nobody, .. }) => Some(0),
            Some(Task { owner: Owner::Dead(until), .. }) => Some(until),
            Some(Task { owner: Owner::Lives(_), .. }) => None,
        }
    }

    /// Of a process that lives.
    pub fn is_in_hand(&self) -> bool {
        self.task.is_some_and(|task| matches!(task.owner, Owner::Lives(_)))
    }

    pub fn tasks(&self) -> usize {
        usize::from(self.task.is_some()) + usize::from(self.later.is_some())
    }
}

impl Database {
    pub fn new(flaw: Option<Flaw>) -> Self {
        Self { flaw, ..Self::default() }
    }

    pub fn create(&mut self, drawn: Drawn, key: Option<u8>) -> usize {
        let id = self.rows.len();
        let Drawn { plan, kinds } = drawn;
        let turn = self.ask_turn(key);
        let known = self.as_the_engine_knows(&plan);
        let task = (turn != Turn::Waits).then_some(Task { owner: Owner::Nobody, fence: 0 });
        let book = Book::new(plan.steps.len());
        let stored = Saga::new(known);
        self.seen.dirty.push(id);
        self.rows.push(Row {
            plan,
            kinds,
            stored,
            version: 0,
            events: 0,
            moved_at: 0,
            key,
            turn,
            task,
            later: None,
            book,
        });
        id
    }

    fn as_the_engine_knows(&self, plan: &Arc<Plan>) -> Arc<Plan> {
        if !matches!(self.flaw, Some(Flaw::MissesADependency | Flaw::MissesACompensation)) {
            return plan.clone();
        }
        let mut known = Plan::clone(plan);
        match self.flaw {
            Some(Flaw::MissesADependency) => {
                if let Some(at) = known.steps.iter().position(|step| !step.needs.is_empty()) {
                    let need = known.steps[at].needs.remove(0);
                    known.steps[need].needed_by.retain(|by| *by != at);
                }
            }
            Some(Flaw::MissesACompensation) => known.steps.iter_mut().take(1).for_each(|step| step.undo = None),
            _ => {}
        }
        Arc::new(known)
    }

    pub fn load(&self, id: usize) -> Held {
        let row = &self.rows[id];
        let mut saga = row.stored.clone();
        saga.derive();
        Held { saga, version: row.version, turn: row.turn, seen: row.events }
    }

    /// For a process that lives.
    pub fn claim(&mut self, id: usize, process: u64) -> u64 {
        self.fences += 1;
        let fence = self.fences;
        let row = &mut self.rows[id];
        row.later = None;
        row.task = Some(Task { owner: Owner::Lives(process), fence });
        self.seen.dirty.push(id);
        fence
    }

    pub fn is_held(&self, id: usize, fence: u64) -> bool {
        self.rows[id].task.is_some_and(|task| task.fence == fence)
    }

    pub fn give_back(&mut self, id: usize, fence: u64) {
        if let Some(task) = self.rows[id].task.as_mut().filter(|task| task.fence == fence) {
            // Nobody writes under it until it is claimed again.
            *task = Task { owner: Owner::Nobody, fence: 0 };
        }
        self.seen.dirty.push(id);
    }

    /// Takes all that a process has away from it.
    pub fn disown(&mut self, process: u64, owner: Owner) {
        for (id, row) in self.rows.iter_mut().enumerate() {
            if let Some(task) = row.task.as_mut().filter(|task| task.owner == Owner::Lives(process)) {
                *task = Task { owner, fence: 0 };
                self.seen.dirty.push(id);
            }
        }
    }

    /// A driver's decision. False where somebody else has moved the saga, or has its task.
    pub fn write(&mut self, id: usize, held: &Held, changes: &Changes, by: By, fence: u64, then: Then) -> bool {
        let row = &self.rows[id];
        let known = row.version == held.version || self.flaw == Some(Flaw::WritesWithoutTheVersion);
        let owned = self.is_held(id, fence);
        if !known || !(owned || self.flaw == Some(Flaw::WritesUnderAnOldFence)) {
            self.seen.count(if owned { "stale decisions" } else { "writes under an old fence" });
            return false;
        }
        self.seen.expect(owned, || format!("saga {id} was written under an old fence"));
        self.apply(id, &held.saga, changes, by);
        let row = &mut self.rows[id];
        match then {
            Then::Keep => {}
            Then::Finish => row.task = None,
            Then::Later(at) => (row.task, row.later) = (None, Some(row.later.map_or(at, |other| other.min(at)))),
        }
        let status = row.stored.status;
        self.let_go(id, status);
        self.seen.dirty.push(id);
        true
    }

    /// Locked, looked at, changed, and the work scheduled, in one transaction. False where it is refused.
    pub fn control(&mut self, id: usize, asked: &Control, by: Uuid) -> bool {
        let mut held = self.load(id);
        let turn = if held.turn == Turn::Has { Turn::Has } else { self.ask_turn(self.rows[id].key) };
        let expected = self.may_ask(id, asked);
        let decided = held.saga.control(asked, by, time(self.now), turn != Turn::Waits);
        self.seen.expect(decided.is_ok() == expected, || {
            let status = self.rows[id].stored.status;
            format!("saga {id}, {status:?}: {asked:?} was {}", if expected { "refused" } else { "allowed" })
        });
        let Ok(changes) = decided else {
            self.seen.count("refused");
            if self.flaw == Some(Flaw::HalfRefuses) {
                held.saga.retry_count += 1;
            }
            let same = is_the_same(&self.rows[id].stored, &held.saga);
            self.seen.expect(same, || format!("saga {id}: {asked:?} was refused and changed something"));
            return false;
        };
        self.apply(id, &held.saga, &changes, By::Control(asked));
        if changes.transitions.is_empty() {
            self.seen.count("asked and told nobody");
        }
        let row = &mut self.rows[id];
        let status = row.stored.status;
        let goes_on = status.is_at_work() || status == SagaStatus::Pending;
        if goes_on {
            row.turn = turn;
        }
        self.let_go(id, status);
        if goes_on && turn != Turn::Waits {
            self.insert_once(id);
        }
        self.seen.dirty.push(id);
        true
    }

    /// What an attempt has made. False where it is not under way any more.
    pub fn note(&mut self, id: usize, fence: u64, step: usize, attempt: i32, note: &Value) -> bool {
        let held = self.is_held(id, fence);
        let one = &mut self.rows[id].stored.steps[step];
        let ours = held && one.attempt == attempt && one.status == StepStatus::Running;
        if ours {
            one.note = Some(note.clone());
        }
        ours
    }

    /// The task is put aside: nobody drives the saga any more.
    pub fn park(&mut self, id: usize, fence: u64) {
        if self.is_held(id, fence) {
            self.rows[id].task = None;
            self.seen.count("given up");
        }
        self.seen.dirty.push(id);
    }

    fn apply(&mut self, id: usize, saga: &Saga, changes: &Changes, by: By) {
        let now = self.now;
        let row = &mut self.rows[id];
        let writes = self.seen.tally.get("writes").copied().unwrap_or(0);
        let commit = Commit {
            plan: &row.plan,
            kinds: &row.kinds,
            old: &row.stored,
            new: saga,
            changes,
            by,
            now: time(now),
            whole: row.plan.steps.len() <= 8 || writes.is_multiple_of(16),
        };
        let held = row.book.committed(&mut self.seen, &commit);
        self.seen.hold(id, held);
        let stored = &mut row.stored;
        for at in &changes.steps {
            let mut step = saga.steps[*at].clone();
            if self.flaw != Some(Flaw::SkipsTheNoteRule) {
                step.note = by_the_note_rule(&stored.steps[*at], &step);
            }
            stored.steps[*at] = step;
        }
        stored.status = saga.status;
        (stored.halting, stored.stop_by, stored.deadline) = (saga.halting, saga.stop_by, saga.deadline);
        (stored.retry_count, stored.completed_at) = (saga.retry_count, saga.completed_at);
        stored.error.clone_from(&saga.error);
        (row.version, row.moved_at) = (row.version + 1, now);
        row.events += changes.transitions.len() as u64;
        self.seen.count("writes");
    }

    fn ask_turn(&self, key: Option<u8>) -> Turn {
        let Some(key) = key else { return Turn::None };
        let taken = self.rows.iter().any(|row| row.key == Some(key) && row.turn == Turn::Has);
        if taken { Turn::Waits } else { Turn::Has }
    }

    /// After a saga came to rest the next of its key goes.
    fn let_go(&mut self, id: usize, status: SagaStatus) {
        let row = &mut self.rows[id];
        if row.turn == Turn::None || status.is_at_work() || status == SagaStatus::Pending {
            return;
        }
        let (key, had) = (row.key, std::mem::replace(&mut row.turn, Turn::None));
        if had != Turn::Has {
            return;
        }
        let now = self.now;
        let next = self.rows.iter().position(|row| row.key == key && row.turn == Turn::Waits);
        if let Some(next) = next {
            let row = &mut self.rows[next];
            (row.turn, row.moved_at) = (Turn::Has, now);
            row.version += u64::from(self.flaw != Some(Flaw::PassesTheTurnQuietly));
            if row.is_in_hand() {
                self.seen.count("turns passed to one in hand");
            }
            self.insert_once(next);
            self.seen.count("turns passed");
            self.seen.dirty.push(next);
        }
    }

    /// One that waits for a time is ready now.
    fn insert_once(&mut self, id: usize) {
        let row = &mut self.rows[id];
        row.later = None;
        row.task.get_or_insert(Task { owner: Owner::Nobody, fence: 0 });
    }
}

/// What is kept of what attempts wrote down, when a step is written.
fn by_the_note_rule(old: &Step, new: &Step) -> Option<Value> {
    if new.undo.is_some() {
        old.note.clone()
    } else if new.attempt > old.attempt || new.generation > old.generation {
        new.note.clone()
    } else {
        new.note.clone().or_else(|| old.note.clone())
    }
}

/// But for what follows from the rest.
pub fn is_the_same(one: &Saga, other: &Saga) -> bool {
    same_heads(one, other) && one.steps == other.steps
}

/// But for the steps.
pub fn same_heads(one: &Saga, other: &Saga) -> bool {
    let head =
        |saga: &Saga| (saga.status, saga.halting, saga.stop_by, saga.deadline, saga.retry_count, saga.completed_at);
    head(one) == head(other) && one.error == other.error
}

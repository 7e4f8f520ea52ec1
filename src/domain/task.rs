//! A task of the durable core: what is put in, and what its performer gets.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long a process is taken for living without having renewed.
pub const LEASE: Duration = Duration::from_secs(15);
/// Owners that may die in a row with a task before it is put aside.
pub const DEATHS_MAX: i16 = 10;

/// Which crew of a process takes a task. Crews do not wait for one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i16)]
pub enum Lane {
    /// The system's own work: following commands, undoing what was left half-done.
    Work = 0,
    Jobs = 1,
    Webhooks = 2,
    Sagas = 3,
}

impl Lane {
    pub const ALL: [Self; 4] = [Self::Work, Self::Jobs, Self::Webhooks, Self::Sagas];

    pub fn number(self) -> i16 {
        self as i16
    }

    pub fn of(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.number() == number)
    }
}

/// Priority where none was asked for; 0 comes first.
pub const PRIORITY: i16 = 4;

/// A task to be put in. One subject has one task of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    pub lane: Lane,
    /// What shares a limit; empty where nothing does.
    pub queue: String,
    /// 0 first, 9 last.
    pub priority: i16,
    pub kind: &'static str,
    pub subject: String,
}

impl NewTask {
    /// The system's own work.
    pub fn work(kind: &'static str, subject: &str) -> Self {
        Self { lane: Lane::Work, queue: String::new(), priority: PRIORITY, kind, subject: subject.to_owned() }
    }
}

/// A task in the hands of this process.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Claimed {
    pub id: i64,
    pub lane: i16,
    pub queue: String,
    pub kind: String,
    pub subject: String,
    /// Names this claim; every write of the attempt does.
    pub fence: i64,
    /// Counts claims.
    pub attempt: i32,
    /// Owners that died with it, in a row.
    pub deaths: i16,
    /// Seconds from ready to claimed.
    pub waited: f64,
    /// Nothing outside of a queue's hands.
    #[sqlx(skip)]
    pub in_hand: Option<Arc<InHand>>,
}

/// What a process has in hand: every task of its own that somebody in it still knows of. What it
/// owns beyond that was lost on the way (an answer that never came, an attempt that panicked).
#[derive(Debug, Clone, Default)]
pub struct Hands(Arc<Mutex<HashMap<(i64, i64), usize>>>);

/// Kept with a task for as long as anybody has it.
#[derive(Debug)]
pub struct InHand {
    hands: Hands,
    claim: (i64, i64),
}

impl Hands {
    /// The task counts as known until its last copy is dropped.
    pub fn take(&self, task: &mut Claimed) {
        let claim = (task.id, task.fence);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(claim).or_default() += 1;
        task.in_hand = Some(Arc::new(InHand { hands: self.clone(), claim }));
    }

    pub fn holds(&self, id: i64, fence: i64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&(id, fence))
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut held = self.hands.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.claim) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.claim);
            }
        }
    }
}

impl Claimed {
    /// Whether it is to be put aside instead of being performed once more.
    pub fn is_deadly(&self) -> bool {
        self.deaths >= DEATHS_MAX
    }
}

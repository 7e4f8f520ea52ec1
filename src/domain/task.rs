//! A task of the durable core: what is put in, and what its performer gets.

use std::time::Duration;

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
}

impl Lane {
    pub const ALL: [Self; 3] = [Self::Work, Self::Jobs, Self::Webhooks];

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
}

impl Claimed {
    /// Whether it is to be put aside instead of being performed once more.
    pub fn is_deadly(&self) -> bool {
        self.deaths >= DEATHS_MAX
    }
}

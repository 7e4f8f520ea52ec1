//! The database in memory: the tables of the durable core, of jobs and of webhooks, and each
//! transaction of `store/` and `services/` on them as one operation. Here are processes and
//! tasks, what they mean is in `database/jobs.rs`. A rule can be broken on purpose, so that the
//! checks are checked too.

mod jobs;

use std::{collections::BTreeMap, time::Duration};

use super::{
    Millis,
    checks::Witness,
    domain::{
        delivery::{self, DeliveryStatus},
        job::{JobState, Standing},
        task::{Claimed, LEASE, Lane},
    },
};

pub use self::jobs::{Begun, FAILURES_MAX};

const RUN: &str = "job.run";
const DELIVER: &str = "webhook.deliver";
/// Renewals do not wait for the disk: a crash takes back what is younger.
const NOT_ON_DISK: Millis = 600;

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    FinishesByIdAlone,
    BuriesWithoutTheLease,
    BuriesAfterARestart,
    BuriesNobody,
    CountsWhatWasGivenBack,
    ForgetsTheNextWebhook,
    SendsOnAfterA410,
    /// What was released may be released again by the same claim.
    ReleaseKeepsTheFence,
    /// Of two outcomes of a task in one batch, the old one is applied with the new one.
    RecordsByTaskAlone,
    /// A delivery that is being sent stays with who sends it when it is asked for once more.
    RedeliveryKeepsTheTask,
    /// Tasks of a claim whose answer was lost stay with a process that does not know of them.
    ForgetsUnansweredClaims,
    /// A run whose log could not be written lets its task lie.
    DropsWhatItCannotAppend,
    /// A task is put aside although its job could not be failed.
    ParksWithoutFailing,
}

/// What a task is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Job(usize),
    Delivery(usize),
}

impl Subject {
    pub fn of(claim: &Claimed) -> Self {
        let number = claim.subject.parse().expect("subjects are numbers here");
        if claim.kind == RUN { Self::Job(number) } else { Self::Delivery(number) }
    }

    fn lane(self) -> Lane {
        if let Self::Job(_) = self { Lane::Jobs } else { Lane::Webhooks }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Task {
    pub owner: Option<u64>,
    pub fence: i64,
    attempt: i32,
    deaths: i16,
    priority: i16,
    pub subject: Subject,
}

struct Later {
    id: i64,
    run_at: Millis,
    attempt: i32,
    priority: i16,
}

/// The row of a process.
struct Lease {
    until: Millis,
    /// The renewal before, and when the last one was.
    before: Millis,
    renewed: Millis,
}

/// A state as the log and the webhooks tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    pub state: JobState,
    pub previous: Option<JobState>,
    pub attempt: i32,
}

pub struct Job {
    pub standing: Standing,
    pub hook: bool,
    pub gone: bool,
    /// Whoever runs it dies.
    pub deadly: bool,
    sequence: i32,
    pub deliveries: Vec<usize>,
    pub log: Log,
}

/// A job's stream.
#[derive(Default)]
pub struct Log {
    pub fence: i64,
    pub last_n: i64,
    pub ended: bool,
    pub states: Vec<Told>,
    /// Events behind the last state.
    pub tail: i64,
}

pub struct Delivery {
    pub job: usize,
    pub sequence: i32,
    pub told: Told,
    pub status: DeliveryStatus,
    pub retries: i32,
    /// Recorded since it was last asked for: the answer, or nothing; and whether it was refused.
    pub attempts: Vec<(Option<u16>, bool)>,
    pub redelivered: bool,
}

/// What became of one call.
pub struct Outcome {
    pub claim: Claimed,
    pub delivery: usize,
    pub heard: delivery::Outcome,
    pub status: DeliveryStatus,
    pub again: Option<Millis>,
}

#[derive(Default)]
pub struct Database {
    pub now: Millis,
    /// Since when it runs; in the future while it is away.
    pub up_since: Millis,
    pub flaw: Option<Flaw>,
    pub seen: Witness,
    pub jobs: Vec<Job>,
    pub deliveries: Vec<Delivery>,
    pub tasks: BTreeMap<i64, Task>,
    task_once: BTreeMap<Subject, i64>,
    later: BTreeMap<Subject, Later>,
    processes: BTreeMap<u64, Lease>,
    task_ids: i64,
    fences: i64,
}

/// Processes and what they hold.
impl Database {
    pub fn new(flaw: Option<Flaw>) -> Self {
        Self { flaw, ..Self::default() }
    }

    pub fn register(&mut self, process: u64) {
        let until = self.now + millis(LEASE);
        self.processes.insert(process, Lease { until, before: until, renewed: self.now });
    }

    pub fn renew(&mut self, process: u64) -> bool {
        let now = self.now;
        let Some(lease) = self.processes.get_mut(&process).filter(|lease| lease.until > now) else { return false };
        *lease = Lease { until: now + millis(LEASE), before: lease.until, renewed: now };
        true
    }

    pub fn expired(&self) -> Vec<u64> {
        let up = self.up_since + millis(LEASE) < self.now || self.flaw == Some(Flaw::BuriesAfterARestart);
        let early = if self.flaw == Some(Flaw::BuriesWithoutTheLease) { millis(LEASE) - 2_000 } else { 0 };
        let up = up && self.flaw != Some(Flaw::BuriesNobody);
        let dead = |lease: &Lease| up && lease.until <= self.now + early;
        self.processes.iter().filter(|(_, lease)| dead(lease)).map(|(id, _)| *id).collect()
    }

    pub fn bury(&mut self, process: u64, deaths: i16) {
        let Some(lease) = self.processes.remove(&process) else { return };
        if deaths > 0 {
            self.seen.buried(process, lease.until <= self.now && self.up_since + millis(LEASE) <= self.now);
        }
        let held: Vec<i64> = self.owned_by(process).collect();
        for id in held {
            let task = self.tasks.get_mut(&id).expect("it was there");
            (task.owner, task.deaths) = (None, task.deaths + deaths);
        }
    }

    pub fn owned_by(&self, process: u64) -> impl Iterator<Item = i64> {
        self.tasks.iter().filter(move |(_, task)| task.owner == Some(process)).map(|(id, _)| *id)
    }

    pub fn lives(&self, process: u64) -> bool {
        self.processes.get(&process).is_some_and(|lease| lease.until > self.now)
    }

    pub fn is_away(&self) -> bool {
        self.now < self.up_since
    }

    /// It crashes, and is back after `away`.
    pub fn restart(&mut self, away: Millis) {
        for lease in self.processes.values_mut().filter(|lease| lease.renewed + NOT_ON_DISK > self.now) {
            lease.until = lease.before;
        }
        self.up_since = self.now + away;
    }
}

/// Tasks.
impl Database {
    pub fn claim(&mut self, process: u64, lane: Lane, room: usize) -> Vec<Claimed> {
        if !self.lives(process) {
            return Vec::new();
        }
        self.fences += 1;
        let free = |task: &Task| task.owner.is_none() && task.subject.lane() == lane;
        let mut heads: Vec<_> = self.tasks.iter().filter(|(_, t)| free(t)).map(|(id, t)| (t.priority, *id)).collect();
        heads.sort_unstable();
        heads.truncate(room);
        heads.into_iter().map(|(_, id)| self.take(id, process)).collect()
    }

    fn take(&mut self, id: i64, process: u64) -> Claimed {
        let task = self.tasks.get_mut(&id).expect("a head is there");
        (task.owner, task.fence, task.attempt) = (Some(process), self.fences, task.attempt + 1);
        self.seen.claimed(id, self.fences, task.deaths);
        let (kind, number) = match task.subject {
            Subject::Job(number) => (RUN, number),
            Subject::Delivery(number) => (DELIVER, number),
        };
        Claimed {
            id,
            lane: 0,
            queue: String::new(),
            kind: kind.to_owned(),
            subject: number.to_string(),
            fence: task.fence,
            attempt: task.attempt,
            deaths: task.deaths,
            waited: 0.0,
            in_hand: None,
        }
    }

    /// Frees what claims took whose answers did not arrive: a crew's fences only grow.
    pub fn release_unanswered(&mut self, process: u64, lane: Lane, answered: i64) {
        let held: Vec<i64> = self.owned_by(process).collect();
        for id in held {
            let task = self.tasks.get_mut(&id).expect("it was there");
            if task.subject.lane() == lane && task.fence > answered {
                (task.owner, task.fence) = (None, 0);
                self.seen.count("released unanswered");
                self.seen.over(id);
            }
        }
    }

    pub fn move_due(&mut self) {
        let due: Vec<Subject> =
            self.later.iter().filter(|(_, later)| later.run_at <= self.now).map(|(subject, _)| *subject).collect();
        for subject in due {
            let Some(Later { id, attempt, priority, .. }) = self.later.remove(&subject) else { continue };
            if !self.task_once.contains_key(&subject) {
                self.put(id, Task { owner: None, fence: 0, attempt, deaths: 0, priority, subject });
            }
        }
    }

    pub fn has_waiting(&self, lane: Lane) -> bool {
        self.tasks.values().any(|task| task.owner.is_none() && task.subject.lane() == lane)
    }

    pub fn next_due(&self) -> Option<Millis> {
        self.later.values().map(|later| later.run_at).min()
    }

    pub fn is_held(&self, claim: &Claimed) -> bool {
        self.tasks.get(&claim.id).is_some_and(|task| task.fence == claim.fence)
    }

    pub fn finish_all(&mut self, claims: &[Claimed]) {
        for claim in claims {
            self.fenced(claim, |db| db.finish(claim));
        }
    }

    pub fn put_back(&mut self, claim: &Claimed, delay: Millis) {
        self.fenced(claim, |db| db.let_go(claim, delay));
    }

    pub fn park(&mut self, claim: &Claimed) {
        self.fenced(claim, |db| db.finish(claim));
    }

    /// Tasks that a subject has, those for later included.
    pub fn tasks_of(&self, subject: Subject) -> usize {
        usize::from(self.task_once.contains_key(&subject)) + usize::from(self.later.contains_key(&subject))
    }

    pub fn has_tasks(&self) -> bool {
        !self.tasks.is_empty() || !self.later.is_empty()
    }

    fn ours(&self, claim: &Claimed) -> bool {
        let by_id = self.flaw == Some(Flaw::FinishesByIdAlone) && self.tasks.contains_key(&claim.id);
        by_id || self.is_held(claim)
    }

    fn finish(&mut self, claim: &Claimed) -> bool {
        self.ours(claim) && self.remove(claim.id).is_some()
    }

    fn let_go(&mut self, claim: &Claimed, delay: Millis) -> bool {
        if !self.ours(claim) {
            return false;
        }
        if delay > 0 {
            return self.remove(claim.id).is_some_and(|task| self.put_later(claim.id, task, delay));
        }
        let keeps = self.flaw == Some(Flaw::ReleaseKeepsTheFence);
        let task = self.tasks.get_mut(&claim.id).expect("it is ours");
        (task.owner, task.deaths, task.fence) = (None, 0, if keeps { task.fence } else { 0 });
        let subject = task.subject;
        self.touch(subject);
        self.seen.over(claim.id);
        true
    }

    fn put_later(&mut self, id: i64, task: Task, delay: Millis) -> bool {
        let run_at = self.now + delay;
        let row = Later { id, run_at, attempt: task.attempt, priority: task.priority };
        let row = self.later.entry(task.subject).or_insert(row);
        row.run_at = row.run_at.min(run_at);
        self.touch(task.subject);
        true
    }

    /// Does nothing where the subject has one.
    fn insert(&mut self, subject: Subject, priority: i16) {
        if !self.task_once.contains_key(&subject) {
            self.task_ids += 1;
            self.put(self.task_ids, Task { owner: None, fence: 0, attempt: 0, deaths: 0, priority, subject });
        }
    }

    fn put(&mut self, id: i64, task: Task) {
        self.touch(task.subject);
        self.task_once.insert(task.subject, id);
        self.tasks.insert(id, task);
    }

    fn remove(&mut self, id: i64) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.task_once.remove(&task.subject);
        self.touch(task.subject);
        self.seen.over(id);
        Some(task)
    }

    fn touch(&mut self, subject: Subject) {
        let job = match subject {
            Subject::Job(job) => job,
            Subject::Delivery(delivery) => self.deliveries[delivery].job,
        };
        self.seen.written(job);
    }

    /// A write that names its claim. Under an old one it must change nothing.
    fn fenced<T>(&mut self, claim: &Claimed, write: impl FnOnce(&mut Self) -> T) -> T {
        let (in_force, before) = (self.seen.is_in_force(claim), self.seen.writes);
        let answer = write(self);
        if !in_force {
            self.seen.old_write(claim, before != self.seen.writes);
        }
        answer
    }
}

pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

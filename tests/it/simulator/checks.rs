//! What must hold after every step of a history, and at its end. The witness sees each write and
//! keeps its own books; what it finds wrong ends the history.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Millis,
    database::{Database, Delivery, FAILURES_MAX, Job, Outcome, Subject},
    domain::{
        delivery::{self, DeliveryStatus, RETRIES_MAX},
        job::{Happening, JobState},
        task::{Claimed, DEATHS_MAX},
    },
};

/// Within which the job of a dead process runs elsewhere.
const RESCUE: Millis = 20_000;
/// A process with room has looked and claimed after so long.
const LOOKED: Millis = 4_000;

#[derive(Default)]
pub struct Witness {
    /// The claim that may write, by task. A buried process's may until the next is made.
    in_force: BTreeMap<i64, i64>,
    /// Deaths of owners in a row, by task, as they were seen.
    deaths: BTreeMap<i64, i16>,
    /// By job: the fences of claims that count, and of those that failed.
    counted: BTreeMap<usize, BTreeSet<i64>>,
    failed: BTreeMap<usize, BTreeSet<i64>>,
    /// Who began last, by job, until it ends.
    logs: BTreeMap<usize, i64>,
    parked: BTreeSet<usize>,
    /// Deliveries asked for once more, by the newest fence at that moment: a later claim answers it.
    owed: BTreeMap<usize, i64>,
    called: BTreeSet<usize>,
    /// Jobs of which a receiver wants no more.
    gone: BTreeSet<usize>,
    dead: BTreeSet<u64>,
    orphans: Vec<Orphan>,
    /// Jobs written to since the last check, and all writes.
    dirty: BTreeSet<usize>,
    pub writes: u64,
    breaches: Vec<String>,
    pub tally: BTreeMap<&'static str, u64>,
}

/// A task whose owner died.
struct Orphan {
    task: i64,
    fence: i64,
    by: Millis,
}

/// What is reported to the witness.
impl Witness {
    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.breaches.push(what());
        }
    }

    pub fn written(&mut self, job: usize) {
        self.writes += 1;
        self.dirty.insert(job);
    }

    pub fn claimed(&mut self, task: i64, fence: i64, deaths: i16) {
        let before = self.in_force.insert(task, fence);
        self.expect(before.is_none_or(|before| before < fence), || format!("task {task} got an older fence"));
        self.deaths.insert(task, deaths);
        if deaths > 0 {
            self.count("rescues");
        }
    }

    pub fn is_in_force(&self, claim: &Claimed) -> bool {
        self.in_force.get(&claim.id) == Some(&claim.fence)
    }

    /// Nobody has begun with it since, and it has not ended.
    pub fn holds_log(&self, claim: &Claimed, job: usize) -> bool {
        self.logs.get(&job) == Some(&claim.fence)
    }

    /// Done, given back or taken away: nobody may write until the next claim.
    pub fn over(&mut self, task: i64) {
        self.in_force.remove(&task);
    }

    pub fn old_write(&mut self, claim: &Claimed, changed: bool) {
        self.count("writes under an old fence");
        let Claimed { id, fence, kind, subject, .. } = claim;
        self.expect(!changed, || format!("old fence {fence} of task {id} ({kind} {subject}) changed something"));
    }

    pub fn counted(&mut self, job: usize, fence: i64, again: bool) {
        self.counted.entry(job).or_default().insert(fence);
        self.logs.insert(job, fence);
        if again {
            self.count("taken over while running");
        }
    }

    pub fn ended_run(&mut self, job: usize, fence: i64, happening: Happening, state: JobState) {
        match happening {
            Happening::GivenBack => {
                self.counted.entry(job).or_default().remove(&fence);
                self.count("given back");
            }
            Happening::Failed { .. } => {
                self.failed.entry(job).or_default().insert(fence);
                self.count(if state == JobState::Queued { "retries" } else { "failed for good" });
            }
            _ => self.count("completed"),
        }
    }

    pub fn died(&mut self, process: u64) {
        self.dead.insert(process);
    }

    pub fn orphaned(&mut self, task: i64, fence: i64, now: Millis) {
        self.orphans.push(Orphan { task, fence, by: now + RESCUE });
    }

    pub fn buried(&mut self, process: u64, ran_out: bool) {
        self.count("buried");
        let proven = self.dead.contains(&process);
        self.expect(proven || ran_out, || format!("process {process} was buried alive"));
        if proven && !ran_out {
            self.count("proven dead");
        }
    }

    pub fn parked(&mut self, task: i64, job: usize) {
        self.count("parked");
        self.parked.insert(job);
        let deaths = self.deaths.get(&task).copied().unwrap_or(0);
        self.expect(deaths >= DEATHS_MAX, || format!("task {task} was put aside after {deaths} deaths"));
    }

    pub fn asked_again(&mut self, delivery: usize, newest: i64) {
        self.count("redelivered");
        self.owed.insert(delivery, newest);
    }

    pub fn recorded(&mut self, one: &Outcome, job: usize) {
        if matches!(one.heard, delivery::Outcome::Status { code: 410, .. }) {
            self.gone.insert(job);
        }
        self.count(match (one.status, one.again) {
            (DeliveryStatus::Delivered, _) => "delivered",
            (_, Some(_)) => "webhook retries",
            (_, None) => "webhooks given up",
        });
        let answered = self.owed.get(&one.delivery).is_none_or(|newest| *newest < one.claim.fence);
        if answered {
            self.owed.remove(&one.delivery);
        }
        let delivery = one.delivery;
        self.expect(answered, || format!("a call from before answers for delivery {delivery}, asked for since"));
    }

    /// Another delivery's 410 ended it.
    pub fn unsent(&mut self, delivery: usize) {
        self.count("stopped by a 410");
        self.owed.remove(&delivery);
    }
}

impl Database {
    /// A receiver hears of it.
    pub fn called(&mut self, delivery: usize) {
        let first = self.seen.called.insert(delivery);
        let row = &self.deliveries[delivery];
        let job = &self.jobs[row.job];
        if !first || job.deliveries.iter().any(|id| self.deliveries[*id].redelivered) {
            return;
        }
        let (sequence, gone) = (row.sequence, self.seen.gone.contains(&row.job));
        let earlier = self.first_pending(row.job).is_some_and(|id| self.deliveries[id].sequence < sequence);
        self.seen.expect(!earlier, || format!("delivery {delivery} was sent before an earlier one ended"));
        self.seen.expect(!gone, || format!("delivery {delivery} was sent after a 410"));
    }

    /// After a step. `idle_since` is since when some process has had room and looked for work.
    pub fn check(&mut self, idle_since: Option<Millis>) -> Result<(), String> {
        if let Some(breach) = self.seen.breaches.pop() {
            return Err(breach);
        }
        self.rescues(idle_since)?;
        for job in std::mem::take(&mut self.seen.dirty) {
            let what = self.check_job(job);
            what.map_err(|what| format!("job {job} ({:?}): {what}", self.jobs[job].standing))?;
        }
        Ok(())
    }

    fn rescues(&mut self, idle_since: Option<Millis>) -> Result<(), String> {
        let (now, tasks) = (self.now, &self.tasks);
        let open = |orphan: &Orphan| tasks.get(&orphan.task).is_some_and(|task| task.fence == orphan.fence);
        self.seen.orphans.retain(open);
        for orphan in self.seen.orphans.iter_mut().filter(|orphan| orphan.by < now) {
            if idle_since.is_some_and(|since| since + LOOKED < orphan.by) && self.up_since + RESCUE < now {
                let row = &tasks[&orphan.task];
                return Err(format!("what a dead process held is not elsewhere after {RESCUE} ms: {row:?}"));
            }
            orphan.by = now + LOOKED;
        }
        Ok(())
    }

    fn check_job(&self, id: usize) -> Result<(), String> {
        let job = &self.jobs[id];
        self.check_counts(id, job)?;
        self.check_log(id, job)?;
        let tasks = self.tasks_of(Subject::Job(id));
        ensure(tasks == 1 || job.standing.state.is_ended(), || format!("it has {tasks} tasks"))?;
        self.check_deliveries(id, job)
    }

    fn check_counts(&self, id: usize, job: &Job) -> Result<(), String> {
        let size = |fences: &BTreeMap<usize, BTreeSet<i64>>| fences.get(&id).map_or(0, BTreeSet::len);
        let (counted, failed) = (size(&self.seen.counted), size(&self.seen.failed));
        let (attempt, failures) = (job.standing.attempt, job.standing.failures);
        ensure(usize::try_from(attempt) == Ok(counted), || format!("{counted} claims count, not {attempt}"))?;
        ensure(usize::try_from(failures) == Ok(failed), || format!("{failed} claims failed, not {failures}"))?;
        ensure(failures <= FAILURES_MAX, || "it failed too often".to_owned())
    }

    /// The states are a chain that ends once.
    fn check_log(&self, id: usize, job: &Job) -> Result<(), String> {
        use JobState::{Cancelled, Completed, Failed, Queued, Running};
        let mut at = None;
        for told in &job.log.states {
            ensure(told.previous == at, || format!("{told:?} does not follow {at:?}"))?;
            let legal = match (at, told.state) {
                (None | Some(Running), Queued)
                | (Some(Queued), Running | Cancelled)
                | (Some(Running), Completed | Failed | Cancelled) => true,
                (Some(Queued), Failed) => self.seen.parked.contains(&id),
                _ => false,
            };
            ensure(legal, || format!("{at:?} became {:?}", told.state))?;
            at = Some(told.state);
        }
        ensure(at == Some(job.standing.state), || format!("its log ends with {at:?}"))?;
        let ended = job.standing.state.is_ended();
        ensure(job.log.ended == ended && (!ended || job.log.tail == 0), || "its log goes on behind its end".to_owned())
    }

    /// Webhooks equal the states; of those that are pending the first has a task, and the others
    /// only after one was asked for once more.
    fn check_deliveries(&self, id: usize, job: &Job) -> Result<(), String> {
        let expected = if job.hook { job.log.states.len() } else { 0 };
        let found = job.deliveries.len();
        ensure(found == expected, || format!("{expected} states, {found} webhooks"))?;
        let first = self.first_pending(id);
        let gone = self.seen.gone.contains(&id);
        let mut asked_again = false;
        for (n, delivery) in job.deliveries.iter().enumerate() {
            let row = &self.deliveries[*delivery];
            let about = |what: &str| format!("delivery {delivery} (sequence {n}, {:?}): {what}", row.status);
            ensure(usize::try_from(row.sequence) == Ok(n), || about("out of sequence"))?;
            ensure(row.told == job.log.states[n], || about("tells another state than the log"))?;
            let tasks = self.tasks_of(Subject::Delivery(*delivery));
            asked_again |= row.redelivered;
            let most = usize::from(Some(*delivery) == first || asked_again);
            let least = usize::from(Some(*delivery) == first);
            if row.status == DeliveryStatus::Pending {
                ensure((least..=most).contains(&tasks), || about(&format!("it has {tasks} tasks")))?;
            }
            ensure(follows_the_rules(row, gone), || about(&format!("its attempts are {:?}", row.attempts)))?;
        }
        Ok(())
    }

    pub fn is_quiet(&self) -> bool {
        let ended = self.jobs.iter().all(|job| job.standing.state.is_ended());
        ended && !self.has_tasks() && self.deliveries.iter().all(|row| row.status != DeliveryStatus::Pending)
    }

    /// Everything once more, when nothing moves any more.
    pub fn check_end(&mut self) -> Result<(), String> {
        self.seen.dirty = (0..self.jobs.len()).collect();
        self.check(None)?;
        ensure(self.seen.owed.is_empty(), || format!("asked for and not sent: {:?}", self.seen.owed.keys()))
    }

    /// What is still open, for whoever reads of a history that does not come to rest.
    pub fn unrest(&self) -> String {
        let jobs: Vec<_> = self.jobs.iter().enumerate().filter(|(_, job)| !job.standing.state.is_ended()).collect();
        let jobs: Vec<_> = jobs.iter().map(|(id, job)| (id, job.standing.state)).collect();
        let is_open = |(_, row): &(usize, &Delivery)| row.status == DeliveryStatus::Pending;
        let hooks: Vec<_> = self.deliveries.iter().enumerate().filter(is_open).map(|(id, _)| id).collect();
        let tasks: Vec<_> = self.tasks.iter().map(|(id, task)| (id, task.subject, task.owner)).collect();
        format!("stuck: jobs {jobs:?}, deliveries {hooks:?}, tasks {tasks:?}")
    }
}

/// What the attempts since it was last asked for say about a delivery, told once more.
fn follows_the_rules(row: &Delivery, gone: bool) -> bool {
    let most = 1 + RETRIES_MAX as usize;
    let delivered = |code: &Option<u16>| code.is_some_and(|code| (200..300).contains(&code));
    let fails_for_good = |(code, refused): &(Option<u16>, bool)| *refused || *code == Some(410);
    let Some((last, before)) = row.attempts.split_last() else {
        return row.status == DeliveryStatus::Pending || gone;
    };
    let retried = before.iter().all(|one| !delivered(&one.0) && !fails_for_good(one));
    let by_the_last = match row.status {
        DeliveryStatus::Delivered => delivered(&last.0),
        DeliveryStatus::Failed => gone || fails_for_good(last) || row.attempts.len() == most,
        DeliveryStatus::Pending => !delivered(&last.0) && !fails_for_good(last) && row.attempts.len() < most,
    };
    retried && by_the_last && row.attempts.len() <= most
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

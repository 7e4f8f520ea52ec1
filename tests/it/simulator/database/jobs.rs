//! Jobs, their logs and their webhooks in memory: what `services/jobs` and `services/webhooks`
//! write down in one transaction is one operation here. What becomes of a job is decided by the
//! domain alone.

use std::collections::BTreeMap;

use super::{
    super::domain::{
        delivery::{self, DeliveryStatus},
        job::{Happening, JobState, Moves, Standing, Then, decide},
        task::{Claimed, PRIORITY},
    },
    Database, Delivery, Flaw, Job, Log, Outcome, Subject, Task, Told, millis,
};

/// A job fails for good at so many failures.
pub const FAILURES_MAX: i32 = 3;

pub enum Begun {
    /// With the number of the last event of its log.
    Runs(i64),
    Over,
    Stale,
}

/// What clients ask for.
impl Database {
    pub fn submit(&mut self, hook: bool, deadly: bool, priority: i16) {
        let standing = Standing { state: JobState::Queued, attempt: 0, failures: 0, started: false };
        let (job, log) = (self.jobs.len(), Log::default());
        let deliveries = Vec::new();
        self.jobs.push(Job { standing, hook, gone: false, deadly, sequence: 0, deliveries, log });
        self.tell(job, Told { state: JobState::Queued, previous: None, attempt: 0 });
        self.insert(Subject::Job(job), priority);
    }

    pub fn cancel(&mut self, job: usize) {
        let before = self.jobs[job].standing;
        let Some(moves) = decide(before, Happening::Cancelled, FAILURES_MAX) else { return };
        self.seen.count(if before.state == JobState::Running { "cancelled while running" } else { "cancelled" });
        self.later.remove(&Subject::Job(job));
        if let Some(id) = self.task_once.get(&Subject::Job(job)).copied() {
            self.remove(id);
        }
        self.apply(job, &moves);
    }

    /// Takes the delivery from whoever is at it: what that call leads to is no answer to this.
    pub fn redeliver(&mut self, delivery: usize) {
        let subject = Subject::Delivery(delivery);
        let row = &mut self.deliveries[delivery];
        (row.status, row.retries, row.redelivered) = (DeliveryStatus::Pending, 0, true);
        row.attempts.clear();
        self.seen.asked_again(delivery, self.fences);
        self.touch(subject);
        if let Some(later) = self.later.get_mut(&subject) {
            later.run_at = self.now;
            return;
        }
        if self.flaw != Some(Flaw::RedeliveryKeepsTheTask)
            && let Some(id) = self.task_once.get(&subject).copied()
        {
            self.remove(id);
        }
        self.insert(subject, PRIORITY);
    }
}

/// Jobs.
impl Database {
    pub fn begin(&mut self, claim: &Claimed, job: usize) -> Begun {
        self.fenced(claim, |db| {
            let before = db.jobs[job].standing;
            let Some(moves) = decide(before, Happening::Claimed, FAILURES_MAX) else { return Begun::Over };
            if !db.ours(claim) || db.jobs[job].log.fence > claim.fence {
                return Begun::Stale;
            }
            db.apply(job, &moves);
            db.seen.counted(job, claim.fence, before.state == JobState::Running);
            db.jobs[job].log.fence = claim.fence;
            Begun::Runs(db.jobs[job].log.last_n)
        })
    }

    /// `None` under an old fence, or where it has ended.
    pub fn end(&mut self, claim: &Claimed, job: usize, happening: Happening) -> Option<Then> {
        self.fenced(claim, |db| {
            let before = db.jobs[job].standing;
            let mut moves = decide(before, happening, FAILURES_MAX)?;
            let ours = match moves.then {
                Then::Again(pause) => db.let_go(claim, millis(pause)),
                Then::Run | Then::End => db.finish(claim),
            };
            if !ours {
                return None;
            }
            if happening == Happening::GivenBack && db.flaw == Some(Flaw::CountsWhatWasGivenBack) {
                moves.now.attempt = before.attempt;
            }
            db.apply(job, &moves);
            db.seen.ended_run(job, claim.fence, happening, moves.now.state);
            Some(moves.then)
        })
    }

    /// Its workers kept dying.
    pub fn give_up(&mut self, claim: &Claimed, job: usize) {
        self.fenced(claim, |db| {
            let moves = decide(db.jobs[job].standing, Happening::Parked, FAILURES_MAX);
            if let Some(moves) = moves.filter(|_| db.ours(claim)) {
                db.seen.parked(claim.id, job);
                db.apply(job, &moves);
            }
        });
    }

    /// False when somebody else holds the log now, or it is not as the writer knows it. The log has
    /// its fence from whoever began last: a claim that has not begun yet holds nobody up.
    pub fn append(&mut self, claim: &Claimed, job: usize, base: i64, events: i64) -> bool {
        let log = &mut self.jobs[job].log;
        let appends = log.fence == claim.fence && log.last_n == base && !log.ended;
        if appends {
            (log.last_n, log.tail) = (log.last_n + events, log.tail + events);
            self.seen.written(job);
        }
        if !self.seen.holds_log(claim, job) {
            self.seen.old_write(claim, appends);
        }
        appends
    }

    fn apply(&mut self, job: usize, moves: &Moves) {
        self.jobs[job].standing = moves.now;
        for change in &moves.changes {
            self.tell(job, Told { state: change.state, previous: Some(change.previous), attempt: change.attempt });
            let log = &mut self.jobs[job].log;
            (log.last_n, log.tail) = (log.last_n + i64::from(change.resets), log.tail + i64::from(change.resets));
        }
        self.seen.written(job);
    }

    /// The event and the webhook of a state.
    fn tell(&mut self, job: usize, told: Told) {
        let row = &mut self.jobs[job];
        if !row.log.ended {
            row.log.states.push(told);
            (row.log.last_n, row.log.tail, row.log.ended) = (row.log.last_n + 1, 0, told.state.is_ended());
        }
        self.seen.written(job);
        if row.hook {
            let status = if row.gone { DeliveryStatus::Failed } else { DeliveryStatus::Pending };
            let (sequence, delivery) = (row.sequence, self.deliveries.len());
            row.sequence += 1;
            row.deliveries.push(delivery);
            let (attempts, retries) = (Vec::new(), 0);
            self.deliveries.push(Delivery { job, sequence, told, status, retries, attempts, redelivered: false });
            if self.first_pending(job) == Some(delivery) {
                self.insert(Subject::Delivery(delivery), PRIORITY);
            }
        }
    }
}

/// Webhooks.
impl Database {
    pub fn first_pending(&self, job: usize) -> Option<usize> {
        let is_pending = |id: &&usize| self.deliveries[**id].status == DeliveryStatus::Pending;
        self.jobs[job].deliveries.iter().find(is_pending).copied()
    }

    /// With its retries so far, where it is to be sent.
    pub fn outgoing(&self, delivery: usize) -> Option<u32> {
        let row = &self.deliveries[delivery];
        (row.status == DeliveryStatus::Pending).then(|| u32::try_from(row.retries).unwrap_or(0))
    }

    pub fn record(&mut self, outcomes: &[Outcome]) {
        let mut ours: Vec<&Outcome> = Vec::new();
        let mut tasks = BTreeMap::new();
        let in_force: Vec<bool> = outcomes.iter().map(|one| self.seen.is_in_force(&one.claim)).collect();
        for one in outcomes {
            if self.ours(&one.claim)
                && let Some(task) = self.remove(one.claim.id)
            {
                tasks.insert(one.claim.id, task);
                ours.push(one);
            }
        }
        if self.flaw == Some(Flaw::RecordsByTaskAlone) {
            ours = outcomes.iter().filter(|one| tasks.contains_key(&one.claim.id)).collect();
        }
        for (one, _) in outcomes.iter().zip(&in_force).filter(|(_, in_force)| !**in_force) {
            self.seen.old_write(&one.claim, ours.iter().any(|written| std::ptr::eq(*written, one)));
        }
        for one in &ours {
            self.write(one, tasks[&one.claim.id]);
        }
        for one in ours.iter().filter(|one| matches!(one.heard, delivery::Outcome::Status { code: 410, .. })) {
            self.stop_sending(self.deliveries[one.delivery].job);
        }
        for one in outcomes.iter().filter(|one| one.again.is_none()) {
            self.release_next(self.deliveries[one.delivery].job);
        }
    }

    fn write(&mut self, one: &Outcome, task: Task) {
        let row = &mut self.deliveries[one.delivery];
        row.status = one.status;
        row.retries += i32::from(one.again.is_some());
        let code = match one.heard {
            delivery::Outcome::Status { code, .. } => Some(code),
            delivery::Outcome::Refused(_) | delivery::Outcome::Failed(_) => None,
        };
        row.attempts.push((code, matches!(one.heard, delivery::Outcome::Refused(_))));
        let job = row.job;
        self.seen.recorded(one, job);
        if let Some(delay) = one.again {
            self.put_later(one.claim.id, task, delay);
        }
        self.touch(task.subject);
    }

    fn stop_sending(&mut self, job: usize) {
        if self.flaw == Some(Flaw::SendsOnAfterA410) {
            return;
        }
        self.jobs[job].gone = true;
        for id in self.jobs[job].deliveries.clone() {
            let row = &mut self.deliveries[id];
            if row.status == DeliveryStatus::Pending {
                row.status = DeliveryStatus::Failed;
                self.seen.unsent(id);
            }
        }
    }

    fn release_next(&mut self, job: usize) {
        if self.flaw == Some(Flaw::ForgetsTheNextWebhook) {
            return;
        }
        if let Some(head) = self.first_pending(job)
            && !self.later.contains_key(&Subject::Delivery(head))
        {
            self.insert(Subject::Delivery(head), PRIORITY);
        }
    }
}

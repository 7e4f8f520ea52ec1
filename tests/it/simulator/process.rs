//! A process in memory, step by step: its lease, its keeper, its crews, its attempts and the
//! writers behind them. Between any two steps it may die, freeze, or be told to stop; the world
//! that it acts on may lose an answer at each. It knows only what it was answered.

use super::{
    Away, Millis, World,
    attempt::{Attempt, Stage},
    database::{Flaw, Outcome, Subject, millis},
    domain::task::{Claimed, LEASE, Lane},
};

const RENEW: Millis = 5_000;
const GIVE_UP: Millis = 10_000;
const LOOK: std::ops::Range<Millis> = 500..1_000;
/// Nothing is waited for more finely than this.
const FINEST: Millis = 5;
/// Before a claim or a write that failed is tried again.
const AGAIN: Millis = 300;
/// Calls in hand for receivers.
const HOOKS: usize = 8;
/// An orderly stop waits so long for attempts.
const DRAIN: Millis = 3_000;

/// Who steps next.
#[derive(Debug, Clone, Copy)]
pub enum Actor {
    Lease,
    Keeper,
    Crew(Lane),
    /// The writer of ends, and that of outcomes.
    Ends,
    Outcomes,
    Attempt(usize),
    Goodbye,
}

enum Renewal {
    /// At the start: the row, then those whose locks prove them dead.
    Join,
    Prove,
    Renew,
    /// Its lease ran out: the old row goes, a new one comes.
    Bury(u64),
    Register,
}

enum Look {
    GivenBack,
    MoveDue,
    Expired,
    Bury(Vec<u64>),
    Mark,
}

struct Crew {
    lane: Lane,
    /// Something may wait in the lane.
    marked: bool,
    at: Millis,
    /// Fence of the last claim that was answered, and whether one since was not.
    answered: i64,
    unsure: bool,
}

/// What waits is written together; a batch that failed is written again as it was.
struct Group<T> {
    waiting: Vec<T>,
    writing: Vec<T>,
    at: Millis,
}

pub struct Process {
    pub lease: u64,
    /// The lease that it began with, which its lock names.
    pub locked: u64,
    /// It may act on nothing that it claimed.
    pub cancelled: bool,
    pub stopping: bool,
    leaves_by: Millis,
    proven: Vec<u64>,
    renewal: Renewal,
    renewed: Millis,
    lease_at: Millis,
    look: Look,
    look_at: Millis,
    crews: [Crew; 2],
    attempts: Vec<Attempt>,
    given_back: Vec<(Claimed, Millis)>,
    ends: Group<Claimed>,
    outcomes: Group<Outcome>,
    slots: usize,
    /// Since when it has had room, in good order.
    pub idle_since: Option<Millis>,
}

/// What a step leads to.
#[derive(PartialEq, Eq)]
pub enum After {
    Lives,
    /// It has ended: with its row gone, or not.
    Left,
    Died,
}

impl Process {
    /// `proven` are those that died on its data directory.
    pub fn start(lease: u64, slots: usize, proven: Vec<u64>, now: Millis) -> Self {
        let crew = |lane| Crew { lane, marked: true, at: now, answered: 0, unsure: false };
        Self {
            lease,
            locked: lease,
            cancelled: false,
            stopping: false,
            leaves_by: 0,
            proven,
            renewal: Renewal::Join,
            renewed: now,
            lease_at: now,
            look: Look::GivenBack,
            look_at: now,
            crews: [crew(Lane::Jobs), crew(Lane::Webhooks)],
            attempts: Vec::new(),
            given_back: Vec::new(),
            ends: Group::new(),
            outcomes: Group::new(),
            slots,
            idle_since: None,
        }
    }

    /// An orderly stop begins, where it is fully there and none has.
    pub fn stop(&mut self, now: Millis) -> bool {
        if self.stopping || matches!(self.renewal, Renewal::Join | Renewal::Prove) {
            return false;
        }
        (self.stopping, self.cancelled, self.leaves_by) = (true, true, now + DRAIN);
        true
    }

    /// Who has something to do, and from when on.
    pub fn due(&self, out: &mut Vec<(Millis, Actor)>) {
        if matches!(self.renewal, Renewal::Join | Renewal::Prove) {
            return out.push((self.lease_at, Actor::Lease));
        }
        if self.stopping {
            let at_rest = self.attempts.is_empty() && self.ends.is_empty() && self.outcomes.is_empty();
            out.push((if at_rest { 0 } else { self.leaves_by }, Actor::Goodbye));
        } else {
            out.push((self.lease_at, Actor::Lease));
            out.push((self.look_at, Actor::Keeper));
            let claims = |crew: &&Crew| crew.marked && !self.cancelled && self.room(crew.lane) > 0;
            out.extend(self.crews.iter().filter(claims).map(|crew| (crew.at, Actor::Crew(crew.lane))));
        }
        if !self.ends.is_empty() {
            out.push((self.ends.at, Actor::Ends));
        }
        if !self.outcomes.is_empty() {
            out.push((self.outcomes.at, Actor::Outcomes));
        }
        out.extend(self.attempts.iter().enumerate().map(|(n, attempt)| (attempt.at, Actor::Attempt(n))));
    }

    pub fn step(&mut self, actor: Actor, world: &mut World) -> After {
        match actor {
            Actor::Lease => return self.keep_lease(world),
            Actor::Keeper => self.look(world),
            Actor::Crew(lane) => self.claim(lane, world),
            Actor::Ends => self.ends.write(world, |world, ends| world.ask(|db| db.finish_all(ends))),
            Actor::Outcomes => {
                self.outcomes.write(world, |world, outcomes| world.ask(|db| db.record(outcomes)));
                self.mark(Lane::Webhooks);
                self.look_at = world.db.now;
            }
            Actor::Attempt(n) => {
                let attempt = self.attempts.swap_remove(n);
                if let Some(next) = attempt.step(self, world) {
                    self.attempts.push(next);
                }
            }
            Actor::Goodbye => {
                let said = world.ask(|db| db.bury(self.lease, 0));
                return if said.is_ok() { After::Left } else { After::Died };
            }
        }
        After::Lives
    }

    /// What an attempt of `under` may still do.
    pub fn is_stopped(&self, under: u64) -> bool {
        self.cancelled || self.lease != under
    }

    pub fn mark(&mut self, lane: Lane) {
        self.crew(lane).marked = true;
    }

    pub fn give_back(&mut self, claim: Claimed, delay: Millis, now: Millis) {
        self.given_back.push((claim, delay));
        self.look_at = now;
    }

    pub fn look_soon(&mut self, now: Millis) {
        self.look_at = now;
    }

    pub fn done(&mut self, claim: Claimed) {
        self.ends.waiting.push(claim);
    }

    pub fn record(&mut self, outcome: Outcome) {
        self.outcomes.waiting.push(outcome);
    }

    pub fn has_room(&self) -> bool {
        let room = [Lane::Jobs, Lane::Webhooks].into_iter().all(|lane| self.room(lane) > 0);
        matches!(self.renewal, Renewal::Renew) && !self.cancelled && room
    }

    fn crew(&mut self, lane: Lane) -> &mut Crew {
        &mut self.crews[usize::from(lane == Lane::Webhooks)]
    }

    fn room(&self, lane: Lane) -> usize {
        let jobs = self.attempts.iter().filter(|attempt| matches!(attempt.subject, Subject::Job(_))).count();
        if lane == Lane::Jobs {
            self.slots.saturating_sub(jobs)
        } else {
            HOOKS.saturating_sub(self.attempts.len() - jobs + self.outcomes.len())
        }
    }

    fn claim(&mut self, lane: Lane, world: &mut World) {
        let (lease, room, now) = (self.lease, self.room(lane), world.db.now);
        let crew = self.crew(lane);
        let answered = crew.answered;
        if crew.unsure {
            if world.ask(|db| db.release_unanswered(lease, lane, answered)).is_err() {
                crew.at = now + AGAIN;
                return;
            }
            crew.unsure = false;
        }
        match world.ask(|db| db.claim(lease, lane, room)) {
            Ok(claims) => {
                crew.marked = claims.len() == room;
                crew.answered = claims.iter().map(|claim| claim.fence).max().unwrap_or(answered);
                self.attempts.extend(claims.into_iter().map(|claim| Attempt::new(claim, lease, now)));
            }
            Err(Away) => {
                crew.at = now + AGAIN;
                crew.unsure = world.db.flaw != Some(Flaw::ForgetsUnansweredClaims);
            }
        }
    }

    /// The keeper, a statement at a time.
    fn look(&mut self, world: &mut World) {
        let now = world.db.now;
        let mut next = Ok(now);
        match std::mem::replace(&mut self.look, Look::GivenBack) {
            Look::GivenBack => {
                let given = std::mem::take(&mut self.given_back);
                for (claim, delay) in given {
                    if world.ask(|db| db.put_back(&claim, delay)).is_err() {
                        self.given_back.push((claim, delay));
                    }
                }
                self.look = Look::MoveDue;
            }
            Look::MoveDue => {
                next = world.ask(super::database::Database::move_due).map(|()| now);
                self.look = Look::Expired;
            }
            Look::Expired => match world.ask(|db| db.expired()) {
                Ok(expired) => self.look = Look::Bury(expired),
                Err(Away) => next = Err(Away),
            },
            Look::Bury(mut expired) => {
                if let Some(process) = expired.pop() {
                    let _the_next_look_does_it = world.ask(|db| db.bury(process, 1));
                    self.look = Look::Bury(expired);
                } else {
                    self.look = Look::Mark;
                }
            }
            Look::Mark => {
                let pause = world.within(LOOK);
                let found =
                    world.ask(|db| ([Lane::Jobs, Lane::Webhooks].map(|lane| db.has_waiting(lane)), db.next_due()));
                next = found.map(|(waiting, due)| {
                    for (crew, waiting) in self.crews.iter_mut().zip(waiting) {
                        crew.marked |= waiting;
                    }
                    due.map_or(now + pause, |due| due.clamp(now + FINEST, now + pause))
                });
            }
        }
        self.look_at = next.unwrap_or_else(|Away| {
            self.look = Look::GivenBack;
            now + world.within(LOOK)
        });
    }

    fn keep_lease(&mut self, world: &mut World) -> After {
        let now = world.db.now;
        match std::mem::replace(&mut self.renewal, Renewal::Renew) {
            Renewal::Join => {
                if world.ask(|db| db.register(self.lease)).is_err() {
                    return After::Died;
                }
                self.renewal = Renewal::Prove;
            }
            Renewal::Prove => match self.proven.pop() {
                Some(dead) => {
                    if world.ask(|db| db.bury(dead, 1)).is_err() {
                        return After::Died;
                    }
                    self.renewal = Renewal::Prove;
                }
                None => self.is_renewed(now),
            },
            Renewal::Renew => match world.ask(|db| db.renew(self.lease)) {
                Ok(true) => self.is_renewed(now),
                Ok(false) => self.start_anew(world),
                Err(Away) => {
                    self.cancelled |= now >= self.renewed + GIVE_UP;
                    self.lease_at = now + 200 + RENEW.min((self.renewed + GIVE_UP).saturating_sub(now));
                }
            },
            Renewal::Bury(old) => {
                let _whoever_looks_next_does_it = world.ask(|db| db.bury(old, 0));
                self.renewal = Renewal::Register;
            }
            Renewal::Register => {
                self.cancelled |= world.ask(|db| db.register(self.lease)).is_err();
                self.is_renewed(now);
            }
        }
        if matches!(self.renewal, Renewal::Renew) && self.cancelled && now < self.renewed + GIVE_UP {
            self.start_anew(world);
        }
        After::Lives
    }

    fn is_renewed(&mut self, now: Millis) {
        (self.renewed, self.lease_at) = (now, now + RENEW);
    }

    /// Drops what it claimed, and goes on under another name.
    fn start_anew(&mut self, world: &mut World) {
        world.db.seen.count("started anew");
        let old = std::mem::replace(&mut self.lease, world.new_lease());
        (self.cancelled, self.renewal, self.lease_at) = (false, Renewal::Bury(old), world.db.now);
    }

    /// Whether a lease that was renewed in time would be over.
    pub fn is_overdue(&self, now: Millis) -> bool {
        now > self.renewed + millis(LEASE)
    }
}

impl<T> Group<T> {
    fn new() -> Self {
        Self { waiting: Vec::new(), writing: Vec::new(), at: 0 }
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.writing.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write(&mut self, world: &mut World, write: impl FnOnce(&mut World, &[T]) -> Result<(), Away>) {
        if self.writing.is_empty() {
            self.writing = std::mem::take(&mut self.waiting);
        }
        match write(world, &self.writing) {
            Ok(()) => self.writing.clear(),
            Err(Away) => self.at = world.db.now + world.within(50..2_000),
        }
    }
}

impl Attempt {
    fn new(claim: Claimed, under: u64, now: Millis) -> Self {
        let subject = Subject::of(&claim);
        let stage = match subject {
            _ if claim.is_deadly() => Stage::GiveUp,
            Subject::Job(_) => Stage::Begin,
            Subject::Delivery(_) => Stage::Read,
        };
        Self { claim, subject, under, at: now, stage }
    }
}

//! One saga in the hands of a process, as `services/sagas/driving.rs` drives it, step by step: it
//! decides, writes that down under the version and the fence that it knows, and begins what was
//! decided once that is durable.

use rdev::domain::saga::{Begin, Changes, Happening, Saga, SagaStatus};

use super::{
    Away, Millis, World,
    attempt::Attempt,
    book::By,
    checks::{check_decision, check_due},
    database::{Flaw, Held, Then, Turn},
    ensure, millis, time,
};

/// Waits up to this long are waited for in memory.
const SHORT: Millis = 2_000;
/// What attempts that end soon get at an orderly stop.
const WRAP_UP: Millis = 5_000;

pub struct Drive {
    pub id: usize,
    fence: u64,
    held: Held,
    flight: Vec<Attempt>,
    next: Next,
    looks_at: Option<Millis>,
    /// How long it takes until it hears of what others do, and until when it is slow to decide.
    lag: Millis,
    slow_until: Millis,
}

enum Next {
    Decide(Happening),
    Wait,
    /// At an orderly stop, until then.
    WrapUp(Millis),
    GiveUp,
}

/// Why a driver lets go of a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Rests,
    Lost,
    Given,
}

impl Drive {
    /// Of one that was just claimed.
    pub fn new(id: usize, fence: u64, world: &mut World) -> Self {
        let held = world.db.load(id);
        let deadly = world.stormy && world.chance(0.006);
        let waits = held.turn == Turn::Waits && world.db.flaw != Some(Flaw::TakesOutOfTurn);
        let next = match (deadly, waits) {
            (true, _) => Next::GiveUp,
            (_, true) => Next::Decide(Happening::Look),
            _ => Next::Decide(Happening::Taken),
        };
        let (lag, slow_until) = (world.span(0..900), world.thinks_until());
        Self { id, fence, held, flight: Vec::new(), next, looks_at: None, lag, slow_until }
    }

    pub fn due(&self, stops: bool, world: &World) -> Millis {
        match self.next {
            Next::Decide(_) | Next::GiveUp => self.slow_until,
            Next::Wait if stops => 0,
            Next::WrapUp(until) => self.lands_at().unwrap_or(0).min(until),
            Next::Wait => {
                let times = [self.lands_at(), self.looks_at, self.hears_at(world)];
                times.into_iter().flatten().min().unwrap_or(Millis::MAX)
            }
        }
    }

    fn lands_at(&self) -> Option<Millis> {
        self.flight.iter().map(|attempt| attempt.at).min()
    }

    fn hears_at(&self, world: &World) -> Option<Millis> {
        let row = &world.db.rows[self.id];
        let rings = if world.db.flaw == Some(Flaw::IsDeafToQuietChanges) {
            row.events > self.held.seen
        } else {
            row.version != self.held.version
        };
        rings.then_some(row.moved_at + self.lag)
    }

    /// None where it goes on.
    pub fn step(&mut self, stops: bool, world: &mut World) -> Option<Over> {
        match std::mem::replace(&mut self.next, Next::Wait) {
            Next::Decide(happening) => {
                if self.held.turn == Turn::Waits && world.chance(0.2) {
                    world.somebody_passes_the_turn(self.id);
                }
                self.decide(happening, world)
            }
            Next::GiveUp => Some(self.give_up(world)),
            Next::Wait if stops => {
                self.drops(|attempt| !attempt.kind.ends_soon(), world);
                self.next = Next::WrapUp(world.db.now + WRAP_UP);
                None
            }
            Next::WrapUp(until) => self.wrap_up(until, world),
            Next::Wait => self.wait(world),
        }
    }

    fn wait(&mut self, world: &mut World) -> Option<Over> {
        let now = world.db.now;
        self.slow_until = world.thinks_until();
        let hears = self.hears_at(world).is_some_and(|at| at <= now);
        let lands: Vec<usize> = (0..self.flight.len()).filter(|n| self.flight[*n].at <= now).collect();
        if hears && (lands.is_empty() || world.chance(0.5)) {
            if let Err(over) = self.reload(world) {
                return Some(over);
            }
            world.tell(self.id, || "hears of a change".to_owned());
            self.next = Next::Decide(Happening::Look);
        } else if !lands.is_empty() {
            let n = lands[world.index(lands.len())];
            if let Some(happening) = self.advance(n, world) {
                self.next = Next::Decide(happening);
            }
        } else if self.looks_at.is_some_and(|at| at <= now) {
            self.next = Next::Decide(Happening::Look);
        }
        None
    }

    fn advance(&mut self, n: usize, world: &mut World) -> Option<Happening> {
        let (id, fence) = (self.id, self.fence);
        let step = self.flight[n].begin.step;
        let undo = self.flight[n].begin.undo;
        let over = self.flight[n].step(id, fence, world);
        world.tell(id, || format!("{} of {step} advances", if undo { "compensation" } else { "attempt" }));
        if over.is_some() {
            self.flight.swap_remove(n);
        }
        over
    }

    fn decide(&mut self, mut happening: Happening, world: &mut World) -> Option<Over> {
        loop {
            let (changes, then) = self.think(&happening, world);
            if !changes.any && then == Then::Keep {
                // What goes on where a process before left it is no change.
                self.wakes_for(&changes, world);
                self.begin(changes.begin, world);
                return None;
            }
            if world.db.flaw == Some(Flaw::BeginsTooEarly) {
                self.begin(changes.begin.clone(), world);
            }
            world.tell_decision(self.id, &happening, &changes);
            let (id, held, fence) = (self.id, &self.held, self.fence);
            match world.ask(|db| db.write(id, held, &changes, By::Driver, fence, then)) {
                Ok(true) => return self.carry_out(changes, then, world),
                Ok(false) => {
                    if let Err(over) = self.reload(world) {
                        return Some(over);
                    }
                    if world.db.flaw == Some(Flaw::ForgetsWhatEnded) {
                        happening = Happening::Look;
                    }
                }
                Err(Away) => return Some(Over::Given),
            }
        }
    }

    /// What is decided, and what becomes of the task. Without its turn a saga goes no further.
    fn think(&mut self, happening: &Happening, world: &mut World) -> (Changes, Then) {
        let waits = self.held.turn == Turn::Waits && world.db.flaw != Some(Flaw::TakesOutOfTurn);
        let begins = self.held.saga.status == SagaStatus::Pending && !waits;
        let happening = match happening {
            _ if begins => &Happening::Taken,
            Happening::Taken if waits => &Happening::Look,
            happening => happening,
        };
        let (now, unit) = (time(world.db.now), world.unit());
        world.db.seen.count("decisions");
        let mut changes = if waits {
            self.held.saga.conclude(happening.clone(), now, unit)
        } else {
            let before = world.is_sampled(self.held.saga.steps.len()).then(|| self.held.saga.clone());
            let changes = self.held.saga.decide(happening.clone(), now, unit);
            let held = check_due(&self.held.saga, &changes, now);
            world.db.seen.hold(self.id, held);
            if let Some(before) = before {
                let held = check_decision(&before, &self.held.saga, happening, &changes, now);
                world.db.seen.hold(self.id, held.map_err(|what| format!("{happening:?}: {what}")));
            }
            changes
        };
        let flaw = world.db.flaw;
        match flaw {
            Some(Flaw::TellsNotEverything) if world.chance(0.01) => drop(changes.transitions.pop()),
            Some(Flaw::StoresNotEverything) if world.chance(0.01) => drop(changes.steps.pop_first()),
            _ => {}
        }
        let then = self.then(&changes, world);
        (changes, then)
    }

    fn then(&self, changes: &Changes, world: &World) -> Then {
        let saga = &self.held.saga;
        if changes.more || !changes.begin.is_empty() || saga.is_busy() {
            return Then::Keep;
        }
        if self.held.turn == Turn::Waits {
            // Whoever passes the turn makes another task.
            return Then::Finish;
        }
        let Some(due) = saga.next_due() else { return Then::Finish };
        let at = millis(due);
        match world.db.flaw {
            _ if at <= world.db.now + SHORT => Then::Keep,
            Some(Flaw::ForgetsTheTask) => Then::Finish,
            _ => Then::Later(at),
        }
    }

    /// The decision is durable.
    fn carry_out(&mut self, changes: Changes, then: Then, world: &mut World) -> Option<Over> {
        let row = &world.db.rows[self.id];
        (self.held.version, self.held.turn) = (self.held.version + 1, row.turn);
        self.held.seen += changes.transitions.len() as u64;
        if world.kills || world.stumbles() {
            return None;
        }
        if !changes.cut.is_empty() && world.db.flaw != Some(Flaw::CutsNothing) {
            self.drops(|attempt| changes.cut.contains(&(attempt.begin.step, attempt.begin.undo)), world);
        }
        if then != Then::Keep {
            return Some(Over::Rests);
        }
        self.wakes_for(&changes, world);
        if world.db.flaw != Some(Flaw::BeginsTooEarly) {
            self.begin(changes.begin, world);
        }
        None
    }

    fn wakes_for(&mut self, changes: &Changes, world: &World) {
        self.looks_at = self.held.saga.next_due().map(|due| millis(due).max(world.db.now + 1));
        if changes.more {
            self.next = Next::Decide(Happening::Look);
        }
    }

    fn begin(&mut self, begins: Vec<Begin>, world: &mut World) {
        for begin in begins {
            let held = self.may_begin(&begin, world);
            world.db.seen.hold(self.id, held);
            world.db.seen.count(if begin.undo { "compensation attempts" } else { "attempts" });
            let attempt = Attempt::new(begin, self.id, world);
            self.flight.push(attempt);
        }
    }

    fn may_begin(&self, begin: &Begin, world: &mut World) -> Result<(), String> {
        let Begin { step, attempt, undo, .. } = *begin;
        let one = &self.held.saga.steps[step];
        ensure(is_asked_for(&self.held.saga, begin), || {
            format!("attempt {attempt} of step {step} begins, which is {:?}", one.status)
        })?;
        let twin = self.flight.iter().any(|other| (other.begin.step, other.begin.undo) == (step, undo));
        ensure(!twin, || format!("two attempts of step {step} at once"))?;
        world.db.rows[self.id].book.began(step, undo, one.generation, &begin.key)
    }

    /// The saga as it is now, if it is still ours.
    fn reload(&mut self, world: &mut World) -> Result<(), Over> {
        if !world.db.is_held(self.id, self.fence) {
            return Err(Over::Lost);
        }
        self.held = world.db.load(self.id);
        if world.db.flaw != Some(Flaw::LeavesTheSuperseded) {
            let flight = std::mem::take(&mut self.flight);
            let (flight, gone) = flight.into_iter().partition(|one| is_asked_for(&self.held.saga, &one.begin));
            self.flight = flight;
            self.abort(gone, world);
        }
        Ok(())
    }

    /// The process stops: attempts that end soon may end, and what becomes of them is written down.
    fn wrap_up(&mut self, until: Millis, world: &mut World) -> Option<Over> {
        let now = world.db.now;
        if self.flight.is_empty() || until <= now {
            return Some(Over::Given);
        }
        self.next = Next::WrapUp(until);
        let n = (0..self.flight.len()).find(|n| self.flight[*n].at <= now)?;
        let happening = self.advance(n, world)?;
        let changes = self.held.saga.conclude(happening.clone(), time(now), world.unit());
        world.db.seen.count("concluded");
        world.tell_decision(self.id, &happening, &changes);
        if !changes.any {
            return None;
        }
        let (id, held, fence) = (self.id, &self.held, self.fence);
        world.db.seen.expect(changes.begin.is_empty(), || format!("saga {id}: who leaves begins {:?}", changes.begin));
        match world.ask(|db| db.write(id, held, &changes, By::Leaver, fence, Then::Keep)) {
            Ok(true) => {
                self.held.version += 1;
                None
            }
            Ok(false) | Err(Away) => Some(Over::Given),
        }
    }

    /// Its drivers kept dying.
    fn give_up(&mut self, world: &mut World) -> Over {
        if world.chance(0.2) {
            world.somebody_asks(self.id);
        }
        let happening = Happening::GivenUp("its drivers kept dying".to_owned());
        let changes = self.held.saga.decide(happening.clone(), time(world.db.now), world.unit());
        world.tell_decision(self.id, &happening, &changes);
        let (id, held, fence) = (self.id, &self.held, self.fence);
        world
            .db
            .seen
            .expect(changes.begin.is_empty(), || format!("saga {id}: given up, and begins {:?}", changes.begin));
        // With the end of the task in the same transaction: whoever asks for more makes another.
        match world.ask(|db| db.write(id, held, &changes, By::Undertaker, fence, Then::Finish)) {
            Ok(true) => {
                world.db.seen.count("given up");
                Over::Rests
            }
            Ok(false) if world.db.flaw == Some(Flaw::GivesUpUnwritten) => {
                world.db.park(id, fence);
                Over::Rests
            }
            Ok(false) | Err(Away) => Over::Given,
        }
    }

    pub fn drops_what_has_not_acted(&mut self, world: &mut World) {
        self.drops(|attempt| !attempt.has_acted(), world);
    }

    pub fn drops_all(&mut self, world: &mut World) {
        self.drops(|_| true, world);
    }

    fn drops(&mut self, which: impl Fn(&Attempt) -> bool, world: &mut World) {
        let (gone, others) = std::mem::take(&mut self.flight).into_iter().partition(which);
        self.flight = others;
        self.abort(gone, world);
    }

    fn abort(&self, attempts: Vec<Attempt>, world: &mut World) {
        for attempt in attempts {
            attempt.abort(self.id, self.fence, world);
        }
    }

    pub fn lets_go(mut self, world: &mut World) {
        self.drops_all(world);
        world.db.give_back(self.id, self.fence);
    }
}

/// The saga wants this very attempt.
fn is_asked_for(saga: &Saga, begin: &Begin) -> bool {
    saga.is_attempting(begin.step, begin.attempt, begin.undo)
}

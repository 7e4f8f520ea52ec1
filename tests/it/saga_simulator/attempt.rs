//! One attempt, of a step or of its compensation: it acts on the world outside, or in the saga's
//! own database with a note, and lands with what it knows of that.

use std::time::Duration;

use rdev::domain::saga::{Begin, Happening, Outcome, Retry};
use serde_json::{Value, json};

use super::{Millis, World, plans::Kind, time};

/// Somebody who never answers is not waited for longer.
const HANGS: Millis = 300_000;

pub struct Attempt {
    pub begin: Begin,
    pub kind: Kind,
    pub at: Millis,
    generation: i32,
    idempotent: bool,
    limit: Option<Millis>,
    fate: Fate,
    acted: bool,
    note: Option<Value>,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Done,
    Fails { retry: Retry, partly: bool },
    CutOff,
    Breaks,
    PutOff(Millis),
    Hangs,
}

impl Attempt {
    pub fn new(begin: Begin, id: usize, world: &mut World) -> Self {
        let row = &world.db.rows[id];
        let (kind, step) = (row.kinds[begin.step], &row.plan.steps[begin.step]);
        let (idempotent, limit) = (step.idempotent, step.timeout.map(|limit| limit.num_milliseconds()));
        let generation = row.stored.steps[begin.step].generation;
        let mut fate = a_fate(world);
        // Some never end well.
        match (id * 31 + begin.step * 7) % 40 {
            0 if world.stormy && !begin.undo => fate = Fate::CutOff,
            1 if world.stormy && begin.undo => fate = Fate::Fails { retry: Retry::After(None), partly: false },
            _ => {}
        }
        if begin.note.is_some() && !begin.undo {
            world.db.seen.count("steps resumed");
        }
        if let (Fate::Fails { partly, .. }, Some(_), false) = (&mut fate, &begin.note, begin.undo) {
            *partly = true;
        }
        let pause = if world.chance(0.5) { world.span(0..400) } else { world.span(0..3_000) };
        let (note, at) = (begin.note.clone(), world.db.now + pause);
        Self { begin, kind, at, generation, idempotent, limit, fate, acted: false, note }
    }

    /// What happened, when it is over.
    pub fn step(&mut self, id: usize, fence: u64, world: &mut World) -> Option<Happening> {
        if let (Fate::PutOff(pause), false) = (self.fate, self.acted) {
            let until = time(world.db.now + pause);
            return Some(self.ended(Outcome::PutOff { until, why: "its breaker is open".to_owned() }));
        }
        if !self.acted {
            self.acts(id, fence, world);
            let long = matches!(self.fate, Fate::Hangs);
            let pause = if long { self.limit.unwrap_or(HANGS) } else { world.span(5..3_000) };
            self.at = world.db.now + pause;
            return None;
        }
        let outcome = match self.fate {
            Fate::Done => Outcome::Done(if world.chance(0.8) { json!({"go": world.chance(0.8)}) } else { Value::Null }),
            Fate::Breaks => Outcome::Broken("it broke off".to_owned()),
            Fate::Fails { retry, partly } => Outcome::Failed { error: "it did not go well".to_owned(), retry, partly },
            _ => Outcome::CutOff("it was cut off".to_owned()),
        };
        Some(self.ended(outcome))
    }

    /// It is dropped where it stands. What was just being sent may arrive.
    pub fn abort(mut self, id: usize, fence: u64, world: &mut World) {
        if !self.acted && world.chance(0.3) {
            self.fate = Fate::CutOff;
            self.acts(id, fence, world);
        }
    }

    pub fn has_acted(&self) -> bool {
        self.acted
    }

    fn acts(&mut self, id: usize, fence: u64, world: &mut World) {
        self.acted = true;
        let step = self.begin.step;
        let works = match self.fate {
            Fate::Done => true,
            Fate::Fails { partly, .. } => partly,
            Fate::CutOff | Fate::Breaks | Fate::Hangs => world.chance(0.6),
            Fate::PutOff(_) => false,
        };
        let row = &mut world.db.rows[id];
        let (is_done, whole) =
            (row.book.is_done_under(step, self.generation), !matches!(self.fate, Fate::Fails { .. }));
        let held = if self.begin.undo {
            if works {
                row.book.undone_outside(step);
            }
            Ok(())
        } else if self.kind.acts_outside() {
            if let (Fate::Fails { retry: Retry::Never, .. }, true) = (self.fate, is_done) {
                self.fate = Fate::Done;
            }
            let sent = row.book.sent(step, self.begin.attempt, self.idempotent);
            let done = works && !is_done;
            sent.and_then(
                |()| if done { row.book.done_outside(step, self.generation, whole, &row.stored) } else { Ok(()) },
            )
        } else if works && self.kind == Kind::Make && self.note.is_none() {
            self.make(id, fence, world)
        } else {
            Ok(())
        };
        world.db.seen.hold(id, held);
    }

    fn make(&mut self, id: usize, fence: u64, world: &mut World) -> Result<(), String> {
        let note = json!({"made_by": self.begin.attempt});
        if !world.db.note(id, fence, self.begin.step, self.begin.attempt, &note) {
            world.db.seen.count("notes refused");
            self.fate = Fate::Fails { retry: Retry::After(None), partly: false };
            return Ok(());
        }
        world.db.seen.count("notes");
        self.note = Some(note);
        world.db.rows[id].book.made(self.begin.step, self.generation)
    }

    fn ended(&self, outcome: Outcome) -> Happening {
        let Begin { step, attempt, undo, .. } = self.begin;
        if undo {
            return Happening::UndoEnded { step, attempt, outcome };
        }
        Happening::Ended { step, attempt, outcome, note: self.note.clone() }
    }
}

fn a_fate(world: &mut World) -> Fate {
    if !world.stormy {
        return if world.chance(0.25) { Fate::Hangs } else { Fate::Done };
    }
    let fails = |retry, partly| Fate::Fails { retry, partly };
    match world.within(0..100) {
        0..58 => Fate::Done,
        58..68 => fails(Retry::After(None), false),
        68..71 => fails(Retry::After(Some(Duration::from_millis(world.within(0..20_000)))), false),
        71..77 => fails(Retry::Never, false),
        77..80 => fails(Retry::After(None), true),
        80..82 => fails(Retry::Never, true),
        82..88 => Fate::CutOff,
        88..90 => Fate::Breaks,
        90..96 => Fate::PutOff(world.span(1..20_000)),
        _ => Fate::Hangs,
    }
}

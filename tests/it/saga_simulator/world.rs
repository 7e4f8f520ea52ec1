//! What everybody acts on: the database, chance, and how bad the days are.

use std::{collections::VecDeque, fmt::Write as _};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rdev::domain::saga::{Changes, Happening, Transition};

use super::{
    Millis,
    database::{Database, Flaw},
};

const MOVES_TOLD: usize = 40;

/// No answer came: it was not done, or it was and nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

pub struct World {
    pub seed: u64,
    pub db: Database,
    rng: SmallRng,
    /// Faults happen.
    pub stormy: bool,
    /// Whoever stepped dies of it.
    pub kills: bool,
    /// Answers are lost more often.
    foul: bool,
    /// Most sagas have one concurrency key, and people are busy.
    pub crowded: bool,
    leases: u64,
    samples: u64,
    pub trace: Trace,
}

/// The last moves, for whoever reads of a breach.
#[derive(Default)]
pub struct Trace {
    pub is_kept: bool,
    moves: VecDeque<String>,
    /// The saga that moved last.
    saga: usize,
}

impl World {
    pub fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        Self {
            seed,
            db: Database::new(flaw),
            rng: SmallRng::seed_from_u64(seed),
            stormy: true,
            kills: false,
            foul: seed % 4 == 3,
            crowded: seed % 4 == 2,
            leases: 0,
            samples: 0,
            trace: Trace::default(),
        }
    }

    /// To the database and back.
    pub fn ask<T>(&mut self, transaction: impl FnOnce(&mut Database) -> T) -> Result<T, Away> {
        let (refused, lost) = if self.foul { (0.03, 0.03) } else { (0.004, 0.005) };
        if self.stormy && self.chance(refused) {
            return Err(Away);
        }
        let answer = transaction(&mut self.db);
        if self.stormy && self.chance(lost) {
            self.db.seen.count("answers lost");
            self.kills = self.chance(0.4);
            return Err(Away);
        }
        Ok(answer)
    }

    /// It dies right after what it did was durable.
    pub fn stumbles(&mut self) -> bool {
        self.kills = self.stormy && self.chance(if self.foul { 0.02 } else { 0.003 });
        self.kills
    }

    /// Whoever has read a saga decides at once, or somebody comes between.
    pub fn thinks_until(&mut self) -> Millis {
        if self.chance(if self.crowded { 0.3 } else { 0.1 }) { self.db.now + self.span(0..1_500) } else { 0 }
    }

    /// What takes long is looked at now and then: the larger a saga, the less often.
    pub fn is_sampled(&mut self, steps: usize) -> bool {
        self.samples += 1;
        self.samples.is_multiple_of(4 + steps as u64)
    }

    pub fn new_lease(&mut self) -> u64 {
        self.leases += 1;
        self.leases
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.rng.random_bool(p)
    }

    pub fn unit(&mut self) -> f64 {
        self.rng.random_range(0.0..1.0)
    }

    pub fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.rng.random_range(range)
    }

    pub fn span(&mut self, range: std::ops::Range<Millis>) -> Millis {
        self.rng.random_range(range)
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.rng.random_range(0..len)
    }
}

/// What is told of a breach.
impl World {
    pub fn tell(&mut self, saga: usize, what: impl FnOnce() -> String) {
        if !self.trace.is_kept {
            return;
        }
        if self.trace.moves.len() == MOVES_TOLD {
            self.trace.moves.pop_front();
        }
        self.trace.moves.push_back(format!("{:>8} saga {saga}: {}", self.db.now, what()));
        self.trace.saga = saga;
    }

    pub fn tell_decision(&mut self, saga: usize, happening: &Happening, changes: &Changes) {
        self.tell(saga, || {
            let mut told = format!("{happening:?} decided:");
            for change in &changes.transitions {
                let _ = match change {
                    Transition::Saga { status, .. } => write!(told, " {}", status.text()),
                    Transition::Step { step, status, .. } => write!(told, " {step}:{}", status.text()),
                };
            }
            let begins: Vec<_> = changes.begin.iter().map(|begin| (begin.step, begin.attempt, begin.undo)).collect();
            let _ = write!(told, " begin {begins:?} cut {:?}", changes.cut);
            told
        });
    }

    /// The breach, the last moves, and the saga that moved last.
    pub fn story(&self, breach: &str) -> String {
        let mut told = format!("{breach}\nat {} ms; the last moves (ms, saga, what):\n", self.db.now);
        for one in &self.trace.moves {
            let _ = writeln!(told, "{one}");
        }
        let Some(row) = self.db.rows.get(self.trace.saga) else { return told };
        let (plan, saga) = (&row.plan, &row.stored);
        let _ = writeln!(told, "saga {}: {:?} {:?} {:?}", self.trace.saga, saga.status, plan.on_failure, plan.timeout);
        for (at, (planned, step)) in plan.steps.iter().zip(&saga.steps).enumerate() {
            let (kind, status, needs) = (row.kinds[at], step.status.text(), &planned.needs);
            let (idempotent, undo) = (planned.idempotent, planned.undo.is_some());
            let _ = writeln!(
                told,
                "  {at} {kind:?} needs {needs:?} idempotent {idempotent} undo {undo}: {status}, generation {} attempt {} \
                 doubtful {}",
                step.generation, step.attempt, step.doubtful
            );
        }
        told
    }
}

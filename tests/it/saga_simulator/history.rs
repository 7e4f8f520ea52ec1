//! A history: places where processes run, whose step it is, what befalls them between any two
//! steps, and the calm at the end, in which all comes to rest.

use std::fmt::Write as _;

use super::{
    Millis, World, checks,
    database::{Flaw, Owner},
    plans,
    process::Process,
    time,
};

/// Moves until the faults stop, and lulls.
const STORM: u32 = 900;
const SAGAS: u32 = 30;
/// Steps of the calm in which people still cancel, and after how many of them another saga is made.
const AFTERMATH: u32 = 250;
const ANOTHER: u32 = 50;
const REST_WITHIN: Millis = 7_200_000;
/// What is due is not left lying longer than this by processes that live.
const PATIENCE: Millis = 30_000;

pub struct History {
    pub world: World,
    /// Where a process runs, or is to run from when on.
    places: Vec<Result<Process, Millis>>,
    /// Still to be made.
    sagas: u32,
}

impl History {
    pub fn new(seed: u64, flaw: Option<Flaw>) -> Self {
        let mut world = World::new(seed, flaw);
        let places = (0..world.within(1..4)).map(|_| Err(0)).collect();
        Self { world, places, sagas: SAGAS }
    }

    pub fn unfold(&mut self) -> Result<(), String> {
        let (mut moves, mut lulls) = (0, 0);
        while moves < STORM && lulls < STORM {
            let did = self.step()?;
            (moves, lulls) = (moves + u32::from(did), lulls + u32::from(!did));
            if did || self.world.chance(0.2) {
                self.interfere();
                self.world.db.check()?;
            }
        }
        self.world.stormy = false;
        for n in 0..AFTERMATH {
            if n % ANOTHER == 0 {
                self.create();
            }
            if self.world.chance(0.2) {
                self.world.somebody_cancels_the_last();
            }
            self.world.db.check()?;
            self.step()?;
        }
        self.come_to_rest()?;
        self.world.db.check_end()
    }

    fn come_to_rest(&mut self) -> Result<(), String> {
        let since = self.world.db.now;
        while !self.world.db.rows.iter().all(|row| self.world.db.is_at_rest(row)) {
            for _ in 0..20 {
                if !self.step()? && self.world.db.now > since + PATIENCE {
                    self.is_in_time()?;
                }
            }
            if self.world.db.now > since + REST_WITHIN {
                return Err(self.unrest());
            }
        }
        Ok(())
    }

    /// Somebody takes a step, whoever comes first among those who could. False where all wait.
    fn step(&mut self) -> Result<bool, String> {
        let now = self.world.db.now;
        let (ready, soonest) = self.who_may_step();
        if ready.is_empty() {
            let most = if self.world.stormy || soonest == Millis::MAX { 1_000 } else { 15_000 };
            self.world.db.now = soonest.clamp(now + 1, now + most);
            if self.world.stormy && self.sagas > 0 && self.world.chance(0.05) {
                self.create();
            }
            return self.world.db.check().map(|()| false);
        }
        let (n, drive) = ready[self.world.index(ready.len())];
        self.world.db.seen.count("moves");
        if let Ok(process) = &mut self.places[n] {
            match drive {
                None => process.claim(&mut self.world),
                Some(drive) => process.drive(drive, &mut self.world),
            }
        }
        if std::mem::take(&mut self.world.kills) {
            self.crash(n);
        }
        self.world.db.now += self.world.span(0..12);
        self.world.db.check().map(|()| true)
    }

    /// Places, and which saga they would drive on, or none where they would claim one; and when the next may.
    fn who_may_step(&mut self) -> (Vec<(usize, Option<usize>)>, Millis) {
        let now = self.world.db.now;
        let (mut ready, mut soonest) = (Vec::new(), Millis::MAX);
        let claimable = self.world.db.ready.values().min().copied();
        for (n, place) in self.places.iter_mut().enumerate() {
            let process = match place {
                Ok(process) => process,
                Err(from) if *from <= now => {
                    *place = Ok(Process::new(self.world.new_lease(), now));
                    soonest = now;
                    continue;
                }
                Err(from) => {
                    soonest = soonest.min(*from);
                    continue;
                }
            };
            let drives = process.drives.iter().enumerate();
            let drives = drives.map(|(at, drive)| (drive.due(process.stops, &self.world), Some(at)));
            let claim = claimable.filter(|_| process.has_room()).map(|at| (at.max(process.claims_at), None));
            for (due, who) in drives.chain(claim) {
                soonest = soonest.min(due);
                if due <= now {
                    ready.push((n, who));
                }
            }
            if process.stops && process.drives.is_empty() {
                *place = Err(now + self.world.span(0..4_000));
                soonest = now;
            }
        }
        (ready, soonest)
    }

    /// What may happen between any two steps.
    fn interfere(&mut self) {
        let n = self.world.index(self.places.len());
        let rows = self.world.db.rows.len();
        match (self.world.within(0..1_000), &mut self.places[n]) {
            (0..5, _) => self.crash(n),
            (5..9, Ok(process)) => {
                let old = process.loses_its_lease(&mut self.world);
                self.world.db.disown(old, Owner::Nobody);
                self.world.db.seen.count("leases lost");
            }
            (9..13, Ok(process)) => {
                process.stops = true;
                self.world.db.seen.count("orderly stops");
            }
            (13..16, _) => self.world.db.now += self.world.span(1_000..90_000),
            (16..31, _) if self.sagas > 0 => self.create(),
            (31.., _) if rows > 0 && self.world.chance(if self.world.crowded { 0.15 } else { 0.025 }) => {
                let id = self.world.index(rows);
                self.world.somebody_asks(id);
            }
            _ => {}
        }
    }

    fn create(&mut self) {
        self.sagas = self.sagas.saturating_sub(1);
        let drawn = plans::draw(&mut self.world);
        let key = if self.world.crowded {
            self.world.chance(0.9).then_some(0)
        } else {
            self.world.chance(0.3).then(|| u8::from(self.world.chance(0.5)))
        };
        let id = self.world.db.create(drawn, key);
        self.world.tell(id, || "is made".to_owned());
    }

    /// Its memory is gone.
    fn crash(&mut self, n: usize) {
        let now = self.world.db.now;
        let back = now + self.world.span(0..10_000);
        let Ok(process) = std::mem::replace(&mut self.places[n], Err(back)) else { return };
        let rescued = now + self.world.span(0..18_000);
        let lease = process.dies(&mut self.world);
        self.world.db.disown(lease, Owner::Dead(rescued));
        self.world.db.seen.count("crashes");
    }

    /// Nothing that is due is left lying by whoever has it in hand.
    fn is_in_time(&self) -> Result<(), String> {
        let late = time(self.world.db.now - PATIENCE);
        for (id, row) in self.world.db.rows.iter().enumerate().filter(|(_, row)| row.is_in_hand()) {
            if let Some(due) = checks::next_due(&row.stored).filter(|due| *due < late) {
                return Err(format!("saga {id} ({:?}) was due at {due}", row.stored.status));
            }
        }
        Ok(())
    }

    fn unrest(&self) -> String {
        let mut told = "stuck:".to_owned();
        for (id, row) in self.world.db.rows.iter().enumerate().filter(|(_, row)| !self.world.db.is_at_rest(row)) {
            let steps: Vec<_> = row.stored.steps.iter().map(|step| step.status.text()).collect();
            let (saga, due) = (&row.stored, checks::next_due(&row.stored));
            let _ = write!(
                told,
                " saga {id} {:?} turn {:?} task {:?} later {:?} stop by {:?} due {due:?} steps {steps:?};",
                saga.status, row.turn, row.task, row.later, saga.stop_by
            );
        }
        told
    }
}

//! A process in memory: its lease, and the sagas that it drives. Between any two steps it may die,
//! lose its lease, or be told to stop.

use super::{
    Millis, World,
    drive::{Drive, Over},
};

/// Sagas in hand.
const ROOM: usize = 6;

pub struct Process {
    lease: u64,
    pub drives: Vec<Drive>,
    pub claims_at: Millis,
    /// An orderly stop has begun.
    pub stops: bool,
}

impl Process {
    pub fn new(lease: u64, now: Millis) -> Self {
        Self { lease, drives: Vec::new(), claims_at: now, stops: false }
    }

    pub fn has_room(&self) -> bool {
        !self.stops && self.drives.len() < ROOM
    }

    pub fn claim(&mut self, world: &mut World) {
        let now = world.db.now;
        self.claims_at = now + world.span(0..500);
        let due: Vec<usize> = world.db.ready.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        let id = due[world.index(due.len())];
        let fence = world.db.claim(id, self.lease);
        world.tell(id, || "is claimed".to_owned());
        self.drives.push(Drive::new(id, fence, world));
    }

    pub fn drive(&mut self, n: usize, world: &mut World) {
        let over = self.drives[n].step(self.stops, world);
        if let Some(over) = over.filter(|_| !world.kills) {
            let drive = self.drives.swap_remove(n);
            let told = match over {
                Over::Rests => "rests",
                Over::Lost => "is lost",
                Over::Given => "is given back",
            };
            world.tell(drive.id, || told.to_owned());
            drive.lets_go(world);
        }
    }

    /// Goes on under another: what it has in hand goes on elsewhere, and of that it learns by and by. Answers
    /// the old one.
    pub fn loses_its_lease(&mut self, world: &mut World) -> u64 {
        self.drives.iter_mut().for_each(|drive| drive.drops_what_has_not_acted(world));
        std::mem::replace(&mut self.lease, world.new_lease())
    }

    /// Answers its lease.
    pub fn dies(self, world: &mut World) -> u64 {
        self.drives.into_iter().for_each(|mut drive| drive.drops_all(world));
        self.lease
    }
}

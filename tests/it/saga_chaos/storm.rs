//! What befalls the processes: at random moments one is killed and another takes its place, now and
//! then all at once; one stands still for longer than a lease; one is stopped in good order.

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use sqlx::Row as _;

use crate::{
    chaos::fleet::Fleet,
    support::{cluster::rows, eventually, sink::lock},
};

/// A lease is 15 s long.
const FROZEN: Duration = Duration::from_secs(17);
/// What a process that stood still sends in this time was decided before.
const LATE: Duration = Duration::from_secs(3);

pub struct Storm {
    rng: SmallRng,
    database: String,
    began: Instant,
    told: Vec<String>,
    thawed: Option<Instant>,
}

impl Storm {
    pub fn new(seed: u64, database: &str) -> Self {
        let rng = SmallRng::seed_from_u64(seed ^ 0x5a6a);
        Self { rng, database: database.to_owned(), began: Instant::now(), told: Vec::new(), thawed: None }
    }

    pub async fn rage(&mut self, fleet: &mut Fleet, kills: u64, span: Duration) {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let frozen = self.freeze(fleet).await;
        let (since, early) = (Instant::now(), kills.div_ceil(2));
        for n in 0..early {
            self.pause(FROZEN.saturating_sub(since.elapsed()) / u32::try_from(early - n).unwrap_or(1)).await;
            self.kill(fleet).await;
        }
        tokio::time::sleep(FROZEN.saturating_sub(since.elapsed())).await;
        fleet.thaw(frozen);
        self.thawed = Some(Instant::now());
        self.tell(format!("{frozen} goes on"));
        let late = kills - early;
        for n in 0..=late {
            let left = span.saturating_sub(self.began.elapsed()).max(Duration::from_secs(3));
            self.pause(left / u32::try_from(late - n + 1).unwrap_or(1)).await;
            if n == late / 2 { self.stop(fleet).await } else { self.kill(fleet).await }
        }
    }

    /// The story so far.
    pub fn told(&self) -> String {
        self.told.join("\n")
    }

    /// It was sent by a process that had stood still, and knew nothing of what had become of it.
    pub fn is_late(&self, at: Instant) -> bool {
        self.thawed.is_some_and(|thawed| at >= thawed && at < thawed + LATE)
    }

    /// A moment in such a time.
    async fn pause(&mut self, within: Duration) {
        tokio::time::sleep(within.mul_f64(self.rng.random_range(0.2..1.0))).await;
    }

    /// One that has sagas in hand.
    async fn freeze(&mut self, fleet: &mut Fleet) -> usize {
        let chosen = eventually("a process with sagas in hand", async || self.busiest(fleet).await).await;
        fleet.freeze(chosen).await;
        self.tell(format!("{chosen} stands still"));
        chosen
    }

    async fn kill(&mut self, fleet: &mut Fleet) {
        let awake: Vec<usize> = (0..fleet.len()).filter(|n| !fleet.is_frozen(*n)).collect();
        let busiest = self.busiest(fleet).await.filter(|n| !fleet.is_frozen(*n));
        let chosen = match (self.rng.random_range(0..10), busiest) {
            (0, _) => awake,
            (1..7, Some(busiest)) => vec![busiest],
            _ => vec![awake[self.rng.random_range(0..awake.len())]],
        };
        self.tell(format!("{chosen:?} killed"));
        for n in &chosen {
            fleet.kill(*n).await;
        }
        for n in chosen {
            fleet.launch(n).await;
            self.tell(format!("{n} is there again"));
        }
    }

    async fn stop(&mut self, fleet: &mut Fleet) {
        let chosen = self.rng.random_range(0..fleet.len());
        self.tell(format!("{chosen} is told to stop"));
        fleet.stop(chosen).await;
        fleet.launch(chosen).await;
        self.tell(format!("{chosen} is there again"));
    }

    /// Who has most sagas in hand.
    async fn busiest(&self, fleet: &Fleet) -> Option<usize> {
        let sql = "select p.address from task t join process p on p.id = t.owner
                   where t.kind = 'saga.run' group by 1 order by count(*) desc";
        let found = rows(&self.database, sql).await;
        let doors = lock(&fleet.doors).clone();
        found.iter().find_map(|row| {
            let address: String = row.get(0);
            doors.iter().position(|door| *door == address)
        })
    }

    fn tell(&mut self, what: String) {
        self.told.push(format!("{:>6} ms: {what}", self.began.elapsed().as_millis()));
    }
}

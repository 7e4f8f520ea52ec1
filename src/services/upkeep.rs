//! Sweeping out what was kept for a time only, in small portions.

use std::time::Duration;

use chrono::TimeDelta;

use crate::{database::Db, domain::clock::Clock, error::Result, forge::Forge, queue::Queue, runtime::Place, store};

const CHUNKS_AT_ONCE: i64 = 200;

#[derive(Clone)]
pub struct Upkeep {
    db: Db,
    clock: Clock,
    forge: Forge,
    runtime: Place,
    queue: Queue,
    output_retention: TimeDelta,
}

impl Upkeep {
    pub fn new(db: Db, clock: Clock, forge: Forge, runtime: Place, queue: Queue, output_retention: Duration) -> Self {
        let output_retention = TimeDelta::from_std(output_retention).unwrap_or(TimeDelta::MAX);
        Self { db, clock, forge, runtime, queue, output_retention }
    }

    /// Tells the metrics how many tasks there are.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn measure(&self) -> Result<()> {
        Ok(self.queue.measure().await?)
    }

    /// Removes what is past its time; packs repositories that need it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn sweep(&self) -> Result<()> {
        let cutoff = self.clock.now() - self.output_retention;
        while store::streams::trim(&mut self.db.conn().await?, cutoff, CHUNKS_AT_ONCE).await? > 0 {}
        let mut conn = self.db.conn().await?;
        store::idempotency::delete_old(&mut conn).await?;
        let projects = store::projects::all(&mut conn).await?;
        // Listed before the rows are read: what appears later is not looked at.
        let kept = self.runtime.kept().await?;
        let running = store::commands::running_streams(&mut conn).await?;
        drop(conn);
        let over: Vec<i64> = kept.into_iter().filter(|key| !running.contains(key)).collect();
        self.runtime.sweep(over).await?;
        for project in projects {
            if let Err(error) = self.forge.maintain(&project.id).await {
                tracing::debug!(%error, project.id, "a repository was not packed");
            }
        }
        Ok(())
    }
}

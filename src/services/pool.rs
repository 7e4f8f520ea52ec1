//! What all processes together can do, and what waits for them.

use crate::{
    database::Db,
    domain::breaker::Snapshot,
    error::Result,
    metrics::Metrics,
    models::Upstreams,
    store::{self, processes::Row},
};

use super::{jobs::RUN_TASK, webhooks::Webhooks};

#[derive(Clone)]
pub struct Pool {
    db: Db,
    upstreams: Upstreams,
    webhooks: Webhooks,
    metrics: Metrics,
}

/// The pool at one moment.
pub struct Survey {
    pub processes: Vec<Row>,
    /// Kind, how many wait, for how many seconds the oldest has.
    pub waiting: Vec<(String, i64, f64)>,
}

impl Pool {
    pub fn new(db: Db, upstreams: Upstreams, webhooks: Webhooks, metrics: Metrics) -> Self {
        Self { db, upstreams, webhooks, metrics }
    }

    /// # Errors
    /// Those of the database.
    pub async fn survey(&self) -> Result<Survey> {
        let mut conn = self.db.conn().await?;
        let processes = store::processes::living(&mut conn, RUN_TASK).await?;
        let waiting = store::tasks::depths(&mut conn).await?;
        Ok(Survey { processes, waiting })
    }

    /// Tells the metrics where breakers stand: receivers are too many for a label each.
    pub fn measure(&self) {
        let number = |snapshot: &Snapshot| snapshot.state.number();
        let receivers = self.webhooks.circuits().iter().map(|(_, snapshot)| number(snapshot)).max().unwrap_or(0);
        let mut states: Vec<_> =
            self.upstreams.circuits().into_iter().map(|(name, snapshot)| (name, number(&snapshot))).collect();
        states.push(("webhooks".to_owned(), receivers));
        self.metrics.circuits(&states);
    }

    /// The breakers of this process: of its upstreams, and of receivers that have failed lately.
    pub fn circuits(&self) -> Vec<(String, Snapshot)> {
        let mut circuits = self.upstreams.circuits();
        circuits.extend(self.webhooks.circuits());
        circuits
    }
}

//! What all processes together can do, and what waits for them.

use crate::{
    database::Db,
    domain::breaker::Snapshot,
    error::Result,
    forge::Forge,
    metrics::Metrics,
    models::Upstreams,
    runtime::Place,
    store::{self, processes::Row},
};

use super::{
    callouts::Callouts,
    jobs::{REVIEW_TASK, RUN_TASK},
    pipelines::Pipelines,
    webhooks::Webhooks,
};

/// What the service is made of.
#[derive(Clone)]
pub struct Parts {
    pub db: Db,
    pub forge: Forge,
    pub upstreams: Upstreams,
    pub webhooks: Webhooks,
    pub callouts: Callouts,
    pub pipelines: Pipelines,
    pub runtime: Place,
    pub metrics: Metrics,
}

#[derive(Clone)]
pub struct Pool {
    parts: Parts,
}

/// The pool at one moment.
pub struct Survey {
    pub processes: Vec<Row>,
    /// Kind, how many wait, for how many seconds the oldest has.
    pub waiting: Vec<(String, i64, f64)>,
}

impl Pool {
    pub fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// # Errors
    /// Those of the database.
    pub async fn survey(&self) -> Result<Survey> {
        let mut conn = self.parts.db.conn().await?;
        let processes = store::processes::living(&mut conn, &[RUN_TASK, REVIEW_TASK]).await?;
        let waiting = store::tasks::depths(&mut conn).await?;
        Ok(Survey { processes, waiting })
    }

    /// Tells the metrics where breakers stand: receivers and servers that steps call are too many for a label each.
    pub fn measure(&self) {
        let number = |snapshot: &Snapshot| snapshot.state.number();
        let worst = |circuits: Vec<(String, Snapshot)>| circuits.iter().map(|(_, one)| number(one)).max().unwrap_or(0);
        let mut states: Vec<_> =
            self.parts.upstreams.circuits().into_iter().map(|(name, snapshot)| (name, number(&snapshot))).collect();
        let others = self.own();
        states.extend(others.map(|(name, snapshot)| (name, number(&snapshot))));
        states.push(("webhooks".to_owned(), worst(self.parts.webhooks.circuits())));
        states.push(("http".to_owned(), worst(self.parts.callouts.circuits())));
        self.parts.metrics.circuits(&states);
    }

    fn own(&self) -> impl Iterator<Item = (String, Snapshot)> {
        let Parts { forge, pipelines, runtime, .. } = &self.parts;
        [forge.circuit(), pipelines.circuit(), runtime.circuit()].into_iter().flatten()
    }

    /// The breakers of this process: of its upstreams, git host, CI server and cluster, and of receivers and servers that have failed lately.
    pub fn circuits(&self) -> Vec<(String, Snapshot)> {
        let mut circuits = self.parts.upstreams.circuits();
        circuits.extend(self.own());
        circuits.extend(self.parts.webhooks.circuits());
        circuits.extend(self.parts.callouts.circuits());
        circuits
    }
}

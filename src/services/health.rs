//! Whether the program can do its work: no secrets, no addresses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use crate::{database::Db, forge::Forge, metrics::Metrics, models::Upstreams, runtime::Place, store};

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;
/// A database that does not answer in so long is away.
const PATIENCE: Duration = Duration::from_secs(2);

/// Cheap to clone.
#[derive(Clone)]
pub struct Health {
    phase: Arc<AtomicU8>,
    db: Db,
    runtime: Place,
    metrics: Metrics,
    upstreams: Upstreams,
    forge: Forge,
}

/// What is seen at a glance.
pub struct Condition {
    pub database: bool,
    pub runtime: &'static str,
    /// Whether what the cluster has is known, and a sentence about that; none where projects are not found by themselves.
    pub discovery: Option<(&'static str, String)>,
    pub isolation: &'static str,
    pub isolated: bool,
    pub isolation_text: String,
    pub phase: &'static str,
    /// As far as it is known without asking: `ok`, `unavailable`, `unconfigured` or `unknown`.
    pub model_upstream: &'static str,
    pub git_host: &'static str,
    /// As `model_upstream`.
    pub git_host_status: &'static str,
    /// Tokens that the git host did not let go of; `None` where that is not known.
    pub irrevocable_tokens: Option<usize>,
}

impl Condition {
    /// Before anything is known.
    pub fn starting() -> Self {
        let unknown = "not known yet".to_owned();
        Self {
            database: false,
            runtime: "unknown",
            discovery: None,
            isolation: "unknown",
            isolated: true,
            isolation_text: unknown,
            phase: "starting",
            model_upstream: "unknown",
            git_host: "unknown",
            git_host_status: "unknown",
            irrevocable_tokens: None,
        }
    }

    pub fn is_well(&self) -> bool {
        self.database && self.phase == "ready"
    }
}

impl Health {
    pub fn new(db: Db, runtime: Place, metrics: Metrics, upstreams: Upstreams, forge: Forge) -> Self {
        Self { phase: Arc::default(), db, runtime, metrics, upstreams, forge }
    }

    pub fn is_ready_to_serve(&self) {
        self.phase.store(READY, Ordering::Release);
    }

    pub fn is_draining(&self) {
        self.phase.store(DRAINING, Ordering::Release);
    }

    /// Started, not stopping, with a database.
    pub async fn ready(&self) -> bool {
        self.phase.load(Ordering::Acquire) == READY && self.database().await
    }

    pub async fn condition(&self) -> Condition {
        let isolation = self.runtime.isolation();
        Condition {
            database: self.database().await,
            runtime: self.runtime.name(),
            discovery: self.runtime.seen().map(|seen| {
                let seen = seen.borrow();
                match &seen.trouble {
                    Some(trouble) => ("unavailable", trouble.clone()),
                    None if seen.complete => ("ok", "pods and ConfigMaps are watched".to_owned()),
                    None => ("starting", "pods and ConfigMaps were not listed yet".to_owned()),
                }
            }),
            isolation: isolation.kind,
            isolated: isolation.isolated,
            isolation_text: isolation.text,
            phase: match self.phase.load(Ordering::Acquire) {
                STARTING => "starting",
                READY => "ready",
                _ => "draining",
            },
            model_upstream: match self.upstreams.is_up() {
                _ if !self.upstreams.is_configured() => "unconfigured",
                up => text_of(up),
            },
            git_host: self.forge.name(),
            git_host_status: text_of(self.forge.is_up()),
            irrevocable_tokens: self.irrevocable_tokens().await,
        }
    }

    /// None lives at the embedded host.
    async fn irrevocable_tokens(&self) -> Option<usize> {
        if !self.forge.keeps_tokens() {
            return Some(0);
        }
        let ask = async { store::tokens::irrevocable(&mut self.db.conn().await?).await };
        tokio::time::timeout(PATIENCE, ask).await.ok()?.ok().map(|left: Vec<_>| left.len())
    }

    /// Prometheus text.
    pub fn metrics(&self) -> Vec<u8> {
        let (open, idle) = self.db.usage();
        self.metrics.render(open, idle)
    }

    async fn database(&self) -> bool {
        let ask = async { store::settings::answer(&mut self.db.conn().await?).await };
        matches!(tokio::time::timeout(PATIENCE, ask).await, Ok(Ok(())))
    }
}

fn text_of(up: Option<bool>) -> &'static str {
    match up {
        None => "unknown",
        Some(true) => "ok",
        Some(false) => "unavailable",
    }
}

//! Wiring, once: from a configuration to a running server, and back down in order.

mod database;
mod listen;
mod services;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use tokio::{net::TcpListener, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::database::{Attached, Why, attach, options_of};
use self::{
    listen::Front,
    services::{Built, Ingredients},
};
use crate::{
    config::{Config, StopCommands},
    data_dir::{DataDir, ProcessLock},
    database::Db,
    domain::{api_key::ApiKey, clock::Clock, command::EndAsked},
    error::Error,
    handlers::ops,
    queue::{self, Lease},
    router, store,
};

/// Kept of the time for an orderly stop for what comes after the requests.
const LET_GO: Duration = Duration::from_secs(5);
/// For letting go of what this process holds, however late it is.
const GOODBYE: Duration = Duration::from_secs(2);
/// What ends at once nearly always.
const GRACE: Duration = Duration::from_millis(500);

/// Told the address.
pub type Announce = Box<dyn FnOnce(&str) + Send>;
/// Told the first admin key and the file that it is kept in.
pub type TellFirstKey = Box<dyn FnOnce(&ApiKey, &std::path::Path) + Send>;

/// What an app is started with.
pub struct Options {
    pub config: Config,
    pub clock: Clock,
    /// This program, which runs itself for supervisors, hooks and the embedded database.
    pub exe: PathBuf,
    /// Called once with the address, when clients may come.
    pub announce: Announce,
    /// Called with a first admin key and the file it was written to.
    pub first_key: TellFirstKey,
}

/// A server that runs.
pub struct App {
    pub url: String,
    pub address: SocketAddr,
    front: Front,
    built: Built,
    db: Db,
    lease: Lease,
    attached: Attached,
    config: Config,
    stop: CancellationToken,
    renewing: CancellationToken,
    background: TaskTracker,
    _lock: ProcessLock,
}

impl App {
    /// # Errors
    /// One clear line about what prevents the start.
    pub async fn start(options: Options) -> Result<Self, Why> {
        let Options { config, clock, exe, announce, first_key } = options;
        choose_tls();
        let data_dir = open_data_dir(&config)?;
        let listener = TcpListener::bind(&config.listen)
            .await
            .map_err(|error| Why::Failed(format!("cannot listen on {} (RDEV_LISTEN): {error}", config.listen)))?;
        let address = listener.local_addr().map_err(|error| Why::Failed(error.to_string()))?;
        let metrics_listener = match config.metrics_listen {
            None => None,
            Some(at) => Some(
                TcpListener::bind(at)
                    .await
                    .map_err(|error| Why::Failed(format!("cannot listen on {at} (RDEV_METRICS_LISTEN): {error}")))?,
            ),
        };
        let stop = CancellationToken::new();
        let background = TaskTracker::new();
        let front = Front::start(listener, router::starting(config.trusted_proxies.clone()), &background);
        let url = base_url(address);
        let announce = Announcement::new(announce, url.clone());
        let attached = database::attach(&config, &data_dir, &exe, || announce.now()).await?;
        let db = attached.db.clone();
        let lease = Lease::new(config.workers);
        let lock = join_processes(&db, &lease, &data_dir).await?;
        // Beyond the stop: what is under way then is still ours.
        let renewing = CancellationToken::new();
        let (kept, kept_db, kept_stop) = (lease.clone(), attached.core.clone(), renewing.clone());
        background.spawn(async move { kept.keep(kept_db, kept_stop).await });
        let ingredients = Ingredients {
            config: &config,
            clock,
            exe,
            data_dir,
            address,
            db: db.clone(),
            core: attached.core.clone(),
            lease: lease.clone(),
            stop: stop.clone(),
        };
        let built = services::build(ingredients, &background).await?;
        make_first_key(&built, &config, first_key).await?;
        built.projects.readdress_stranded().await.map_err(failed)?;
        if let Some(listener) = metrics_listener {
            serve_metrics(listener, &built, &background, &stop);
        }
        attached.keep(&background, &stop);
        front.open(built.router.clone());
        built.start(&background, &stop);
        built.health.is_ready_to_serve();
        announce.now();
        Ok(Self { url, address, front, built, db, lease, attached, config, stop, renewing, background, _lock: lock })
    }

    /// The orderly stop: nothing new, requests under way finish, streams say goodbye, tasks
    /// are given back, the embedded database is stopped.
    pub async fn stop(self) {
        let deadline = Instant::now() + self.config.drain;
        // What comes after the requests has its share of the time.
        let requests_until = deadline - LET_GO.min(self.config.drain / 3);
        self.built.health.is_draining();
        self.front.drain();
        self.stop.cancel();
        if self.config.stop_commands == StopCommands::End {
            self.end_commands().await;
        }
        self.built.requests.close();
        let _late = tokio::time::timeout_at(requests_until, self.built.requests.wait()).await;
        self.front.close(requests_until.max(Instant::now() + GRACE)).await;
        self.lease.leave();
        self.built.queue.attempts.close();
        let _late = tokio::time::timeout_at(deadline, self.built.queue.attempts.wait()).await;
        self.renewing.cancel();
        // Whatever the time: otherwise others wait for the lease, and every task counts a death.
        match tokio::time::timeout_at(deadline.max(Instant::now() + GOODBYE), self.say_goodbye()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "could not say goodbye to the database; other processes wait for the lease");
            }
            Err(_) => tracing::warn!("the database takes too long for a goodbye; other processes wait for the lease"),
        }
        let _late = tokio::time::timeout_at(deadline.max(Instant::now() + GRACE), self.built.forge.close()).await;
        self.background.close();
        let _late = tokio::time::timeout(GRACE, self.background.wait()).await;
        let _late = tokio::time::timeout(GRACE, self.db.close()).await;
        let _late = tokio::time::timeout(GRACE, self.attached.core.close()).await;
        self.attached.stop().await;
    }

    /// Gives back what this process holds.
    async fn say_goodbye(&self) -> Result<(), Error> {
        queue::bury(&self.db, self.lease.id(), 0).await?;
        self.built.keys.flush_uses().await
    }

    /// `RDEV_STOP_COMMANDS=end`: the commands that this process follows end before it does.
    async fn end_commands(&self) {
        if let Err(error) = self.built.commands.end_followed(self.lease.id(), EndAsked::ServerStopped).await {
            tracing::warn!(%error, "commands run on");
        }
    }
}

/// All TLS of the program is ring's. Whoever makes an HTTP client before an app has started calls this.
pub fn choose_tls() {
    let _chosen_before = rustls::crypto::ring::default_provider().install_default();
}

/// Said once, by whoever comes first.
struct Announcement {
    say: std::sync::Mutex<Option<Announce>>,
    url: String,
}

impl Announcement {
    fn new(say: Announce, url: String) -> Self {
        Self { say: std::sync::Mutex::new(Some(say)), url }
    }

    fn now(&self) {
        let say = self.say.lock().ok().and_then(|mut say| say.take());
        if let Some(say) = say {
            say(&self.url);
        }
    }
}

/// Opens the data directory and says where the big things went when not there.
///
/// # Errors
/// A sentence about the directory.
pub fn open_data_dir(config: &Config) -> Result<DataDir, Why> {
    let data_dir = DataDir::open(&config.data_dir).map_err(Why::Failed)?;
    data_dir.ensure().map_err(Why::Failed)?;
    if let Some(place) = data_dir.relocated() {
        tracing::info!(
            "{} cannot be entered by an unprivileged user: database, repositories and workspaces are in {}",
            data_dir.path().display(),
            place.display()
        );
    }
    Ok(data_dir)
}

/// Takes a row among the processes, and removes those of processes that a lock here proves dead.
async fn join_processes(db: &Db, lease: &Lease, data_dir: &DataDir) -> Result<ProcessLock, Why> {
    let lock = ProcessLock::take(data_dir, &lease.id().to_string()).map_err(Why::Failed)?;
    let join = async {
        lease.register(db).await?;
        let known = store::processes::ids(&mut db.conn().await?).await?;
        for id in known.into_iter().filter(|id| *id != lease.id()) {
            if ProcessLock::is_dead(data_dir, &id.to_string()) == Some(true) {
                queue::bury(db, id, 1).await?;
            }
        }
        Ok::<_, crate::database::DbError>(())
    };
    join.await.map_err(|error| Why::Failed(format!("the database refused this process: {error}")))?;
    let swept = ProcessLock::sweep(data_dir);
    tracing::debug!(count = swept.len(), "locks of processes that ended were removed");
    Ok(lock)
}

async fn make_first_key(built: &Built, config: &Config, say: TellFirstKey) -> Result<(), Why> {
    if config.admin_key.is_some() {
        return Ok(());
    }
    let file = built.data_dir.admin_key_file();
    let put_away = |secret: &ApiKey| {
        let text = format!("{}\n", secret.expose());
        crate::data_dir::write_private(&file, text.as_bytes()).map_err(std::io::Error::other)
    };
    if let Some(minted) = built.keys.create_first(put_away).await.map_err(failed)? {
        say(&minted.secret, &file);
    }
    Ok(())
}

fn serve_metrics(listener: TcpListener, built: &Built, tasks: &TaskTracker, stop: &CancellationToken) {
    let health = built.health.clone();
    let show = move || {
        let health = health.clone();
        async move { ops::metrics_response(&health) }
    };
    let router = axum::Router::new().route("/metrics", axum::routing::get(show));
    let front = Front::start(listener, router.clone(), tasks);
    front.open(router);
    let stop = stop.clone();
    tasks.spawn(async move {
        stop.cancelled().await;
        front.close(Instant::now() + Duration::from_secs(1)).await;
    });
}

/// The URL of what listens here, by an address that can be connected to.
fn base_url(address: SocketAddr) -> String {
    let host = match address.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        std::net::IpAddr::V4(ip) => ip.to_string(),
    };
    format!("http://{host}:{}", address.port())
}

fn failed(error: Error) -> Why {
    Why::Failed(error.to_string())
}

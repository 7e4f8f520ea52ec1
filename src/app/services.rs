//! The services, each made of those below it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use axum::Router;
use sha2::{Digest as _, Sha256};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Why, base_url};
use crate::{
    ci::{self, Ci},
    config::{Config, GitHost, RuntimeChoice},
    data_dir::DataDir,
    database::{Db, news},
    domain::clock::Clock,
    egress::Egress,
    forge::Forge,
    handlers::{self, guard::Door, previews::Addresses},
    metrics::Metrics,
    models::Upstreams,
    queue::{self, Crew, Free, Lane, Lease, Perform, Queue, Room},
    router,
    runtime::{
        self, Choice, LocalOptions, Place,
        kube::{Access, KubeOptions},
    },
    services::{
        callouts::Callouts,
        chats::Chats,
        checkouts::{self, Checkouts, Revoking},
        commands::{self, Commands, Quotas},
        deletion::{self, Deletion},
        deploys::Deploys,
        discovery::{self, Discovery},
        following::Following,
        gc::Gc,
        git_access::GitAccess,
        health::Health,
        jobs::{self, Jobs, Runner, Seats},
        keys::Keys,
        limits::Limits,
        output::Outputs,
        pipelines::{self, Pipelines},
        pool::{self, Pool},
        previews::{self, Previews},
        projects::{self, PodDefaults, Projects, Site},
        receipts::Receipts,
        reviews::{self, Reviewing, Reviews},
        sagas::{self, Driver, Sagas},
        sessions::{self, Sessions},
        tickets::Tickets,
        upkeep::Upkeep,
        watching::Watching,
        webhooks::{self, Webhooks},
        workspaces::Workspaces,
    },
    store,
    streams::{
        Hub, Streams, Writer,
        notify::{self, Outbox},
    },
    workers::{
        self, CheckoutExpiry, Chore, Inventory, KeyUpkeep, QueueGauge, Readdress, ResourceGc, Retention, SagaTimers,
        SessionExpiry, TokenSweeper, actions,
    },
};

/// What the services are made of.
pub struct Ingredients<'a> {
    pub config: &'a Config,
    pub clock: Clock,
    pub exe: PathBuf,
    pub data_dir: DataDir,
    pub address: SocketAddr,
    pub db: Db,
    pub core: Db,
    pub lease: Lease,
    pub stop: CancellationToken,
}

/// What the app needs of them.
pub struct Built {
    pub router: Router,
    pub keys: Keys,
    pub projects: Projects,
    pub commands: Commands,
    pub queue: Queue,
    pub forge: Forge,
    pub health: Health,
    pub data_dir: DataDir,
    pub requests: TaskTracker,
    clock: Clock,
    metrics: Metrics,
    db: Db,
    hub: Hub,
    outbox: Outbox,
    crews: Vec<CrewPlan>,
    chores: Vec<Arc<dyn Chore>>,
    discovery: Discovery,
}

/// Who works in a lane, and how much at once.
type CrewPlan = (Lane, Arc<dyn Room>, Vec<Arc<dyn Perform>>);

/// What all rules stand on.
struct Ground {
    db: Db,
    core: Db,
    clock: Clock,
    metrics: Metrics,
    queue: Queue,
    outbox: Outbox,
    streams: Streams,
    place: Place,
    forge: Forge,
    workspaces: Workspaces,
    keys: Keys,
    site: Site,
    egress: Egress,
    callouts: Callouts,
    upstreams: Upstreams,
    pipelines: Pipelines,
    previews: Previews,
    ticket_secret: [u8; 32],
    background: TaskTracker,
}

/// The services that have rules of their own, from the bottom up.
struct Rules {
    projects: Projects,
    access: GitAccess,
    checkouts: Checkouts,
    reviews: Reviews,
    following: Following,
    commands: Commands,
    sessions: Sessions,
    deletion: Deletion,
    webhooks: Webhooks,
    jobs: Jobs,
    sagas: Sagas,
}

/// Wires everything.
///
/// # Errors
/// One clear line.
pub async fn build(given: Ingredients<'_>, background: &TaskTracker) -> Result<Built, Why> {
    let ground = ground(&given, background).await?;
    let rules = rules(&ground, given.config, given.address, background, &given.stop);
    let health = Health::new(
        ground.db.clone(),
        ground.place.clone(),
        ground.metrics.clone(),
        ground.upstreams.clone(),
        ground.forge.clone(),
    );
    let pool = Pool::new(pool::Parts {
        db: ground.db.clone(),
        forge: ground.forge.clone(),
        upstreams: ground.upstreams.clone(),
        webhooks: rules.webhooks.clone(),
        callouts: ground.callouts.clone(),
        pipelines: ground.pipelines.clone(),
        runtime: ground.place.clone(),
        metrics: ground.metrics.clone(),
    });
    let tickets = Tickets::new(ground.ticket_secret, ground.clock.clone());
    let requests = TaskTracker::new();
    let router = mount(&ground, &rules, &given, &health, &pool, tickets, &requests);
    let upkeep = Upkeep::new(
        ground.db.clone(),
        ground.clock.clone(),
        ground.forge.clone(),
        ground.place.clone(),
        ground.queue.clone(),
        given.config.output_retention,
    );
    let discovery = Discovery::new(discovery::Parts {
        db: ground.db.clone(),
        clock: ground.clock.clone(),
        queue: ground.queue.clone(),
        streams: ground.streams.clone(),
        projects: rules.projects.clone(),
        sessions: rules.sessions.clone(),
        runtime: ground.place.clone(),
    });
    let crews = crews(&ground, &rules, given.config);
    let Rules { projects, checkouts, commands, sessions, jobs, sagas, .. } = rules;
    let readdress = Readdress(projects.clone());
    let gc = Gc::new(ground.db.clone(), ground.clock.clone(), ground.place.clone());
    Ok(Built {
        router,
        keys: ground.keys.clone(),
        projects,
        commands,
        queue: ground.queue,
        forge: ground.forge,
        health,
        data_dir: given.data_dir,
        requests,
        clock: ground.clock,
        metrics: ground.metrics,
        db: ground.db,
        hub: ground.streams.hub,
        outbox: ground.outbox,
        crews,
        discovery,
        chores: vec![
            Arc::new(CheckoutExpiry(checkouts.clone())),
            Arc::new(TokenSweeper(checkouts)),
            Arc::new(SessionExpiry(sessions)),
            Arc::new(KeyUpkeep(ground.keys)),
            Arc::new(readdress),
            Arc::new(QueueGauge(upkeep.clone(), pool)),
            Arc::new(Inventory(jobs.clone())),
            Arc::new(SagaTimers(sagas)),
            Arc::new(Retention(upkeep, jobs)),
            Arc::new(ResourceGc(gc)),
        ],
    })
}

async fn ground(given: &Ingredients<'_>, background: &TaskTracker) -> Result<Ground, Why> {
    let (config, db, clock) = (given.config, given.db.clone(), given.clock.clone());
    let metrics = Metrics::new();
    let (queue, ending) = Queue::new(given.core.clone(), given.lease.clone(), metrics.clone());
    background.spawn(ending);
    let outbox = Outbox::default();
    let hub = Hub::new(outbox.clone());
    let (writer, writing) = Writer::new(db.clone(), hub.clone(), metrics.clone());
    background.spawn(writing);
    let ticket_secret = ticket_secret(&db).await?;
    let (place, keeping) = runtime::open(choice(config, given, &ticket_secret)).await.map_err(Why::Failed)?;
    if let Some(keeping) = keeping {
        background.spawn(keeping(given.stop.clone()));
    }
    let forge = Forge::open(&config.git_host, given.data_dir.git(), given.exe.clone(), clock.clone()).await;
    let forge = forge.map_err(|error| Why::Failed(error.to_string()))?;
    let egress = Egress::new(config.egress_allow.clone()).map_err(Why::Failed)?;
    let keys = Keys::new(db.clone(), clock.clone(), queue.clone(), config.admin_key.clone());
    let previews = Previews::new(previews::Parts {
        db: db.clone(),
        clock: clock.clone(),
        keys: keys.clone(),
        runtime: place.clone(),
        secret: ticket_secret,
        process: queue.process(),
        own_ports: own_ports(config, given.address),
        places: places(),
    });
    Ok(Ground {
        metrics,
        streams: Streams::new(db.clone(), hub, writer),
        workspaces: Workspaces::new(place.clone(), forge.folder().to_owned()),
        keys,
        previews,
        ticket_secret,
        background: background.clone(),
        site: site(config, given.address, &forge),
        forge,
        callouts: Callouts::new(egress.clone(), clock.clone()),
        egress,
        upstreams: Upstreams::new(config.upstreams.clone(), config.workers as usize, clock.clone())
            .map_err(Why::Failed)?,
        pipelines: pipelines(config, &db, &clock)?,
        db,
        core: given.core.clone(),
        clock,
        queue,
        outbox,
        place,
    })
}

fn pipelines(config: &Config, db: &Db, clock: &Clock) -> Result<Pipelines, Why> {
    let account = config.ci.clone().map(|server| ci::Account { url: server.url, token: server.token });
    let ci = Ci::open(account, clock.clone()).map_err(Why::Failed)?;
    let owner = match &config.git_host {
        GitHost::Gitea { owner, .. } => Some(owner.clone()),
        GitHost::Embedded => None,
    };
    Ok(Pipelines::new(pipelines::Parts { db: db.clone(), ci, owner }))
}

fn choice(config: &Config, given: &Ingredients<'_>, secret: &[u8; 32]) -> Choice {
    match &config.runtime {
        RuntimeChoice::Local => Choice::Local(local_options(config, given)),
        RuntimeChoice::Kubernetes { kubeconfig, namespace } => Choice::Kubernetes(KubeOptions {
            access: Access { kubeconfig: kubeconfig.clone(), namespace: namespace.clone() },
            install: install(secret),
            clock: given.clock.clone(),
            kill_grace: config.kill_grace,
            output_limit: config.output_limit,
        }),
    }
}

/// Tells this database's installation from others, and gives nothing of the secret away.
fn install(secret: &[u8; 32]) -> String {
    let digest = Sha256::digest([b"install".as_slice(), secret].concat());
    digest[..8].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn local_options(config: &Config, given: &Ingredients<'_>) -> LocalOptions {
    LocalOptions {
        data_dir: given.data_dir.clone(),
        exe: given.exe.clone(),
        sandbox: config.sandbox,
        path: config.path.clone(),
        home: config.home.clone(),
        command_env: config.command_env.clone(),
        kill_grace: config.kill_grace,
        output_limit: config.output_limit,
    }
}

fn rules(
    ground: &Ground,
    config: &Config,
    address: SocketAddr,
    background: &TaskTracker,
    stop: &CancellationToken,
) -> Rules {
    let Ground { db, clock, metrics, queue, streams, place, forge, workspaces, keys, site, .. } = ground;
    let (db, clock, queue, streams) = (|| db.clone(), || clock.clone(), || queue.clone(), || streams.clone());
    let projects = Projects::new(projects::Parts {
        db: db(),
        clock: clock(),
        queue: queue(),
        streams: streams(),
        forge: forge.clone(),
        workspaces: workspaces.clone(),
        site: site.clone(),
        import_root: config.import_root.clone(),
        pods: PodDefaults { image: config.pod_image.clone(), storage: config.pod_storage.clone() },
    });
    let following = Following::new(db(), clock(), queue(), streams(), place.clone(), metrics.clone());
    let commands = Commands::new(commands::Parts {
        db: db(),
        clock: clock(),
        queue: queue(),
        streams: streams(),
        runtime: place.clone(),
        projects: projects.clone(),
        following: following.clone(),
        quotas: Quotas { project: config.commands_per_project, session: config.commands_per_session },
        kill_grace: config.kill_grace,
    });
    let (webhooks, jobs) = jobs_and_webhooks(ground, config, background, stop);
    let reviews = reviewers(ground, config, &projects, &commands, &jobs);
    let checkouts = Checkouts::new(checkouts::Parts {
        db: db(),
        clock: clock(),
        queue: queue(),
        streams: streams(),
        forge: forge.clone(),
        projects: projects.clone(),
        reviews: reviews.clone(),
        metrics: metrics.clone(),
    });
    let sessions = Sessions::new(sessions::Parts {
        db: db(),
        clock: clock(),
        queue: queue(),
        streams: streams(),
        checkouts: checkouts.clone(),
        commands: commands.clone(),
        projects: projects.clone(),
        workspaces: workspaces.clone(),
        preview_domain: preview_domain(config, site),
        preview_ingress: config.preview_ingress,
        site: site.clone(),
        previews: ground.previews.clone(),
        own_ports: own_ports(config, address),
    });
    let deletion = Deletion::new(deletion::Parts {
        db: db(),
        clock: clock(),
        queue: queue(),
        streams: streams(),
        projects: projects.clone(),
        workspaces: workspaces.clone(),
        checkouts: checkouts.clone(),
        reviews: reviews.clone(),
        commands: commands.clone(),
        sessions: sessions.clone(),
        metrics: metrics.clone(),
    });
    let access = GitAccess::new(db(), clock(), keys.clone(), forge);
    let (sagas, writing) = Sagas::new(sagas::Parts {
        db: db(),
        core: ground.core.clone(),
        clock: clock(),
        queue: queue(),
        streams: streams(),
        metrics: metrics.clone(),
        keys: keys.clone(),
        projects: projects.clone(),
        actions: sagas::Registry::new(actions::all(actions::Services {
            callouts: ground.callouts.clone(),
            checkouts: checkouts.clone(),
            commands: commands.clone(),
            jobs: jobs.clone(),
            outputs: Outputs::new(db()),
            pipelines: ground.pipelines.clone(),
            projects: projects.clone(),
            sessions: sessions.clone(),
            deploys: Deploys::new(db(), place.clone()),
            min_expires_in: config.min_expires_in,
            tasks: ground.queue.attempts.clone(),
        })),
        stop: stop.clone(),
    });
    background.spawn(writing);
    Rules { projects, access, checkouts, reviews, following, commands, sessions, deletion, webhooks, jobs, sagas }
}

/// Jobs, and the webhooks that tell of them.
fn jobs_and_webhooks(
    ground: &Ground,
    config: &Config,
    background: &TaskTracker,
    stop: &CancellationToken,
) -> (Webhooks, Jobs) {
    let Ground { db, clock, metrics, queue, streams, site, .. } = ground;
    let (db, clock, queue, streams) = (|| db.clone(), || clock.clone(), || queue.clone(), || streams.clone());
    let (webhooks, recording) = Webhooks::new(webhooks::Parts {
        db: ground.core.clone(),
        clock: clock(),
        queue: queue(),
        metrics: metrics.clone(),
        egress: ground.egress.clone(),
        secrets: config.webhook_secrets.clone(),
        backoff: config.webhook_backoff,
    });
    background.spawn(recording);
    let jobs = Jobs::new(jobs::Parts {
        db: db(),
        core: ground.core.clone(),
        clock: clock(),
        queue: queue(),
        streams: streams(),
        metrics: metrics.clone(),
        upstreams: ground.upstreams.clone(),
        webhooks: webhooks.clone(),
        public_url: site.public.clone(),
        stop: stop.clone(),
        ttl: config.job_ttl,
        timeout: config.job_timeout,
        failures_max: config.job_max_attempts,
    });
    (webhooks, jobs)
}

fn reviewers(ground: &Ground, config: &Config, projects: &Projects, commands: &Commands, jobs: &Jobs) -> Reviews {
    Reviews::new(reviews::Parts {
        db: ground.db.clone(),
        core: ground.core.clone(),
        clock: ground.clock.clone(),
        queue: ground.queue.clone(),
        streams: ground.streams.clone(),
        metrics: ground.metrics.clone(),
        forge: ground.forge.clone(),
        workspaces: ground.workspaces.clone(),
        commands: commands.clone(),
        outputs: Outputs::new(ground.db.clone()),
        projects: projects.clone(),
        jobs: jobs.clone(),
        upstreams: ground.upstreams.clone(),
        site: ground.site.clone(),
        model: config.review_model.clone(),
        timeout: config.job_timeout,
    })
}

/// A process without workers, or without an upstream, leaves jobs to others.
fn crews(ground: &Ground, rules: &Rules, config: &Config) -> Vec<CrewPlan> {
    let reviewing = Arc::new(Reviewing::new(rules.reviews.clone()));
    let system: Vec<Arc<dyn Perform>> = vec![
        Arc::new(rules.following.clone()),
        Arc::new(rules.sessions.clone()),
        Arc::new(rules.deletion.clone()),
        Arc::new(rules.projects.clone()),
        Arc::new(Revoking(rules.checkouts.clone())),
        reviewing.clone(),
    ];
    let mut crews: Vec<CrewPlan> = vec![
        (Lane::Work, Arc::new(Free::default()), system),
        (Lane::Webhooks, rules.webhooks.room(), vec![Arc::new(rules.webhooks.clone())]),
    ];
    let driver = Driver::new(rules.sagas.clone());
    crews.push((Lane::Sagas, driver.room(), vec![Arc::new(driver)]));
    if config.workers > 0 && ground.upstreams.is_configured() {
        let seats = Arc::new(Seats::new(ground.upstreams.clone()));
        crews.push((Lane::Jobs, seats, vec![Arc::new(Runner::new(rules.jobs.clone())), reviewing]));
    }
    crews
}

fn mount(
    ground: &Ground,
    rules: &Rules,
    given: &Ingredients<'_>,
    health: &Health,
    pool: &Pool,
    tickets: Tickets,
    requests: &TaskTracker,
) -> Router {
    let Ground { db, clock, metrics, queue, streams, forge, keys, .. } = ground;
    let Rules { projects, access, checkouts, reviews, commands, sessions, deletion, jobs, sagas, .. } = rules;
    let config = given.config;
    let limits = Limits::new(clock.clone(), config.rate_limit, config.auth_failure_limit, config.streams_per_key);
    let door = Arc::new(Door {
        keys: keys.clone(),
        limits: limits.clone(),
        projects: projects.clone(),
        receipts: Receipts::new(db.clone(), queue.clone()),
        tickets: tickets.clone(),
        metrics: metrics.clone(),
        requests: requests.clone(),
    });
    let watching =
        Watching::new(db.clone(), streams.clone(), keys.clone(), limits, metrics.clone(), given.stop.clone());
    let min_expires_in = config.min_expires_in;
    let services = router::Services {
        keys: keys.clone(),
        projects: handlers::projects::Service { projects: projects.clone(), deletion: deletion.clone() },
        commands: commands.clone(),
        checkouts: handlers::checkouts::Service {
            checkouts: checkouts.clone(),
            sessions: sessions.clone(),
            min_expires_in,
        },
        sessions: handlers::sessions::Service {
            sessions: sessions.clone(),
            checkouts: checkouts.clone(),
            commands: commands.clone(),
            min_expires_in,
        },
        reviews: reviews.clone(),
        jobs: handlers::jobs::Service { jobs: jobs.clone(), watching: watching.clone() },
        sagas: handlers::sagas::Service { sagas: sagas.clone(), watching: watching.clone() },
        chats: Chats::new(ground.upstreams.clone()),
        pipelines: ground.pipelines.clone(),
        pool: pool.clone(),
        gc: Gc::new(db.clone(), clock.clone(), ground.place.clone()),
        streams: handlers::streams::Service {
            watching,
            commands: commands.clone(),
            sessions: sessions.clone(),
            outputs: Outputs::new(db.clone()),
        },
        tickets: handlers::tickets::Service {
            tickets,
            projects: projects.clone(),
            sessions: sessions.clone(),
            jobs: jobs.clone(),
            sagas: sagas.clone(),
            clock: clock.clone(),
        },
        git: handlers::git::Service { access: access.clone(), host: forge.embedded().cloned(), door: door.clone() },
        previews: previews(ground, config, &door, sessions, &given.stop),
        ops: handlers::ops::Service {
            health: health.clone(),
            document: Arc::new(OnceLock::new()),
            serve_metrics: config.metrics_listen.is_none(),
        },
        door,
    };
    router::build(services, config.trusted_proxies.clone(), &config.cors_origins)
}

/// What is shown of sessions, and what looks after it.
fn previews(
    ground: &Ground,
    config: &Config,
    door: &Arc<Door>,
    sessions: &Sessions,
    stop: &CancellationToken,
) -> handlers::previews::Service {
    let service = handlers::previews::Service {
        previews: ground.previews.clone(),
        sessions: sessions.clone(),
        door: door.clone(),
        addresses: Addresses::new(&ground.site.public, preview_domain(config, &ground.site)),
        pool: handlers::previews::Pool::new(ground.background.clone()),
        tunnels: ground.background.clone(),
        stop: stop.clone(),
    };
    ground.background.spawn(service.clone().keep());
    service
}

/// What there is to tell other processes.
type Take = Box<dyn Fn() -> Option<String> + Send>;

impl Built {
    /// Starts what works in the background.
    pub fn start(&self, background: &TaskTracker, stop: &CancellationToken) {
        let me = self.queue.process();
        let (ready, outbox) = (self.queue.ready.clone(), self.outbox.clone());
        let ears = vec![(notify::CHANNEL, notify::ear(self.hub.clone())), (queue::CHANNEL, ready.ear())];
        let tell = |channel, some, take| news::tell(self.db.clone(), channel, me, some, take, stop.clone());
        let events: Take = Box::new(move || outbox.take());
        let tasks: Take = Box::new(move || ready.news());
        background.spawn(tell(notify::CHANNEL, self.outbox.some.clone(), events));
        background.spawn(tell(queue::CHANNEL, self.queue.ready.some_to_tell.clone(), tasks));
        background.spawn(news::hear(self.db.clone(), me, ears, stop.clone()));
        background.spawn(notify::look(self.db.clone(), self.hub.clone(), stop.clone()));
        background.spawn(queue::keep(self.queue.clone(), stop.clone()));
        for (lane, room, performers) in &self.crews {
            let crew = Crew::new(self.queue.clone(), *lane, room.clone(), performers.clone());
            background.spawn(crew.run(stop.clone()));
        }
        background.spawn(self.discovery.clone().keep(stop.clone()));
        workers::start(self.chores.clone(), &self.clock, &self.metrics, background, stop);
    }
}

/// The same secret in all processes on a database.
async fn ticket_secret(db: &Db) -> Result<[u8; 32], Why> {
    let fresh: [u8; 32] = rand::random();
    let kept = async { store::settings::get_or_insert(&mut db.conn().await?, "ticket_secret", &fresh).await };
    let kept = kept.await.map_err(|error| Why::Failed(format!("the database could not be used: {error}")))?;
    kept.try_into()
        .map_err(|_| Why::Failed("the setting ticket_secret in the database is damaged: delete that row".into()))
}

/// Ports of this process, which no session may have.
fn own_ports(config: &Config, address: SocketAddr) -> Vec<u16> {
    std::iter::once(address.port()).chain(config.metrics_listen.map(|at| at.port())).collect()
}

/// How many requests to previews may be under way: each takes up to two descriptors, and as many
/// stay for all else.
fn places() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(descriptors / 4).unwrap_or(usize::MAX).clamp(64, 4096)
}

fn site(config: &Config, address: SocketAddr, forge: &Forge) -> Site {
    let here = base_url(address);
    let public = config.public_url.clone().unwrap_or_else(|| here.clone());
    // Pods come from outside, as clients do.
    let local = if config.runtime == RuntimeChoice::Local { here } else { public.clone() };
    let git = |own: &String| forge.origin().map_or_else(|| own.clone(), str::to_owned);
    Site { clone: git(&public), local: git(&local), public }
}

/// `localhost` where clients are on this machine: browsers resolve names below it by themselves.
fn preview_domain(config: &Config, site: &Site) -> Option<String> {
    config.preview_domain.clone().or_else(|| is_on_loopback(&site.public).then(|| "localhost".to_owned()))
}

fn is_on_loopback(url: &str) -> bool {
    use url::{Host, Url};
    match Url::parse(url).ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_on_loopback() {
        for url in [
            "http://127.0.0.1:8080",
            "http://127.1.2.3",
            "http://LOCALHOST:1/rdev",
            "https://u@localhost",
            "http://rdev.localhost.",
            "http://[::1]:8080",
            "http://[::ffff:127.0.0.1]",
        ] {
            assert!(is_on_loopback(url), "{url}");
        }
        for url in [
            "http://127.0.0.1.nip.io:8080",
            "https://localhost.example.com",
            "http://127.example.com",
            "http://localhost@example.com",
            "http://notlocalhost",
            "http://192.0.2.1",
            "http://[::2]",
            "",
        ] {
            assert!(!is_on_loopback(url), "{url}");
        }
    }
}

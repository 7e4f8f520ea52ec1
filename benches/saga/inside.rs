//! What of an rdev process makes sagas and carries them through, in this process: the peer is a
//! library, so neither has HTTP in between. Pools, crew, chores and news are those of a server.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    str::FromStr as _,
    sync::Arc,
    time::{Duration, Instant},
};

use rdev::{
    app::{self, Attached},
    config::{Config, Settings},
    database::news,
    domain::{
        clock::Clock,
        key::Key,
        saga::spec::StepSpec,
        scopes::{Scope, ScopeSet},
    },
    forge::Forge,
    metrics::Metrics,
    queue::{self, Crew, Lane, Lease, Queue},
    runtime::{LocalOptions, local},
    services::{
        keys::Keys,
        projects::{self, PodDefaults, Projects, Site},
        receipts::Answer,
        sagas::{self, Driver, NewSaga, Sagas},
        workspaces::Workspaces,
    },
    streams::{
        Hub, Streams, Writer,
        notify::{self, Outbox},
        record,
    },
    workers::{self, SagaTimers},
};
use sqlx::{Connection as _, PgConnection, query_scalar};
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{super::support::server::DataDir, actions, rows};

/// A saga of which no bell tells is looked at this often.
const LOOK: Duration = Duration::from_millis(100);

pub struct Inside {
    sagas: Sagas,
    hub: Hub,
    caller: Key,
    queue: Queue,
    attached: Attached,
    forge: Forge,
    stop: CancellationToken,
    background: JoinSet<()>,
    chores: TaskTracker,
    url: String,
    _data: DataDir,
}

/// What was seen while sagas were carried through.
#[derive(Clone, Copy)]
pub struct Seen {
    pub sagas: usize,
    pub seconds: f64,
    /// Bytes of the write-ahead log in all.
    pub wal: f64,
}

/// The two halves of a start: what everything stands on, and what is to run in the background.
struct Ground {
    config: Config,
    clock: Clock,
    metrics: Metrics,
    queue: Queue,
    outbox: Outbox,
    hub: Hub,
    streams: Streams,
    forge: Forge,
    workspaces: Workspaces,
}

impl Inside {
    /// On a database that nobody has used.
    pub async fn start(url: &str) -> Arc<Self> {
        let data = DataDir::new();
        let config = config(url, &data);
        let data_dir = app::open_data_dir(&config).expect("a data directory");
        let exe = PathBuf::from(env!("CARGO_BIN_EXE_rdev"));
        let attached = app::attach(&config, &data_dir, &exe, || ()).await.expect("a database");
        let (lease, stop, mut background) = (Lease::new(1), CancellationToken::new(), JoinSet::new());
        lease.register(&attached.db).await.expect("a process");
        let (kept, core, kept_stop) = (lease.clone(), attached.core.clone(), stop.clone());
        background.spawn(async move { kept.keep(core, kept_stop).await });
        let (clock, metrics, outbox) = (Clock::System, Metrics::new(), Outbox::default());
        let (queue, ending) = Queue::new(attached.core.clone(), lease, metrics.clone());
        let hub = Hub::new(outbox.clone());
        let (writer, writing) = Writer::new(attached.db.clone(), hub.clone(), metrics.clone());
        background.spawn(ending);
        background.spawn(writing);
        let options = LocalOptions {
            data_dir: data_dir.clone(),
            exe: exe.clone(),
            sandbox: config.sandbox,
            path: config.path.clone(),
            home: config.home.clone(),
            command_env: Vec::new(),
            kill_grace: config.kill_grace,
            output_limit: config.output_limit,
        };
        let streams = Streams::new(attached.db.clone(), hub.clone(), writer);
        let forge = Forge::open(&config.git_host, data_dir.git(), exe, clock.clone()).await.expect("a git host");
        let place = std::sync::Arc::new(local::Local::open(options).expect("a runtime"));
        let workspaces = Workspaces::new(place, forge.folder().to_owned());
        let ground = Ground { config, clock, metrics, queue, outbox, hub, streams, forge, workspaces };
        Arc::new(Self::at_work(ground, attached, background, stop, url, data))
    }

    fn at_work(
        ground: Ground,
        attached: Attached,
        mut background: JoinSet<()>,
        stop: CancellationToken,
        url: &str,
        data: DataDir,
    ) -> Self {
        let (sagas, writing) = sagas(&ground, &attached, &stop);
        background.spawn(writing);
        let driver = Driver::new(sagas.clone());
        let crew = Crew::new(ground.queue.clone(), Lane::Sagas, driver.room(), vec![Arc::new(driver)]);
        background.spawn(crew.run(stop.clone()));
        background.spawn(queue::keep(ground.queue.clone(), stop.clone()));
        let (db, me, ready, outbox) = (&attached.db, ground.queue.process(), &ground.queue.ready, &ground.outbox);
        let ears = vec![(notify::CHANNEL, notify::ear(ground.hub.clone())), (queue::CHANNEL, ready.ear())];
        background.spawn(news::hear(db.clone(), me, ears, stop.clone()));
        background.spawn(notify::look(db.clone(), ground.hub.clone(), stop.clone()));
        let (some, outbox) = (outbox.some.clone(), outbox.clone());
        background.spawn(news::tell(db.clone(), notify::CHANNEL, me, some, move || outbox.take(), stop.clone()));
        let (some, ready) = (ready.some_to_tell.clone(), ready.clone());
        background.spawn(news::tell(db.clone(), queue::CHANNEL, me, some, move || ready.news(), stop.clone()));
        let chores = TaskTracker::new();
        workers::start(vec![Arc::new(SagaTimers(sagas.clone()))], &ground.clock, &ground.metrics, &chores, &stop);
        let Ground { queue, hub, forge, .. } = ground;
        Self {
            sagas,
            hub,
            caller: admin(),
            queue,
            attached,
            forge,
            stop,
            background,
            chores,
            url: url.to_owned(),
            _data: data,
        }
    }

    /// Clients that have a saga carried through, one after another, until `turns` were begun or that
    /// much time is over.
    pub async fn carry(self: &Arc<Self>, steps: &[StepSpec], clients: usize, turns: usize, time: Duration) -> Seen {
        let mut conn = PgConnection::connect(&self.url).await.expect("a connection");
        let before = rows::wal(&mut conn).await;
        let begun = Instant::now();
        let mut all = JoinSet::new();
        for client in 0..clients {
            let (this, steps) = (self.clone(), steps.to_vec());
            let turns = turns / clients + usize::from(client < turns % clients);
            all.spawn(async move {
                let mut done = 0;
                while done < turns && begun.elapsed() < time {
                    this.through(&steps).await;
                    done += 1;
                }
                done
            });
        }
        let sagas = all.join_all().await.iter().sum();
        let seconds = begun.elapsed().as_secs_f64();
        Seen { sagas, seconds, wal: rows::wal(&mut conn).await - before }
    }

    /// Makes a saga and waits for the last event of its log, as whoever listens to it hears it.
    async fn through(&self, steps: &[StepSpec]) {
        let new = NewSaga { name: "measured".into(), steps: Some(steps.to_vec()), ..NewSaga::default() };
        let made = self.sagas.create(&self.caller, new, Answer::none()).await.expect("a saga");
        let live = self.hub.join(made.row.stream);
        let mut bell = live.listen();
        loop {
            let n = *bell.borrow_and_update();
            if live.chunk_with(n).is_some_and(|chunk| is_last(&chunk.data)) {
                return;
            }
            let rung = tokio::time::timeout(LOOK, bell.changed()).await;
            // It may have been over before this listened.
            if rung.is_err() && self.sagas.get(&self.caller, made.row.id).await.expect("it is there").status.is_end() {
                return;
            }
        }
    }

    /// After having seen that every saga was completed.
    pub async fn stop(self: Arc<Self>) {
        let mut this = Arc::into_inner(self).expect("nobody else has it");
        let mut conn = PgConnection::connect(&this.url).await.expect("a connection");
        let sql = "select count(*) from saga where status <> 'completed'";
        let left: i64 = query_scalar(sql).fetch_one(&mut conn).await.expect("a number");
        assert_eq!(left, 0, "every saga is completed");
        this.queue.attempts.close();
        this.queue.attempts.wait().await;
        this.stop.cancel();
        this.chores.close();
        this.chores.wait().await;
        this.background.shutdown().await;
        this.forge.close().await;
        this.attached.db.close().await;
        this.attached.core.close().await;
    }
}

fn is_last(data: &[u8]) -> bool {
    record::iter(data).any(|record| matches!(record, record::Record::Json { last: true, .. }))
}

fn sagas(
    ground: &Ground,
    attached: &Attached,
    stop: &CancellationToken,
) -> (Sagas, impl Future<Output = ()> + Send + use<>) {
    let Ground { clock, metrics, queue, streams, forge, workspaces, .. } = ground;
    let here = ground.config.listen.clone();
    let projects = Projects::new(projects::Parts {
        db: attached.db.clone(),
        clock: clock.clone(),
        queue: queue.clone(),
        streams: streams.clone(),
        forge: forge.clone(),
        workspaces: workspaces.clone(),
        site: Site { public: here.clone(), clone: here.clone(), local: here },
        import_root: None,
        pods: PodDefaults::default(),
    });
    Sagas::new(sagas::Parts {
        db: attached.db.clone(),
        core: attached.core.clone(),
        clock: clock.clone(),
        queue: queue.clone(),
        streams: streams.clone(),
        metrics: metrics.clone(),
        keys: Keys::new(attached.db.clone(), clock.clone(), queue.clone(), None),
        projects,
        actions: actions::all(),
        stop: stop.clone(),
    })
}

fn config(url: &str, data: &DataDir) -> Config {
    let own = [("DATABASE_URL", url.to_owned()), ("RDEV_DATA_DIR", data.path().join("data").display().to_string())];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let settings = Settings::overlay(&BTreeMap::new(), &own, None).expect("settings");
    Config::parse(&settings).expect("settings")
}

fn admin() -> Key {
    Key {
        id: Uuid::nil(),
        name: "measured".into(),
        prefix: String::new(),
        scopes: ScopeSet::from_iter([Scope::from_str("admin").expect("a scope")]),
        project_ids: None,
        allowed_cidrs: None,
        rate_limit: None,
        created_at: Clock::System.now(),
        expires_at: None,
        previous_expires_at: None,
        last_used_at: None,
        revoked_at: None,
    }
}

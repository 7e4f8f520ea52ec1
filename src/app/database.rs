//! Finding the database: the one that `DATABASE_URL` names, waited for until it is there,
//! or an embedded one. Then its schema: brought up to date, or refused where it is newer.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{
    Connection as _,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgConnection},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{Config, EmbeddedOrUrl},
    data_dir::DataDir,
    database::{ConnectInfo, Db, Embedded, MIGRATIONS},
};

/// Connections of one process for requests.
const POOL: u32 = 16;
/// And for the durable core, which must not wait for requests.
const CORE: u32 = 6;
/// As the client's own limit: what it has given up is not to be done later.
const STATEMENT_LIMIT: &str = "10s";
/// A process that stands still in the middle of a transaction must not hold its rows for ever.
const IDLE_LIMIT: &str = "10s";
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How often a crashed embedded server is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// What prevents a start: exit code 2 for a setting, 1 for anything else.
#[derive(Debug)]
pub enum Why {
    Setting(String),
    Failed(String),
}

/// A database that answers, and the server behind it where that is ours.
pub struct Attached {
    pub db: Db,
    /// The same database, for the durable core alone. Its statements are planned each time: a plan that was
    /// kept while a queue was empty reads the whole of it when it is full.
    pub core: Db,
    embedded: Option<Arc<Mutex<Option<Embedded>>>>,
}

/// Connects, waits, migrates. `waiting` is called when the database is not there yet.
///
/// # Errors
/// One clear line.
pub async fn attach(config: &Config, data_dir: &DataDir, exe: &Path, waiting: impl Fn()) -> Result<Attached, Why> {
    let attached = match &config.database {
        EmbeddedOrUrl::Url(url) => {
            let options =
                PgConnectOptions::from_str(url).map_err(|error| Why::Setting(format!("DATABASE_URL: {error}")))?;
            attached(&options, None)
        }
        EmbeddedOrUrl::Embedded { bin_dir } => embedded(data_dir.postgres(), bin_dir.clone(), exe.to_owned()).await?,
    };
    wait_for(&attached.db, waiting).await;
    migrate(&attached.db, config.auto_migrate).await?;
    Ok(attached)
}

async fn embedded(dir: PathBuf, bin_dir: Option<PathBuf>, exe: PathBuf) -> Result<Attached, Why> {
    let started = tokio::task::spawn_blocking(move || Embedded::start(&dir, bin_dir.as_deref(), &exe)).await;
    let server = started.map_err(|error| Why::Failed(error.to_string()))?.map_err(Why::Failed)?;
    let options = options_of(server.info());
    Ok(attached(&options, Some(Arc::new(Mutex::new(Some(server))))))
}

fn attached(options: &PgConnectOptions, embedded: Option<Arc<Mutex<Option<Embedded>>>>) -> Attached {
    let limits = [("statement_timeout", STATEMENT_LIMIT), ("idle_in_transaction_session_timeout", IDLE_LIMIT)];
    let options = named(options.clone()).options(limits);
    let core = options.clone().options([("plan_cache_mode", "force_custom_plan")]);
    Attached { db: Db::new(options, POOL), core: Db::new(core, CORE), embedded }
}

/// How to connect to an embedded server.
pub fn options_of(info: &ConnectInfo) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass()
        .socket(&info.socket_dir)
        .port(info.port)
        .username(&info.user)
        .password(&info.password)
        .database(&info.database);
    named(options)
}

fn named(options: PgConnectOptions) -> PgConnectOptions {
    options.application_name("rdev")
}

async fn wait_for(db: &Db, waiting: impl Fn()) {
    let options = db.pool().connect_options();
    let mut pause = Duration::from_millis(100);
    loop {
        // Not by the pool, which would hide why under its own patience.
        let asked = tokio::time::timeout(WAIT_MAX, PgConnection::connect_with(&options)).await;
        let asked = asked.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut));
        match asked {
            Ok(conn) => {
                let _closed = conn.close().await;
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the database is not there yet, trying again in {pause:?}");
                waiting();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(WAIT_MAX);
            }
        }
    }
}

/// Brings the schema up to date under a lock, or checks that it is.
///
/// # Errors
/// One clear line: a newer schema, or a migration that failed.
pub async fn migrate(db: &Db, run: bool) -> Result<(), Why> {
    if run {
        // A migration may take its time.
        let options = (*db.pool().connect_options()).clone().options([("statement_timeout", "0")]);
        let mut conn = PgConnection::connect_with(&options).await.map_err(|error| explain(error.into()))?;
        return MIGRATIONS.run(&mut conn).await.map_err(explain);
    }
    let known = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0);
    let applied = async {
        let sql = "select coalesce(max(version), 0) from _sqlx_migrations where success";
        db.conn().await?.scalar::<i64>(sqlx::query_scalar(sql)).await
    };
    match applied.await.unwrap_or(0) {
        version if version == known => Ok(()),
        version if version > known => Err(newer(version)),
        version => Err(Why::Failed(format!(
            "the database is at migration {version}, this program needs {known}: run `rdev migrate`"
        ))),
    }
}

fn explain(error: MigrateError) -> Why {
    match error {
        MigrateError::VersionMissing(version) => newer(version),
        error => Why::Failed(format!("the database could not be migrated: {error}")),
    }
}

fn newer(version: i64) -> Why {
    Why::Failed(format!(
        "the database is newer than this program (migration {version} is unknown here): start a newer rdev"
    ))
}

impl Attached {
    /// Starts an embedded server again that crashed.
    pub fn keep(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        let Some(server) = self.embedded.clone() else { return };
        let stop = stop.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(LOOK) => {}
                }
                let server = server.clone();
                let looked = tokio::task::spawn_blocking(move || match lock(&server).as_ref() {
                    Some(server) if server.exited() => server.restart_if_dead(),
                    _ => Ok(false),
                });
                match looked.await {
                    Ok(Ok(true)) => tracing::warn!("the embedded PostgreSQL had crashed and was started again"),
                    Ok(Err(error)) => {
                        tracing::error!(error, "the embedded PostgreSQL crashed and did not come back yet");
                    }
                    _ => {}
                }
            }
        });
    }

    /// Stops an embedded server.
    pub async fn stop(self) {
        let Some(server) = self.embedded else { return };
        let stopped = tokio::task::spawn_blocking(move || {
            if let Some(server) = lock(&server).take() {
                server.stop();
            }
        });
        let _panicked = stopped.await;
    }
}

fn lock(server: &Mutex<Option<Embedded>>) -> std::sync::MutexGuard<'_, Option<Embedded>> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

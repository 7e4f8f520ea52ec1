//! The pool, and the one way to use a connection of it.
//!
//! Every statement goes through [`Conn`], which knows whether one is in flight:
//! a connection that is dropped in the middle of a statement (a client that went
//! away, a deadline, a half-open socket) is closed and never returns to the pool.
//! That is the remedy for two traps of sqlx 0.9: a cancelled `begin()` returns a
//! connection that is inside a transaction, and a half-open connection is pinged
//! for ever. Each statement has a deadline of its own.

mod embedded;
pub mod news;
mod postgres_child;

use std::{fmt, time::Duration};

use sqlx::{
    FromRow, Postgres,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow},
    query::{Query, QueryAs, QueryScalar},
};

use crate::error::Error;

pub use embedded::{ConnectInfo, Embedded};
pub use postgres_child::child_main;

/// Longest that one statement may take before its connection is given up.
const STATEMENT_LIMIT: Duration = Duration::from_secs(10);
/// Longest that a caller waits for a free connection.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(5);
/// A connection idle for longer is asked whether it still lives before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// All migrations, in the binary.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// A pool of connections. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    pool: PgPool,
    statement_limit: Duration,
}

impl Db {
    /// Connects lazily: the first statement opens the first connection.
    pub fn new(options: PgConnectOptions, size: u32) -> Self {
        Self::with_limits(options, size, STATEMENT_LIMIT, ACQUIRE_LIMIT)
    }

    /// As [`Db::new`] with other limits; for tests of the limits themselves.
    pub fn with_limits(options: PgConnectOptions, size: u32, statement: Duration, acquire: Duration) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(acquire)
            .test_before_acquire(false)
            .before_acquire(|conn, meta| {
                Box::pin(async move {
                    if meta.idle_for < TRUSTED_IDLE {
                        return Ok(true);
                    }
                    let ping = sqlx::Connection::ping(conn);
                    Ok(matches!(tokio::time::timeout(TRUSTED_IDLE, ping).await, Ok(Ok(()))))
                })
            })
            .connect_lazy_with(options);
        Self { pool, statement_limit: statement }
    }

    pub async fn conn(&self) -> Result<Conn, DbError> {
        // Boxed: it is wide (it may have to connect), and would be part of every future that asks.
        let inner = Box::pin(self.pool.acquire()).await?;
        Ok(Conn { inner: Some(inner), in_flight: false, open: false, limit: self.statement_limit })
    }

    /// A transaction: rolled back unless [`Conn::commit`] is called.
    pub async fn begin(&self) -> Result<Conn, DbError> {
        let mut conn = self.conn().await?;
        conn.execute(sqlx::query("begin")).await?;
        conn.open = true;
        Ok(conn)
    }

    /// Connections open and of these idle, for metrics.
    pub fn usage(&self) -> (u32, usize) {
        (self.pool.size(), self.pool.num_idle())
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// For `PgListener`, which keeps a connection to itself, and for the migrator.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

/// One connection, in a transaction or not. See the module.
pub struct Conn {
    inner: Option<PoolConnection<Postgres>>,
    in_flight: bool,
    open: bool,
    limit: Duration,
}

type Q<'q> = Query<'q, Postgres, PgArguments>;
type Qa<'q, T> = QueryAs<'q, Postgres, T, PgArguments>;
type Qs<'q, T> = QueryScalar<'q, Postgres, T, PgArguments>;

/// What a row can be read into.
pub trait Row: Send + Unpin + for<'r> FromRow<'r, PgRow> {}
impl<T: Send + Unpin + for<'r> FromRow<'r, PgRow>> Row for T {}

macro_rules! timed {
    ($self:ident, $query:expr, $method:ident) => {{
        $self.in_flight = true;
        let limit = $self.limit;
        let outcome = tokio::time::timeout(limit, $query.$method($self.raw())).await;
        let Ok(result) = outcome else { return Err(DbError::TimedOut) };
        let broken = result.as_ref().is_err_and(connection_is_broken);
        $self.in_flight = broken;
        result.map_err(DbError::from)
    }};
}

impl Conn {
    /// Rows affected.
    pub async fn execute(&mut self, query: Q<'_>) -> Result<u64, DbError> {
        timed!(self, query, execute).map(|done| done.rows_affected())
    }

    pub async fn one<T: Row>(&mut self, query: Qa<'_, T>) -> Result<T, DbError> {
        timed!(self, query, fetch_one)
    }

    pub async fn optional<T: Row>(&mut self, query: Qa<'_, T>) -> Result<Option<T>, DbError> {
        timed!(self, query, fetch_optional)
    }

    pub async fn all<T: Row>(&mut self, query: Qa<'_, T>) -> Result<Vec<T>, DbError> {
        timed!(self, query, fetch_all)
    }

    pub async fn scalar<T>(&mut self, query: Qs<'_, T>) -> Result<T, DbError>
    where
        T: Send + Unpin,
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        timed!(self, query, fetch_one)
    }

    pub async fn scalar_optional<T>(&mut self, query: Qs<'_, T>) -> Result<Option<T>, DbError>
    where
        T: Send + Unpin,
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        timed!(self, query, fetch_optional)
    }

    pub async fn scalars<T>(&mut self, query: Qs<'_, T>) -> Result<Vec<T>, DbError>
    where
        T: Send + Unpin,
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        timed!(self, query, fetch_all)
    }

    /// Ends the transaction. What was written is durable when this returns.
    pub async fn commit(mut self) -> Result<(), DbError> {
        self.execute(sqlx::query("commit")).await?;
        self.open = false;
        Ok(())
    }

    fn raw(&mut self) -> &mut PgConnection {
        self.inner.as_mut().expect("a connection is there until drop")
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        let runtime = tokio::runtime::Handle::try_current().ok().filter(|_| !self.in_flight);
        let Some(runtime) = runtime else { return drop(inner.detach()) };
        let (open, limit) = (self.open, self.limit);
        #[expect(clippy::disallowed_methods, reason = "giving back must not wait for whoever dropped it")]
        runtime.spawn(async move {
            let rolled_back = !open || {
                let rollback = sqlx::query("rollback").execute(&mut *inner);
                matches!(tokio::time::timeout(limit, rollback).await, Ok(Ok(_)))
            };
            if rolled_back {
                // The pool asks the connection whether it lives, and would wait for the answer for ever.
                let _place_is_free_either_way = tokio::time::timeout(limit, inner.return_to_pool()).await;
            } else {
                drop(inner.detach());
            }
        });
    }
}

/// Why a statement did not do its work.
#[derive(Debug)]
pub enum DbError {
    /// No answer within the deadline of a statement.
    TimedOut,
    Sql(sqlx::Error),
}

impl DbError {
    /// Name of the constraint that refused the row.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Sql(sqlx::Error::Database(refusal)) => refusal.constraint(),
            _ => None,
        }
    }

    /// True where trying again later may help: the database is away, starting or stopping.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::TimedOut => true,
            Self::Sql(error) => connection_is_broken(error) || starting_or_stopping(error),
        }
    }
}

fn connection_is_broken(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    matches!(error, E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed)
        || starting_or_stopping(error)
}

fn starting_or_stopping(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(refusal) = error else { return false };
    refusal.code().is_some_and(|code| {
        code.starts_with("08") || code.starts_with("57P") || matches!(&*code, "53300" | "25006" | "25P03" | "3D000")
    })
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("the database did not answer in time"),
            Self::Sql(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for DbError {}

impl From<DbError> for Error {
    fn from(error: DbError) -> Self {
        if error.is_outage() { Self::unavailable("the database", error) } else { Self::internal(error) }
    }
}

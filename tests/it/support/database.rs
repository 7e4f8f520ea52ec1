//! A database for one test, on the cluster that the environment names.

use std::str::FromStr as _;

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgRow},
};

/// A database of its own. [`TestDb::remove`] takes it away.
#[derive(Clone, Debug)]
pub struct TestDb {
    pub name: String,
    pub url: String,
    cluster: String,
}

impl TestDb {
    pub async fn create() -> Self {
        let cluster = cluster();
        let name = format!("rdev_test_{}", uuid::Uuid::now_v7().simple());
        let mut conn = open(&cluster).await;
        // template0 is never connected to, so that tests that begin together do not meet in it
        execute(&mut conn, &format!("create database {name} template template0")).await;
        let url = with_name(&cluster, &name);
        Self { name, url, cluster }
    }

    /// A connection of the test's own, beside the app's.
    pub async fn connect(&self) -> PgConnection {
        open(&self.url).await
    }

    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.url).expect("the URL was made from one that works")
    }

    /// One number out of the database.
    pub async fn count(&self, sql: &str) -> i64 {
        let mut conn = self.connect().await;
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut conn).await.expect(sql)
    }

    pub async fn rows(&self, sql: &str) -> Vec<PgRow> {
        let mut conn = self.connect().await;
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).fetch_all(&mut conn).await.expect(sql)
    }

    pub async fn run(&self, sql: &str) {
        execute(&mut self.connect().await, sql).await;
    }

    pub async fn remove(&self) {
        let mut conn = open(&self.cluster).await;
        for suffix in ["", "_away"] {
            execute(&mut conn, &format!("drop database if exists {}{suffix} with (force)", self.name)).await;
        }
    }

    /// The database is not there any more under its name, and those who used it are thrown out.
    pub async fn take_away(&self) {
        let mut conn = open(&self.cluster).await;
        let name = &self.name;
        // Nobody comes back between the kick and the renaming.
        execute(&mut conn, &format!("alter database {name} with allow_connections false")).await;
        let kick = format!("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{name}'");
        execute(&mut conn, &kick).await;
        execute(&mut conn, &format!("alter database {name} rename to {name}_away")).await;
        execute(&mut conn, &format!("alter database {name}_away with allow_connections true")).await;
    }

    pub async fn bring_back(&self) {
        let mut conn = open(&self.cluster).await;
        execute(&mut conn, &format!("alter database {0}_away rename to {0}", self.name)).await;
    }
}

async fn open(url: &str) -> PgConnection {
    let options = PgConnectOptions::from_str(url).expect("DATABASE_URL is a postgres URL").disable_statement_logging();
    PgConnection::connect_with(&options).await.expect("the test cluster answers")
}

async fn execute(conn: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(conn).await.expect(sql);
}

fn cluster() -> String {
    #[expect(clippy::disallowed_methods, reason = "a test learns its cluster from the environment")]
    let named = ["RDEV_TEST_DATABASE_URL", "DATABASE_URL"].iter().find_map(|name| std::env::var(name).ok());
    named.expect("DATABASE_URL must name a PostgreSQL superuser's database; `./dev test` starts one")
}

/// The same URL with another database in it.
fn with_name(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, String::new()), |(base, query)| (base, format!("?{query}")));
    let (scheme, rest) = base.split_once("://").expect("a URL has a scheme");
    let authority = rest.split('/').next().unwrap_or_default();
    format!("{scheme}://{authority}/{name}{query}")
}

//! Sagas: how many are carried through, what a step of a long one costs, what those cost that
//! sleep. Beside rdev stands DBOS Transact where there is npm, a library that keeps workflows in
//! PostgreSQL, in its own process as somebody would tune it; a long saga stands beside short ones,
//! and a database full of sleeping ones beside an empty one. All on the same PostgreSQL, each with
//! a database of its own.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench is not the product, and its numbers are small"
)]

mod support;
mod saga {
    pub mod actions;
    pub mod asleep;
    pub mod http;
    pub mod inside;
    pub mod long;
    #[path = "../queue/rows.rs"]
    #[allow(dead_code, reason = "the part that is of any table")]
    pub mod rows;
    #[path = "../queue/table.rs"]
    #[allow(dead_code, reason = "each bench uses its part")]
    pub mod table;
    pub mod three;
}

use saga::{asleep, long, table, three};
use sqlx::query;
use support::{Role, block_on, peer::Peers, postgres::Postgres, role, wanted};

const ROUNDS: usize = 3;

fn main() {
    match role() {
        Role::Floor(arguments) => panic!("no such floor: {arguments:?}"),
        Role::Measure => block_on(measure()),
        Role::Nothing => {}
    }
}

async fn measure() {
    let bench = Bench { peers: Peers::install().await, postgres: Postgres::start().await };
    println!("{ROUNDS} rounds, medians; client, server and database share the cores; the peer is DBOS Transact");
    println!("a commit of one row takes {:.3} ms", bench.postgres.commit_time().await);
    table::head();
    if wanted("three") {
        three::measure(&bench).await;
    }
    if wanted("long") {
        long::measure(&bench).await;
    }
    if wanted("asleep") {
        asleep::measure(&bench).await;
    }
}

/// What all measurements use.
struct Bench {
    postgres: Postgres,
    /// Or why there are none.
    peers: Result<Peers, &'static str>,
}

impl Bench {
    /// The URL of a database that nobody has used.
    async fn fresh(&self) -> String {
        self.fresh_named("measured").await
    }

    /// As [`Bench::fresh`], kept until the same name is asked for again.
    async fn fresh_named(&self, name: &str) -> String {
        let mut conn = self.postgres.connect().await;
        for statement in [
            format!("drop database if exists {name} with (force)"),
            format!("create database {name}"),
            "checkpoint".to_owned(),
        ] {
            query(sqlx::AssertSqlSafe(statement)).execute(&mut conn).await.expect("an administrator");
        }
        self.postgres.url(name)
    }
}

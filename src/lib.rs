//! # rdev
//!
//! A REST control plane between people, CI pipelines and agents on one side and their
//! project pods on the other. One binary.
//!
//! ## The house, from top to bottom
//!
//! ```text
//! main -> cli -> app -> router -> handlers --+
//!                  \-> workers -------------+-> services -> queue, streams, store, runtime, forge, ci -> domain, error
//! ```
//!
//! * `cli` is the command line, `app` wires everything once, `router` mounts the handlers.
//! * `handlers` are HTTP in, HTTP out; `workers` have the clock as their client. Both see services alone.
//!   `workers/actions` are what steps of sagas can do, a file each.
//! * `services` hold the rules and open the transactions.
//! * `queue` is the durable core: processes, leases, fences, tasks. It does not know what tasks mean.
//! * `streams` are numbered logs and the hub that shows them.
//! * `store` is SQL and nothing else; `database` the pool, external or embedded.
//! * `runtime` is where commands run (this machine, or pods of a cluster), `forge` the git host, `ci` the CI server,
//!   `models` the upstreams that models run on.
//! * `egress` is the one HTTP client that may call an address a user gave; `outward` what all calls to
//!   other servers share: the client's making, and a breaker each.
//! * `domain` is plain types and pure decisions; `error` one error in the domain's words.
//!
//! ## Invariants, worded as absences
//!
//! * A handler or worker never sees a pool, SQL, the runtime or the hub.
//! * Services never mention a status code or a header; `error` does not know HTTP.
//! * `store` functions never begin or commit. No transaction is open while a pod or the git host is waited for.
//! * `domain` never awaits and never asks the time.
//! * One place reads the environment (`config`), one picks the runtime (`runtime::open`).
//! * Background work is a promise in a row, not a spawned future.
//!
//! `tests/layers.rs` reads the sources and fails on an arrow that points up.

#![forbid(unsafe_code)]

pub mod app;
pub mod ci;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod database;
pub mod domain;
pub mod egress;
pub mod error;
pub mod forge;
pub mod handlers;
pub mod metrics;
pub mod models;
pub mod outward;
pub mod queue;
pub mod router;
pub mod runtime;
pub mod services;
pub mod store;
pub mod streams;
pub mod telemetry;
pub mod workers;

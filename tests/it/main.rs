//! Stories about the whole program, by noun. Each runs on real parts: PostgreSQL, git,
//! processes; see `support/`.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::format_collect,
    clippy::items_after_statements,
    clippy::redundant_closure_for_method_calls,
    reason = "small numbers and short texts; nobody waits for what a test spawns"
)]

mod support;

mod chaos;
mod chat;
mod checkouts;
mod clients;
mod commands;
mod crash;
mod git;
mod gitea;
mod http;
mod idempotency;
mod jobs;
mod keys;
mod kube;
mod limits;
mod ops;
mod pipelines;
mod pitfalls;
mod previews;
mod projects;
mod reviews;
mod saga_chaos;
mod saga_simulator;
mod sagas;
mod sessions;
mod simulator;
mod streams;
mod tickets;
mod webhooks;
mod workers;

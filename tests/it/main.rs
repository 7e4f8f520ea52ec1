//! Stories about the whole program, by noun. Each runs on real parts: PostgreSQL, git,
//! processes; see `support/`.

mod support;

mod checkouts;
mod commands;
mod git;
mod http;
mod idempotency;
mod keys;
mod limits;
mod projects;
mod sessions;
mod streams;
mod tickets;
mod ops;
mod pitfalls;
mod crash;

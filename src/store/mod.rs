//! SQL and nothing else: free functions, one statement each, by the noun they are about.
//! They never begin or commit; a service does, and passes the connection down.

pub mod checkouts;
pub mod commands;
pub mod deliveries;
pub mod discovered;
pub mod gc;
pub mod idempotency;
pub mod imports;
pub mod jobs;
pub mod keys;
pub mod processes;
pub mod projects;
pub mod reviews;
pub mod sagas;
pub mod sessions;
pub mod settings;
pub mod streams;
pub mod tasks;
pub mod tokens;

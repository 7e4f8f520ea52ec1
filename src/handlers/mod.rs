//! HTTP in, HTTP out: parse, call one service method, show the result. A handler never
//! sees a pool, SQL, the runtime or the hub; it sees services. Each module is a table of
//! its endpoints (path, scope, deadline, name), from which the router and the OpenAPI
//! document are both made.

pub mod chat;
pub mod checkouts;
pub mod commands;
pub mod context;
pub mod describe;
pub mod extract;
pub mod gc;
pub mod git;
pub mod guard;
pub mod jobs;
pub mod keys;
pub mod ops;
pub mod page;
pub mod pipelines;
pub mod pool;
pub mod previews;
pub mod projects;
pub mod reply;
pub mod reviews;
pub mod routes;
pub mod saga_definitions;
pub mod sagas;
pub mod sessions;
pub mod streams;
pub mod tickets;

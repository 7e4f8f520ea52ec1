//! The rules. Each service owns what it needs, opens the transactions and never mentions
//! a status code or a header. They call one another in one order only: sagas → sessions →
//! checkouts → reviews → commands → jobs → webhooks → workspaces → projects → keys.

pub mod callouts;
pub mod chats;
pub mod checkouts;
pub mod commands;
pub mod deletion;
pub mod deploys;
pub mod discovery;
pub mod following;
pub mod gc;
pub mod git_access;
pub mod health;
pub mod jobs;
pub mod keys;
pub mod limits;
pub mod output;
pub mod pipelines;
pub mod pool;
pub mod previews;
pub mod projects;
pub mod receipts;
pub mod reviews;
pub mod sagas;
pub mod session_end;
pub mod sessions;
pub mod tickets;
pub mod upkeep;
pub mod watching;
pub mod webhooks;
pub mod workspaces;

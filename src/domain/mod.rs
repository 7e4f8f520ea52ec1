//! Plain types and pure decisions. Nothing here awaits, asks the time, or knows SQL
//! statements or HTTP. Most of it parses at the door so that nothing below checks twice.

pub mod api_key;
pub mod artifact;
pub mod backoff;
pub mod branch;
pub mod breaker;
pub mod byte_range;
pub mod chat;
pub mod checkout;
pub mod clock;
pub mod command;
pub mod delivery;
pub mod discovered;
pub mod durations;
pub mod egress;
pub mod event_id;
pub mod gc;
pub mod git_args;
pub mod ids;
pub mod job;
pub mod key;
pub mod lines;
pub mod manifest;
pub mod pipeline;
pub mod project;
pub mod review;
pub mod saga;
pub mod scopes;
pub mod session;
pub mod signing;
pub mod sizes;
pub mod storage;
pub mod stream;
pub mod task;
pub mod words;
pub mod yaml;

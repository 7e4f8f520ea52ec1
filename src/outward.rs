//! What all calls to other servers share, whoever makes them: one way to build a client, one breaker
//! to stop calling those that keep failing, and one way to ask an API that speaks JSON.
//!
//! What is asked, and what an answer means, is not known here.

pub mod api;
pub mod circuit;
pub mod client;

pub use self::circuit::{Circuit, PutOff, Turn};

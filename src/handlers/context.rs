//! What every answer of a request needs to know, from the first layer to the last: the
//! request's id and which of the two wire families it belongs to.

use std::{net::IpAddr, sync::Arc};

/// Facts of the request under way.
#[derive(Clone, Debug)]
pub struct Context {
    pub request_id: Arc<str>,
    /// `/jobs/**` and `/api/**` have bare bodies.
    pub native: bool,
    /// The client's address, proxies believed only where that is configured.
    pub client: Option<IpAddr>,
}

tokio::task_local! {
    static CONTEXT: Context;
}

/// Runs `work` as part of the request.
pub async fn within<F: Future>(context: Context, work: F) -> F::Output {
    CONTEXT.scope(context, work).await
}

/// The request under way; outside of one, an unnamed one.
pub fn current() -> Context {
    CONTEXT.try_with(Clone::clone).unwrap_or_else(|_| Context { request_id: "-".into(), native: false, client: None })
}

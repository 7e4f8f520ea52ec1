//! The HTTP client of all who call others: no proxy and no redirects, so that a credential, and what
//! is asked, goes to the server that was named and nowhere else.

use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, redirect};

/// A connection that is not used for so long is closed: not much longer than the next change of the
/// same job takes, as any number of hosts may be called in this time.
const IDLE: Duration = Duration::from_secs(15);

/// Whose certificates are believed.
pub enum Trust {
    /// The system's. A machine that has none may well have servers without TLS.
    System,
    /// These alone.
    Only(Vec<Certificate>),
}

/// A client, with what `more` adds; false where it believes no certificate at all. A rustls provider
/// must be installed.
///
/// # Errors
/// A sentence for whoever starts the program.
pub fn build(
    connect: Duration,
    trust: Trust,
    more: impl Fn(ClientBuilder) -> ClientBuilder,
) -> Result<(Client, bool), String> {
    // Without one the builder would panic.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        return Err("no rustls provider is installed".to_owned());
    }
    let builder = || {
        let plain = Client::builder()
            .user_agent(concat!("rdev/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(connect)
            .pool_idle_timeout(IDLE);
        more(plain)
    };
    let roots = match trust {
        Trust::Only(roots) => roots,
        Trust::System => match builder().build() {
            Ok(client) => return Ok((client, true)),
            Err(_) => Vec::new(),
        },
    };
    let trusts = !roots.is_empty();
    let built = builder().tls_certs_only(roots).build();
    built.map(|client| (client, trusts)).map_err(|error| format!("no HTTP client: {error}"))
}

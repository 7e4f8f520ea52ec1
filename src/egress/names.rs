//! Names to addresses, for the door and for the connection alike. One refused address
//! refuses the name: which of its addresses a client picks is nobody's promise.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::guard::Guard;
use crate::domain::egress::Refused;

/// A look-up cannot be called off: names whose servers are silent must not take all of the
/// runtime's blocking threads.
const AT_ONCE: usize = 128;

/// Blocks.
pub type Lookup = Arc<dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

#[derive(Clone)]
pub struct Names {
    guard: Arc<Guard>,
    lookup: Lookup,
    at_once: Arc<Semaphore>,
}

#[derive(Debug)]
pub enum NameError {
    Refused(Refused),
    Unresolved,
}

impl Names {
    pub fn new(guard: Arc<Guard>, lookup: Lookup) -> Self {
        Self { guard, lookup, at_once: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// All of them, at least one, and each may be called.
    pub async fn addresses(&self, name: String) -> Result<Vec<SocketAddr>, NameError> {
        if is_localhost(&name)
            && let Some(kind) = self.guard.refusal(Ipv4Addr::LOCALHOST.into())
        {
            return Err(resolves_to(kind));
        }
        let permit = self.at_once.clone().acquire_owned().await.map_err(|_| NameError::Unresolved)?;
        let lookup = self.lookup.clone();
        let found = spawn_blocking(move || {
            let _held_to_the_end = permit;
            lookup(&name)
        });
        let Ok(Ok(addresses)) = found.await else { return Err(NameError::Unresolved) };
        if let Some(kind) = addresses.iter().find_map(|address| self.guard.refusal(address.ip())) {
            return Err(resolves_to(kind));
        }
        if addresses.is_empty() { Err(NameError::Unresolved) } else { Ok(addresses) }
    }
}

fn resolves_to(kind: &str) -> NameError {
    NameError::Refused(Refused::new(format!("the name resolves to {kind}")))
}

/// Loopback by RFC 6761, section 6.3, and to browsers, even where the system does not know it.
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

/// As the system has it: hosts file, DNS, and whatever else it is set up to ask.
pub fn system_lookup(name: &str) -> io::Result<Vec<SocketAddr>> {
    (name, 0).to_socket_addrs().map(Iterator::collect)
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let addresses = names.addresses(name.as_str().to_owned()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => why.fmt(f),
            Self::Unresolved => f.write_str("the name does not resolve"),
        }
    }
}

impl std::error::Error for NameError {}

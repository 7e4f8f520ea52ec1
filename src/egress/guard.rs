//! What is judged by: the operator's list and this machine's addresses, which come and go.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;

use crate::domain::egress;

const FRESH: Duration = Duration::from_secs(10);

pub type Interfaces = fn() -> io::Result<Vec<IpAddr>>;

pub struct Guard {
    allow: Vec<IpNet>,
    interfaces: Interfaces,
    own: Mutex<Own>,
}

struct Own {
    addresses: Arc<[IpAddr]>,
    asked: Instant,
}

impl Guard {
    pub fn new(allow: Vec<IpNet>, interfaces: Interfaces) -> Result<Self, String> {
        let addresses = interfaces().map_err(|error| format!("cannot list this machine's addresses: {error}"))?;
        let own = Own { addresses: addresses.into(), asked: Instant::now() };
        Ok(Self { allow, interfaces, own: Mutex::new(own) })
    }

    /// Why an address may not be called; None when it may.
    pub fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        egress::refusal(address, &self.allow, &self.own(Instant::now()))
    }

    /// As they were [`FRESH`] ago at most, or when they could last be listed.
    fn own(&self, now: Instant) -> Arc<[IpAddr]> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(own.asked) >= FRESH {
            own.asked = now;
            match (self.interfaces)() {
                Ok(addresses) => own.addresses = addresses.into(),
                Err(error) => tracing::warn!(%error, "cannot list this machine's addresses"),
            }
        }
        own.addresses.clone()
    }
}

/// The addresses of all interfaces, as the kernel has them now.
pub fn interfaces() -> io::Result<Vec<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| interface.address);
    let ip = |address: nix::sys::socket::SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::from(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::from(v6.ip())),
        _ => None,
    };
    Ok(addresses.filter_map(ip).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;

    #[test]
    fn the_machines_addresses_hold_the_loopback() {
        assert!(interfaces().unwrap().contains(&IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn addresses_that_come_are_seen_and_a_failure_forgets_none() {
        static ASKED: AtomicU8 = AtomicU8::new(0);
        let interfaces = || match ASKED.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(vec![IpAddr::from([1, 1, 1, 1])]),
            1 => Err(io::Error::other("no")),
            _ => Ok(vec![IpAddr::from([1, 1, 1, 2])]),
        };
        let start = Instant::now();
        let guard = Guard::new(Vec::new(), interfaces).unwrap();
        let own = |secs| guard.own(start + Duration::from_secs(secs))[0].to_string();
        assert_eq!(own(9), "1.1.1.1");
        assert_eq!(own(11), "1.1.1.1", "a failure");
        assert_eq!(own(20), "1.1.1.1", "not asked again yet");
        assert_eq!(own(21), "1.1.1.2");
        assert_eq!(ASKED.load(Ordering::Relaxed), 3);
    }
}

//! Calls that steps of sagas make to servers which a user named: through the egress guard, and
//! with one breaker a host and port, which every step that calls there shares.
//!
//! Errors of the connection, timeouts and 5xx count against a server, nothing else does. Those
//! that nothing is known against are forgotten when there are many.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};

pub use crate::egress::{Answer, Call, Failure};
use crate::{
    domain::{
        breaker::{self, Rules},
        clock::Clock,
        egress::Target,
    },
    egress::Egress,
    outward::{self, Circuit},
};

/// Servers that are remembered although nothing is under way to them.
const REMEMBERED: usize = 4096;
/// What one that is not called any more did so long ago is forgotten.
const FORGOTTEN_AFTER: TimeDelta = TimeDelta::minutes(10);

#[derive(Clone)]
pub struct Callouts {
    egress: Egress,
    servers: Arc<Servers>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    Failed(Failure),
    /// The server keeps failing: it was not called, and may be at this time.
    PutOff {
        until: DateTime<Utc>,
    },
}

impl Callouts {
    pub fn new(egress: Egress, clock: Clock) -> Self {
        Self { egress, servers: Arc::new(Servers { known: Mutex::default(), clock }) }
    }

    /// One attempt.
    ///
    /// # Errors
    /// Where no answer came, or none was asked for.
    pub async fn call(&self, call: Call) -> Result<Answer, Unanswered> {
        let turn = self.servers.turn(&server(&call.target)).map_err(|until| Unanswered::PutOff { until })?;
        let answer = self.egress.call(call).await;
        match &answer {
            // Nobody was called.
            Err(Failure::Refused(_)) => drop(turn),
            Err(_) => turn.went(false),
            Ok(answer) => turn.went(answer.status < 500),
        }
        answer.map_err(Unanswered::Failed)
    }

    /// The breakers of those that have failed lately.
    pub fn circuits(&self) -> Vec<(String, breaker::Snapshot)> {
        self.servers.circuits()
    }
}

/// `host:port`.
pub fn server(target: &Target) -> String {
    let origin = target.origin();
    origin.split_once("://").map_or(origin.as_str(), |(_, rest)| rest).to_owned()
}

struct Servers {
    known: Mutex<HashMap<String, Server>>,
    clock: Clock,
}

struct Server {
    under_way: usize,
    /// When it failed the last time.
    failed_at: Option<DateTime<Utc>>,
    called_at: DateTime<Utc>,
    circuit: Circuit,
}

/// The right to call a server once, now.
struct Turn<'a> {
    servers: &'a Servers,
    name: String,
    turn: Option<outward::Turn>,
}

impl Servers {
    /// The error is when to ask again.
    fn turn(&self, name: &str) -> Result<Turn<'_>, DateTime<Utc>> {
        let now = self.clock.now();
        let mut known = self.lock();
        if known.len() >= REMEMBERED && !known.contains_key(name) {
            let lately = |server: &Server| server.called_at + FORGOTTEN_AFTER > now;
            known.retain(|_, one| one.under_way > 0 || (!one.circuit.is_untroubled() && lately(one)));
        }
        let server = known.entry(name.to_owned()).or_insert_with(|| Server {
            under_way: 0,
            failed_at: None,
            called_at: now,
            circuit: Circuit::new(format!("http {name}"), Rules::UPSTREAM, self.clock.clone()),
        });
        server.called_at = now;
        let turn = server.circuit.turn().map_err(|put_off| put_off.until)?;
        server.under_way += 1;
        Ok(Turn { servers: self, name: name.to_owned(), turn: Some(turn) })
    }

    fn circuits(&self) -> Vec<(String, breaker::Snapshot)> {
        let now = self.clock.now();
        let known = self.lock();
        let mut found: Vec<_> = known
            .values()
            .filter(|server| server.failed_at.is_some_and(|at| at + FORGOTTEN_AFTER > now))
            .map(|server| server.circuit.shown())
            .collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    fn over(&self, name: &str, tell: impl FnOnce(&mut Server)) {
        if let Some(server) = self.lock().get_mut(name) {
            server.under_way = server.under_way.saturating_sub(1);
            tell(server);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Server>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// The call was made, and the server answered as one does that is in order, or not.
    fn went(mut self, well: bool) {
        let now = self.servers.clock.now();
        let Some(turn) = self.turn.take() else { return };
        self.servers.over(&self.name, |server| {
            server.failed_at = if well { server.failed_at } else { Some(now) };
            turn.went(well);
        });
    }
}

/// A call that was dropped midway says nothing.
impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.servers.over(&self.name, |_| drop(turn));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "example.com:443";

    fn servers() -> Servers {
        let start = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        Servers { known: Mutex::default(), clock: Clock::manual(start) }
    }

    fn failing(servers: &Servers, name: &str, times: usize) {
        for _ in 0..times {
            servers.turn(name).expect("it may be called").went(false);
        }
    }

    #[test]
    fn one_that_keeps_failing_is_put_off_to_the_next_probe_and_others_are_not() {
        let servers = servers();
        failing(&servers, NAME, 5);
        let open_until = servers.clock.now() + TimeDelta::seconds(30);
        assert_eq!(servers.turn(NAME).err(), Some(open_until));
        assert!(servers.turn("example.com:80").is_ok());
        let circuits = servers.circuits();
        assert_eq!(circuits.len(), 1, "the other has not failed");
        assert_eq!((circuits[0].0.as_str(), circuits[0].1.next_attempt_at), ("http example.com:443", Some(open_until)));
    }

    #[test]
    fn while_it_is_probed_others_look_again_soon() {
        let servers = servers();
        failing(&servers, NAME, 5);
        servers.clock.advance(TimeDelta::seconds(30));
        let probe = servers.turn(NAME).expect("the probe");
        assert_eq!(servers.turn(NAME).err(), Some(servers.clock.now() + TimeDelta::seconds(1)));
        probe.went(true);
        assert!(servers.turn(NAME).is_ok());
        let state = |servers: &Servers| servers.circuits().first().map(|(_, one)| one.state);
        assert_eq!(state(&servers), Some(breaker::State::Closed));
        servers.clock.advance(FORGOTTEN_AFTER);
        assert_eq!(state(&servers), None);
    }

    #[test]
    fn a_call_that_was_dropped_lets_the_next_one_go() {
        let servers = servers();
        failing(&servers, NAME, 5);
        servers.clock.advance(TimeDelta::seconds(30));
        drop(servers.turn(NAME).expect("the probe"));
        let next = servers.turn(NAME);
        assert!(next.is_ok(), "the probe was given up");
        drop(next);
        assert_eq!(servers.lock()[NAME].under_way, 0);
    }

    #[test]
    fn of_many_servers_those_are_kept_that_have_failed_lately_or_are_being_called() {
        let servers = servers();
        failing(&servers, "failed:1", 1);
        let calling = servers.turn("calling:1").expect("it may be called");
        for n in 0..REMEMBERED * 2 {
            servers.turn(&format!("fine:{n}")).expect("it may be called").went(true);
        }
        assert!(servers.lock().len() <= REMEMBERED);
        assert!(servers.lock().contains_key("failed:1") && servers.lock().contains_key("calling:1"));
        calling.went(true);
        servers.clock.advance(FORGOTTEN_AFTER);
        for n in 0..REMEMBERED {
            servers.turn(&format!("other:{n}")).expect("it may be called").went(true);
        }
        assert!(!servers.lock().contains_key("failed:1"), "that was long ago");
    }

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for (url, name) in [
            ("https://Example.com/a", "example.com:443"),
            ("http://example.com./", "example.com:80"),
            ("http://[::1]:8080/", "[::1]:8080"),
        ] {
            assert_eq!(server(&Target::parse(url).expect("a target")), name);
        }
    }
}

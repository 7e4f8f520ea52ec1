//! Sagas of three steps that do nothing, 16 at once: a client has the next one made when its saga
//! is completed. The peer's workflow has three steps that do nothing, called in its own process;
//! it stores each of them. So do rdev's steps that are carried out in attempts; the engine writes
//! a run of `noop`s down together.

use std::time::Duration;

use serde_json::json;

use super::{
    super::{
        Bench, ROUNDS,
        support::server::{DataDir, Server},
    },
    actions::{ATTEMPTED, NOOP, linear},
    http,
    inside::Inside,
    table::{Line, Target},
};

pub const CLIENTS: usize = 16;
const STEPS: usize = 3;
const WARM: Duration = Duration::from_secs(1);
const TIME: Duration = Duration::from_millis(2500);

pub async fn measure(bench: &Bench) {
    let kinds = [NOOP, ATTEMPTED];
    let mut rates = kinds.map(|kind| Line::new(format!("{STEPS}-step sagas, {kind}, {CLIENTS} at once"), "/s"));
    let mut wal = kinds.map(|kind| Line::new(format!("{STEPS}-step sagas, {kind}, WAL a saga"), "B"));
    let mut http = Line::new(format!("{STEPS}-step sagas, noop, by POST and SSE, {CLIENTS} at once"), "/s");
    for _ in 0..ROUNDS {
        let peer = peer(bench).await;
        for ((rate, wal), kind) in rates.iter_mut().zip(&mut wal).zip(kinds) {
            rate.peer(peer.map(|peer| peer.0));
            wal.peer(peer.map(|peer| peer.1));
            let (per_second, bytes) = inside(bench, kind).await;
            rate.rdev(per_second);
            wal.rdev(bytes);
        }
        http.peer(peer.map(|peer| peer.0));
        http.rdev(over_http(bench).await);
    }
    rates[0].print(&[Target::OfPeer(4.0)]);
    http.print(&[]);
    rates[1].print(&[]);
    for line in wal {
        line.print(&[]);
    }
}

/// Sagas a second, and bytes of the write-ahead log a saga.
async fn inside(bench: &Bench, action: &str) -> (f64, f64) {
    let inside = Inside::start(&bench.fresh().await).await;
    let steps = linear(action, STEPS);
    inside.carry(&steps, CLIENTS, usize::MAX, WARM).await;
    let seen = inside.carry(&steps, CLIENTS, usize::MAX, TIME).await;
    inside.stop().await;
    (seen.sagas as f64 / seen.seconds, seen.wal / seen.sagas as f64)
}

async fn over_http(bench: &Bench) -> f64 {
    let (url, data) = (bench.fresh().await, DataDir::new());
    let server = Server::rdev(&url, &data);
    http::carry(&server, CLIENTS, WARM).await;
    http::carry(&server, CLIENTS, TIME).await
}

async fn peer(bench: &Bench) -> Result<(f64, f64), &'static str> {
    let peers = bench.peers.as_ref().map_err(|why| *why)?;
    // Pools of 10 to 32 made no difference, nor did doing without LISTEN.
    let wanted = json!({
        "steps": STEPS, "clients": CLIENTS, "pool": 20,
        "warm": WARM.as_secs_f64(), "seconds": TIME.as_secs_f64(),
    });
    let seen = peers.dbos(&bench.fresh().await, &wanted).await;
    let number = |name: &str| seen[name].as_f64().expect("a number");
    Ok((number("per_second"), number("wal")))
}

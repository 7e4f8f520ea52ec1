//! What a step costs in a saga of a thousand, beside one of ten: time from the calls that make
//! sagas to their last events, and bytes of the write-ahead log, by the number of steps.

use std::time::Duration;

use rdev::domain::saga::spec::StepSpec;

use super::{
    super::{Bench, ROUNDS},
    actions::{ATTEMPTED, NOOP, independent, linear},
    inside::Inside,
    table::{Line, Target},
};

const SHORT: usize = 10;
const LONG: usize = 1000;
const PATIENCE: Duration = Duration::from_mins(1);

/// A way in which steps stand to one another.
type Shape = fn(&str, usize) -> Vec<StepSpec>;

struct Case {
    name: &'static str,
    shape: Shape,
    action: &'static str,
    clients: usize,
    /// A round.
    long: usize,
    short: usize,
}

const CASES: [Case; 5] = [
    Case { name: "linear noops, 1 saga", shape: linear, action: NOOP, clients: 1, long: 5, short: 200 },
    Case { name: "linear noops, 16 sagas", shape: linear, action: NOOP, clients: 16, long: 16, short: 1600 },
    Case { name: "independent noops, 16 sagas", shape: independent, action: NOOP, clients: 16, long: 16, short: 1600 },
    Case { name: "linear attempts, 1 saga", shape: linear, action: ATTEMPTED, clients: 1, long: 1, short: 50 },
    Case {
        name: "independent attempts, 1 saga",
        shape: independent,
        action: ATTEMPTED,
        clients: 1,
        long: 1,
        short: 50,
    },
];

pub async fn measure(bench: &Bench) {
    for case in CASES {
        let mut time = Line::new(format!("step of {LONG} (floor: {SHORT}), {}", case.name), "µs");
        let mut wal = Line::new("  WAL a step", "B");
        let inside = Inside::start(&bench.fresh().await).await;
        let steps = [SHORT, LONG].map(|count| (case.shape)(case.action, count));
        inside.carry(&steps[0], case.clients, case.clients * 2, PATIENCE).await;
        for _ in 0..ROUNDS {
            let seen = inside.carry(&steps[0], case.clients, case.short, PATIENCE).await;
            let all = (seen.sagas * SHORT) as f64;
            time.floor(seen.seconds / all * 1e6);
            wal.floor(seen.wal / all);
            let seen = inside.carry(&steps[1], case.clients, case.long, PATIENCE).await;
            let all = (seen.sagas * LONG) as f64;
            time.rdev(seen.seconds / all * 1e6);
            wal.rdev(seen.wal / all);
        }
        inside.stop().await;
        time.print(&[Target::NoMoreThanFloor(1.0)]);
        wal.print(&[Target::NoMoreThanFloor(1.0)]);
    }
}

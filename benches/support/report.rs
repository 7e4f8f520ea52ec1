//! The table: what was measured, the floor, rdev, their ratio, the target, and whether
//! it is met. A missed target is shown, and is no failure of the bench: machines differ.

use super::stats::median;

/// What a target asks for.
#[derive(Clone, Copy)]
pub enum Target {
    /// At least this share of the floor.
    ShareOfFloor(f64),
    /// At most so many times the floor.
    TimesFloor(f64),
    /// At least this share of a peer, which stands in the floor's place.
    ShareOf(&'static str, f64),
    /// At most so much, whatever the floor.
    AtMost(f64),
    AtLeast(f64),
    /// Shown for comparison.
    None,
}

/// Rounds of one measurement: a value of the floor and one of rdev each.
pub struct Row {
    what: String,
    unit: &'static str,
    floor: Vec<f64>,
    rdev: Vec<f64>,
}

impl Row {
    pub fn new(what: impl Into<String>, unit: &'static str) -> Self {
        Self { what: what.into(), unit, floor: Vec::new(), rdev: Vec::new() }
    }

    pub fn add(&mut self, floor: f64, rdev: f64) {
        self.floor.push(floor);
        self.rdev.push(rdev);
    }

    pub fn add_rdev(&mut self, rdev: f64) {
        self.rdev.push(rdev);
    }

    pub fn is_empty(&self) -> bool {
        self.rdev.is_empty()
    }

    pub fn floor(&self) -> f64 {
        median(&self.floor)
    }

    /// The median of the rounds' ratios: floor and rdev of one round ran in the same moment.
    fn ratio(&self) -> f64 {
        median(&self.floor.iter().zip(&self.rdev).map(|(floor, rdev)| rdev / floor).collect::<Vec<_>>())
    }

    pub fn print(&self, target: Target) {
        let (rdev, ratio) = (median(&self.rdev), self.ratio());
        let (target, met) = match target {
            Target::ShareOfFloor(share) => (format!(">= {:.0} % of the floor", share * 100.0), ratio >= share),
            Target::ShareOf(peer, share) => (format!(">= {:.0} % of {peer}", share * 100.0), ratio >= share),
            Target::TimesFloor(times) => (format!("<= {times} x the floor"), ratio <= times),
            Target::AtMost(most) => (format!("<= {most:.4} {}", self.unit), rdev <= most),
            Target::AtLeast(least) => (format!(">= {least} {}", self.unit), rdev >= least),
            Target::None => (String::new(), true),
        };
        let verdict = match (target.is_empty(), met) {
            (true, _) => "",
            (false, true) => "met",
            (false, false) => "MISSED",
        };
        let floor = if self.floor.is_empty() { "-".to_owned() } else { number(self.floor()) };
        let ratio = if self.floor.is_empty() { "-".to_owned() } else { format!("{ratio:.2}") };
        println!(
            "{:<58} {floor:>12} {:>12} {:<8} {ratio:>6}  {verdict:<7} {target}",
            self.what,
            number(rdev),
            self.unit
        );
    }
}

pub fn head() {
    head_beside("floor");
}

/// Where a peer stands in the floor's place.
pub fn head_beside(peer: &str) {
    println!("{:<58} {peer:>12} {:>12} {:<8} {:>6}  target", "", "rdev", "", "ratio");
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

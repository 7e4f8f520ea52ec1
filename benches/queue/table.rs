//! The table with three columns: the floor, the peer and rdev, each the median of its
//! rounds with half their spread; the ratios are those of one round's values, at the median.

use super::super::support::stats::median;

/// What is asked of rdev.
#[derive(Clone, Copy)]
pub enum Target {
    /// At least so many times the floor.
    OfFloor(f64),
    /// At most so many times the floor.
    NoMoreThanFloor(f64),
    /// At least so many times the peer.
    OfPeer(f64),
    /// At most so many times the peer.
    NoMoreThanPeer(f64),
}

/// Rounds of one measurement.
pub struct Line {
    what: String,
    unit: &'static str,
    floor: Vec<f64>,
    peer: Vec<f64>,
    rdev: Vec<f64>,
    /// Why there is nothing from the peer.
    without_peer: &'static str,
}

impl Line {
    pub fn new(what: impl Into<String>, unit: &'static str) -> Self {
        let what = what.into();
        Self { what, unit, floor: Vec::new(), peer: Vec::new(), rdev: Vec::new(), without_peer: "-" }
    }

    pub fn floor(&mut self, value: f64) {
        self.floor.push(value);
    }

    pub fn peer(&mut self, value: Result<f64, &'static str>) {
        match value {
            Ok(value) => self.peer.push(value),
            Err(why) => self.without_peer = why,
        }
    }

    pub fn rdev(&mut self, value: f64) {
        self.rdev.push(value);
    }

    pub fn print(&self, targets: &[Target]) {
        let (of_floor, of_peer) = (ratio(&self.rdev, &self.floor), ratio(&self.rdev, &self.peer));
        let told = targets.iter().map(|target| judge(*target, of_floor, of_peer)).collect::<Vec<_>>();
        println!(
            "{:<56} {:>14} {:>14} {:>14} {:<5} {:>7} {:>7}  {}",
            self.what,
            cell(&self.floor, "-"),
            cell(&self.peer, self.without_peer),
            cell(&self.rdev, "-"),
            self.unit,
            times(of_floor),
            times(of_peer),
            told.join("; ")
        );
    }
}

fn judge(target: Target, of_floor: Option<f64>, of_peer: Option<f64>) -> String {
    let (words, met) = match target {
        Target::OfFloor(least) => (format!(">= {least} x floor"), of_floor.map(|ratio| ratio >= least)),
        Target::NoMoreThanFloor(most) => (format!("<= {most} x floor"), of_floor.map(|ratio| ratio <= most)),
        Target::OfPeer(least) => (format!(">= {least} x peer"), of_peer.map(|ratio| ratio >= least)),
        Target::NoMoreThanPeer(most) => (format!("<= {most} x peer"), of_peer.map(|ratio| ratio <= most)),
    };
    match met {
        Some(true) => format!("met {words}"),
        Some(false) => format!("MISSED {words}"),
        None => words,
    }
}

pub fn head() {
    println!(
        "{:<56} {:>14} {:>14} {:>14} {:<5} {:>7} {:>7}  target",
        "", "floor", "peer", "rdev", "", "x floor", "x peer"
    );
}

fn ratio(of: &[f64], to: &[f64]) -> Option<f64> {
    let ratios = of.iter().zip(to).map(|(of, to)| of / to).collect::<Vec<_>>();
    (!ratios.is_empty()).then(|| median(&ratios))
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn cell(values: &[f64], otherwise: &str) -> String {
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), value| (a.min(*value), b.max(*value)));
    let middle = median(values);
    if middle.is_nan() {
        return otherwise.to_owned();
    }
    let spread = (most - least) / 2.0 / middle * 100.0;
    match middle {
        large if large >= 1000.0 => format!("{large:.0} ±{spread:.0}%"),
        other if other >= 10.0 => format!("{other:.1} ±{spread:.0}%"),
        small => format!("{small:.3} ±{spread:.0}%"),
    }
}

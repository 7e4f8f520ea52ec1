//! Where events come from: lines written into a named pipe, which a command of rdev's
//! copies to its output and which a floor reads itself. A line carries the time it was
//! written at, in nanoseconds of this program's clock.

use std::{
    io::Write as _,
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Length of a line without its newline.
pub const LINE: usize = 79;
/// What stands before the time in a line.
pub const MARK: &str = "\"line\":\"at ";
const DIGITS: usize = 16;

/// How lines are offered.
#[derive(Clone, Copy)]
pub enum Pace {
    /// As fast as they are taken.
    Flood,
    /// One after each such pause.
    Every(Duration),
}

/// Nanoseconds since this program began to count.
pub fn clock() -> u64 {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGUN.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Writes `count` lines into the pipe, once somebody reads it. Answers when the first was written.
pub fn write(pipe: PathBuf, count: usize, pace: Pace) -> tokio::task::JoinHandle<Instant> {
    tokio::task::spawn_blocking(move || {
        let mut pipe = std::fs::OpenOptions::new().write(true).open(pipe).expect("the pipe");
        let begun = Instant::now();
        match pace {
            Pace::Flood => {
                for at_once in std::iter::repeat_n(100, count / 100).chain([count % 100]) {
                    let lines: String = (0..at_once).map(|_| line()).collect();
                    pipe.write_all(lines.as_bytes()).expect("the reader reads");
                }
            }
            Pace::Every(pause) => {
                for n in 0..u32::try_from(count).expect("few") {
                    sleep_until(begun + pause * n);
                    pipe.write_all(line().as_bytes()).expect("the reader reads");
                }
            }
        }
        begun
    })
}

fn line() -> String {
    let mut line = format!("at {:0DIGITS$} ", clock());
    line.extend(std::iter::repeat_n('.', LINE - line.len()));
    line.push('\n');
    line
}

fn sleep_until(at: Instant) {
    let now = Instant::now();
    if at > now {
        std::thread::sleep(at - now);
    }
}

/// How long ago, in ms, the lines in these events were written.
pub fn ages(events: &[u8]) -> Vec<f64> {
    let now = clock();
    let found = memchr::memmem::find_iter(events, MARK.as_bytes());
    let digits = found.filter_map(|at| events.get(at + MARK.len()..at + MARK.len() + DIGITS));
    let written = digits.filter_map(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
    written.map(|written| now.saturating_sub(written) as f64 / 1e6).collect()
}

/// How much of the end of what was read must be looked at again, so that no line is missed
/// or seen twice: one byte less than what is looked for.
pub const OVERLAP: usize = MARK.len() + DIGITS - 1;

//! The process table: who descends from whom, and whether a process is still the one that was meant.
//!
//! A process is named by its id and its start time together, since ids are used again.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub pid: i32,
    /// Clock ticks after the machine's start.
    pub start: u64,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub process: Process,
    pub parent: i32,
    /// It has ended, and only its parent has not looked yet.
    pub zombie: bool,
}

impl Process {
    pub fn find(pid: i32) -> Option<Self> {
        row(pid).map(|row| row.process)
    }

    /// Whether its environment holds all of these. False where it may not be read.
    pub fn environment_has(self, pairs: &[String]) -> bool {
        let Ok(environment) = fs::read(format!("/proc/{}/environ", self.pid)) else {
            return false;
        };
        let has = |pair: &String| environment.split(|byte| *byte == 0).any(|found| found == pair.as_bytes());
        !pairs.is_empty() && pairs.iter().all(has)
    }
}

/// Every process that can be seen from here.
pub(super) fn table() -> Vec<Row> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| row(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// `roots`' children, their children, and so on, without the roots.
pub(super) fn descendants(table: &[Row], roots: &[i32]) -> Vec<Process> {
    let mut family = roots.to_vec();
    let mut found = Vec::new();
    loop {
        let known = family.len();
        for row in table {
            if family.contains(&row.parent) && !family.contains(&row.process.pid) {
                family.push(row.process.pid);
                found.push(row.process);
            }
        }
        if family.len() == known {
            return found;
        }
    }
}

/// Kills and reaps whatever descends from this process, until none is left. For a process that adopts what detaches
/// itself from its children (a "subreaper"): what is killed leaves its own children to it, so that they are found in the
/// next round, and nobody outruns the rounds, since no killed process forks again.
pub(super) fn end_descendants() {
    let give_up = Instant::now() + SWEEP;
    while any_child_left() && Instant::now() < give_up {
        for process in descendants(&table(), &[getpid().as_raw()]) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        if !any_child_left() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// How long that may take.
const SWEEP: Duration = Duration::from_secs(25);

fn any_child_left() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Err(Errno::ECHILD) => return false,
            _ => {}
        }
    }
}

fn row(pid: i32) -> Option<Row> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name, in parentheses, may hold anything: what follows the last one is numbers.
fn parse(pid: i32, stat: &str) -> Option<Row> {
    let (_, numbers) = stat.rsplit_once(')')?;
    let mut fields = numbers.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Row { process: Process { pid, start: started }, parent, zombie })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_parentheses_does_not_confuse() {
        let stat = "7 (a) R 1 (b) S 5 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3";
        let row = parse(7, stat).expect("row");
        assert_eq!((row.parent, row.process.start), (5, 4711));
    }

    #[test]
    fn descendants_are_found_in_any_order() {
        let row = |pid, parent| Row { process: Process { pid, start: 0 }, parent, zombie: false };
        let table = [row(30, 20), row(20, 10), row(10, 1), row(11, 1), row(1, 0)];
        let pids: Vec<i32> = descendants(&table, &[10]).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [20, 30]);
    }

    #[test]
    fn this_process_is_in_the_table_with_its_parent() {
        let own = Process::find(std::process::id().cast_signed()).expect("own row");
        let row = table().into_iter().find(|row| row.process == own).expect("in the table");
        assert_eq!(row.parent, std::os::unix::process::parent_id().cast_signed());
        assert!(!row.zombie);
    }
}

//! Ends what a command left behind whose supervisor was killed.
//!
//! The rule: never a process that is not surely the command's. They are found by what the supervisor wrote down (id and
//! start time), by descent, and by the ids in their environment.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    launch::alive,
    processes::{self, Process, Row},
    spec::{Spec, file},
};

/// Kills what a killed supervisor left behind and returns how many processes that were. Does nothing while the
/// supervisor lives.
///
/// They are found by what the supervisor wrote down, by descent, and by `RDEV_COMMAND_ID` (with `RDEV_PROJECT_ID`, since
/// a client's id is unique in its project alone) in their environment.
///
/// # Errors
/// `TimedOut` when some are still there: processes that even KILL does not end, or that are not ours to kill.
pub fn end_leftovers(dir: &Path, command_id: &str) -> io::Result<usize> {
    if alive(dir) {
        return Ok(0);
    }
    let written: Vec<Process> = fs::read(dir.join(file::PROCESSES))
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default();
    let marks = marks(dir, command_id);
    let until = Instant::now() + PATIENCE;
    let mut killed = Vec::new();
    loop {
        let left = leftovers(&written, &marks);
        if left.is_empty() {
            return Ok(killed.len());
        }
        if Instant::now() > until {
            let message = format!("{} processes of {command_id} cannot be ended", left.len());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        for process in left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            if !killed.contains(&process) {
                killed.push(process);
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

/// What the environment of the command's processes must hold. Nothing, where it cannot be known whose id it is.
fn marks(dir: &Path, command_id: &str) -> Vec<String> {
    let spec = fs::read(dir.join(file::SPEC)).ok().and_then(|json| serde_json::from_slice::<Spec>(&json).ok());
    let Some(spec) = spec.filter(|spec| spec.command_id == command_id) else {
        return Vec::new();
    };
    let is_mark = |name: &str| matches!(name, "RDEV_COMMAND_ID" | "RDEV_PROJECT_ID");
    let marks: Vec<_> = spec.program.env.iter().filter(|(name, _)| is_mark(name)).collect();
    let names_it = marks.iter().any(|(name, value)| name == "RDEV_COMMAND_ID" && value == command_id);
    if names_it { marks.iter().map(|(name, value)| format!("{name}={value}")).collect() } else { Vec::new() }
}

fn leftovers(written: &[Process], marks: &[String]) -> Vec<Process> {
    let table = processes::table();
    let spared = own_line(&table);
    let known: Vec<i32> = table
        .iter()
        .filter(|row| written.contains(&row.process) || row.process.environment_has(marks))
        .map(|row| row.process.pid)
        .filter(|pid| !spared.contains(pid))
        .collect();
    let family = processes::descendants(&table, &known);
    let is_left = |row: &&Row| !row.zombie && (known.contains(&row.process.pid) || family.contains(&row.process));
    table.iter().filter(is_left).map(|row| row.process).filter(|process| !spared.contains(&process.pid)).collect()
}

/// This process and those that it comes from: a server may itself have been started by a command of another one.
fn own_line(table: &[Row]) -> Vec<i32> {
    let mut line = vec![1, std::process::id().cast_signed()];
    while let Some(row) = table.iter().find(|row| line.last() == Some(&row.process.pid)) {
        if line.contains(&row.parent) || row.parent == 0 {
            break;
        }
        line.push(row.parent);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_alone_is_no_mark_where_the_directory_is_another_commands() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(marks(dir.path(), "cmd-1").is_empty());
        let spec = r#"{"command_id":"cmd-1","argv":[],"cwd":"/","deadline_ms":0,"kill_grace_ms":0,"output_limit":0,
            "env":[["RDEV_COMMAND_ID","cmd-1"],["RDEV_PROJECT_ID","p"],["A","b"]],
            "sandbox":{"kind":"none","user":null,"writable":[],"tmp":null,"hidden":[],"readable":[]}}"#;
        fs::write(dir.path().join(file::SPEC), spec).expect("write");
        assert_eq!(marks(dir.path(), "cmd-1"), ["RDEV_COMMAND_ID=cmd-1", "RDEV_PROJECT_ID=p"]);
        assert!(marks(dir.path(), "cmd-2").is_empty());
    }

    #[test]
    fn the_own_line_leads_from_here_to_the_first_process() {
        let line = own_line(&processes::table());
        assert!(line.contains(&std::process::id().cast_signed()));
        assert!(line.contains(&std::os::unix::process::parent_id().cast_signed()));
    }
}

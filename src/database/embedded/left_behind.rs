//! Ending what an rdev that was killed left behind on a database's files.
//!
//! The caller holds the folder's lock, so no rdev owns these processes any more. They are recognised by what the
//! kernel says they are (user and command line), never by a number in a file: numbers are used again.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use super::cluster::{Cluster, status};
use super::{FAST_STOP, HARD_STOP};

/// Waits for every process of this database to end, and sees to it that they do. Afterwards a note of a server's id
/// (`postmaster.pid`) is no obstacle to a start.
pub fn end_all(cluster: &Cluster, user: Uid) -> Result<(), String> {
    for (step, patience) in [(0, FAST_STOP), (1, HARD_STOP), (2, HARD_STOP)] {
        let deadline = Instant::now() + patience;
        let mut told: Vec<Pid> = Vec::new();
        loop {
            let left = processes(cluster, user);
            if left.is_empty() {
                forget(&cluster.data());
                return Ok(());
            }
            let masters = left.iter().any(|process| process.is_master);
            // A server ends its own; without it (it was killed) they have to go at once, as after a crash.
            for process in left.iter().filter(|process| process.is_master || !masters) {
                if !told.contains(&process.pid) {
                    let _ = kill(process.pid, signal(step, process.is_master));
                    told.push(process.pid);
                }
            }
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    let left: Vec<String> = processes(cluster, user).iter().map(|process| process.pid.to_string()).collect();
    Err(format!(
        "processes of an earlier server still use the database in {} and do not end ({}): end them, then start again",
        cluster.data().display(),
        left.join(", ")
    ))
}

struct Process {
    pid: Pid,
    is_master: bool,
}

fn signal(step: u32, is_master: bool) -> Signal {
    match (step, is_master) {
        (0, true) => Signal::SIGINT,
        (0, false) | (1, _) => Signal::SIGQUIT,
        _ => Signal::SIGKILL,
    }
}

fn processes(cluster: &Cluster, user: Uid) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            if entry.metadata().ok()?.uid() != user.as_raw() {
                return None;
            }
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let is_master = recognise(&String::from_utf8_lossy(&line), &cluster.data(), &cluster.name())?;
            Some(Process { pid: Pid::from_raw(pid), is_master })
        })
        .collect()
}

/// Whether a command line is that of the database's server (true) or of one of its workers (false), if of either.
fn recognise(line: &str, data: &Path, name: &str) -> Option<bool> {
    if line.starts_with(&format!("postgres: {name}: ")) {
        return Some(false);
    }
    let mut args = line.split('\0');
    let is_postgres = Path::new(args.next()?).file_name().is_some_and(|program| program == "postgres");
    let on_data = args.clone().zip(args.skip(1)).any(|(flag, value)| flag == "-D" && Path::new(value) == data);
    (is_postgres && on_data).then_some(true)
}

/// PostgreSQL does not start while a process has the id that an earlier server noted, whatever that process is.
fn forget(data: &Path) {
    let alive = status(data).is_some_and(|status| Path::new("/proc").join(status.pid.to_string()).exists());
    if alive {
        // Failing, it shows when the server starts, with the server's own words.
        let _ = fs::remove_file(data.join("postmaster.pid"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_of_this_folder_are_recognised() {
        let data = Path::new("/d/data");
        assert_eq!(
            recognise("/usr/lib/postgresql/15/bin/postgres\0-D\0/d/data\0-c\0x=1\0", data, "rdev-1"),
            Some(true)
        );
        assert_eq!(recognise("postgres: rdev-1: walwriter \0\0", data, "rdev-1"), Some(false));
        assert_eq!(recognise("postgres: rdev-12: walwriter ", data, "rdev-1"), None);
        assert_eq!(recognise("/usr/bin/postgres\0-D\0/d/data.new\0", data, "rdev-1"), None);
        assert_eq!(recognise("/usr/bin/tail\0-D\0/d/data\0", data, "rdev-1"), None);
        assert_eq!(recognise("", data, "rdev-1"), None);
    }
}

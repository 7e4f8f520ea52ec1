//! `rdev supervise DIR`: stays with one command until its end, whatever happens to the server.
//!
//! The rule: everything that a server needs to know later is in DIR, `exit.json` comes last and whole, and the lock is
//! held for exactly as long as this process lives. The lock (fd 0) and the orders (fd 1) were opened by the server
//! before this process existed, so nobody can find it missing while it starts.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::setsid,
};

use super::{
    attend::{Host, Limits, attend},
    pipes::Stream,
    processes::{self, Process},
    spec::{Exit, Reason, Spec, Termination, file, now_ms},
    verdict::start_failed,
    wire::{self, Job},
};

/// The hidden subcommand. `arguments` are those after its name.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    let [dir] = arguments else {
        return ExitCode::from(2);
    };
    let dir = Path::new(dir);
    wire::close_strays();
    // Fails where this process leads a session already, which is as good.
    let _ = setsid();
    let _ = prctl::set_dumpable(false);
    // If the sandbox itself is killed, what was in it comes here to be ended.
    let _ = prctl::set_child_subreaper(true);
    let exit = supervise(dir).unwrap_or_else(|error| {
        start_failed(now_ms(), format!("the supervisor cannot use {}: {error}", dir.display()))
    });
    match publish(dir, &exit) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn supervise(dir: &Path) -> io::Result<Exit> {
    let spec: Spec = serde_json::from_slice(&fs::read(dir.join(file::SPEC))?)?;
    let stdin = match fs::read(dir.join(file::STDIN)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut host = Directory::open(dir)?;
    let limits = Limits {
        deadline_ms: spec.deadline_ms,
        grace: Duration::from_millis(spec.kill_grace_ms),
        output: spec.output_limit,
    };
    let job = Job { program: spec.program, stdin };
    Ok(attend(&own_path()?, &job, &limits, &mut host))
}

/// Written, synced and then renamed: whoever sees it sees all of it, also after a crash of the machine.
fn publish(dir: &Path, exit: &Exit) -> io::Result<()> {
    let unfinished = dir.join("exit.json.tmp");
    let mut file = private().truncate(true).open(&unfinished)?;
    file.write_all(&serde_json::to_vec(exit)?)?;
    file.sync_all()?;
    fs::rename(unfinished, dir.join(file::EXIT))
}

/// Where this program lies now: an upgrade may have replaced the file that this process was started from.
fn own_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let replaced = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.unwrap_or(path))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// A command's directory, seen from its supervisor.
struct Directory {
    out: File,
    err: File,
    orders: File,
    /// The beginning of a line whose end has not been read.
    line: Vec<u8>,
    signals: SignalFd,
    processes: PathBuf,
    born: Vec<Process>,
}

impl Directory {
    fn open(dir: &Path) -> io::Result<Self> {
        let mut append = OpenOptions::new();
        append.append(true).create(true).mode(0o600);
        Ok(Self {
            out: append.open(dir.join(file::OUT))?,
            err: append.open(dir.join(file::ERR))?,
            orders: File::from(io::stdout().as_fd().try_clone_to_owned()?),
            line: Vec::new(),
            signals: signals()?,
            processes: dir.join(file::PROCESSES),
            born: Vec::new(),
        })
    }
}

/// A machine that goes down says TERM to everything: then the command ends in order, like on a stop of the server. What
/// a terminal sends is not meant for this process.
fn signals() -> io::Result<SignalFd> {
    let term = SigSet::from(Signal::SIGTERM);
    let mut blocked = term;
    blocked.add(Signal::SIGINT);
    blocked.add(Signal::SIGHUP);
    blocked.thread_block()?;
    Ok(SignalFd::with_flags(&term, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

impl Host for Directory {
    fn keep(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            Stream::Out => self.out.write_all(bytes),
            Stream::Err => self.err.write_all(bytes),
        }
    }

    fn born(&mut self, pid: i32) {
        self.born.extend(Process::find(pid));
        // Only for cleaning up after this process was killed: not worth losing a command for.
        if let Ok(json) = serde_json::to_vec(&self.born) {
            let _ = private().truncate(true).open(&self.processes).and_then(|mut file| file.write_all(&json));
        }
    }

    fn gone(&mut self) {
        processes::end_descendants();
    }

    fn listen(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.orders.as_fd(), self.signals.as_fd()]
    }

    fn asked(&mut self) -> Option<Termination> {
        if let Ok(Some(_)) = self.signals.read_signal() {
            return Some(Termination::ServerStopped);
        }
        let mut bytes = [0; 4096];
        let length = self.orders.read(&mut bytes).ok()?;
        self.line.extend_from_slice(&bytes[..length]);
        let whole = self.line.iter().rposition(|byte| *byte == b'\n')? + 1;
        let lines: Vec<u8> = self.line.drain(..whole).collect();
        lines.split(|byte| *byte == b'\n').find_map(order)
    }
}

/// `cancel <reason>`.
fn order(line: &[u8]) -> Option<Termination> {
    let reason = std::str::from_utf8(line).ok()?.strip_prefix("cancel ")?;
    Some(Reason::parse(reason.trim())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cancel_with_a_known_reason_is_an_order() {
        assert_eq!(order(b"cancel session_ended"), Some(Termination::SessionEnded));
        for line in ["", "cancel", "cancel timeout", "stop cancelled", "cancel \u{fffd}"] {
            assert_eq!(order(line.as_bytes()), None, "{line}");
        }
    }
}

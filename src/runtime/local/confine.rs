//! `rdev confine`: the command's parent, inside the sandbox. Starts it, passes signals on, reports how it really ended.
//!
//! The rule: nothing outlives this process. Under bubblewrap it is process 1 of its own namespace, so the kernel kills
//! the rest when it leaves; elsewhere it adopts whatever detaches itself and kills until none is left. When the
//! supervisor is gone it does the same. It keeps its privileges so that the command, which has none, cannot signal or
//! trace it. What the command itself may do is decided in `enter`.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill, killpg},
        signalfd::{SfdFlags, SignalFd},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, getpid, setsid},
};

use super::{
    enter, processes,
    wire::{self, Job, Order, Report},
};

/// The hidden subcommand. `arguments` are those after its name.
#[must_use]
pub fn main(arguments: &[OsString]) -> ExitCode {
    if arguments.first().is_some_and(|argument| argument == ENTER) {
        return enter::main();
    }
    match confine() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

const ENTER: &str = "enter";

fn confine() -> io::Result<()> {
    wire::close_strays();
    prctl::set_dumpable(false)?;
    // Fails where this process leads a session already, which is as good.
    let _ = setsid();
    prctl::set_child_subreaper(true)?;
    let signals = signals()?;
    let mut socket = wire::inherited_socket()?;
    let job = Job::receive(&socket)?;
    match start(&job) {
        Ok(mut child) => {
            // A supervisor that is gone is noticed when it is listened to.
            let _ = wire::send(&mut socket, &Report::Started { pid: outside(pid(&child)) });
            if let Some(status) = watch(&mut child, &mut socket, &signals)? {
                let _ = wire::send(&mut socket, &Report::from(status));
            }
            if !is_first() {
                processes::end_descendants();
            }
        }
        Err(message) => wire::send(&mut socket, &Report::Failed(message))?,
    }
    Ok(())
}

/// All that could end or stop this process by accident is held back; of SIGCHLD the descriptor tells.
fn signals() -> io::Result<SignalFd> {
    let mut blocked = SigSet::all();
    for deadly in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT] {
        blocked.remove(deadly);
    }
    blocked.thread_block()?;
    let wanted = SigSet::from(Signal::SIGCHLD);
    Ok(SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Starts the process that becomes the command, and waits until it has or has said why not.
fn start(job: &Job) -> Result<Child, String> {
    let failed = |error: io::Error| format!("the command's process cannot be started: {error}");
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut child = Command::new("/proc/self/exe")
        .args(["confine", ENTER])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(failed)?;
    let answer = job.send(&ours).and_then(|()| wire::receive::<String>(&mut ours));
    // The socket closes by itself when the program is executed: silence is success.
    let message = match answer {
        Ok(None) => return Ok(child),
        Ok(Some(message)) => message,
        Err(error) => failed(error),
    };
    let _ = child.kill();
    let _ = child.wait();
    Err(message)
}

/// Until the command has ended (its status), or the supervisor is gone (`None`).
fn watch(child: &mut Child, socket: &mut UnixStream, signals: &SignalFd) -> io::Result<Option<ExitStatus>> {
    loop {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let [asked, ended] = fds.map(|fd| fd.any().unwrap_or(true));
        if asked && !obey(pid(child), socket) {
            return Ok(None);
        }
        if ended {
            while let Ok(Some(_)) = signals.read_signal() {}
            if has_ended(pid(child)) {
                // Before it is reaped: until then nobody else can get its number.
                let _ = killpg(pid(child), Signal::SIGKILL);
                return child.wait().map(Some);
            }
        }
    }
}

/// False when there is nobody left to obey.
fn obey(command: Pid, socket: &mut UnixStream) -> bool {
    let mut orders = [0; 16];
    let Ok(length @ 1..) = socket.read(&mut orders) else {
        return false;
    };
    for order in orders[..length].iter().filter_map(|byte| Order::parse(*byte)) {
        let _ = match order {
            Order::Term => killpg(command, Signal::SIGTERM),
            Order::Kill => killpg(command, Signal::SIGKILL).and(kill(command, Signal::SIGKILL)),
        };
    }
    true
}

/// Whether `command` is a zombie; the other zombies are reaped on the way.
fn has_ended(command: Pid) -> bool {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::All, peek) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return false,
            Ok(status) if status.pid() == Some(command) => return true,
            Ok(status) => {
                let _ = waitpid(status.pid(), Some(WaitPidFlag::WNOHANG));
            }
            Err(Errno::EINTR) => {}
            // Somebody died of a real-time signal, for which nix has no name, and so does not say who it was.
            Err(_) => {
                if !matches!(waitid(Id::Pid(command), peek), Ok(WaitStatus::StillAlive)) {
                    return true;
                }
                reap_all_but(command);
                return false;
            }
        }
    }
}

fn reap_all_but(command: Pid) {
    let own = getpid().as_raw();
    for row in processes::table().iter().filter(|row| row.parent == own) {
        if row.process.pid != command.as_raw() {
            let _ = waitpid(Pid::from_raw(row.process.pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// In a namespace of its own, a number names another process than outside.
fn outside(command: Pid) -> Option<i32> {
    (!is_first()).then(|| command.as_raw())
}

fn is_first() -> bool {
    getpid() == Pid::from_raw(1)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

//! Looks after one sandbox from its start to its end: keeps what it prints, ends it when it must end, says how it ended.
//!
//! The rule: a cause (deadline, limit, order) is followed by TERM, then KILL, then the end of the whole sandbox, and no
//! wait is without an end. Where the output goes and who may give orders is the [`Host`]'s: a supervisor with a
//! directory, or the server running an errand. No line is looked for in the output, and nothing is held back.

use std::{
    io,
    net::Shutdown,
    ops::ControlFlow,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    mounts,
    pipes::{Pipes, Read, Stream},
    spec::{Exit, Kind, Sandbox, Termination, now_ms},
    verdict::{Verdict, start_failed},
    wire::{self, Job, Order, Report},
};

/// Whoever keeps the output and passes on what people ask for.
pub(super) trait Host {
    /// Keeps these bytes, in order, before it returns.
    fn keep(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()>;
    /// A process that would be left behind if this one were killed.
    fn born(&mut self, pid: i32);
    /// The sandbox is gone. Where it was killed, it may have left something behind.
    fn gone(&mut self);
    /// Readable when [`Host::asked`] has something to say.
    fn listen(&self) -> Vec<BorrowedFd<'_>>;
    /// The end that was asked for, if it was. Never blocks.
    fn asked(&mut self) -> Option<Termination>;
}

pub(super) struct Limits {
    pub deadline_ms: u64,
    pub grace: Duration,
    /// Bytes of both streams together; 0 is no limit.
    pub output: u64,
}

/// Runs `job` to its end.
pub(super) fn attend(exe: &Path, job: &Job, limits: &Limits, host: &mut dyn Host) -> Exit {
    let started_at_ms = now_ms();
    match Attendance::begin(exe, job, limits) {
        Ok(mut attendance) => {
            attendance.run(host);
            attendance.verdict.exit(started_at_ms)
        }
        Err(error) => start_failed(started_at_ms, format!("the sandbox cannot be started: {error}")),
    }
}

/// How long the sandbox may take for something that is done at once, before the next harder means.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long ending everything that a command left behind may take.
const SWEEP: Duration = Duration::from_secs(30);
/// The wall clock may be set: look at it this often.
const CLOCK: Duration = Duration::from_secs(5);

struct Attendance<'a> {
    limits: &'a Limits,
    child: Child,
    socket: Option<UnixStream>,
    pipes: Pipes,
    kept: u64,
    /// Set once the output cannot be stored any more: the rest is read and dropped.
    full: bool,
    verdict: Verdict,
    alarm: Option<(Instant, Step)>,
}

/// What comes next when the one before did not help.
#[derive(Clone, Copy)]
enum Step {
    Kill,
    Destroy,
    GiveUp,
}

/// Who has something.
#[derive(Clone, Copy)]
enum Source {
    Output(Stream),
    Inside,
    Host,
}

impl<'a> Attendance<'a> {
    fn begin(exe: &Path, job: &Job, limits: &'a Limits) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut child = command(exe, &job.program.sandbox)?
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = Pipes::of(&mut child, &job.program.sandbox);
        // Where the sandbox dies on the way, its complaint on stderr says more than our broken pipe.
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let _ = job.send(&socket);
        Ok(Self {
            limits,
            child,
            socket: Some(socket),
            pipes,
            kept: 0,
            full: false,
            verdict: Verdict::default(),
            alarm: None,
        })
    }

    fn run(&mut self, host: &mut dyn Host) {
        host.born(self.child.id().cast_signed());
        while self.socket.is_some() || self.pipes.any_open() {
            let Ok(ready) = self.wait(host) else { break };
            for source in ready {
                match source {
                    Source::Output(stream) => self.read(stream, host),
                    Source::Inside => self.hear(host),
                    Source::Host => {
                        if let Some(termination) = host.asked() {
                            self.end(termination, None);
                        }
                    }
                }
            }
            if now_ms() >= self.limits.deadline_ms {
                self.end(Termination::Timeout, None);
            }
            if self.alarmed().is_break() {
                break;
            }
        }
    }

    /// Output comes first: what was printed before the end is kept before the end is known.
    fn wait(&self, host: &dyn Host) -> nix::Result<Vec<Source>> {
        let mut watched: Vec<(Source, BorrowedFd)> =
            self.pipes.open().map(|(stream, fd)| (Source::Output(stream), fd)).collect();
        watched.extend(self.socket.iter().map(|socket| (Source::Inside, socket.as_fd())));
        watched.extend(host.listen().into_iter().map(|fd| (Source::Host, fd)));
        let mut fds: Vec<PollFd> = watched.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        while let Err(error) = poll(&mut fds, self.timeout()) {
            if error != Errno::EINTR {
                return Err(error);
            }
        }
        let ready = watched.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(true));
        Ok(ready.map(|((source, _), _)| *source).collect())
    }

    fn timeout(&self) -> PollTimeout {
        let mut wait = CLOCK;
        if self.verdict.is_open() {
            wait = wait.min(Duration::from_millis(self.limits.deadline_ms.saturating_sub(now_ms())));
        }
        if let Some((at, _)) = self.alarm {
            wait = wait.min(at.saturating_duration_since(Instant::now()));
        }
        // Rounded up: half a millisecond early would be a busy loop.
        PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO)
    }

    fn read(&mut self, stream: Stream, host: &mut dyn Host) {
        let Read::Bytes(bytes) = self.pipes.read(stream) else {
            return;
        };
        if stream == Stream::Err {
            self.verdict.overhear(bytes);
        }
        let room = match self.limits.output {
            _ if self.full => 0,
            0 => usize::MAX,
            limit => usize::try_from(limit - self.kept).unwrap_or(usize::MAX),
        };
        let (kept, dropped) = bytes.split_at(bytes.len().min(room));
        let over = !dropped.is_empty();
        self.kept += kept.len() as u64;
        if !kept.is_empty()
            && let Err(error) = host.keep(stream, kept)
        {
            self.full = true;
            let message = format!("the output cannot be stored: {error}");
            self.end(Termination::OutputLimit, Some(message));
        } else if over {
            self.end(Termination::OutputLimit, None);
        }
    }

    /// One report from inside, or its end.
    fn hear(&mut self, host: &mut dyn Host) {
        let Some(mut socket) = self.socket.as_ref() else {
            return;
        };
        match wire::receive::<Report>(&mut socket) {
            Ok(Some(Report::Started { pid })) => {
                self.verdict.started();
                if let Some(pid) = pid {
                    host.born(pid);
                }
            }
            Ok(Some(report)) => {
                self.verdict.report(report);
                self.alarm = Some((Instant::now() + SWEEP, Step::Destroy));
            }
            Ok(None) | Err(_) => {
                // Every writer is dead: what the pipes hold is there already, and only a foreign process that was
                // handed one of them can keep it open.
                self.socket = None;
                let _ = self.child.kill();
                let _ = self.child.wait();
                host.gone();
                self.alarm = Some((Instant::now() + PATIENCE, Step::GiveUp));
            }
        }
    }

    fn end(&mut self, termination: Termination, message: Option<String>) {
        let open = self.verdict.is_open() && self.socket.is_some();
        // What is read after the end can still be too much; anything else comes too late then.
        if open || termination == Termination::OutputLimit {
            self.verdict.blame(termination, message);
        }
        if open {
            if !self.limits.grace.is_zero() {
                self.order(Order::Term);
            }
            self.alarm = Some((Instant::now() + self.limits.grace, Step::Kill));
        }
    }

    fn alarmed(&mut self) -> ControlFlow<()> {
        let Some((at, step)) = self.alarm else {
            return ControlFlow::Continue(());
        };
        if Instant::now() < at {
            return ControlFlow::Continue(());
        }
        let next = match step {
            Step::Kill => {
                self.order(Order::Kill);
                Step::Destroy
            }
            Step::Destroy => {
                let _ = self.child.kill();
                Step::GiveUp
            }
            Step::GiveUp => return ControlFlow::Break(()),
        };
        self.alarm = Some((Instant::now() + PATIENCE, next));
        ControlFlow::Continue(())
    }

    fn order(&mut self, order: Order) {
        if let Some(mut socket) = self.socket.as_ref()
            && io::Write::write_all(&mut socket, &[order.byte()]).is_err()
        {
            // Nobody is listening; reading finds the end of the file.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }
}

/// `rdev confine`, inside bubblewrap where that is what keeps it.
fn command(exe: &Path, sandbox: &Sandbox) -> io::Result<Command> {
    let mut command = match sandbox.kind {
        Kind::Bwrap => {
            let mut command = Command::new(mounts::program());
            command.args(mounts::arguments(exe, sandbox)?).arg("--").arg(mounts::EXE);
            command
        }
        Kind::Landlock | Kind::None => Command::new(exe),
    };
    command.arg("confine");
    Ok(command)
}

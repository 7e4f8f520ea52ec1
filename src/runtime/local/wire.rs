//! What supervisor, `rdev confine` and the process that becomes the command say to each other.
//!
//! Both hops are a socket pair on the child's fd 0, which is all that safe code can inherit: the job goes down, reports
//! come up, and the end of the file says that the other side is gone. The job is never on a command line or in an
//! environment: those are public, and a loader would obey a client's `LD_PRELOAD` before the privileges are dropped.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    process::ExitStatus,
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::spec::Program;

/// What goes down before anything is started.
pub(super) struct Job {
    pub program: Program,
    pub stdin: Vec<u8>,
}

/// What goes down afterwards, one byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// TERM to the process group.
    Term,
    /// KILL to the process group.
    Kill,
}

/// What comes up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The program runs; its process id where that means the same outside.
    Started { pid: Option<i32> },
    /// It never ran.
    Failed(String),
    /// It ran, and this is its real end.
    Ended { exit_code: Option<i32>, signal: Option<String> },
}

impl Order {
    pub fn byte(self) -> u8 {
        match self {
            Self::Term => b'T',
            Self::Kill => b'K',
        }
    }

    pub fn parse(byte: u8) -> Option<Self> {
        [Self::Term, Self::Kill].into_iter().find(|order| order.byte() == byte)
    }
}

impl From<ExitStatus> for Report {
    fn from(status: ExitStatus) -> Self {
        Self::Ended { exit_code: status.code(), signal: status.signal().map(signal_name) }
    }
}

impl Job {
    pub fn send(&self, mut to: impl Write) -> io::Result<()> {
        send(&mut to, &self.program)?;
        write_frame(&mut to, &self.stdin)
    }

    pub fn receive(mut from: impl Read) -> io::Result<Self> {
        let program = receive(&mut from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let stdin = read_frame(&mut from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Self { program, stdin })
    }
}

/// Sends one message.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    write_frame(to, &serde_json::to_vec(message)?)
}

/// Receives one message; `None` when the other side is gone.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    match read_frame(from)? {
        Some(frame) => Ok(Some(serde_json::from_slice(&frame)?)),
        None => Ok(None),
    }
}

/// The socket that this process was given as fd 0, under a number that nothing inherits.
pub(super) fn inherited_socket() -> io::Result<UnixStream> {
    let owned: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(UnixStream::from(owned))
}

/// Closes whatever else was inherited: somebody further up may have been careless, and a command would get it.
/// Only right at the start, while nothing has been opened.
pub(super) fn close_strays() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<RawFd> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // The one that the listing itself used is closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// `KILL`, `TERM`; `RTMIN+3` for those without a name.
pub(super) fn signal_name(number: i32) -> String {
    const RTMIN: i32 = 34;
    match Signal::try_from(number) {
        Ok(signal) => signal.as_str().trim_start_matches("SIG").to_owned(),
        Err(_) if number >= RTMIN => format!("RTMIN+{}", number - RTMIN),
        Err(_) => number.to_string(),
    }
}

impl fmt::Debug for Job {
    /// Without the environment and the input: both may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("program", &self.program.argv.first()).finish_non_exhaustive()
    }
}

fn write_frame(to: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(frame)
}

fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        // A socket whose peer died with unread bytes says "reset" where a pipe says "end".
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut frame = vec![0; u32::from_le_bytes(length) as usize];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_in_order_and_then_end() {
        let mut wire = Vec::new();
        let reports = [
            Report::Started { pid: Some(7) },
            Report::Ended { exit_code: None, signal: Some("KILL".into()) },
            Report::Failed("no".into()),
        ];
        for report in &reports {
            send(&mut wire, report).expect("send");
        }
        let mut from = wire.as_slice();
        for report in reports {
            assert_eq!(receive::<Report>(&mut from).expect("receive"), Some(report));
        }
        assert_eq!(receive::<Report>(&mut from).expect("receive"), None);
    }

    #[test]
    fn exit_137_is_not_a_kill() {
        assert_eq!(Report::from(ExitStatus::from_raw(137 << 8)), Report::Ended { exit_code: Some(137), signal: None });
        assert_eq!(
            Report::from(ExitStatus::from_raw(9)),
            Report::Ended { exit_code: None, signal: Some("KILL".into()) }
        );
    }

    #[test]
    fn every_signal_has_a_name() {
        assert_eq!(signal_name(15), "TERM");
        assert_eq!(signal_name(37), "RTMIN+3");
    }
}

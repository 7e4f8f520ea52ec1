//! The two pipes that a sandbox prints into.
//!
//! Large reads and a large pipe for a flood, and nothing held back for a trickle: what is there is handed on at once. No
//! line is looked for. How much of it is kept is decided elsewhere.

use std::{
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd},
    process::{Child, ChildStderr, ChildStdout},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    unistd::{Gid, Uid, fchown},
};

use super::spec::Sandbox;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

pub(super) struct Pipes {
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    buffer: Vec<u8>,
}

pub(super) enum Read<'a> {
    Bytes(&'a [u8]),
    /// Nothing this time, or never again.
    Nothing,
}

/// How much is read at once, and how much the kernel is asked to hold.
const CHUNK: usize = 256 * 1024;
const CAPACITY: i32 = 1024 * 1024;

impl Pipes {
    pub fn of(child: &mut Child, sandbox: &Sandbox) -> Self {
        let pipes = Self { out: child.stdout.take(), err: child.stderr.take(), buffer: vec![0; CHUNK] };
        for (_, pipe) in pipes.open() {
            prepare(pipe, sandbox);
        }
        pipes
    }

    pub fn any_open(&self) -> bool {
        self.out.is_some() || self.err.is_some()
    }

    pub fn open(&self) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        let out = self.out.iter().map(|pipe| (Stream::Out, pipe.as_fd()));
        out.chain(self.err.iter().map(|pipe| (Stream::Err, pipe.as_fd())))
    }

    /// What is there. Blocks when nothing is: poll first. A pipe whose writers are all gone is closed.
    pub fn read(&mut self, stream: Stream) -> Read<'_> {
        let read = match (stream, &mut self.out, &mut self.err) {
            (Stream::Out, Some(pipe), _) => pipe.read(&mut self.buffer),
            (Stream::Err, _, Some(pipe)) => pipe.read(&mut self.buffer),
            _ => return Read::Nothing,
        };
        match read {
            Ok(length @ 1..) => return Read::Bytes(&self.buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => match stream {
                Stream::Out => self.out = None,
                Stream::Err => self.err = None,
            },
        }
        Read::Nothing
    }
}

/// Makes a pipe large, and the command's own: as another user it could not open `/dev/stderr` otherwise. Neither is worth
/// failing for.
fn prepare(pipe: BorrowedFd<'_>, sandbox: &Sandbox) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(CAPACITY));
    if let Some(user) = sandbox.user
        && Uid::effective().is_root()
    {
        let _ = fchown(pipe, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    }
}

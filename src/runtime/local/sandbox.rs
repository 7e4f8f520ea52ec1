//! The server's side of the sandbox: which kind works on this machine, and short errands inside of it.
//!
//! The rule: nothing is believed that was not tried the way it will be used. What each kind does to a command is in
//! `mounts` and `allow`; commands that must outlive the server are started by `launch`.

use std::{
    io::{self, Read},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Uid;

use super::{
    allow,
    attend::{Host, Limits, attend},
    mounts,
    pipes::Stream,
    spec::{Exit, Kind, Program, Sandbox, Termination, User, now_ms},
    wire::Job,
};

/// What the operator asked for (`RDEV_LOCAL_SANDBOX`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SandboxMode {
    #[default]
    Auto,
    Bwrap,
    Landlock,
    None,
}

impl FromStr for SandboxMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "bwrap" => Ok(Self::Bwrap),
            "landlock" => Ok(Self::Landlock),
            "none" => Ok(Self::None),
            other => Err(format!("unknown sandbox {other:?}: use auto, bwrap, landlock or none")),
        }
    }
}

/// The kind that commands will get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    pub kind: Kind,
    /// For the log and `/health`: the version, or why there is no isolation.
    pub detail: String,
}

/// Tries what was asked for. `auto` takes the first that works of bubblewrap, Landlock, none.
///
/// # Errors
/// A sentence for the operator, when the kind that was asked for does not work here.
pub fn detect(mode: SandboxMode) -> Result<Detected, String> {
    match mode {
        SandboxMode::Bwrap => bwrap(),
        SandboxMode::Landlock => landlock(),
        SandboxMode::None => Ok(none("commands are not isolated: the sandbox is switched off".into())),
        SandboxMode::Auto => Ok(bwrap().or_else(|no_bwrap| {
            landlock().or_else(|no_landlock| {
                Ok::<_, String>(none(format!("commands are not isolated: {no_bwrap}; {no_landlock}")))
            })
        })?),
    }
}

/// The homes that a command has no business in, for [`Sandbox::hidden`].
#[must_use]
pub fn private_homes(home: &Path) -> Vec<PathBuf> {
    let home = if Uid::effective().is_root() { Path::new("/root") } else { home };
    let is_a_home = home.is_absolute() && home.parent().is_some() && home.is_dir();
    is_a_home.then(|| home.to_owned()).into_iter().collect()
}

/// Whom commands run as: a user of their own when the server is root, the server's own otherwise.
#[must_use]
pub fn command_user() -> Option<User> {
    Uid::effective().is_root().then_some(User::SANDBOX)
}

/// What an errand printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub exit: Exit,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

/// Runs something short in the sandbox and waits for it: at most `timeout`, and `max_output` bytes of both streams. It
/// blocks, and it ends with the thread that called it.
///
/// # Errors
/// Never for what the program did: that is in the [`Output`], as is a program that could not be started. Only when
/// `exe` is no absolute path.
pub fn run(exe: &Path, program: &Program, stdin: &[u8], timeout: Duration, max_output: u64) -> io::Result<Output> {
    if !exe.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path of the rdev program must be absolute"));
    }
    let limits = Limits {
        deadline_ms: now_ms().saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        grace: ERRAND_GRACE,
        output: max_output,
    };
    let job = Job { program: program.clone(), stdin: stdin.to_vec() };
    let mut memory = Memory::default();
    let exit = attend(exe, &job, &limits, &mut memory);
    Ok(Output { exit, out: memory.out, err: memory.err })
}

const ERRAND_GRACE: Duration = Duration::from_secs(2);
/// Far more than it takes on the slowest machine.
const PROBE: Duration = Duration::from_secs(10);

/// Keeps the output of an errand; nobody gives it orders.
#[derive(Default)]
struct Memory {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Host for Memory {
    fn keep(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            Stream::Out => self.out.extend_from_slice(bytes),
            Stream::Err => self.err.extend_from_slice(bytes),
        }
        Ok(())
    }

    fn born(&mut self, _pid: i32) {}

    /// A server has other children: what belongs to the errand dies with its parent's death signal.
    fn gone(&mut self) {}

    fn listen(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn asked(&mut self) -> Option<Termination> {
        None
    }
}

fn none(detail: String) -> Detected {
    Detected { kind: Kind::None, detail }
}

fn landlock() -> Result<Detected, String> {
    let version = allow::version().map_err(|error| format!("Landlock does not work here: {error}"))?;
    Ok(Detected { kind: Kind::Landlock, detail: format!("Landlock, ABI {version}") })
}

fn bwrap() -> Result<Detected, String> {
    if !mounts::program().exists() {
        return Err("bubblewrap is not installed: `apt-get install bubblewrap` (Debian, Ubuntu), \
                    `dnf install bubblewrap` (Fedora, RHEL) or `apk add bubblewrap` (Alpine)"
            .into());
    }
    let version = bwrap_output(Command::new(mounts::program()).arg("--version"))?;
    let program = ["/bin/true", "/usr/bin/true"].into_iter().find_map(|path| Path::new(path).canonicalize().ok());
    let program = program.ok_or("bubblewrap cannot be tried: there is no `true` on this machine")?;
    let sandbox = Sandbox { kind: Kind::Bwrap, user: command_user(), ..Sandbox::default() };
    let arguments = mounts::arguments(&program, &sandbox).map_err(|error| error.to_string())?;
    bwrap_output(Command::new(mounts::program()).args(arguments).arg("--").arg(mounts::EXE))?;
    Ok(Detected { kind: Kind::Bwrap, detail: version.trim().to_owned() })
}

fn bwrap_output(command: &mut Command) -> Result<String, String> {
    let failed = |what: &str| {
        let hint = if Uid::effective().is_root() {
            "it needs CAP_SYS_ADMIN and a container that allows mounts"
        } else {
            "it needs unprivileged user namespaces (kernel.unprivileged_userns_clone=1, and on Ubuntu \
             kernel.apparmor_restrict_unprivileged_userns=0 or a profile for bwrap)"
        };
        format!("bubblewrap is installed but does not work here: {}; {hint}", what.trim())
    };
    let mut child = command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error.to_string()))?;
    let until = Instant::now() + PROBE;
    let status = loop {
        match child.try_wait().map_err(|error| failed(&error.to_string()))? {
            Some(status) => break status,
            None if Instant::now() < until => thread::sleep(Duration::from_millis(2)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("it did not end"));
            }
        }
    };
    let read = |pipe: Option<&mut dyn Read>| {
        let mut text = String::new();
        let _ = pipe.map(|pipe| pipe.read_to_string(&mut text));
        text
    };
    if status.success() {
        return Ok(read(child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read)));
    }
    Err(failed(&read(child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_that_does_not_exist_is_answered_with_those_that_do() {
        assert_eq!("landlock".parse(), Ok(SandboxMode::Landlock));
        assert!("docker".parse::<SandboxMode>().is_err_and(|error| error.contains("auto, bwrap, landlock or none")));
    }

    #[test]
    fn none_works_everywhere_and_says_what_it_means() {
        let detected = detect(SandboxMode::None).expect("none");
        assert_eq!(detected.kind, Kind::None);
        assert!(detected.detail.contains("not isolated"));
    }
}

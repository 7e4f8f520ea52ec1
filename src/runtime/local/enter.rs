//! `rdev confine enter`: the process that becomes the command. It takes everything away from itself, then executes.
//!
//! The order matters: what needs privileges first, then the user, then what the change of user would undo (the death
//! signal), then Landlock, and only then the client's directory, environment and program. Resource limits are left as
//! the server has them, but for core dumps, which would fill the workspace.

use std::{
    fs::{self, File},
    io::{self, Seek, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use caps::CapSet;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigSet, Signal},
        stat::{Mode, umask},
    },
    unistd::{AccessFlags, Gid, Uid, dup2_stdin, faccessat, getppid, setgroups, setresgid, setresuid, setsid},
};

use super::{
    allow, passage,
    spec::{Kind, Program, Sandbox, User},
    wire::{self, Job},
};

/// Returns only when the command could not be executed; the parent has been told why.
pub(super) fn main() -> ExitCode {
    if let Ok(mut socket) = wire::inherited_socket()
        && let Ok(job) = Job::receive(&socket)
    {
        let Err(message) = enter(&job);
        let _ = wire::send(&mut socket, &message);
    }
    ExitCode::FAILURE
}

enum Never {}

fn enter(job: &Job) -> Result<Never, String> {
    let Program { argv, env, cwd, sandbox } = &job.program;
    let parent = getppid();
    give_stdin(&job.stdin).map_err(|error| format!("stdin cannot be prepared: {error}"))?;
    restrict(sandbox).map_err(|error| format!("the command cannot be confined: {error}"))?;
    // After the change of user, which clears it; and it comes too late for a parent that died before.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| error.to_string())?;
    if getppid() != parent {
        return Err("the supervisor was killed".into());
    }
    std::env::set_current_dir(cwd).map_err(|error| cannot_enter(cwd, &error))?;
    let Some((name, arguments)) = argv.split_first().filter(|(name, _)| !name.is_empty()) else {
        return Err("there is no program to run: the command is empty".into());
    };
    let program = find(name, env)?;
    let error = Command::new(program).arg0(name).args(arguments).env_clear().envs(env.iter().cloned()).exec();
    Err(cannot_execute(name, &error))
}

/// A file in memory, so that it can be read again and from any place, like one that the shell opened; or nothing.
fn give_stdin(content: &[u8]) -> io::Result<()> {
    if content.is_empty() {
        return Ok(dup2_stdin(File::open("/dev/null")?)?);
    }
    let mut file = File::from(memfd_create("stdin", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(dup2_stdin(file)?)
}

fn restrict(sandbox: &Sandbox) -> Result<(), String> {
    let failed = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    setsid().map_err(failed("setsid"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("setrlimit"))?;
    umask(Mode::from_bits_truncate(0o022));
    // The parent listens to its signals through a descriptor and has them blocked.
    SigSet::empty().thread_set_mask().map_err(failed("signal mask"))?;
    passage::open(sandbox);
    let fence = match sandbox.kind {
        Kind::Landlock => Some(allow::fence(sandbox)?),
        Kind::Bwrap | Kind::None => None,
    };
    if Uid::effective().is_root() {
        match sandbox.user {
            Some(user) => become_user(user).map_err(|error| format!("change of user: {error}"))?,
            None if sandbox.kind != Kind::None => {
                drop_capabilities().map_err(|error| error.to_string())?;
            }
            None => {}
        }
    }
    prctl::set_no_new_privs().map_err(failed("no_new_privs"))?;
    match fence {
        Some(fence) => fence.close(),
        None => Ok(()),
    }
}

fn become_user(user: User) -> Result<(), Box<dyn std::error::Error>> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    caps::clear(None, CapSet::Inheritable)?;
    // Where the container took CAP_SETPCAP away there is nothing to lower, and no_new_privs keeps it so.
    let _ = caps::clear(None, CapSet::Bounding);
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// A root without any: it owns its files and nothing else.
fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    let _ = caps::clear(None, CapSet::Bounding);
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}

/// What `execvp` would find. Looked up here, because it says "permission denied" for a program that does not exist
/// whenever any directory on the way may not be read.
fn find(name: &str, env: &[(String, String)]) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(name.into());
    }
    let path = env.iter().rev().find(|(key, _)| key == "PATH").map_or("/usr/bin:/bin", |(_, path)| path);
    let mut unusable = None;
    for candidate in std::env::split_paths(path).map(|dir| dir.join(name)) {
        if fs::metadata(&candidate).is_ok_and(|metadata| metadata.is_file()) {
            if faccessat(AT_FDCWD, &candidate, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok() {
                return Ok(candidate);
            }
            unusable.get_or_insert(candidate);
        }
    }
    Err(match unusable {
        Some(file) => format!("{name}: permission denied: {} is not executable here", file.display()),
        None => format!("{name}: no such program on the command's PATH ({path})"),
    })
}

fn cannot_enter(cwd: &Path, error: &io::Error) -> String {
    format!("the working directory {} cannot be entered: {error}", cwd.display())
}

fn cannot_execute(name: &str, error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) if Path::new(name).exists() => {
            format!("{name}: its interpreter does not exist (first line of the script, or the loader of the program)")
        }
        Some(Errno::ENOENT) => format!("{name}: no such program"),
        Some(Errno::EACCES) => {
            format!("{name}: permission denied: not an executable file, or out of the command's reach")
        }
        Some(Errno::E2BIG) => format!(
            "{name}: arguments and environment are too long for the system (one of them over 128 KiB, or all together over 2 MiB): use stdin or a file"
        ),
        _ => format!("{name}: cannot be executed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(value: &str) -> Vec<(String, String)> {
        vec![("PATH".into(), value.into())]
    }

    #[test]
    fn a_program_is_looked_up_on_the_commands_own_path() {
        assert!(find("sh", &path("/nowhere:/bin:/usr/bin")).is_ok());
        assert!(find("sh", &path("/nowhere")).is_err_and(|message| message.contains("no such program")));
        assert_eq!(find("./run", &[]), Ok(PathBuf::from("./run")));
    }

    #[test]
    fn a_file_that_is_not_executable_is_named() {
        let message = find("passwd", &path("/etc")).expect_err("not a program");
        assert!(message.contains("/etc/passwd is not executable"), "{message}");
    }

    #[test]
    fn a_missing_program_and_a_missing_interpreter_are_told_apart() {
        let missing = io::Error::from_raw_os_error(Errno::ENOENT as i32);
        assert!(cannot_execute("/no/such", &missing).contains("no such program"));
        assert!(cannot_execute("/etc/passwd", &missing).contains("interpreter"));
    }
}

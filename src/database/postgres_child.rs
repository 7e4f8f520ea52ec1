//! How the database's programs are started: by this program in a second guise, which gives up its rights, ties its life
//! to rdev's and then becomes the program. (Without `unsafe` there is nothing between fork and exec.)
//!
//! The kernel's notice of a parent's death goes by the **thread** that spawned, so one thread of the [`Launcher`] does
//! all the spawning and lives as long as it does.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::{io, process, thread};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, User, geteuid, getppid, setgroups, setresgid, setresuid};

use crate::data_dir::database_user;

/// The hidden subcommand after which [`child_main`] takes over.
pub const SUBCOMMAND: &str = "postgres-child";

/// Becomes the program that the arguments (those after [`SUBCOMMAND`]) name; returns only when that fails.
pub fn child_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Err(why) = Orders::read(args.into_iter()).and_then(Orders::obey);
    eprintln!("rdev: {why}");
    ExitCode::from(127)
}

/// Whom the database's programs run as.
#[derive(Debug, Clone)]
pub struct Account {
    /// None: as whoever rdev itself runs as.
    other: Option<User>,
}

impl Account {
    pub fn choose() -> Result<Self, String> {
        if !geteuid().is_root() {
            return Ok(Self { other: None });
        }
        let other = database_user().ok_or(
            "PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody` to run it as. Add \
             one (useradd --system postgres), start rdev as another user, or set DATABASE_URL",
        )?;
        Ok(Self { other: Some(other) })
    }

    pub fn uid(&self) -> Uid {
        self.other.as_ref().map_or_else(geteuid, |user| user.uid)
    }

    /// The owner that files for the database have to be given, where it is not rdev itself.
    pub fn other(&self) -> Option<&User> {
        self.other.as_ref()
    }

    fn to_argument(&self) -> String {
        self.other.as_ref().map_or_else(|| "-".to_owned(), |user| format!("{}:{}", user.uid, user.gid))
    }
}

/// Spawns programs from a thread of its own. When it is dropped, what it spawned gets its signal.
#[derive(Debug)]
pub struct Launcher {
    exe: PathBuf,
    account: Account,
    requests: mpsc::Sender<Request>,
}

struct Request {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

impl Launcher {
    pub fn new(exe: &Path, account: Account) -> Result<Self, String> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let serve = move || {
            for Request { mut command, reply } in inbox {
                // Whoever asked waits for the answer.
                let _ = reply.send(command.spawn());
            }
        };
        thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(serve)
            .map_err(|e| format!("cannot start a thread for the embedded PostgreSQL: {e}"))?;
        Ok(Self { exe: exe.to_owned(), account, requests })
    }

    pub fn account(&self) -> &Account {
        &self.account
    }

    /// A command that runs the program with the account's rights, in a process group of its own, so that Ctrl-C lets
    /// rdev finish with the database first; it gets this signal when rdev dies. Nothing of rdev's environment is
    /// passed on: it may hold secrets, and PostgreSQL heeds a lot of variables.
    pub fn command(&self, program: &Path, at_death: Signal) -> Command {
        let mut command = Command::new(&self.exe);
        command
            .arg(SUBCOMMAND)
            .arg(process::id().to_string())
            .arg(self.account.to_argument())
            .arg(at_death.as_str())
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null());
        command
    }

    pub fn spawn(&self, command: Command) -> Result<Child, String> {
        let (reply, answer) = mpsc::channel();
        // The thread lives as long as `requests`; should it have panicked, the answer fails.
        let _ = self.requests.send(Request { command, reply });
        let spawned = answer.recv().map_err(|_| "the thread that starts PostgreSQL is gone".to_owned())?;
        spawned.map_err(|e| format!("cannot run {} {SUBCOMMAND}: {e}", self.exe.display()))
    }
}

struct Orders {
    parent: Pid,
    identity: Option<(Uid, Gid)>,
    at_death: Signal,
    program: OsString,
    args: Vec<OsString>,
}

impl Orders {
    fn read(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut next = || args.next().ok_or_else(|| format!("{SUBCOMMAND} is for rdev's own use"));
        let text = |arg: OsString| arg.into_string().map_err(|arg| format!("{} is not text", arg.display()));
        let parent = text(next()?)?.parse().map_err(|e| format!("the parent's id: {e}"))?;
        let identity = parse_identity(&text(next()?)?)?;
        let at_death = Signal::from_str(&text(next()?)?).map_err(|e| format!("the signal: {e}"))?;
        let program = next()?;
        Ok(Self { parent: Pid::from_raw(parent), identity, at_death, program, args: args.collect() })
    }

    fn obey(self) -> Result<Infallible, String> {
        if let Some((uid, gid)) = self.identity {
            become_user(uid, gid).map_err(|e| format!("cannot become the user {uid}: {e}"))?;
        }
        umask(Mode::from_bits_truncate(0o077));
        prctl::set_no_new_privs().map_err(|e| format!("cannot give up new privileges: {e}"))?;
        // A change of user clears it, so only now; and a parent that died before now sends nothing any more.
        prctl::set_pdeathsig(self.at_death).map_err(|e| format!("cannot tie its life to rdev's: {e}"))?;
        if getppid() != self.parent {
            return Err("rdev ended before its database could start".to_owned());
        }
        let failed = Command::new(&self.program).args(&self.args).exec();
        let name = User::from_uid(geteuid()).ok().flatten().map_or_else(|| geteuid().to_string(), |user| user.name);
        Err(format!("cannot run {} as the user {name}: {failed}", self.program.display()))
    }
}

fn parse_identity(text: &str) -> Result<Option<(Uid, Gid)>, String> {
    if text == "-" {
        return Ok(None);
    }
    let ids = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    let (uid, gid) = ids.ok_or_else(|| format!("{text:?} is no uid:gid"))?;
    Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid))))
}

fn become_user(uid: Uid, gid: Gid) -> nix::Result<()> {
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Orders, String> {
        Orders::read(args.iter().map(OsString::from))
    }

    #[test]
    fn orders_are_read_as_they_are_given() {
        let orders = read(&["7", "101:104", "SIGINT", "/bin/postgres", "-D", "/x"]).expect("orders");
        assert_eq!(orders.parent, Pid::from_raw(7));
        assert_eq!(orders.identity, Some((Uid::from_raw(101), Gid::from_raw(104))));
        assert_eq!(orders.at_death, Signal::SIGINT);
        assert_eq!(orders.args, ["-D", "/x"]);
    }

    #[test]
    fn incomplete_or_garbled_orders_are_refused() {
        assert!(read(&[]).is_err());
        assert!(read(&["7", "101", "SIGINT", "/bin/postgres"]).is_err());
        assert!(read(&["7", "-", "SIGNONE", "/bin/postgres"]).is_err());
        assert!(read(&["7", "-", "SIGINT"]).is_err());
    }
}

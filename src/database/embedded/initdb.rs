//! Making a database's files, and mending what a crash in the middle of it left.
//!
//! `data` exists only when it is complete and on disk: it is made as `data.new`, and renamed. The programs that make it
//! do not survive rdev. Starting the server itself is not done here.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::User;

use super::binaries::Binaries;
use super::cluster::{Cluster, give, owned_by_another, password_file, read_password};
use super::{DATABASE, POLL, ROLE};
use crate::data_dir::{ensure_folder, fault, sync_folder, write_private};
use crate::database::postgres_child::{Account, Launcher};

const INIT_DEADLINE: Duration = Duration::from_mins(5);

impl Cluster {
    /// Makes the database where it is missing, and sees to it that its user owns it; the password.
    pub fn prepare(&self, binaries: &Binaries, launcher: &Launcher) -> Result<String, String> {
        discard(&self.dir().join("data.new"))?;
        let kept = read_password(self.dir())?;
        if self.major()?.is_none() {
            let password = kept.map_or_else(|| self.new_password(), Ok)?;
            self.initialise(binaries, launcher, &password)?;
            return Ok(password);
        }
        self.adopt(launcher.account())?;
        kept.map_or_else(|| self.reset_password(binaries, launcher), Ok)
    }

    fn initialise(&self, binaries: &Binaries, launcher: &Launcher, password: &str) -> Result<(), String> {
        let (draft, data) = (self.dir().join("data.new"), self.data());
        let made = self.init_db(binaries, launcher, password, "C.UTF-8").or_else(|why| {
            if !why.contains("locale") {
                return Err(why);
            }
            // Older systems do not have it.
            discard(&draft)?;
            self.init_db(binaries, launcher, password, "C")
        });
        // Not needed any more, and a second copy of what is secret.
        let _ = fs::remove_file(self.dir().join("password.init"));
        made?;
        self.single(binaries, launcher, &draft, &format!("create database {DATABASE}"))?;
        // Once, at the end: much faster than step by step.
        self.run(launcher, &binaries.initdb(), &["--sync-only", "-D", &text(&draft)?], None)?;
        fs::rename(&draft, &data).map_err(|e| fault("rename", &draft, &e))?;
        sync_folder(self.dir()).map_err(|e| fault("write", self.dir(), &e))
    }

    fn init_db(&self, binaries: &Binaries, launcher: &Launcher, password: &str, locale: &str) -> Result<(), String> {
        let draft = self.dir().join("data.new");
        ensure_folder(&draft, 0o700)?;
        give(&draft, launcher.account())?;
        let password_file = self.dir().join("password.init");
        write_private(&password_file, password.as_bytes()).map_err(|e| fault("write", &password_file, &e))?;
        give(&password_file, launcher.account())?;
        let (draft, pwfile) = (text(&draft)?, format!("--pwfile={}", text(&password_file)?));
        let locale = format!("--locale={locale}");
        let args = ["-D", &draft, "-U", ROLE, "-E", "UTF8", &locale, "--auth=scram-sha-256", &pwfile];
        let args = [&args[..], &["--data-checksums", "--no-sync", "--no-clean", "--no-instructions"]].concat();
        self.run(launcher, &binaries.initdb(), &args, None)
    }

    /// One statement by a server of its own that serves nobody else.
    fn single(&self, binaries: &Binaries, launcher: &Launcher, data: &Path, sql: &str) -> Result<(), String> {
        let data = text(data)?;
        let mut args = vec!["--single", "-D", data.as_str()];
        for setting in ["exit_on_error=on", "lc_messages=C", "log_checkpoints=off", "log_min_error_statement=panic"] {
            args.extend(["-c", setting]);
        }
        args.push("postgres");
        self.run(launcher, &binaries.postgres(), &args, Some(&format!("{sql}\n")))
    }

    /// Runs a program to its end. It does not survive rdev: half of its work is of no use.
    fn run(&self, launcher: &Launcher, program: &Path, args: &[&str], input: Option<&str>) -> Result<(), String> {
        let log = self.log()?;
        let seen = log.metadata().map_or(0, |found| found.len());
        let mut command = launcher.command(program, Signal::SIGKILL);
        command.args(args).stdout(log.try_clone().map_err(|e| fault("write", &self.log_file(), &e))?).stderr(log);
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = launcher.spawn(command)?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            // A program that does not read it fails, which its exit code says.
            let _ = stdin.write_all(input.as_bytes());
        }
        let outcome = wait(&mut child)?;
        if outcome.success() {
            return Ok(());
        }
        Err(format!("making the database failed: {} ({outcome}):\n{}", program.display(), self.log_tail(seen)))
    }

    fn new_password(&self) -> Result<String, String> {
        let (file, password) = (password_file(self.dir()), draw_password());
        write_private(&file, password.as_bytes()).map_err(|e| fault("write", &file, &e))?;
        Ok(password)
    }

    /// For a password file that was lost: the database first, so that a crash in between is mended the same way.
    fn reset_password(&self, binaries: &Binaries, launcher: &Launcher) -> Result<String, String> {
        let (file, password) = (password_file(self.dir()), draw_password());
        self.single(binaries, launcher, &self.data(), &format!("alter role {ROLE} password '{password}'"))?;
        write_private(&file, password.as_bytes()).map_err(|e| fault("write", &file, &e))?;
        Ok(password)
    }

    /// Gives the data to the account, where an earlier rdev ran as somebody else.
    fn adopt(&self, account: &Account) -> Result<(), String> {
        let data = self.data();
        let owner = fs::metadata(&data).map_err(|e| fault("open", &data, &e))?.uid();
        match account.other() {
            _ if owner == account.uid().as_raw() => Ok(()),
            Some(user) => give_tree(&data, user).map_err(|e| fault("change the owner of", &data, &e)),
            None => Err(owned_by_another(&data)),
        }
    }
}

fn draw_password() -> String {
    format!("{:032x}{:016x}", rand::random::<u128>(), rand::random::<u64>())
}

/// The top last: its owner says whether all of it was done.
fn give_tree(path: &Path, user: &User) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_tree(&entry?.path(), user)?;
        }
    }
    lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
}

/// Removes what an interrupted start left. One of its programs may still be writing there for a moment, so the folder
/// loses its name first, and what appears in it meanwhile is removed again.
fn discard(draft: &Path) -> Result<(), String> {
    let doomed = draft.with_file_name("data.old");
    remove(&doomed)?;
    match fs::rename(draft, &doomed) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(fault("rename", draft, &e)),
        Ok(()) => remove(&doomed),
    }
}

fn remove(folder: &Path) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir_all(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(fault("remove", folder, &e)),
            Err(_) => thread::sleep(POLL),
        }
    }
}

fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let deadline = Instant::now() + INIT_DEADLINE;
    loop {
        match child.try_wait() {
            Ok(Some(outcome)) => return Ok(outcome),
            Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
            Ok(None) => {
                // It is reaped by the next call of this loop.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("making the database took more than {} s", INIT_DEADLINE.as_secs()));
            }
            Err(e) => return Err(format!("cannot wait for a program of PostgreSQL: {e}")),
        }
    }
}

fn text(path: &Path) -> Result<String, String> {
    path.to_str().map(str::to_owned).ok_or_else(|| format!("the path {} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_differ_and_need_no_quoting() {
        let (one, other) = (draw_password(), draw_password());
        assert!(one.len() == 48 && one != other && one.bytes().all(|b| b.is_ascii_hexdigit()));
    }
}

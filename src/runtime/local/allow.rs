//! The Landlock fence: which paths a command may read and write where there is no bubblewrap.
//!
//! Landlock only adds rights: it cannot allow `/` and take a directory out again. So the rule here is to walk down the
//! way to each hidden directory and to allow what lies beside it. What appears beside it later is not seen, and the
//! directories on the way themselves cannot be listed; both err on the safe side.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::unistd::Uid;

use super::{spec::Sandbox, toolchains};

/// A fence that still has to be closed.
pub(super) struct Fence(RulesetCreated);

impl Fence {
    /// Closes it around the calling thread and all that it executes. Needs `no_new_privs`.
    pub fn close(self) -> Result<(), String> {
        let status = self.0.restrict_self().map_err(|error| error.to_string())?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err("the kernel does not enforce Landlock".into()),
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        }
    }
}

/// The newest that is asked for; an older kernel gives what it has.
const NEWEST: ABI = ABI::V9;
/// A directory with more entries than this beside a hidden one is allowed up to here.
const MOST_ENTRIES: usize = 10_000;
/// Everybody's devices, those that `--dev` of bubblewrap has too.
const DEVICES: [&str; 8] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom", "/dev/ptmx", "/dev/pts"];
/// The version that the running kernel has, or why there is none.
pub(super) fn version() -> Result<i32, String> {
    // Only a closed fence tells, and it stays closed: on a thread of its own it closes around nothing.
    let probe = std::thread::spawn(|| {
        let _ = nix::sys::prctl::set_no_new_privs();
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::MakeBlock)?
            .create()?
            .restrict_self()
    });
    match probe.join().map_err(|_| "the probe failed")?.map_err(|error: RulesetError| error.to_string())?.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } => Ok(kernel_abi.unwrap_or(effective_abi as i32)),
        LandlockStatus::NotEnabled => {
            Err("it is built into the kernel but not enabled (boot with lsm=landlock,…)".into())
        }
        LandlockStatus::NotImplemented => Err("the kernel does not have it (Linux 5.13 or newer is needed)".into()),
    }
}

/// Opens everything that the command may use.
pub(super) fn fence(sandbox: &Sandbox) -> Result<Fence, String> {
    refuse_hidden_inside_writable(sandbox)?;
    let rights = Rights::new();
    let ruleset = rights.ruleset().map_err(|error| error.to_string())?;
    let mut builder = Builder { ruleset, rights, hidden: hidden(sandbox) };
    builder.build(sandbox).map_err(|error| error.to_string())?;
    Ok(Fence(builder.ruleset))
}

/// A right on a directory is one on all that is in it.
fn refuse_hidden_inside_writable(sandbox: &Sandbox) -> Result<(), String> {
    for dir in sandbox.writable.iter().chain(&sandbox.tmp) {
        let dir = real(dir);
        if let Some(path) = sandbox.hidden.iter().map(|path| real(path)).find(|path| is_below(path, &dir)) {
            let (path, dir) = (path.display(), dir.display());
            return Err(format!("{path} cannot be hidden inside {dir}, where commands can write: keep the two apart"));
        }
    }
    Ok(())
}

fn hidden(sandbox: &Sandbox) -> Vec<PathBuf> {
    let mut hidden: Vec<PathBuf> = sandbox.hidden.iter().map(|path| real(path)).collect();
    if Uid::effective().is_root() {
        hidden.extend([real(Path::new("/root")), real(Path::new("/home"))]);
    }
    hidden.extend(sandbox.readable.iter().flat_map(|root| toolchains::secrets(&real(root))));
    hidden
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

struct Rights {
    read: BitFlags<AccessFs>,
    write: BitFlags<AccessFs>,
}

impl Rights {
    fn new() -> Self {
        Self { read: AccessFs::from_read(NEWEST), write: AccessFs::from_all(NEWEST) }
    }

    fn ruleset(&self) -> Result<RulesetCreated, RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(self.write)?
            .scope(Scope::Signal | Scope::AbstractUnixSocket)?
            .create()
    }
}

struct Builder {
    ruleset: RulesetCreated,
    rights: Rights,
    hidden: Vec<PathBuf>,
}

impl Builder {
    fn build(&mut self, sandbox: &Sandbox) -> Result<(), RulesetError> {
        for path in beside(Path::new("/"), &self.hidden) {
            self.allow(&path, self.rights.read)?;
        }
        for root in &sandbox.readable {
            // Often below something hidden: only what is hidden inside of it counts.
            let root = real(root);
            let hidden: Vec<PathBuf> = self.hidden.iter().filter(|path| is_below(path, &root)).cloned().collect();
            for path in beside(&root, &hidden) {
                self.allow(&path, self.rights.read)?;
            }
        }
        for dir in sandbox.writable.iter().chain(&sandbox.tmp) {
            self.allow(dir, self.rights.write)?;
        }
        for device in DEVICES {
            self.allow(Path::new(device), self.rights.write)?;
        }
        Ok(())
    }

    /// Nothing where there is nothing: a path that is not there, or out of reach, needs no right.
    fn allow(&mut self, path: &Path, rights: BitFlags<AccessFs>) -> Result<(), RulesetError> {
        let Ok(metadata) = fs::metadata(path) else {
            return Ok(());
        };
        let rights = if metadata.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) };
        let Ok(opened) = PathFd::new(path) else {
            return Ok(());
        };
        (&mut self.ruleset).add_rule(PathBeneath::new(opened, rights)).map(|_| ())
    }
}

/// The fewest paths that are all of `path` but what is hidden (and what only leads there).
fn beside(path: &Path, hidden: &[PathBuf]) -> Vec<PathBuf> {
    if hidden.iter().any(|hidden| path.starts_with(hidden)) {
        return Vec::new();
    }
    if !hidden.iter().any(|hidden| is_below(hidden, path)) {
        return vec![path.to_owned()];
    }
    entries(path, MOST_ENTRIES).iter().flat_map(|entry| beside(entry, hidden)).collect()
}

fn is_below(path: &Path, root: &Path) -> bool {
    path != root && path.starts_with(root)
}

/// Without symbolic links: what they point at is allowed, or not, in its own place.
fn entries(dir: &Path, most: usize) -> Vec<PathBuf> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir)?.take(most) {
            let entry = entry?;
            if !entry.file_type()?.is_symlink() {
                paths.push(entry.path());
            }
        }
        Ok(paths)
    };
    list().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_beside_the_way_to_a_hidden_directory_is_allowed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| dir.path().join(name);
        for sub in ["usr/bin", "work/x/src", "work/x/data/p1", "work/y"] {
            fs::create_dir_all(path(sub)).expect("mkdir");
        }
        std::os::unix::fs::symlink(path("work/x/data"), path("link")).expect("symlink");
        let mut allowed = beside(dir.path(), &[path("work/x/data"), path("work/x/data/p1")]);
        allowed.sort();
        assert_eq!(allowed, ["usr", "work/x/src", "work/y"].map(path));
        assert_eq!(beside(&path("work/x/data/p1"), &[path("work/x/data")]), Vec::<PathBuf>::new());
    }

    #[test]
    fn nothing_can_be_hidden_inside_what_is_writable() {
        let sandbox = Sandbox { writable: vec!["/ws".into()], hidden: vec!["/ws/.rdev".into()], ..Sandbox::default() };
        let refused = refuse_hidden_inside_writable(&sandbox);
        assert!(refused.is_err_and(|message| message.contains("keep the two apart")));
        let sandbox = Sandbox { hidden: vec!["/".into(), "/ws".into()], ..sandbox };
        assert_eq!(refuse_hidden_inside_writable(&sandbox), Ok(()));
    }
}

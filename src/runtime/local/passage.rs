//! A way to what lies behind directories that only root may pass: toolchains under `/root`, a workspace below a
//! private directory.
//!
//! Bubblewrap's mounts make that way themselves. Elsewhere the command gets a mount namespace in which each such
//! directory is empty but for what it needs. (Keeping `CAP_DAC_READ_SEARCH` for the command instead does not do:
//! `access(2)` ignores it, so that gcc does not find its linker, and it would open every other secret of the system.)
//! It needs `CAP_SYS_ADMIN`; without it, what is closed stays closed, which is safe, and the command says what it misses.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

use super::spec::{Kind, Sandbox, User};

/// The directories on the way to `path` that the command's user could not pass, inside out.
pub(super) fn closed_to<'a>(sandbox: &Sandbox, path: &'a Path) -> impl Iterator<Item = &'a Path> + use<'a> {
    let user = sandbox.user.filter(|_| Uid::effective().is_root());
    path.ancestors().skip(1).filter(move |dir| user.is_some_and(|user| !can_pass(dir, user)))
}

/// Opens the way for this process and its children, before it gives up being root.
pub(super) fn open(sandbox: &Sandbox) {
    if sandbox.kind == Kind::Bwrap {
        return;
    }
    let needed = sandbox.writable.iter().chain(&sandbox.tmp).chain(&sandbox.readable);
    let needed: Vec<(PathBuf, PathBuf)> = needed.filter_map(|path| door(sandbox, path)).collect();
    if needed.is_empty() || own_namespace().is_err() {
        return;
    }
    // Held before anything is covered, and in the new namespace: only from there can it be mounted.
    let behind: Vec<Behind> = needed.iter().filter_map(|(_, path)| Behind::hold(path)).collect();
    for door in needed.iter().map(|(door, _)| door).collect::<BTreeSet<_>>() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let _ = mount(Some("tmpfs"), door, Some("tmpfs"), flags, Some("mode=0755"));
    }
    behind.iter().for_each(Behind::show);
}

/// The outermost closed directory on the way to `path`, and the path.
fn door(sandbox: &Sandbox, path: &Path) -> Option<(PathBuf, PathBuf)> {
    let path = path.canonicalize().ok()?;
    Some((closed_to(sandbox, &path).last()?.to_owned(), path))
}

/// Something behind a closed directory, held so that it can be shown again once the directory is covered.
struct Behind {
    path: PathBuf,
    held: File,
}

impl Behind {
    fn hold(path: &Path) -> Option<Self> {
        let held = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path).ok()?;
        Some(Self { path: path.to_owned(), held })
    }

    fn show(&self) {
        let _ = DirBuilder::new().recursive(true).mode(0o755).create(&self.path);
        let source = format!("/proc/self/fd/{}", self.held.as_raw_fd());
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        let _ = mount(Some(source.as_str()), &self.path, None::<&str>, flags, None::<&str>);
    }
}

fn own_namespace() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

/// Whether `user`, without other groups, may go through this directory. True for one that does not exist.
fn can_pass(dir: &Path, user: User) -> bool {
    fs::metadata(dir).map_or(true, |dir| {
        let bit = match () {
            () if dir.uid() == user.uid => 0o100,
            () if dir.gid() == user.gid => 0o010,
            () => 0o001,
        };
        dir.mode() & bit != 0
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_private_directory_is_passed_by_its_owner_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        let uid = Uid::effective().as_raw();
        assert!(can_pass(dir.path(), User { uid, gid: 0 }));
        assert!(!can_pass(dir.path(), User { uid: uid + 1, gid: 64001 }));
    }

    #[test]
    fn nothing_is_closed_to_a_command_that_runs_as_the_server_does() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(closed_to(&Sandbox::default(), &dir.path().join("ws")).count(), 0);
    }
}

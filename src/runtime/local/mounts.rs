//! Bubblewrap's command line: what the sandbox's file system looks like.
//!
//! The rule: the system is there and read-only, what is hidden is an empty read-only directory, and what the command may
//! write or needs as a tool is mounted back at its own path, so that paths mean the same inside and outside. Mount
//! points are made only in empty directories of ours, never in one that a command could have prepared with a link.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
};

use super::{passage::closed_to, spec::Sandbox, toolchains};

/// Where this program is inside the sandbox: its own place may be hidden there.
pub(super) const EXE: &str = "/dev/.rdev";

/// Bubblewrap itself. Not looked up on the server's `PATH`: it runs with the server's rights.
pub(super) fn program() -> &'static Path {
    ["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap", "/run/current-system/sw/bin/bwrap"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or(Path::new("bwrap"))
}

/// Everything before the program to run.
pub(super) fn arguments(exe: &Path, sandbox: &Sandbox) -> io::Result<Vec<OsString>> {
    let mut arguments = Arguments::default();
    arguments.add(["--unshare-pid", "--unshare-ipc", "--die-with-parent", "--as-pid-1"]);
    arguments.add(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]);
    arguments.add(["--perms", "1777", "--tmpfs", "/dev/shm"]);
    arguments.add([OsStr::new("--ro-bind"), exe.as_os_str(), OsStr::new(EXE)]);
    arguments.places(&places(sandbox)?)?;
    Ok(arguments.0)
}

/// What is to be at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// The system as it is, read-only.
    System,
    /// Empty, and nobody can write to it.
    Empty,
    /// Empty, and everybody can write to it.
    Scratch,
    /// A toolchain.
    ReadOnly,
    /// This directory.
    Writable(PathBuf),
    /// A file, or a directory inside a toolchain, that is nobody's business.
    Secret,
}

/// In the order of their paths, so that what is below comes after what it is in.
type Places = BTreeMap<PathBuf, Place>;

fn places(sandbox: &Sandbox) -> io::Result<Places> {
    let readable = sandbox.readable.iter().filter_map(|path| path.canonicalize().ok()).collect::<Vec<_>>();
    let writable = sandbox.writable.iter().map(|path| real(path)).collect::<io::Result<Vec<_>>>()?;
    let tmp = sandbox.tmp.as_deref().map(real).transpose()?;

    let mut places = Places::from([(PathBuf::from("/"), Place::System)]);
    for path in sandbox.hidden.iter().filter_map(|path| path.canonicalize().ok()) {
        let place = if path.is_dir() { Place::Empty } else { Place::Secret };
        places.insert(path, place);
    }
    for path in readable.iter().chain(&writable).chain(&tmp) {
        // Closed on the way: empty inside, but for the way.
        places.extend(closed_to(sandbox, path).map(|dir| (dir.to_owned(), Place::Empty)));
    }
    let secrets = readable.iter().flat_map(|root| toolchains::secrets(root)).collect::<Vec<_>>();
    places.extend(readable.into_iter().map(|path| (path, Place::ReadOnly)));
    places.extend(secrets.into_iter().map(|path| (path, Place::Secret)));
    places.extend(writable.iter().chain(&tmp).map(|path| (path.clone(), Place::Writable(path.clone()))));
    let slash_tmp = slash_tmp(&places, tmp);
    places.insert("/tmp".into(), slash_tmp);
    Ok(places)
}

/// The project's own, unless something else has to be mounted below: a command could have put a link in its way.
fn slash_tmp(places: &Places, tmp: Option<PathBuf>) -> Place {
    let below = places.keys().any(|path| path.starts_with("/tmp") && path != Path::new("/tmp"));
    match tmp {
        Some(tmp) if !below => Place::Writable(tmp),
        _ => Place::Scratch,
    }
}

fn real(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add<T: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = T>) {
        self.0.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
    }

    fn places(&mut self, places: &Places) -> io::Result<()> {
        let mut empty = Vec::new();
        for (path, place) in places.iter().skip(1) {
            let (around, outer) = around(places, path);
            match (place, outer) {
                // What is around already shows it, or hides it, as it should be.
                (Place::System, _)
                | (Place::Empty | Place::Secret, Place::Empty | Place::Scratch)
                | (Place::ReadOnly, Place::System | Place::ReadOnly | Place::Writable(_)) => {}
                (Place::Writable(source), Place::Writable(outer)) if source.starts_with(outer) => {}
                (Place::Empty | Place::Secret, Place::Writable(_)) => {
                    return Err(unhideable(path, around));
                }
                (Place::Empty, _) => {
                    self.tmpfs("0755", path);
                    empty.push(path);
                }
                (Place::Scratch, _) => self.tmpfs("1777", path),
                (Place::ReadOnly, _) => {
                    self.way(around, path);
                    self.add([OsStr::new("--ro-bind"), path.as_os_str(), path.as_os_str()]);
                }
                (Place::Writable(source), _) => {
                    if matches!(outer, Place::Empty | Place::Scratch) {
                        self.way(around, path);
                    }
                    self.add([OsStr::new("--bind"), source.as_os_str(), path.as_os_str()]);
                }
                (Place::Secret, _) if path.is_dir() => self.tmpfs("0755", path),
                (Place::Secret, _) => self.add([OsStr::new("--ro-bind"), OsStr::new("/dev/null"), path.as_os_str()]),
            }
        }
        for path in empty {
            self.add([OsStr::new("--remount-ro"), path.as_os_str()]);
        }
        Ok(())
    }

    fn tmpfs(&mut self, mode: &str, path: &Path) {
        self.add([OsStr::new("--perms"), OsStr::new(mode), OsStr::new("--tmpfs"), path.as_os_str()]);
    }

    /// Bubblewrap makes the directories on the way itself, but as root for root alone.
    fn way(&mut self, from: &Path, to: &Path) {
        let between: Vec<&Path> = to.ancestors().skip(1).take_while(|dir| *dir != from).collect();
        for dir in between.into_iter().rev() {
            self.add([OsStr::new("--perms"), OsStr::new("0755"), OsStr::new("--dir"), dir.as_os_str()]);
        }
    }
}

/// The place that `path` is in.
fn around<'a>(places: &'a Places, path: &'a Path) -> (&'a Path, &'a Place) {
    path.ancestors()
        .skip(1)
        .find_map(|dir| places.get_key_value(dir))
        .map_or((Path::new("/"), &Place::System), |(dir, place)| (dir.as_path(), place))
}

fn unhideable(path: &Path, around: &Path) -> io::Error {
    let message = format!(
        "{} cannot be hidden inside {}, where commands can write: keep the two apart",
        path.display(),
        around.display()
    );
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(places: impl IntoIterator<Item = (&'static str, Place)>) -> io::Result<String> {
        let mut all = Places::from([(PathBuf::from("/"), Place::System)]);
        all.extend(places.into_iter().map(|(path, place)| (path.into(), place)));
        let mut arguments = Arguments::default();
        arguments.places(&all)?;
        let words: Vec<_> = arguments.0.iter().map(|word| word.to_string_lossy()).collect();
        Ok(words.join(" "))
    }

    fn writable(path: &str) -> Place {
        Place::Writable(path.into())
    }

    #[test]
    fn a_workspace_is_mounted_back_into_the_hidden_data_directory() {
        let line = line([("/data", Place::Empty), ("/data/p/ws", writable("/data/p/ws"))]).expect("line");
        assert_eq!(
            line,
            "--perms 0755 --tmpfs /data --perms 0755 --dir /data/p --bind /data/p/ws /data/p/ws --remount-ro /data"
        );
    }

    #[test]
    fn what_is_visible_anyway_is_not_mounted_again() {
        let places = [
            ("/opt/tool", Place::ReadOnly),
            ("/ws", writable("/ws")),
            ("/ws/sub", writable("/ws/sub")),
            ("/ws/tool", Place::ReadOnly),
        ];
        assert_eq!(line(places).expect("line"), "--bind /ws /ws");
    }

    #[test]
    fn toolchains_come_back_without_their_secrets() {
        let places =
            [("/root", Place::Empty), ("/root/.cargo", Place::ReadOnly), ("/root/.cargo/credentials", Place::Secret)];
        assert_eq!(
            line(places).expect("line"),
            "--perms 0755 --tmpfs /root --ro-bind /root/.cargo /root/.cargo --ro-bind /dev/null /root/.cargo/credentials --remount-ro /root"
        );
    }

    #[test]
    fn nothing_is_hidden_where_a_command_could_have_put_a_link() {
        let error = line([("/ws", writable("/ws")), ("/ws/.rdev", Place::Empty)]).expect_err("refused");
        assert!(error.to_string().contains("keep the two apart"));
    }

    #[test]
    fn the_projects_own_directory_is_at_tmp_unless_something_lies_below() {
        let tmp = Some(PathBuf::from("/data/p/tmp"));
        let mut places = Places::from([(PathBuf::from("/"), Place::System)]);
        assert_eq!(slash_tmp(&places, tmp.clone()), writable("/data/p/tmp"));
        assert_eq!(slash_tmp(&places, None), Place::Scratch);
        places.insert("/tmp/data".into(), Place::Empty);
        assert_eq!(slash_tmp(&places, tmp), Place::Scratch);
    }
}

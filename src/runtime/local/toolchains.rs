//! Which directories a command needs to see so that the server's tools work for it, although they lie in a home.
//!
//! The rule: a tool's own directory, never a home itself, and never a place that is known for keys. Symbolic links and
//! first lines of scripts are followed, since what is on a `PATH` is often only a name for something elsewhere.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

/// The directories below homes that hold what is on `path`, and what `extra_env` (`RUSTUP_HOME`, …) names there.
#[must_use]
pub fn toolchains(path: &str, home: &Path, extra_env: &[(String, String)]) -> Vec<PathBuf> {
    let mut roots = Roots { homes: homes(home), found: Vec::new() };
    for dir in std::env::split_paths(path).filter(|dir| dir.is_absolute() && dir.is_dir()) {
        roots.directory(&dir);
    }
    let suggested = suggested_env(path, home);
    for (_, value) in extra_env.iter().chain(&suggested) {
        let value = Path::new(value);
        if value.is_absolute() && value.is_dir() {
            roots.named(value);
        }
    }
    outermost(roots.found)
}

/// What tools would look for in the server's `HOME` and do not find in the project's: for the command's environment,
/// where it does not say so itself. A `.cargo/bin` on the path tells of a home too.
#[must_use]
pub fn suggested_env(path: &str, home: &Path) -> Vec<(String, String)> {
    let told = std::env::split_paths(path).filter(|dir| dir.ends_with(".cargo/bin"));
    let told = told.filter_map(|dir| dir.parent()?.parent().map(Path::to_owned));
    let rustup = std::iter::once(home.to_owned()).chain(told).map(|home| home.join(".rustup")).find(|dir| dir.is_dir());
    let rustup = rustup.and_then(|dir| dir.to_str().map(str::to_owned));
    rustup.map(|dir| ("RUSTUP_HOME".to_owned(), dir)).into_iter().collect()
}

/// The `PATH` for commands. pyenv's shims ask for a variable and a `HOME` that a command does not have, so the
/// version that they stand for is put in their place.
#[must_use]
pub fn command_path(path: &str) -> String {
    let entries = path.split(':').map(|entry| shimmed(Path::new(entry)).unwrap_or_else(|| entry.to_owned()));
    entries.collect::<Vec<_>>().join(":")
}

fn shimmed(entry: &Path) -> Option<String> {
    let root = entry.parent().filter(|root| entry.ends_with("shims") && root.ends_with(".pyenv"))?;
    let version = std::fs::read_to_string(root.join("version")).ok()?;
    let bin = root.join("versions").join(version.lines().next()?.trim()).join("bin");
    bin.is_dir().then(|| bin.to_str().map(str::to_owned)).flatten()
}

/// Files in a tool's directory that hold keys, those that are there.
pub(super) fn secrets(root: &Path) -> Vec<PathBuf> {
    SECRETS.iter().map(|name| root.join(name)).filter(|path| path.symlink_metadata().is_ok()).collect()
}

const SECRETS: [&str; 11] = [
    "credentials",
    "credentials.toml",
    "credentials.json",
    "credentials.db",
    "auth.json",
    ".git-credentials",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".env",
    ".ssh",
];

/// Directories of a home that are never a tool's.
const PRIVATE: [&str; 14] = [
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".config",
    ".docker",
    ".kube",
    ".claude",
    ".password-store",
    ".mozilla",
    ".pki",
    ".netrc",
    ".terraform.d",
    ".gitconfig",
];

/// Directories of a home that many tools share: only the part that is named is one tool's.
const SHARED: [&str; 3] = [".local", ".cache", ".var"];

/// More names than any directory on a `PATH` has.
const MOST_NAMES: usize = 5_000;

struct Roots {
    homes: Vec<PathBuf>,
    found: Vec<PathBuf>,
}

impl Roots {
    /// A directory with programs, and what they are names for.
    fn directory(&mut self, dir: &Path) {
        self.place(dir);
        // The system's own scripts are many, and none of them starts in a home.
        let is_system = dir.starts_with("/usr/bin") || dir.starts_with("/usr/sbin");
        for entry in fs::read_dir(dir).into_iter().flatten().flatten().take(MOST_NAMES) {
            let mut file = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                let Ok(real) = file.canonicalize() else {
                    continue;
                };
                self.file(&real);
                file = real;
            }
            if !is_system && let Some(interpreter) = interpreter(&file) {
                self.file(&interpreter);
                if let Ok(real) = interpreter.canonicalize() {
                    self.file(&real);
                }
            }
        }
    }

    /// A directory as it is called, and as it really is.
    fn place(&mut self, dir: &Path) {
        self.found.extend(self.root_of(dir));
        if let Ok(real) = dir.canonicalize() {
            self.found.extend(self.root_of(&real));
        }
    }

    fn file(&mut self, path: &Path) {
        if let Some(dir) = path.parent() {
            self.found.extend(self.root_of(dir));
        }
    }

    /// Somebody said that this is needed: as it is, unless it is a home or private.
    fn named(&mut self, dir: &Path) {
        for dir in [Some(dir.to_owned()), dir.canonicalize().ok()].into_iter().flatten() {
            if self.below_home(&dir).is_some() {
                self.found.push(dir);
            }
        }
    }

    /// The home, and the names that lead from it to `path`. `None` for a home itself and for what is private in it.
    fn below_home<'a>(&self, path: &'a Path) -> Option<(PathBuf, Vec<&'a str>)> {
        let home = self.homes.iter().filter(|home| path.starts_with(home)).max_by_key(|home| home.as_os_str().len())?;
        let names = path.strip_prefix(home).ok()?.components().map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        let names = names.collect::<Option<Vec<_>>>()?;
        let first = names.first()?;
        (!PRIVATE.contains(first)).then(|| (home.clone(), names))
    }

    /// The directory that makes the programs in `dir` work.
    fn root_of(&self, dir: &Path) -> Option<PathBuf> {
        let (home, names) = self.below_home(dir)?;
        match names.as_slice() {
            // The rest of it is registries and a token; what its programs need is in RUSTUP_HOME.
            [".cargo", "bin", ..] => Some(home.join(".cargo/bin")),
            [first, ..] if first.starts_with('.') && !SHARED.contains(first) => Some(home.join(first)),
            [first, middle @ .., "bin" | "sbin" | "shims" | "libexec"] => match (middle, SHARED.contains(first)) {
                ([], true) => Some(dir.to_owned()),
                _ => dir.parent().map(Path::to_owned),
            },
            _ => Some(dir.to_owned()),
        }
    }
}

fn homes(own: &Path) -> Vec<PathBuf> {
    let mut homes = vec![PathBuf::from("/root")];
    homes.extend(fs::read_dir("/home").into_iter().flatten().flatten().map(|entry| entry.path()));
    homes.extend([own.to_owned(), own.canonicalize().unwrap_or_default()]);
    homes.retain(|home| home.is_absolute() && home != Path::new("/"));
    homes
}

/// The program that a script's first line names.
fn interpreter(file: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    File::open(file).ok().filter(|_| file.is_file())?.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let program = line.split(u8::is_ascii_whitespace).next()?;
    let program = Path::new(std::ffi::OsStr::from_bytes(program));
    program.is_absolute().then(|| program.to_owned())
}

/// Without those that lie in another one, and without doubles.
fn outermost(mut roots: Vec<PathBuf>) -> Vec<PathBuf> {
    roots.sort();
    roots.dedup_by(|later, earlier| later.starts_with(earlier));
    roots
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(dir: &str) -> Option<PathBuf> {
        let roots = Roots { homes: vec!["/root".into(), "/home/ann".into()], found: Vec::new() };
        roots.root_of(Path::new(dir))
    }

    #[test]
    fn a_tool_has_its_own_directory() {
        for (dir, expected) in [
            ("/root/.cargo/bin", "/root/.cargo/bin"),
            ("/root/.pyenv/plugins/virtualenv/shims", "/root/.pyenv"),
            ("/home/ann/.nvm/versions/node/v22/bin", "/home/ann/.nvm"),
            ("/root/go/bin", "/root/go"),
            ("/root/bin", "/root/bin"),
            ("/root/.local/bin", "/root/.local/bin"),
            ("/root/.local/share/pipx/venvs/black/bin", "/root/.local/share/pipx/venvs/black"),
        ] {
            assert_eq!(root(dir), Some(expected.into()), "{dir}");
        }
    }

    #[test]
    fn a_home_what_is_private_in_it_and_the_system_are_not_tools() {
        for dir in ["/root", "/home/ann", "/root/.ssh", "/root/.config/x/bin", "/usr/bin", "/home"] {
            assert_eq!(root(dir), None, "{dir}");
        }
    }

    #[test]
    fn a_name_on_the_path_leads_to_what_it_stands_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = dir.path().canonicalize().expect("home");
        let venv = home.join(".local/share/venvs/tool");
        for sub in [venv.join("bin"), home.join(".local/bin"), home.join(".other/bin")] {
            fs::create_dir_all(sub).expect("mkdir");
        }
        let shebang = format!("#!{}\n", home.join(".other/bin/python").display());
        fs::write(home.join(".other/bin/python"), "").expect("write");
        fs::write(venv.join("bin/tool"), shebang).expect("write");
        symlink(venv.join("bin/tool"), home.join(".local/bin/tool")).expect("symlink");
        let path = home.join(".local/bin").to_str().expect("text").to_owned();
        let found = toolchains(&path, &home, &[]);
        assert_eq!(found, [home.join(".local/bin"), venv, home.join(".other")]);
    }

    #[test]
    fn what_the_environment_names_is_taken_but_not_a_home() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = dir.path().canonicalize().expect("home");
        fs::create_dir_all(home.join("toolchains/rust")).expect("mkdir");
        let value = |path: PathBuf| path.to_str().expect("text").to_owned();
        let env = [
            ("RUSTUP_HOME".to_owned(), value(home.join("toolchains/rust"))),
            ("OTHER".to_owned(), value(home.clone())),
        ];
        assert_eq!(toolchains("", &home, &env), [home.join("toolchains/rust")]);
    }
}

//! Finding PostgreSQL's programs on this system, of the version that the database needs, and saying how to get them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const OLDEST: u32 = 15;
const BESIDES: &str = "or set DATABASE_URL to a PostgreSQL server (15 or newer) that runs elsewhere";
/// Folders whose entries may belong to a PostgreSQL, how these begin, and where below them the programs are: Debian,
/// PGDG's RPMs, Alpine, SUSE, Homebrew on ARM, on Intel, on Linux.
const KNOWN: [(&str, &str, &str); 7] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/usr/lib", "postgresql", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql", "bin"),
];
const INSTALLERS: [(&str, &str); 7] = [
    ("apt-get", "apt-get update && apt-get install -y postgresql"),
    ("dnf", "dnf install -y postgresql-server"),
    ("yum", "yum install -y postgresql-server"),
    ("apk", "apk add postgresql"),
    ("pacman", "pacman -S --noconfirm postgresql"),
    ("zypper", "zypper install -y postgresql-server"),
    ("brew", "brew install postgresql@17"),
];

/// A folder with `initdb` and `postgres` of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// The programs in `named`, else the newest on this system; those of version `made_by` where a database exists.
    pub fn find(named: Option<&Path>, made_by: Option<u32>) -> Result<Self, String> {
        let found: Vec<Self> = match named {
            Some(dir) => vec![Self::in_named(dir)?],
            None => candidates().into_iter().filter_map(Self::in_dir).collect(),
        };
        if found.is_empty() {
            return Err(how_to_install());
        }
        let fits = |binaries: &&Self| made_by.map_or(binaries.major >= OLDEST, |major| binaries.major == major);
        let best = found.iter().filter(fits).max_by_key(|binaries| binaries.major);
        best.cloned().ok_or_else(|| made_by.map_or_else(|| too_old(&found), |major| other_version(&found, major)))
    }

    pub fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    pub fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }

    fn in_named(dir: &Path) -> Result<Self, String> {
        let absolute = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        Self::in_dir(absolute).ok_or_else(|| {
            format!(
                "RDEV_POSTGRES_BIN_DIR: there are no working programs `initdb` and `postgres` in {}. Name the folder \
                 that holds them, leave it out to have them searched, {BESIDES}",
                dir.display()
            )
        })
    }

    fn in_dir(dir: PathBuf) -> Option<Self> {
        if !dir.join("initdb").is_file() {
            return None;
        }
        let asked = Command::new(dir.join("postgres")).arg("--version").stdin(Stdio::null()).output().ok()?;
        let major = parse_major(&String::from_utf8_lossy(&asked.stdout))?;
        Some(Self { dir, major })
    }
}

fn candidates() -> BTreeSet<PathBuf> {
    // The one variable read here: where the system itself would find a program is no setting of rdev's.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = KNOWN.iter().flat_map(|(above, prefix, below)| known_in(above, prefix, below));
    // The program, not its folder: on the path there may be links.
    let programs = known.chain(std::env::split_paths(&path)).filter_map(|dir| dir.join("initdb").canonicalize().ok());
    programs.filter_map(|initdb| initdb.parent().map(Path::to_owned)).collect()
}

fn known_in(above: &str, prefix: &str, below: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(above).into_iter().flatten().flatten();
    let fitting = entries.filter(|entry| entry.file_name().as_bytes().starts_with(prefix.as_bytes()));
    fitting.map(|entry| entry.path().join(below)).collect()
}

/// From `postgres (PostgreSQL) 15.18 (Debian …)`, `17beta1` and the like.
fn parse_major(answer: &str) -> Option<u32> {
    let version = answer.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn how_to_install() -> String {
    let installer = INSTALLERS.iter().find(|(program, _)| {
        ["/usr/bin", "/bin", "/sbin", "/usr/local/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists())
    });
    let install =
        installer.map_or("install PostgreSQL 15 or newer (its server: initdb and postgres)", |(_, line)| line);
    format!(
        "DATABASE_URL is not set, and there is no PostgreSQL on this system for rdev to run its own. Either install \
         it:\n    {install}\nor name the folder that holds its `initdb` and `postgres`:\n    \
         RDEV_POSTGRES_BIN_DIR=/path/to/bin\nor use a server (15 or newer) that runs elsewhere:\n    \
         DATABASE_URL=postgres://user:password@host/database"
    )
}

fn list(found: &[Binaries]) -> String {
    let one = |binaries: &Binaries| format!("{} (in {})", binaries.major, binaries.dir.display());
    found.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn too_old(found: &[Binaries]) -> String {
    format!(
        "rdev needs PostgreSQL {OLDEST} or newer, and this system has {}: install a newer one, {BESIDES}",
        list(found)
    )
}

fn other_version(found: &[Binaries], made_by: u32) -> String {
    format!(
        "the database was made by PostgreSQL {made_by}, which cannot be opened with {}. Install PostgreSQL {made_by} \
         beside it, point RDEV_POSTGRES_BIN_DIR at its programs, bring the data over with pg_upgrade, {BESIDES}",
        list(found)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("command not found"), None);
    }

    #[test]
    fn a_database_of_another_version_is_refused_with_a_way_out() {
        let found = [Binaries { dir: "/opt/pg/bin".into(), major: 17 }];
        let text = other_version(&found, 15);
        assert!(text.contains("PostgreSQL 15") && text.contains("17 (in /opt/pg/bin)") && text.contains("pg_upgrade"));
    }

    #[test]
    fn a_named_folder_without_the_programs_is_refused_by_name() {
        let refused = Binaries::find(Some(Path::new("/nowhere")), None).expect_err("no programs");
        assert!(refused.contains("RDEV_POSTGRES_BIN_DIR") && refused.contains("/nowhere"), "{refused}");
    }
}

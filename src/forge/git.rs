//! The one place that builds a `git` command line. Every run has an environment of
//! its own (nothing of the server's but `PATH`), reads no configuration of the
//! machine or of a user, speaks no protocol that it was not allowed to, never
//! prompts, and has a deadline, a bound on its output and a process group.
//!
//! What is run lives with its callers. Names that came from outside become
//! arguments only as [`branch_ref`] or [`tag_ref`], or as a checked object id.

mod error;
mod names;
mod run;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

pub use self::{
    error::{GitError, scrub},
    names::{branch_ref, is_object_id, tag_ref},
    run::{Finished, Run, read_some},
};

/// The oldest git whose `unpack-objects` streams large blobs and whose
/// `merge-tree --write-tree` exists.
const OLDEST: (u32, u32) = (2, 38);

/// A git that was found and is new enough.
#[derive(Debug, Clone)]
pub struct Git {
    program: PathBuf,
    http_backend: PathBuf,
    path: OsString,
    version: (u32, u32),
}

impl Git {
    /// The first git on `PATH` that is new enough and can serve HTTP.
    pub async fn find() -> Result<Self, GitError> {
        Self::find_in(std::env::var_os("PATH").unwrap_or_default()).await
    }

    pub async fn find_in(path: OsString) -> Result<Self, GitError> {
        let mut reasons = Vec::new();
        for program in std::env::split_paths(&path).map(|dir| dir.join("git")) {
            if !program.is_file() {
                continue;
            }
            match Self::inspect(program.clone(), path.clone()).await {
                Ok(git) => return Ok(git),
                Err(error) => reasons.push(format!("{}: {error}", program.display())),
            }
        }
        let (major, minor) = OLDEST;
        Err(GitError::Unusable(if reasons.is_empty() {
            format!("no git on PATH: install git {major}.{minor} or newer")
        } else {
            let reasons = reasons.join("; ");
            format!("no usable git (at least {major}.{minor}): {reasons}")
        }))
    }

    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// A run of `git` inside the bare repository `repository`.
    pub fn at(&self, repository: &Path) -> Run {
        Run::new(&self.program, &self.path).env("GIT_DIR", repository).within(repository)
    }

    /// A run of `git` that belongs to no repository, with `directory` as its working directory.
    pub fn outside(&self, directory: &Path) -> Run {
        Run::new(&self.program, &self.path).env("GIT_CEILING_DIRECTORIES", "/").within(directory)
    }

    /// The CGI program, not through `git` itself: one process less to end.
    pub fn http_backend(&self, root: &Path) -> Run {
        Run::new(&self.http_backend, &self.path).within(root)
    }

    async fn inspect(program: PathBuf, path: OsString) -> Result<Self, GitError> {
        // A copy of git first on its own PATH, so that a script it starts finds the same one.
        let own = program.parent().map(Path::to_owned).unwrap_or_default();
        let dirs = std::iter::once(own).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(dirs).unwrap_or(path);
        let root = Path::new("/");
        let ask = |arg| Run::new(&program, &path).within(root).args([arg]).text();
        let version = parse_version(&ask("--version").await?)
            .ok_or_else(|| GitError::Unusable("its version cannot be read".into()))?;
        if version < OLDEST {
            return Err(GitError::Unusable(format!("version {}.{} is too old", version.0, version.1)));
        }
        let http_backend = PathBuf::from(ask("--exec-path").await?).join("git-http-backend");
        if !http_backend.is_file() {
            return Err(GitError::Unusable(
                "it comes without git-http-backend, install that too (on Alpine: git-daemon)".into(),
            ));
        }
        Ok(Self { program, http_backend, path, version })
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("git version ")?.split(['.', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_builders_are_read() {
        assert_eq!(parse_version("git version 2.47.3"), Some((2, 47)));
        assert_eq!(parse_version("git version 2.39.5 (Apple Git-154)"), Some((2, 39)));
        assert_eq!(parse_version("git version 2.48"), Some((2, 48)));
        assert_eq!(parse_version("jj 0.1"), None);
    }
}

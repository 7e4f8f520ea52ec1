//! Branches: read, made, moved and removed through git's own ref transactions. Names
//! are looked up exactly (`show-ref --verify`), never as revision expressions: git
//! would find `refs/heads/x` under other prefixes too.

use std::{fmt, time::Duration};

use super::{
    super::git::{GitError, branch_ref, is_object_id, tag_ref},
    EmbeddedHost,
};

const TRIES: u32 = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    pub name: String,
    pub sha: String,
}

/// Why a branch could not be made.
#[derive(Debug)]
pub enum BranchError {
    /// The branch, or one that git cannot hold beside it, is there.
    Exists(String),
    Git(GitError),
}

impl From<GitError> for BranchError {
    fn from(error: GitError) -> Self {
        Self::Git(error)
    }
}

impl fmt::Display for BranchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(name) => write!(f, "branch {name} exists"),
            Self::Git(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BranchError {}

impl EmbeddedHost {
    /// All branches, by name.
    pub async fn branches(&self, project: &str) -> Result<Vec<Branch>, GitError> {
        self.branches_under(project, "refs/heads/").await
    }

    /// The commit at the head of the branch.
    pub async fn branch(&self, project: &str, name: &str) -> Result<Option<String>, GitError> {
        match branch_ref(name) {
            Some(full) => self.ref_value(project, &full).await,
            None => Ok(None),
        }
    }

    /// The commit that a branch, else a tag, else a full commit id stands for.
    pub async fn resolve(&self, project: &str, from: &str) -> Result<Option<String>, GitError> {
        if let Some(sha) = self.branch(project, from).await? {
            return Ok(Some(sha));
        }
        if let Some(full) = tag_ref(from)
            && let Some(sha) = self.ref_value(project, &full).await?
        {
            return self.commit_at(project, &sha).await;
        }
        if !is_object_id(from) {
            return Ok(None);
        }
        // A tag object's id is no commit id, although git would peel it.
        Ok(self.commit_at(project, from).await?.filter(|sha| sha == from))
    }

    /// Makes the branch at `sha`. Of two at once exactly one succeeds.
    pub async fn create_branch(&self, project: &str, name: &str, sha: &str) -> Result<(), BranchError> {
        let full = branch_ref(name).ok_or_else(|| GitError::NotFound(format!("a branch of the name {name:?}")))?;
        let mut tries = 1;
        loop {
            let Err(error) = self.update_ref(project, &full, sha, &zeros(sha)).await else {
                return Ok(());
            };
            if let Some(taken) = self.in_the_way(project, name).await? {
                return Err(BranchError::Exists(taken));
            }
            if tries == TRIES || !is_contention(&error) {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(50) * tries).await;
            tries += 1;
        }
    }

    /// Removes the branch if it is still at `sha`; says whether it did.
    pub async fn delete_branch_if(&self, project: &str, name: &str, sha: &str) -> Result<bool, GitError> {
        let Some(full) = branch_ref(name) else {
            return Ok(false);
        };
        let args = ["update-ref", "-d", "--end-of-options", &full, sha];
        let removed = self.run(project)?.args(args).ok().await.map(drop);
        self.outcome(project, &full, sha, removed).await
    }

    /// Moves the branch from `old` to `new` if it is still at `old`; says whether it did.
    pub async fn move_branch_if(&self, project: &str, name: &str, old: &str, new: &str) -> Result<bool, GitError> {
        let Some(full) = branch_ref(name) else {
            return Ok(false);
        };
        let moved = self.update_ref(project, &full, new, old).await;
        self.outcome(project, &full, old, moved).await
    }

    /// Whether the branch has commits that `base` lacks.
    pub async fn is_ahead(&self, project: &str, branch: &str, base: &str) -> Result<bool, GitError> {
        let (branch, base) = self.both(project, branch, base).await?;
        let args = ["rev-list", "--max-count=1", &branch, &format!("^{base}"), "--"];
        Ok(!self.run(project)?.args(args).text().await?.is_empty())
    }

    /// How many commits the branch has that `base` lacks, and the other way round.
    pub async fn ahead_behind(&self, project: &str, branch: &str, base: &str) -> Result<(u64, u64), GitError> {
        let (branch, base) = self.both(project, branch, base).await?;
        let range = format!("{branch}...{base}");
        let args = ["rev-list", "--count", "--left-right", &range, "--"];
        let counts = self.run(project)?.args(args).text().await?;
        let mut numbers = counts.split_whitespace().map_while(|number| number.parse().ok());
        Ok((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)))
    }

    async fn both(&self, project: &str, a: &str, b: &str) -> Result<(String, String), GitError> {
        let missing = |name: &str| GitError::NotFound(format!("branch {name}"));
        let first = self.branch(project, a).await?.ok_or_else(|| missing(a))?;
        let second = self.branch(project, b).await?.ok_or_else(|| missing(b))?;
        Ok((first, second))
    }

    async fn branches_under(&self, project: &str, prefix: &str) -> Result<Vec<Branch>, GitError> {
        let format = "--format=%(objectname) %(refname:lstrip=2)";
        let args = ["for-each-ref", "--sort=refname", format, "--end-of-options", prefix];
        let listing = self.run(project)?.args(args).output_limit(64 << 20).text().await?;
        let branch = |line: &str| {
            let (sha, name) = line.split_once(' ')?;
            Some(Branch { name: name.to_owned(), sha: sha.to_owned() })
        };
        Ok(listing.lines().filter_map(branch).collect())
    }

    async fn ref_value(&self, project: &str, full: &str) -> Result<Option<String>, GitError> {
        let args = ["show-ref", "--verify", "--hash", "--end-of-options", full];
        let finished = self.run(project)?.args(args).finish().await?;
        // A missing ref is a usage error to it: 128 and "not a valid ref".
        let missing = finished.status.code() == Some(1) || finished.stderr.contains("not a valid ref");
        if missing {
            return Ok(None);
        }
        let output = finished.into_output()?;
        Ok(Some(String::from_utf8_lossy(&output).trim().to_owned()))
    }

    async fn commit_at(&self, project: &str, sha: &str) -> Result<Option<String>, GitError> {
        let peeled = format!("{sha}^{{commit}}");
        let args = ["rev-parse", "--verify", "--quiet", "--end-of-options", &peeled];
        self.run(project)?.args(args).maybe().await
    }

    async fn update_ref(&self, project: &str, full: &str, new: &str, old: &str) -> Result<(), GitError> {
        let args = ["update-ref", "--end-of-options", full, new, old];
        self.run(project)?.args(args).ok().await.map(drop)
    }

    /// A conditional change that failed, but not because the ref is elsewhere, is an error.
    async fn outcome(
        &self,
        project: &str,
        full: &str,
        expected: &str,
        result: Result<(), GitError>,
    ) -> Result<bool, GitError> {
        match result {
            Ok(()) => Ok(true),
            Err(error) => match self.ref_value(project, full).await? {
                Some(sha) if sha == expected => Err(error),
                _ => Ok(false),
            },
        }
    }

    /// The branch itself, one that is a folder of it, or one in the folder it would be.
    pub async fn in_the_way(&self, project: &str, name: &str) -> Result<Option<String>, GitError> {
        let above = name.match_indices('/').map(|(at, _)| &name[..at]);
        for candidate in std::iter::once(name).chain(above) {
            if self.branch(project, candidate).await?.is_some() {
                return Ok(Some(candidate.to_owned()));
            }
        }
        let below = self.branches_under(project, &format!("refs/heads/{name}/")).await?;
        Ok(below.into_iter().next().map(|branch| branch.name))
    }
}

fn zeros(sha: &str) -> String {
    "0".repeat(sha.len())
}

/// Another writer holds the lock of this ref or of one beside it.
pub(super) fn is_contention(error: &GitError) -> bool {
    let signs = ["Unable to create", "unable to lock", "cannot lock ref", "File exists"];
    matches!(error, GitError::Failed { stderr, .. } if signs.iter().any(|s| stderr.contains(s)))
}

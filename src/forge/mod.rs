//! The git host: where repositories live and what a credential opens in them. Services ask the
//! [`Forge`], whichever it is.
//!
//! Their tokens are what the two differ in. The embedded host opens to a hash that the database
//! knows, so the commit that takes the hash away is the token's death. Another host keeps its
//! tokens itself: one is made and removed there, and whoever ends a checkout promises that in
//! the same commit ([`Forge::keeps_tokens`]).

pub mod embedded;
pub mod git;
mod gitea;
mod process_group;

use std::path::PathBuf;

use uuid::Uuid;

pub use self::{
    embedded::{
        Branch, BranchError, EmbeddedHost, GitPath, GitPathError, Grant, Import, ImportError, Move, PushContext,
        PushRequest, hook_main,
    },
    git::GitError,
    gitea::{Account, GiteaHost, Known},
};
use crate::{
    config::GitHost,
    domain::{api_key::GitToken, breaker::Snapshot, clock::Clock},
};

/// The git host that was chosen. Cheap to clone.
#[derive(Clone)]
pub enum Forge {
    Embedded(EmbeddedHost),
    Gitea(GiteaHost),
}

/// A token that is shown once, and what is kept of it.
pub struct Credential {
    pub token: GitToken,
    pub kept: Kept,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// By which it is known when it is used.
    Hash(Vec<u8>),
    /// With which it can be seen to be dead.
    Sealed(Vec<u8>),
    /// It is known by its name.
    Elsewhere,
}

/// The same of either. What goes over the network is boxed, so that nobody carries the room for it.
macro_rules! of {
    ($self:ident, $host:ident => $asked:expr) => {
        match $self {
            Self::Embedded($host) => $asked.await,
            Self::Gitea($host) => Box::pin($asked).await,
        }
    };
}

impl Forge {
    /// Opens the one that was chosen; `root` is for repositories, `exe` is this program.
    pub async fn open(chosen: &GitHost, root: PathBuf, exe: PathBuf, clock: Clock) -> Result<Self, GitError> {
        match chosen {
            GitHost::Embedded => EmbeddedHost::open(root, exe).await.map(Self::Embedded),
            GitHost::Gitea { url, user, password, owner } => {
                let (url, user) = (url.clone(), user.clone());
                let account = Account { url, user, password: password.clone(), owner: owner.clone() };
                GiteaHost::open(account, root.join("gitea"), exe, clock).await.map(Self::Gitea)
            }
        }
    }

    /// As health shows it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Gitea(_) => "gitea",
        }
    }

    /// The host that this server is itself.
    pub fn embedded(&self) -> Option<&EmbeddedHost> {
        match self {
            Self::Embedded(host) => Some(host),
            Self::Gitea(_) => None,
        }
    }

    /// Whether tokens live at the host, and so have to be revoked there.
    pub fn keeps_tokens(&self) -> bool {
        matches!(self, Self::Gitea(_))
    }

    /// Where it is, when that is not where this server is: scheme, host and port.
    pub fn origin(&self) -> Option<&str> {
        match self {
            Self::Embedded(_) => None,
            Self::Gitea(host) => Some(host.origin()),
        }
    }

    /// What stands in a clone URL between the host and the repository.
    pub fn folder(&self) -> &str {
        match self {
            Self::Embedded(_) => "/git",
            Self::Gitea(host) => host.folder(),
        }
    }

    /// The breaker of a host that may be away.
    pub fn circuit(&self) -> Option<(String, Snapshot)> {
        match self {
            Self::Embedded(_) => None,
            Self::Gitea(host) => Some(host.circuit()),
        }
    }

    /// As it was found last; `None` before anything is known.
    pub fn is_up(&self) -> Option<bool> {
        match self {
            Self::Embedded(_) => Some(true),
            Self::Gitea(host) => host.is_up(),
        }
    }

    /// Whether the name is somebody else's already, who shares the host.
    pub async fn is_taken(&self, project: &str) -> Result<bool, GitError> {
        match self {
            Self::Embedded(_) => Ok(false),
            Self::Gitea(host) => Box::pin(host.exists(project)).await,
        }
    }

    /// A repository with one commit, which holds `readme`, on `default_branch`.
    pub async fn create(&self, project: &str, default_branch: &str, readme: &str) -> Result<(), GitError> {
        of!(self, host => host.create(project, default_branch, readme))
    }

    /// A repository made from another one; answers its default branch.
    pub async fn import(&self, project: &str, import: Import<'_>, readme: &str) -> Result<String, ImportError> {
        of!(self, host => host.import(project, import, readme))
    }

    /// Removes the repository. One that is not there is fine.
    pub async fn remove(&self, project: &str) -> Result<(), GitError> {
        of!(self, host => host.remove(project))
    }

    pub async fn exists(&self, project: &str) -> Result<bool, GitError> {
        match self {
            Self::Embedded(host) => Ok(host.exists(project).await),
            Self::Gitea(host) => Box::pin(host.exists(project)).await,
        }
    }

    /// Tells the host which branches no credential pushes to, and which are free again. The embedded
    /// host asks about each push instead.
    pub async fn protect(&self, project: &str, patterns: &[&str], free: &[&str]) -> Result<(), GitError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Gitea(host) => Box::pin(host.protect(project, patterns, free)).await,
        }
    }

    /// Packs what has piled up on this machine.
    pub async fn maintain(&self, project: &str) -> Result<(), GitError> {
        of!(self, host => host.maintain(project))
    }

    pub async fn close(&self) {
        of!(self, host => host.close());
    }

    /// All branches, by name.
    pub async fn branches(&self, project: &str) -> Result<Vec<Branch>, GitError> {
        of!(self, host => host.branches(project))
    }

    /// The commit at the head of the branch.
    pub async fn branch(&self, project: &str, name: &str) -> Result<Option<String>, GitError> {
        of!(self, host => host.branch(project, name))
    }

    /// The commit that a branch, else a tag, else a full commit id stands for.
    pub async fn resolve(&self, project: &str, from: &str) -> Result<Option<String>, GitError> {
        of!(self, host => host.resolve(project, from))
    }

    /// The branch itself, one that is a folder of it, or one in the folder it would be.
    pub async fn in_the_way(&self, project: &str, name: &str) -> Result<Option<String>, GitError> {
        of!(self, host => host.in_the_way(project, name))
    }

    /// Makes the branch at `sha`. Of two at once exactly one succeeds.
    pub async fn create_branch(&self, project: &str, name: &str, sha: &str) -> Result<(), BranchError> {
        of!(self, host => host.create_branch(project, name, sha))
    }

    /// Removes the branch if it is still at `sha`; says whether it did.
    pub async fn delete_branch_if(&self, project: &str, name: &str, sha: &str) -> Result<bool, GitError> {
        of!(self, host => host.delete_branch_if(project, name, sha))
    }

    /// Whether the commit, or one before it, is missing in the branch `base`. Not where there is no such branch.
    pub async fn has_beyond(&self, project: &str, sha: &str, base: &str) -> Result<bool, GitError> {
        of!(self, host => host.has_beyond(project, sha, base))
    }

    /// Whether the repository has a commit of this id, in a branch or not.
    pub async fn knows(&self, project: &str, sha: &str) -> Result<bool, GitError> {
        of!(self, host => host.knows(project, sha))
    }

    /// Whether `later` has the commit `earlier`.
    pub async fn has(&self, project: &str, later: &str, earlier: &str) -> Result<bool, GitError> {
        of!(self, host => host.has(project, later, earlier))
    }

    /// What `head` changes since it left `base`: the first `most` bytes, and whether there are more.
    pub async fn diff(&self, project: &str, base: &str, head: &str, most: usize) -> Result<(Vec<u8>, bool), GitError> {
        of!(self, host => host.diff(project, base, head, most))
    }

    /// A commit with both as parents, in no branch yet; `None` where they conflict.
    pub async fn join(&self, project: &str, onto: &str, head: &str, message: &str) -> Result<Option<String>, GitError> {
        of!(self, host => host.join(project, onto, head, message))
    }

    /// Moves a branch; says whether it did: not where anything is elsewhere by now.
    pub async fn move_while(&self, project: &str, what: Move<'_>) -> Result<bool, GitError> {
        of!(self, host => host.move_while(project, what))
    }

    /// A new token for a checkout, which reads and pushes. It opens nothing of the embedded host
    /// before its hash is in the database; at another host an earlier one of the checkout's is dead.
    pub async fn issue(&self, project: &str, checkout: Uuid) -> Result<Credential, GitError> {
        match self {
            Self::Embedded(_) => Ok(Credential::hashed()),
            Self::Gitea(host) => Box::pin(host.issue(project, checkout)).await,
        }
    }

    /// A new token with which a project's place reads; likewise.
    pub async fn reader(&self, project: &str) -> Result<Credential, GitError> {
        match self {
            Self::Embedded(_) => Ok(Credential::hashed()),
            Self::Gitea(host) => Box::pin(host.reader(project)).await,
        }
    }

    /// Ends the pushes under way of one whose hash is gone. Another host ends none that has begun.
    pub async fn end_pushes(&self, owner: Uuid) -> Result<(), GitError> {
        match self {
            Self::Embedded(host) => host.end_pushes(owner).await,
            Self::Gitea(_) => Ok(()),
        }
    }

    /// Nothing that the checkout's token began, or begins, moves a ref after this. Of the embedded
    /// host the hash is gone by then.
    pub async fn revoke(&self, project: &str, checkout: Uuid, sealed: Option<&[u8]>) -> Result<(), GitError> {
        match self {
            Self::Embedded(host) => host.end_pushes(checkout).await,
            Self::Gitea(host) => Box::pin(host.revoke(project, checkout, sealed)).await,
        }
    }

    /// The tokens of ours that live at the host.
    pub async fn tokens(&self) -> Result<Vec<Known>, GitError> {
        match self {
            Self::Embedded(_) => Ok(Vec::new()),
            Self::Gitea(host) => Box::pin(host.tokens()).await,
        }
    }

    /// Removes one of those.
    pub async fn forget(&self, known: &Known) -> Result<(), GitError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Gitea(host) => Box::pin(host.forget(known)).await,
        }
    }
}

impl Credential {
    fn hashed() -> Self {
        let token = GitToken::generate(&mut rand::rng());
        let kept = Kept::Hash(token.hash().to_vec());
        Self { token, kept }
    }
}

impl Kept {
    pub fn hash(&self) -> Option<&[u8]> {
        match self {
            Self::Hash(hash) => Some(hash),
            _ => None,
        }
    }

    pub fn sealed(&self) -> Option<&[u8]> {
        match self {
            Self::Sealed(sealed) => Some(sealed),
            _ => None,
        }
    }
}

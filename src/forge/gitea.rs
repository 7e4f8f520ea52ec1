//! Gitea and Forgejo as the git host. Repositories, branches and tokens are the host's; what it
//! knows is asked, never remembered. Where it runs is in no answer of ours but clone URLs.
//!
//! ```text
//! client      its HTTP API           tokens      credentials that die with a checkout
//! circuit     one breaker for all    protection  what those must not push to
//! mirror      copies, and pushes     merging     histories, and moves of a branch
//! ```

mod circuit;
mod client;
mod merging;
mod mirror;
mod protection;
mod seal;
mod tokens;

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::Method;
use serde_json::{Value, json};
use url::Url;

pub use self::tokens::Known;
use self::{
    client::Client,
    mirror::{Mirror, Push, Pushed},
    seal::Seal,
};
use super::{
    Branch, BranchError, EmbeddedHost, Import, ImportError,
    git::{GitError, branch_ref, is_object_id, tag_ref},
};
use crate::{
    domain::{breaker::Snapshot, clock::Clock},
    outward::Circuit,
};

/// For the first push of what was made or imported.
const FIRST_PUSH: Duration = Duration::from_secs(90);

/// How the host is reached, and as whom.
#[derive(Clone)]
pub struct Account {
    pub url: Url,
    pub user: String,
    pub password: String,
    /// Whose the repositories are.
    pub owner: String,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct GiteaHost(Arc<Inner>);

struct Inner {
    account: Account,
    api: Client,
    mirror: Mirror,
    circuit: Circuit,
    seal: Seal,
}

impl GiteaHost {
    /// The host need not be there yet. `root` is for the copies; `exe` is this program.
    pub async fn open(account: Account, root: PathBuf, exe: PathBuf, clock: Clock) -> Result<Self, GitError> {
        let circuit = circuit::circuit(clock);
        let Account { url, user, password, owner } = &account;
        let api = Client::new(url, user, password, circuit.clone()).map_err(GitError::Unusable)?;
        let login = client::basic(user, password).map_err(GitError::Unusable)?;
        let mirror = Mirror::open(root, exe, mirror::remote(url, owner, login), circuit.clone()).await?;
        let seal = Seal::new(password);
        Ok(Self(Arc::new(Inner { account, api, mirror, circuit, seal })))
    }

    /// A repository with one commit, which holds `readme`, on `default_branch`.
    pub async fn create(&self, project: &str, default_branch: &str, readme: &str) -> Result<(), GitError> {
        self.copies().remove(project).await?;
        self.copies().create(project, default_branch, readme).await?;
        self.publish(project, default_branch).await
    }

    /// A repository made from another one, which is fetched from here; answers its default branch.
    pub async fn import(&self, project: &str, import: Import<'_>, readme: &str) -> Result<String, ImportError> {
        if import.url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:")) {
            return Err(ImportError::UnsupportedUrl("file:// imports need the embedded git host".to_owned()));
        }
        self.copies().remove(project).await?;
        let branch = self.copies().import(project, import, readme).await?;
        self.publish(project, &branch).await?;
        Ok(branch)
    }

    /// Whether a repository of this name is there, whoever made it.
    pub async fn exists(&self, project: &str) -> Result<bool, GitError> {
        let answer = self.api().read(&["repos", self.owner(), project], &[]).await?;
        match answer.status {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(answer.unfit("looking for a repository")),
        }
    }

    /// Removes the repository and the token that read it. One that is not there is fine.
    pub async fn remove(&self, project: &str) -> Result<(), GitError> {
        let answer = self.api().remove(&["repos", self.owner(), project]).await?;
        if !matches!(answer.status, 204 | 404) {
            return Err(answer.unfit("removing a repository"));
        }
        self.forget(&Known::Reader(project.to_owned())).await?;
        self.copies().remove(project).await
    }

    /// All branches, by name.
    pub async fn branches(&self, project: &str) -> Result<Vec<Branch>, GitError> {
        let found = self.pages(&["repos", self.owner(), project, "branches"]).await?;
        let branch = |item: &Value| {
            let (name, sha) = (item["name"].as_str()?, item["commit"]["id"].as_str()?);
            Some(Branch { name: name.to_owned(), sha: sha.to_owned() })
        };
        let mut branches: Vec<Branch> = found.iter().filter_map(branch).collect();
        branches.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(branches)
    }

    /// The commit at the head of the branch.
    pub async fn branch(&self, project: &str, name: &str) -> Result<Option<String>, GitError> {
        if branch_ref(name).is_none() {
            return Ok(None);
        }
        self.commit_of(project, &["branches"], name, &["commit", "id"]).await
    }

    /// The commit that a branch, else a tag, else a full commit id stands for.
    pub async fn resolve(&self, project: &str, from: &str) -> Result<Option<String>, GitError> {
        if let Some(sha) = self.branch(project, from).await? {
            return Ok(Some(sha));
        }
        if tag_ref(from).is_some()
            && let Some(sha) = self.commit_of(project, &["tags"], from, &["commit", "sha"]).await?
        {
            return Ok(Some(sha));
        }
        if !is_object_id(from) {
            return Ok(None);
        }
        // A tag object's id is no commit id, although the host would peel it.
        Ok(self.commit_of(project, &["git", "commits"], from, &["sha"]).await?.filter(|sha| sha == from))
    }

    /// The branch itself, one that is a folder of it, or one in the folder it would be.
    pub async fn in_the_way(&self, project: &str, name: &str) -> Result<Option<String>, GitError> {
        if self.branch(project, name).await?.is_some() {
            return Ok(Some(name.to_owned()));
        }
        self.mirror().sync(project).await?;
        self.copies().in_the_way(project, name).await
    }

    /// Makes the branch at `sha`. Of two at once exactly one succeeds.
    pub async fn create_branch(&self, project: &str, name: &str, sha: &str) -> Result<(), BranchError> {
        let full = branch_ref(name).ok_or_else(|| GitError::NotFound(format!("a branch of the name {name:?}")))?;
        self.mirror().ensure(project, &[sha]).await?;
        let push = Push { specs: vec![format!("{sha}:{full}")], leases: vec![format!("{full}:")], within: None };
        match self.mirror().push(project, push).await? {
            Pushed::Done => Ok(()),
            Pushed::Stale => {
                let taken = self.in_the_way(project, name).await?;
                Err(BranchError::Exists(taken.unwrap_or_else(|| name.to_owned())))
            }
            Pushed::Declined(why) => Err(GitError::Refused(format!("making a branch: {why}")).into()),
        }
    }

    /// Removes the branch if it is still at `sha`; says whether it did.
    pub async fn delete_branch_if(&self, project: &str, name: &str, sha: &str) -> Result<bool, GitError> {
        let Some(full) = branch_ref(name) else { return Ok(false) };
        let push = Push { specs: vec![format!(":{full}")], leases: vec![format!("{full}:{sha}")], within: None };
        match self.mirror().push(project, push).await? {
            Pushed::Done => Ok(true),
            Pushed::Stale => Ok(false),
            Pushed::Declined(why) => Err(GitError::Refused(format!("removing a branch: {why}"))),
        }
    }

    /// Packs the copy when there is enough to pack.
    pub async fn maintain(&self, project: &str) -> Result<(), GitError> {
        if self.copies().exists(project).await { self.copies().maintain(project).await } else { Ok(()) }
    }

    pub async fn close(&self) {
        self.copies().close().await;
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> &str {
        &self.mirror().remote().origin
    }

    /// What stands between that and a repository's name.
    pub fn folder(&self) -> &str {
        &self.mirror().remote().folder
    }

    /// Its circuit's name, and how that stands.
    pub fn circuit(&self) -> (String, Snapshot) {
        self.0.circuit.shown()
    }

    /// As it was found last; `None` before anything is known.
    pub fn is_up(&self) -> Option<bool> {
        self.0.circuit.is_up()
    }

    /// Makes the repository on the host and pushes all that the copy holds.
    async fn publish(&self, project: &str, default_branch: &str) -> Result<(), GitError> {
        let body = json!({"name": project, "private": true, "auto_init": false, "default_branch": default_branch});
        let (user, owner) = (self.user(), self.owner());
        let own = ["user", "repos"];
        let path: &[&str] = if user == owner { &own } else { &["orgs", owner, "repos"] };
        let mut answer = self.api().send(Method::POST, path, &body).await?;
        if answer.status == 404 {
            // Not an organisation: another user's, which an administrator may make.
            answer = self.api().send(Method::POST, &["admin", "users", owner, "repos"], &body).await?;
        }
        match answer.status {
            201 => {}
            409 => return Err(GitError::Exists),
            _ => return Err(answer.unfit("making a repository")),
        }
        let specs = ["refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*"].map(str::to_owned).to_vec();
        match self.mirror().push(project, Push { specs, leases: Vec::new(), within: Some(FIRST_PUSH) }).await? {
            Pushed::Done => Ok(()),
            Pushed::Stale => Err(GitError::Refused("the new repository is not empty".to_owned())),
            Pushed::Declined(why) => Err(GitError::Refused(format!("the first push: {why}"))),
        }
    }

    /// Slashes of a name stay: the host takes the rest of the path for it.
    async fn commit_of(
        &self,
        project: &str,
        at: &[&str],
        name: &str,
        field: &[&str],
    ) -> Result<Option<String>, GitError> {
        let path: Vec<&str> =
            ["repos", self.owner(), project].into_iter().chain(at.iter().copied()).chain(name.split('/')).collect();
        let answer = self.api().read(&path, &[]).await?;
        match answer.status {
            404 => return Ok(None),
            200 => {}
            _ => return Err(answer.unfit("looking for a commit")),
        }
        let found = answer.json()?;
        let sha = field.iter().fold(&found, |value, name| &value[name]).as_str();
        sha.filter(|sha| is_object_id(sha)).map(|sha| Some(sha.to_owned())).ok_or_else(|| answer.unfit("a commit"))
    }

    fn api(&self) -> &Client {
        &self.0.api
    }

    fn mirror(&self) -> &Mirror {
        &self.0.mirror
    }

    fn copies(&self) -> &EmbeddedHost {
        self.0.mirror.copies()
    }

    fn seal(&self) -> &Seal {
        &self.0.seal
    }

    fn user(&self) -> &str {
        &self.0.account.user
    }

    fn owner(&self) -> &str {
        &self.0.account.owner
    }
}

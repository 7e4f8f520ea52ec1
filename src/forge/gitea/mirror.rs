//! A copy of each repository beside the server, for what the host's API does not offer: looking
//! at histories, joining them, and moving a branch only from where it was seen to be. The copy
//! is a cache: it is brought up to date when a commit is missing in it, made where there is
//! none, and nothing is lost with it.

use std::{
    fs::File,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use http::HeaderValue;
use url::Url;

use super::{
    super::{
        embedded::EmbeddedHost,
        git::{Finished, GitError, Run, is_object_id},
    },
    circuit,
};
use crate::outward::Circuit;

/// For what moves no more than a request may wait for.
const FETCH: Duration = Duration::from_mins(1);
/// What others do to the same copy is over soon.
const LOCK: Duration = Duration::from_mins(1);

pub struct Mirror {
    /// Holds the copies; nobody is served from it.
    copies: EmbeddedHost,
    locks: PathBuf,
    remote: Remote,
    circuit: Circuit,
}

/// Where git finds the repositories.
pub struct Remote {
    /// Scheme, host and port.
    pub origin: String,
    /// Between that and a repository's name.
    pub folder: String,
    pub login: HeaderValue,
}

/// What a push is to do, all of it or nothing.
#[derive(Default)]
pub struct Push {
    /// `<what>:<ref>`, with full names.
    pub specs: Vec<String>,
    /// `<ref>:<commit>`: it is there and nowhere else; without a commit, there is no such ref.
    pub leases: Vec<String>,
    pub within: Option<Duration>,
}

/// How a push ended that the host took notice of.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed {
    Done,
    /// A ref is not where it was thought to be.
    Stale,
    /// The host will not have it; what it said.
    Declined(String),
}

impl Remote {
    pub fn url(&self, project: &str) -> String {
        format!("{}{}/{project}.git", self.origin, self.folder)
    }

    /// A git that is let in there, and nowhere else: it follows no redirect and asks no proxy.
    fn connect(&self, run: Run) -> Run {
        let protocol = self.origin.split(':').next().unwrap_or("https");
        let login = self.login.to_str().unwrap_or_default();
        run.network(protocol)
            .config("http.proxy", "")
            .config("http.followRedirects", "false")
            .config("http.lowSpeedLimit", "1000")
            .config("http.lowSpeedTime", "20")
            .config("fetch.showForcedUpdates", "false")
            .config(&format!("http.{}/.extraHeader", self.origin), format!("Authorization: {login}"))
    }
}

impl Mirror {
    pub async fn open(root: PathBuf, exe: PathBuf, remote: Remote, circuit: Circuit) -> Result<Self, GitError> {
        let locks = root.join("run");
        let copies = EmbeddedHost::open(root, exe).await?;
        Ok(Self { copies, locks, remote, circuit })
    }

    pub fn copies(&self) -> &EmbeddedHost {
        &self.copies
    }

    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Has all these commits in the copy, as far as the host has them.
    pub async fn ensure(&self, project: &str, commits: &[&str]) -> Result<(), GitError> {
        if self.missing(project, commits).await?.is_empty() {
            return Ok(());
        }
        self.sync(project).await?;
        for commit in self.missing(project, commits).await? {
            // In no branch any more; the host may have it all the same.
            match self.fetch(project, &[&commit]).await {
                Ok(()) | Err(GitError::Failed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub async fn has(&self, project: &str, commit: &str) -> Result<bool, GitError> {
        Ok(self.missing(project, &[commit]).await?.is_empty())
    }

    /// Brings branches and tags up to date.
    pub async fn sync(&self, project: &str) -> Result<(), GitError> {
        let _alone = self.alone(project).await?;
        self.fetch(project, &["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]).await
    }

    pub async fn push(&self, project: &str, what: Push) -> Result<Pushed, GitError> {
        self.make(project).await?;
        let run =
            self.remote.connect(self.copies.run(project)?).args(["push", "--porcelain", "--atomic", "--no-verify"]);
        let run = run.args(what.leases.iter().map(|lease| format!("--force-with-lease={lease}")));
        let run = run.args(["--end-of-options", &self.remote.url(project)]).args(&what.specs);
        let turn = circuit::turn(&self.circuit)?;
        let outcome = run.deadline(what.within.unwrap_or(FETCH)).finish().await.map_err(late).and_then(pushed);
        circuit::over(&self.circuit, turn, &outcome);
        outcome
    }

    async fn fetch(&self, project: &str, specs: &[&str]) -> Result<(), GitError> {
        self.make(project).await?;
        let args = ["fetch", "--quiet", "--prune", "--no-tags", "--no-recurse-submodules", "--no-auto-maintenance"];
        let run = self.remote.connect(self.copies.run(project)?).args(args).args(["--no-write-fetch-head"]);
        let run = run.args(["--end-of-options", &self.remote.url(project)]).args(specs);
        let turn = circuit::turn(&self.circuit)?;
        let outcome = run.deadline(FETCH).finish().await.map_err(late).and_then(fetched);
        circuit::over(&self.circuit, turn, &outcome);
        outcome
    }

    /// Where there is no copy yet, an empty one.
    async fn make(&self, project: &str) -> Result<(), GitError> {
        if self.copies.exists(project).await {
            return Ok(());
        }
        match self.copies.create_empty(project).await {
            Err(GitError::Exists) => Ok(()),
            made => made,
        }
    }

    async fn missing(&self, project: &str, commits: &[&str]) -> Result<Vec<String>, GitError> {
        self.make(project).await?;
        let commits: Vec<&str> = commits.iter().copied().filter(|commit| is_object_id(commit)).collect();
        if commits.is_empty() {
            return Ok(Vec::new());
        }
        let asked = format!("{}^{{commit}}\n", commits.join("^{commit}\n"));
        let args = ["cat-file", "--batch-check=%(objectname)"];
        let told = self.copies.run(project)?.args(args).stdin(asked).text().await?;
        let absent = |line: &str| line.ends_with(" missing");
        Ok(told.lines().zip(commits).filter(|(line, _)| absent(line)).map(|(_, commit)| commit.to_owned()).collect())
    }

    /// Nobody else fetches into this copy meanwhile: git would be in its own way.
    async fn alone(&self, project: &str) -> Result<File, GitError> {
        let path = self.locks.join(format!("fetch-{project}.lock"));
        let what = || format!("the copy of {project}");
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        let file = open().map_err(|error| GitError::Io { what: what(), error })?;
        let until = Instant::now() + LOCK;
        loop {
            match file.try_lock().map_err(io::Error::from) {
                Ok(()) => return Ok(file),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(GitError::Io { what: what(), error });
                }
                Err(_) if Instant::now() > until => {
                    return Err(late(GitError::Timeout { what: what(), after: LOCK }));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Splits a base URL into what git and its credentials are told.
pub fn remote(base: &Url, owner: &str, login: HeaderValue) -> Remote {
    let folder = format!("{}/{owner}", base.path().trim_end_matches('/'));
    Remote { origin: base.origin().ascii_serialization(), folder, login }
}

/// What is waited for is the host, however it keeps us waiting.
fn late(error: GitError) -> GitError {
    match error {
        GitError::Timeout { .. } => GitError::Away(error.to_string()),
        error => error,
    }
}

fn fetched(finished: Finished) -> Result<(), GitError> {
    if finished.status.success() { Ok(()) } else { Err(trouble(finished)) }
}

/// A line `! <from>:<to> <why>` a ref that was refused, on standard output.
fn pushed(finished: Finished) -> Result<Pushed, GitError> {
    if finished.status.success() {
        return Ok(Pushed::Done);
    }
    let told = String::from_utf8_lossy(&finished.stdout);
    let refused: Vec<&str> = told.lines().filter(|line| line.starts_with('!')).collect();
    if refused.is_empty() {
        return Err(trouble(finished));
    }
    let by_rule = |line: &&str| line.contains("hook declined") || line.contains("protected");
    if !refused.iter().any(by_rule) {
        return Ok(Pushed::Stale);
    }
    let remarks = finished.stderr.lines().filter_map(|line| line.strip_prefix("remote:")).map(str::trim);
    Ok(Pushed::Declined(remarks.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")))
}

/// Why git did not get through, by what it says.
fn trouble(finished: Finished) -> GitError {
    let said = finished.stderr.clone();
    let any = |signs: &[&str]| signs.iter().any(|sign| said.contains(sign));
    if any(&["Authentication failed", "could not read Username", "returned error: 401", "returned error: 403"]) {
        return GitError::Refused(format!("git: {said}"));
    }
    if any(&["returned error: 404", "' not found"]) {
        return GitError::Refused("git: the repository is not there".to_owned());
    }
    if any(&["not our ref", "couldn't find remote ref", "unadvertised object"]) {
        return GitError::Failed { what: "git".to_owned(), stderr: said };
    }
    GitError::Away(format!("git: {said}"))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::*;

    fn ended(code: i32, stdout: &str, stderr: &str) -> Finished {
        Finished::of(ExitStatus::from_raw(code << 8), stdout, stderr)
    }

    #[test]
    fn what_git_says_of_a_push_is_told_apart() {
        let stale = "To http://h/o/p.git\n!\trefs/heads/a:refs/heads/a\t[rejected] (stale info)\nDone\n";
        assert_eq!(pushed(ended(1, stale, "error: failed to push some refs")).unwrap(), Pushed::Stale);
        let declined = "!\trefs/heads/a:refs/heads/main\t[remote rejected] (pre-receive hook declined)\n";
        let remark = "remote: \nremote: Gitea: Not allowed to push to protected branch main\nerror: failed";
        let said = "Gitea: Not allowed to push to protected branch main".to_owned();
        assert_eq!(pushed(ended(1, declined, remark)).unwrap(), Pushed::Declined(said));
        assert_eq!(pushed(ended(0, "", "")).unwrap(), Pushed::Done);
    }

    #[test]
    fn why_git_does_not_get_through_is_told_apart() {
        let trouble = |said: &str| trouble(ended(128, "", said));
        let gone = "fatal: unable to access 'http://h/': Failed to connect to h port 80: Connection refused";
        assert!(matches!(trouble(gone), GitError::Away(_)));
        let broken = "error: RPC failed; HTTP 502\nfatal: expected flush after ref listing";
        assert!(matches!(trouble(broken), GitError::Away(_)));
        assert!(matches!(trouble("fatal: Authentication failed for 'http://h/'"), GitError::Refused(_)));
        assert!(matches!(trouble("fatal: repository 'http://h/o/p.git/' not found"), GitError::Refused(_)));
        assert!(matches!(trouble("fatal: remote error: upload-pack: not our ref 1"), GitError::Failed { .. }));
    }

    #[test]
    fn a_host_below_a_path_keeps_it_out_of_the_credentials_address() {
        let base = Url::parse("https://example.com:3000/gitea/").unwrap();
        let remote = remote(&base, "team", HeaderValue::from_static("x"));
        assert_eq!((remote.origin.as_str(), remote.folder.as_str()), ("https://example.com:3000", "/gitea/team"));
        assert_eq!(remote.url("p"), "https://example.com:3000/gitea/team/p.git");
    }
}

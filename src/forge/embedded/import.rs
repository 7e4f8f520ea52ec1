//! A repository made from another one: its branches and tags, and nothing else of it
//! (no pull-request refs, no configuration, no hooks). The URL is not kept anywhere.

mod source;

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use self::source::Source;
use super::{
    super::git::{GitError, Run, is_object_id, scrub},
    EmbeddedHost,
    scratch::Scratch,
};

/// What to import, and what to take for granted.
#[derive(Clone, Copy)]
pub struct Import<'a> {
    pub url: &'a str,
    /// Left out: the source's HEAD, else `main`, else its first branch.
    pub default_branch: Option<&'a str>,
    /// Where `file://` sources may lie (`RDEV_IMPORT_ROOT`).
    pub import_root: Option<&'a Path>,
    /// The time that it may take in all.
    pub deadline: Duration,
}

#[derive(Debug)]
pub enum ImportError {
    /// Not a URL that is imported from; the text says why.
    UnsupportedUrl(String),
    /// The source has no branch of this name.
    NoSuchBranch(String),
    /// git could not clone it; its reason, without secrets and paths of ours.
    Failed(String),
    /// The repository could not be stored here.
    Git(GitError),
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnsupportedUrl(why) | Self::Failed(why) => f.write_str(why),
            Self::NoSuchBranch(name) => write!(f, "the source has no branch {name}"),
            Self::Git(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ImportError {}

impl From<GitError> for ImportError {
    fn from(error: GitError) -> Self {
        Self::Git(error)
    }
}

impl EmbeddedHost {
    /// Makes the project's repository from another one and returns its default branch. A
    /// source without any branch gives one as [`EmbeddedHost::create`] makes it, on `main`.
    pub async fn import(&self, project: &str, import: Import<'_>, readme: &str) -> Result<String, ImportError> {
        let place = self.place(project)?;
        let source = Source::parse(import.url, import.import_root).await?;
        if self.exists(project).await {
            return Err(GitError::Exists.into());
        }
        let until = Instant::now() + import.deadline;
        let head = self.ask_head(&source, until).await?;
        let scratch = Scratch::new(&self.0.root.join("tmp"))?;
        let dir = scratch.path();
        self.init(dir, "main", head.format).await?;
        self.fetch(&source, dir, until).await?;
        let picked = self.pick(dir, import.default_branch, head.branch).await?;
        let branch = picked.as_deref().unwrap_or("main");
        if picked.is_none() {
            self.first_commit(dir, branch, readme).await?;
        }
        let full = format!("refs/heads/{branch}");
        self.0.git.at(dir).args(["symbolic-ref", "HEAD", &full]).ok().await?;
        self.0.git.at(dir).args(["pack-refs", "--all"]).ok().await?;
        scratch.publish(&place)?;
        Ok(branch.to_owned())
    }

    async fn ask_head(&self, source: &Source, until: Instant) -> Result<Head, ImportError> {
        let run = source.connect(self.0.git.outside(&self.0.root), "ls-remote");
        let run = run.args(["--quiet", "--symref", "--end-of-options", &source.url, "HEAD"]);
        let listing = self.reach(run, until).await?;
        Ok(parse_head(&String::from_utf8_lossy(&listing)))
    }

    async fn fetch(&self, source: &Source, dir: &Path, until: Instant) -> Result<(), ImportError> {
        let run = source.connect(self.0.git.at(dir), "fetch").args([
            "--quiet",
            "--no-tags",
            "--no-recurse-submodules",
            "--no-auto-maintenance",
            "--no-write-fetch-head",
            "--end-of-options",
            &source.url,
            "+refs/heads/*:refs/heads/*",
            "+refs/tags/*:refs/tags/*",
        ]);
        self.reach(run, until).await.map(drop)
    }

    /// Runs what talks to the source: that it fails is the source's matter, not ours.
    async fn reach(&self, run: Run, until: Instant) -> Result<Vec<u8>, ImportError> {
        let left = until.saturating_duration_since(Instant::now());
        match run.deadline(left).ok().await {
            Ok(output) => Ok(output),
            Err(GitError::Failed { stderr, .. }) => Err(ImportError::Failed(reason(&stderr, &self.0.root))),
            Err(GitError::Timeout { .. }) => Err(ImportError::Failed("the source took too long to answer".to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    async fn pick(
        &self,
        dir: &Path,
        wanted: Option<&str>,
        head: Option<String>,
    ) -> Result<Option<String>, ImportError> {
        let args = ["for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/"];
        let names = self.0.git.at(dir).args(args).output_limit(64 << 20).text().await?;
        let has = |name: &str| names.lines().any(|line| line == name);
        if let Some(name) = wanted {
            let absent = || ImportError::NoSuchBranch(name.to_owned());
            return has(name).then(|| Some(name.to_owned())).ok_or_else(absent);
        }
        let main = || has("main").then(|| "main".to_owned());
        let first = || names.lines().next().map(str::to_owned);
        Ok(head.filter(|name| has(name)).or_else(main).or_else(first))
    }
}

struct Head {
    branch: Option<String>,
    format: &'static str,
}

/// From `ls-remote --symref <url> HEAD`, which also lists refs that end in `/HEAD`.
fn parse_head(listing: &str) -> Head {
    let branch = |line: &str| {
        let name = line.strip_prefix("ref: ")?.strip_suffix("\tHEAD")?;
        name.strip_prefix("refs/heads/").map(str::to_owned)
    };
    let id = listing.lines().filter_map(|line| line.split_once('\t')).map(|(id, _)| id);
    let sha256 = id.filter(|id| is_object_id(id)).any(|id| id.len() == 64);
    Head { branch: listing.lines().find_map(branch), format: if sha256 { "sha256" } else { "sha1" } }
}

/// The one or two lines of git's that tell most, fit for the client.
fn reason(stderr: &str, root: &Path) -> String {
    let telling = |line: &&str| ["fatal: ", "error: ", "remote: "].iter().any(|p| line.starts_with(p));
    let mut lines: Vec<&str> = stderr.lines().map(str::trim).filter(telling).take(2).collect();
    if lines.is_empty() {
        lines.extend(stderr.lines().map(str::trim).find(|line| !line.is_empty()));
    }
    let text = scrub(&lines.join("; ")).replace(&*root.to_string_lossy(), "…");
    if text.is_empty() {
        return "git gave no reason".to_owned();
    }
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_the_one_of_the_source_itself() {
        let sha = "a".repeat(40);
        let listing = format!("ref: refs/heads/dev\tHEAD\n{sha}\tHEAD\n{sha}\trefs/remotes/o/HEAD\n");
        let head = parse_head(&listing);
        assert_eq!((head.branch.as_deref(), head.format), (Some("dev"), "sha1"));
        assert_eq!(parse_head("").branch, None);
    }

    #[test]
    fn the_reason_is_short_and_names_no_path_of_ours() {
        let stderr = "warning: x\nfatal: '/srv/git/tmp/1' no https://u:p@h/\nfatal: b\nfatal: c\n";
        let text = reason(stderr, Path::new("/srv/git"));
        assert_eq!(text, "fatal: '…/tmp/1' no https://h/; fatal: b");
    }
}

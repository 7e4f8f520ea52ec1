//! Git itself, in folders of its own, with no configuration but what a test gives it.

use std::path::{Path, PathBuf};

use super::soon;

/// A clone with its work tree.
pub struct Clone {
    pub path: PathBuf,
}

/// What git said.
#[derive(Debug)]
pub struct Said {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.success, "git failed: {}{}", self.stdout, self.stderr);
        self.stdout.trim_end().to_owned()
    }

    /// That it failed, and what it told the user.
    #[track_caller]
    pub fn failed(self) -> String {
        assert!(!self.success, "git did what it must not: {}{}", self.stdout, self.stderr);
        self.stderr
    }
}

impl Clone {
    /// Clones `url` into a folder of its own under `root`.
    pub async fn of(url: &str, root: &Path) -> Self {
        let path = root.join(format!("clone-{}", uuid::Uuid::now_v7().simple()));
        git(root, &["clone", "--quiet", url, path.to_str().expect("a path of letters")]).await.ok();
        let clone = Self { path };
        clone.git(&["config", "user.name", "Test"]).await.ok();
        clone.git(&["config", "user.email", "test@example.com"]).await.ok();
        clone
    }

    pub async fn git(&self, args: &[&str]) -> Said {
        git(&self.path, args).await
    }

    /// Writes a file and commits it. Answers the commit's id.
    pub async fn commit(&self, file: &str, text: &str) -> String {
        std::fs::write(self.path.join(file), text).expect("our own folder");
        self.git(&["add", "--all"]).await.ok();
        self.git(&["commit", "--quiet", "-m", &format!("change {file}")]).await.ok();
        self.git(&["rev-parse", "HEAD"]).await.ok()
    }
}

pub async fn git(cwd: &Path, args: &[&str]) -> Said {
    let output = tokio::process::Command::new("git")
        .args(args)
        .current_dir(cwd)
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .kill_on_drop(true)
        .output();
    let output = soon("git", output).await.expect("git is installed");
    Said {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

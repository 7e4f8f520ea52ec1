//! One run of git: its environment, its settings, its pipes, its end.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{super::process_group::ProcessGroup, GitError};

const DEADLINE: Duration = Duration::from_secs(30);
const OUTPUT_LIMIT: usize = 16 << 20;
const STDERR_KEPT: usize = 16 << 10;

/// Variables that decide how the network is reached; an import needs them.
const NETWORK_VARIABLES: [&str; 11] = [
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];

/// One run of git that is being put together.
pub struct Run {
    command: Command,
    config: Vec<(String, OsString)>,
    subcommand: String,
    deadline: Duration,
    output_limit: usize,
    /// What it prints beyond the limit is passed over.
    passes_over: bool,
    stdin: Vec<u8>,
}

/// How a run ended, whatever its exit code.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    subcommand: String,
}

impl Run {
    pub(super) fn new(program: &Path, path: &OsStr) -> Self {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            // An empty list allows none; a run that needs one names it.
            .env("GIT_ALLOW_PROTOCOL", "");
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "rdev");
            command.env(format!("GIT_{role}_EMAIL"), "rdev@localhost");
        }
        let run = Self {
            command,
            config: Vec::new(),
            subcommand: String::new(),
            deadline: DEADLINE,
            output_limit: OUTPUT_LIMIT,
            passes_over: false,
            stdin: Vec::new(),
        };
        run.config("safe.directory", "*")
            .config("protocol.ext.allow", "never")
            .config("core.hooksPath", "/dev/null")
            .config("core.fsmonitor", "false")
            // Larger blobs are streamed, not held in memory, and not compared for deltas.
            .config("core.bigFileThreshold", "32m")
            .config("pack.windowMemory", "128m")
            // No gc behind our back: see `EmbeddedHost::maintain`.
            .config("gc.auto", "0")
            .config("gc.autoDetach", "false")
            .config("maintenance.auto", "false")
            .config("advice.ignoredHook", "false")
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        for arg in args {
            if self.subcommand.is_empty() {
                self.subcommand = arg.as_ref().to_string_lossy().into_owned();
            }
            self.command.arg(arg);
        }
        self
    }

    #[must_use]
    pub fn within(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// A setting for this run; it wins over the repository's own, and over an earlier one.
    #[must_use]
    pub fn config(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.config.push((key.to_owned(), value.into()));
        self
    }

    /// Lets the run reach other machines, by `protocol` alone and by the proxy of the server.
    #[must_use]
    pub fn network(self, protocol: &str) -> Self {
        NETWORK_VARIABLES
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
            .fold(self.env("GIT_ALLOW_PROTOCOL", protocol), |run, (name, value)| run.env(name, value))
    }

    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// The time after which the run is ended; 30 s unless it is set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The most bytes that the run may print; 16 MiB unless it is set.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Keeps the first bytes that the run prints and passes over the others, in place of the limit.
    #[must_use]
    pub fn keep(self, bytes: usize) -> Self {
        Self { output_limit: bytes, passes_over: true, ..self }
    }

    /// The command itself, for who connects the pipes on their own.
    pub fn into_command(mut self) -> Command {
        self.command.env("GIT_CONFIG_COUNT", self.config.len().to_string());
        for (index, (key, value)) in self.config.iter().enumerate() {
            self.command.env(format!("GIT_CONFIG_KEY_{index}"), key);
            self.command.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        self.command
    }

    /// Runs to the end. An exit code other than 0 is no error here.
    pub async fn finish(mut self) -> Result<Finished, GitError> {
        let subcommand = std::mem::take(&mut self.subcommand);
        let stdin = std::mem::take(&mut self.stdin);
        let (deadline, limit, passes_over) = (self.deadline, self.output_limit, self.passes_over);
        let io = |error| GitError::Io { what: format!("git {subcommand}"), error };
        let mut command = self.into_command();
        command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = ProcessGroup::spawn(command).map_err(io)?;
        let run = converse(&mut group, &stdin, limit, passes_over);
        match tokio::time::timeout(deadline, run).await {
            Ok(Ok((status, stdout, stderr))) => {
                let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
                Ok(Finished { status, stdout, stderr, subcommand })
            }
            Ok(Err(error)) => {
                group.end().await;
                Err(io(error))
            }
            Err(_) => {
                group.end().await;
                Err(GitError::Timeout { what: format!("git {subcommand}"), after: deadline })
            }
        }
    }

    /// Runs to the end; an exit code other than 0 is an error.
    pub async fn ok(self) -> Result<Vec<u8>, GitError> {
        self.finish().await?.into_output()
    }

    /// The first so many bytes of what it prints, and whether there are more: then it is ended.
    /// An exit code other than 0 is an error.
    pub async fn first(mut self, bytes: usize) -> Result<(Vec<u8>, bool), GitError> {
        let subcommand = std::mem::take(&mut self.subcommand);
        let deadline = self.deadline;
        let io = |error| GitError::Io { what: format!("git {subcommand}"), error };
        let mut command = self.into_command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = ProcessGroup::spawn(command).map_err(io)?;
        match tokio::time::timeout(deadline, beginning(&mut group, bytes)).await {
            Ok(Ok((stdout, None))) => {
                group.end().await;
                Ok((stdout, true))
            }
            Ok(Ok((stdout, Some((status, stderr))))) => {
                let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
                Finished { status, stdout, stderr, subcommand }.into_output().map(|stdout| (stdout, false))
            }
            Ok(Err(error)) => {
                group.end().await;
                Err(io(error))
            }
            Err(_) => {
                group.end().await;
                Err(GitError::Timeout { what: format!("git {subcommand}"), after: deadline })
            }
        }
    }

    /// The same, as text without the newline at its end.
    pub async fn text(self) -> Result<String, GitError> {
        let mut text = String::from_utf8_lossy(&self.ok().await?).into_owned();
        text.truncate(text.trim_end().len());
        Ok(text)
    }

    /// The same for the commands that exit with 1 to say "no".
    pub async fn maybe(self) -> Result<Option<String>, GitError> {
        let finished = self.finish().await?;
        if finished.status.code() == Some(1) {
            return Ok(None);
        }
        let output = finished.into_output()?;
        Ok(Some(String::from_utf8_lossy(&output).trim_end().to_owned()))
    }
}

impl Finished {
    /// One that was never run.
    #[cfg(test)]
    pub fn of(status: ExitStatus, stdout: &str, stderr: &str) -> Self {
        Self { status, stdout: stdout.into(), stderr: stderr.to_owned(), subcommand: String::new() }
    }

    pub fn into_output(self) -> Result<Vec<u8>, GitError> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        Err(GitError::Failed { what: format!("git {}", self.subcommand), stderr: self.stderr })
    }
}

type Conversation = (ExitStatus, Vec<u8>, Vec<u8>);

async fn converse(group: &mut ProcessGroup, stdin: &[u8], limit: usize, passes_over: bool) -> io::Result<Conversation> {
    let pipe = group.stdin();
    let (stdout, stderr) = (group.stdout(), group.stderr());
    let feed = async {
        if let Some(mut pipe) = pipe {
            // Who stops reading says why on stderr; the exit code tells.
            let _ = pipe.write_all(stdin).await;
        }
        Ok(())
    };
    let read = async { if passes_over { read_some(stdout, limit).await } else { read_all(stdout, limit).await } };
    let (stdout, stderr, ()) = tokio::try_join!(read, read_some(stderr, STDERR_KEPT), feed)?;
    Ok((group.wait().await?, stdout, stderr))
}

/// What is printed first; with the end where that was all.
async fn beginning(group: &mut ProcessGroup, most: usize) -> io::Result<(Vec<u8>, Option<(ExitStatus, Vec<u8>)>)> {
    let mut reading = std::pin::pin!(read_up_to(group.stdout(), most + 1));
    let mut listening = std::pin::pin!(read_some(group.stderr(), STDERR_KEPT));
    let mut heard = None;
    let mut printed = loop {
        tokio::select! {
            printed = &mut reading => break printed?,
            said = &mut listening, if heard.is_none() => heard = Some(said?),
        }
    };
    if printed.len() > most {
        printed.truncate(most);
        return Ok((printed, None));
    }
    let said = match heard {
        Some(said) => said,
        None => listening.await?,
    };
    Ok((printed, Some((group.wait().await?, said))))
}

async fn read_up_to(pipe: Option<impl AsyncRead + Unpin>, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else { return Ok(bytes) };
    pipe.take(most as u64).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

async fn read_all(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Vec<u8>> {
    let bytes = read_up_to(pipe, limit + 1).await?;
    if bytes.len() > limit {
        return Err(io::Error::other(format!("it printed more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads to the end and keeps the first `kept` bytes.
pub async fn read_some(pipe: Option<impl AsyncRead + Unpin>, kept: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(mut pipe) = pipe else {
        return Ok(bytes);
    };
    (&mut pipe).take(kept as u64).read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_prints_for_ever_is_read_as_far_as_asked() {
        let git = super::super::Git::find().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let run = |script| git.outside(dir.path()).args(["-c", &format!("alias.talk=!{script}"), "talk"]);
        let (printed, more) = run("yes").first(1001).await.unwrap();
        assert_eq!((printed.len(), more), (1001, true));
        assert_eq!(run("printf abc").first(3).await.unwrap(), (b"abc".to_vec(), false));
        let finished = run("yes | head -c 20000000; exit 1").keep(5).finish().await.unwrap();
        assert_eq!((finished.stdout.as_slice(), finished.status.code()), (&b"y\ny\ny"[..], Some(1)));
        let failed = run("echo abc; echo why >&2; exit 3").first(100).await;
        assert!(matches!(failed, Err(GitError::Failed { stderr, .. }) if stderr.contains("why")));
    }

    #[tokio::test]
    async fn a_run_that_takes_too_long_is_ended() {
        let git = super::super::Git::find().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let run = git.outside(dir.path()).args(["-c", "alias.nap=!sleep 30", "nap"]);
        let started = std::time::Instant::now();
        let result = run.deadline(Duration::from_millis(100)).ok().await;
        assert!(matches!(result, Err(GitError::Timeout { .. })));
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

//! A child with all its descendants, as one thing that can be ended. TERM comes
//! before KILL: a git that is killed outright leaves its lock files behind, and
//! those block the ref for everybody after it.

use std::{io, process::ExitStatus, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

const GRACE: Duration = Duration::from_secs(3);

/// Dropped before it was waited for, the group is ended in the background.
pub struct ProcessGroup(Option<Child>);

impl ProcessGroup {
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        command.process_group(0).spawn().map(|child| Self(Some(child)))
    }

    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child().stdin.take()
    }

    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child().stdout.take()
    }

    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child().stderr.take()
    }

    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child().wait().await
    }

    /// TERM to everyone, KILL after a while; returns when the leader is reaped.
    pub async fn end(&mut self) {
        end(self.child()).await;
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("only drop takes the child")
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else {
            return;
        };
        // Without an id it was reaped, and the number may be somebody else's.
        if child.id().is_none() {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            #[expect(clippy::disallowed_methods, reason = "the end of a group must not wait for whoever dropped it")]
            Ok(runtime) => drop(runtime.spawn(async move { end(&mut child).await })),
            Err(_) => signal(&child, Signal::SIGKILL),
        }
    }
}

async fn end(child: &mut Child) {
    signal(child, Signal::SIGTERM);
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        signal(child, Signal::SIGKILL);
        if let Err(error) = child.wait().await {
            tracing::warn!(%error, "a child could not be waited for");
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // Fails only when the group is gone already, which is what was wanted.
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

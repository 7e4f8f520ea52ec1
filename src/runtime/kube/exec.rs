//! Saying a text to a container's shell, and hearing it out. Standard input stays open until the
//! end is known: closing it would close the whole conversation where only v4 of the protocol is
//! spoken. A conversation that ends without a word on how it went is an outcome nobody knows.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    cluster::{ANSWER, Cluster, away},
    payload::{self, Payload},
    places::Container,
};
use crate::error::{Error, Kind, Result};

/// Kept of each output; the rest is read and dropped.
const KEPT: usize = 1 << 20;
/// The shell's own codes, and those of our scripts.
const LATE: i32 = 95;
const UNSUITABLE: i32 = 96;
const NO_HEAD: i32 = 97;

/// What was said back.
#[derive(Debug)]
pub struct Told {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Told {
    /// What it says to a script that was to do something and be done.
    ///
    /// # Errors
    /// `POD_UNSUITABLE`; a timeout where it came too late; internal for anything else.
    pub fn done(self, at: &Container) -> Result<Self> {
        let said = String::from_utf8_lossy(&self.stderr).trim().to_owned();
        match self.code {
            0 => Ok(self),
            LATE => Err(Error::timeout()),
            UNSUITABLE => Err(unsuitable(at, &said)),
            NO_HEAD | 127 if said.contains("head") => Err(unsuitable(at, "the program head")),
            code => Err(Error::internal(format!("a script of ours ended with {code} in pod {}: {said}", at.pod))),
        }
    }
}

/// What the pod lacks to be a place.
pub fn unsuitable(at: &Container, lacks: &str) -> Error {
    Error::new(
        Kind::Invalid,
        "POD_UNSUITABLE",
        format!("the pod {} cannot be used: its container {} lacks {lacks}", at.pod, at.name),
    )
    .detail("pod", at.pod.clone())
    .detail("container", at.name.clone())
}

/// Says the text and waits for its end, at most so long.
///
/// # Errors
/// Those of the cluster; unavailable where the outcome is not known.
pub async fn tell(cluster: &Cluster, at: &Container, payload: Payload, limit: Duration) -> Result<Told> {
    let text = payload.text();
    let mut process = cluster.exec(at, payload::argv(&text)).await?;
    let (stdin, stdout, stderr) = (process.stdin(), process.stdout(), process.stderr());
    let (Some(mut stdin), Some(stdout), Some(stderr), Some(status)) = (stdin, stdout, stderr, process.take_status())
    else {
        return Err(Error::internal("an exec without its streams"));
    };
    let say = async {
        // Whoever does not listen says why by its status.
        let _unheard = stdin.write_all(text.as_bytes()).await;
        let _unheard = stdin.flush().await;
        std::future::pending::<()>().await;
    };
    let status = async {
        let status = tokio::select! { status = status => status, () = say => None };
        status.ok_or_else(|| away(format!("the conversation with pod {} broke off", at.pod)))
    };
    // A long text takes its time on the way.
    let limit = limit + ANSWER * u32::try_from(text.len() >> 20).unwrap_or(0);
    // Where the line breaks there is no status, and both outputs stay open for ever.
    let both = async { Ok(tokio::join!(read(stdout), read(stderr))) };
    let whole = async { tokio::try_join!(status, both) };
    let Ok(told) = tokio::time::timeout(limit, whole).await else {
        return Err(away(format!("a script in pod {} was not over in {limit:?}", at.pod)));
    };
    let (status, (stdout, stderr)) = told?;
    Ok(Told { code: code(&status, at)?, stdout, stderr })
}

/// The exit code that a status tells of.
///
/// # Errors
/// `POD_UNSUITABLE` where there is no shell; unavailable for what went wrong on the way.
pub fn code(status: &Status, at: &Container) -> Result<i32> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.as_ref().and_then(|details| details.causes.as_ref());
    let code = causes.into_iter().flatten().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let message = status.message.clone().unwrap_or_default();
    if let Some(code) = code.and_then(|cause| cause.message.as_deref()?.parse().ok())
        && !is_no_shell(&message)
    {
        return Ok(code);
    }
    if is_no_shell(&message) {
        return Err(unsuitable(at, "a shell (sh)"));
    }
    Err(away(message))
}

/// As runtimes of containers say it.
fn is_no_shell(message: &str) -> bool {
    message.contains("executable file not found") || message.contains("exec: \"sh\"")
}

async fn read(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut kept, mut part) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(length @ 1..) = from.read(&mut part).await {
        let room = KEPT - kept.len();
        kept.extend_from_slice(&part[..length.min(room)]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at() -> Container {
        Container { pod: "p".into(), uid: "u".into(), name: "c".into(), id: "i".into() }
    }

    #[test]
    fn a_code_is_one_that_was_told() {
        let told = |status| code(&serde_json::from_value(status).expect("a status"), &at());
        assert_eq!(told(json!({"status": "Success"})).expect("0"), 0);
        let exit = json!({"status": "Failure", "reason": "NonZeroExitCode",
                          "details": {"causes": [{"reason": "ExitCode", "message": "137"}]}});
        assert_eq!(told(exit).expect("137"), 137);
        let broken = told(json!({"status": "Failure", "reason": "InternalError", "message": "the line broke"}));
        assert_eq!(broken.expect_err("nothing is known").kind(), Kind::Unavailable);
        let bare = json!({"status": "Failure", "message": "exec: \"sh\": executable file not found in $PATH"});
        assert_eq!(told(bare).expect_err("no shell").stable_code(), "POD_UNSUITABLE");
    }
}

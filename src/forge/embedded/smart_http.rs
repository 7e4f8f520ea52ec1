//! git's smart HTTP protocol: `git http-backend` as CGI. Bodies go through in both
//! directions in small pieces, whatever their size. A request has no deadline, but one
//! in which nothing moves is ended, and so is one whose client is gone.
//!
//! Who may read or push was decided before; this only refuses what was not granted.

use std::{fs::File, process::Stdio, sync::Arc, time::Duration};

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use tokio::{
    process::{ChildStderr, ChildStdin, ChildStdout},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use uuid::Uuid;

use super::{
    super::{git, git::GitError, process_group::ProcessGroup},
    EmbeddedHost, GitPath,
    cgi::{feed, log_errors, respond},
    hook::PushContext,
    in_flight::Running,
    io_error,
};

/// What the caller of [`EmbeddedHost::serve`] has found that the credential may do.
#[derive(Debug, Clone)]
pub enum Grant {
    Read,
    /// Each ref is put to the push check together with this.
    Push(PushContext),
}

const IDLE_LIMIT: Duration = Duration::from_mins(5);
const WAIT_FOR_A_PLACE: Duration = Duration::from_secs(20);
/// The most that one push may bring.
const PUSH_LIMIT: &str = "4g";
/// A list of wants and haves, unpacked; git holds it in memory.
const NEGOTIATION_LIMIT: &str = "64m";

impl EmbeddedHost {
    /// Answers one request of a git client. The caller has authenticated it, and has
    /// asked [`GitPath::needs_push`] what it takes. No body limit or timeout layer may
    /// lie around this.
    pub async fn serve(&self, project: &str, service_path: GitPath, grant: Grant, request: Request) -> Response {
        match self.start(project, service_path, grant, request).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        }
    }

    async fn start(&self, project: &str, path: GitPath, grant: Grant, request: Request) -> Result<Response, Refusal> {
        let context = match grant {
            _ if !self.exists(project).await => return Err(Refusal::NoRepository),
            Grant::Push(context) => Some(context),
            Grant::Read if path.needs_push() => return Err(Refusal::ReadOnly),
            Grant::Read => None,
        };
        let place = self.take_a_place().await?;
        let context = context.filter(|_| path.needs_push());
        let shared = match &context {
            Some(_) => Some(self.prepare_push(project).await.map_err(Refusal::Broken)?),
            None => None,
        };
        let (id, running) = self.0.in_flight.begin(project, context);
        // From here on a future that is dropped ends the process.
        let guard = running.stop.clone().drop_guard();
        let (head, body) = request.into_parts();
        let cgi = self.spawn(project, path, &head.headers, id, running.context.is_some());
        let (group, pipes) = cgi.inspect_err(|_| self.0.in_flight.finished(id))?;
        self.0.tasks.spawn(self.clone().supervise(group, id, running.clone(), (place, shared)));
        self.0.tasks.spawn(feed(body, pipes.stdin, running.clone()));
        self.0.tasks.spawn(log_errors(pipes.stderr, project.to_owned(), path));
        respond(pipes.stdout, running, guard).await.ok_or_else(|| {
            let what = "git http-backend".to_owned();
            let stderr = "it answered with no header".to_owned();
            Refusal::Broken(GitError::Failed { what, stderr })
        })
    }

    async fn prepare_push(&self, project: &str) -> Result<File, GitError> {
        self.0.hook.ready()?;
        let shared = self.0.in_flight.share(project).await;
        shared.map_err(|error| io_error("the lock of a push", error))
    }

    async fn take_a_place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        match timeout(WAIT_FOR_A_PLACE, self.0.places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Refusal::Busy),
        }
    }

    fn spawn(
        &self,
        project: &str,
        path: GitPath,
        headers: &HeaderMap,
        id: Uuid,
        push: bool,
    ) -> Result<(ProcessGroup, Pipes), Refusal> {
        let (method, query) = match path {
            GitPath::Advertise(service) => ("GET", format!("service={}", service.name())),
            GitPath::Exchange(_) => ("POST", String::new()),
        };
        let mut run = (self.0.git)
            .http_backend(&self.0.root)
            .env("GIT_PROJECT_ROOT", &self.0.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("GIT_HTTP_MAX_REQUEST_BUFFER", NEGOTIATION_LIMIT)
            .env("PATH_INFO", format!("/{project}.git/{}", path.path_info()))
            .env("REQUEST_METHOD", method)
            .env("QUERY_STRING", query)
            .config("http.getanyfile", "false")
            .config("http.receivepack", if push { "true" } else { "false" })
            .config("uploadpack.allowFilter", "true")
            .config("uploadpack.allowTipSHA1InWant", "true")
            .config("uploadpack.allowReachableSHA1InWant", "true");
        if push {
            run = for_push(run).config("core.hooksPath", self.0.hook.hooks());
            for (name, value) in self.0.hook.environment(id) {
                run = run.env(name, value);
            }
        }
        for (name, value) in passed_on(headers)? {
            run = run.env(name, value);
        }
        let mut command = run.into_command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let broken = |error| Refusal::Broken(GitError::Io { what: "git http-backend".into(), error });
        let mut group = ProcessGroup::spawn(command).map_err(broken)?;
        let pipes = (group.stdin(), group.stdout(), group.stderr());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(broken(std::io::Error::other("it has no pipes")));
        };
        Ok((group, Pipes { stdin, stdout, stderr }))
    }

    /// Owns the process until it has ended, one way or another.
    async fn supervise(
        self,
        mut group: ProcessGroup,
        id: Uuid,
        running: Arc<Running>,
        held: (OwnedSemaphorePermit, Option<File>),
    ) {
        let mut clean = false;
        tokio::select! {
            ended = group.wait() => match ended {
                Ok(status) => clean = status.success(),
                Err(error) => tracing::warn!(%error, "git http-backend could not be waited for"),
            },
            () = running.stop.cancelled() => group.end().await,
            () = running.idle(IDLE_LIMIT) => {
                tracing::info!(project.id = running.project, "ended a git request: nothing moved");
                group.end().await;
            }
        }
        let pushed = held.1.is_some();
        drop(held);
        if pushed && !clean {
            self.tidy(&running.project).await;
        }
        self.0.in_flight.finished(id);
    }
}

struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

/// Why a request is not served; the text is what the client sees.
enum Refusal {
    NoRepository,
    ReadOnly,
    Encoding,
    Busy,
    Broken(GitError),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NoRepository => (StatusCode::NOT_FOUND, "repository not found\n"),
            Self::ReadOnly => (StatusCode::FORBIDDEN, "this credential may not push\n"),
            Self::Encoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send it plain or gzip\n"),
            Self::Busy => {
                let text = "too many clones and pushes at once, try again shortly\n";
                let wait = [(RETRY_AFTER, "10")];
                return (StatusCode::SERVICE_UNAVAILABLE, wait, text).into_response();
            }
            Self::Broken(error) => {
                tracing::error!(%error, "a git request could not be served");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")
            }
        };
        (status, text).into_response()
    }
}

/// Settings of `receive-pack`. Objects are checked as they come in; the three defects
/// that are let through are in old public histories and harm nobody.
fn for_push(run: git::Run) -> git::Run {
    run.env("REMOTE_USER", "rdev")
        .config("receive.maxInputSize", PUSH_LIMIT)
        .config("receive.denyNonFastForwards", "false")
        .config("receive.denyDeletes", "false")
        .config("receive.denyDeleteCurrent", "ignore")
        .config("receive.autogc", "false")
        .config("receive.updateServerInfo", "false")
        .config("receive.fsckObjects", "true")
        .config("receive.fsck.badTimezone", "ignore")
        .config("receive.fsck.missingSpaceBeforeDate", "ignore")
        .config("receive.fsck.zeroPaddedFilemode", "ignore")
}

/// The request's headers that CGI passes on. The length is not among them: with it
/// git copies the body once more, without it reads to the end, which we tell it.
fn passed_on(headers: &HeaderMap) -> Result<Vec<(&'static str, String)>, Refusal> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let mut variables = Vec::new();
    match text(CONTENT_ENCODING) {
        None | Some("identity") => {}
        Some("gzip" | "x-gzip") => variables.push(("HTTP_CONTENT_ENCODING", "gzip".to_owned())),
        Some(_) => return Err(Refusal::Encoding),
    }
    if let Some(kind) = text(CONTENT_TYPE).filter(|kind| kind.len() <= 100) {
        variables.push(("CONTENT_TYPE", kind.to_owned()));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "=:.-_".contains(c);
    if let Some(protocol) = text(HeaderName::from_static("git-protocol"))
        && protocol.len() <= 100
        && protocol.chars().all(plain)
    {
        variables.push(("GIT_PROTOCOL", protocol.to_owned()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_encoding_is_refused_and_an_odd_protocol_left_out() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, axum::http::HeaderValue::from_static("br"));
        assert!(matches!(passed_on(&headers), Err(Refusal::Encoding)));
        headers.insert(CONTENT_ENCODING, axum::http::HeaderValue::from_static("gzip"));
        headers.insert("git-protocol", axum::http::HeaderValue::from_static("version=2; x"));
        let passed = passed_on(&headers).ok().unwrap();
        assert_eq!(passed, [("HTTP_CONTENT_ENCODING", "gzip".to_owned())]);
    }
}

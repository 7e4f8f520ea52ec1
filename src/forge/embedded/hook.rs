//! Which refs a push may touch. git runs the `update` hook for each ref of a push; the
//! hook is this program, and asks the server that serves the push over a socket. The
//! answer is the server's [`PushCheck`]; here is only its way there and back. No
//! answer, for whatever reason, is a no.

use std::{
    env, fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::UnixStream as BlockingStream,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::{Arc, RwLock},
    time::Duration,
};

use futures::future::BoxFuture;
use nix::unistd::{AccessFlags, access};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{super::git::GitError, in_flight::InFlight, io_error};

/// One ref of a push, before it is touched.
#[derive(Debug, Clone)]
pub struct PushRequest {
    pub project: String,
    /// In full: `refs/heads/…`.
    pub ref_name: String,
    /// All zeros for a ref that is new.
    pub old: String,
    /// All zeros for a ref that goes.
    pub new: String,
    pub deletes: bool,
    pub context: PushContext,
}

/// Whose push it is: carried from the request to the [`PushCheck`], not looked into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushContext {
    pub checkout_id: Option<Uuid>,
    pub key_id: Option<Uuid>,
    /// What the check needs to find the very secret that was used again (its hash, say),
    /// so that one which was replaced meanwhile counts as dead.
    pub credential: Vec<u8>,
}

impl PushContext {
    /// What [`EmbeddedHost::end_pushes`](super::EmbeddedHost::end_pushes) is called with.
    pub fn owner(&self) -> Option<Uuid> {
        self.checkout_id.or(self.key_id)
    }
}

/// Decides about one ref; the error is one line for the person who pushes.
pub type PushCheck = Arc<dyn Fn(PushRequest) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

const ENV_PROGRAM: &str = "RDEV_HOOK_PROGRAM";
const ENV_SOCKET: &str = "RDEV_HOOK_SOCKET";
const ENV_PUSH: &str = "RDEV_HOOK_PUSH";

/// A script, not a link to the program: git passes over a hook that it cannot run, and
/// a program may be away while it is replaced. Here that is a failure, so a no.
const SCRIPT: &str = "#!/bin/sh\n\
    # Asks rdev whether this ref may be touched. No answer is a no.\n\
    exec \"${RDEV_HOOK_PROGRAM:?}\" git-hook \"$@\"\n";

const SOCKET_PATH_LIMIT: usize = 100;
const QUESTION_LIMIT: u64 = 64 << 10;
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// Longer than the server's, so that its reason arrives.
const HOOK_DEADLINE: Duration = Duration::from_secs(25);

/// `rdev git-hook <ref> <old> <new>`, run by git. Touches nothing but the socket.
pub fn hook_main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.into_iter().collect();
    let answer = match args.as_slice() {
        [ref_name, old, new] => ask(ref_name, old, new),
        _ => Err("git called the hook in an unknown way".to_owned()),
    };
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(io::stderr(), "rdev: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn ask(ref_name: &str, old: &str, new: &str) -> Result<(), String> {
    let away = |_| "the server does not answer, so the push is refused; try again".to_owned();
    #[expect(clippy::disallowed_methods, reason = "git hands a hook nothing but its environment")]
    let variable = |name| env::var(name).map_err(|_| "this is run by git alone".to_owned());
    let (socket, push) = (variable(ENV_SOCKET)?, variable(ENV_PUSH)?);
    let mut stream = BlockingStream::connect(socket).map_err(away)?;
    stream.set_read_timeout(Some(HOOK_DEADLINE)).map_err(away)?;
    stream.write_all(format!("{push}\n{ref_name}\n{old}\n{new}\n").as_bytes()).map_err(away)?;
    stream.shutdown(Shutdown::Write).map_err(away)?;
    let mut answer = String::new();
    stream.take(QUESTION_LIMIT).read_to_string(&mut answer).map_err(away)?;
    match answer.trim_end().split_once(' ') {
        None if answer == "ok\n" => Ok(()),
        Some(("no", reason)) => Err(reason.to_owned()),
        _ => Err(away(io::Error::other("no answer"))),
    }
}

/// The server's end of the hook.
pub struct HookServer {
    program: PathBuf,
    hooks: PathBuf,
    socket: PathBuf,
    check: Arc<RwLock<Option<PushCheck>>>,
    stop: CancellationToken,
}

impl HookServer {
    pub fn start(
        root: &Path,
        program: PathBuf,
        in_flight: Arc<InFlight>,
        tasks: &TaskTracker,
    ) -> Result<Self, GitError> {
        sweep(&root.join("run"));
        let listen = || {
            let socket = socket_path(&root.join("run"))?;
            Ok((UnixListener::bind(&socket)?, socket))
        };
        let (listener, socket) = listen().map_err(|error| io_error("the socket of the git hook", error))?;
        let server =
            Self { program, hooks: root.join("hooks"), socket, check: Arc::default(), stop: CancellationToken::new() };
        server.ready()?;
        let (check, stop) = (server.check.clone(), server.stop.clone());
        tasks.spawn(answer_all(listener, check, in_flight, stop));
        Ok(server)
    }

    pub fn set_check(&self, check: PushCheck) {
        *self.check.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(check);
    }

    pub fn stop(&self) {
        self.stop.cancel();
        let _ = fs::remove_file(&self.socket);
    }

    /// Makes sure that git will run the hook: one that is missing or cannot be run it
    /// passes over in silence, and every ref would be free. To be called before each push.
    pub fn ready(&self) -> Result<(), GitError> {
        let path = self.hooks.join("update");
        let make = || {
            if fs::read(&path).ok().as_deref() != Some(SCRIPT.as_bytes()) {
                let new = self.hooks.join(format!("update.{}", Uuid::new_v4().simple()));
                fs::write(&new, SCRIPT)?;
                fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
                fs::rename(&new, &path)?;
            }
            // The question that git asks, which also sees a `noexec` file system.
            access(&path, AccessFlags::X_OK).map_err(io::Error::from)
        };
        make().map_err(|error| io_error("git cannot run the hook under the data directory", error))
    }

    pub fn hooks(&self) -> &Path {
        &self.hooks
    }

    /// What the hook of the push `id` finds the server with.
    pub fn environment(&self, id: Uuid) -> [(&'static str, PathBuf); 3] {
        [(ENV_PROGRAM, self.program.clone()), (ENV_SOCKET, self.socket.clone()), (ENV_PUSH, id.to_string().into())]
    }
}

async fn answer_all(
    listener: UnixListener,
    check: Arc<RwLock<Option<PushCheck>>>,
    in_flight: Arc<InFlight>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: let some go first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let check = check.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let in_flight = in_flight.clone();
        tasks.spawn(async move {
            if let Err(error) = answer(stream, check, &in_flight).await {
                tracing::debug!(%error, "a git hook went away");
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn answer(mut stream: UnixStream, check: Option<PushCheck>, in_flight: &InFlight) -> io::Result<()> {
    let verdict = async {
        let mut question = String::new();
        let read = (&mut stream).take(QUESTION_LIMIT).read_to_string(&mut question).await;
        read.map_err(|_| "the hook could not be understood".to_owned())?;
        decide(&question, check, in_flight).await
    };
    let late = Err("the server took too long to decide, so the push is refused; try again".into());
    let verdict = tokio::time::timeout(ANSWER_DEADLINE, verdict).await.unwrap_or(late);
    let answer = match verdict {
        Ok(()) => "ok\n".to_owned(),
        Err(reason) => format!("no {}\n", reason.replace(char::is_control, " ")),
    };
    stream.write_all(answer.as_bytes()).await
}

async fn decide(question: &str, check: Option<PushCheck>, in_flight: &InFlight) -> Result<(), String> {
    let unknown = || "this push is not known to the server".to_owned();
    let lines: Vec<&str> = question.lines().collect();
    let [push, ref_name, old, new] = lines[..] else {
        return Err(unknown());
    };
    let running = Uuid::from_str(push).ok().and_then(|id| in_flight.find(id)).ok_or_else(unknown)?;
    let context = running.context.clone().ok_or_else(unknown)?;
    let check = check.ok_or("the server is not ready for pushes yet; try again")?;
    let entered = in_flight.enter(&running).await;
    entered.map_err(|_| "the server cannot keep track of this push; try again")?;
    let request = PushRequest {
        project: running.project.clone(),
        ref_name: ref_name.to_owned(),
        old: old.to_owned(),
        new: new.to_owned(),
        deletes: new.bytes().all(|b| b == b'0'),
        context,
    };
    check(request).await?;
    // Ended while it was being decided: what was right then is not any more.
    if running.stop.is_cancelled() {
        return Err("the push was ended".to_owned());
    }
    Ok(())
}

/// A name in `run`, or in a folder of our own where that is too long for a socket.
fn socket_path(run: &Path) -> io::Result<PathBuf> {
    let name = &Uuid::new_v4().simple().to_string()[..12];
    let path = run.join(format!("{name}.sock"));
    if path.as_os_str().len() < SOCKET_PATH_LIMIT {
        return Ok(path);
    }
    let dir = env::temp_dir().join(format!("rdev-hook-{name}"));
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir.join("sock"))
}

/// Removes the sockets of servers that are gone.
fn sweep(run: &Path) {
    for path in fs::read_dir(run).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_socket = path.extension().is_some_and(|extension| extension == "sock");
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if is_socket && BlockingStream::connect(&path).is_err_and(refused) {
            let _ = fs::remove_file(&path);
        }
    }
}

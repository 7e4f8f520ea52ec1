//! The local runtime: a folder for each project, commands as processes of this machine,
//! each under a supervisor of its own and in a sandbox. Files are the interface between
//! server and supervisor, so any server process on the data directory can take a command
//! over, and none of them is needed for it to run on.

mod allow;
mod attend;
pub mod confine;
mod connect;
mod enter;
mod follow;
mod launch;
mod leftovers;
mod mounts;
mod passage;
mod pipes;
mod processes;
mod sandbox;
mod spec;
pub mod supervise;
mod toolchains;
mod verdict;
mod watch;
mod wire;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{FutureExt as _, future::BoxFuture};

use self::{
    follow::FileFollow,
    sandbox::{Detected, SandboxMode},
    spec::{Kind, Program, Reason, Sandbox, Spec},
    watch::Watch,
};
use super::{
    Follow, Handle, Isolation, LocalOptions, Paths, Run, RunOutput, Runtime, Seen, Sight, Wire, objects::Objects,
};
use crate::{
    config::SandboxChoice,
    domain::{
        breaker::Snapshot,
        command::{EndAsked, Launch},
    },
    error::{Error, Result},
};

/// Output of a helper that is kept.
const RUN_OUTPUT: u64 = 1 << 20;
/// Scripts longer than one argument may be are put into a file.
const SCRIPT_INLINE: usize = 100_000;

pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    options: LocalOptions,
    detected: Detected,
    watch: Watch,
    readable: Vec<PathBuf>,
    hidden: Vec<PathBuf>,
    suggested: Vec<(String, String)>,
    path: String,
}

impl Local {
    /// Finds out how commands can be confined here.
    ///
    /// # Errors
    /// A sentence: the sandbox that was asked for does not work here.
    pub fn open(options: LocalOptions) -> std::result::Result<Self, String> {
        let mode = match options.sandbox {
            SandboxChoice::Auto => SandboxMode::Auto,
            SandboxChoice::Bwrap => SandboxMode::Bwrap,
            SandboxChoice::Landlock => SandboxMode::Landlock,
            SandboxChoice::None => SandboxMode::None,
        };
        let detected = sandbox::detect(mode)?;
        if detected.kind == Kind::None {
            tracing::warn!("COMMANDS ARE NOT ISOLATED from this machine: {}", detected.detail);
        }
        let home = options.home.clone().unwrap_or_else(|| PathBuf::from("/nonexistent"));
        let mut hidden = vec![options.data_dir.path().to_owned()];
        hidden.extend(options.data_dir.relocated().map(Path::to_owned));
        hidden.extend(sandbox::private_homes(&home));
        let inner = Inner {
            readable: toolchains::toolchains(&options.path, &home, &options.command_env),
            suggested: toolchains::suggested_env(&options.path, &home),
            path: toolchains::command_path(&options.path),
            watch: Watch::start().map_err(|error| format!("files cannot be watched (inotify): {error}"))?,
            hidden,
            detected,
            options,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn workspace(&self, project: &str) -> PathBuf {
        self.options.data_dir.workspaces().join(project)
    }

    fn home(&self, project: &str) -> PathBuf {
        self.options.data_dir.homes().join(project)
    }

    fn tmp(&self, project: &str) -> PathBuf {
        self.options.data_dir.tmp().join(project)
    }

    fn folder(&self, handle: &Handle) -> PathBuf {
        self.options.data_dir.commands().join(handle.key.to_string())
    }

    fn sandbox(&self, project: &str) -> Sandbox {
        Sandbox {
            kind: self.detected.kind,
            user: sandbox::command_user(),
            writable: vec![self.workspace(project), self.home(project)],
            tmp: Some(self.tmp(project)),
            hidden: self.hidden.clone(),
            readable: self.readable.clone(),
        }
    }

    /// The whole environment: nothing of the server's but what is named.
    fn program(
        &self,
        project: &str,
        argv: Vec<String>,
        cwd: &str,
        own: impl IntoIterator<Item = (String, String)>,
    ) -> Program {
        let sandbox = self.sandbox(project);
        let mut env = std::collections::BTreeMap::new();
        env.extend(self.suggested.iter().cloned());
        env.extend(self.options.command_env.iter().cloned());
        env.extend([
            ("PATH".to_owned(), self.path.clone()),
            ("HOME".to_owned(), self.home(project).to_string_lossy().into_owned()),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("TERM".to_owned(), "dumb".to_owned()),
            ("TMPDIR".to_owned(), sandbox.tmpdir().to_string_lossy().into_owned()),
        ]);
        env.extend(own);
        Program { argv, env: env.into_iter().collect(), cwd: PathBuf::from(cwd), sandbox }
    }

    fn prepare(&self, project: &str) -> io::Result<()> {
        // Only what lies in folders of the server's own: inside of these a command could have put a link.
        for dir in [self.workspace(project), self.home(project), self.tmp(project)] {
            fs::create_dir_all(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
            if let Some(user) = sandbox::command_user() {
                std::os::unix::fs::chown(&dir, Some(user.uid), Some(user.gid))?;
            }
        }
        Ok(())
    }

    fn remove(&self, project: &str) -> io::Result<()> {
        for dir in [self.workspace(project), self.home(project), self.tmp(project)] {
            remove_all(&dir)?;
        }
        Ok(())
    }

    fn launch(&self, handle: &Handle, launch: &Launch) -> io::Result<()> {
        let argv = self.script_from_file(handle, &launch.argv)?;
        let own = launch.env.iter().map(|(name, value)| (name.clone(), value.clone()));
        let spec = Spec {
            command_id: handle.command_id.clone(),
            program: self.program(&handle.project, argv, &launch.cwd, own),
            deadline_ms: u64::try_from(launch.deadline.timestamp_millis()).unwrap_or(0),
            kill_grace_ms: u64::try_from(self.options.kill_grace.as_millis()).unwrap_or(u64::MAX),
            output_limit: self.options.output_limit,
        };
        let stdin = launch.stdin.as_deref().map(str::as_bytes);
        match launch::start(&self.options.exe, &self.folder(handle), &spec, stdin) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome,
        }
    }

    /// Where a long script lies: seen under the same name inside and outside.
    fn script(&self, handle: &Handle) -> PathBuf {
        self.home(&handle.project).join(format!(".rdev-script-{}", handle.key))
    }

    /// `sh -c` takes a script as one argument, which has a greatest length.
    fn script_from_file(&self, handle: &Handle, argv: &[String]) -> io::Result<Vec<String>> {
        let [shell, flag, script] = argv else { return Ok(argv.to_vec()) };
        if shell != "sh" || flag != "-c" || script.len() < SCRIPT_INLINE {
            return Ok(argv.to_vec());
        }
        let path = self.script(handle);
        let _absent = fs::remove_file(&path);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
        io::Write::write_all(&mut file, script.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        Ok(vec![shell.clone(), path.to_string_lossy().into_owned()])
    }

    fn forget(&self, handle: &Handle) -> io::Result<()> {
        let _absent = fs::remove_file(self.script(handle));
        remove_all(&self.folder(handle))
    }
}

impl Runtime for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn place(&self, _: &str) -> Result<Option<String>> {
        Ok(None)
    }

    fn seen(&self) -> Option<tokio::sync::watch::Receiver<Arc<Seen>>> {
        None
    }

    fn look<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Sight>> {
        async { Ok(Sight::default()) }.boxed()
    }

    /// The server itself needs it.
    fn has_git<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<bool>> {
        std::future::ready(Ok(true)).boxed()
    }

    fn isolation(&self) -> Isolation {
        let kind = match self.inner.detected.kind {
            Kind::Bwrap => "bwrap",
            Kind::Landlock => "landlock",
            Kind::None => "none",
        };
        Isolation { kind, isolated: self.inner.detected.kind != Kind::None, text: self.inner.detected.detail.clone() }
    }

    fn paths(&self, project: &str) -> Paths {
        let workspace = self.inner.workspace(project);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        Paths {
            pod_name: format!("local-{project}"),
            workspace: text(workspace.join("main")),
            sessions: text(workspace.join("sessions")),
            home: text(self.inner.home(project)),
            fixed: false,
        }
    }

    fn prepare<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<()>> {
        let project = project.to_owned();
        self.blocking("the project's folders could not be made", move |inner| inner.prepare(&project))
    }

    fn remove<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<()>> {
        let project = project.to_owned();
        self.blocking("the project's folders could not be removed", move |inner| inner.remove(&project))
    }

    fn run<'a>(&'a self, project: &'a str, run: Run) -> BoxFuture<'a, Result<RunOutput>> {
        let project = project.to_owned();
        async move {
            let output = self.blocking("a helper could not be run", move |inner| {
                let program = inner.program(&project, run.argv, &run.cwd, run.env);
                sandbox::run(&inner.options.exe, &program, &run.stdin, run.timeout, RUN_OUTPUT)
            });
            let output = output.await?;
            Ok(RunOutput {
                code: output.exit.exit_code.filter(|_| output.exit.termination == spec::Termination::Exit),
                stdout: String::from_utf8_lossy(&output.out).into_owned(),
                stderr: output.exit.message.unwrap_or_default() + &String::from_utf8_lossy(&output.err),
            })
        }
        .boxed()
    }

    fn launch<'a>(&'a self, handle: &'a Handle, launch: &'a Launch) -> BoxFuture<'a, Result<()>> {
        let (handle, launch) = (handle.clone(), launch.clone());
        self.blocking("the command could not be started", move |inner| inner.launch(&handle, &launch))
    }

    fn follow(&self, handle: &Handle, stdout: u64, stderr: u64) -> Result<Box<dyn Follow>> {
        let dir = self.inner.folder(handle);
        let follow = FileFollow::open(&self.inner.watch, dir, handle.command_id.clone(), stdout, stderr);
        Ok(Box::new(follow))
    }

    fn end<'a>(&'a self, handle: &'a Handle, why: EndAsked) -> BoxFuture<'a, Result<()>> {
        let handle = handle.clone();
        let reason = match why {
            EndAsked::Cancelled => Reason::Cancelled,
            EndAsked::SessionEnded => Reason::SessionEnded,
            EndAsked::ServerStopped => Reason::ServerStopped,
        };
        self.blocking("the command could not be asked to end", move |inner| {
            launch::cancel(&inner.folder(&handle), reason).map(drop)
        })
    }

    fn forget<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, ()> {
        let handle = handle.clone();
        async move {
            let id = handle.command_id.clone();
            if let Err(error) = self.blocking("files of a command are left", move |inner| inner.forget(&handle)).await {
                tracing::warn!(%error, command.id = id, "files of a command that ended are left");
            }
        }
        .boxed()
    }

    fn leads_outside<'a>(&'a self, _: &'a str, root: &'a str, below: &'a str) -> BoxFuture<'a, Result<bool>> {
        let real = |path: &Path| path.canonicalize().ok();
        let outside = match (real(Path::new(root)), real(&Path::new(root).join(below))) {
            (Some(root), Some(path)) => !path.starts_with(root),
            _ => false,
        };
        std::future::ready(Ok(outside)).boxed()
    }

    fn kept(&self) -> BoxFuture<'_, Result<Vec<i64>>> {
        self.blocking("the folders of commands could not be listed", |inner| {
            let names = fs::read_dir(inner.options.data_dir.commands())?
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            Ok(names.filter_map(|name| name.parse().ok()).collect())
        })
    }

    fn sweep(&self, over: Vec<i64>) -> BoxFuture<'_, Result<()>> {
        self.blocking("folders of commands that ended could not be removed", move |inner| {
            let commands = inner.options.data_dir.commands();
            over.iter()
                .map(|key| commands.join(key.to_string()))
                .filter(|dir| !launch::alive(dir))
                .try_for_each(|dir| remove_all(&dir))
        })
    }

    /// All places are on this machine, so the port alone says where.
    fn connect<'a>(&'a self, _: &'a str, port: u16) -> BoxFuture<'a, Result<Option<Box<dyn Wire>>>> {
        connect::to_port(port).boxed()
    }

    fn shares_ports(&self) -> bool {
        true
    }

    fn circuit(&self) -> Option<(String, Snapshot)> {
        None
    }

    fn objects(&self) -> Option<Objects> {
        None
    }
}

impl Local {
    fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let inner = self.inner.clone();
        async move {
            let done = tokio::task::spawn_blocking(move || work(&inner)).await.map_err(Error::internal)?;
            done.map_err(|error| Error::internal(format!("{what}: {error}")))
        }
        .boxed()
    }
}

/// Also what has other owners' read-only folders in it; nothing there is fine.
fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        outcome => outcome,
    }
}

/// Makes folders writable again: a command may have left read-only ones (Go's module cache does).
fn open_up(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

//! The runtime on a cluster: a project's place is a pod with labels of ours, a command is a
//! process of it under a supervisor of its own. The supervisor is a shell script that a short
//! exec leaves behind; nothing of the server or of the cluster is needed for it to run on, and
//! any server process can read on in what it wrote. A command never leaves the container that it
//! began in.

mod cluster;
mod connect;
mod exec;
mod follow;
mod frames;
mod making;
mod objects;
mod orders;
mod payload;
mod places;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio_util::sync::CancellationToken;

pub use self::{
    cluster::Access,
    making::{Exposed, Fares},
    objects::Objects,
};
use self::{
    cluster::{ANSWER, Cluster},
    exec::{Told, tell},
    follow::PodFollow,
    orders::Orders,
    payload::Payload,
    places::Container,
    watch::Watch,
};
use super::{Follow, Handle, Isolation, Paths, Run, RunOutput, Runtime, Seen, Sight, Wire, not_running};
use crate::{
    domain::{
        breaker::Snapshot,
        clock::Clock,
        command::{EndAsked, Launch},
    },
    error::{Error, Kind, Result},
};

/// What the runtime needs to know.
pub struct KubeOptions {
    pub access: Access,
    /// Tells the commands of this installation from those of another one in the same pod.
    pub install: String,
    pub clock: Clock,
    pub kill_grace: Duration,
    pub output_limit: u64,
}

/// What keeps the knowledge of the cluster current, until the stop.
pub type Keeping = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, ()> + Send>;

pub struct Kube {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    watch: Watch,
    orders: Orders,
    /// Containers that were made ready, and whether there is git in them.
    ready: Mutex<HashMap<String, bool>>,
}

impl Kube {
    /// # Errors
    /// A sentence: what is wrong with the way to the cluster.
    pub async fn open(options: KubeOptions) -> std::result::Result<(Self, Keeping), String> {
        let cluster = Cluster::open(options.access, options.clock).await?;
        let (watch, keep) = Watch::new(cluster.clone());
        let inner = Inner {
            cluster,
            watch,
            orders: Orders {
                root: format!("/tmp/.rdev/{}", options.install),
                kill_grace: options.kill_grace,
                output_limit: options.output_limit,
            },
            ready: Mutex::default(),
        };
        Ok((Self { inner: Arc::new(inner) }, Box::new(keep)))
    }
}

impl Inner {
    /// The container that is the project's place now.
    fn container(&self, project: &str) -> Result<Container> {
        self.watch.place(project).and_then(|candidate| candidate.container).ok_or_else(not_running)
    }

    /// Where the command is; where none was written down, in the place of now.
    fn container_of(&self, handle: &Handle) -> Result<Container> {
        match handle.place.as_deref().and_then(Container::parse) {
            Some(container) => Ok(container),
            None => self.container(&handle.project),
        }
    }

    /// Whether this container still runs.
    async fn still_there(&self, at: &Container) -> Result<bool> {
        let found = self.cluster.insisting().pod(&at.pod).await?;
        Ok(found.and_then(|pod| places::container(&pod, &at.name)).as_ref() == Some(at))
    }

    fn paths(&self, project: &str) -> Paths {
        let candidate = self.watch.place(project);
        let workspace = candidate.as_ref().map_or(places::WORKSPACE_DEFAULT, |it| it.workspace.as_str()).to_owned();
        Paths {
            pod_name: candidate.map(|it| it.pod).unwrap_or_default(),
            sessions: format!("{workspace}/.rdev/sessions"),
            home: format!("{workspace}/.rdev/home"),
            workspace,
            fixed: true,
        }
    }

    /// What every command and helper sees besides what the container has.
    fn environment(&self, project: &str) -> Vec<(String, String)> {
        let home = self.paths(project).home;
        [("HOME", home.as_str()), ("LANG", "C.UTF-8"), ("TERM", "dumb"), ("TMPDIR", "/tmp")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    async fn prepare(&self, project: &str) -> Result<bool> {
        let at = self.container(project)?;
        let known = self.ready.lock().unwrap_or_else(PoisonError::into_inner).get(&at.text()).copied();
        if let Some(git) = known {
            return Ok(git);
        }
        let workspace = self.paths(project).workspace;
        let told = tell(&self.cluster, &at, Orders::prepare(&workspace), ANSWER).await?.done(&at)?;
        let git = told.stdout.starts_with(b"git");
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let alive: Vec<String> = self.watch.places().iter().map(Container::text).collect();
        ready.retain(|place, _| alive.contains(place));
        ready.insert(at.text(), git);
        Ok(git)
    }

    async fn run(&self, project: &str, run: Run) -> Result<RunOutput> {
        let at = self.container(project)?;
        let payload = Orders::run(&run, &self.environment(project));
        let Told { code, stdout, stderr } = tell(&self.cluster, &at, payload, run.timeout + ANSWER).await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(RunOutput { code: Some(code), stdout: text(stdout), stderr: text(stderr) })
    }

    async fn launch(&self, handle: &Handle, launch: &Launch) -> Result<()> {
        let at = self.container_of(handle)?;
        let left = (launch.deadline - Clock::System.now()).to_std().unwrap_or_default();
        let payload = self.orders.launch(handle, launch, &self.environment(&handle.project), left)?;
        let here = self.watch.places().contains(&at) || self.still_there(&at).await?;
        if !here {
            return Err(Error::new(Kind::Gone, "POD_NOT_FOUND", "the place where the command was to run is gone"));
        }
        match tell(&self.cluster, &at, payload, ANSWER).await {
            // The pod went at this very moment: then the cluster knows soon.
            Err(error) if error.kind() == Kind::Invalid && error.stable_code() != "POD_UNSUITABLE" => {
                Err(cluster::away(error))
            }
            told => match told?.done(&at) {
                // The script died in the middle: with its container, or of something that passes.
                Err(error) if error.kind() == Kind::Internal => Err(cluster::away(error)),
                told => told.map(drop),
            },
        }
    }

    async fn end(&self, handle: &Handle, why: EndAsked) -> Result<()> {
        let at = self.container_of(handle)?;
        tell(&self.cluster, &at, self.orders.end(handle.key, why), ANSWER).await?.done(&at).map(drop)
    }

    async fn forget(&self, handle: &Handle) -> Result<()> {
        let at = self.container_of(handle)?;
        tell(&self.cluster, &at, self.orders.forget(handle.key), ANSWER).await?.done(&at).map(drop)
    }

    /// In every container; one that cannot be asked is asked another time.
    async fn everywhere(&self, payload: impl Fn() -> Payload) -> Vec<Told> {
        let mut heard = Vec::new();
        for at in self.watch.places() {
            match tell(&self.cluster, &at, payload(), ANSWER).await.and_then(|told| told.done(&at)) {
                Ok(told) => heard.push(told),
                Err(error) => tracing::debug!(%error, pod = at.pod, "a pod was not looked through"),
            }
        }
        heard
    }
}

impl Runtime for Kube {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn isolation(&self) -> Isolation {
        Isolation { kind: "pod", isolated: true, text: "commands run in their project's pod".into() }
    }

    fn paths(&self, project: &str) -> Paths {
        self.inner.paths(project)
    }

    fn place(&self, project: &str) -> Result<Option<String>> {
        self.inner.container(project).map(|at| Some(at.text()))
    }

    fn seen(&self) -> Option<tokio::sync::watch::Receiver<Arc<Seen>>> {
        Some(self.inner.watch.seen())
    }

    fn look<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<Sight>> {
        async move {
            let pods = self.inner.cluster.pods_of(project).await?;
            Ok(self.inner.watch.sight(project, &pods))
        }
        .boxed()
    }

    fn prepare<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<()>> {
        async move { self.inner.prepare(project).await.map(drop) }.boxed()
    }

    fn has_git<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<bool>> {
        self.inner.prepare(project).boxed()
    }

    /// The pod is its owner's: only what is ours goes.
    fn remove<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let Ok(at) = self.inner.container(project) else { return Ok(()) };
            let payload = Orders::remove(&self.inner.paths(project).workspace);
            tell(&self.inner.cluster, &at, payload, Duration::from_mins(1)).await?.done(&at)?;
            self.inner.ready.lock().unwrap_or_else(PoisonError::into_inner).remove(&at.text());
            Ok(())
        }
        .boxed()
    }

    fn run<'a>(&'a self, project: &'a str, run: Run) -> BoxFuture<'a, Result<RunOutput>> {
        self.inner.run(project, run).boxed()
    }

    fn launch<'a>(&'a self, handle: &'a Handle, launch: &'a Launch) -> BoxFuture<'a, Result<()>> {
        self.inner.launch(handle, launch).boxed()
    }

    fn follow(&self, handle: &Handle, stdout: u64, stderr: u64) -> Result<Box<dyn Follow>> {
        let at = self.inner.container_of(handle)?;
        Ok(Box::new(PodFollow::new(self.inner.clone(), at, handle.key, stdout, stderr)))
    }

    fn end<'a>(&'a self, handle: &'a Handle, why: EndAsked) -> BoxFuture<'a, Result<()>> {
        async move {
            match self.inner.end(handle, why).await {
                // With its pod.
                Err(error) if error.kind() == Kind::Invalid => Ok(()),
                outcome => outcome,
            }
        }
        .boxed()
    }

    fn forget<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, ()> {
        async move {
            if let Err(error) = self.inner.forget(handle).await {
                tracing::debug!(%error, command.id = handle.command_id, "files of a command that ended are left");
            }
        }
        .boxed()
    }

    fn leads_outside<'a>(&'a self, project: &'a str, root: &'a str, below: &'a str) -> BoxFuture<'a, Result<bool>> {
        async move {
            let at = self.inner.container(project)?;
            let told = tell(&self.inner.cluster, &at, Orders::outside(root, below), ANSWER).await?.done(&at)?;
            Ok(told.stdout.starts_with(b"outside"))
        }
        .boxed()
    }

    fn kept(&self) -> BoxFuture<'_, Result<Vec<i64>>> {
        async {
            let heard = self.inner.everywhere(|| self.inner.orders.kept()).await;
            let names = heard.iter().flat_map(|told| told.stdout.split(|byte| *byte == b'\n'));
            Ok(names.filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect())
        }
        .boxed()
    }

    fn sweep(&self, over: Vec<i64>) -> BoxFuture<'_, Result<()>> {
        async move {
            if over.is_empty() {
                return Ok(());
            }
            self.inner.everywhere(|| self.inner.orders.sweep(&over)).await;
            Ok(())
        }
        .boxed()
    }

    fn connect<'a>(&'a self, project: &'a str, port: u16) -> BoxFuture<'a, Result<Option<Box<dyn Wire>>>> {
        async move {
            let at = self.inner.container(project)?;
            connect::to_port(&self.inner.cluster, &at, port).await
        }
        .boxed()
    }

    fn shares_ports(&self) -> bool {
        false
    }

    fn circuit(&self) -> Option<(String, Snapshot)> {
        Some(self.inner.cluster.circuit().shown())
    }

    fn objects(&self) -> Option<Objects> {
        Some(Objects::new(self.inner.cluster.clone()))
    }
}

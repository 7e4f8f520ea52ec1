//! What the cluster has of projects, kept current by two watches: labelled pods and labelled
//! `ConfigMap`s. A watch that breaks lists again and goes on, so what changed meanwhile is seen.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    cluster::{Cluster, Right},
    places::{self, Candidate},
};
use crate::runtime::{ConfigText, Seen, SeenPod, Sight};

/// A watch is asked anew after so many seconds, so that one whose line died in silence is not believed for long.
const ANEW: u32 = 60;

/// An attempt that fails does so sooner; longer than the longest pause between two.
const QUIET: Duration = Duration::from_secs(6);

/// Before a watch begins anew with a list.
const AGAIN: Duration = Duration::from_millis(50);

/// Cheap to clone.
#[derive(Clone)]
pub struct Watch {
    state: Arc<Mutex<State>>,
    seen: Arc<watch::Sender<Arc<Seen>>>,
}

#[derive(Default)]
struct State {
    pods: Objects<Candidate>,
    maps: Objects<Config>,
}

#[derive(Clone, PartialEq, Eq)]
struct Config {
    project: String,
    text: ConfigText,
}

/// What is needed of the objects of a kind, by UID.
struct Objects<T> {
    known: BTreeMap<String, T>,
    /// While all are listed again.
    listing: Option<BTreeMap<String, T>>,
    /// Listed once.
    complete: bool,
    trouble: Option<String>,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), listing: None, complete: false, trouble: None }
    }
}

/// How objects of a kind are watched.
struct Kind<K, T> {
    api: Api<K>,
    resource: &'static str,
    /// Where they are kept.
    of: fn(&mut State) -> &mut Objects<T>,
    /// What is kept of one; `None` of what is no project's.
    read: fn(&K) -> Option<T>,
}

impl Watch {
    /// The watch, and what keeps it current until the stop.
    pub fn new(cluster: Cluster) -> (Self, impl FnOnce(CancellationToken) -> BoxFuture<'static, ()>) {
        let (seen, _) = watch::channel(Arc::default());
        let watch = Self { state: Arc::default(), seen: Arc::new(seen) };
        let keeping = watch.clone();
        let keep = move |stop: CancellationToken| {
            async move {
                let pods = Kind {
                    api: cluster.pods(),
                    resource: "pods",
                    of: |state: &mut State| &mut state.pods,
                    read: places::candidate,
                };
                let maps = Kind {
                    api: cluster.config_maps(),
                    resource: "configmaps",
                    of: |state: &mut State| &mut state.maps,
                    read: config,
                };
                let (pods, maps) = (keeping.keep(&cluster, pods), keeping.keep(&cluster, maps));
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = async { tokio::join!(pods, maps) } => {}
                }
            }
            .boxed()
        };
        (watch, keep)
    }

    pub fn seen(&self) -> watch::Receiver<Arc<Seen>> {
        self.seen.subscribe()
    }

    /// The project's place, whether it runs or not.
    pub fn place(&self, project: &str) -> Option<Candidate> {
        let state = lock(&self.state);
        places::place(state.pods.known.values().filter(|candidate| candidate.project == project)).cloned()
    }

    /// All containers that are places.
    pub fn places(&self) -> Vec<places::Container> {
        lock(&self.state).pods.known.values().filter_map(|candidate| candidate.container.clone()).collect()
    }

    /// Of the project, these pods with what its settings were last.
    pub fn sight(&self, project: &str, pods: &[Pod]) -> Sight {
        let pods: Vec<Candidate> = pods.iter().filter_map(places::candidate).collect();
        let state = lock(&self.state);
        let own = state.maps.known.values().filter(|config| config.project == project);
        Sight { config: own.map(|config| config.text.clone()).collect(), ..seen(&pods.iter().collect::<Vec<_>>()) }
    }

    async fn keep<K, T>(&self, cluster: &Cluster, kind: Kind<K, T>)
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
        T: PartialEq,
    {
        let Kind { api, resource, of, read } = kind;
        let config = watcher::Config::default().labels(places::SELECTOR).timeout(ANEW);
        loop {
            let mut events = watcher::watcher(api.clone(), config.clone()).backoff(Pauses::default()).boxed();
            let mut troubled = false;
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    // A watch that goes on says nothing until something happens.
                    () = tokio::time::sleep(QUIET), if troubled => None,
                };
                // Asked for a past that is not known any more, it would be asked for again and again.
                if let Some(Err(error)) = &event
                    && is_too_long_ago(error)
                {
                    tracing::debug!(resource, "a watch begins again with a list");
                    break;
                }
                let mut state = lock(&self.state);
                let objects = of(&mut state);
                let told = match event {
                    Some(Ok(event)) => objects.take(event, read),
                    Some(Err(error)) => {
                        let trouble = trouble(cluster, &error, resource);
                        tracing::warn!(%error, resource, "a watch of the cluster broke, it begins again");
                        objects.trouble.replace(trouble.clone()) != Some(trouble)
                    }
                    None if troubled => objects.trouble.take().is_some(),
                    None => break,
                };
                troubled = objects.trouble.is_some();
                if told {
                    let seen = Arc::new(state.show());
                    drop(state);
                    self.seen.send_replace(seen);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// 410, as the answer to a watch or in it.
fn is_too_long_ago(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 410,
        _ => false,
    }
}

impl<T: PartialEq> Objects<T> {
    /// Whether there is something new to see.
    fn take<K: kube::Resource>(&mut self, event: Event<K>, read: fn(&K) -> Option<T>) -> bool {
        let uid = |object: &K| object.meta().uid.clone().unwrap_or_default();
        let is_new = match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                return false;
            }
            Event::InitApply(object) => {
                let listing = self.listing.get_or_insert_default();
                listing.extend(read(&object).map(|one| (uid(&object), one)));
                return false;
            }
            Event::InitDone => {
                self.known = self.listing.take().unwrap_or_default();
                self.complete = true;
                true
            }
            Event::Apply(object) => match read(&object) {
                Some(one) if self.known.get(&uid(&object)) == Some(&one) => false,
                Some(one) => {
                    self.known.insert(uid(&object), one);
                    true
                }
                None => self.known.remove(&uid(&object)).is_some(),
            },
            Event::Delete(object) => self.known.remove(&uid(&object)).is_some(),
        };
        self.trouble.take().is_some() || is_new
    }
}

impl State {
    fn show(&self) -> Seen {
        let mut pods: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
        for candidate in self.pods.known.values() {
            pods.entry(&candidate.project).or_default().push(candidate);
        }
        let mut projects: BTreeMap<String, Sight> =
            pods.into_iter().map(|(project, own)| (project.to_owned(), seen(&own))).collect();
        for config in self.maps.known.values() {
            projects.entry(config.project.clone()).or_default().config.push(config.text.clone());
        }
        let trouble = [&self.pods.trouble, &self.maps.trouble].into_iter().flatten().cloned().collect::<Vec<_>>();
        Seen {
            complete: self.pods.complete && self.maps.complete,
            trouble: Some(trouble.join("; ")).filter(|trouble| !trouble.is_empty()),
            projects,
        }
    }
}

/// The pods of one project.
fn seen(own: &[&Candidate]) -> Sight {
    Sight {
        pods: own.iter().map(|candidate| candidate.uid.clone()).collect(),
        pod: places::place(own.iter().copied()).map(shown),
        config: Vec::new(),
    }
}

fn config(map: &ConfigMap) -> Option<Config> {
    let text = ConfigText { name: map.name_any(), data: map.data.clone().unwrap_or_default() };
    Some(Config { project: places::configured(map)?, text })
}

fn shown(candidate: &Candidate) -> SeenPod {
    SeenPod {
        name: candidate.pod.clone(),
        uid: candidate.uid.clone(),
        container: candidate.container.as_ref().map(|container| container.id.clone()),
        status: candidate.status,
        workspace: candidate.workspace.clone(),
        description: candidate.description.clone(),
        managed: candidate.managed,
        made: candidate.made,
        trouble: candidate.trouble.clone(),
    }
}

/// One sentence for whoever looks after the server.
fn trouble(cluster: &Cluster, error: &watcher::Error, resource: &'static str) -> String {
    let (verb, cause) = match error {
        watcher::Error::InitialListFailed(cause) => ("list", Some(cause)),
        watcher::Error::WatchStartFailed(cause) | watcher::Error::WatchFailed(cause) => ("watch", Some(cause)),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => ("watch", None),
    };
    match cause {
        Some(cause) => cluster.refused(cause, Right { verb, resource }).message().to_owned(),
        None => format!("the watch of {resource} was broken off by the cluster"),
    }
}

/// Between attempts of a watch: at once, then longer, never so long that a change is seen late by much.
#[derive(Default)]
struct Pauses {
    failures: u32,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = Duration::from_millis(50 << self.failures.min(5));
        self.failures += 1;
        Some(pause.mul_f64(rand::random_range(0.7..1.3)))
    }
}

impl kube::runtime::utils::Backoff for Pauses {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

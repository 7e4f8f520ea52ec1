//! Projects that are found by themselves. What the surroundings show is brought into the rows: a
//! labelled pod makes a project, its state is the project's, and a place that went takes its
//! sessions along. Every step looks at the row under its lock, so any number of processes may see
//! the same thing at once, and one that was away sees all of it at its start.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    projects::{CREATE_TASK, DELETE_TASK, NewProject, Projects, record_activity, stamp},
    sessions::Sessions,
};
use crate::{
    database::{Conn, Db},
    domain::{
        branch::BranchName,
        clock::Clock,
        discovered::{Found, Memory},
        project::{Placed, Project, ProjectSettings, ProjectStatus},
    },
    error::{Kind, Result},
    queue::{Lane, Queue},
    runtime::{Place, Seen, SeenPod, Sight},
    store,
    streams::{Streams, Unshown},
};

/// All is looked at again so often, whatever was heard.
const AGAIN: Duration = Duration::from_secs(20);
/// After something went wrong.
const LATER: Duration = Duration::from_secs(1);
/// While a project is being made or deleted.
const SOON: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct Discovery {
    inner: Arc<Parts>,
    /// Projects that this process makes just now.
    making: Arc<Mutex<BTreeSet<String>>>,
}

/// What the service is made of.
pub struct Parts {
    pub db: Db,
    pub clock: Clock,
    pub queue: Queue,
    pub streams: Streams,
    pub projects: Projects,
    pub sessions: Sessions,
    pub runtime: Place,
}

impl Discovery {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts), making: Arc::default() }
    }

    /// Looks until the stop. Ends at once where nothing is found by itself.
    pub async fn keep(self, stop: CancellationToken) {
        let Some(mut seen) = self.inner.runtime.seen() else { return };
        let mut settled = BTreeMap::new();
        let mut whole = tokio::time::Instant::now();
        loop {
            let now = seen.borrow_and_update().clone();
            let mut pause = AGAIN;
            if now.complete {
                if whole.elapsed() >= AGAIN {
                    settled.clear();
                    whole = tokio::time::Instant::now();
                }
                match self.settle(&now, &mut settled).await {
                    Ok(true) => {}
                    Ok(false) => pause = SOON,
                    Err(error) => {
                        tracing::warn!(%error, "not all that the cluster shows is in the database yet, again shortly");
                        pause = LATER;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = seen.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Brings what is seen into the rows, as far as that is not done. `settled` is what was done before. False where
    /// something is under way.
    async fn settle(&self, seen: &Seen, settled: &mut BTreeMap<String, Sight>) -> Result<bool> {
        let rows = store::projects::all(&mut self.inner.db.conn().await?).await?;
        let known: BTreeMap<&str, &Project> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
        let nothing = Sight::default();
        let (mut all, mut failed) = (true, None);
        for id in seen.projects.keys().map(String::as_str).chain(known.keys().copied()) {
            let sight = seen.projects.get(id).unwrap_or(&nothing);
            if settled.get(id) == Some(sight) {
                continue;
            }
            let done = match (known.get(id), &sight.pod) {
                (Some(project), _) => self.look(project, sight).await,
                // Of one that is gone, or that another database knows.
                (None, Some(pod)) if pod.made => Ok(true),
                (None, Some(pod)) => self.begin(id, pod, sight).await,
                (None, None) => Ok(true),
            };
            match done {
                Ok(true) => drop(settled.insert(id.to_owned(), sight.clone())),
                Ok(false) => all = false,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// A project of a pod that was not seen before; made beside what else is to be seen. True where there is none.
    async fn begin(&self, id: &str, pod: &SeenPod, sight: &Sight) -> Result<bool> {
        if store::discovered::is_ignored(&mut self.inner.db.conn().await?, &pod.uid).await? {
            return Ok(true);
        }
        if self.making.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned()) {
            let (discovery, id, sight) = (self.clone(), id.to_owned(), sight.clone());
            self.inner.queue.attempts.spawn(async move {
                if !discovery.make(&id, &sight).await {
                    tokio::time::sleep(LATER).await;
                }
                discovery.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            });
        }
        Ok(false)
    }

    async fn make(&self, id: &str, sight: &Sight) -> bool {
        let found = found(sight);
        let mut memory = Memory::default();
        let settings = memory.learn(id, &found).unwrap_or_default();
        let new = NewProject {
            id: id.to_owned(),
            settings: ProjectSettings { unset: Vec::new(), ..settings },
            default_branch: found.text("default_branch").and_then(|name| BranchName::parse(name).ok()),
            import_url: found.text("import_url").map(str::to_owned),
            image_is_asked: false,
        };
        match self.inner.projects.discover(new, &memory).await {
            Ok(_) => true,
            // Another process was quicker.
            Err(error) if error.kind() == Kind::Conflict => true,
            Err(error) => {
                tracing::warn!(%error, project.id = id, "a project could not be made of a pod that was found, again shortly");
                false
            }
        }
    }

    /// Brings a row up to what is seen. False while the project is being made or deleted. Of several processes one
    /// sees a change later than others: what would undo what another has written is asked for once more.
    async fn look(&self, known: &Project, sight: &Sight) -> Result<bool> {
        let (inner, id) = (&self.inner, known.id.as_str());
        let memory = store::discovered::find(&mut inner.db.conn().await?, id).await?;
        let seen = sight.pod.as_ref().map(|pod| pod.uid.as_str());
        // One that may just have been made with its place.
        let is_new = seen.is_none() && memory.uid.is_none() && known.status != ProjectStatus::NotFound;
        if !is_new && !memory.differs(seen) {
            return self.write_down(known, sight, &memory).await;
        }
        self.write_down(known, &inner.runtime.look(id).await?, &memory).await
    }

    /// `memory` is what was known before the sight; false where it is not what is known by now.
    async fn write_down(&self, known: &Project, sight: &Sight, memory: &Memory) -> Result<bool> {
        let (inner, id) = (&self.inner, known.id.as_str());
        let otherwise = match sight.pod {
            Some(_) => (ProjectStatus::NotFound, None),
            None => inner.projects.without_pod(known).await?,
        };
        let (known, wiped) = self.is_wiped(id, sight).await?;
        let mut tx = inner.db.begin().await?;
        let Some(project) = store::projects::lock(&mut tx, id).await? else { return Ok(true) };
        if store::tasks::one_exists(&mut tx, &[CREATE_TASK, DELETE_TASK], id).await? {
            return Ok(false);
        }
        let before = store::discovered::find(&mut tx, id).await?;
        if before.uid != memory.uid {
            return Ok(false);
        }
        let mut memory = before.clone();
        let now = inner.clock.now();
        let mut found = found(sight);
        found.details.extend(otherwise.1.map(|message| json!({"message": message})));
        if let Some(settings) = memory.learn(id, &found) {
            store::projects::update(&mut tx, id, &settings, now).await?;
        }
        let mut lost = 0;
        let place = sight.pod.as_ref().map(|pod| pod.uid.clone());
        let gone = before
            .uid
            .as_ref()
            .is_some_and(|old| !sight.pods.contains(old) || place.as_ref().is_some_and(|new| new != old));
        // Unless another process has seen the restart before.
        if gone || (wiped && before.container == known.container) {
            lost = inner.sessions.lose(&mut tx, id).await?;
        }
        memory.moves(place);
        if let Some(container) = sight.pod.as_ref().and_then(|pod| pod.container.as_ref()) {
            memory.container = Some(container.clone());
        }
        let status = sight.pod.as_ref().map_or(otherwise.0, |pod| pod.status);
        let status = if memory.deleting { ProjectStatus::Failed } else { status };
        let unshown = self.place(&mut tx, &project, status, sight.pod.as_ref()).await?;
        if memory != before {
            store::discovered::put(&mut tx, id, &memory).await?;
        }
        tx.commit().await?;
        inner.streams.show(unshown);
        if lost > 0 {
            tracing::info!(project.id = id, lost, "sessions are lost: their pod is gone");
            inner.queue.wake(Lane::Work, "");
        }
        Ok(true)
    }

    /// Whether the place was started again, and what sessions had in it was lost with that.
    async fn is_wiped(&self, id: &str, sight: &Sight) -> Result<(Memory, bool)> {
        let mut conn = self.inner.db.conn().await?;
        let known = store::discovered::find(&mut conn, id).await?;
        let Some(pod) = &sight.pod else { return Ok((known, false)) };
        let same = known.uid.as_ref() == Some(&pod.uid);
        let restarted =
            same && known.container.is_some() && pod.container.is_some() && known.container != pod.container;
        if !restarted || !store::sessions::one_is_alive(&mut conn, id).await? {
            return Ok((known, false));
        }
        drop(conn);
        Ok((known, !self.inner.projects.kept_its_workspace(id).await?))
    }

    /// State, pod and workspace, as they are.
    async fn place(
        &self,
        tx: &mut Conn,
        project: &Project,
        status: ProjectStatus,
        pod: Option<&SeenPod>,
    ) -> Result<Unshown> {
        let placed = Placed {
            status,
            pod: pod.map_or_else(|| project.pod_name.clone(), |pod| pod.name.clone()),
            workspace: pod.map_or_else(|| project.workspace.clone(), |pod| pod.workspace.clone()),
            address: project.address.clone(),
        };
        let is = Placed {
            status: project.status,
            pod: project.pod_name.clone(),
            workspace: project.workspace.clone(),
            address: project.address.clone(),
        };
        if is == placed {
            return Ok(Unshown::default());
        }
        let now = self.inner.clock.now();
        store::projects::mark_placed(tx, &project.id, &project.default_branch, &placed, now).await?;
        if is.status == placed.status {
            return Ok(Unshown::default());
        }
        let data = json!({"type": "project.status", "id": project.id, "at": stamp(&self.inner.clock),
                          "status": placed.status, "pod_name": placed.pod});
        record_activity(tx, &self.inner.streams, &project.id, &data).await
    }
}

fn found(sight: &Sight) -> Found {
    let description = sight.pod.as_ref().and_then(|pod| pod.description.as_deref());
    let config = sight.config.iter().map(|config| (config.name.as_str(), &config.data));
    let mut found = Found::read(description, config);
    if let Some((pod, why)) = sight.pod.as_ref().and_then(|pod| Some((&pod.name, pod.trouble.as_ref()?))) {
        found.details.push(json!({"pod": pod, "message": why}));
    }
    found
}

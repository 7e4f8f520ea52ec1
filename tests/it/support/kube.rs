//! A cluster that is none: an API server with pods whose containers are processes of this
//! machine, each pod with a `/tmp` of its own. It lists and watches, execs and forwards ports
//! over WebSockets as the real one does, and misbehaves as it is told.

mod api;
mod objects;
mod patches;
mod tricks;
mod wire;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Path as InPath, RawQuery, Request, State},
    response::Response,
    routing::get,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use self::objects::Objects;

pub const NAMESPACE: &str = "projects";

/// Listens for as long as it lives; its containers end with it.
pub struct FakeCluster {
    inner: Arc<Inner>,
    dir: TempDir,
    serving: tokio::task::JoinHandle<()>,
}

struct Inner {
    state: Mutex<Fake>,
    /// Grows with every change of an object.
    news: watch::Sender<u64>,
    /// Grows with every cut of all lines.
    cuts: watch::Sender<u64>,
    pods: PathBuf,
}

#[derive(Default)]
struct Fake {
    objects: Objects,
    odd: api::Oddities,
    tricks: tricks::Tricks,
    forbidden: Vec<(String, String)>,
    /// Whether the pods of Deployments run, and what they wait for otherwise.
    stuck: Option<Value>,
    /// Why no pod can be made of a Deployment.
    barren: Option<String>,
    hangs: bool,
    /// So many execs are carried out and never answered.
    unanswered: usize,
    containers: BTreeMap<String, Container>,
    /// Everything that was asked for: verb and path.
    asked: Vec<String>,
}

/// What a pod's container is made of.
#[derive(Clone)]
struct Container {
    id: String,
    /// A folder with `tmp` and `workspace`.
    dir: PathBuf,
    /// Where its programs are.
    path: String,
}

impl FakeCluster {
    pub async fn start() -> Self {
        // Not in /tmp, which each container has its own of.
        let dir =
            tempfile::Builder::new().prefix("rdev-it-kube.").tempdir_in("/var/tmp").expect("a temporary directory");
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            news: watch::channel(0).0,
            cuts: watch::channel(0).0,
            pods: dir.path().join("pods"),
        });
        let base = format!("/api/v1/namespaces/{NAMESPACE}");
        let group = format!("/apis/{{group}}/{{version}}/namespaces/{NAMESPACE}");
        let router = Router::new()
            .route(&format!("{base}/{{resource}}"), get(objects::collection))
            .route(&format!("{base}/{{resource}}/{{name}}"), get(api::one).patch(patches::patch).delete(api::delete))
            .route(&format!("{group}/{{resource}}"), get(objects::collection))
            .route(&format!("{group}/{{resource}}/{{name}}"), get(api::one).patch(patches::patch).delete(api::delete))
            .route(&format!("{base}/pods/{{name}}/exec"), get(exec))
            .route(&format!("{base}/pods/{{name}}/portforward"), get(forward))
            .layer(axum::middleware::from_fn_with_state(inner.clone(), tricks::played))
            .with_state(inner.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "it", "user": {}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        });
        std::fs::write(dir.path().join("kubeconfig"), config.to_string()).expect("our own folder");
        Self { inner, dir, serving }
    }

    /// What a server needs to be told of it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let kubeconfig = self.dir.path().join("kubeconfig").to_str().expect("letters").to_owned();
        vec![("RDEV_RUNTIME", "kubernetes".into()), ("KUBECONFIG", kubeconfig), ("RDEV_NAMESPACE", NAMESPACE.into())]
    }

    /// A labelled pod that runs, with the programs of this machine.
    pub fn pod(&self, name: &str, project: &str) -> Value {
        self.pod_with(name, project, "/usr/local/bin:/usr/bin:/bin")
    }

    /// One whose programs are in these folders.
    pub fn pod_with(&self, name: &str, project: &str, path: &str) -> Value {
        let pod = self.inner.pod(&mut self.fake(), name, project, path, |_| {});
        self.tell(self.fake());
        pod
    }

    /// One that is not quite as the others.
    pub fn pod_as(&self, name: &str, project: &str, change: impl FnOnce(&mut Value)) {
        self.inner.pod(&mut self.fake(), name, project, "/usr/local/bin:/usr/bin:/bin", change);
        self.tell(self.fake());
    }

    /// Changes a pod as somebody else would.
    pub fn change_pod(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut fake = self.fake();
        let mut pod = fake.objects.get("pods", name).expect("it is there");
        change(&mut pod);
        fake.objects.put("pods", name, pod);
        self.tell(fake);
    }

    /// The pod goes, and all that runs in it.
    pub fn delete_pod(&self, name: &str) {
        self.inner.remove("pods", name);
    }

    /// An object of a kind (its plural), as somebody else would make it: with these labels.
    pub fn object(&self, kind: &str, name: &str, labels: &[(&str, &str)]) -> Value {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let object = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}});
        self.inner.put(kind, name, object)
    }

    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.fake().objects.get(kind, name)
    }

    pub fn delete(&self, kind: &str, name: &str) {
        self.inner.remove(kind, name);
    }

    /// Kind and name of all that there is besides pods.
    pub fn names(&self) -> Vec<String> {
        let fake = self.fake();
        let kinds = api::KNOWN.iter().filter(|kind| **kind != "pods");
        let all = kinds.flat_map(|kind| fake.objects.all(kind).into_iter().map(move |object| (kind, object)));
        all.map(|(kind, object)| format!("{kind}/{}", object["metadata"]["name"].as_str().expect("a name"))).collect()
    }

    /// What it does other than it should.
    pub fn odd(&self, change: impl FnOnce(&mut api::Oddities)) {
        change(&mut self.fake().odd);
    }

    /// Pods of Deployments wait from now on, with this `state` of their container.
    pub fn stick(&self, state: Option<Value>) {
        self.fake().stuck = state;
    }

    /// No pod can be made of a Deployment from now on.
    pub fn let_none_be_made(&self, why: Option<&str>) {
        self.fake().barren = why.map(str::to_owned);
    }

    /// The container dies and another one takes its place; what was written in it is gone.
    pub fn restart_container(&self, name: &str) {
        let mut fake = self.fake();
        let container = fake.containers.get_mut(name).expect("it is there");
        wire::kill(&container.id);
        container.id.push('1');
        let tmp = container.dir.join("tmp");
        std::fs::remove_dir_all(&tmp).expect("our own folder");
        std::fs::create_dir(&tmp).expect("our own folder");
        let id = container.id.clone();
        let mut pod = fake.objects.get("pods", name).expect("it is there");
        pod["status"]["containerStatuses"][0]["containerID"] = id.into();
        pod["status"]["containerStatuses"][0]["restartCount"] = 1.into();
        fake.objects.put("pods", name, pod);
        self.tell(fake);
    }

    pub fn config_map(&self, name: &str, project: &str, data: &[(&str, &str)]) {
        let mut fake = self.fake();
        let uid = fake.objects.next_uid();
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        fake.objects.put("configmaps", name, objects::config_map(name, &uid, project, &json!(data)));
        self.tell(fake);
    }

    pub fn delete_config_map(&self, name: &str) {
        let mut fake = self.fake();
        fake.objects.delete("configmaps", name);
        self.tell(fake);
    }

    /// Every watch and every exec is cut, and what was told before is not told again: 410.
    pub fn forget_the_past(&self) {
        self.fake().objects.forget_the_past();
        self.cut();
    }

    /// Every line is cut. What runs at its end runs on.
    pub fn cut(&self) {
        self.inner.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub fn forbid(&self, verb: &str, resource: &str) {
        self.fake().forbidden.push((verb.to_owned(), resource.to_owned()));
    }

    pub fn allow_all(&self) {
        self.fake().forbidden.clear();
    }

    /// Whether execs get no answer at all.
    pub fn hang(&self, hangs: bool) {
        self.fake().hangs = hangs;
    }

    /// So many execs are carried out, and the line breaks before anything is said of them.
    pub fn leave_unanswered(&self, count: usize) {
        self.fake().unanswered = count;
    }

    pub fn asked(&self) -> Vec<String> {
        self.fake().asked.clone()
    }

    /// The pod's workspace, on this machine.
    pub fn workspace(&self, name: &str) -> PathBuf {
        self.fake().containers[name].dir.join("workspace")
    }

    /// The pod's `/tmp`, on this machine.
    pub fn tmp(&self, name: &str) -> PathBuf {
        self.fake().containers[name].dir.join("tmp")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn fake(&self) -> std::sync::MutexGuard<'_, Fake> {
        self.inner.state.lock().expect("nobody panics with it")
    }

    fn tell(&self, fake: std::sync::MutexGuard<'_, Fake>) {
        drop(fake);
        self.inner.news.send_modify(|news| *news += 1);
    }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        self.serving.abort();
        for container in self.fake().containers.values() {
            wire::kill(&container.id);
        }
    }
}

impl Inner {
    fn pod(&self, fake: &mut Fake, name: &str, project: &str, path: &str, change: impl FnOnce(&mut Value)) -> Value {
        let uid = fake.objects.next_uid();
        let dir = self.pods.join(&uid);
        for folder in ["tmp", "workspace"] {
            std::fs::create_dir_all(dir.join(folder)).expect("our own folder");
        }
        let container = Container { id: format!("containerd://{uid}-1"), dir: dir.clone(), path: path.to_owned() };
        let mut pod = objects::pod(name, &uid, project, &dir.join("workspace"), &container.id, fake.objects.count());
        change(&mut pod);
        fake.containers.insert(name.to_owned(), container);
        fake.objects.put("pods", name, pod)
    }

    /// An object as it is from now on, and what follows from that.
    fn put(&self, kind: &str, name: &str, mut object: Value) -> Value {
        let mut fake = self.state.lock().expect("nobody panics with it");
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = fake.objects.next_uid().into();
            object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        if kind == "deployments" && object["spec"]["template"].is_object() {
            self.roll_out(&mut fake, name, &mut object);
        }
        let object = fake.objects.put(kind, name, object);
        drop(fake);
        self.news.send_modify(|news| *news += 1);
        object
    }

    /// One pod, new with every change of the template.
    fn roll_out(&self, fake: &mut Fake, name: &str, object: &mut Value) {
        if let Some(why) = &fake.barren {
            object["status"]["conditions"] =
                json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": why}]);
            return;
        }
        let generation = object["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = generation.into();
        Self::end_pod(fake, &format!("{name}-{}", generation - 1));
        let template = object["spec"]["template"].clone();
        let project = template["metadata"]["labels"]["rdev.orchard9.ai/name"].as_str().unwrap_or_default().to_owned();
        let stuck = fake.stuck.clone();
        self.pod(fake, &format!("{name}-{generation}"), &project, "/usr/local/bin:/usr/bin:/bin", |pod| {
            pod["metadata"]["labels"] = template["metadata"]["labels"].clone();
            pod["metadata"]["ownerReferences"] =
                json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": "r", "controller": true}]);
            let image = template["spec"]["containers"][0]["image"].clone();
            pod["spec"]["containers"][0]["image"] = image;
            if let Some(state) = stuck {
                pod["status"]["phase"] = "Pending".into();
                pod["status"]["conditions"][0]["status"] = "False".into();
                pod["status"]["containerStatuses"][0]["state"] = state;
            }
        });
    }

    fn end_pod(fake: &mut Fake, name: &str) {
        if let Some(container) = fake.containers.remove(name) {
            wire::kill(&container.id);
        }
        fake.objects.delete("pods", name);
    }

    /// It goes, and what it made.
    fn remove(&self, kind: &str, name: &str) {
        let mut fake = self.state.lock().expect("nobody panics with it");
        if kind == "pods" {
            Self::end_pod(&mut fake, name);
        } else {
            if let Some(object) = fake.objects.get(kind, name).filter(|_| kind == "deployments") {
                Self::end_pod(&mut fake, &format!("{name}-{}", object["metadata"]["generation"]));
            }
            fake.objects.delete(kind, name);
        }
        drop(fake);
        self.news.send_modify(|news| *news += 1);
    }

    /// Notes the request; the answer where it is forbidden.
    fn refusal(&self, verb: &str, resource: &str, path: &str) -> Option<Response> {
        let mut fake = self.state.lock().expect("nobody panics with it");
        fake.asked.push(format!("{verb} {path}"));
        let refused = fake.forbidden.iter().any(|(v, r)| v == verb && r == resource);
        if !refused {
            return None;
        }
        let message = format!(
            "{resource} is forbidden: User \"it\" cannot {verb} resource \"{resource}\" in API group \"\" in the namespace \"{NAMESPACE}\""
        );
        Some(failure(403, "Forbidden", &message))
    }
}

/// A refusal in the API server's words.
fn failure(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": message, "reason": reason, "code": code});
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(Body::from(status.to_string()))
        .expect("a response")
}

fn json_response(value: &Value) -> Response {
    Response::builder()
        .header("content-type", "application/json")
        .body(Body::from(value.to_string()))
        .expect("a response")
}

async fn exec(
    State(inner): State<Arc<Inner>>,
    InPath(name): InPath<String>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let query = query.unwrap_or_default();
    if let Some(refused) = inner.refusal("get", "pods/exec", &format!("pods/{name}/exec?{query}")) {
        return refused;
    }
    let (hangs, container) = {
        let fake = inner.state.lock().expect("nobody panics with it");
        (fake.hangs, fake.containers.get(&name).cloned())
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let Some(container) = container else {
        return failure(404, "NotFound", &format!("pods \"{name}\" not found"));
    };
    let unanswered = {
        let mut fake = inner.state.lock().expect("nobody panics with it");
        let unanswered = fake.unanswered > 0;
        fake.unanswered = fake.unanswered.saturating_sub(1);
        unanswered
    };
    let argv = url::form_urlencoded::parse(query.as_bytes());
    let argv = argv.filter(|(name, _)| name == "command").map(|(_, word)| word.into_owned()).collect();
    wire::exec(request, container, argv, unanswered, inner.cuts.subscribe())
}

async fn forward(
    State(inner): State<Arc<Inner>>,
    InPath(name): InPath<String>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    if let Some(refused) = inner.refusal("get", "pods/portforward", &format!("pods/{name}/portforward")) {
        return refused;
    }
    let query = query.unwrap_or_default();
    let port = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "ports");
    let port = port.and_then(|(_, port)| port.parse().ok()).expect("one port");
    wire::forward(request, port)
}

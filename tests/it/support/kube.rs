//! A cluster that is none: an API server with pods whose containers are processes of this
//! machine, each pod with a `/tmp` of its own. It lists and watches, execs and forwards ports
//! over WebSockets as the real one does, and misbehaves as it is told.

mod objects;
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
    forbidden: Vec<(String, String)>,
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
        let router = Router::new()
            .route(&format!("{base}/{{resource}}"), get(objects::collection))
            .route(&format!("{base}/pods/{{name}}"), get(one))
            .route(&format!("{base}/pods/{{name}}/exec"), get(exec))
            .route(&format!("{base}/pods/{{name}}/portforward"), get(forward))
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
        let mut fake = self.fake();
        let uid = fake.objects.next_uid();
        let dir = self.inner.pods.join(&uid);
        for folder in ["tmp", "workspace"] {
            std::fs::create_dir_all(dir.join(folder)).expect("our own folder");
        }
        let container = Container { id: format!("containerd://{uid}-1"), dir: dir.clone(), path: path.to_owned() };
        let pod = objects::pod(name, &uid, project, &dir.join("workspace"), &container.id, fake.objects.count());
        fake.containers.insert(name.to_owned(), container);
        let pod = fake.objects.put("pods", name, pod);
        self.tell(fake);
        pod
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
        let mut fake = self.fake();
        if let Some(container) = fake.containers.remove(name) {
            wire::kill(&container.id);
        }
        fake.objects.delete("pods", name);
        self.tell(fake);
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

async fn one(State(inner): State<Arc<Inner>>, InPath(name): InPath<String>) -> Response {
    if let Some(refused) = inner.refusal("get", "pods", &format!("pods/{name}")) {
        return refused;
    }
    let found = inner.state.lock().expect("nobody panics with it").objects.get("pods", &name);
    found.map_or_else(|| failure(404, "NotFound", &format!("pods \"{name}\" not found")), |pod| json_response(&pod))
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

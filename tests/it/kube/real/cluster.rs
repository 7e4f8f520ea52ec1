//! A namespace of a test's own, which goes with the value, and what is made in it. Whoever makes
//! things here is the cluster's admin, past the server.

use std::{path::PathBuf, sync::Arc};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, Pod, ServiceAccount},
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    super::super::support::{Server, TestApp, eventually, finish},
    Ground,
};

/// Images of the cluster's cache.
pub const WITH_GIT: &str = "local.test/debian-git:1";
pub const BUSYBOX: &str = "local.test/busybox:1";

pub struct Place {
    pub namespace: String,
    pub ground: Arc<Ground>,
    kubeconfig: Kubeconfig,
    client: Client,
}

impl Place {
    pub async fn open() -> Self {
        rdev::app::choose_tls();
        let named = std::env::var("RDEV_TEST_KUBECONFIG").expect("RDEV_TEST_KUBECONFIG names a kubeconfig");
        let kubeconfig = Kubeconfig::read_from(named).expect("a kubeconfig");
        let client = client(&kubeconfig).await;
        let namespace = format!("it-{}", uuid::Uuid::now_v7().simple());
        let made = json!({"metadata": {"name": namespace}});
        create::<Namespace>(&Api::all(client.clone()), made).await;
        Self { namespace, ground: Ground::new().await, kubeconfig, client }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A labelled pod that idles.
    pub async fn pod(&self, project: &str, image: &str) {
        let pod = json!({
            "metadata": {"name": project, "labels": {"rdev.orchard9.ai/project": "true", "rdev.orchard9.ai/name": project}},
            "spec": {"containers": [{"name": "main", "image": image, "imagePullPolicy": "Never"}], "terminationGracePeriodSeconds": 1},
        });
        // The namespace's service account is made a moment after the namespace.
        eventually("a pod", async || self.api::<Pod>().create(&PostParams::default(), &typed(&pod)).await.ok()).await;
    }

    pub async fn delete_pod(&self, name: &str) {
        self.api::<Pod>().delete(name, &DeleteParams::default()).await.expect("the pod is there");
    }

    /// The token of a service account whose role is [`Place::allow`]ed.
    pub async fn token(&self) -> String {
        create::<ServiceAccount>(&self.api(), json!({"metadata": {"name": "limited"}})).await;
        let binding = json!({
            "metadata": {"name": "limited"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "limited"},
            "subjects": [{"kind": "ServiceAccount", "name": "limited", "namespace": self.namespace}],
        });
        create::<RoleBinding>(&self.api(), binding).await;
        let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
        let accounts: Api<ServiceAccount> = self.api();
        let answer = accounts.create_token_request("limited", &PostParams::default(), &request).await;
        answer.expect("a token").status.expect("a token").token
    }

    /// What the role of the service account is from now on: resources of the core group and verbs.
    pub async fn allow(&self, rules: &[(&str, &[&str])]) {
        let rules: Vec<Value> = rules
            .iter()
            .map(|(resource, verbs)| json!({"apiGroups": [""], "resources": [resource], "verbs": verbs}))
            .collect();
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "limited"}, "rules": rules,
        });
        let how = PatchParams::apply("it").force();
        self.api::<Role>().patch("limited", &how, &Patch::Apply(role)).await.expect("a role");
    }

    /// A kubeconfig of the ground's, changed.
    pub fn kubeconfig(&self, name: &str, change: impl FnOnce(&mut Kubeconfig)) -> PathBuf {
        let mut config = self.kubeconfig.clone();
        change(&mut config);
        let path = self.ground.path().join(name);
        std::fs::write(&path, serde_json::to_string(&config).expect("JSON is YAML")).expect("our own folder");
        path
    }

    /// Where the API server listens.
    pub fn address(&self) -> String {
        let server = self.kubeconfig.clusters[0].cluster.as_ref().and_then(|cluster| cluster.server.clone());
        let url = url::Url::parse(&server.expect("a server")).expect("a URL");
        format!("{}:{}", url.host_str().expect("a host"), url.port_or_known_default().expect("a port"))
    }

    /// A server beside the cluster, in the test.
    pub async fn app(&self) -> TestApp {
        self.app_by(&self.kubeconfig("kubeconfig", |_| {})).await
    }

    pub async fn app_by(&self, kubeconfig: &std::path::Path) -> TestApp {
        TestApp::on(self.ground.clone(), &words(&self.settings(kubeconfig))).await
    }

    /// One that is a process of its own.
    pub async fn server(&self) -> Server {
        let kubeconfig = self.kubeconfig("kubeconfig", |_| {});
        Server::start(&self.ground, &words(&self.settings(&kubeconfig))).await
    }

    fn settings(&self, kubeconfig: &std::path::Path) -> Vec<(&'static str, String)> {
        // Where pods reach this machine; an address of its own bridge.
        let host = std::env::var("RDEV_TEST_KUBE_HOST").unwrap_or_else(|_| "10.88.0.1".into());
        vec![
            ("RDEV_RUNTIME", "kubernetes".into()),
            ("KUBECONFIG", kubeconfig.to_str().expect("letters").into()),
            ("RDEV_NAMESPACE", self.namespace.clone()),
            ("RDEV_LISTEN", format!("{host}:0")),
        ]
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let _gone = finish(namespaces.delete(&self.namespace, &DeleteParams::default()));
    }
}

fn words<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

async fn client(kubeconfig: &Kubeconfig) -> Client {
    let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a kubeconfig")).expect("a client")
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    api.create(&PostParams::default(), &typed(&object)).await.expect("the cluster makes it");
}

fn typed<K: DeserializeOwned>(object: &Value) -> K {
    serde_json::from_value(object.clone()).expect("an object")
}

//! The cluster, as far as this program needs it: the one place where its answers become errors
//! in our words. A call that is not answered in [`ANSWER`] counts as out of reach.

use std::{fmt, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client,
    api::{ApiResource, AttachParams, AttachedProcess, DynamicObject, ListParams, Portforwarder},
    config::{KubeConfigOptions, Kubeconfig},
};

use super::places::{self, Container};
use crate::{
    domain::{breaker::Rules, clock::Clock},
    error::{Error, Kind, Result},
    outward::{Circuit, PutOff},
    runtime::not_running,
};

pub const ANSWER: Duration = Duration::from_secs(5);
/// Held of an output that nobody reads yet.
const BUFFER: usize = 256 << 10;

/// How the cluster is found.
#[derive(Debug, Clone)]
pub struct Access {
    /// Files in the order of `KUBECONFIG`; none: the service account of this pod.
    pub kubeconfig: Vec<PathBuf>,
    pub namespace: String,
}

/// What is asked of the cluster; named in a refusal.
#[derive(Debug, Clone, Copy)]
pub struct Right<'a> {
    pub verb: &'a str,
    pub resource: &'a str,
}

impl Right<'static> {
    pub const EXEC: Self = Self { verb: "create", resource: "pods/exec" };
    pub const FORWARD: Self = Self { verb: "create", resource: "pods/portforward" };
    pub const LIST_PODS: Self = Self { verb: "list", resource: "pods" };
    pub const GET_PODS: Self = Self { verb: "get", resource: "pods" };
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    circuit: Circuit,
    /// It calls whatever the circuit says.
    insists: bool,
}

impl Cluster {
    /// Nobody is called yet.
    ///
    /// # Errors
    /// A sentence: what is wrong with the way to the cluster.
    pub async fn open(access: Access, clock: Clock) -> std::result::Result<Self, String> {
        let mut config = match access.kubeconfig.split_first() {
            None => kube::Config::incluster()
                .map_err(|error| format!("RDEV_RUNTIME: the service account of this pod cannot be used: {error}"))?,
            Some((first, others)) => {
                let read = |path: &PathBuf| {
                    Kubeconfig::read_from(path).map_err(|error| format!("KUBECONFIG: {}: {error}", path.display()))
                };
                let mut whole = read(first)?;
                for other in others {
                    whole = whole.merge(read(other)?).map_err(|error| format!("KUBECONFIG: {error}"))?;
                }
                let config = kube::Config::from_custom_kubeconfig(whole, &KubeConfigOptions::default()).await;
                config.map_err(|error| format!("KUBECONFIG: {error}"))?
            }
        };
        config.connect_timeout = Some(ANSWER);
        // A call is tried again by whoever knows what it was for.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| format!("KUBECONFIG: {error}"))?;
        let circuit = Circuit::new("cluster", Rules::UPSTREAM, clock);
        Ok(Self { client, namespace: access.namespace, circuit, insists: false })
    }

    /// For whoever goes on with what already runs: a cluster that is left alone by others is asked all the same.
    pub fn insisting(&self) -> Self {
        Self { insists: true, ..self.clone() }
    }

    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn dynamic(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, resource)
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod of this name as it is now.
    ///
    /// # Errors
    /// Those of the cluster.
    pub async fn pod(&self, name: &str) -> Result<Option<Pod>> {
        self.answered(Right::GET_PODS, self.pods().get_opt(name)).await
    }

    /// The pods of a project as they are now.
    ///
    /// # Errors
    /// Those of the cluster.
    pub async fn pods_of(&self, project: &str) -> Result<Vec<Pod>> {
        let own = ListParams::default().labels(&places::selector(project));
        self.answered(Right::LIST_PODS, self.pods().list(&own)).await.map(|found| found.items)
    }

    /// Begins a program in a container, with all three of its streams.
    ///
    /// # Errors
    /// Those of the cluster; "project pod is not running".
    pub async fn exec(&self, at: &Container, argv: Vec<String>) -> Result<AttachedProcess> {
        let how = AttachParams::default()
            .container(&at.name)
            .stdin(true)
            .max_stdin_buf_size(BUFFER)
            .max_stdout_buf_size(BUFFER)
            .max_stderr_buf_size(BUFFER);
        let pods = self.pods();
        self.answered(Right::EXEC, pods.exec(&at.pod, argv, &how)).await
    }

    /// # Errors
    /// Those of the cluster; "project pod is not running".
    pub async fn forward(&self, at: &Container, port: u16) -> Result<Portforwarder> {
        let pods = self.pods();
        self.answered(Right::FORWARD, pods.portforward(&at.pod, &[port])).await
    }

    async fn answered<T>(&self, right: Right<'_>, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
        self.told(call).await?.map_err(|error| self.refused(&error, right))
    }

    /// What the cluster says, in its own words.
    ///
    /// # Errors
    /// Unavailable where it says nothing; `CIRCUIT_OPEN` where it is not asked.
    pub async fn told<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<kube::Result<T>> {
        let turn = if self.insists { None } else { Some(self.circuit.turn().map_err(put_off)?) };
        let told = tokio::time::timeout(ANSWER, call).await;
        let is_well = matches!(&told, Ok(answer) if answer.as_ref().err().is_none_or(|error| !is_down(error)));
        if let Some(turn) = turn {
            turn.went(is_well);
        }
        self.circuit.found(is_well);
        told.map_err(|_| away("no answer in 5 s"))
    }

    /// An answer of the cluster that is none, in our words.
    pub fn refused(&self, error: &kube::Error, right: Right<'_>) -> Error {
        let kube::Error::Api(status) = error else { return away(error) };
        match status.code {
            403 => forbidden(&status.message, right, &self.namespace),
            404 => not_running(),
            _ => away(error),
        }
    }
}

/// The cluster itself, and not a node or a pod of it.
fn is_down(error: &kube::Error) -> bool {
    match error {
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        kube::Error::Api(status) => matches!(status.code, 502..=504),
        _ => false,
    }
}

fn put_off(put_off: PutOff) -> Error {
    let message = "the cluster keeps failing and is left alone for a while, try again later";
    Error::new(Kind::Unavailable, "CIRCUIT_OPEN", message).retry_after(put_off.after)
}

/// Out of reach for now; whether what was asked for was done is not known.
pub fn away(cause: impl fmt::Display) -> Error {
    Error::unavailable("the cluster", cause)
}

/// The cluster itself says what it would have taken: `… cannot get resource "pods/exec" in …`.
pub fn forbidden(message: &str, right: Right<'_>, namespace: &str) -> Error {
    let told = message.split_once(" cannot ").and_then(|(_, rest)| {
        let (verb, rest) = rest.split_once(" resource \"")?;
        Some((verb, rest.split_once('"')?.0))
    });
    let (verb, resource) = told.unwrap_or((right.verb, right.resource));
    Error::new(
        Kind::BadGateway,
        "CLUSTER_FORBIDDEN",
        format!("the cluster forbids this server to {verb} {resource} in the namespace {namespace}"),
    )
    .detail("verb", verb)
    .detail("resource", resource)
    .detail("namespace", namespace)
    .cause(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_it_would_have_taken() {
        let message = r#"pods "a" is forbidden: User "system:serviceaccount:x:y" cannot get resource "pods/exec" in API group "" in the namespace "x""#;
        for (message, verb, resource) in [(message, "get", "pods/exec"), ("no", "create", "pods/exec")] {
            let error = forbidden(message, Right::EXEC, "x");
            assert_eq!((error.kind(), error.stable_code()), (Kind::BadGateway, "CLUSTER_FORBIDDEN"));
            let said = |name: &str| error.details()[name].as_str().expect("a text").to_owned();
            assert_eq!(
                (said("verb").as_str(), said("resource").as_str(), said("namespace").as_str()),
                (verb, resource, "x")
            );
        }
    }
}

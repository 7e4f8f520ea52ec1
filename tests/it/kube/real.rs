//! The same on a cluster that is one. It is named by `RDEV_TEST_KUBECONFIG`; without it these are
//! shown as skipped. Pods are of the images of the cluster's cache.

use serde_json::json;

use super::super::support::{Ground, TestApp};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RDEV_TEST_KUBECONFIG"]
async fn commands_sessions_and_ends_on_a_real_cluster() {
    let cluster = Real::open().await;
    for (image, git) in [("local.test/debian-git:1", true), ("local.test/busybox:1", false)] {
        let project = if git { "with-git" } else { "without-git" };
        cluster.pod(project, image).await;
        let app = &cluster.app;
        super::is(&app.admin(), project, "running").await;
        let ran = app.script(project, "echo out; echo err >&2; exit 137").await;
        assert_eq!((&ran["exit_code"], &ran["termination"]), (&json!(137), &json!("exit")));
        assert_eq!(app.output(&ran).await.len(), "out\nerr\n".len());
        let killed = app.script(project, "kill -KILL $$").await;
        assert_eq!((&killed["termination"], &killed["signal"]), (&json!("signal"), &json!("KILL")));
        if git {
            let session = app.session(project, "work").await;
            let pushed =
                app.exec(project, &session, "echo x > x && git add x && git commit -qm x && git push -q").await;
            assert_eq!(pushed["exit_code"], 0, "{}", app.output(&pushed).await);
        } else {
            let path = format!("/projects/{project}/git");
            app.admin().post(&path, json!({"args": ["log"]})).await.refusal(400, "GIT_MISSING");
        }
        cluster.delete(project).await;
        super::is(&app.admin(), project, "not_found").await;
    }
    cluster.close().await;
}

/// A namespace of its own on the cluster, and a server beside it.
struct Real {
    app: TestApp,
    kubeconfig: String,
    namespace: String,
}

impl Real {
    async fn open() -> Self {
        let kubeconfig = std::env::var("RDEV_TEST_KUBECONFIG").expect("RDEV_TEST_KUBECONFIG names a kubeconfig");
        let namespace = format!("it-{}", uuid::Uuid::now_v7().simple());
        let made = kubectl(&kubeconfig, &["create", "namespace", &namespace], None).await;
        assert!(made, "a namespace");
        // Where pods reach this machine; an address of its own bridge.
        let address = std::env::var("RDEV_TEST_KUBE_HOST").unwrap_or_else(|_| "10.88.0.1".into());
        let port = tokio::net::TcpListener::bind((address.as_str(), 0))
            .await
            .expect("the bridge")
            .local_addr()
            .expect("it")
            .port();
        let listen = format!("{address}:{port}");
        let settings = [
            ("RDEV_RUNTIME", "kubernetes"),
            ("KUBECONFIG", kubeconfig.as_str()),
            ("RDEV_NAMESPACE", namespace.as_str()),
            ("RDEV_LISTEN", listen.as_str()),
        ];
        let app = TestApp::on(Ground::new().await, &settings).await;
        Self { app, kubeconfig, namespace }
    }

    async fn pod(&self, project: &str, image: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": project, "labels": {"rdev.orchard9.ai/project": "true", "rdev.orchard9.ai/name": project}},
            "spec": {"containers": [{"name": "main", "image": image, "imagePullPolicy": "Never"}], "terminationGracePeriodSeconds": 1},
        });
        assert!(kubectl(&self.kubeconfig, &["-n", &self.namespace, "apply", "-f", "-"], Some(pod.to_string())).await);
    }

    async fn delete(&self, pod: &str) {
        assert!(kubectl(&self.kubeconfig, &["-n", &self.namespace, "delete", "pod", pod, "--wait=false"], None).await);
    }

    async fn close(self) {
        kubectl(&self.kubeconfig, &["delete", "namespace", &self.namespace, "--wait=false"], None).await;
    }
}

async fn kubectl(kubeconfig: &str, words: &[&str], stdin: Option<String>) -> bool {
    use tokio::io::AsyncWriteExt as _;
    let program = std::env::var("RDEV_TEST_KUBECTL").unwrap_or_else(|_| "kubectl".into());
    let mut child = tokio::process::Command::new(program)
        .env("KUBECONFIG", kubeconfig)
        .args(words)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("kubectl is there; RDEV_TEST_KUBECTL names another one");
    let mut to = child.stdin.take().expect("piped");
    to.write_all(stdin.unwrap_or_default().as_bytes()).await.expect("it reads");
    drop(to);
    child.wait().await.expect("our own child").success()
}

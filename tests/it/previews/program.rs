//! A session with a program in it, and requests to its preview.

use http::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use super::super::support::{Api, Reply, TestApp, eventually};

/// Shows what it was asked, and answers as it is told.
pub const SHOWS: &str = include_str!("program.js");
/// Answers what no server should.
pub const ATTACKS: &str = include_str!("attacker.js");

pub struct Preview {
    pub app: TestApp,
    pub session: Value,
    /// Host and port of its origin.
    pub host: String,
    /// One client for all requests: making one costs more than a request does.
    admin: Api,
}

impl Preview {
    pub async fn shows() -> Self {
        Self::with(&[], SHOWS).await
    }

    pub async fn attacks() -> Self {
        Self::with(&[], ATTACKS).await
    }

    /// A node program, on an app with these settings.
    pub async fn with(own: &[(&str, &str)], program: &str) -> Self {
        Self::started(own, json!({"args": ["node", "-e", program]})).await
    }

    pub async fn started(own: &[(&str, &str)], command: Value) -> Self {
        let app = TestApp::with(own).await;
        app.project("p").await;
        let session = app.session("p", "feature").await;
        Self::of(app, session, command).await
    }

    /// Waits until the command listens.
    pub async fn of(app: TestApp, session: Value, command: Value) -> Self {
        let preview = Self::silent(app, session);
        preview.app.admin().post(&format!("{}/exec", preview.session_path()), command).await.data(201);
        eventually("the program listens", async || {
            let reply = preview.get("/ready").await;
            assert!([200, 404, 503].contains(&reply.status), "{}", reply.text);
            (reply.status != 503).then_some(())
        })
        .await;
        preview
    }

    /// Nothing runs in it.
    pub fn silent(app: TestApp, session: Value) -> Self {
        let port = app.url.rsplit_once(':').expect("a port").1;
        let host = format!("{}.localhost:{port}", session["id"].as_str().expect("an id"));
        let admin = app.admin();
        Self { app, session, host, admin }
    }

    /// A program that is none of the session's commands: it answers each connection once with these
    /// bytes, or, where there are none, never. Ends when what is answered is dropped.
    pub async fn listens(&self, answer: &'static str) -> JoinSet<()> {
        let port = self.session["preview_port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
        let mut program = JoinSet::new();
        program.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                open.spawn(async move {
                    let _some_of_it = stream.read(&mut [0; 4096]).await;
                    if answer.is_empty() {
                        std::future::pending::<()>().await;
                    }
                    let _sent = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        program
    }

    pub fn session_path(&self) -> String {
        format!("/projects/{}/sessions/{}", self.session["project_id"].as_str().unwrap(), self.id())
    }

    pub fn id(&self) -> &str {
        self.session["id"].as_str().expect("an id")
    }

    /// With the admin key.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None, &[]).await
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<&str>, headers: &[(&str, &str)]) -> Reply {
        self.by(&self.admin, method, path, body, headers).await
    }

    /// By somebody.
    pub async fn by(
        &self,
        api: &Api,
        method: Method,
        path: &str,
        body: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Reply {
        let headers = [headers, &[("host", self.host.as_str())]].concat();
        api.send(method, path, body.map(str::to_owned), &headers).await
    }

    /// A GET by somebody with these headers.
    pub async fn asked(&self, api: &Api, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.by(api, Method::GET, path, None, headers).await
    }

    /// Gets a link with this key; answers path and query.
    pub async fn link(&self, api: &Api, body: Value) -> String {
        let made = api.post(&format!("{}/preview-links", self.session_path()), body).await.data(201);
        let url = made["url"].as_str().expect("a URL");
        let path = url.strip_prefix(&format!("http://{}", self.host));
        path.unwrap_or_else(|| panic!("{url} is not at {}", self.host)).to_owned()
    }

    /// Follows a link as a browser does; answers the cookie that it sends from then on.
    pub async fn cookie(&self, link: &str) -> String {
        let reply = self.asked(&self.app.nobody(), link, &[]).await;
        assert_eq!((reply.status, reply.header("location")), (303, "/"), "{}", reply.text);
        reply.header("set-cookie").split(';').next().unwrap_or_default().to_owned()
    }
}

//! Previews where there is no domain for them: below a path of the API's own origin, in a sandbox.

use http::Method;
use serde_json::{Value, json};

use super::{
    super::support::{Reply, TestApp, eventually},
    SHOWS,
};

struct ByPath {
    app: TestApp,
    session: Value,
    prefix: String,
}

impl ByPath {
    async fn shows() -> Self {
        let app = TestApp::with(&[("RDEV_PUBLIC_URL", "http://rdev.example.com:1234")]).await;
        app.project("p").await;
        let session = app.session("p", "feature").await;
        let prefix = format!("/preview/{}", session["id"].as_str().unwrap());
        let path = format!("/projects/p/sessions/{}/exec", session["id"].as_str().unwrap());
        app.admin().post(&path, json!({"args": ["node", "-e", SHOWS]})).await.data(201);
        let it = Self { app, session, prefix };
        eventually("the program listens", async || (it.get("/").await.status == 200).then_some(())).await;
        it
    }

    async fn get(&self, path: &str) -> Reply {
        self.app.admin().get(&format!("{}{path}", self.prefix)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefix_is_stripped_and_told() {
    let it = ByPath::shows().await;
    assert_eq!(it.session["preview_url"], format!("http://rdev.example.com:1234{}/", it.prefix));
    let headers = [("x-forwarded-prefix", "/evil")];
    let seen = it.app.admin().send(Method::GET, &format!("{}/a//b/?c", it.prefix), None, &headers).await;
    let seen = seen.json();
    assert_eq!((&seen["url"], &seen["headers"]["x-forwarded-prefix"]), (&json!("/a//b/?c"), &json!(it.prefix)));
    let bare = it.app.admin().get(&format!("{}?c", it.prefix)).await;
    assert_eq!((bare.status, bare.header("location")), (308, format!("{}/?c", it.prefix).as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_in_a_sandbox() {
    let it = ByPath::shows().await;
    for path in ["/", "/answer?header=content-security-policy:%20sandbox%20allow-same-origin", "/answer?status=404"] {
        let reply = it.get(path).await;
        assert_eq!(reply.header("content-security-policy"), "sandbox allow-scripts allow-forms", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_and_redirects_stay_below_the_prefix() {
    let it = ByPath::shows().await;
    let set = it.get("/answer?header=set-cookie:%20a=1;%20Path=/;%20Domain=example.com").await;
    assert_eq!(set.header("set-cookie"), format!("a=1; Path={}/", it.prefix));
    for to in ["/keys", "../../keys", "//rdev.example.com:1234/keys", "%2e%2e/%2e%2e/keys"] {
        let host = [("host", "rdev.example.com:1234")];
        let encoded = to.replace('%', "%25");
        let path = format!("{}/answer?status=307&header=location:%20{encoded}", it.prefix);
        let reply = it.app.admin().send(Method::GET, &path, None, &host).await;
        assert_eq!(reply.header("location"), format!("{}/keys", it.prefix), "{to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_for_clients_that_send_a_key() {
    let it = ByPath::shows().await;
    it.app.nobody().get(&format!("{}/", it.prefix)).await.refusal(401, "UNAUTHORIZED");
    let path = format!("/projects/p/sessions/{}/preview-links", it.session["id"].as_str().unwrap());
    it.app.admin().post(&path, json!({})).await.refusal(409, "PREVIEW_DOMAIN_REQUIRED");
    let seen = it.get("/").await.text;
    assert!(!seen.contains("rdev_sk_"), "{seen}");
    for path in ["/preview/x/", "/preview/01890000-0000-7000-8000-000000000000/", "/preview", "/preview/"] {
        it.app.admin().get(path).await.refusal(404, "NOT_FOUND");
    }
}

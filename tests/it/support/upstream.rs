//! A model upstream: a small server that speaks Ollama's protocol, with Ollama's order of
//! fields, escapes and error texts, and that misbehaves as it is told.
//!
//! What a chat gets is, in this order: what was told for once with [`Upstream::then`], for
//! once and this model, for this model always, else two tokens.

mod chat;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use self::chat::Chat;
use super::sink::{Answer, Gate, Listener, Request, lock};

const CHAT: &str = "/api/chat";

#[derive(Default)]
struct Script {
    models: Vec<String>,
    loaded: Vec<String>,
    next: VecDeque<Chat>,
    next_of: BTreeMap<String, VecDeque<Chat>>,
    always: BTreeMap<String, Chat>,
    routes: BTreeMap<String, Answer>,
    held: BTreeMap<String, Gate>,
}

/// Listens for as long as it lives.
pub struct Upstream {
    pub url: String,
    pub listener: Listener,
    script: Arc<Mutex<Script>>,
}

impl Upstream {
    /// With `llama3` alone.
    pub async fn start() -> Self {
        Self::with(&["llama3"]).await
    }

    pub async fn with(models: &[&str]) -> Self {
        let models = models.iter().map(|model| full(model)).collect();
        let script = Arc::new(Mutex::new(Script { models, ..Script::default() }));
        let answers = script.clone();
        let listener = Listener::start("127.0.0.1:0", move |request| answer(&mut lock(&answers), request)).await;
        Self { url: listener.url.clone(), listener, script }
    }

    /// From now on it has this model.
    pub fn pull(&self, model: &str) {
        lock(&self.script).models.push(full(model));
    }

    /// From now on it has this model in memory.
    pub fn load(&self, model: &str) {
        lock(&self.script).loaded.push(full(model));
    }

    /// What the next chat gets that was not told anything else before.
    pub fn then(&self, chat: Chat) -> &Self {
        lock(&self.script).next.push_back(chat);
        self
    }

    pub fn then_for(&self, model: &str, chat: Chat) -> &Self {
        lock(&self.script).next_of.entry(full(model)).or_default().push_back(chat);
        self
    }

    pub fn always_for(&self, model: &str, chat: Chat) -> &Self {
        lock(&self.script).always.insert(full(model), chat);
        self
    }

    /// Another answer than Ollama's on this path.
    pub fn route(&self, path: &str, answer: Answer) {
        lock(&self.script).routes.insert(path.to_owned(), answer);
    }

    /// Answers on this path wait for the gate.
    pub fn hold(&self, path: &str, gate: &Gate) {
        lock(&self.script).held.insert(path.to_owned(), gate.clone());
    }

    /// Every chat so far, whatever became of it.
    pub fn chats(&self) -> Vec<Request> {
        self.listener.requests_to(CHAT)
    }

    /// What the user said last in each chat.
    pub fn asked(&self) -> Vec<String> {
        let text = |chat: &Request| chat.json()["messages"].as_array()?.last()?["content"].as_str().map(str::to_owned);
        self.chats().iter().map(|chat| text(chat).unwrap_or_default()).collect()
    }

    /// Chats that wait for their end.
    pub fn chats_under_way(&self) -> usize {
        self.listener.under_way(CHAT)
    }

    pub fn most_chats_at_once(&self) -> usize {
        self.listener.most_at_once(CHAT)
    }

    /// Chats whose client went away.
    pub fn chats_cancelled(&self) -> usize {
        self.listener.cancelled(CHAT)
    }

    /// How often the inventory was asked for.
    pub fn inventories(&self) -> usize {
        self.listener.requests_to("/api/tags").len()
    }
}

/// A name with its tag.
fn full(model: &str) -> String {
    let name = model.rsplit('/').next().unwrap_or_default();
    if name.contains(':') { model.to_owned() } else { format!("{model}:latest") }
}

fn answer(script: &mut Script, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    let gate = script.held.get(path).cloned();
    at_once(script, request, path).first(gate.iter())
}

fn at_once(script: &mut Script, request: &Request, path: &str) -> Answer {
    if let Some(told) = script.routes.get(path) {
        return told.clone();
    }
    match (request.method.as_str(), path) {
        ("GET", "/api/tags") => listed(&script.models, json!({"modified_at": "2026-01-20T07:00:00.123456789+01:00"})),
        ("GET", "/api/ps") => {
            let more =
                json!({"expires_at": "2026-01-25T08:00:00Z", "size_vram": 3_338_801_804_u64, "context_length": 4096});
            listed(&script.loaded, more)
        }
        ("GET", "/api/version") => Answer::json(200, &json!({"version": "0.12.6"})),
        ("POST", "/api/show") => with_model(script, request, |_, _, _| {
            Answer::json(200, &json!({"details": details(), "model_info": {}, "capabilities": ["completion"]}))
        }),
        ("POST", CHAT) => with_model(script, request, |script, model, body| {
            chosen(script, &full(model)).answer(model, body["stream"].as_bool().unwrap_or(true))
        }),
        _ => Answer::status(404).header("content-type", "text/plain").body("404 page not found"),
    }
}

fn chosen(script: &mut Script, model: &str) -> Chat {
    let once = script.next.pop_front().or_else(|| script.next_of.get_mut(model)?.pop_front());
    once.or_else(|| script.always.get(model).cloned()).unwrap_or_else(|| Chat::says(&["Hello", " there"]))
}

fn with_model(
    script: &mut Script,
    request: &Request,
    answer: impl FnOnce(&mut Script, &str, &Value) -> Answer,
) -> Answer {
    let refused = |status, error: &str| Answer::json(status, &json!({"error": error}));
    if request.body.is_empty() {
        return refused(400, "missing request body");
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return refused(400, "invalid character looking for beginning of value");
    };
    match body["model"].as_str().filter(|model| !model.is_empty()) {
        None => refused(400, "model is required"),
        Some(model) if script.models.contains(&full(model)) => answer(script, model, &body),
        Some(model) => refused(404, &format!("model '{model}' not found")),
    }
}

fn listed(models: &[String], more: Value) -> Answer {
    let describe = |model: &String| {
        let digest: String = Sha256::digest(model.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let size = 3_338_801_804_u64;
        let mut shown = json!({"name": model, "model": model, "size": size, "digest": digest, "details": details()});
        shown.as_object_mut().into_iter().for_each(|shown| shown.extend(more.as_object().cloned().unwrap_or_default()));
        shown
    };
    Answer::json(200, &json!({"models": models.iter().map(describe).collect::<Vec<_>>()}))
}

fn details() -> Value {
    json!({"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "8.0B", "quantization_level": "Q4_0"})
}

async fn ask(upstream: &Upstream, more: Value) -> super::Reply {
    let mut body = json!({"model": "llama3", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    super::Api::new(&upstream.url, None).post(CHAT, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_streams_lines_and_a_last_one() {
    let upstream = Upstream::start().await;
    upstream.then(Chat::says(&["a", "<ü>"])).then(Chat::says(&["a", "<ü>"]).torn());
    let (reply, torn) = (ask(&upstream, json!({})).await, ask(&upstream, json!({})).await);
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/x-ndjson"));
    assert_eq!(reply.text, torn.text);
    let lines: Vec<Value> = reply.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> =
        lines.iter().map(|line| (line["message"]["content"].as_str().unwrap(), &line["done"])).collect();
    assert_eq!(shown, [("a", &json!(false)), ("<ü>", &json!(false)), ("", &json!(true))]);
    assert!(reply.text.contains("\\u003cü\\u003e") && lines[2]["eval_count"] == 2, "{}", reply.text);
    let one = ask(&upstream, json!({"stream": false})).await;
    assert_eq!(one.header("content-type"), "application/json; charset=utf-8");
    assert_eq!((&one.json()["message"]["content"], &one.json()["done"]), (&json!("Hello there"), &json!(true)));
    assert_eq!(upstream.asked(), ["hi", "hi", "hi"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_puts_thoughts_tools_and_images_into_messages() {
    let upstream = Upstream::start().await;
    let call = json!([{"function": {"name": "f", "arguments": {"x": 1}}}]);
    let chat = || Chat::says(&[]).thinking("hm").tool_calls(call.clone()).images(&["AAAA"]).token("b");
    upstream.then(chat()).then(chat());
    let message = ask(&upstream, json!({"stream": false})).await.json()["message"].clone();
    let expected =
        json!({"role": "assistant", "content": "b", "thinking": "hm", "images": ["AAAA"], "tool_calls": call});
    assert_eq!(message, expected);
    assert_eq!(ask(&upstream, json!({})).await.text.lines().count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_fails_with_ollamas_texts() {
    let upstream = Upstream::with(&["llama3", "other"]).await;
    upstream.then_for("other", Chat::busy_for(3)).always_for("other", Chat::says(&[]).then_error("no memory"));
    let unknown = ask(&upstream, json!({"model": "nope"})).await;
    assert_eq!((unknown.status, unknown.json()), (404, json!({"error": "model 'nope' not found"})));
    assert_eq!(ask(&upstream, json!({"model": ""})).await.json(), json!({"error": "model is required"}));
    let busy = ask(&upstream, json!({"model": "other"})).await;
    assert_eq!((busy.status, busy.header("retry-after")), (503, "3"));
    let early = ask(&upstream, json!({"model": "other:latest"})).await;
    assert_eq!((early.status, early.json()), (500, json!({"error": "no memory"})));
    upstream.then(Chat::says(&["a"]).then_error("no memory")).then(Chat::says(&["a"]).then_closed());
    let late = ask(&upstream, json!({})).await;
    assert_eq!((late.status, late.text.lines().last()), (200, Some("{\"error\":\"no memory\"}")));
    assert_eq!(ask(&upstream, json!({})).await.text.lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_waits_at_its_gates_and_sees_who_leaves() {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.then(Chat::says(&["a"]).wait(&gate).token("b")).then(Chat::hangs());
    let client = super::Api::new(&upstream.url, None);
    let body = json!({"model": "llama3", "messages": []}).to_string();
    let mut response = client.request(http::Method::POST, CHAT, Some(body.clone()), &[]).send().await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert_eq!((first.last(), upstream.chats_under_way()), (Some(&b'\n'), 1));
    gate.open();
    assert!(response.text().await.unwrap().contains("\"done\":true"));
    let hanging =
        client.request(http::Method::POST, CHAT, Some(body), &[]).timeout(std::time::Duration::from_millis(300));
    assert!(hanging.send().await.is_err());
    super::eventually("the departure", async || (upstream.chats_cancelled() == 1).then_some(())).await;
    assert_eq!(upstream.most_chats_at_once(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_knows_its_models() {
    let upstream = Upstream::with(&["llama3", "tiny:1b"]).await;
    upstream.pull("new");
    upstream.load("tiny:1b");
    let client = super::Api::new(&upstream.url, None);
    let names = |reply: &super::Reply| -> Vec<String> {
        let models = reply.json()["models"].as_array().unwrap().clone();
        models.iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&client.get("/api/tags").await), ["llama3:latest", "tiny:1b", "new:latest"]);
    assert_eq!(names(&client.get("/api/ps").await), ["tiny:1b"]);
    assert_eq!(client.post("/api/show", json!({"model": "tiny:1b"})).await.status, 200);
    assert_eq!(client.post("/api/show", json!({"model": "tiny"})).await.status, 404);
    assert!(client.get("/api/version").await.json()["version"].is_string());
    assert_eq!(client.post("/api/pull", json!({})).await.status, 404);
    upstream.route("/api/tags", Answer::status(500));
    assert_eq!((client.get("/api/tags").await.status, upstream.inventories()), (500, 2));
}

//! The upstream of the crash test: it takes its time, and some of its answers are bad the
//! first time. Each answer is the only one of its kind, so that a result tells which it was.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    Answer, Chat, Gate,
    sink::{Listener, Request, lock},
};

/// Queues of their own.
pub const MODELS: [&str; 3] = ["llama3:latest", "mistral:latest", "qwen3:4b"];
/// More than a result may have and still stand in the job.
const LARGE: usize = 280_000;

/// How a job is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// Takes seconds.
    Long,
    /// Becomes an artifact.
    Large,
    /// First a 503.
    Busy,
    /// First a stream that breaks off.
    Broken,
    /// First a stream with an error line.
    Erring,
    /// Always a 400.
    Refused,
    /// The first call ends when the test says so.
    Held,
}

impl Kind {
    /// Of the job with this number.
    pub fn of(n: usize) -> Self {
        match n % 15 {
            3 | 8 | 11 => Self::Long,
            5 => Self::Large,
            6 => Self::Busy,
            9 => Self::Broken,
            12 => Self::Erring,
            14 => Self::Refused,
            _ => Self::Plain,
        }
    }

    /// The message that asks for such an answer.
    pub fn prompt(self, n: usize) -> String {
        format!("{n} {self:?}")
    }
}

#[derive(Default)]
struct Said {
    calls: HashMap<usize, usize>,
    whole: HashMap<usize, Vec<String>>,
    answers: usize,
}

/// Listens for as long as it lives.
pub struct Models {
    listener: Listener,
    said: Arc<Mutex<Said>>,
    /// Lets the first calls of held jobs end.
    pub held: Gate,
}

impl Models {
    pub async fn start() -> Self {
        let (said, held) = (Arc::<Mutex<Said>>::default(), Gate::new());
        let (noted, gate) = (said.clone(), held.clone());
        let listener = Listener::start("127.0.0.1:0", move |request| answer(&mut lock(&noted), &gate, request)).await;
        Self { listener, said, held }
    }

    pub fn url(&self) -> &str {
        &self.listener.url
    }

    /// The whole answers that were begun for a job.
    pub fn answers_to(&self, n: usize) -> Vec<String> {
        lock(&self.said).whole.get(&n).cloned().unwrap_or_default()
    }

    /// How often a job was asked about.
    pub fn calls(&self, n: usize) -> usize {
        lock(&self.said).calls.get(&n).copied().unwrap_or(0)
    }
}

fn answer(said: &mut Said, held: &Gate, request: &Request) -> Answer {
    match request.path.as_str() {
        "/api/chat" => {
            let body = request.json();
            chat(said, held, &body).answer(body["model"].as_str().unwrap_or_default(), true)
        }
        "/api/tags" => {
            let listed: Vec<Value> = MODELS.iter().map(|name| json!({"name": name, "model": name})).collect();
            Answer::json(200, &json!({"models": listed}))
        }
        "/api/ps" => Answer::json(200, &json!({"models": []})),
        _ => Answer::status(404),
    }
}

fn chat(said: &mut Said, held: &Gate, body: &Value) -> Chat {
    let prompt = body["messages"][0]["content"].as_str().unwrap_or_default();
    let (number, kind) = prompt.split_once(' ').expect("a prompt of ours");
    let n: usize = number.parse().expect("a number");
    let call = said.calls.entry(n).or_default();
    *call += 1;
    let first = *call == 1;
    said.answers += 1;
    let begin = format!("answer {} to {n}: ", said.answers);
    let pause = Duration::from_millis(30 + 40 * (n as u64 % 5));
    match kind {
        "Busy" if first => return Chat::busy(),
        "Broken" if first => return broken(n, paced(&[begin, "half".into()], pause)),
        "Erring" if first => return paced(&[begin], pause).then_error("out of memory"),
        "Refused" => return Chat::fails(400, "no such option"),
        _ => {}
    }
    let (words, pause) = match kind {
        "Large" => (vec![begin, "x".repeat(LARGE)], pause),
        "Long" => (words(begin, 12), Duration::from_millis(250)),
        _ => (words(begin, 3 + n % 4), pause),
    };
    said.whole.entry(n).or_default().push(words.concat());
    if kind == "Held" && first {
        return words.iter().fold(Chat::says(&[]).wait(held), |chat, word| chat.token(word));
    }
    paced(&words, pause)
}

fn words(begin: String, count: usize) -> Vec<String> {
    std::iter::once(begin).chain((0..count).map(|n| format!("word {n} "))).collect()
}

/// In each way in which a stream can end too early.
fn broken(n: usize, chat: Chat) -> Chat {
    match n / 15 % 3 {
        0 => chat.then_cut(),
        1 => chat.then_reset(),
        _ => chat.then_closed(),
    }
}

/// One word after the other, as a model thinks of them.
fn paced(words: &[String], pause: Duration) -> Chat {
    let gates: Vec<Gate> = words.iter().map(|_| Gate::new()).collect();
    let opening = gates.clone();
    tokio::spawn(async move {
        for gate in opening {
            tokio::time::sleep(pause).await;
            gate.open();
        }
    });
    words.iter().zip(&gates).fold(Chat::says(&[]), |chat, (word, gate)| chat.wait(gate).token(word))
}

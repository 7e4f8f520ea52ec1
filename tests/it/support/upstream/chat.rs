//! What one chat is answered with: tokens, thoughts, calls and images, and every bad end.

use serde_json::{Value, json};

use crate::support::sink::{Answer, Gate};

#[derive(Clone, Debug)]
enum Part {
    Token(String),
    Thinking(String),
    Tools(Value),
    Images(Vec<String>),
    Wait(Gate),
}

#[derive(Clone, Debug)]
enum End {
    Done,
    /// A line with an error; as the first one, or where nothing is streamed, a 500.
    Error(String),
    Cut,
    Reset,
    /// The connection is the body's only limit, and it ends too early.
    Closed,
}

/// What one chat is answered with.
#[derive(Clone, Debug)]
pub struct Chat {
    parts: Vec<Part>,
    end: End,
    torn: bool,
    prompt_tokens: u64,
    instead: Option<Answer>,
}

impl Chat {
    pub fn says(tokens: &[&str]) -> Self {
        let chat = Self { parts: Vec::new(), end: End::Done, torn: false, prompt_tokens: 26, instead: None };
        tokens.iter().fold(chat, |chat, token| chat.token(token))
    }

    /// A refusal with Ollama's body.
    pub fn fails(status: u16, error: &str) -> Self {
        Self::instead(Answer::json(status, &json!({"error": error})))
    }

    /// What Ollama says when its queue is full.
    pub fn busy() -> Self {
        Self::fails(503, "server busy, please try again.  maximum pending requests exceeded")
    }

    pub fn busy_for(seconds: u32) -> Self {
        let error = json!({"error": "server busy, please try again.  maximum pending requests exceeded"});
        Self::instead(Answer::json(503, &error).header("retry-after", &seconds.to_string()))
    }

    /// Accepts the request and never says a word.
    pub fn hangs() -> Self {
        Self::instead(Answer::hangs())
    }

    pub fn instead(answer: Answer) -> Self {
        Self { instead: Some(answer), ..Self::says(&[]) }
    }

    pub fn token(self, text: &str) -> Self {
        self.part(Part::Token(text.to_owned()))
    }

    pub fn thinking(self, text: &str) -> Self {
        self.part(Part::Thinking(text.to_owned()))
    }

    /// One message with these calls.
    pub fn tool_calls(self, calls: Value) -> Self {
        self.part(Part::Tools(calls))
    }

    /// One message with these images, in base64.
    pub fn images(self, images: &[&str]) -> Self {
        self.part(Part::Images(images.iter().map(|&image| image.to_owned()).collect()))
    }

    /// Goes on when the gate is open.
    pub fn wait(self, gate: &Gate) -> Self {
        self.part(Part::Wait(gate.clone()))
    }

    /// Ends with an error in place of the last line.
    pub fn then_error(mut self, error: &str) -> Self {
        self.end = End::Error(error.to_owned());
        self
    }

    /// Ends in the middle, with the connection.
    pub fn then_cut(mut self) -> Self {
        self.end = End::Cut;
        self
    }

    pub fn then_reset(mut self) -> Self {
        self.end = End::Reset;
        self
    }

    /// Ends in the middle in a way that HTTP takes for an end.
    pub fn then_closed(mut self) -> Self {
        self.end = End::Closed;
        self
    }

    /// Sends each line in two parts, cut anywhere.
    pub fn torn(mut self) -> Self {
        self.torn = true;
        self
    }

    /// Says of the prompt that it was so long.
    pub fn reads(mut self, tokens: u64) -> Self {
        self.prompt_tokens = tokens;
        self
    }

    fn part(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    pub fn answer(&self, model: &str, stream: bool) -> Answer {
        match &self.instead {
            Some(answer) => answer.clone(),
            None if stream => self.streamed(model),
            None => self.in_one(model),
        }
    }

    fn streamed(&self, model: &str) -> Answer {
        let said = self.parts.iter().filter(|part| !matches!(part, Part::Wait(_))).count();
        if let (0, End::Error(error)) = (said, &self.end) {
            return self.held_up(Answer::json(500, &json!({"error": error})));
        }
        let mut answer = Answer::status(200).header("content-type", "application/x-ndjson").chunked();
        let mut number = 0;
        for part in &self.parts {
            answer = match part {
                Part::Wait(gate) => answer.wait(gate),
                part => {
                    number += 1;
                    self.send(answer, line(model, number, &message(std::slice::from_ref(part)), ""))
                }
            };
        }
        match &self.end {
            End::Done => self.send(answer, line(model, number + 1, &message(&[]), &last(number, self.prompt_tokens))),
            End::Error(error) => self.send(answer, format!("{{\"error\":{}}}\n", quoted(error))),
            End::Cut => answer.cut(),
            End::Reset => answer.reset(),
            End::Closed => answer.until_close(),
        }
    }

    /// `"stream": false`: nothing is said before all is known.
    fn in_one(&self, model: &str) -> Answer {
        let whole =
            line(model, self.parts.len() + 1, &message(&self.parts), &last(self.parts.len(), self.prompt_tokens));
        let (whole, kind) = (whole.trim_end().to_owned(), "application/json; charset=utf-8");
        let part = whole[..whole.len() / 2].to_owned();
        let ok = || self.held_up(Answer::status(200).header("content-type", kind));
        match &self.end {
            End::Done => ok().body(whole),
            End::Error(error) => self.held_up(Answer::json(500, &json!({"error": error}))),
            End::Cut => ok().body(part).cut(),
            End::Reset => ok().body(part).reset(),
            End::Closed => ok().body(part).until_close(),
        }
    }

    fn held_up(&self, answer: Answer) -> Answer {
        let gates = self.parts.iter().filter_map(|part| if let Part::Wait(gate) = part { Some(gate) } else { None });
        answer.first(gates)
    }

    fn send(&self, answer: Answer, line: String) -> Answer {
        if !self.torn {
            return answer.body(line);
        }
        let mut line = bytes::Bytes::from(line);
        let rest = line.split_off(line.len() / 2);
        answer.body(line).body(rest)
    }
}

/// One line of a stream, its newline included. `rest` is what the last one has beyond.
fn line(model: &str, number: usize, message: &str, rest: &str) -> String {
    let (model, done) = (quoted(model), !rest.is_empty());
    let at = format!("2026-01-25T07:00:00.{number:09}Z");
    format!("{{\"model\":{model},\"created_at\":\"{at}\",\"message\":{message},\"done\":{done}{rest}}}\n")
}

fn last(tokens: usize, prompt_tokens: u64) -> String {
    format!(
        ",\"done_reason\":\"stop\",\"total_duration\":4883583458,\"load_duration\":1334875,\"prompt_eval_count\":{prompt_tokens},\
         \"prompt_eval_duration\":342546000,\"eval_count\":{tokens},\"eval_duration\":4535599000"
    )
}

fn message(parts: &[Part]) -> String {
    let (mut content, mut thinking, mut images, mut calls) = (String::new(), String::new(), Vec::new(), Vec::new());
    for part in parts {
        match part {
            Part::Token(text) => content.push_str(text),
            Part::Thinking(text) => thinking.push_str(text),
            Part::Images(more) => images.extend(more.iter().map(|image| quoted(image))),
            Part::Tools(more) => calls.extend(more.as_array().into_iter().flatten().map(Value::to_string)),
            Part::Wait(_) => {}
        }
    }
    let mut message = format!("{{\"role\":\"assistant\",\"content\":{}", quoted(&content));
    if !thinking.is_empty() {
        message.extend([",\"thinking\":", &quoted(&thinking)]);
    }
    if !images.is_empty() {
        message.extend([",\"images\":[", &images.join(","), "]"]);
    }
    if !calls.is_empty() {
        message.extend([",\"tool_calls\":[", &calls.join(","), "]"]);
    }
    message + "}"
}

/// A string as Go's encoder writes it: safe in HTML.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

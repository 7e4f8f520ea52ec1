//! Ollama's chat as bytes: requests rewritten without touching what is not ours, and an answer
//! in many lines put together into one.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

/// Longest line, and longest whole answer, that is put together.
const ANSWER_MAX: usize = 64 << 20;

/// `llama3` means `llama3:latest`; a registry's port is no tag.
pub fn model_name(name: &str) -> Cow<'_, str> {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { Cow::Borrowed(name) } else { Cow::Owned(format!("{name}:latest")) }
}

/// A request for upstream, from a job's: without what is rdev's own, streamed.
///
/// # Errors
/// Where it is no JSON object.
pub fn for_job(body: &[u8]) -> Result<Vec<u8>, NoObject> {
    let mut members: Members<'_> = serde_json::from_slice(body).map_err(|_| NoObject)?;
    members.0.retain(|(name, _)| !matches!(name.as_ref(), "state_webhook_url" | "priority" | "stream"));
    let mut out = members.write();
    out.pop();
    if out.len() > 1 {
        out.push(b',');
    }
    out.extend_from_slice(b"\"stream\":true}");
    Ok(out)
}

/// A request that is passed on: as it came, without `state_webhook_url`.
///
/// # Errors
/// Where it is no JSON object.
pub fn for_passing(body: Bytes) -> Result<Bytes, NoObject> {
    let mut members: Members<'_> = serde_json::from_slice(&body).map_err(|_| NoObject)?;
    let count = members.0.len();
    members.0.retain(|(name, _)| name != "state_webhook_url");
    if members.0.len() == count {
        return Ok(body);
    }
    Ok(members.write().into())
}

/// What a request says of itself: the model, and whether its answer is streamed.
pub fn asks(body: &[u8]) -> (String, bool) {
    #[derive(Deserialize)]
    struct Asks {
        #[serde(default)]
        model: Value,
        #[serde(default)]
        stream: Value,
    }
    let asks = serde_json::from_slice(body).unwrap_or(Asks { model: Value::Null, stream: Value::Null });
    (asks.model.as_str().unwrap_or_default().to_owned(), asks.stream != Value::Bool(false))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoObject;

impl fmt::Display for NoObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request is no JSON object")
    }
}

impl std::error::Error for NoObject {}

/// An object's members in their order, the values as they came.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &RawValue>()? {
                    members.push((Cow::Owned(member.0), member.1));
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(InOrder)
    }
}

impl Members<'_> {
    fn write(&self) -> Vec<u8> {
        let mut out = vec![b'{'];
        for (name, value) in &self.0 {
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(Value::from(name.as_ref()).to_string().as_bytes());
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
        out
    }
}

/// An answer in the making.
#[derive(Default)]
pub struct Answer {
    line: Vec<u8>,
    message: Map<String, Value>,
    content: String,
    thinking: String,
    size: usize,
    done: Option<Value>,
}

/// Why an answer is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// Upstream says so itself.
    Error(String),
    /// A line that is no JSON object.
    Nonsense,
    TooLong,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(text) => write!(f, "the model upstream reported an error: {text}"),
            Self::Nonsense => f.write_str("the model upstream sent a line that is no JSON object"),
            Self::TooLong => f.write_str("the model upstream's answer is longer than 64 MiB"),
        }
    }
}

impl Answer {
    /// Takes bytes as they come; answers the new tokens.
    ///
    /// # Errors
    /// [`Wrong`]: the answer will not become whole.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, Wrong> {
        let mut tokens = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.take(&line, &mut tokens)?;
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > ANSWER_MAX { Err(Wrong::TooLong) } else { Ok(tokens) }
    }

    /// The whole, once `"done": true` was seen. At the end of the stream a last line without its
    /// newline counts too: feed a newline first.
    pub fn whole(&mut self) -> Option<Value> {
        let mut whole = self.done.take()?;
        let message = whole.as_object_mut()?.entry("message").or_insert(Value::Null);
        *message = Value::Object(std::mem::take(&mut self.message));
        Some(whole)
    }

    /// The whole is there.
    pub fn is_done(&self) -> bool {
        self.done.is_some()
    }

    fn take(&mut self, line: &[u8], tokens: &mut Vec<String>) -> Result<(), Wrong> {
        if self.done.is_some() || line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        self.size += line.len();
        if self.size > ANSWER_MAX {
            return Err(Wrong::TooLong);
        }
        let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|_| Wrong::Nonsense)?;
        if let Some(error) = object.get("error").filter(|error| !error.is_null()) {
            return Err(Wrong::Error(error.as_str().map_or_else(|| error.to_string(), str::to_owned)));
        }
        if let Some(Value::Object(part)) = object.get_mut("message").map(Value::take) {
            self.join(part, tokens);
        }
        if object.get("done") == Some(&Value::Bool(true)) {
            if !self.content.is_empty() || !self.message.contains_key("content") {
                self.message.insert("content".into(), std::mem::take(&mut self.content).into());
            }
            if !self.thinking.is_empty() {
                self.message.insert("thinking".into(), std::mem::take(&mut self.thinking).into());
            }
            self.done = Some(Value::Object(object));
        }
        Ok(())
    }

    fn join(&mut self, part: Map<String, Value>, tokens: &mut Vec<String>) {
        for (name, value) in part {
            match (name.as_str(), value) {
                ("content", Value::String(text)) => {
                    self.content.push_str(&text);
                    self.message.entry("content").or_insert(Value::String(String::new()));
                    if !text.is_empty() {
                        tokens.push(text);
                    }
                }
                ("thinking", Value::String(text)) => self.thinking.push_str(&text),
                ("tool_calls" | "images", Value::Array(more)) => {
                    let kept = self.message.entry(name.clone()).or_insert_with(|| Value::Array(Vec::new()));
                    if let Value::Array(list) = kept {
                        list.extend(more);
                    }
                }
                (_, Value::Null) => {}
                (_, value) => drop(self.message.insert(name, value)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const STREAM: &str = concat!(
        r#"{"model":"m","message":{"role":"assistant","content":"He","thinking":"hm"},"done":false}"#,
        "\n\n",
        r#"{"model":"m","message":{"role":"assistant","content":"llo\u0000","images":["aa"]},"done":false}"#,
        "\n",
        r#"{"model":"m","message":{"role":"assistant","content":"","tool_calls":[{"f":1}],"images":["bb"]},"done":false}"#,
        "\n",
        r#"{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":18446744073709551615}"#,
        "\nwhatever comes after is not looked at\n"
    );

    fn put_together(parts: &[&[u8]]) -> (Vec<String>, Option<Value>) {
        let mut answer = Answer::default();
        let tokens = parts.iter().flat_map(|part| answer.feed(part).expect("a sound answer")).collect();
        (tokens, answer.whole())
    }

    #[test]
    fn a_name_without_a_tag_means_the_latest() {
        assert_eq!(model_name("llama3"), "llama3:latest");
        assert_eq!(model_name("llama3:8b"), "llama3:8b");
        assert_eq!(model_name("host:5000/library/llama3"), "host:5000/library/llama3:latest");
        assert_eq!(model_name("host:5000/library/llama3:8b"), "host:5000/library/llama3:8b");
    }

    #[test]
    fn the_whole_is_the_final_object_with_the_whole_message() {
        let (tokens, whole) = put_together(&[STREAM.as_bytes()]);
        assert_eq!(tokens, ["He", "llo\0"]);
        let expected = json!({"model": "m", "message": {"role": "assistant", "content": "Hello\0", "thinking": "hm",
            "images": ["aa", "bb"], "tool_calls": [{"f": 1}]}, "done": true, "done_reason": "stop",
            "total_duration": u64::MAX});
        assert_eq!(whole, Some(expected));
    }

    #[test]
    fn an_error_line_and_nonsense_are_told_apart() {
        assert_eq!(Answer::default().feed(b"{\"error\":\"boom\"}\n"), Err(Wrong::Error("boom".into())));
        assert_eq!(Answer::default().feed(b"<html>\n"), Err(Wrong::Nonsense));
        let mut cut = Answer::default();
        cut.feed(br#"{"message":{"content":"a"},"done":false}"#).expect("no end of a line");
        assert_eq!(cut.whole(), None);
    }

    #[test]
    fn a_request_keeps_every_other_byte() {
        let body = br#" {"model":"m", "state_webhook_url":"http://x","options":{"seed": 1.0e2,"a":[1,  2]},"priority":3,"stream":false}"#;
        let sent = for_job(body).expect("an object");
        assert_eq!(
            String::from_utf8_lossy(&sent),
            r#"{"model":"m","options":{"seed": 1.0e2,"a":[1,  2]},"stream":true}"#
        );
        assert_eq!(for_job(b"{}").expect("an object"), br#"{"stream":true}"#);
        let plain = Bytes::from_static(br#"{"model": "m" }"#);
        assert_eq!(for_passing(plain.clone()).expect("an object"), plain);
        let with = Bytes::from_static(br#"{"model": "m","state_webhook_url":"u","stream":false}"#);
        assert_eq!(&for_passing(with).expect("an object")[..], br#"{"model":"m","stream":false}"#);
        assert_eq!(for_passing(Bytes::from_static(b"[1]")), Err(NoObject));
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same(cuts in proptest::collection::vec(0..STREAM.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts {
                parts.push(&STREAM.as_bytes()[from..cut]);
                from = cut;
            }
            parts.push(&STREAM.as_bytes()[from..]);
            let (tokens, whole) = put_together(&parts);
            let once = put_together(&[STREAM.as_bytes()]);
            prop_assert_eq!(tokens, once.0);
            prop_assert_eq!(whole, once.1);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Answer::default().feed(&bytes);
            let _ = (for_job(&bytes), for_passing(bytes.clone().into()), asks(&bytes));
        }
    }
}

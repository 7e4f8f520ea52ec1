//! Events as a client sees them: server-sent events and lines of JSON.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{
    chunk::{Chunk, Framed},
    record::{self, Output, Record},
};

/// All events of a chunk, framed for `text/event-stream`.
pub fn sse(chunk: &Chunk) -> Framed {
    let mut out = Vec::with_capacity(chunk.data.len() * 2);
    let mut ends = Vec::with_capacity(usize::try_from(chunk.to - chunk.from + 1).unwrap_or(0));
    let mut last = false;
    for (n, record) in (chunk.from..).zip(record::iter(&chunk.data)) {
        let closes = chunk.command.is_none() && matches!(record, Record::Json { last: true, .. });
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(event_name(&record).as_bytes());
        out.extend_from_slice(b"\nid: ");
        put_id(&mut out, &chunk.owner.name, n, closes);
        out.extend_from_slice(b"\ndata: ");
        put_data(&mut out, &record, chunk.command.as_deref());
        out.extend_from_slice(b"\n\n");
        ends.push(u32::try_from(out.len()).expect("a chunk frames to far below 4 GiB"));
        last |= closes;
    }
    Framed { bytes: out.into(), ends, last }
}

/// The events after `after`, one a line: `{"id","event","data"}`.
pub fn ndjson(chunk: &Chunk, after: i64, only: Option<Output>) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, record) in (chunk.from..).zip(record::iter(&chunk.data)).filter(|(n, _)| *n > after) {
        if only.is_some_and(|wanted| matches!(record, Record::Line { output, .. } if output != wanted)) {
            continue;
        }
        out.extend_from_slice(b"{\"id\":\"");
        put_id(&mut out, &chunk.owner.name, n, matches!(record, Record::Json { last: true, .. }));
        out.extend_from_slice(b"\",\"event\":\"");
        out.extend_from_slice(event_name(&record).as_bytes());
        out.extend_from_slice(b"\",\"data\":");
        put_data(&mut out, &record, None);
        out.extend_from_slice(b"}\n");
    }
    out
}

/// The bytes of a command's outputs after event `after`, as they came.
pub fn raw(chunk: &Chunk, after: i64, only: Option<Output>) -> Vec<u8> {
    let mut out = Vec::with_capacity(chunk.data.len());
    for (_, record) in (chunk.from..).zip(record::iter(&chunk.data)).filter(|(n, _)| *n > after) {
        if let Record::Line { output, partial, bytes } = record
            && only.is_none_or(|wanted| wanted == output)
        {
            out.extend_from_slice(bytes);
            if !partial {
                out.push(b'\n');
            }
        }
    }
    out
}

/// An event that is in no log: `connected`, `heartbeat`, `gap`, `shutdown`.
pub fn unnumbered(event: &str, data: &serde_json::Value) -> String {
    format!("event: {event}\ndata: {data}\n\n")
}

fn event_name<'a>(record: &Record<'a>) -> &'a str {
    match record {
        Record::Line { .. } => "output",
        Record::Json { event, .. } => event,
    }
}

fn put_id(out: &mut Vec<u8>, name: &str, n: i64, last: bool) {
    out.extend_from_slice(name.as_bytes());
    if last {
        out.extend_from_slice(b":final");
    } else {
        out.push(b':');
        put_number(out, n);
    }
}

fn put_number(out: &mut Vec<u8>, mut n: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(n % 10).expect("a digit");
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn put_data(out: &mut Vec<u8>, record: &Record<'_>, command: Option<&str>) {
    match record {
        Record::Line { output, partial, bytes } => {
            out.push(b'{');
            if let Some(id) = command {
                put_member(out, "command_id", id);
            }
            put_text(out, bytes);
            out.extend_from_slice(match output {
                Output::Stdout => b",\"stream\":\"stdout\"" as &[u8],
                Output::Stderr => b",\"stream\":\"stderr\"",
            });
            if *partial {
                out.extend_from_slice(b",\"partial\":true");
            }
            out.push(b'}');
        }
        Record::Json { data, .. } => match (command, data.strip_prefix('{')) {
            (Some(id), Some(rest)) => {
                out.push(b'{');
                put_member(out, "command_id", id);
                if rest.starts_with('}') {
                    out.pop();
                }
                out.extend_from_slice(rest.as_bytes());
            }
            _ => out.extend_from_slice(data.as_bytes()),
        },
    }
}

fn put_member(out: &mut Vec<u8>, name: &str, value: &str) {
    let mut text = String::new();
    write!(text, "\"{name}\":{},", json!(value)).expect("writing to a String succeeds");
    out.extend_from_slice(text.as_bytes());
}

/// `"line":"…"`, or `"data_base64":"…"` for bytes that are no UTF-8.
fn put_text(out: &mut Vec<u8>, bytes: &[u8]) {
    if std::str::from_utf8(bytes).is_err() {
        out.extend_from_slice(b"\"data_base64\":\"");
        out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    } else {
        out.extend_from_slice(b"\"line\":\"");
        put_escaped(out, bytes);
    }
    out.push(b'"');
}

/// JSON string escapes. U+2028 and the like need none; a bare CR must not reach the wire,
/// where it would end the field.
fn put_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut start = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[start..at]);
        start = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\r' => out.extend_from_slice(b"\\r"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&bytes[start..]);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::streams::Owner;

    fn chunk_of(lines: &[(Vec<u8>, bool)]) -> Chunk {
        let mut data = Vec::new();
        for (bytes, partial) in lines {
            record::put_line(&mut data, Output::Stdout, *partial, bytes);
        }
        let to = i64::try_from(lines.len()).unwrap();
        Chunk::own(Owner::new(1, "cmd-x"), 1, to, data.into())
    }

    proptest! {
        #[test]
        fn a_frame_carries_the_bytes_of_its_line(lines in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..60), any::<bool>()), 1..20)) {
            let chunk = chunk_of(&lines);
            let text = String::from_utf8(chunk.framed().bytes.to_vec()).unwrap();
            let frames: Vec<&str> = text.split_terminator("\n\n").collect();
            prop_assert_eq!(frames.len(), lines.len());
            for (index, (frame, (bytes, partial))) in frames.iter().zip(&lines).enumerate() {
                let data = frame.lines().find_map(|l| l.strip_prefix("data: ")).unwrap();
                let value: Value = serde_json::from_str(data).unwrap();
                let read = match value.get("line") {
                    Some(line) => line.as_str().unwrap().as_bytes().to_vec(),
                    None => STANDARD.decode(value["data_base64"].as_str().unwrap()).unwrap(),
                };
                prop_assert_eq!(&read, bytes);
                prop_assert_eq!(value.get("partial").is_some(), *partial);
                prop_assert_eq!(frame.matches('\r').count(), 0);
                let id = format!("id: cmd-x:{}", index + 1);
                prop_assert!(frame.contains(&id));
            }
        }

        #[test]
        fn frames_after_a_number_are_the_rest(count in 1usize..30, after in 0i64..35) {
            let lines: Vec<_> = (0..count).map(|i| (i.to_string().into_bytes(), false)).collect();
            let chunk = chunk_of(&lines);
            let rest = chunk.frames_after(after);
            let expected = lines.len().saturating_sub(usize::try_from(after).unwrap());
            prop_assert_eq!(rest.windows(7).filter(|w| w == b"event: ").count(), expected);
        }
    }

    #[test]
    fn a_session_shows_which_command_an_event_is_of() {
        let data = record::json("complete", &json!({"exit_code": 0}), true);
        let chunk = Chunk::of_command(Owner::new(1, "sid"), 7, 7, data.into(), Arc::from("cmd-1"));
        let text = String::from_utf8(chunk.framed().bytes.to_vec()).unwrap();
        assert_eq!(text, "event: complete\nid: sid:7\ndata: {\"command_id\":\"cmd-1\",\"exit_code\":0}\n\n");
        assert!(!chunk.framed().last, "a session does not end with a command");
    }

    #[test]
    fn the_end_of_a_command_has_the_final_id() {
        let data = record::json("complete", &json!({}), true);
        let chunk = Chunk::own(Owner::new(1, "cmd-1"), 3, 3, data.into());
        assert!(chunk.framed().last);
        assert!(chunk.framed().bytes.starts_with(b"event: complete\nid: cmd-1:final\n"));
    }
}

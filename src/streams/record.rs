//! How events lie in a chunk: a tag, a length, the bytes. Dense, because output is
//! most of what this product stores, and neutral: framing for a client is elsewhere.

use serde_json::{Value, json};

const STDOUT: u8 = 0;
const STDERR: u8 = 1;
const PARTIAL: u8 = 2;
const JSON: u8 = 4;
const FINAL: u8 = 5;

/// Which output of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

/// One event as it is read back.
#[derive(Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A line without its ending, or a part of one.
    Line { output: Output, partial: bool, bytes: &'a [u8] },
    /// Any other event: its name and its data as JSON text.
    Json { event: &'a str, data: &'a str, last: bool },
}

/// Appends a line of output.
pub fn put_line(into: &mut Vec<u8>, output: Output, partial: bool, bytes: &[u8]) {
    let side = if output == Output::Stdout { STDOUT } else { STDERR };
    put(into, side | if partial { PARTIAL } else { 0 }, &[bytes]);
}

/// An event of its own.
pub fn json(event: &str, data: &Value, last: bool) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body, if last { FINAL } else { JSON }, &[event.as_bytes(), b"\n", data.to_string().as_bytes()]);
    body
}

fn put(into: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    into.push(tag);
    into.extend_from_slice(&u32::try_from(length).expect("an event is far below 4 GiB").to_le_bytes());
    for part in parts {
        into.extend_from_slice(part);
    }
}

/// Reads a chunk's events in order. Stops at what it cannot read.
pub fn iter(mut data: &[u8]) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        let (&tag, rest) = data.split_first()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        data = rest;
        match tag {
            JSON | FINAL => {
                let (event, text) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
                Some(Record::Json { event, data: text, last: tag == FINAL })
            }
            _ => {
                let output = if tag & STDERR == 0 { Output::Stdout } else { Output::Stderr };
                Some(Record::Line { output, partial: tag & PARTIAL != 0, bytes })
            }
        }
    })
}

/// Data of a `gap` event.
pub fn gap(from: i64, to: i64) -> Value {
    json!({"from": from, "to": to})
}

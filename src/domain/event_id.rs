//! Where in a stream a reader wants to go on: `Last-Event-ID`, or `?after=`.
//! Whether such an event exists is not asked here: a number past the end waits for it.

use std::fmt;

const FINAL: &str = "final";

/// What a reader has seen already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Everything up to this number; 0 is nothing. It fits an `i64`.
    After(u64),
    /// Everything, the stream's end included.
    Final,
}

/// `<stream>:<n>` or `<stream>:final`.
pub fn parse(text: &str, stream: &str) -> Result<Position, EventIdError> {
    let (of, place) = text.rsplit_once(':').ok_or(EventIdError::Malformed)?;
    let position = if place == FINAL { Position::Final } else { Position::After(number(place)?) };
    match of {
        "" => Err(EventIdError::Malformed),
        of if of == stream => Ok(position),
        _ => Err(EventIdError::OtherStream),
    }
}

/// The query's `after`: a bare number, or a whole id.
pub fn parse_after(text: &str, stream: &str) -> Result<Position, EventIdError> {
    if text.contains(':') { parse(text, stream) } else { number(text).map(Position::After) }
}

/// Both are `BAD_EVENT_ID` to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventIdError {
    Malformed,
    OtherStream,
}

impl fmt::Display for EventIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the event id is malformed; it must be '<stream>:<n>' as the stream gave it",
            Self::OtherStream => "the event id is of another stream",
        })
    }
}

impl std::error::Error for EventIdError {}

/// As the stream writes it: no sign, no blanks, no leading zeros, at most `i64::MAX`.
fn number(text: &str) -> Result<u64, EventIdError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return Err(EventIdError::Malformed);
    }
    let number: u64 = text.parse().map_err(|_| EventIdError::Malformed)?;
    if number > i64::MAX.cast_unsigned() { Err(EventIdError::Malformed) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_of_the_stream_says_where_to_go_on() {
        assert_eq!(parse("cmd-1:0", "cmd-1"), Ok(Position::After(0)));
        assert_eq!(parse("cmd-1:42", "cmd-1"), Ok(Position::After(42)));
        assert_eq!(parse("cmd-1:9223372036854775807", "cmd-1"), Ok(Position::After(i64::MAX as u64)));
        assert_eq!(parse("cmd-1:final", "cmd-1"), Ok(Position::Final));
        assert_eq!(parse_after("7", "cmd-1"), Ok(Position::After(7)));
        assert_eq!(parse_after("cmd-1:final", "cmd-1"), Ok(Position::Final));
    }

    #[test]
    fn an_id_of_another_stream_is_told_apart_from_a_malformed_one() {
        for text in ["cmd-2:1", "cmd-2:final", "cmd:1", "CMD-1:1", " cmd-1:1", "a:cmd-1:1", "cmd-1:1:1"] {
            assert_eq!(parse(text, "cmd-1"), Err(EventIdError::OtherStream), "{text}");
        }
        let numbers = ["", "+1", "-1", " 1", "1 ", "01", "00", "1.0", "1e3", "x", "Final", "٣", "9223372036854775808"];
        for number in numbers {
            assert_eq!(parse(&format!("cmd-1:{number}"), "cmd-1"), Err(EventIdError::Malformed), "{number}");
            assert_eq!(parse_after(number, "cmd-1"), Err(EventIdError::Malformed), "{number}");
        }
        for text in ["", ":", ":1", ":final", "cmd-1", "final", "1"] {
            assert_eq!(parse(text, "cmd-1"), Err(EventIdError::Malformed), "{text}");
        }
        assert_eq!(parse_after("final", "cmd-1"), Err(EventIdError::Malformed));
    }

    proptest! {
        #[test]
        fn every_id_reads_back(stream in "[A-Za-z0-9._-]{1,64}", n in 0..=i64::MAX as u64) {
            prop_assert_eq!(parse(&format!("{stream}:{n}"), &stream), Ok(Position::After(n)));
            prop_assert_eq!(parse_after(&n.to_string(), &stream), Ok(Position::After(n)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}|[0-9:final]{0,24}") {
            let _ = (parse(&text, "x"), parse_after(&text, "x"));
        }
    }
}

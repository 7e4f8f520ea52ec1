//! The words of the follower: `o N` and `e N` with so many bytes behind them, `t`, `m TEXT`,
//! and at last `x TERMINATION CODE SIGNAL AGE`. Read as they come, in any portions.

use bytes::{Buf as _, Bytes, BytesMut};

/// A line is never longer; what is longer is not the follower's.
const LINE_MAX: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Stdout(Bytes),
    Stderr(Bytes),
    /// Nothing for a while, and the follower lives.
    Tick,
    End(End),
}

/// How it ended, in the supervisor's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub termination: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// How long ago, in milliseconds.
    pub age_ms: i64,
    pub message: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum Output {
    Out,
    Err,
}

/// Bytes on their way to frames.
#[derive(Default)]
pub struct Frames {
    pub buffer: BytesMut,
    /// Of the output that is being read, and how much is still to come.
    body: Option<(Output, usize)>,
    message: Vec<String>,
}

impl Frames {
    /// The next frame, when enough is there.
    ///
    /// # Errors
    /// What was said instead.
    pub fn next(&mut self) -> Result<Option<Frame>, String> {
        loop {
            if let Some((output, left)) = self.body.take() {
                if self.buffer.is_empty() {
                    self.body = Some((output, left));
                    return Ok(None);
                }
                let bytes = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                self.body = Some((output, left - bytes.len())).filter(|(_, left)| *left > 0);
                return Ok(Some(match output {
                    Output::Out => Frame::Stdout(bytes),
                    Output::Err => Frame::Stderr(bytes),
                }));
            }
            let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
                return if self.buffer.len() > LINE_MAX { Err("a line without an end".into()) } else { Ok(None) };
            };
            let line = self.buffer.split_to(end);
            self.buffer.advance(1);
            if let Some(frame) = self.line(&String::from_utf8_lossy(&line))? {
                return Ok(Some(frame));
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<Option<Frame>, String> {
        let strange = || line.chars().take(200).collect::<String>();
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "t" => Ok(Some(Frame::Tick)),
            "o" | "e" => {
                let length: usize = rest.parse().map_err(|_| strange())?;
                let output = if kind == "o" { Output::Out } else { Output::Err };
                self.body = Some((output, length)).filter(|(_, left)| *left > 0);
                Ok(None)
            }
            "m" => {
                self.message.push(rest.to_owned());
                Ok(None)
            }
            "x" => {
                let words: Vec<&str> = rest.split(' ').collect();
                let [termination, code, signal, age] = words[..] else { return Err(strange()) };
                let message = std::mem::take(&mut self.message).join("\n");
                Ok(Some(Frame::End(End {
                    termination: termination.to_owned(),
                    code: code.parse().ok(),
                    signal: signal.parse().ok(),
                    age_ms: age.parse::<i64>().unwrap_or(0).max(0) * 10,
                    message: Some(message).filter(|message| !message.is_empty()),
                })))
            }
            _ => Err(strange()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(frames: &mut Frames) -> Vec<Frame> {
        std::iter::from_fn(|| frames.next().expect("sound")).collect()
    }

    proptest! {
        #[test]
        fn the_bytes_arrive_however_they_are_cut(
            out in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(1..40_usize, 1..60),
        ) {
            let mut wire = format!("o {}\n", out.len()).into_bytes();
            wire.extend(&out);
            wire.extend(b"t\nm two\nm lines\nx exit 3 - 12\n");
            let (mut frames, mut seen, mut rest) = (Frames::default(), Vec::new(), &wire[..]);
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().expect("endless")).min(rest.len()));
                frames.buffer.extend_from_slice(now);
                seen.extend(all(&mut frames));
                rest = later;
            }
            let bytes: Vec<u8> = seen.iter().filter_map(|frame| match frame {
                Frame::Stdout(bytes) => Some(bytes.to_vec()),
                _ => None,
            }).flatten().collect();
            prop_assert_eq!(bytes, out);
            let end = End { termination: "exit".into(), code: Some(3), signal: None, age_ms: 120, message: Some("two\nlines".into()) };
            prop_assert_eq!(&seen[seen.len() - 2..], &[Frame::Tick, Frame::End(end)]);
        }

        #[test]
        fn nothing_that_is_said_instead_is_taken_for_output(noise in "[a-z]{2,20} [^\n]{0,40}\n") {
            let mut frames = Frames::default();
            frames.buffer.extend_from_slice(noise.as_bytes());
            prop_assert!(frames.next().is_err());
        }
    }
}

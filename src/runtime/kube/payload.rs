//! What is said to a container's `sh`: a script and its words, in one text that is read from
//! standard input. So nothing of it is in the request's URL or in a list of processes, a text
//! that was cut on the way does nothing (it is parsed whole first), and no words are pasted
//! into a script but quoted.

use std::fmt::Write as _;

/// Shared by all scripts.
pub const OURS: &str = include_str!("pod/ours.sh");
pub const LAUNCH: &str = include_str!("pod/launch.sh");
pub const SUPERVISE: &str = include_str!("pod/supervise.sh");
pub const CHILD: &str = include_str!("pod/child.sh");
pub const FOLLOW: &str = include_str!("pod/follow.sh");
pub const END: &str = include_str!("pod/end.sh");
pub const FORGET: &str = include_str!("pod/forget.sh");
pub const KEPT: &str = include_str!("pod/kept.sh");
pub const SWEEP: &str = include_str!("pod/sweep.sh");
pub const RUN: &str = include_str!("pod/run.sh");
pub const PREPARE: &str = include_str!("pod/prepare.sh");
pub const OUTSIDE: &str = include_str!("pod/outside.sh");

/// Reads so many bytes and does what they say. `head` stops by itself: standard input need not end.
const READER: &str = r#"s=$(head -c "$1") || exit 97; eval "$s""#;

/// A text for [`argv`]'s reader.
#[derive(Default)]
pub struct Payload(String);

impl Payload {
    pub fn new() -> Self {
        Self::default()
    }

    /// One of our own names gets a value. Not exported.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        let _never = writeln!(self.0, "{name}={}", quote(value));
        self
    }

    /// A variable of what is run from here on.
    #[must_use]
    pub fn export(mut self, name: &str, value: &str) -> Self {
        let _never = writeln!(self.0, "export {name}={}", quote(value));
        self
    }

    /// The script's `$1`, `$2` …
    #[must_use]
    pub fn words<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.push_str("set --");
        for word in words {
            self.0.push(' ');
            self.0.push_str(&quote(word));
        }
        self.0.push('\n');
        self
    }

    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        self.0.push_str(script);
        self
    }

    /// What the reader is given: nothing of it is done unless all of it came.
    pub fn text(self) -> String {
        format!("rdev_all() {{\n{}\n}}\nrdev_all; exit\n", self.0)
    }
}

/// The argv for a text of this length.
pub fn argv(text: &str) -> Vec<String> {
    ["sh", "-c", READER, "rdev", &text.len().to_string()].map(str::to_owned).to_vec()
}

/// One word of a POSIX shell.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Lines that export these variables, for a file that is read by a shell.
pub fn exports<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut lines = String::new();
    for (name, value) in variables {
        let _never = writeln!(lines, "export {name}={}", quote(value));
    }
    lines
}

/// A shell can only set variables with such names.
pub fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use proptest::prelude::*;

    use super::*;

    /// What a shell of this machine says to a text.
    fn told(shell: &[&str], text: &[u8], length: usize) -> (Option<i32>, String) {
        let mut child = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", READER, "rdev", &length.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        child.stdin.take().expect("piped").write_all(text).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    const SHELLS: [&[&str]; 2] = [&["dash"], &["busybox", "sh"]];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_text_arrives_as_one_word(word in "[^\0]{0,80}") {
            let text = Payload::new().set("a", &word).words([word.as_str()]).script("printf '%s|%s' \"$a\" \"$1\"").text();
            for shell in SHELLS {
                prop_assert_eq!(told(shell, text.as_bytes(), text.len()), (Some(0), format!("{word}|{word}")));
            }
        }

        #[test]
        fn a_text_that_was_cut_does_nothing(cut in 0..1000_usize) {
            let text = Payload::new().words(["it's", "a\nb"]).script("echo done\necho again\n").text();
            let at = text.len() * cut / 1000;
            // The last newline is no loss.
            prop_assume!(at < text.len() - "; exit\n".len());
            for shell in SHELLS {
                prop_assert_eq!(told(shell, &text.as_bytes()[..at], text.len()).1, "");
            }
        }
    }

    #[test]
    fn names_that_a_shell_cannot_set_are_told() {
        for (name, sound) in [("A", true), ("_a1", true), ("1a", false), ("a-b", false), ("", false), ("ä", false)] {
            assert_eq!(is_variable_name(name), sound, "{name}");
        }
    }
}

//! The text of `command`, split into words as a POSIX shell would, with no expansion.
//!
//! What would make a shell do more than run one program with these words is refused, so that
//! text that was pasted together does no more than was meant, and so are a few lines that
//! destroy a machine. This is no sandbox: the boundary is the place where commands run.
//! `$NAME`, `~`, `*` and the like are plain text; text after an unquoted `#` is a comment.

use std::{fmt, iter::Peekable, str::Chars};

/// The program and its arguments; at least one word.
pub fn split(text: &str) -> Result<Vec<String>, WordsError> {
    let words = Splitter::new(trim(text)).words()?;
    if words.is_empty() {
        return Err(WordsError::Empty);
    }
    match destructive::find(&words) {
        Some(token) => Err(WordsError::Rejected { token }),
        None => Ok(words),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WordsError {
    Empty,
    /// Also a backslash with nothing behind it.
    UnfinishedQuote,
    /// The operator (`>>`, a newline), or the words that would destroy (`rm -rf /`).
    Rejected {
        token: String,
    },
}

impl WordsError {
    /// What was refused, for `details.token`.
    pub fn token(&self) -> Option<&str> {
        match self {
            Self::Rejected { token } => Some(token),
            _ => None,
        }
    }

    fn rejected(token: &str) -> Self {
        Self::Rejected { token: token.to_owned() }
    }
}

impl fmt::Display for WordsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("command must not be empty"),
            Self::UnfinishedQuote => f.write_str("command has a quote that is not finished"),
            Self::Rejected { token } => write!(
                f,
                "{token:?} is not allowed in command; quote it, or give the words as args, or use script for a shell"
            ),
        }
    }
}

impl std::error::Error for WordsError {}

/// Without blank ends; an escaped blank at the end belongs to its word.
fn trim(text: &str) -> &str {
    let text = text.trim_ascii_start();
    let end = text.trim_ascii_end();
    let backslashes = end.len() - end.trim_end_matches('\\').len();
    if backslashes % 2 == 1 && end.len() < text.len() { &text[..=end.len()] } else { end }
}

struct Splitter<'a> {
    chars: Peekable<Chars<'a>>,
    words: Vec<String>,
    /// The word being read; `""` makes an empty one.
    word: Option<String>,
}

impl<'a> Splitter<'a> {
    fn new(text: &'a str) -> Self {
        Self { chars: text.chars().peekable(), words: Vec::new(), word: None }
    }

    fn words(mut self) -> Result<Vec<String>, WordsError> {
        while let Some(c) = self.chars.next() {
            match c {
                ' ' | '\t' => self.words.extend(self.word.take()),
                '\'' => self.single_quoted()?,
                '"' => self.double_quoted()?,
                '\\' => self.escaped()?,
                '#' if self.word.is_none() => while self.chars.next_if(|c| *c != '\n').is_some() {},
                _ => {
                    self.refuse_operator(c)?;
                    self.put(c);
                }
            }
        }
        self.words.extend(self.word.take());
        Ok(self.words)
    }

    fn put(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn single_quoted(&mut self) -> Result<(), WordsError> {
        self.word.get_or_insert_default();
        loop {
            match self.chars.next().ok_or(WordsError::UnfinishedQuote)? {
                '\'' => return Ok(()),
                c => self.put(c),
            }
        }
    }

    /// A shell expands here too, so a backtick and `$(` are refused.
    fn double_quoted(&mut self) -> Result<(), WordsError> {
        self.word.get_or_insert_default();
        loop {
            match self.chars.next().ok_or(WordsError::UnfinishedQuote)? {
                '"' => return Ok(()),
                '\\' => match self.chars.next_if(|c| matches!(c, '$' | '`' | '"' | '\\' | '\n')) {
                    Some('\n') => {}
                    Some(c) => self.put(c),
                    None => self.put('\\'),
                },
                c => {
                    self.refuse_substitution(c)?;
                    self.put(c);
                }
            }
        }
    }

    /// A backslash before a newline joins two lines; it neither starts nor ends a word.
    fn escaped(&mut self) -> Result<(), WordsError> {
        match self.chars.next().ok_or(WordsError::UnfinishedQuote)? {
            '\n' => {}
            c => self.put(c),
        }
        Ok(())
    }

    fn refuse_operator(&mut self, c: char) -> Result<(), WordsError> {
        let doubled = |next: Option<&char>| next == Some(&c);
        let token = match (c, doubled(self.chars.peek())) {
            (';', _) => ";",
            ('<', _) => "<",
            ('\n', _) => "\n",
            ('&', true) => "&&",
            ('&', false) => "&",
            ('|', true) => "||",
            ('|', false) => "|",
            ('>', true) => ">>",
            ('>', false) => ">",
            _ => return self.refuse_substitution(c),
        };
        Err(WordsError::rejected(token))
    }

    fn refuse_substitution(&mut self, c: char) -> Result<(), WordsError> {
        match c {
            '`' => Err(WordsError::rejected("`")),
            '$' if self.chars.peek() == Some(&'(') => Err(WordsError::rejected("$(")),
            _ => Ok(()),
        }
    }
}

/// `rm -rf /`, `dd … of=/dev/…` and `mkfs`, in their usual spellings.
mod destructive {
    /// Programs that run another one: their options that take a value, and how many words
    /// of their own stand before that other program.
    const WRAPPERS: [(&str, &[&str], usize); 10] = [
        ("sudo", &["-u", "-g", "-h", "-p", "-C", "-D", "-R", "-T", "-U", "-r", "-t", "--user", "--group", "--host"], 0),
        ("doas", &["-u", "-C"], 0),
        ("env", &["-u", "-C", "--unset", "--chdir"], 0),
        ("nice", &["-n", "--adjustment"], 0),
        ("ionice", &["-c", "-n", "--class", "--classdata"], 0),
        ("timeout", &["-k", "-s", "--kill-after", "--signal"], 1),
        ("nohup", &[], 0),
        ("setsid", &[], 0),
        ("time", &["-f", "-o", "--format", "--output"], 0),
        ("busybox", &[], 0),
    ];

    /// Under `/dev`, but no disk.
    const HARMLESS: [&str; 8] = ["null", "zero", "full", "tty", "stdout", "stderr", "random", "urandom"];

    /// The offending words, from the program to the last one that matters.
    pub(super) fn find(words: &[String]) -> Option<String> {
        let words = innermost(words);
        let (program, args) = words.split_first()?;
        let last = match basename(program) {
            "rm" => rm_root(args)?,
            "dd" => args.iter().position(|arg| arg.strip_prefix("of=").is_some_and(is_device))? + 1,
            name if name == "mkfs" || name.starts_with("mkfs.") => 0,
            _ => return None,
        };
        Some(words[..=last].join(" "))
    }

    /// From the program that is run in the end.
    fn innermost(mut words: &[String]) -> &[String] {
        while let Some((program, rest)) = words.split_first() {
            let Some((_, with_value, own)) = WRAPPERS.iter().find(|(name, ..)| *name == basename(program)) else {
                break;
            };
            let mut at = 0;
            while let Some(word) = rest.get(at).filter(|word| word.starts_with('-') || is_assignment(word)) {
                at += if with_value.contains(&word.as_str()) { 2 } else { 1 };
                if word == "--" {
                    break;
                }
            }
            words = rest.get(at + own..).unwrap_or_default();
        }
        words
    }

    fn is_assignment(word: &str) -> bool {
        word.split_once('=')
            .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
    }

    fn basename(program: &str) -> &str {
        program.rsplit('/').next().unwrap_or(program)
    }

    /// Where the last word is that makes `rm` remove the root: it need not be forced, since
    /// without a terminal nobody is asked. Counted from the program.
    fn rm_root(args: &[String]) -> Option<usize> {
        let options = args.iter().take_while(|arg| *arg != "--");
        let is_option = |arg: &String| arg.starts_with('-');
        options.clone().find(|arg| is_recursive(arg))?;
        let last_option = options.enumerate().filter(|(_, arg)| is_option(arg)).last()?.0;
        let target = args.iter().position(|arg| is_root(arg))?;
        Some(target.max(last_option) + 1)
    }

    /// `-r`, `-R`, a bundle with one of them, `--recursive` or an abbreviation of it.
    fn is_recursive(arg: &str) -> bool {
        match arg.strip_prefix("--") {
            Some(name) => !name.is_empty() && "recursive".starts_with(name),
            None => arg.starts_with('-') && arg.contains(['r', 'R']),
        }
    }

    /// `/` in any spelling, and everything in it.
    fn is_root(path: &str) -> bool {
        let parts = parts(path);
        path.starts_with('/') && parts.iter().all(|part| part.chars().all(|c| matches!(c, '*' | '?' | '.')))
    }

    fn is_device(path: &str) -> bool {
        match parts(path).as_slice() {
            _ if !path.starts_with('/') => false,
            ["dev", "shm" | "fd" | "pts", ..] => false,
            ["dev", name] => !HARMLESS.contains(name),
            ["dev", _, ..] => true,
            _ => false,
        }
    }

    /// The parts of a path after `.`, `..` and doubled slashes are resolved.
    fn parts(path: &str) -> Vec<&str> {
        let mut parts = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn rejected(text: &str) -> String {
        match split(text) {
            Err(WordsError::Rejected { token }) => token,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn quote(word: &str) -> String {
        format!("'{}'", word.replace('\'', r"'\''"))
    }

    fn quote_double(word: &str) -> String {
        let escaped =
            word.chars().flat_map(|c| matches!(c, '$' | '`' | '"' | '\\').then_some('\\').into_iter().chain([c]));
        format!("\"{}\"", escaped.collect::<String>())
    }

    /// What `sh` makes of a text: the words, or `None` where it fails.
    fn by_sh(text: &str) -> Option<Vec<String>> {
        let script = format!("printf '%s\\0' {text}");
        let run = Command::new("sh").args(["-fc", &script]).env_clear().output().expect("sh runs");
        let output = String::from_utf8(run.stdout).ok().filter(|_| run.status.success())?;
        let words = output.strip_suffix('\0')?.split('\0');
        Some(words.map(str::to_owned).collect())
    }

    #[test]
    fn words_are_split_and_unquoted_as_a_shell_does() {
        let cases: &[(&str, &[&str])] = &[
            ("cargo test --all", &["cargo", "test", "--all"]),
            ("  a \t b \n", &["a", "b"]),
            ("a\r\n", &["a"]),
            ("'a b' \"c d\" e\\ f", &["a b", "c d", "e f"]),
            ("a'b'\"c\"\\d", &["abcd"]),
            ("'' \"\" x", &["", "", "x"]),
            (r"'\' x", &["\\", "x"]),
            (r#""\$ \` \" \\ \a""#, &[r#"$ ` " \ \a"#]),
            ("\"a\\\nb\" c\\\nd \\\n e", &["ab", "cd", "e"]),
            ("'a\nb'", &["a\nb"]),
            (r"a\;b \& \> '|'", &["a;b", "&", ">", "|"]),
            ("echo $HOME ~ * ${x} $ a$", &["echo", "$HOME", "~", "*", "${x}", "$", "a$"]),
            ("a#b # c; d", &["a#b"]),
            ("a \\# '#'", &["a", "#", "#"]),
            (r#"echo "\$(id)" '$(id)' '`id`'"#, &["echo", "$(id)", "$(id)", "`id`"]),
            ("echo (a) {b,c} !x", &["echo", "(a)", "{b,c}", "!x"]),
            ("a\\ ", &["a "]),
            ("a\\\\ ", &["a\\"]),
            ("ä\u{a0}b", &["ä\u{a0}b"]),
        ];
        for (text, words) in cases {
            assert_eq!(split(text).unwrap(), *words, "{text:?}");
        }
    }

    #[test]
    fn an_operator_is_refused_by_its_own_name() {
        let cases = [
            ("a; b", ";"),
            ("a && b", "&&"),
            ("a&&b", "&&"),
            ("a || b", "||"),
            ("a|b", "|"),
            ("a |& b", "|"),
            ("a `id`", "`"),
            ("a $(id)", "$("),
            ("a $((1))", "$("),
            ("a\"b $(id)\"", "$("),
            ("a \"`id`\"", "`"),
            ("a > b", ">"),
            ("a >> b", ">>"),
            ("a >| b", ">"),
            ("a < b", "<"),
            ("a << b", "<"),
            ("a 2>&1", ">"),
            ("a &> b", "&"),
            ("a &", "&"),
            ("a\nb", "\n"),
            ("a # x\nb", "\n"),
            ("a \\\\\nb", "\n"),
        ];
        for (text, token) in cases {
            assert_eq!(rejected(text), token, "{text:?}");
        }
    }

    #[test]
    fn nothing_and_half_a_quote_are_errors_of_their_own() {
        for text in ["", " \n\t ", "# only a comment", "\\\n"] {
            assert_eq!(split(text), Err(WordsError::Empty), "{text:?}");
        }
        for text in ["'a", "a \"b", "a \"b\\\"", "a\\", "'", "\"\\"] {
            assert_eq!(split(text), Err(WordsError::UnfinishedQuote), "{text:?}");
        }
        assert_eq!(split("''").unwrap(), [""]);
    }

    #[test]
    fn removing_the_root_is_refused_however_it_is_spelled() {
        let cases = [
            ("rm -rf /", "rm -rf /"),
            ("rm -fr /", "rm -fr /"),
            ("rm -r -f /", "rm -r -f /"),
            ("rm -Rf //", "rm -Rf //"),
            ("rm -rvf /.", "rm -rvf /."),
            ("rm --recursive --force /", "rm --recursive --force /"),
            ("rm --rec --f /", "rm --rec --f /"),
            ("rm -rf '/*'", "rm -rf /*"),
            ("rm -rf /..", "rm -rf /.."),
            ("rm -rf /tmp/..", "rm -rf /tmp/.."),
            ("rm -rf -- /", "rm -rf -- /"),
            ("rm -r --no-preserve-root /", "rm -r --no-preserve-root /"),
            ("rm -rf --no-preserve-root / x", "rm -rf --no-preserve-root /"),
            ("rm / -rf", "rm / -rf"),
            ("rm -rf a /", "rm -rf a /"),
            ("r'm' -\"rf\" \\/", "rm -rf /"),
            ("/bin/rm -rf /", "/bin/rm -rf /"),
            ("sudo rm -rf /", "rm -rf /"),
            ("sudo -n -u root -- /usr/bin/rm -rf /", "/usr/bin/rm -rf /"),
            ("env A=b nice -n 5 rm -rf /", "rm -rf /"),
            ("timeout -k 1 5 rm -rf /", "rm -rf /"),
        ];
        for (text, token) in cases {
            assert_eq!(rejected(text), token, "{text}");
        }
    }

    #[test]
    fn overwriting_a_disk_is_refused() {
        assert_eq!(rejected("dd if=/dev/zero of=/dev/sda bs=1M"), "dd if=/dev/zero of=/dev/sda");
        assert_eq!(rejected("sudo /bin/dd of=//dev/./mapper/x"), "/bin/dd of=//dev/./mapper/x");
        assert_eq!(rejected("mkfs /dev/sda1"), "mkfs");
        assert_eq!(rejected("/sbin/mkfs.ext4 -F disk"), "/sbin/mkfs.ext4");
    }

    #[test]
    fn what_only_looks_alike_is_fine() {
        for text in [
            "rm -rf /tmp/x",
            "rm -rf ./build",
            "rm -rf .",
            "rm -rf ..",
            "rm -f /",
            "rm -- -rf /",
            "rm -rf '*'",
            "rm -rf /.cache",
            "rm",
            "rm -rf",
            "rm -rf ''",
            "echo rm -rf /",
            "grep -r x /",
            "dd if=/dev/zero of=disk",
            "dd if=/dev/sda of=/dev/null",
            "dd of=/dev/stdout",
            "dd of=dev/sda",
            "dd of=/dev/shm/x",
            "echo mkfs",
            "mkfsx",
            "man mkfs",
            "sudo",
            "sudo -u",
            "timeout 5",
            "env",
        ] {
            assert!(split(text).is_ok(), "{text}: {:?}", split(text));
        }
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in prop::collection::vec("[^\\x00]{0,12}", 1..6), double: bool) {
            let quoted: Vec<_> = words.iter().map(|w| if double { quote_double(w) } else { quote(w) }).collect();
            prop_assume!(destructive::find(&words).is_none());
            prop_assert_eq!(split(&quoted.join(" ")).unwrap(), words);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}", shell in "[-ab'\"\\\\$(`;&|<>#\n\r\t /.*=]{0,40}|(sudo|rm|dd|env|-rf|--|/| ){0,9}") {
            let _ = (split(&text), split(&shell));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn sh_agrees(text in "[ab'\"\\\\# \t\n]{1,14}") {
            // A lone backslash at the end is plain text to a shell, an error here.
            let ours = match split(&text) {
                Ok(words) => Some(words),
                Err(WordsError::UnfinishedQuote) if text.ends_with('\\') => return Ok(()),
                Err(WordsError::UnfinishedQuote) => None,
                Err(WordsError::Empty) => Some(vec![String::new()]),
                Err(WordsError::Rejected { .. }) => return Ok(()),
            };
            prop_assert_eq!(ours, by_sh(trim(&text)), "{:?}", text);
        }
    }
}

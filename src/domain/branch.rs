//! Names of branches and starting points, held to git's own rules before git sees them,
//! and the patterns of branches that nobody may check out.
//!
//! Whether such a branch exists, or can exist beside the others, only the repository knows.

use std::fmt;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Serialize, Serializer};

const MAX_LEN: usize = 200;
const OWN: &str = "rdev";
const RESCUED: &str = "rdev/rescue/";

/// A branch that a client may name. `refs/heads/` is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchName(String);

impl BranchName {
    /// What `git check-ref-format --branch` allows, less `@`, names under `rdev/`, and `rdev`
    /// itself, beside which git could not hold `rdev/rescue/…`. At most 200 bytes.
    pub fn parse(text: &str) -> Result<Self, BranchNameError> {
        check_format(text)?;
        check_not_own(text)?;
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// With `refs/heads/`: the only form for a git command line.
    pub fn full_ref(&self) -> String {
        format!("refs/heads/{}", self.0)
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for BranchName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Serialize for BranchName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Where a new branch starts. No revision expression such as `main~1` is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromRef {
    /// A full commit id (SHA-1 or SHA-256), in lower case.
    Commit(String),
    /// A branch or a tag; one under `rdev/rescue/` too, so that rescued work can be taken up.
    Name(String),
}

impl FromRef {
    pub fn parse(text: &str) -> Result<Self, BranchNameError> {
        if matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self::Commit(text.to_ascii_lowercase()));
        }
        check_format(text)?;
        if !text.starts_with(RESCUED) {
            check_not_own(text)?;
        }
        Ok(Self::Name(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        let (Self::Commit(text) | Self::Name(text)) = self;
        text
    }
}

/// The branches of a project that only an admin's push may change. The default branch always is one.
#[derive(Debug, Clone)]
pub struct Protected {
    names: Vec<String>,
    globs: GlobSet,
}

impl Protected {
    /// Names, or globs in which `*` and `?` do not cross a `/` (`**` does).
    pub fn new(default_branch: &str, patterns: &[String]) -> Result<Self, PatternError> {
        let mut globs = GlobSetBuilder::new();
        for pattern in patterns {
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            let glob = glob.map_err(|error| PatternError::new(pattern, &error.kind().to_string()))?;
            if pattern.is_empty() {
                return Err(PatternError::new(pattern, "it is empty"));
            }
            globs.add(glob);
        }
        let globs = globs.build().map_err(|error| PatternError::new("", &error.to_string()))?;
        let names = std::iter::once(default_branch.to_owned()).chain(patterns.iter().cloned()).collect();
        Ok(Self { names, globs })
    }

    pub fn matches(&self, branch: &BranchName) -> bool {
        self.matches_name(branch.as_str())
    }

    /// For names that git gave, which may be others than a client may give.
    pub fn matches_name(&self, branch: &str) -> bool {
        self.names.iter().any(|name| name == branch) || self.globs.is_match(branch)
    }
}

/// Why a text is no branch name. Displayed, it follows the name of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BranchNameError {
    Empty,
    TooLong,
    /// `HEAD`, `@`.
    NotAName,
    Dash,
    Own,
    Character(char),
    Sequence(&'static str),
    Slash,
    ComponentStart,
    ComponentEnd,
    End,
}

impl fmt::Display for BranchNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("must not be empty"),
            Self::TooLong => write!(f, "must not be longer than {MAX_LEN} bytes"),
            Self::NotAName => f.write_str("must be a name; HEAD and @ are none"),
            Self::Dash => f.write_str("must not start with '-'"),
            Self::Own => f.write_str("must not be 'rdev' or start with 'rdev/', which rdev keeps for itself"),
            Self::Character(c) => write!(f, "must not contain {c:?}"),
            Self::Sequence(text) => write!(f, "must not contain '{text}'"),
            Self::Slash => f.write_str("must not start or end with '/' or contain '//'"),
            Self::ComponentStart => f.write_str("must have no part that starts with '.'"),
            Self::ComponentEnd => f.write_str("must have no part that ends with '.lock'"),
            Self::End => f.write_str("must not end with '.'"),
        }
    }
}

impl std::error::Error for BranchNameError {}

/// Names the pattern that is no glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatternError {
    pub pattern: String,
    reason: String,
}

impl PatternError {
    fn new(pattern: &str, reason: &str) -> Self {
        Self { pattern: pattern.to_owned(), reason: reason.to_owned() }
    }
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is neither a branch name nor a glob: {}", self.pattern, self.reason)
    }
}

impl std::error::Error for PatternError {}

/// git-check-ref-format(1), rules 1 to 10 and those of `--branch`. Rule 2 (a slash) is met by
/// `refs/heads/`. In the same words whatever the repository, so `@{-1}` is no name here.
fn check_format(text: &str) -> Result<(), BranchNameError> {
    match text {
        "" => return Err(BranchNameError::Empty),
        "HEAD" | "@" => return Err(BranchNameError::NotAName),
        _ if text.len() > MAX_LEN => return Err(BranchNameError::TooLong),
        _ if text.starts_with('-') => return Err(BranchNameError::Dash),
        _ => {}
    }
    let forbidden = |c: char| c.is_ascii_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    if let Some(c) = text.chars().find(|c| forbidden(*c)) {
        return Err(BranchNameError::Character(c));
    }
    if let Some(sequence) = ["..", "@{"].into_iter().find(|sequence| text.contains(sequence)) {
        return Err(BranchNameError::Sequence(sequence));
    }
    text.split('/').try_for_each(check_component)?;
    if text.ends_with('.') { Err(BranchNameError::End) } else { Ok(()) }
}

fn check_component(component: &str) -> Result<(), BranchNameError> {
    #[expect(clippy::case_sensitive_file_extension_comparisons, reason = "git compares the very bytes")]
    match component {
        "" => Err(BranchNameError::Slash),
        _ if component.starts_with('.') => Err(BranchNameError::ComponentStart),
        _ if component.ends_with(".lock") => Err(BranchNameError::ComponentEnd),
        _ => Ok(()),
    }
}

fn check_not_own(text: &str) -> Result<(), BranchNameError> {
    let own = text.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if own { Err(BranchNameError::Own) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn git_allows(name: &str) -> bool {
        let check = Command::new("git").args(["check-ref-format", "--branch", name]).current_dir("/").output();
        check.expect("git is on PATH, rdev needs it").status.success()
    }

    fn protected(patterns: &[&str]) -> Protected {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        Protected::new("main", &patterns).unwrap()
    }

    #[test]
    fn names_that_git_allows_are_allowed() {
        let long = "x".repeat(200);
        for name in [
            "main",
            "feature/x",
            "a@",
            "@@",
            "@/a",
            "a@b",
            "a./b",
            "é",
            "a{b}",
            "refs/heads/x",
            "HEAD/x",
            "rdevil",
            "x/rdev/y",
            "a.locked",
            "!",
            &long,
        ] {
            assert_eq!(BranchName::parse(name).map(|name| name.to_string()).as_deref(), Ok(name));
            assert!(git_allows(name), "{name}");
        }
        assert_eq!(BranchName::parse("feature/x").unwrap().full_ref(), "refs/heads/feature/x");
    }

    #[test]
    fn a_refusal_says_what_is_wrong() {
        use BranchNameError::*;
        let long = "x".repeat(201);
        let cases = [
            ("", Empty),
            (&long, TooLong),
            ("HEAD", NotAName),
            ("@", NotAName),
            ("-x", Dash),
            ("rdev", Own),
            ("rdev/x", Own),
            ("rdev/rescue/x", Own),
            ("a b", Character(' ')),
            ("a\nb", Character('\n')),
            ("a\0b", Character('\0')),
            ("a\x7fb", Character('\x7f')),
            ("a\\b", Character('\\')),
            ("main~1", Character('~')),
            ("main^{}", Character('^')),
            ("a:b", Character(':')),
            ("a*", Character('*')),
            ("a..b", Sequence("..")),
            ("@{u}", Sequence("@{")),
            ("@{-1}", Sequence("@{")),
            ("/a", Slash),
            ("a/", Slash),
            ("a//b", Slash),
            ("a/.b", ComponentStart),
            (".a", ComponentStart),
            ("a.lock/b", ComponentEnd),
            ("a.lock", ComponentEnd),
            ("a.", End),
        ];
        for (name, error) in cases {
            assert_eq!(BranchName::parse(name), Err(error), "{name:?}");
        }
        assert_eq!(Character('\n').to_string(), "must not contain '\\n'");
    }

    #[test]
    fn a_starting_point_is_a_name_or_a_full_commit_id() {
        let (sha1, sha256) = ("0123456789abcdef".repeat(3)[..40].to_owned(), "AB".repeat(32));
        assert_eq!(FromRef::parse(&sha1), Ok(FromRef::Commit(sha1)));
        assert_eq!(FromRef::parse(&sha256), Ok(FromRef::Commit(sha256.to_lowercase())));
        for name in ["main", "v1.0", "0123abc", "rdev/rescue/s-1", &"a".repeat(41)] {
            assert_eq!(FromRef::parse(name), Ok(FromRef::Name(name.to_owned())));
        }
        for text in [
            "",
            "HEAD",
            "@",
            "HEAD~1",
            "main^",
            "a..b",
            "@{u}",
            "x^{}",
            "main:README",
            ":/fix",
            "-x",
            "rdev",
            "rdev/x",
            "rdev/rescue",
            "rdev/rescue/",
            "rdev/rescue/a..b",
            "main@{1}",
        ] {
            assert!(FromRef::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_star_stays_within_its_part() {
        let set = protected(&["release/*", "v?", "hot**", "[a-c]/x", "deep/**"]);
        for name in ["main", "release/1", "v1", "hotfix", "b/x", "deep/a/b"] {
            assert!(set.matches(&BranchName::parse(name).unwrap()), "{name}");
        }
        for name in
            ["mainly", "Main", "release", "release/1/2", "v", "v/", "x/release/1", "d/x", "RELEASE/1", "my/main"]
        {
            assert!(!set.matches_name(name), "{name}");
        }
        assert!(!protected(&["*"]).matches_name("a/b"));
        assert!(protected(&["{dev,stage}"]).matches_name("stage"));
    }

    #[test]
    fn the_default_branch_is_protected_by_name_alone() {
        let set = Protected::new("a{b", &[]).unwrap();
        assert!(set.matches_name("a{b"));
        assert!(!set.matches_name("main"));
    }

    #[test]
    fn a_pattern_that_is_no_glob_is_named() {
        for pattern in ["[", "a{b", ""] {
            let error = Protected::new("main", &["ok".to_owned(), pattern.to_owned()]).unwrap_err();
            assert_eq!(error.pattern, pattern);
            assert!(error.to_string().contains("neither a branch name nor a glob"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn git_agrees(name in "[-a./@{}~^:?*\\[\\\\ lock\\x01\\x7fé]{1,6}|([.a]{1,2}|\\.lock|@\\{|//){1,4}") {
            prop_assume!(name != "@");
            prop_assert_eq!(BranchName::parse(&name).is_ok(), git_allows(&name));
        }

        #[test]
        fn a_branch_name_is_a_starting_point_too(name in "[-a./@{}~^:*x]{0,6}") {
            prop_assert_eq!(BranchName::parse(&name).is_ok(), FromRef::parse(&name).is_ok());
        }
    }
}

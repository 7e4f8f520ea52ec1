//! What `/git` lets through to git: a guard against accidents and pasted text, not a boundary.
//! The boundary is the place where git runs.

use std::fmt;

/// Options before the subcommand that lead git elsewhere or make it run something.
const REFUSED_FIRST: [&str; 6] = ["-c", "--config-env", "-C", "--exec-path", "--git-dir", "--work-tree"];

/// Options before the subcommand whose value may be the next argument.
const WITH_VALUE: [&str; 3] = ["--namespace", "--attr-source", "--shallow-file"];

/// The arguments may be given to git, or the first token that speaks against it.
pub fn check(args: &[String]) -> Result<(), GitArgsError> {
    if args.is_empty() {
        return Err(GitArgsError::Empty);
    }
    let subcommand = check_global(args)?;
    match args.iter().find_map(|arg| refused_anywhere(arg, subcommand)) {
        Some(token) => Err(GitArgsError::rejected(token)),
        None => Ok(()),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GitArgsError {
    Empty,
    /// The option without its value, or `ext::`.
    Rejected {
        token: String,
    },
}

impl GitArgsError {
    /// What was refused, for `details.token`.
    pub fn token(&self) -> Option<&str> {
        match self {
            Self::Rejected { token } => Some(token),
            Self::Empty => None,
        }
    }

    fn rejected(token: &str) -> Self {
        Self::Rejected { token: token.to_owned() }
    }
}

impl fmt::Display for GitArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("args must name a git subcommand"),
            Self::Rejected { token } => write!(f, "{token:?} is not allowed in the arguments of git"),
        }
    }
}

impl std::error::Error for GitArgsError {}

/// The subcommand, `""` where there is none (as in `git --version`).
fn check_global(args: &[String]) -> Result<&str, GitArgsError> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if !arg.starts_with('-') {
            return Ok(arg);
        }
        if let Some(token) = refused_first(arg) {
            return Err(GitArgsError::rejected(token));
        }
        if WITH_VALUE.contains(&arg.as_str()) {
            args.next();
        }
    }
    Ok("")
}

/// Git takes neither abbreviations here nor `-cname=value` in one; the latter is refused
/// all the same, since the answer of git to it would help nobody.
fn refused_first(arg: &str) -> Option<&str> {
    let name = name(arg);
    let sticky = arg.get(..2).filter(|_| !arg.starts_with("--")).unwrap_or(name);
    REFUSED_FIRST.into_iter().find(|option| *option == name || *option == sticky)
}

fn refused_anywhere<'a>(arg: &'a str, subcommand: &str) -> Option<&'a str> {
    if arg.starts_with("ext::") || arg.contains("=ext::") || arg.starts_with("url.ext::") {
        return Some("ext::");
    }
    let name = name(arg);
    let (upload, receive) = shortest(subcommand);
    let runs_program = (name.starts_with(upload) && "--upload-pack".starts_with(name))
        || (name.starts_with(receive) && "--receive-pack".starts_with(name));
    runs_program.then_some(name)
}

/// The shortest abbreviations of `--upload-pack` and `--receive-pack` that a subcommand may
/// take; shorter ones are ambiguous to git (`--rec` might be `--recurse-submodules`).
fn shortest(subcommand: &str) -> (&'static str, &'static str) {
    match subcommand {
        "clone" | "ls-remote" => ("--u", "--rece"),
        "send-pack" => ("--upl", "--rec"),
        _ => ("--upl", "--rece"),
    }
}

fn name(arg: &str) -> &str {
    arg.split_once('=').map_or(arg, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn verdict(args: &[&str]) -> Result<(), GitArgsError> {
        check(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>())
    }

    fn token(args: &[&str]) -> String {
        match verdict(args) {
            Err(GitArgsError::Rejected { token }) => token,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn everyday_git_passes() {
        let lines: [&[&str]; 15] = [
            &["log", "-5"],
            &["status"],
            &["--version"],
            &["--no-pager", "-p", "log"],
            &["--namespace", "x", "log"],
            &["commit", "-c", "HEAD"],
            &["commit", "-C", "HEAD", "-m", "use ext::Trait"],
            &["switch", "-c", "feature"],
            &["diff", "-C"],
            &["clone", "-c", "core.autocrlf=false", "https://example.com/x.git"],
            &["fetch", "--update-shallow"],
            &["clone", "--recursive", "https://example.com/x.git"],
            &["push", "--rec", "no"],
            &["rev-parse", "--git-dir"],
            &["stash", "--", "-c"],
        ];
        for args in lines {
            assert_eq!(verdict(args), Ok(()), "{args:?}");
        }
    }

    #[test]
    fn options_that_lead_elsewhere_are_refused_before_the_subcommand() {
        assert_eq!(token(&["-c", "core.pager=x", "log"]), "-c");
        assert_eq!(token(&["-ccore.pager=x", "log"]), "-c");
        assert_eq!(token(&["--config-env=a.b=X", "log"]), "--config-env");
        assert_eq!(token(&["--config-env", "a.b=X", "log"]), "--config-env");
        assert_eq!(token(&["-C", "/", "log"]), "-C");
        assert_eq!(token(&["-C/", "log"]), "-C");
        assert_eq!(token(&["--no-pager", "--exec-path=/tmp", "log"]), "--exec-path");
        assert_eq!(token(&["--exec-path"]), "--exec-path");
        assert_eq!(token(&["--git-dir", "/x", "log"]), "--git-dir");
        assert_eq!(token(&["--work-tree=/x", "log"]), "--work-tree");
        // The value of an option is not taken for the subcommand.
        assert_eq!(token(&["--namespace", "log", "-c", "a=b", "log"]), "-c");
        assert_eq!(token(&["--namespace=x", "-c", "a=b", "log"]), "-c");
    }

    #[test]
    fn programs_for_the_other_side_are_refused_anywhere() {
        assert_eq!(token(&["fetch", "--upload-pack", "x", "origin"]), "--upload-pack");
        assert_eq!(token(&["ls-remote", "--upload-pack=x", "."]), "--upload-pack");
        assert_eq!(token(&["push", "origin", "--receive-pack=x"]), "--receive-pack");
        assert_eq!(token(&["fetch", "--upload-p=x"]), "--upload-p");
        assert_eq!(token(&["fetch", "--upl", "x"]), "--upl");
        assert_eq!(token(&["clone", "--u=x", "."]), "--u");
        assert_eq!(token(&["push", "--rece=x"]), "--rece");
        assert_eq!(token(&["send-pack", "--rec=x"]), "--rec");
    }

    #[test]
    fn urls_that_run_a_program_are_refused_anywhere() {
        for arg in ["ext::sh -c id", "--remote=ext::sh", "remote.x.url=ext::sh", "url.ext::sh.insteadOf"] {
            assert_eq!(token(&["x", arg]), "ext::", "{arg}");
        }
        assert_eq!(verdict(&["log", "text::x", "https://h/ext::"]), Ok(()));
    }

    #[test]
    fn no_arguments_are_no_command() {
        assert_eq!(verdict(&[]), Err(GitArgsError::Empty));
        assert_eq!(verdict(&[""]), Ok(()));
    }

    #[test]
    fn git_itself_has_no_shorter_spellings_of_its_first_options() {
        for arg in ["-cuser.name=x", "-C/", "--git-d=/", "--work-t=/", "--config-e=a.b=PATH", "--exec-p=/"] {
            let run = Command::new("git").args([arg, "version"]).output().expect("git is on PATH, rdev needs it");
            assert!(!run.status.success(), "git takes {arg}");
        }
    }
}

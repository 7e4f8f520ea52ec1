//! What is checked of a command before anything is done for it, whoever asks.

use std::{collections::BTreeMap, time::Duration};

use super::Program;
use crate::error::{Error, Result};

pub const TIMEOUT_DEFAULT: Duration = Duration::from_mins(10);
pub const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// Longest single argument that Linux passes on.
const ARGUMENT_MAX: usize = 131_071;

/// # Errors
/// 400: nothing to run, or more words than a program can be given.
pub fn check_program(program: &Program) -> Result<()> {
    let args = match program {
        Program::Script(script) if script.trim().is_empty() => return Err(Error::invalid("script must not be empty")),
        Program::Script(_) => return Ok(()),
        Program::Args(args) => args,
    };
    match args.first() {
        None => return Err(Error::invalid("args must hold at least the program")),
        Some(first) if first.is_empty() => return Err(Error::invalid("the program must not be empty")),
        Some(_) => {}
    }
    if args.iter().any(|arg| arg.len() > ARGUMENT_MAX) {
        return Err(Error::invalid(format!(
            "an argument is longer than {ARGUMENT_MAX} bytes; send it by stdin or a file"
        )));
    }
    if args.iter().map(|arg| arg.len() + 1).sum::<usize>() > 1 << 20 {
        return Err(Error::invalid("the arguments are longer than 1 MiB together; send them by stdin or a file"));
    }
    Ok(())
}

/// A relative path that does not leave the place it is relative to. None for that place itself.
///
/// # Errors
/// 400.
pub fn inside(path: &str) -> Result<Option<String>> {
    let refuse = || Error::invalid("cwd must be a relative path inside the workspace");
    let mut kept: Vec<&str> = Vec::new();
    if path.starts_with('/') {
        return Err(refuse());
    }
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            kept.pop().ok_or_else(refuse)?;
        } else {
            kept.push(part);
        }
    }
    Ok(Some(kept.join("/")).filter(|path| !path.is_empty()))
}

/// # Errors
/// 400: a name that is none, or more than a program can be given.
pub fn check_environment(env: &BTreeMap<String, String>) -> Result<()> {
    if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(Error::invalid("env holds a name that cannot be used").reason(name.clone()));
    }
    if env.iter().any(|(name, value)| name.len() + value.len() + 1 > ARGUMENT_MAX) {
        return Err(Error::invalid(format!("env holds a variable longer than {ARGUMENT_MAX} bytes")));
    }
    if env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>() > 1 << 20 {
        return Err(Error::invalid("env is longer than 1 MiB"));
    }
    Ok(())
}

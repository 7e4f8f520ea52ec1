//! The floor plan of `src/lib.rs`, held up against the sources: what a module names under
//! `crate::` lies below it, and each floor keeps away from what is not its own.
//!
//! The rules are data. An exception stands with its reason, and one that is no longer
//! needed is an error, so that the list stays short.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// From top to bottom. A floor may use those below it; modules that share a floor keep apart.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["app"],
    &["router"],
    &["handlers", "workers"],
    &["services"],
    &["queue", "streams", "runtime", "forge", "ci", "models", "egress"],
    &["store"],
    &["database"],
    &["config", "data_dir", "metrics", "telemetry", "outward"],
    &["domain", "error"],
];

/// Of what lies below, these floors see this alone.
const SEES_ALONE: &[(&str, &[&str])] = &[
    ("handlers", &["services", "domain", "error", "metrics"]),
    ("workers", &["services", "domain", "error", "metrics"]),
    ("router", &["handlers", "services", "error"]),
    ("domain", &["domain"]),
    ("error", &[]),
];

/// A file, what it names against the plan, and why that is right.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("handlers/git.rs", "forge", "git's conversation is HTTP itself: the host answers the request"),
    ("handlers/streams.rs", "streams", "where a reader begins is a word of the log's"),
];

/// Services from top to bottom: each calls those after it.
const SERVICES: &[&str] = &[
    "discovery",
    "deletion",
    "sagas",
    "session_end",
    "sessions",
    "checkouts",
    "reviews",
    "commands",
    "previews",
    "following",
    "pool",
    "pipelines",
    "callouts",
    "chats",
    "jobs",
    "webhooks",
    "git_access",
    "watching",
    "output",
    "deploys",
    "gc",
    "projects",
    "workspaces",
    "tickets",
    "keys",
    "limits",
    "receipts",
    "health",
    "upkeep",
];

/// Words that do not stand in a part of the house, each with what to do instead.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("handlers", &["sqlx", "PgPool"], "a handler sees services; SQL belongs to store/"),
    ("workers", &["sqlx", "PgPool"], "a worker sees services; SQL belongs to store/"),
    ("router.rs", &["sqlx"], "SQL belongs to store/"),
    ("services", &["axum", "StatusCode", "HeaderMap", "HeaderName"], "HTTP belongs to handlers/"),
    ("queue", &["axum", "http::"], "HTTP belongs to handlers/"),
    ("streams", &["axum", "http::"], "HTTP belongs to handlers/"),
    ("store", &["axum", "http::", "begin()", ".commit()"], "a service opens the transaction and ends it"),
    ("runtime", &["axum", "http::", "sqlx"], "a place where commands run knows neither"),
    ("models", &["axum", "sqlx"], "an upstream knows neither"),
    ("ci", &["axum", "sqlx"], "a CI server knows neither"),
    ("outward", &["axum", "sqlx"], "who calls others knows neither"),
    ("egress", &["axum", "sqlx"], "a call to somebody else's server knows neither"),
    (
        "domain",
        &["axum", "http::", "async fn", ".await", "Utc::now", "Instant::now", "SystemTime"],
        "a decision takes the time and awaits nothing",
    ),
    ("error.rs", &["axum", "http::", "StatusCode", "sqlx"], "an error is in the domain's words"),
    ("", &["todo!(", "unimplemented!(", "dbg!("], "finish it"),
];

/// A file, a word that it says all the same, and why that is right.
const SAYS_ALL_THE_SAME: &[(&str, &str, &str)] = &[
    ("domain/clock.rs", "Utc::now", "this is the clock that all others are handed"),
    ("services/webhooks.rs", "HeaderMap", "a webhook is a request of our own"),
    ("services/webhooks.rs", "HeaderName", "a webhook is a request of our own"),
];

/// Files besides `config/` that look at the environment.
const READS_ENVIRONMENT: &[(&str, &str)] = &[
    ("config/settings.rs", "this is the place"),
    ("config/typed.rs", "this is the place"),
    ("forge/embedded/hook.rs", "git tells its hook by variables"),
    ("forge/git.rs", "git is looked for where the server's programs are"),
    ("forge/git/run.rs", "git gets the few variables that it needs and no other"),
    ("database/embedded/binaries.rs", "initdb and postgres are looked for where the server's programs are"),
];

struct Source {
    /// Below `src/`.
    path: String,
    /// Without tests and comments.
    text: String,
}

impl Source {
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &mut found);
    assert!(found.len() > 50, "the sources are not where they were");
    found
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name != "tests.rs"))
        .map(|path| Source {
            path: path.strip_prefix(&root).expect("below src").display().to_string(),
            text: code(&fs::read_to_string(&path).expect("a source is readable")),
        })
        .collect()
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is there").map(|entry| entry.expect("readable").path()) {
        if entry.is_dir() {
            collect(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// What is compiled into the program: no comments, nothing from `#[cfg(test)]` on.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules named right behind `prefix`, also within braces.
fn named(text: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        let rest = &text[at + prefix.len()..];
        if let Some(list) = rest.strip_prefix('{') {
            found.extend(heads(list));
        } else {
            found.extend(head(rest));
        }
    }
    found
}

/// The first name of each item of a list that ends with its closing brace.
fn heads(list: &str) -> Vec<String> {
    let (mut depth, mut found, mut fresh) = (0, Vec::new(), true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                found.extend(head(&list[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    found
}

fn head(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn is_excepted(path: &str, to: &str) -> bool {
    EXCEPTIONS.iter().any(|(file, name, _)| *file == path && *name == to)
}

#[test]
fn no_arrow_points_up() {
    let mut wrong = Vec::new();
    for source in sources() {
        let from = source.module();
        if from == "lib" {
            continue;
        }
        let at = floor(from).unwrap_or_else(|| panic!("{from} has no place in the floor plan of tests/layers.rs"));
        for to in named(&source.text, "crate::").iter().filter(|to| *to != from) {
            let Some(below) = floor(to) else { continue };
            let shown = SEES_ALONE.iter().find(|(module, _)| *module == from);
            let hidden = shown.is_some_and(|(_, alone)| !alone.contains(&to.as_str()));
            if (below <= at || hidden) && !is_excepted(&source.path, to) {
                wrong.push(format!("{} names crate::{to}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows against the floor plan:\n  {}", wrong.join("\n  "));
}

#[test]
fn every_exception_is_still_needed() {
    let sources = sources();
    for (file, name, reason) in EXCEPTIONS {
        let source = sources.iter().find(|source| source.path == *file);
        let needed = source.is_some_and(|source| named(&source.text, "crate::").contains(*name));
        assert!(needed, "{file} no longer names {name} ({reason}): take the exception away");
    }
    for (file, word, reason) in SAYS_ALL_THE_SAME {
        let source = sources.iter().find(|source| source.path == *file);
        assert!(source.is_some_and(|source| says(&source.text, word)), "{file} no longer says {word} ({reason})");
    }
    for (file, reason) in READS_ENVIRONMENT {
        let source = sources.iter().find(|source| source.path == *file);
        assert!(source.is_some_and(reads_environment), "{file} no longer reads the environment ({reason})");
    }
}

#[test]
fn services_call_each_other_in_one_order() {
    let place = |name: &str| SERVICES.iter().position(|service| *service == name);
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.module() == "services") {
        let name = source.path.split('/').nth(1).unwrap_or_default().trim_end_matches(".rs");
        if name == "mod" {
            continue;
        }
        let at = place(name).unwrap_or_else(|| panic!("{name} has no place in the order of services"));
        let below_itself = source.path.matches('/').count() > 1;
        let prefixes: &[&str] = if below_itself { &["super::super::"] } else { &["super::", "services::"] };
        for to in prefixes.iter().flat_map(|prefix| named(&source.text, prefix)) {
            if place(&to).is_some_and(|to| to < at) {
                wrong.push(format!("{name} calls {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "calls against the order of services:\n  {}", wrong.join("\n  "));
}

#[test]
fn no_floor_speaks_anothers_language() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (part, words, instead) in FORBIDDEN {
            if !part.is_empty() && source.path != *part && source.module() != *part {
                continue;
            }
            let said = words.iter().filter(|word| says(&source.text, word));
            for word in said.filter(|word| !SAYS_ALL_THE_SAME.iter().any(|(f, w, _)| *f == source.path && w == *word)) {
                wrong.push(format!("{}: {word}: {instead}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "words that do not belong there:\n  {}", wrong.join("\n  "));
}

/// Whether the word stands there and not as the end of a longer one.
fn says(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || c == '_') || !word.starts_with(char::is_alphabetic))
    })
}

fn reads_environment(source: &Source) -> bool {
    ["env::var(", "env::var_os(", "env::vars("].iter().any(|call| source.text.contains(call))
        || source.text.contains("env::vars_os(")
}

#[test]
fn the_environment_is_read_in_one_place() {
    let known = |path: &str| READS_ENVIRONMENT.iter().any(|(file, _)| *file == path);
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|source| reads_environment(source) && !known(&source.path))
        .map(|s| s.path)
        .collect();
    assert!(wrong.is_empty(), "these read the environment, which config/ does for all: {wrong:?}");
}

#[test]
fn every_file_begins_with_what_lives_in_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let silent: Vec<_> = files
        .into_iter()
        .filter(|path| !fs::read_to_string(path).expect("a source is readable").starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "these do not say what lives in them: {silent:?}");
}

#[test]
fn names_behind_a_prefix_are_found_in_lists_too() {
    let text = "use crate::{a::{b, c}, d, self_made::E};\nlet x = crate::f::g();";
    let names: Vec<_> = named(text, "crate::").into_iter().collect();
    assert_eq!(names, ["a", "d", "f", "self_made"]);
}

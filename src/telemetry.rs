//! Logs go to stderr: text for people, JSON for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

/// Begins to log. `json` as configured; unset: JSON when stdout is no terminal.
pub fn start(filter: &str, json: Option<bool>) {
    // An answer of the cluster that is none is told by whoever asked.
    let quiet = format!("sqlx::postgres::notice=warn,kube_client::client=off,{filter}");
    let filter = EnvFilter::try_new(quiet).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = json.unwrap_or_else(|| !std::io::stdout().is_terminal());
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let begun = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    // A second start in one process (tests) keeps the first.
    let _already = begun;
}

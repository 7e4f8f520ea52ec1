//! The command line. Hidden subcommands come first and touch nothing else: they are this
//! program as supervisor, inside a sandbox, as git's hook, as the embedded database.

mod keys;
mod serve;

use std::{ffi::OsString, process::ExitCode};

use clap::{ArgMatches, Command};

use crate::{
    app::Why,
    config::{Config, Settings},
    database, forge, runtime,
};

const WRONG_USE: u8 = 2;
const FAILED: u8 = 1;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = hidden(&arguments) {
        return code;
    }
    let matches = command().get_matches();
    let outcome = match matches.subcommand() {
        Some(("serve", flags)) => configured(flags, serve::serve),
        Some(("migrate", flags)) => configured(flags, serve::migrate),
        Some(("config", flags)) => show_config(flags),
        Some(("keys", matches)) => keys::run(matches),
        _ => Err(Why::Setting("a subcommand is needed; `rdev --help` lists them".into())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Why::Setting(line)) => {
            eprintln!("rdev: {line}");
            ExitCode::from(WRONG_USE)
        }
        Err(Why::Failed(line)) => {
            eprintln!("rdev: {line}");
            ExitCode::from(FAILED)
        }
    }
}

fn hidden(arguments: &[OsString]) -> Option<ExitCode> {
    let rest = arguments.get(2..).unwrap_or_default();
    match arguments.get(1)?.to_str()? {
        "supervise" => Some(runtime::local::supervise::main(rest)),
        "confine" => Some(runtime::local::confine::main(rest)),
        "git-hook" => Some(forge::hook_main(rest.iter().map(|word| word.to_string_lossy().into_owned()))),
        "postgres-child" => Some(database::child_main(rest.iter().cloned())),
        _ => None,
    }
}

/// The command line as it is documented.
pub fn command() -> Command {
    let with_settings =
        |name: &'static str, about: &'static str| Command::new(name).about(about).args(Settings::flags());
    Command::new("rdev")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A control plane between people, pipelines and agents on one side and their project pods on the other")
        .arg_required_else_help(true)
        .subcommand_required(true)
        .subcommand(with_settings("serve", "Serve the API"))
        .subcommand(with_settings("migrate", "Bring the database's schema up to date"))
        .subcommand(with_settings("config", "Print what is in force and where each value came from, secrets masked"))
        .subcommand(keys::command())
}

/// Parses the settings before anything is started.
fn configured(flags: &ArgMatches, work: impl FnOnce(Config) -> Result<(), Why>) -> Result<(), Why> {
    let settings = Settings::load(flags).map_err(Why::Setting)?;
    work(Config::parse(&settings).map_err(Why::Setting)?)
}

fn show_config(flags: &ArgMatches) -> Result<(), Why> {
    let settings = Settings::load(flags).map_err(Why::Setting)?;
    Config::parse(&settings).map_err(Why::Setting)?;
    let rows = settings.describe();
    let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, value, source) in rows {
        println!("{name:width$} = {value:24} # {source}");
    }
    Ok(())
}

/// A runtime for a command's work.
fn block_on<T>(work: impl Future<Output = Result<T, Why>>) -> Result<T, Why> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Why::Failed(error.to_string()))?.block_on(work)
}

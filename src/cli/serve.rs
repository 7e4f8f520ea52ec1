//! `rdev serve` and `rdev migrate`.

use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::block_on;
use crate::{
    app::{self, App, Attached, Options, Why},
    config::Config,
    domain::clock::Clock,
    telemetry,
};

pub fn serve(config: Config) -> Result<(), Why> {
    telemetry::start(&config.log, config.log_json);
    block_on(async move {
        let mut signals = Signals::new()?;
        let options = Options {
            config,
            clock: Clock::System,
            exe: this_program()?,
            announce: Box::new(|url| println!("listening on {url}")),
            first_key: Box::new(|key, file| {
                eprintln!("The admin key, shown this once and kept in {}:\n\n    {}\n", file.display(), key.expose());
            }),
        };
        let app = tokio::select! {
            started = App::start(options) => started?,
            () = signals.next() => return Ok(()),
        };
        signals.next().await;
        tracing::info!("stopping; a second signal ends this at once");
        tokio::select! {
            () = app.stop() => Ok(()),
            () = signals.next() => Err(Why::Failed("ended at once by a second signal".into())),
        }
    })
}

pub fn migrate(config: Config) -> Result<(), Why> {
    telemetry::start(&config.log, config.log_json);
    block_on(async move {
        let config = Config { auto_migrate: true, ..config };
        let attached = attach(&config).await?;
        attached.stop().await;
        println!("the database is up to date");
        Ok(())
    })
}

/// The configured database, with its schema up to date.
///
/// # Errors
/// One clear line.
pub async fn attach(config: &Config) -> Result<Attached, Why> {
    let data_dir = app::open_data_dir(config)?;
    app::attach(config, &data_dir, &this_program()?, || {}).await
}

fn this_program() -> Result<PathBuf, Why> {
    std::env::current_exe().map_err(|error| Why::Failed(format!("this program cannot find itself: {error}")))
}

/// SIGTERM and SIGINT.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self, Why> {
        let listen = |kind| signal(kind).map_err(|error| Why::Failed(format!("signals cannot be heard: {error}")));
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

//! Reading on in a command's files. The exit file appears last, so when it is there and
//! both outputs are read to their ends, all is read. A supervisor that is gone without it
//! was killed: nothing is made up then.

use std::{io, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::{FutureExt as _, future::BoxFuture};

use super::{
    launch,
    spec::{Exit, Termination as Told, file},
    watch::{Watch, Watched},
};
use crate::{
    domain::{
        clock::Clock,
        command::{Ended, Termination},
    },
    error::{Error, Result},
    runtime::{Follow, Piece},
};

/// Read at once.
const READ: usize = 256 << 10;
/// A look without a bell: notifications can be lost, and a killed supervisor rings none.
const LOOK: Duration = Duration::from_secs(1);

pub struct FileFollow {
    files: Arc<Files>,
    stdout: u64,
    stderr: u64,
    /// Seen before the last read of the outputs found nothing more.
    exit: Option<Exit>,
    watched: Option<Watched>,
    watch: Watch,
    told: bool,
}

struct Files {
    dir: PathBuf,
    command_id: String,
}

enum Found {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exit(Box<Exit>),
    Lost,
    Nothing,
}

impl FileFollow {
    pub fn open(watch: &Watch, dir: PathBuf, command_id: String, stdout: u64, stderr: u64) -> Self {
        let files = Arc::new(Files { dir, command_id });
        Self { files, stdout, stderr, exit: None, watched: None, watch: watch.clone(), told: false }
    }

    async fn step(&mut self) -> Result<Option<Piece>> {
        if self.watched.is_none() {
            self.watched = self.watch.folder(&self.files.dir).ok();
        }
        let files = self.files.clone();
        let (stdout, stderr, over) = (self.stdout, self.stderr, self.exit.is_some());
        let found =
            tokio::task::spawn_blocking(move || files.look(stdout, stderr, over)).await.map_err(Error::internal)?;
        Ok(match found.map_err(Error::internal)? {
            Found::Stdout(bytes) => {
                self.stdout += bytes.len() as u64;
                Some(Piece::Stdout(bytes.into()))
            }
            Found::Stderr(bytes) => {
                self.stderr += bytes.len() as u64;
                Some(Piece::Stderr(bytes.into()))
            }
            Found::Exit(exit) => {
                self.exit = Some(*exit);
                None
            }
            Found::Lost => Some(Piece::Ended(Ended::without_code(Termination::SupervisorLost, Clock::System.now()))),
            Found::Nothing => match self.exit.take() {
                Some(exit) => Some(Piece::Ended(ended(exit))),
                None => {
                    self.wait().await;
                    None
                }
            },
        })
    }

    async fn wait(&self) {
        match &self.watched {
            Some(watched) => {
                let _either = tokio::time::timeout(LOOK, watched.bell.notified()).await;
            }
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

impl Follow for FileFollow {
    /// Dropping the future loses nothing: positions move only with what is handed out.
    fn next(&mut self) -> BoxFuture<'_, Result<Piece>> {
        async move {
            if self.told {
                return std::future::pending().await;
            }
            loop {
                if let Some(piece) = self.step().await? {
                    self.told = matches!(piece, Piece::Ended(_));
                    return Ok(piece);
                }
            }
        }
        .boxed()
    }
}

impl Files {
    /// What there is to tell next. `over`: the exit file was there before the outputs are read now.
    fn look(&self, stdout: u64, stderr: u64, over: bool) -> io::Result<Found> {
        if let Some(bytes) = self.read(file::OUT, stdout)? {
            return Ok(Found::Stdout(bytes));
        }
        if let Some(bytes) = self.read(file::ERR, stderr)? {
            return Ok(Found::Stderr(bytes));
        }
        if over {
            return Ok(Found::Nothing);
        }
        if let Some(exit) = launch::exit(&self.dir) {
            return Ok(Found::Exit(Box::new(exit)));
        }
        if launch::alive(&self.dir) {
            return Ok(Found::Nothing);
        }
        // It may have ended between the two looks.
        if let Some(exit) = launch::exit(&self.dir) {
            return Ok(Found::Exit(Box::new(exit)));
        }
        match launch::end_leftovers(&self.dir, &self.command_id) {
            Ok(0) => {}
            Ok(count) => tracing::warn!(command.id = self.command_id, count, "processes of a lost command were ended"),
            Err(error) => tracing::error!(%error, command.id = self.command_id, "processes of a lost command are left"),
        }
        // What was written before the supervisor was killed is still to be read.
        let more =
            self.read(file::OUT, stdout)?.map(Found::Stdout).or(self.read(file::ERR, stderr)?.map(Found::Stderr));
        Ok(more.unwrap_or(Found::Lost))
    }

    fn read(&self, name: &str, from: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match std::fs::File::open(self.dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            outcome => outcome?,
        };
        let there = file.metadata()?.len().saturating_sub(from);
        if there == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(there).unwrap_or(READ).min(READ)];
        let read = file.read_at(&mut bytes, from)?;
        bytes.truncate(read);
        Ok((read > 0).then_some(bytes))
    }
}

fn ended(exit: Exit) -> Ended {
    let termination = match exit.termination {
        Told::Exit => Termination::Exit,
        Told::Signal => Termination::Signal,
        Told::Timeout => Termination::Timeout,
        Told::Cancelled => Termination::Cancelled,
        Told::SessionEnded => Termination::SessionEnded,
        Told::ServerStopped => Termination::ServerStopped,
        Told::OutputLimit => Termination::OutputLimit,
        Told::StartFailed => Termination::StartFailed,
    };
    Ended {
        termination,
        exit_code: exit.exit_code,
        signal: exit.signal,
        message: exit.message,
        at: time(exit.ended_at_ms),
    }
}

fn time(ms: u64) -> DateTime<Utc> {
    i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis).unwrap_or_default()
}

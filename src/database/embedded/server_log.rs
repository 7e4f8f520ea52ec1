//! The server's log: one file of bounded size, and its end for those who ask why the server does not start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::cluster::Cluster;
use crate::data_dir::fault;

/// A start sets a larger log aside.
const KEPT: u64 = 256 << 10;
const TAIL: u64 = 4096;

impl Cluster {
    pub fn log_file(&self) -> PathBuf {
        self.dir().join("server.log")
    }

    pub fn log(&self) -> Result<File, String> {
        let path = self.log_file();
        let opened = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&path);
        opened.map_err(|e| fault("open", &path, &e))
    }

    /// Sets a log that has grown aside; the one before it goes.
    pub fn rotate_log(&self) -> Result<(), String> {
        let path = self.log_file();
        if fs::metadata(&path).is_ok_and(|found| found.len() > KEPT) {
            fs::rename(&path, self.dir().join("server.log.1")).map_err(|e| fault("rename", &path, &e))?;
        }
        Ok(())
    }

    /// Empties a log that grew past the limit while the server runs (it appends, so it goes on at the start).
    pub fn trim_log(&self, limit: u64) {
        if let Ok(log) = self.log()
            && log.metadata().is_ok_and(|found| found.len() > limit)
        {
            // Best effort: tried again soon.
            let _ = log.set_len(0);
        }
    }

    /// The end of what was logged after this many bytes.
    pub fn log_tail(&self, seen: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut log = File::open(self.log_file())?;
            let from = log.metadata()?.len().saturating_sub(TAIL).max(seen);
            log.seek(SeekFrom::Start(from))?;
            let mut tail = Vec::new();
            log.take(TAIL).read_to_end(&mut tail)?;
            Ok(tail)
        };
        read().map_or_else(|e| format!("(unreadable: {e})"), |tail| String::from_utf8_lossy(&tail).trim().to_owned())
    }
}

//! A file that lines are appended to, all or none.
//!
//! Invariant: the file has its lines whole up to the length of [`AppendFile::written`], whose checksum is known. An append
//! that fails is truncated; if that fails too, nothing is ever appended again.

use std::fmt;
use std::io;

use super::growing_checksum::GrowingChecksum;
use crate::durable::disk::DiskFile;
use crate::durable::io_reason;
use crate::error::{Error, ErrorKind, Result};

/// A file that lines are appended to, all or none.
pub(super) struct AppendFile {
    pub(super) target: Box<dyn DiskFile>,
    pub(super) place: String,
    /// Length and checksum of the file, without appends that failed.
    pub(super) written: GrowingChecksum,
    /// `true` if there are changes that are not synced.
    pub(super) unsynced: bool,
    /// `true` if the file contains a part of an epoch that could not be truncated.
    pub(super) torn: bool,
}

impl AppendFile {
    pub(super) fn to(target: Box<dyn DiskFile>, place: String) -> Self {
        AppendFile { target, place, written: GrowingChecksum::default(), unsynced: false, torn: false }
    }

    pub(super) fn failed(&self, to: &str, why: impl fmt::Display) -> Error {
        Error::of(ErrorKind::SinkFailed, format!("cannot {to}")).at(&self.place).because(why)
    }

    pub(super) fn failed_by(&self, to: &str, why: io::Error) -> Error {
        self.failed(to, io_reason(&why)).caused_by(why)
    }

    /// Truncates the file to its first bytes, whose length and checksum are given; appending continues there.
    pub(super) fn begin(&mut self, written: GrowingChecksum) -> Result<()> {
        let length = written.length();
        let found = self.target.length().map_err(|why| self.failed_by("begin the results file", why))?;
        if found != length {
            self.target.truncate(length).map_err(|why| self.failed_by("begin the results file", why))?;
            self.unsynced = true;
        }
        self.written = written;
        Ok(())
    }

    /// Appends lines, all or none.
    pub(super) fn append(&mut self, lines: &[u8]) -> Result<()> {
        if self.torn {
            return Err(self.failed("write the results", "a part of an earlier epoch is in the way"));
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.unsynced = true;
        if let Err(why) = self.target.append(lines) {
            let failed = self.failed_by("write the results", why);
            return Err(match self.target.truncate(self.written.length()) {
                Ok(()) => failed,
                Err(why) => {
                    self.torn = true;
                    let length = self.written.length();
                    failed.help(format!("cut the file back to {length} bytes, as that failed too: {why}"))
                }
            });
        }
        self.written.update(lines);
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        if self.unsynced {
            self.target.sync().map_err(|why| self.failed_by("sync the results", why))?;
            self.unsynced = false;
        }
        Ok(())
    }
}

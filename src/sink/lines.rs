//! Files of lines as sinks: each row's bytes as they are, and the end of the line.
//!
//! Bytes that have an end of a line in them are several lines then: nothing is escaped.

use std::path::PathBuf;

use crate::error::Result;
use crate::sink::encode::EncodeRows;
use crate::sink::{Sink, SinkContext, SinkRows, SinkWriter, file};

/// A file to write rows of bytes to, a line each.
#[derive(Clone, Debug)]
pub(crate) struct LineSink {
    path: PathBuf,
}

impl LineSink {
    /// Creates a sink that writes to the file at `path`.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        LineSink { path: path.into() }
    }
}

impl Sink<Vec<u8>> for LineSink {
    fn describe(&self) -> String {
        format!("file {}", self.path.display())
    }

    fn check(&self, _: SinkRows) -> Result<()> {
        Ok(())
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<Vec<u8>>>> {
        Ok(Box::new(file::FileWriter::open::<Vec<u8>>(&self.path, LineEncoder(at.rows), at)?))
    }
}

/// Encodes bytes as lines.
#[derive(Clone, Debug)]
struct LineEncoder(SinkRows);

impl EncodeRows<Vec<u8>> for LineEncoder {
    fn header(&self, _: &mut Vec<u8>) {}

    fn row(&mut self, row: &Vec<u8>, _: isize, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(row);
        out.push(b'\n');
        Ok(())
    }

    fn kind(&self) -> SinkRows {
        self.0
    }
}

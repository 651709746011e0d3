//! Files whose rows are encoded where they are read, while they are in the processor's cache, and travel as bytes.
//!
//! A row of several texts is several pieces of memory, which wait for the end of the epoch and are touched again then, on
//! another core; its line is one piece, and shorter. That pays where rows are not sorted by their values:
//! [`Stream::write_in_order`](crate::Stream::write_in_order).
//!
//! Invariant: the file has the bytes that it has when its rows are encoded at the end of an epoch.

use std::path::{Path, PathBuf};

use super::encode::EncodeRows;
use super::file::FileWriter;
use super::{EncodedSink, Sink, SinkContext, SinkRows, SinkWriter};
use crate::error::Result;
use crate::record::Record;

/// Returns the sink of a file whose events this encoder encodes.
pub(super) fn encoded_file<D: Record>(path: &Path, mut encoder: impl EncodeRows<D>) -> EncodedSink<D> {
    let mut header = Vec::new();
    encoder.header(&mut header);
    EncodedSink::new(move |event, out| encoder.row(event, 1, out), EncodedFile { path: path.to_owned(), header })
}

/// A file that gets lines.
struct EncodedFile {
    path: PathBuf,
    header: Vec<u8>,
}

impl Sink<Vec<u8>> for EncodedFile {
    fn describe(&self) -> String {
        format!("file {}", self.path.display())
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<Vec<u8>>>> {
        let lines = EncodedLines { header: self.header.clone(), kind: at.rows };
        Ok(Box::new(FileWriter::open::<Vec<u8>>(&self.path, lines, at)?))
    }
}

/// The encoder of what is encoded.
#[derive(Clone)]
struct EncodedLines {
    header: Vec<u8>,
    kind: SinkRows,
}

impl EncodeRows<Vec<u8>> for EncodedLines {
    fn header(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header);
    }

    fn row(&mut self, line: &Vec<u8>, _: isize, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(line);
        Ok(())
    }

    fn kind(&self) -> SinkRows {
        self.kind
    }
}

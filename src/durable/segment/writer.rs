//! Writes raw blocks to a segment file: the part of writing a segment that waits for the disk, on a thread of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lz4_flex::block::{compress_into, get_maximum_output_size};

use crate::durable::codec::RowEncoding;
use crate::durable::disk::{Disk, DiskFile};
use crate::durable::io_reason;
use crate::durable::segment::format::{self, BlockInfo, SegmentFooter, SegmentHeader};
use crate::durable::segment::{RawBlock, SegmentInfo, SegmentLabel};
use crate::error::{Error, Result};

/// Writes one segment. Dropped before [`SegmentWriter::finish`], it leaves an incomplete file that nothing refers to.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    path: PathBuf,
    name: String,
    label: SegmentLabel,
    file: Box<dyn DiskFile>,
    length: u64,
    blocks: Vec<BlockInfo>,
    compressed: Vec<u8>,
}

impl SegmentWriter {
    /// Creates the file of a segment, with rows encoded by `encoding`.
    ///
    /// # Errors
    /// Fails if the file cannot be created, or if a file of that name exists.
    pub(crate) fn create(
        disk: &Arc<dyn Disk>,
        directory: &Path,
        label: &SegmentLabel,
        encoding: &RowEncoding,
    ) -> Result<Self> {
        let name = label.file_name();
        let path = directory.join(&name);
        match disk.open(&path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(failed_by(&path, why)),
            Ok(_) => return Err(failed(&path, "a file of that name is there, and segments are never written over")),
        }
        let header = format::encode_header(&SegmentHeader::new(label.clone(), encoding))?;
        let file = disk.create(&path).map_err(|why| failed_by(&path, why))?;
        let mut writer = SegmentWriter {
            disk: Arc::clone(disk),
            directory: directory.to_owned(),
            path,
            name,
            label: label.clone(),
            file,
            length: header.len() as u64,
            blocks: Vec::new(),
            compressed: Vec::new(),
        };
        match writer.file.append(&header) {
            Ok(()) => Ok(writer),
            Err(why) => {
                let failed = failed_by(&writer.path, why);
                writer.abandon();
                Err(failed)
            }
        }
    }

    /// Compresses and appends a block.
    ///
    /// # Errors
    /// Fails if it cannot be written; the segment is then unusable.
    pub(crate) fn append(&mut self, block: &RawBlock) -> Result<()> {
        self.compressed.resize(get_maximum_output_size(block.bytes.len()), 0);
        let compressed = compress_into(&block.bytes, &mut self.compressed).map_err(|why| failed(&self.path, why))?;
        // Equal lengths mark a block that is not compressed.
        let stored = self.compressed.get(..compressed).filter(|stored| stored.len() < block.bytes.len());
        let stored = stored.unwrap_or(&block.bytes);
        let count = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|why| failed(&self.path, why));
        self.blocks.push(BlockInfo {
            stored_length: count(stored)?,
            raw_length: count(&block.bytes)?,
            rows: block.rows,
            checksum: crc32fast::hash(stored),
            least: block.least,
            greatest: block.greatest,
        });
        self.file.append(stored).map_err(|why| failed_by(&self.path, why))?;
        self.length += stored.len() as u64;
        Ok(())
    }

    /// Completes the segment and makes it durable: first the file, then its name.
    ///
    /// # Errors
    /// Fails if it cannot be written or synced; its file is then removed as far as possible.
    pub(crate) fn finish(mut self) -> Result<SegmentInfo> {
        let finished = self.complete();
        if finished.is_err() {
            self.abandon();
        }
        finished
    }

    fn complete(&mut self) -> Result<SegmentInfo> {
        let footer = SegmentFooter::new(std::mem::take(&mut self.blocks));
        let (bytes, checksum) = format::encode_footer(&footer)?;
        self.file.append(&bytes).map_err(|why| failed_by(&self.path, why))?;
        self.file.sync().map_err(|why| failed_by(&self.path, why))?;
        self.disk.sync_directory(&self.directory).map_err(|why| failed_by(&self.path, why))?;
        Ok(footer.info(&self.label, self.name.clone(), self.length + bytes.len() as u64, checksum))
    }

    /// Removes the unfinished file, as far as possible.
    pub(crate) fn abandon(self) {
        // A file that stays is named by no manifest.
        let _what_stays_is_harmless = self.disk.remove(&self.path);
    }
}

fn failed_by(path: &Path, why: io::Error) -> Error {
    failed(path, io_reason(&why)).caused_by(why)
}

fn failed(path: &Path, why: impl std::fmt::Display) -> Error {
    let error = Error::new("cannot write a segment").at(path.display()).because(why);
    error.help("see to the disk and start again: the state is as it was at the last snapshot")
}

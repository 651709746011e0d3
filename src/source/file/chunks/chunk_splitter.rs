//! Finding where a chunk ends.
//!
//! Invariants: a chunk is whole records. A record longer than [`FileLimits::longest`](super::FileLimits::longest) is a
//! chunk of its own, of which only the beginning is held.

use super::input_file::InputFile;
use super::limits::format_bytes;
use crate::error::Result;
use crate::source::file::format::{RecordFormat, ScanState};

/// Number of bytes that are kept of a record that is too long.
const KEPT_OF_LONG_RECORD: usize = 1 << 10;

/// Bytes of the next chunk, split off the unread rest of the file.
#[derive(Debug)]
pub(super) struct ChunkBytes {
    pub(super) bytes: Vec<u8>,
    pub(super) skip: usize,
    pub(super) too_long: Option<u64>,
}

/// A search for the end of a record that is too long.
#[derive(Debug)]
struct EndSearch {
    start: u64,
    at: u64,
    state: ScanState,
}

/// Splits the next chunk off a file.
#[derive(Debug, Default)]
pub(super) struct ChunkSplitter {
    /// Search for the end of a record that is too long and still incomplete.
    scan: Option<EndSearch>,
}

impl ChunkSplitter {
    /// Returns the chunk that begins at `position`; `None` if no record is complete before `limit`. If `last`, the file ends at `limit`, and
    /// so does its last record.
    pub(super) fn next<F: RecordFormat>(
        &mut self,
        format: &F,
        file: &mut InputFile,
        position: u64,
        head: u64,
        limit: u64,
        last: bool,
    ) -> Result<Option<ChunkBytes>> {
        let (rest, mut size) = (usize::try_from(limit - position).unwrap_or(usize::MAX), file.limits.block);
        let mut bytes = file.buffer();
        loop {
            let want = size.min(rest);
            let had = bytes.len();
            file.read_into(&mut bytes, position + had as u64, want - had)?;
            let skip = (head.saturating_sub(position) as usize).min(want);
            if want == rest && last {
                return Ok(Some(ChunkBytes { bytes, skip, too_long: None }));
            }
            let end = format.last_record_end(&bytes[skip..]).map(|end| end + skip).or((skip > 0).then_some(skip));
            if let Some(end) = end {
                bytes.truncate(end);
                return Ok(Some(ChunkBytes { bytes, skip, too_long: None }));
            }
            if want == rest {
                file.keep(bytes);
                return Ok(None);
            }
            if size >= file.limits.longest {
                let Some(length) = self.long_record(format, file, position, limit, last)? else { return Ok(None) };
                // The end of the record may be one that shows only with the byte after it.
                let fits = length <= bytes.len() as u64;
                bytes.truncate(if fits { length as usize } else { KEPT_OF_LONG_RECORD });
                bytes.shrink_to_fit();
                return Ok(Some(ChunkBytes { bytes, skip: 0, too_long: (!fits).then_some(length) }));
            }
            size = (size * 2).min(file.limits.longest);
        }
    }

    /// Returns the length of the next record, which is too long to be held; `None` if it has no end before `limit`.
    fn long_record<F: RecordFormat>(
        &mut self,
        format: &F,
        file: &mut InputFile,
        position: u64,
        limit: u64,
        last: bool,
    ) -> Result<Option<u64>> {
        let start = position;
        let known = self.scan.take().filter(|scan| scan.start == start && scan.at <= limit);
        let begun = known.is_none();
        let mut scan = known.unwrap_or(EndSearch { start, at: start, state: ScanState::FieldStart });
        while scan.at < limit {
            let count = file.limits.block.min((limit - scan.at) as usize);
            let bytes = file.read(scan.at, count)?;
            let end = format.record_end(&mut scan.state, &bytes);
            file.keep(bytes);
            if let Some(end) = end {
                return Ok(Some(scan.at + end as u64 - start));
            }
            scan.at += count as u64;
        }
        if last {
            return Ok(Some(limit - start));
        }
        if begun {
            let (path, longest) = (file.path.display(), format_bytes(file.limits.longest));
            tracing::warn!(
                "the record at offset {start} of {path} is longer than {longest}, and has no end yet: is a quote never closed?"
            );
        }
        self.scan = Some(scan);
        Ok(None)
    }
}

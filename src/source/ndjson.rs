//! NDJSON files as sources: one JSON value per line, such as `{"id":1,"account":"a","at_ms":1767323045678}`.
//!
//! Lines end in `\n` (a `\r` before it is white space). Blank lines and a byte order mark at the beginning are skipped.
//! Fields that the record type does not have are ignored, unless the type denies them. The module does not know how a
//! file is cut into chunks, nor what becomes of a record.

use std::ops::Range;

use crate::error::Result;
use crate::record::Record;
use crate::source::file::format::{BYTE_ORDER_MARK, RecordFormat, ScanState};
use crate::source::file::{self, Untimed};

/// An NDJSON file to read records from: `Source::new(path).event_time(|t: &T| t.at_ms)`.
pub type Source<T = Untimed> = file::FileSource<Ndjson, T>;

/// The format of NDJSON files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ndjson;

impl RecordFormat for Ndjson {
    const NAME: &'static str = "ndjson file";

    type Layout = ();
    type Scratch = ();

    fn read_layout<T: Record>(&self, bytes: &[u8], whole: bool) -> Result<Option<((), usize)>> {
        let mark = BYTE_ORDER_MARK;
        if bytes.len() < mark.len() && mark.starts_with(bytes) && !whole {
            return Ok(None);
        }
        Ok(Some(((), if bytes.starts_with(mark) { mark.len() } else { 0 })))
    }

    fn last_record_end(&self, bytes: &[u8]) -> Option<usize> {
        memchr::memrchr(b'\n', bytes).map(|at| at + 1)
    }

    fn record_end(&self, _within: &mut ScanState, bytes: &[u8]) -> Option<usize> {
        memchr::memchr(b'\n', bytes).map(|at| at + 1)
    }

    fn parse<T: Record>(
        &self,
        (): &(),
        (): &mut (),
        bytes: &[u8],
        mut take: impl FnMut(Range<usize>, std::result::Result<T, String>),
    ) {
        // Text that is known to be UTF-8 decodes faster. Where a chunk is not UTF-8, only the lines that are not are
        // rejected.
        let text = std::str::from_utf8(bytes).ok();
        let mut start = 0;
        while start < bytes.len() {
            let end = memchr::memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at);
            let place = start..end - usize::from(bytes[start..end].ends_with(b"\r"));
            start = end + 1;
            if bytes[place.clone()].iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let parsed = match text.and_then(|text| text.get(place.clone())) {
                Some(line) => serde_json::from_str(line),
                None => serde_json::from_slice(&bytes[place.clone()]),
            };
            take(place, parsed.map_err(|why| reason(&why)));
        }
    }
}

/// Returns the reason for rejecting a line. The library's line number is dropped: it counts within the value, which is
/// one line.
fn reason(why: &serde_json::Error) -> String {
    let (text, place) = (why.to_string(), format!(" at line {} column {}", why.line(), why.column()));
    match text.strip_suffix(&place) {
        Some(text) if why.column() > 0 => format!("{text}, at column {}", why.column()),
        _ => text,
    }
}

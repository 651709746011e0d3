//! Reads records of a format from any reader, for programs that read a file or a pipe without a job.
//!
//! Invariant: records are found, accepted and rejected as in a file that a job reads.

use std::collections::VecDeque;
use std::io::{self, Read};

use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;

use super::chunks::{MAX_RECORD, format_bytes};
use super::foreign_kinds;
use super::format::{RecordFormat, ScanState};

/// Number of bytes to read at a time.
const BLOCK: usize = 256 << 10;

/// A record of type `T`, or the reason for rejecting it.
pub(crate) type Parsed<T> = std::result::Result<T, String>;

/// Iterates over the records of a format in a reader.
#[derive(Debug)]
pub(crate) struct RecordReader<F: RecordFormat, R, T> {
    format: F,
    reader: R,
    layout: Option<F::Layout>,
    scratch: F::Scratch,
    /// Bytes that were read but not parsed.
    bytes: Vec<u8>,
    /// Number of bytes that were parsed, and of the lines that end in them.
    parsed: (u64, u64),
    /// State of the scan for the end of a record that is too long; `None` otherwise.
    scan_state: Option<ScanState>,
    is_over: bool,
    /// Parsed records with their lines, from 1.
    records: VecDeque<(u64, Parsed<T>)>,
}

impl<F: RecordFormat, R: Read, T: Record> RecordReader<F, R, T> {
    /// Creates a reader of records, and reads their header.
    ///
    /// # Errors
    /// Fails if `reader` fails, or if its bytes are of another format.
    pub(crate) fn new(format: F, reader: R) -> Result<Self> {
        let (scratch, records) = (F::Scratch::default(), VecDeque::new());
        let mut pieces = RecordReader {
            format,
            reader,
            layout: None,
            scratch,
            bytes: Vec::new(),
            parsed: (0, 0),
            scan_state: None,
            is_over: false,
            records,
        };
        while pieces.layout.is_none() {
            pieces.fill()?;
            if pieces.bytes.len() < foreign_kinds::ENOUGH && !pieces.is_over {
                continue;
            }
            foreign_kinds::check(&pieces.bytes)?;
            if let Some((layout, head)) = pieces.format.read_layout::<T>(&pieces.bytes, pieces.is_over)? {
                pieces.layout = Some(layout);
                pieces.drop_parsed(head);
            } else if pieces.bytes.len() > MAX_RECORD {
                let error = Error::new(format!("the header is longer than {}", format_bytes(MAX_RECORD)));
                return Err(error.help("look for a quote that is never closed, or for lines that do not end"));
            }
        }
        Ok(pieces)
    }

    /// Returns the next record with its line, from 1; `None` at the end.
    ///
    /// # Errors
    /// Fails if the input cannot be read.
    pub(crate) fn next_record(&mut self) -> Result<Option<(u64, Parsed<T>)>> {
        loop {
            if let Some(record) = self.records.pop_front() {
                return Ok(Some(record));
            }
            if self.is_over && self.bytes.is_empty() {
                return Ok(None);
            }
            self.parse_more()?;
        }
    }

    /// Returns the number of bytes that were parsed.
    pub(crate) fn position(&self) -> u64 {
        self.parsed.0
    }

    /// Parses the complete records, or reads more bytes if there are none.
    fn parse_more(&mut self) -> Result<()> {
        if let Some(within) = &mut self.scan_state {
            match self.format.record_end(within, &self.bytes) {
                Some(end) => {
                    self.drop_parsed(end);
                    self.scan_state = None;
                }
                None => {
                    self.drop_parsed(self.bytes.len());
                    self.fill()?;
                }
            }
            return Ok(());
        }
        let end = if self.is_over { Some(self.bytes.len()) } else { self.format.last_record_end(&self.bytes) };
        let (Some(end), Some(layout)) = (end, &self.layout) else {
            if self.bytes.len() < MAX_RECORD {
                return self.fill();
            }
            let reason = format!("it is longer than {}", format_bytes(MAX_RECORD));
            self.records.push_back((self.parsed.1 + 1, Err(reason)));
            self.scan_state = Some(ScanState::FieldStart);
            return Ok(());
        };
        let (bytes, records) = (&self.bytes[..end], &mut self.records);
        let (mut counted, mut line) = (0, self.parsed.1 + 1);
        self.format.parse::<T>(layout, &mut self.scratch, bytes, |place, parsed| {
            line += memchr::memchr_iter(b'\n', &bytes[counted..place.start]).count() as u64;
            counted = place.start;
            let too_long = place.len() >= MAX_RECORD;
            let parsed = if too_long { Err(format!("it is longer than {}", format_bytes(MAX_RECORD))) } else { parsed };
            records.push_back((line, parsed));
        });
        self.drop_parsed(end);
        Ok(())
    }

    /// Drops the first `count` bytes, which are parsed.
    fn drop_parsed(&mut self, count: usize) {
        self.parsed.0 += count as u64;
        self.parsed.1 += memchr::memchr_iter(b'\n', &self.bytes[..count]).count() as u64;
        self.bytes.drain(..count);
    }

    /// Reads once, at most a block: the records of a pipe are returned as they arrive.
    fn fill(&mut self) -> Result<()> {
        let had = self.bytes.len();
        self.bytes.resize(had + BLOCK, 0);
        let read = loop {
            match self.reader.read(&mut self.bytes[had..]) {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let read = read.map_err(|why| Error::of(ErrorKind::SourceUnreachable, "cannot read the input").caused_by(why));
        self.bytes.truncate(had + *read.as_ref().unwrap_or(&0));
        self.is_over = read? == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::csv::Csv;
    use crate::source::ndjson::Ndjson;

    type LinesRead = Vec<(u64, bool)>;

    fn all<F: RecordFormat>(bytes: &[u8]) -> LinesRead {
        let mut pieces = RecordReader::<F, _, (u64, String)>::new(F::default(), bytes).unwrap();
        let mut found = Vec::new();
        while let Some((line, parsed)) = pieces.next_record().unwrap() {
            found.push((line, parsed.is_ok()));
        }
        assert_eq!(pieces.position(), bytes.len() as u64);
        found
    }

    /// A reader that returns three bytes at a time, and counts them.
    struct Slow<'a>(&'a [u8], &'a std::cell::Cell<usize>);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(into.len()).min(3);
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            self.1.set(self.1.get() + count);
            Ok(count)
        }
    }

    #[test]
    fn records_of_a_pipe_are_given_on_as_they_come() {
        let (text, given) = ("[1,\"a\"]\n[2,\"b\"]\n[3,\"c\"]\n", std::cell::Cell::new(0));
        let mut pieces = RecordReader::<Ndjson, _, (u64, String)>::new(Ndjson, Slow(text.as_bytes(), &given)).unwrap();
        for line in 1..=3 {
            assert_eq!(pieces.next_record().unwrap().unwrap().0, line);
            assert!(given.get() < 8 * line as usize + 3, "{} bytes were read for record {line}", given.get());
        }
        assert!(pieces.next_record().unwrap().is_none());
    }

    #[test]
    fn records_have_their_lines_and_one_that_is_too_long_costs_only_itself() {
        let good = "[1,\"a\"]\n".repeat(100_000);
        let long = format!("[2,\"{}\"]\n", "x".repeat(MAX_RECORD));
        let text = format!("\u{feff}{good}\n{long}[3,\"b\"]\nx\n[4,\"c\"]");
        let found = all::<Ndjson>(text.as_bytes());
        let expected: LinesRead = (1..=100_000)
            .map(|line| (line, true))
            .chain([(100_002, false), (100_003, true), (100_004, false), (100_005, true)])
            .collect();
        assert_eq!(found, expected);
        let text = format!("a,b\n1,\"x\ny\"\n2,\"{}\"\n3,z\n", "x\n".repeat(MAX_RECORD / 2));
        let line = 2 + 2 + MAX_RECORD as u64 / 2 + 1;
        assert_eq!(all::<Csv>(text.as_bytes()), [(2, true), (4, false), (line, true)]);
    }
}

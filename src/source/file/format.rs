//! Format of a file: where its records end, and how they are decoded.
//!
//! * A [`RecordFormat`] is all that differs between kinds of files.
//! * Its **layout** is what the beginning of a file tells of the records, such as the columns that a header names.
//! * A [`ScanState`] lets a search for the end of a record go on with the next bytes, whatever their number.
//!
//! A value of a format has its options, such as the delimiter of fields.
//!
//! Invariant: a format sees bytes only. It knows neither the file, nor its chunks, nor what becomes of a record.

use std::fmt;
use std::ops::Range;

use crate::error::Result;
use crate::record::Record;

/// UTF-8 byte order mark, which some programs write at the beginning of a file. It belongs to no record.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// State of a scan within a record, as far as a [`RecordFormat`] needs it to find the record's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanState {
    /// At the beginning of a field.
    FieldStart,
    /// In a field without quotes, or after its quotes.
    Plain,
    /// Between quotes.
    Quoted,
    /// After a quote between quotes: the closing one, or the first of two.
    Quote,
}

/// A kind of file: finds the ends of records and decodes them.
pub trait RecordFormat: Clone + Default + fmt::Debug + Send + Sync + 'static {
    /// Name of the format for people and in states, such as "csv file".
    const NAME: &'static str;

    /// Information from the beginning of a file that is needed to decode records of one type.
    type Layout: fmt::Debug + Send + Sync + 'static;

    /// Buffers that a worker reuses between chunks.
    type Scratch: Default;

    /// Returns the identity of files that are read in this way, by which a state knows its source again: the name of the
    /// format, and the options that decide what is a record.
    ///
    /// # Errors
    /// Fails if the format's options make no sense.
    fn identity(&self) -> Result<String> {
        Ok(Self::NAME.to_owned())
    }

    /// Reads the bytes before the first record. Returns the layout and the number of these bytes. `bytes` are the first
    /// ones of the file; `whole` is `true` if there are no more. `None` if more bytes are needed, which never happens
    /// if `whole` is `true`.
    ///
    /// # Errors
    /// Fails if files like this cannot give records of type `T`.
    fn read_layout<T: Record>(&self, bytes: &[u8], whole: bool) -> Result<Option<(Self::Layout, usize)>>;

    /// Returns the position after the last complete record of bytes that begin at a record; `None` if no record is
    /// complete.
    fn last_record_end(&self, bytes: &[u8]) -> Option<usize>;

    /// Returns the position in `bytes` after the end of the record. `within` is the state of the scan at the first
    /// byte. `None` if the record goes on; `within` is then the state after the last byte. Used for records that are
    /// too long to be held in memory.
    fn record_end(&self, within: &mut ScanState, bytes: &[u8]) -> Option<usize>;

    /// Decodes bytes that are whole records. `take` gets each record's range in the bytes, without the line end, and
    /// the record or the reason for rejecting it.
    fn parse<T: Record>(
        &self,
        layout: &Self::Layout,
        scratch: &mut Self::Scratch,
        bytes: &[u8],
        take: impl FnMut(Range<usize>, std::result::Result<T, String>),
    );
}

//! CSV files as sources: a header that names the columns, then one record a row.
//!
//! * Fields are separated by commas, or by another [`Delimiter`].
//! * The **header** is the first row. Columns are matched with the record type's fields by name; the order is free, and
//!   columns that the type does not have are ignored. A column that the type needs and the header lacks is an error.
//! * A row is rejected if it has more or fewer fields than the header, if it does not decode, if a field has text
//!   behind its closing quote, or if a quote is never closed: the content of such a field is a guess. Blank lines and a
//!   byte order mark at the beginning are skipped.
//!
//! Invariant: rows, fields and values are those of the `csv` crate with its default options, but for the delimiter: fields may be quoted, a
//! quote within quotes is doubled, a quote inside an unquoted field stands for itself, and a row ends with `\n`, `\r`
//! or both. The fast path of this module is taken only where it is checked to give the same; in doubt, the crate
//! decides. The module does not know how a file is cut into chunks, nor what becomes of a record.

mod delimiter;
mod fields;
mod rows;
mod shape;
#[cfg(feature = "kafka")]
mod single_row;

use std::ops::Range;

use ::csv::ByteRecord;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result, shortened};
use crate::record::Record;
use crate::source::file::format::{BYTE_ORDER_MARK, RecordFormat, ScanState};
use crate::source::file::{self, Untimed};

pub use delimiter::Delimiter;
use fields::RowFields;
use rows::{QuoteFault, Splitter};

/// A CSV file to read records from: `Source::new(path).event_time(|t: &T| t.at_ms)`.
pub type Source<T = Untimed> = file::FileSource<Csv, T>;

/// The format of CSV files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Csv {
    pub(crate) delimiter: Delimiter,
}

/// Number of rows that are decoded both ways before decoding by position is trusted.
const TRIAL_ROWS: usize = 64;

/// Columns of a file, from its header.
#[derive(Debug)]
pub struct Layout {
    header: ByteRecord,
    /// Column of each field of the record type, in the order of fields; `None` if the type cannot be decoded by
    /// position.
    order: Option<Vec<usize>>,
}

/// Buffers that a worker reuses between chunks.
#[derive(Debug, Default)]
pub struct Scratch {
    splitter: Splitter,
    record: ByteRecord,
}

impl RecordFormat for Csv {
    const NAME: &'static str = "csv file";

    type Layout = Layout;
    type Scratch = Scratch;

    fn identity(&self) -> Result<String> {
        self.delimiter.check()?;
        Ok(match self.delimiter {
            delimiter if delimiter == Delimiter::COMMA => Self::NAME.to_owned(),
            delimiter => format!("{} with fields between {delimiter}", Self::NAME),
        })
    }

    fn read_layout<T: Record>(&self, bytes: &[u8], whole: bool) -> Result<Option<(Layout, usize)>> {
        let (mark, delimiter) = (BYTE_ORDER_MARK, self.delimiter.byte());
        let mut start = if bytes.starts_with(mark) { mark.len() } else { 0 };
        while matches!(bytes.get(start), Some(b'\n' | b'\r')) {
            start += 1;
        }
        let mut splitter = Splitter::default();
        let end = if start < bytes.len() { splitter.split(bytes, start, delimiter) } else { start };
        if end == bytes.len() && !whole {
            return Ok(None);
        }
        if start == bytes.len() {
            return Ok(Some((Layout { header: ByteRecord::new(), order: None }, start)));
        }
        let header: ByteRecord = splitter.row(bytes, None).fields().collect();
        let misquoted = splitter.quote_fault();
        let head = end + bytes[end..].iter().take(2).take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
        let order = shape::order::<T>(&header).map_err(|problem| {
            let error = Error::new(format!("the csv header {problem}"))
                .because(format!("the header names {}", names_of(&header)));
            error.help(match other_delimiter(&header, self.delimiter) {
                Some(other) => format!("if its fields are between {other}, say so by `delimiter` or --delimiter"),
                None => "give the file a header that names every column the record needs, once".to_owned(),
            })
        })?;
        if let Some((field, _)) = misquoted {
            let error = Error::new(format!("name {} of the csv header is quoted wrongly", field + 1));
            return Err(error.help("a quote within quotes is doubled, and nothing stands behind a closing one"));
        }
        let rows = &bytes[head..];
        let rows = &rows[..if whole { rows.len() } else { rows::last_end(rows, delimiter).unwrap_or(0) }];
        let mut layout = Layout { header, order };
        if layout.order.is_some() && !layout.agrees::<T>(rows, delimiter) {
            layout.order = None;
        }
        Ok(Some((layout, head)))
    }

    fn last_record_end(&self, bytes: &[u8]) -> Option<usize> {
        rows::last_end(bytes, self.delimiter.byte())
    }

    fn record_end(&self, within: &mut ScanState, bytes: &[u8]) -> Option<usize> {
        rows::end_of(within, bytes, self.delimiter.byte())
    }

    fn parse<T: Record>(
        &self,
        layout: &Layout,
        scratch: &mut Scratch,
        bytes: &[u8],
        mut take: impl FnMut(Range<usize>, std::result::Result<T, String>),
    ) {
        let (Scratch { splitter, record }, delimiter) = (scratch, self.delimiter.byte());
        let text = std::str::from_utf8(bytes).ok();
        let mut start = 0;
        while let Some(at) = rows::begin(bytes, start) {
            let end = splitter.split(bytes, at, delimiter);
            let row = splitter.row(bytes, text);
            let parsed = match (splitter.quote_fault(), layout.by_position(&row)) {
                (None, Some(data)) => Ok(data),
                (None, None) => layout.by_name(&row, record),
                (Some((field, how)), _) => Err(layout.misquoted(field, how)),
            };
            take(at..end, parsed);
            start = end;
        }
    }
}

/// Number of names of a header that an error quotes, and length of each in characters.
const QUOTED_NAMES: (usize, usize) = (12, 40);

/// Lists the names of a header for an error message: the first ones, each shortened.
fn names_of(header: &ByteRecord) -> String {
    let (most, length) = QUOTED_NAMES;
    let names = header.iter().take(most);
    let names: Vec<_> = names.map(|name| format!("`{}`", shortened(&String::from_utf8_lossy(name), length))).collect();
    match header.len().saturating_sub(most) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// Returns the usual delimiter that is found most often in the names of a header, if any is.
fn other_delimiter(header: &ByteRecord, chosen: Delimiter) -> Option<Delimiter> {
    let count = |usual: &Delimiter| header.iter().flatten().filter(|byte| **byte == usual.byte()).count();
    let others = Delimiter::USUAL.into_iter().filter(|usual| *usual != chosen && count(usual) > 0);
    others.max_by_key(count)
}

impl<T> Source<T> {
    /// Sets the character between the fields, which is a comma otherwise: `;`, a tab, `|` or another ASCII character. The
    /// rules of quotes stay the same. The job fails at its start with a character that cannot be one: see [`Delimiter`].
    ///
    /// ```
    /// use tidegate::csv;
    ///
    /// let table = csv::Source::new("transactions.tsv").delimiter('\t');
    /// # let _ = table;
    /// ```
    #[must_use]
    pub fn delimiter(self, delimiter: impl Into<Delimiter>) -> Self {
        self.with_format(Csv { delimiter: delimiter.into() })
    }
}

impl Layout {
    /// Decodes a row by position; `None` if only the `csv` crate can tell what it is.
    #[inline]
    fn by_position<T: Record>(&self, row: &RowFields<'_>) -> Option<T> {
        let order = self.order.as_ref().filter(|_| row.len() == self.header.len())?;
        row.decode(order).ok()
    }

    /// Returns the reason for rejecting a row with wrong quotes.
    fn misquoted(&self, field: usize, how: QuoteFault) -> String {
        let column = match self.header.get(field) {
            Some(name) => format!("column `{}`", shortened(&String::from_utf8_lossy(name), 60)),
            None => format!("field {}", field + 1),
        };
        match how {
            QuoteFault::TextAfter => {
                format!("{column}: there is text behind its closing quote (a quote within quotes is doubled)")
            }
            QuoteFault::Unclosed => format!("{column}: its quote is never closed"),
        }
    }

    /// Decodes a row with the `csv` crate, or returns the reason for rejecting it.
    fn by_name<T: DeserializeOwned>(
        &self,
        row: &RowFields<'_>,
        record: &mut ByteRecord,
    ) -> std::result::Result<T, String> {
        if row.len() != self.header.len() {
            let fields = if row.len() == 1 { "field" } else { "fields" };
            return Err(format!("it has {} {fields} where the header names {}", row.len(), self.header.len()));
        }
        record.clear();
        row.fields().for_each(|field| record.push_field(field));
        record.deserialize(Some(&self.header)).map_err(|why| {
            let ::csv::ErrorKind::Deserialize { err, .. } = why.kind() else { return why.to_string() };
            let column = err.field().and_then(|field| self.header.get(field as usize));
            match column {
                Some(name) => format!("column `{}`: {}", String::from_utf8_lossy(name), err.kind()),
                None => err.kind().to_string(),
            }
        })
    }

    /// `true` if none of the first rows decodes to different records by position and by name.
    fn agrees<T: Record>(&self, rows: &[u8], delimiter: u8) -> bool {
        let (mut splitter, mut record, mut start) = (Splitter::default(), ByteRecord::new(), 0);
        for _ in 0..TRIAL_ROWS {
            let Some(at) = rows::begin(rows, start) else { break };
            start = splitter.split(rows, at, delimiter);
            let row = splitter.row(rows, None);
            if let Some(data) = self.by_position::<T>(&row)
                && self.by_name(&row, &mut record) != Ok(data)
            {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;

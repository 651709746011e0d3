//! Answers of a view: rows of one epoch, kept typed until they are read as JSON.

use std::any::Any;
use std::fmt;

use crate::error::{Error, Result};
use crate::record::Record;
use crate::sink::encode::EncodeRows;
use crate::sink::ndjson::Encoder;
use crate::time::Epoch;

/// Rows of a view: all rows as of one epoch, or all changes of one epoch.
#[derive(Debug)]
#[non_exhaustive]
pub struct Answer {
    /// The view's name.
    pub view: String,
    /// The epoch: the rows include all changes at or before it, and none after it.
    pub epoch: Epoch,
    /// The rows, sorted.
    pub rows: ViewRows,
}

impl Answer {
    /// Returns the rows as typed values, each with its number of copies, or the change of that number.
    ///
    /// # Errors
    /// Fails if the view has rows of another type.
    pub fn typed<D: Record>(self) -> Result<Vec<(D, isize)>> {
        let rows = self.rows.0.into_any().downcast::<TypedRows<D>>();
        rows.map(|rows| rows.rows.collect()).map_err(|_| {
            let asked = std::any::type_name::<D>();
            Error::usage(format!("rows of a view are not of type `{asked}`")).at(format!("view `{}`", self.view))
        })
    }
}

/// Rows as JSON: one object per row, as in NDJSON files, with a last field `diff`: the number of copies of the row, or
/// the change of that number. Each text is made when the iterator reaches it.
pub struct ViewRows(Box<dyn JsonRows>);

impl fmt::Debug for ViewRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("len", &self.0.left()).finish()
    }
}

impl ViewRows {
    /// Creates an answer's rows, sorted; of changes, retractions come before insertions.
    pub(super) fn new<D: Record>(mut rows: Vec<(D, isize)>, encoder: Encoder) -> Self {
        rows.sort_unstable_by(|(a, less), (b, more)| (*less > 0, a).cmp(&(*more > 0, b)));
        ViewRows(Box::new(TypedRows { rows: rows.into_iter(), encoder }))
    }
}

/// Yields an error for a row that cannot be JSON; for example if an optional field has the name of the last one,
/// `diff`.
impl Iterator for ViewRows {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        self.0.next_text()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.left(), Some(self.0.left()))
    }
}

impl ExactSizeIterator for ViewRows {}

/// Rows of some type, erased.
trait JsonRows: Send {
    fn next_text(&mut self) -> Option<Result<String>>;

    fn left(&self) -> usize;

    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

struct TypedRows<D> {
    rows: std::vec::IntoIter<(D, isize)>,
    encoder: Encoder,
}

impl<D: Record> JsonRows for TypedRows<D> {
    fn next_text(&mut self) -> Option<Result<String>> {
        let (row, diff) = self.rows.next()?;
        Some(text(&mut self.encoder, &row, diff))
    }

    fn left(&self) -> usize {
        self.rows.len()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Encodes a row as JSON.
///
/// # Errors
/// Fails if the row cannot be JSON.
pub(super) fn text<D: Record>(encoder: &mut Encoder, row: &D, diff: isize) -> Result<String> {
    let mut line = Vec::new();
    encoder.row(row, diff, &mut line)?;
    line.pop(); // The line end.
    String::from_utf8(line).map_err(|why| Error::new("a row is not text").because(why))
}

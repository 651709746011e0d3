//! What a view answers: rows of one epoch, typed until somebody wants them as JSON.

use std::any::Any;
use std::fmt;

use crate::error::{Error, Result};
use crate::record::Record;
use crate::sink::encode::Encode;
use crate::sink::ndjson::Encoder;
use crate::time::Epoch;

/// Rows of a view, all as they are at one epoch, or all that one epoch changed.
#[derive(Debug)]
pub struct Answer {
    /// The view's name.
    pub view: String,
    /// The epoch: all that happened at it and before is in the rows, and nothing that happened later.
    pub epoch: Epoch,
    /// The rows, in their order.
    pub rows: Rows,
}

impl Answer {
    /// The rows as they are in the program, each with how many there are of it, or by how much that changed.
    ///
    /// # Errors
    /// When the view has rows of another type.
    pub fn typed<D: Record>(self) -> Result<Vec<(D, isize)>> {
        let rows = self.rows.0.into_any().downcast::<Typed<D>>();
        rows.map(|rows| rows.rows.collect()).map_err(|_| {
            let asked = std::any::type_name::<D>();
            Error::usage(format!("rows of a view are not of type `{asked}`")).at(format!("view `{}`", self.view))
        })
    }
}

/// Rows as texts of JSON: one object for each row, as an NDJSON file has them, with a last field `diff`: how many there are
/// of the row, or by how much that changed. Each text is made when it is asked for.
pub struct Rows(Box<dyn Texts>);

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("len", &self.0.left()).finish()
    }
}

impl Rows {
    /// Rows in their order; of changes, those that go before those that come.
    pub(super) fn new<D: Record>(mut rows: Vec<(D, isize)>, encoder: Encoder) -> Self {
        rows.sort_unstable_by(|(a, less), (b, more)| (*less > 0, a).cmp(&(*more > 0, b)));
        Rows(Box::new(Typed { rows: rows.into_iter(), encoder }))
    }
}

/// An error is a row that cannot be JSON: a field that is only there at times and has the name of the last one, for one.
impl Iterator for Rows {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        self.0.next_text()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.left(), Some(self.0.left()))
    }
}

impl ExactSizeIterator for Rows {}

/// Rows of some type.
trait Texts: Send {
    fn next_text(&mut self) -> Option<Result<String>>;

    fn left(&self) -> usize;

    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

struct Typed<D> {
    rows: std::vec::IntoIter<(D, isize)>,
    encoder: Encoder,
}

impl<D: Record> Texts for Typed<D> {
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

/// A row as a text of JSON.
///
/// # Errors
/// When it cannot be one.
pub(super) fn text<D: Record>(encoder: &mut Encoder, row: &D, diff: isize) -> Result<String> {
    let mut line = Vec::new();
    encoder.row(row, diff, &mut line)?;
    line.pop(); // The end of the line.
    String::from_utf8(line).map_err(|why| Error::new("a row is not text").because(why))
}

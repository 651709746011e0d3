//! Encoding of rows as bytes: the parts that all formats share.
//!
//! * An [`EncodeRows`] turns rows into **lines** of one format; each line ends in `\n`.
//! * The **column of differences** is the last column, [`DIFF`], of a written collection.
//!
//! Invariants: an encoder does no I/O and depends on nothing but the rows, so the bytes of an epoch are the same on
//! every worker, encoded at once or in pieces; rows that fail to encode leave no bytes behind. The destination of the
//! bytes is not known here.

use crate::error::{Error, Result};
use crate::sink::SinkRows;

/// Name of the column of differences.
pub(crate) const DIFF: &str = "diff";

/// Encodes rows as lines of one format.
pub(crate) trait EncodeRows<D>: Clone + Send + 'static {
    /// Appends the header, if the format has one.
    fn header(&self, out: &mut Vec<u8>);

    /// Appends one row with its difference.
    ///
    /// # Errors
    /// Fails if the row does not serialize as its type promised; the caller must then drop what was appended.
    fn row(&mut self, row: &D, diff: isize, out: &mut Vec<u8>) -> Result<()>;

    /// Returns the kind of rows that are encoded.
    fn kind(&self) -> SinkRows;

    /// Appends rows of an epoch: an event as often as its difference says, a change once and with its difference,
    /// retractions first.
    ///
    /// # Errors
    /// Fails if a row does not serialize as its type promised, or if a difference is invalid; `out` is then unchanged.
    fn rows(&mut self, rows: &[(D, isize)], out: &mut Vec<u8>) -> Result<()> {
        let (before, kind) = (out.len(), self.kind());
        let mut encode = |(row, diff): &(D, isize)| {
            let start = out.len();
            let times = line_count(kind, *diff)?;
            self.row(row, *diff, out)?;
            let end = out.len();
            for _ in 1..times {
                out.extend_from_within(start..end);
            }
            Ok(())
        };
        // Events are never retracted. A pass over the rows of a large epoch costs as much as a tenth of its lines.
        let encoded = match kind {
            SinkRows::Events => rows.iter().try_for_each(&mut encode),
            SinkRows::Changes => retractions_first(rows).try_for_each(&mut encode),
        };
        if encoded.is_err() {
            out.truncate(before);
        }
        encoded
    }
}

/// Orders the rows of an epoch: retractions first, and sorted otherwise. So the last row of a key is the valid one.
pub(crate) fn retractions_first<D>(rows: &[(D, isize)]) -> impl Iterator<Item = &(D, isize)> {
    let those = |go: bool| rows.iter().filter(move |(_, diff)| (*diff < 0) == go);
    those(true).chain(those(false))
}

/// Returns the number of lines, or messages, of a row with a difference.
///
/// # Errors
/// Fails if the difference is 0, or negative for an event.
pub(crate) fn line_count(rows: SinkRows, diff: isize) -> Result<usize> {
    match (rows, diff) {
        (SinkRows::Events, 1..) => Ok(diff.unsigned_abs()),
        (SinkRows::Changes, ..=-1 | 1..) => Ok(1),
        (SinkRows::Events, _) => Err(Error::new(format!("an event came with the difference {diff}"))
            .because("events are only ever added")
            .help("this is a bug in Tidegate: please report it")),
        (SinkRows::Changes, 0) => Err(Error::new("a change came with the difference 0")
            .because("changes are consolidated before they are published")
            .help("this is a bug in Tidegate: please report it")),
    }
}

/// Checks that no field has the name of the column of differences.
///
/// # Errors
/// Fails if the rows are changes and a field is called [`DIFF`].
pub(crate) fn check_diff(rows: SinkRows, row: &str, mut names: impl Iterator<Item = impl AsRef<str>>) -> Result<()> {
    if rows == SinkRows::Changes && names.any(|name| name.as_ref() == DIFF) {
        return Err(Error::usage(format!("cannot write a collection of rows of type `{row}`"))
            .because(format!("its field `{DIFF}` has the name of the column of differences"))
            .help("rename the field"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An encoder of numbers that fails at 13.
    #[derive(Clone)]
    struct Numbers(SinkRows);

    impl EncodeRows<u8> for Numbers {
        fn header(&self, _: &mut Vec<u8>) {}

        fn row(&mut self, row: &u8, _: isize, out: &mut Vec<u8>) -> Result<()> {
            out.extend_from_slice(format!("{row}\n").as_bytes());
            if *row == 13 { Err(Error::new("unlucky")) } else { Ok(()) }
        }

        fn kind(&self) -> SinkRows {
            self.0
        }
    }

    #[test]
    fn events_are_written_as_often_as_they_are_there_and_changes_once() {
        let mut out = Vec::new();
        Numbers(SinkRows::Events).rows(&[(1, 1), (2, 3)], &mut out).unwrap();
        Numbers(SinkRows::Changes).rows(&[(3, -2), (4, 5)], &mut out).unwrap();
        assert_eq!(out, b"1\n2\n2\n2\n3\n4\n");
    }

    #[test]
    fn retractions_come_first() {
        let mut out = Vec::new();
        let changes = [(1, 1), (2, -1), (3, 2), (4, -3), (5, 1)];
        Numbers(SinkRows::Changes).rows(&changes, &mut out).unwrap();
        assert_eq!(out, b"2\n4\n1\n3\n5\n");
    }

    #[test]
    fn what_cannot_be_encoded_leaves_nothing_behind() {
        for (kind, rows, why) in [
            (SinkRows::Events, [(1, 1), (13, 1)], "unlucky"),
            (SinkRows::Events, [(1, 1), (2, -1)], "an event came with the difference -1"),
            (SinkRows::Events, [(1, 1), (2, 0)], "an event came with the difference 0"),
            (SinkRows::Changes, [(1, 1), (2, 0)], "a change came with the difference 0"),
        ] {
            let mut out = b"before".to_vec();
            let error = Numbers(kind).rows(&rows, &mut out).unwrap_err();
            assert!(error.to_string().starts_with(why), "{error}");
            assert_eq!(out, b"before");
        }
    }
}

//! Matches the fields of a record type with the columns of a header.
//!
//! The fields that a type needs are found by decoding it from **trial rows**: [probes](crate::probe) with the header's
//! columns, and values made up for the types that are asked for. A column is missing if decoding reports a missing
//! field; so renamed, optional and defaulted fields are what `serde` says they are. If a type accepts none of the
//! made-up values, nothing is known about it, and its rows are rejected one by one where they do not decode.
//!
//! Unlike other probes this one depends on data, the header, and needs a whole value: errors about missing fields come
//! after all values were accepted. So it tries several dummies.
//!
//! A type can be decoded **by position** if it is a struct of scalars whose fields are all in the header, and if it
//! asks for exactly as many values as it has names (a field with aliases has several names). The module does not look
//! at a file's rows.

use csv::ByteRecord;
use serde::de::DeserializeOwned;

use crate::probe::{self, AnyValue, Branch, Dummy, EntryKey, Leaf, ProbeStop, Recorder};

/// Returns the names of the fields of `T`, in their order, those of aliases included; `None` if `T` is no struct.
#[cfg(feature = "kafka")]
pub(super) fn field_names<T: DeserializeOwned>() -> Option<&'static [&'static str]> {
    let mut row = TrialRow::new(None, &[]);
    let _ = probe::probe::<T>(&mut row);
    row.fields
}

/// Returns the column of each field of `T`, in the order of fields; `None` if `T` cannot be decoded by position.
///
/// # Errors
/// Fails with the names of columns that the header lacks, or has twice: "lacks the column `a`".
pub(super) fn order<T: DeserializeOwned>(header: &ByteRecord) -> Result<Option<Vec<usize>>, String> {
    let Some((tries, Some(fields))) = accepted_values::<T>(header)? else { return Ok(None) };
    let column = |field: &&str| header.iter().position(|name| name == field.as_bytes());
    let Some(columns) = fields.iter().map(column).collect::<Option<Vec<usize>>>() else { return Ok(None) };
    let tries: Vec<usize> = columns.iter().map(|column| tries[*column]).collect();
    let mut row = TrialRow::new(None, &tries);
    let decoded = probe::probe::<T>(&mut row);
    Ok((decoded.is_ok() && row.asked == fields.len()).then_some(columns))
}

/// For each column, the number of the made-up value that was accepted; and the fields' names, if the type is a struct.
type Accepted = (Vec<usize>, Option<&'static [&'static str]>);

/// Decodes `T` from trial rows with the header's columns; `None` if no combination of values was accepted.
///
/// # Errors
/// Fails with the names of columns that the header lacks, or has twice.
fn accepted_values<T: DeserializeOwned>(header: &ByteRecord) -> Result<Option<Accepted>, String> {
    let mut names: Vec<Vec<u8>> = header.iter().map(<[u8]>::to_vec).collect();
    let mut tries = vec![0; names.len()];
    let mut missing: Vec<&str> = Vec::new();
    let fields = loop {
        let mut row = TrialRow::new(Some(&names), &tries);
        match (probe::probe::<T>(&mut row), row.at) {
            (Ok(_), _) => break Some(row.fields),
            (Err(ProbeStop::MissingField(name)), _) if !names.iter().any(|known| known == name.as_bytes()) => {
                missing.push(name);
                names.push(name.as_bytes().to_vec());
                tries.push(0);
            }
            (Err(ProbeStop::DuplicateField(name)), _) => {
                return Err(format!("names the column `{name}` twice"));
            }
            (Err(ProbeStop::Refused), Some(at)) if tries[at] + 1 < VALUES => tries[at] += 1,
            (Err(_), _) => break None,
        }
    };
    if missing.is_empty() {
        return Ok(fields.map(|fields| (tries, fields)));
    }
    let columns = if missing.len() == 1 { "column" } else { "columns" };
    let missing: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
    Err(format!("lacks the {columns} {}", missing.join(", ")))
}

/// Number of values that are tried for a column, one after the other.
const VALUES: usize = 10;

/// Texts from which well-known types can be decoded.
const TEXTS: [&str; VALUES] = [
    "0",
    "a",
    "1",
    "2000-01-01T00:00:00Z",
    "2000-01-01",
    "00:00:00",
    "2000-01-01T00:00:00",
    "00000000-0000-0000-0000-000000000000",
    "127.0.0.1",
    "true",
];

/// A trial row.
struct TrialRow<'a> {
    /// Names of the columns; `None` if the row's values are in the order of a struct's fields.
    names: Option<&'a [Vec<u8>]>,
    /// For each column, the number of its value, one of [`VALUES`].
    tries: &'a [usize],
    /// Names of the fields, if the type is a struct.
    fields: Option<&'static [&'static str]>,
    /// `true` inside of the row.
    in_row: bool,
    /// The column being decoded.
    at: Option<usize>,
    /// Depth of nested newtypes and options: a type may contain itself.
    depth: u8,
    /// Number of values that were asked for.
    asked: usize,
}

impl<'a> TrialRow<'a> {
    const DEEPEST: u8 = 32;

    fn new(names: Option<&'a [Vec<u8>]>, tries: &'a [usize]) -> Self {
        TrialRow { names, tries, fields: None, in_row: false, at: None, depth: 0, asked: 0 }
    }

    /// Returns the number of the value for the column being decoded.
    fn tried(&self) -> Result<usize, ProbeStop> {
        self.at.and_then(|at| self.tries.get(at)).copied().ok_or(ProbeStop::Stopped)
    }

    /// Records a newtype or an option, and returns the number of its parts.
    fn deeper(&mut self) -> Result<usize, ProbeStop> {
        self.depth += 1;
        if self.depth > Self::DEEPEST { Err(ProbeStop::Stopped) } else { Ok(1) }
    }
}

impl Recorder for TrialRow<'_> {
    fn is_human_readable(&self) -> bool {
        true
    }

    fn leaf(&mut self, leaf: Leaf) -> Result<Dummy, ProbeStop> {
        let tried = self.tried()?;
        if matches!(leaf, Leaf::Unit | Leaf::Identifier) {
            return Err(ProbeStop::Stopped);
        }
        let letter = if tried == 0 { '0' } else { 'a' };
        Ok(Dummy { flag: tried % 2 == 1, number: tried as u8, letter, text: TEXTS[tried] })
    }

    fn begin(&mut self, branch: Branch) -> Result<usize, ProbeStop> {
        match branch {
            Branch::Newtype(_) => self.deeper(),
            Branch::Struct(_, fields) if !self.in_row => {
                (self.in_row, self.fields) = (true, Some(fields));
                // One more than there are: a type that asks for it is not decoded by position.
                Ok(self.tries.len() + 1)
            }
            Branch::Map if !self.in_row && self.names.is_some() => {
                self.in_row = true;
                Ok(1)
            }
            Branch::Option if self.in_row => self.deeper(),
            Branch::Enum(_, variants) if self.in_row => {
                let tried = self.tried()?;
                if tried < variants.len() { Ok(tried) } else { Err(ProbeStop::Refused) }
            }
            Branch::NewtypeVariant | Branch::TupleVariant(_) | Branch::StructVariant(_) => Err(ProbeStop::Refused),
            _ => Err(ProbeStop::Stopped),
        }
    }

    fn begin_part(&mut self, whole: Branch, at: usize) -> Result<(), ProbeStop> {
        if matches!(whole, Branch::Struct(..) | Branch::Map) {
            self.asked += 1;
            self.at = Some(if self.names.is_some() { at / 2 } else { at });
            self.depth = 0;
            self.tried()?;
        }
        Ok(())
    }

    fn any(&mut self, _: &'static str) -> Result<AnyValue, ProbeStop> {
        let dummy = self.leaf(Leaf::Any)?;
        Ok(match self.tried()? {
            0 | 2 => AnyValue::Unsigned(dummy.number.into()),
            9 => AnyValue::Flag(true),
            _ => AnyValue::Text(dummy.text),
        })
    }

    fn gives_keys(&self) -> bool {
        self.names.is_some()
    }

    fn key(&mut self, entry: usize) -> Result<Option<EntryKey>, ProbeStop> {
        self.at = None;
        let name = self.names.and_then(|names| names.get(entry));
        Ok(name.map(|name| EntryKey::Bytes(name.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::samples::{self, SampleReader};

    struct Pinned;

    impl SampleReader for Pinned {
        fn probe<T: DeserializeOwned>() -> String {
            let headers = ["", "a,b,c", "c,x,b,a,d", "a,b,a,c", "b"];
            let told = |problem: String| format!("the csv header {problem}");
            let order = |header: &str| order::<T>(&header.split(',').collect()).map_err(told);
            let orders = headers.map(|header| format!("{header}: {:?}", order(header)));
            orders.join("\n")
        }
    }

    #[test]
    fn fields_of_all_kinds_of_types_are_matched_with_columns() {
        samples::check::<Pinned>("csv_headers.txt");
    }
}

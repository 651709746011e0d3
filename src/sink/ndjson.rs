//! NDJSON files as sinks: one JSON object per line.
//!
//! * [`Sink`] is the sink; its `Encoder` turns rows into lines without any I/O.
//! * A row that is a struct with named fields is its own object: keys are columns. A written collection has a last key
//!   `diff`.
//! * Any other row is put under a key `row`, except maps and structs with flattened fields: as events they are objects
//!   already; as changes they are put under `row`, because they may have a key `diff` of their own.
//!
//! Invariants: a line is one JSON object; no object has a key twice. `sink/file.rs` writes the file; `serde_json`
//! defines the JSON of values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::IgnoredAny;

use super::encode::{DIFF, EncodeRows, check_diff};
use super::encoded::encoded_file;
use super::fields::{self, RowShape};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::sink::{self, EncodedSink, SinkContext, SinkRows, SinkWriter, file};

/// An NDJSON file to write rows to. Without a state, an existing file is replaced. With a state, a file that the state
/// has written is continued, each epoch in it exactly once, and any other file is refused. A file
/// `<file>.commit-<number>` beside it records how far it is published.
#[derive(Clone, Debug)]
pub struct Sink {
    path: PathBuf,
}

impl Sink {
    /// Creates a sink that writes to the NDJSON file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Sink { path: path.into() }
    }
}

impl<D: Record> sink::Sink<D> for Sink {
    fn describe(&self) -> String {
        format!("file {}", self.path.display())
    }

    fn check(&self, rows: SinkRows) -> Result<()> {
        Encoder::new::<D>(rows).map(drop)
    }

    fn encoded(&self) -> Result<Option<EncodedSink<D>>> {
        Ok(Some(encoded_file(&self.path, Encoder::new::<D>(SinkRows::Events)?)))
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        let encoder = Encoder::new::<D>(at.rows)?;
        Ok(Box::new(file::FileWriter::open::<D>(&self.path, encoder, at)?))
    }
}

/// Encodes rows as lines of NDJSON.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    rows: SinkRows,
    row: String,
    /// `true` if a row is put under the key `row`.
    wrapped: bool,
    /// `true` once the keys that are really written have been checked.
    seen: bool,
}

impl Encoder {
    /// Creates an encoder for a row type.
    ///
    /// # Errors
    /// Fails if a field has the name of the column of differences.
    pub(crate) fn new<D: Record>(rows: SinkRows) -> Result<Self> {
        let (row, wrapped) = match fields::shape::<D>() {
            RowShape::Struct(fields, _) => {
                check_diff(rows, fields.row, fields.names.iter())?;
                (fields.row.into(), false)
            }
            RowShape::Map => (fields::name::<D>(), rows == SinkRows::Changes),
            RowShape::Other => (fields::name::<D>(), true),
        };
        Ok(Encoder { rows, row, wrapped, seen: false })
    }

    fn refused(&self, why: impl std::fmt::Display) -> Error {
        Error::of(ErrorKind::SinkFailed, format!("cannot write a row of type `{}` as NDJSON", self.row)).because(why)
    }
}

impl<D: Record> EncodeRows<D> for Encoder {
    fn header(&self, _: &mut Vec<u8>) {}

    fn row(&mut self, row: &D, diff: isize, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        if self.wrapped {
            out.extend_from_slice(b"{\"row\":");
        }
        serde_json::to_writer(&mut *out, row).map_err(|why| self.refused(why))?;
        if self.wrapped {
            out.push(b'}');
        } else if out.get(start) != Some(&b'{') {
            return Err(self.refused("it reads as a struct, but is not written as one"));
        } else if !self.seen {
            let keys: BTreeMap<String, IgnoredAny> =
                serde_json::from_slice(&out[start..]).map_err(|why| self.refused(why))?;
            check_diff(self.rows, &self.row, keys.keys())?;
            self.seen = true;
        }
        if self.rows == SinkRows::Changes {
            out.pop();
            if out.len() > start + 1 {
                out.push(b',');
            }
            out.push(b'"');
            out.extend_from_slice(DIFF.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(itoa::Buffer::new().format(diff).as_bytes());
            out.push(b'}');
        }
        out.push(b'\n');
        Ok(())
    }

    fn kind(&self) -> SinkRows {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::*;
    use crate::record::{Decimal, Real, records};
    use crate::time::EventTime;

    records! {
        enum Payment { Cash, Card { number: u64 } }
        struct Inner { text: String, list: Vec<Option<i8>> }
        struct Outer { time: EventTime, inner: Inner, paid: Payment, money: Decimal, real: Real, large: i128 }
        struct Flattened { a: u8, #[serde(flatten)] rest: BTreeMap<String, u8> }
        struct Nothing {}
        struct Different { diff: u8 }
        struct Renamed { #[serde(rename(serialize = "diff"))] other: u8 }
        #[serde(into = "u8")]
        struct Hidden { value: u8 }
    }

    impl From<Hidden> for u8 {
        fn from(hidden: Hidden) -> u8 {
            hidden.value
        }
    }

    fn lines<D: Record>(kind: SinkRows, rows: &[(D, isize)]) -> Result<String> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new::<D>(kind)?;
        EncodeRows::<D>::header(&encoder, &mut out);
        encoder.rows(rows, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_struct_is_its_own_object_with_the_difference_last() {
        let inner = Inner { text: "\"a\\\nb".into(), list: vec![Some(-1), None] };
        let row = Outer {
            time: EventTime::from_millis(1),
            inner,
            paid: Payment::Card { number: 7 },
            money: "12.50".parse().unwrap(),
            real: Real::new(1e300),
            large: i128::MIN,
        };
        let plain = serde_json::to_string(&row).unwrap();
        assert_eq!(lines(SinkRows::Events, &[(row.clone(), 2)]).unwrap(), format!("{plain}\n{plain}\n"));
        let with_diff = format!("{},\"diff\":-3}}\n", plain.strip_suffix('}').unwrap());
        assert_eq!(lines(SinkRows::Changes, &[(row.clone(), -3)]).unwrap(), with_diff);
        assert_eq!(serde_json::from_str::<Outer>(&with_diff).unwrap(), row);
        assert_eq!(lines(SinkRows::Changes, &[(Nothing {}, 1)]).unwrap(), "{\"diff\":1}\n");
    }

    #[test]
    fn every_line_is_an_object_and_what_has_no_columns_is_put_under_row() {
        fn check<D: Record>(row: &D, events: &str, changes: &str) {
            assert_eq!(lines(SinkRows::Events, &[(row.clone(), 1)]).unwrap(), format!("{events}\n"));
            assert_eq!(lines(SinkRows::Changes, &[(row.clone(), 1)]).unwrap(), format!("{changes}\n"));
        }
        check(&("a".to_owned(), 1), r#"{"row":["a",1]}"#, r#"{"row":["a",1],"diff":1}"#);
        check(&5, r#"{"row":5}"#, r#"{"row":5,"diff":1}"#);
        check(&Payment::Cash, r#"{"row":"Cash"}"#, r#"{"row":"Cash","diff":1}"#);
        check(
            &Payment::Card { number: 1 },
            r#"{"row":{"Card":{"number":1}}}"#,
            r#"{"row":{"Card":{"number":1}},"diff":1}"#,
        );
        let flattened = Flattened { a: 1, rest: BTreeMap::from([("diff".into(), 2)]) };
        check(&flattened, r#"{"a":1,"diff":2}"#, r#"{"row":{"a":1,"diff":2},"diff":1}"#);
    }

    #[test]
    fn a_key_never_comes_twice() {
        assert_eq!(lines(SinkRows::Events, &[(Different { diff: 1 }, 1)]).unwrap(), "{\"diff\":1}\n");
        let refused = "cannot write a collection of rows of type";
        let known = sink::Sink::<Different>::check(&Sink::new("never-written"), SinkRows::Changes).unwrap_err();
        let found = lines(SinkRows::Changes, &[(Renamed { other: 1 }, 1)]).unwrap_err();
        for error in [known, found] {
            assert!(error.to_string().starts_with(refused), "{error}");
        }
    }

    #[test]
    fn what_is_not_written_as_it_is_read_is_refused() {
        let error = lines(SinkRows::Events, &[(Hidden { value: 1 }, 1)]).unwrap_err();
        assert!(
            error.to_string().contains("`Hidden` as NDJSON: it reads as a struct, but is not written as one"),
            "{error}"
        );
        let error = lines(SinkRows::Events, &[(BTreeMap::from([((1, 2), 3)]), 1)]).unwrap_err();
        assert!(error.to_string().contains("key must be a string"), "{error}");
    }

    /// Random texts and numbers, read back by `serde_json`: no value can break a line or an object.
    #[test]
    fn lines_read_back_as_the_rows_they_were() {
        let mut state = 42u64;
        println!("seed {state}");
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut rows: Vec<(Inner, isize)> = Vec::new();
        for _ in 0..500 {
            let letters = ['"', '\\', '\n', '\r', ',', '{', '}', 'é', '\u{0}', '\u{2028}', 'a'];
            let text = (0..random(8)).map(|_| letters[random(11) as usize]).collect();
            let list = (0..random(4)).map(|_| (random(3) > 0).then(|| random(256) as u8 as i8)).collect();
            rows.push((Inner { text, list }, random(9) as isize - 9));
        }
        let lines = lines(SinkRows::Changes, &rows).unwrap();
        assert_eq!(lines.lines().count(), rows.len());
        for (line, (row, diff)) in lines.lines().zip(rows) {
            let mut expected = serde_json::to_value(&row).unwrap();
            expected["diff"] = json!(diff);
            assert_eq!(serde_json::from_str::<Value>(line).unwrap(), expected);
        }
    }
}

//! Encoding of rows as values of messages: the counterpart of `source/kafka/decode.rs`.
//!
//! An [`Encode`] turns a row into a message's value. Closures are encoders; those of common formats are made by
//! [`json`], [`csv()`], [`text`] and [`bytes`].
//!
//! Invariant: an encoder is a function of the row alone, so an epoch that is sent again has the same messages.

use std::fmt::{self, Display};
use std::io::Write as _;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::error::Error;
use crate::record::Record;
use crate::sink::SinkRows;
use crate::sink::csv;
use crate::sink::encode::EncodeRows;
use crate::source::csv::Delimiter;

/// An encoder of rows as values of messages. It must be a function of the row alone: no clock, no counter.
///
/// Every closure `Fn(&D, &mut Vec<u8>) -> Result<(), String>` is one:
///
/// ```
/// use tidegate::kafka::Sink;
///
/// let totals = Sink::new("localhost:9092", "totals", |(account, cents): &(String, i64), value: &mut Vec<u8>| {
///     value.extend_from_slice(format!("{account}={cents}").as_bytes());
///     Ok(())
/// })
/// .key_by(|(account, _)| account.clone());
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not encode rows of type `{D}`",
    label = "not an encoder of `{D}`",
    note = "encoders are `kafka::encode::json()`, `csv()`, `text()`, `bytes()`, and closures that take `&Row` and `&mut Vec<u8>` and return `Result<(), String>`"
)]
pub trait Encode<D>: Send + Sync + 'static {
    /// Appends the value of a row's message to `value`, which is empty.
    ///
    /// # Errors
    /// Fails with the reason; the job fails then, and the row's epoch is not published.
    fn encode(&self, row: &D, value: &mut Vec<u8>) -> Result<(), String>;

    /// Prepares the encoder: called, possibly several times, before the topic is opened and before any row.
    ///
    /// # Errors
    /// Fails if no row can be encoded; the job fails with the error.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// `true` if each value is one JSON text. Only such values can be extended by a field `diff`, or be `before` and
    /// `after` of another value.
    fn is_json(&self) -> bool {
        false
    }
}

impl<D, F: Fn(&D, &mut Vec<u8>) -> Result<(), String> + Send + Sync + 'static> Encode<D> for F {
    fn encode(&self, row: &D, value: &mut Vec<u8>) -> Result<(), String> {
        self(row, value)
    }
}

/// An encoder that is chosen while the program runs.
impl<D: 'static> Encode<D> for Box<dyn Encode<D>> {
    fn encode(&self, row: &D, value: &mut Vec<u8>) -> Result<(), String> {
        (**self).encode(row, value)
    }

    fn check(&self) -> Result<(), Error> {
        (**self).check()
    }

    fn is_json(&self) -> bool {
        (**self).is_json()
    }
}

/// Returns the encoder of rows as one JSON value each.
pub fn json() -> JsonEncoder {
    JsonEncoder(())
}

/// Returns the encoder of rows as one CSV row each, without a header and without an end of line. Fields are quoted as
/// in a CSV file.
pub fn csv<D: Record>() -> CsvEncoder<D> {
    CsvEncoder { lines: Mutex::new(None), delimiter: Delimiter::COMMA, rows: PhantomData }
}

/// Returns the encoder of rows as the text that they are displayed as.
pub fn text() -> TextEncoder {
    TextEncoder(())
}

/// Returns the encoder of rows that are bytes.
pub fn bytes() -> BytesEncoder {
    BytesEncoder(())
}

/// The encoder of rows as JSON: see [`json`].
#[derive(Clone, Copy, Debug)]
pub struct JsonEncoder(());

impl<D: Serialize> Encode<D> for JsonEncoder {
    fn encode(&self, row: &D, value: &mut Vec<u8>) -> Result<(), String> {
        serde_json::to_writer(value, row).map_err(|error| error.to_string())
    }

    fn is_json(&self) -> bool {
        true
    }
}

/// The encoder of rows as CSV: see [`csv()`].
pub struct CsvEncoder<D> {
    /// The encoder of lines, made once: that looks at the whole type of the rows.
    lines: Mutex<Option<csv::Encoder>>,
    delimiter: Delimiter,
    rows: PhantomData<fn(D)>,
}

impl<D: Record> CsvEncoder<D> {
    /// Sets the character between the fields, which is a comma otherwise: see [`Delimiter`].
    #[must_use]
    pub fn delimiter(self, delimiter: impl Into<Delimiter>) -> Self {
        CsvEncoder { lines: Mutex::new(None), delimiter: delimiter.into(), rows: PhantomData }
    }

    /// Calls a function with the encoder of lines.
    fn with_lines(&self, use_it: impl FnOnce(&mut csv::Encoder) -> Result<(), Error>) -> Result<(), Error> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *lines {
            Some(lines) => use_it(lines),
            none => {
                self.delimiter.check()?;
                let lines = csv::Encoder::new::<D>(SinkRows::Events)?.delimiter(self.delimiter);
                use_it(none.insert(lines))
            }
        }
    }
}

impl<D: Record> Encode<D> for CsvEncoder<D> {
    fn encode(&self, row: &D, value: &mut Vec<u8>) -> Result<(), String> {
        self.with_lines(|lines| lines.row(row, 1, value)).map_err(|error| error.to_string())?;
        // The end of the line: a message is one row.
        value.pop();
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        let checked = self.with_lines(|_lines| Ok(()));
        checked.map_err(|error| Error::usage("rows cannot be written to a topic").because(error))
    }
}

impl<D> fmt::Debug for CsvEncoder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CsvEncoder").finish_non_exhaustive()
    }
}

/// The encoder of rows as text: see [`text`].
#[derive(Clone, Copy, Debug)]
pub struct TextEncoder(());

impl<D: Display> Encode<D> for TextEncoder {
    fn encode(&self, row: &D, value: &mut Vec<u8>) -> Result<(), String> {
        write!(value, "{row}").map_err(|error| error.to_string())
    }
}

/// The encoder of rows that are bytes: see [`bytes`].
#[derive(Clone, Copy, Debug)]
pub struct BytesEncoder(());

impl<D: AsRef<[u8]>> Encode<D> for BytesEncoder {
    fn encode(&self, row: &D, value: &mut Vec<u8>) -> Result<(), String> {
        value.extend_from_slice(row.as_ref());
        Ok(())
    }
}

/// Appends a change of a row whose encoded value is `value`: the value with a field `diff`. A value that is no object
/// becomes `{"diff": …, "row": …}`.
///
/// # Errors
/// Fails if the value is not JSON.
pub(super) fn add_diff(value: &mut Vec<u8>, diff: isize) -> Result<(), String> {
    // Most rows are objects, whose text can be extended; their fields keep their order.
    if value.first() == Some(&b'{') && value.len() > 2 && value.last() == Some(&b'}') {
        value.pop();
        write!(value, ",\"diff\":{diff}}}").map_err(|error| error.to_string())
    } else {
        let row: serde_json::Value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        value.clear();
        match row {
            serde_json::Value::Object(mut fields) => {
                fields.insert(String::from("diff"), diff.into());
                serde_json::to_writer(&mut *value, &fields).map_err(|error| error.to_string())
            }
            row => serde_json::to_writer(&mut *value, &serde_json::json!({ "row": row, "diff": diff }))
                .map_err(|error| error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::record::records;

    fn encoded<D>(encoder: &impl Encode<D>, row: &D) -> Result<String, String> {
        let mut value = Vec::new();
        encoder.encode(row, &mut value).map(|()| String::from_utf8(value).unwrap())
    }

    #[test]
    fn a_change_carries_its_difference() {
        #[derive(Serialize)]
        struct Total {
            z: u8,
            a: &'static str,
        }
        #[derive(Serialize)]
        struct Nothing {}
        fn change(row: &impl Serialize) -> String {
            let mut message = serde_json::to_vec(row).unwrap();
            add_diff(&mut message, -2).unwrap();
            String::from_utf8(message).unwrap()
        }
        assert_eq!(change(&Total { z: 1, a: "}" }), r#"{"z":1,"a":"}","diff":-2}"#);
        assert_eq!(change(&Nothing {}), r#"{"diff":-2}"#);
        assert_eq!(change(&(1, "x")), r#"{"diff":-2,"row":[1,"x"]}"#);
    }

    #[test]
    fn formats_are_those_that_the_decoders_read() {
        records! {
            struct Row { id: u64, name: String, cents: Option<i64> }
            struct Nested { id: u64, row: Row }
        }
        let row = Row { id: 1, name: String::from("a,\"b"), cents: None };
        assert_eq!(encoded(&json(), &row).unwrap(), r#"{"id":1,"name":"a,\"b","cents":null}"#);
        assert_eq!(encoded(&csv(), &row).unwrap(), r#"1,"a,""b","#);
        assert_eq!(encoded(&csv().delimiter(';'), &row).unwrap(), r#"1;"a,""b";"#);
        assert_eq!(
            encoded(&csv().delimiter('a'), &row).unwrap_err().split(':').next(),
            Some("fields of CSV cannot be between `a`")
        );
        assert!(csv::<Row>().delimiter('a').check().unwrap_err().to_string().contains("cannot be between `a`"));
        assert_eq!(encoded(&text(), &17).unwrap(), "17");
        assert_eq!(encoded(&bytes(), &"x").unwrap(), "x");
        assert!(Encode::<Row>::is_json(&json()) && !csv::<Row>().is_json());
        assert_eq!(csv::<Row>().check(), Ok(()));
        assert!(csv::<Nested>().check().unwrap_err().to_string().contains("row"));
        let closure = |row: &Row, _: &mut Vec<u8>| Err(format!("no {}", row.id));
        assert_eq!(encoded(&closure, &row).unwrap_err(), "no 1");
    }
}

//! Decoders of common message formats: JSON, CSV, text and bytes. Each rejects tombstones.

use std::cell::Cell;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use super::decode::{Decode, DecodeError, value_of};
use super::message::Message;
use crate::format::framing;
use crate::source::csv::{Delimiter, Layout, Scratch};

/// Returns the decoder of messages that are a JSON value each.
pub fn json<T: DeserializeOwned + 'static>() -> JsonDecoder<T> {
    JsonDecoder { framed: false, records: PhantomData }
}

/// Returns the decoder of messages that are UTF-8 text each.
pub fn text() -> TextDecoder {
    TextDecoder(())
}

/// Returns the decoder that takes a message's value as it is.
pub fn bytes() -> BytesDecoder {
    BytesDecoder(())
}

/// Returns the decoder of messages that are one CSV row each, without a header. Fields are quoted as in a CSV file. The
/// columns are the fields of `T`, in their order, unless [`CsvDecoder::columns`] names them.
pub fn csv<T: DeserializeOwned + 'static>() -> CsvDecoder<T> {
    CsvDecoder { layout: Layout::of_fields::<T>(), delimiter: Delimiter::COMMA, records: PhantomData }
}

/// The decoder of JSON messages: see [`json`].
#[derive(Clone, Debug)]
pub struct JsonDecoder<T> {
    framed: bool,
    records: PhantomData<fn() -> T>,
}

impl<T> JsonDecoder<T> {
    /// Takes messages that begin with the id of their schema in a registry: a byte 0, then the id in four bytes. Others
    /// are rejected. The schema is not asked for: JSON is read without.
    #[must_use]
    pub fn framed(mut self) -> Self {
        self.framed = true;
        self
    }
}

impl<T: DeserializeOwned + 'static> Decode<T> for JsonDecoder<T> {
    #[inline]
    fn decode(&self, message: &Message<'_>) -> Result<Option<T>, DecodeError> {
        let mut json = value_of(message)?;
        if self.framed {
            (_, json) = framing::split(json)?;
        }
        // Text is parsed faster if it is checked as a whole, not string by string. What is no text as a whole may be JSON
        // all the same: a string that the record does not have can be anything.
        let parsed = match str::from_utf8(json) {
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_slice(json),
        };
        match parsed {
            Ok(record) => Ok(Some(record)),
            Err(error) => Err(format!("not the expected JSON: {error}").into()),
        }
    }
}

/// The decoder of text messages: see [`text`].
#[derive(Clone, Debug)]
pub struct TextDecoder(());

impl Decode<String> for TextDecoder {
    fn decode(&self, message: &Message<'_>) -> Result<Option<String>, DecodeError> {
        match str::from_utf8(value_of(message)?) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(error) => Err(format!("not UTF-8 text: {error}").into()),
        }
    }
}

/// The decoder that takes a message's value as it is: see [`bytes`].
#[derive(Clone, Debug)]
pub struct BytesDecoder(());

impl Decode<Vec<u8>> for BytesDecoder {
    fn decode(&self, message: &Message<'_>) -> Result<Option<Vec<u8>>, DecodeError> {
        Ok(Some(value_of(message)?.to_vec()))
    }
}

/// The decoder of CSV messages: see [`csv()`].
#[derive(Debug)]
pub struct CsvDecoder<T> {
    layout: Result<Layout, String>,
    delimiter: Delimiter,
    records: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned + 'static> CsvDecoder<T> {
    /// Names the columns of a row, in their order. They are matched with the fields of `T` by name; columns that `T`
    /// does not have are ignored. A column that `T` needs and that is not named here fails the job when it starts.
    #[must_use]
    pub fn columns<N: AsRef<str>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.layout = Layout::of_columns::<T>(names);
        self
    }

    /// Sets the character between the fields, which is a comma otherwise: see [`Delimiter`].
    #[must_use]
    pub fn delimiter(mut self, delimiter: impl Into<Delimiter>) -> Self {
        self.delimiter = delimiter.into();
        self
    }
}

thread_local! {
    /// Buffers of the thread's last row.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl<T: DeserializeOwned + 'static> Decode<T> for CsvDecoder<T> {
    fn decode(&self, message: &Message<'_>) -> Result<Option<T>, DecodeError> {
        let layout = self.layout.as_ref().map_err(String::clone)?;
        let row = value_of(message)?;
        let mut scratch = SCRATCH.take();
        let decoded = layout.decode_row(&mut scratch, self.delimiter, row);
        SCRATCH.set(scratch);
        Ok(Some(decoded?))
    }

    fn check(&self) -> Result<(), String> {
        self.delimiter.check().map_err(|why| why.to_string())?;
        self.layout.as_ref().map(drop).map_err(String::clone)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::durable::journal::JournaledRecord;
    use crate::record::records;

    records! {
        struct Row { id: u64, name: String, cents: Option<i64> }
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Renamed {
        #[serde(alias = "number")]
        id: u64,
    }

    fn record(value: Option<&[u8]>) -> JournaledRecord {
        JournaledRecord { offset: 5, payload: value.map(<[u8]>::to_vec), ..JournaledRecord::default() }
    }

    fn reason(error: DecodeError) -> String {
        let DecodeError::Rejected(reason) = error else { panic!("{error}") };
        reason
    }

    fn decoded<T>(decoder: &impl Decode<T>, value: &[u8]) -> Result<Option<T>, String> {
        decoder.decode(&Message::of_record("t", 0, &record(Some(value)))).map_err(reason)
    }

    fn of_tombstone<T>(decoder: &impl Decode<T>) -> Result<Option<T>, String> {
        decoder.decode(&Message::of_record("t", 0, &record(None))).map_err(reason)
    }

    fn row(id: u64, name: &str, cents: Option<i64>) -> Row {
        Row { id, name: name.into(), cents }
    }

    #[test]
    fn json_is_decoded_as_the_library_decodes_it() {
        let decoder = json::<Row>();
        assert_eq!(decoded(&decoder, br#"{"id":1,"name":"a","cents":null}"#), Ok(Some(row(1, "a", None))));
        let why = decoded(&decoder, br#"{"id":1,"cents":2}"#).unwrap_err();
        assert!(why.starts_with("not the expected JSON: missing field `name`"), "{why}");
        assert_eq!(of_tombstone(&decoder).unwrap_err(), "the message has no value (a tombstone)");
    }

    #[test]
    fn json_that_is_no_text_is_what_the_library_makes_of_its_bytes() {
        let decoder = json::<Row>();
        let with = |name: &[u8], rest: &[u8]| [b"{\"id\":1,\"name\":\"", name, b"\",\"cents\":2", rest, b"}"].concat();
        let expected = row(1, "gr\u{fc}n", Some(2));
        assert_eq!(decoded(&decoder, &with("grün".as_bytes(), b"")), Ok(Some(expected.clone())));
        // A field that the record does not have may be anything, and one that it has is text.
        assert_eq!(decoded(&decoder, &with("grün".as_bytes(), b",\"more\":\"\xff\"")), Ok(Some(expected)));
        let why = decoded(&decoder, &with(b"\xff", b"")).unwrap_err();
        assert!(why.starts_with("not the expected JSON: invalid unicode code point at line 1 column "), "{why}");
        let mut rng = fastrand::Rng::with_seed(5);
        let pieces: [&[u8]; 9] = [b"\xff", b"\xc3\xbc", b"\xc3", b"\\u00fc", b"\"", b"\\", b",", b"}", b"\n"];
        for _ in 0..20_000 {
            let mut bytes = with("ü".as_bytes(), b",\"more\":\"\xc3\xbc\"");
            for _ in 0..rng.usize(1..3) {
                let (at, piece) = (rng.usize(..bytes.len()), pieces[rng.usize(..pieces.len())]);
                let end = (at + rng.usize(..3)).min(bytes.len());
                bytes.splice(at..end, piece.iter().copied());
            }
            let naive = serde_json::from_slice(&bytes).map_err(|why| format!("not the expected JSON: {why}"));
            assert_eq!(decoded(&decoder, &bytes), naive.map(Some), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn framed_json_is_behind_the_id_of_its_schema() {
        let decoder = json::<i64>().framed();
        assert_eq!(decoded(&decoder, b"\0\0\0\0\x0712"), Ok(Some(12)));
        let why = decoded(&decoder, b"12").unwrap_err();
        assert_eq!(why, "no schema id: the message begins with byte 49, and a frame with byte 0");
        assert!(decoded(&decoder, b"\0\0\0\0").is_err() && decoded(&json::<i64>(), b"\0\0\0\0\x0712").is_err());
    }

    #[test]
    fn text_is_utf_8_and_bytes_are_anything() {
        assert_eq!(decoded(&text(), "grün".as_bytes()), Ok(Some("grün".into())));
        assert_eq!(decoded(&text(), b""), Ok(Some(String::new())));
        let why = decoded(&text(), b"a\xff").unwrap_err();
        assert!(why.starts_with("not UTF-8 text: invalid utf-8"), "{why}");
        assert_eq!(decoded(&bytes(), b"a\xff"), Ok(Some(b"a\xff".to_vec())));
        assert!(of_tombstone(&text()).is_err() && of_tombstone(&bytes()).is_err());
    }

    #[test]
    fn a_csv_row_has_the_fields_of_the_record_or_the_given_columns() {
        let decoder = csv::<Row>();
        assert_eq!(decoder.check(), Ok(()));
        assert_eq!(decoded(&decoder, b"1,a,2"), Ok(Some(row(1, "a", Some(2)))));
        assert_eq!(decoded(&decoder, b"1,\"a, \"\"b\"\"\",\r\n"), Ok(Some(row(1, "a, \"b\"", None))));
        let decoder = csv::<Row>().columns(["cents", "more", "id", "name"]);
        assert_eq!(decoder.check(), Ok(()));
        assert_eq!(decoded(&decoder, b"-3,x,7,n\n"), Ok(Some(row(7, "n", Some(-3)))));
        let decoder = csv::<Row>().delimiter(';');
        assert_eq!(decoded(&decoder, b"1;\"a;b,c\";-2"), Ok(Some(row(1, "a;b,c", Some(-2)))));
        assert_eq!(decoded(&decoder, b"1,a,2").unwrap_err(), "it has 1 field where 3 columns are named");
        assert!(csv::<Row>().delimiter('1').check().unwrap_err().contains("cannot be between `1`"));
        let pairs = csv::<(u64, String)>().columns(["number", "word"]);
        assert_eq!(decoded(&pairs, b"4,four"), Ok(Some((4, "four".into()))));
    }

    #[test]
    fn what_is_not_one_row_of_the_columns_is_rejected() {
        let decoder = csv::<Row>();
        for (value, expected) in [
            (&b"1,a"[..], "it has 2 fields where 3 columns are named"),
            (b"1,a,2,3", "it has 4 fields where 3 columns are named"),
            (b"x,a,2", "column `id`: "),
            (b"1,a,2\n2,b,3", "there is more than one row in the message"),
            (b"", "there is no row in the message"),
            (b"\r\n", "there is no row in the message"),
            (b"1,\"a\"b,2", "column `name`: there is text behind its closing quote"),
            (b"1,\"a,2", "column `name`: its quote is never closed"),
            (b"1,\xff,2", "column `name`: "),
        ] {
            let why = decoded(&decoder, value).unwrap_err();
            assert!(why.starts_with(expected), "{}: {why}", value.escape_ascii());
        }
        assert!(of_tombstone(&decoder).is_err());
    }

    #[test]
    fn columns_that_cannot_be_are_told_before_anything_is_read() {
        let why = csv::<Row>().columns(["id", "cents"]).check().unwrap_err();
        assert_eq!(why, "the list of columns lacks the column `name`");
        let why = csv::<Row>().columns(["id", "name", "cents", "id"]).check().unwrap_err();
        assert_eq!(why, "the list of columns names the column `id` twice");
        // A tuple has no names, and a field with two names no single one.
        for why in [csv::<(u64, u64)>().check(), csv::<Renamed>().check(), csv::<u64>().check()] {
            assert!(why.unwrap_err().contains("name them with `.columns("));
        }
        assert_eq!(decoded(&csv::<Renamed>().columns(["number"]), b"8"), Ok(Some(Renamed { id: 8 })));
        let decoder = csv::<Row>().columns(["id"]).with_meta(|row: Row, _message: &Message<'_>| row).skip_tombstones();
        assert!(decoder.check().is_err() && decoded(&decoder, b"1").is_err(), "adaptors check too");
    }

    #[test]
    fn tombstones_are_skipped_if_that_is_asked_for_and_metadata_is_put_into_records() {
        let decoder = json::<i64>().with_meta(|value, message: &Message<'_>| (value, message.offset()));
        assert_eq!(decoded(&decoder, b"12"), Ok(Some((12, 5))));
        assert!(of_tombstone(&decoder).is_err() && decoded(&decoder, b"x").is_err());
        let decoder = decoder.skip_tombstones();
        assert_eq!(decoded(&decoder, b"12"), Ok(Some((12, 5))));
        assert_eq!(of_tombstone(&decoder), Ok(None));
        assert!(decoded(&decoder, b"x").is_err());
        let even = |message: &Message<'_>| match message.value() {
            Some([digit]) => Ok((digit % 2 == 0).then_some(*digit)),
            _ => Err(String::from("not one byte")),
        };
        assert_eq!((decoded(&even, b"2"), decoded(&even, b"3")), (Ok(Some(b'2')), Ok(None)));
        assert_eq!(decoded(&even, b"22"), Err("not one byte".into()));
        assert_eq!(of_tombstone(&even.skip_tombstones()), Ok(None));
    }
}

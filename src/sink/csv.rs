//! CSV files as sinks: a header with the row type's field names, then one line per row.
//!
//! * [`Sink`] is the sink; its `Encoder` turns rows into lines without any I/O.
//! * `LineSerializer` writes the fields of a row (`csv/line_serializer.rs`).
//!
//! Invariants: row types that are no table are refused before the file is touched; the header is written even if no row
//! is; every line has the header's columns in its order, or the epoch fails and none of it is written. Lines end in
//! `\n`. A written collection has a last column `diff`. `sink/file.rs` writes the file.

mod line_serializer;

use std::path::PathBuf;

use self::line_serializer::{LineSerializer, RowRefused, text};
use super::encode::{DIFF, EncodeRows, check_diff};
use super::encoded::encoded_file;
use crate::error::{self, Error, ErrorKind};
use crate::record::Record;
use crate::sink::{self, EncodedSink, SinkContext, SinkRows, SinkWriter, fields, file};
use crate::source::csv::Delimiter;

/// A CSV file to write rows to. Without a state, an existing file is replaced. With a state, a file that the state has
/// written is continued, each epoch in it exactly once, and any other file is refused. A file `<file>.commit-<number>`
/// beside it records how far it is published.
#[derive(Clone, Debug)]
pub struct Sink {
    path: PathBuf,
    delimiter: Delimiter,
}

impl Sink {
    /// Creates a sink that writes to the CSV file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Sink { path: path.into(), delimiter: Delimiter::COMMA }
    }

    /// Sets the character between the fields, which is a comma otherwise: `;`, a tab, `|` or another ASCII character. The
    /// job fails at its start with a character that cannot be one: see [`Delimiter`]. A file that a state continues keeps
    /// its delimiter.
    #[must_use]
    pub fn delimiter(mut self, delimiter: impl Into<Delimiter>) -> Self {
        self.delimiter = delimiter.into();
        self
    }
}

impl<D: Record> sink::Sink<D> for Sink {
    fn describe(&self) -> String {
        format!("file {}", self.path.display())
    }

    fn check(&self, rows: SinkRows) -> error::Result<()> {
        self.delimiter.check()?;
        Encoder::new::<D>(rows).map(drop)
    }

    fn encoded(&self) -> error::Result<Option<EncodedSink<D>>> {
        self.delimiter.check()?;
        let encoder = Encoder::new::<D>(SinkRows::Events)?.delimiter(self.delimiter);
        Ok(Some(encoded_file(&self.path, encoder)))
    }

    fn open(&self, at: &SinkContext) -> error::Result<Box<dyn SinkWriter<D>>> {
        self.delimiter.check()?;
        let encoder = Encoder::new::<D>(at.rows)?.delimiter(self.delimiter);
        Ok(Box::new(file::FileWriter::open::<D>(&self.path, encoder, at)?))
    }
}

/// Encodes rows as lines of CSV.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    rows: SinkRows,
    delimiter: u8,
    row: &'static str,
    names: Vec<&'static str>,
}

impl Encoder {
    /// Creates an encoder for a row type.
    ///
    /// # Errors
    /// Fails if such rows are no table, or if a field has the name of the column of differences.
    pub(crate) fn new<D: Record>(rows: SinkRows) -> error::Result<Self> {
        let fields = fields::of::<D>()?;
        check_diff(rows, fields.row, fields.names.iter())?;
        Ok(Encoder { rows, delimiter: Delimiter::COMMA.byte(), row: fields.row, names: fields.names })
    }

    /// Sets the delimiter, which was checked.
    pub(crate) fn delimiter(mut self, delimiter: Delimiter) -> Self {
        self.delimiter = delimiter.byte();
        self
    }
}

impl<D: Record> EncodeRows<D> for Encoder {
    fn header(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let diff = (self.rows == SinkRows::Changes).then_some(DIFF);
        for (at, name) in self.names.iter().copied().chain(diff).enumerate() {
            if at > 0 {
                out.push(self.delimiter);
            }
            text(out, name.as_bytes(), self.delimiter);
        }
        end_line(out, start);
    }

    fn row(&mut self, row: &D, diff: isize, out: &mut Vec<u8>) -> error::Result<()> {
        let start = out.len();
        let delimiter = self.delimiter;
        let mut line = LineSerializer { out, delimiter, names: &mut self.names, at: 0, in_field: false };
        if let Err(RowRefused(why)) = row.serialize(&mut line).and_then(|()| line.complete()) {
            return Err(Error::of(ErrorKind::SinkFailed, format!("cannot write a row of type `{}` as CSV", self.row))
                .because(why)
                .help("map the rows to a struct whose fields are all written, under the names they are read by"));
        }
        if self.rows == SinkRows::Changes {
            out.push(delimiter);
            out.extend_from_slice(itoa::Buffer::new().format(diff).as_bytes());
        }
        end_line(out, start);
        Ok(())
    }

    fn kind(&self) -> SinkRows {
        self.rows
    }
}

/// Ends a line. An empty line would be read as no row at all, so it gets an empty quoted field.
fn end_line(out: &mut Vec<u8>, start: usize) {
    if out.len() == start {
        out.extend_from_slice(b"\"\"");
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::durable::Incarnation;
    use crate::record::{Decimal, Real, records};
    use crate::source::Rejected;
    use crate::time::{Epoch, EventTime};

    records! {
        #[serde(rename_all = "kebab-case")]
        enum Colour { Red, #[serde(rename = "green, \"light\"")] Green, DarkBlue }
        struct Cents(i64);
        struct Place { x: i64 }
        struct Marker;

        struct Wide {
            time: EventTime,
            #[serde(rename = "a \"quoted\", name")]
            text: String,
            letter: char,
            cents: Cents,
            maybe: Option<String>,
            colour: Option<Colour>,
            small: i8,
            unsigned: u64,
            large: i128,
            larger: u128,
            real: Real,
            money: Decimal,
            yes: bool,
            marker: Marker,
            nothing: (),
            #[serde(skip)]
            skipped: u8,
        }
        struct One { text: Option<String> }
        struct Total { key: String, count: i64 }
        struct Nested { key: String, place: Place }
        struct Different { key: String, diff: i64 }
        struct Renamed { #[serde(rename(serialize = "b"))] a: i64 }
        struct Skipping { a: i64, #[serde(skip_serializing_if = "Option::is_none")] b: Option<i64> }
        struct Hiding { a: i64, #[serde(skip_serializing, default)] b: i64 }
        struct Adding { a: i64, #[serde(skip_deserializing)] b: i64 }
        #[serde(into = "(i64, i64)", from = "Place")]
        struct Posing { a: i64 }
        #[serde(untagged)]
        enum Untagged { Number(i64), Numbers(Vec<i64>), Place { x: i64 } }
        struct Unsure { a: Untagged }
    }

    impl From<Posing> for (i64, i64) {
        fn from(posing: Posing) -> (i64, i64) {
            (posing.a, posing.a)
        }
    }

    impl From<Place> for Posing {
        fn from(place: Place) -> Posing {
            Posing { a: place.x }
        }
    }

    fn shard(rows: SinkRows) -> SinkContext {
        SinkContext::new("job", "totals", rows)
    }

    fn lines<D: Record>(kind: SinkRows, rows: &[(D, isize)]) -> error::Result<String> {
        lines_between(Delimiter::COMMA, kind, rows)
    }

    fn lines_between<D: Record>(delimiter: Delimiter, kind: SinkRows, rows: &[(D, isize)]) -> error::Result<String> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new::<D>(kind)?.delimiter(delimiter);
        EncodeRows::<D>::header(&encoder, &mut out);
        encoder.rows(rows, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn total(key: &str, count: i64) -> Total {
        Total { key: key.into(), count }
    }

    #[test]
    fn the_header_is_there_even_when_no_row_is() {
        assert_eq!(lines::<Total>(SinkRows::Events, &[]).unwrap(), "key,count\n");
        assert_eq!(lines::<Total>(SinkRows::Changes, &[]).unwrap(), "key,count,diff\n");
        assert_eq!(
            lines::<Rejected>(SinkRows::Events, &[]).unwrap(),
            "source,place,partition,offset,line,reason,encoding,record\n"
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("totals.csv");
        let mut writer = sink::Sink::<Total>::open(&Sink::new(&path), &shard(SinkRows::Events)).unwrap();
        writer.begin(&Incarnation::without_state()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "key,count\n");
        writer.finish().unwrap();
    }

    #[test]
    fn a_collection_has_a_last_column_diff_and_events_are_repeated() {
        let rows = [(total("a", 1), -1), (total("a", 2), 3)];
        assert_eq!(lines(SinkRows::Changes, &rows).unwrap(), "key,count,diff\na,1,-1\na,2,3\n");
        assert_eq!(lines(SinkRows::Events, &rows[1..]).unwrap(), "key,count\na,2\na,2\na,2\n");
        let refused = lines(SinkRows::Events, &rows).unwrap_err().to_string();
        assert!(refused.starts_with("an event came with the difference -1"), "{refused}");
        assert!(lines::<Different>(SinkRows::Events, &[]).is_ok());
        let refused = lines::<Different>(SinkRows::Changes, &[]).unwrap_err().to_string();
        assert!(refused.contains("its field `diff` has the name of the column of differences"), "{refused}");
    }

    #[test]
    fn nested_rows_are_refused_before_a_byte_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let (new, old) = (directory.path().join("new.csv"), directory.path().join("old.csv"));
        fs::write(&old, "precious\n").unwrap();
        for path in [&new, &old] {
            let sink = Sink::new(path);
            let checked = sink::Sink::<Nested>::check(&sink, SinkRows::Events).unwrap_err();
            assert!(checked.to_string().contains("`Nested` as CSV: its field `place` holds a struct"), "{checked}");
            assert_eq!(sink::Sink::<Nested>::open(&sink, &shard(SinkRows::Events)).err(), Some(checked));
        }
        assert!(!new.exists());
        assert_eq!(fs::read_to_string(&old).unwrap(), "precious\n");
    }

    #[test]
    fn rows_that_are_not_written_as_they_are_read_fail_with_their_epoch() {
        fn check<D: Record>(fine: Option<D>, bad: D, why: &str) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("out.csv");
            let mut writer = sink::Sink::<D>::open(&Sink::new(&path), &shard(SinkRows::Events)).unwrap();
            writer.begin(&Incarnation::without_state()).unwrap();
            let before = fs::read(&path).unwrap();
            let rows: Vec<_> = fine.into_iter().chain([bad]).map(|row| (row, 1)).collect();
            let error = writer.write(Epoch(2), &rows).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("out.csv"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), before);
        }
        check(None, Renamed { a: 1 }, "it writes a field `b` where the column is `a`");
        let skipping = |b| Skipping { a: 1, b };
        check(Some(skipping(Some(1))), skipping(None), "it does not write its field `b`, which is a column");
        check(None, Hiding { a: 1, b: 2 }, "it does not write its field `b`, which is a column");
        check(None, Adding { a: 1, b: 2 }, "it writes a field `b`, which is not a column");
        check(None, Posing { a: 1 }, "it is a tuple and not a struct with named fields");
        let unsure = |a| Unsure { a };
        for (bad, holds) in [(Untagged::Numbers(vec![1]), "a list"), (Untagged::Place { x: 1 }, "a struct")] {
            let why = format!("its field `a` holds {holds}, and a column holds one value");
            check(Some(unsure(Untagged::Number(1))), unsure(bad), &why);
        }
    }

    /// Random generator of rows with special characters.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }

        fn wide(&mut self) -> u128 {
            let bits = (0..5).fold(0, |bits, _| bits << 31 | u128::from(self.below(1 << 31)));
            bits >> self.below(128)
        }

        fn letter(&mut self) -> char {
            [',', '"', '\n', '\r', ' ', 'a', 'Z', '0', 'é', '\t', ';', '\'', '#', '😀', '\u{0}']
                [self.below(15) as usize]
        }

        fn text(&mut self) -> String {
            let plain = self.below(2) == 0;
            (0..[0, 1, 2, 9, 40][self.below(5) as usize])
                .map(|_| if plain { char::from(b'a' + self.below(26) as u8) } else { self.letter() })
                .collect()
        }

        fn row(&mut self) -> Wide {
            let real = match self.below(3) {
                0 => self.wide() as f64 / 8.0,
                1 => f64::from_bits(self.wide() as u64),
                _ => self.below(100) as f64,
            };
            Wide {
                time: EventTime::from_millis(self.wide() as i64),
                text: self.text(),
                letter: self.letter(),
                cents: Cents(-(self.below(1 << 31) as i64)),
                maybe: (self.below(2) == 0).then(|| self.text()),
                colour: [None, Some(Colour::Red), Some(Colour::Green), Some(Colour::DarkBlue)][self.below(4) as usize]
                    .clone(),
                small: self.wide() as i8,
                unsigned: self.wide() as u64,
                large: self.wide() as i128,
                larger: self.wide(),
                real: Real::new(real),
                money: Decimal::new(self.wide() as i64, self.below(20) as u32),
                yes: self.below(2) == 0,
                marker: Marker,
                nothing: (),
                skipped: 1,
            }
        }
    }

    /// The serializer replaces the csv crate's for speed, so it must write the very same bytes.
    #[test]
    fn bytes_are_those_of_the_csv_crate() {
        fn expected<D: Record>(delimiter: Delimiter, rows: &[(D, isize)], diff: bool) -> Vec<u8> {
            let mut writer = ::csv::WriterBuilder::new();
            writer.has_headers(!diff).delimiter(delimiter.byte());
            let mut writer = writer.from_writer(Vec::new());
            for (row, change) in rows {
                if diff { writer.serialize((row, change)).unwrap() } else { writer.serialize(row).unwrap() }
            }
            writer.into_inner().unwrap()
        }
        fn check<D: Record>(seed: u64, rows: &[(D, isize)]) {
            let events: Vec<_> = rows.iter().map(|(row, _)| (row.clone(), 1)).collect();
            let between = Delimiter::USUAL[seed as usize % 4];
            let written = lines_between(between, SinkRows::Events, &events).unwrap();
            let same = written.as_bytes() == expected(between, &events, false);
            assert!(same, "events of seed {seed} differ");
            let changes = lines_between(between, SinkRows::Changes, rows).unwrap();
            let (_, changes) = changes.split_at(lines::<D>(SinkRows::Changes, &[]).unwrap().len());
            assert_eq!(changes.as_bytes(), expected(between, rows, true), "changes of seed {seed}");
        }
        for seed in 0..300 {
            let mut random = Random(seed);
            let rows: Vec<_> = (0..20).map(|_| (random.row(), random.below(9) as isize - 9)).collect();
            check(seed, &rows);
            let ones: Vec<_> = (0..20).map(|_| One { text: (random.below(3) > 0).then(|| random.text()) }).collect();
            check(seed, &ones.into_iter().map(|one| (one, 5)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_read_back_as_they_were() {
        let mut random = Random(7);
        let rows: Vec<_> = (0..200).map(|_| (Total { key: random.text(), count: 1 }, 1)).collect();
        let written = lines(SinkRows::Events, &rows).unwrap();
        let read: Vec<Total> =
            ::csv::Reader::from_reader(written.as_bytes()).deserialize().map(Result::unwrap).collect();
        assert!(read.iter().eq(rows.iter().map(|(row, _)| row)), "seed 7");
    }
}

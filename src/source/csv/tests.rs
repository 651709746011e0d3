//! Rows decode to what the `csv` crate decodes them to, whatever the record type; the accepted headers follow from the
//! type.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use super::*;
use crate::time::EventTime;

macro_rules! record {
    ($(#[$of:meta])* $name:ident { $($(#[$at:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        $(#[$of])*
        struct $name { $($(#[$at])* $field: $kind),* }
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Colour {
    Red,
    Green,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Wrapped(i32);

record!(Plain { id: u64, account: String, at_ms: i64 });
record!(Integers { a: u8, b: i8, c: u16, d: i16, e: u32, f: i32, g: u64, h: i64, i: u128, j: i128 });
record!(Scalars {
    flag: bool,
    letter: char,
    real: crate::Real,
    money: crate::Decimal,
    at: EventTime,
    maybe: Option<u32>,
    text: Option<String>,
    colour: Colour,
    inner: Wrapped,
    odd: Option<Colour>,
});
record!(Aliased {
    #[serde(alias = "number")]
    id: u64,
    name: String
});
record!(Defaulted { id: u64, #[serde(default)] name: String, note: Option<String>, #[serde(skip)] seen: u8 });
record!(Inner { x: i64 });
record!(Flat {
    id: u64,
    #[serde(flatten)]
    inner: Inner
});
record!(
    #[serde(deny_unknown_fields)]
    Strict { id: u64 }
);

const TEXTS: [&[u8]; 44] = [
    b"",
    b"0",
    b"1",
    b"-1",
    b"+1",
    b" 1",
    b"1 ",
    b"127",
    b"128",
    b"-128",
    b"-129",
    b"255",
    b"256",
    b"65536",
    b"-0",
    b"007",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999",
    b"340282366920938463463374607431768211456",
    b"12345678",
    b"123456789",
    b"1234567a",
    b"12345678901234567",
    b"0x1f",
    b"0xFFFFFFFFFFFFFFFFF",
    b"1.5",
    b"1e3",
    b"NaN",
    b"inf",
    b"true",
    b"false",
    b"True",
    b"red",
    b"green",
    b"x",
    b"\xc3\xa9",
    b"\xff",
    b"1\0",
    b"2026-01-02T03:04:05.678Z",
];

fn decode<T: Record>(csv: Csv, file: &[u8]) -> Vec<(usize, Option<T>)> {
    let (layout, head) = csv.read_layout::<T>(file, true).unwrap().unwrap();
    let (mut scratch, mut rows) = (Scratch::default(), Vec::new());
    csv.parse::<T>(&layout, &mut scratch, &file[head..], |place, row| rows.push((place.start, row.ok())));
    rows
}

fn decode_by_the_crate<T: Record>(csv: Csv, file: &[u8]) -> Vec<Option<T>> {
    let mut reader = ::csv::ReaderBuilder::new().delimiter(csv.delimiter.byte()).from_reader(file);
    let header = reader.byte_headers().unwrap().clone();
    let rows = reader.byte_records().map(|row| row.ok().and_then(|row| row.deserialize(Some(&header)).ok()));
    rows.collect()
}

/// Compares both ways of decoding on random files with usual and odd values.
fn check<T: Record>(columns: &[&str], likely: &[&[u8]], by_position: bool) {
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let csv = Csv { delimiter: Delimiter::USUAL[seed as usize % 4] };
        let between = char::from(csv.delimiter.byte()).to_string();
        let mut order: Vec<usize> = (0..columns.len()).collect();
        rng.shuffle(&mut order);
        let mut file = order.iter().map(|at| columns[*at]).collect::<Vec<_>>().join(&between).into_bytes();
        for _ in 0..30 {
            file.push(b'\n');
            let spoilt = rng.usize(0..2 * columns.len());
            let text = |at: &usize| if *at == spoilt { TEXTS[rng.usize(0..TEXTS.len())] } else { likely[*at] };
            file.extend(order.iter().map(text).collect::<Vec<_>>().join(&csv.delimiter.byte()));
        }
        let read: Vec<Option<T>> = decode(csv, &file).into_iter().map(|(_, row)| row).collect();
        assert_eq!(read, decode_by_the_crate::<T>(csv, &file), "seed {seed}: {}", file.escape_ascii());
        let (layout, _) = csv.read_layout::<T>(&file, true).unwrap().unwrap();
        assert_eq!(layout.order.is_some(), by_position, "seed {seed}");
    }
}

#[test]
fn records_decode_as_the_csv_crate_decodes_them() {
    check::<Plain>(&["id", "account", "more", "at_ms"], &[b"1", b"a", b"", b"5"], true);
    let columns = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    check::<Integers>(&columns, &[b"1".as_slice(); 10], true);
    let columns = ["flag", "letter", "real", "money", "at", "maybe", "text", "colour", "inner", "odd"];
    let likely: [&[u8]; 10] = [b"true", b"x", b"1.5", b"0.10", b"1767323045678", b"", b"t", b"red", b"-7", b"green"];
    check::<Scalars>(&columns, &likely, true);
}

#[test]
fn types_that_cannot_be_decoded_by_position_are_decoded_by_name() {
    check::<Aliased>(&["number", "name"], &[b"1", b"a"], false);
    check::<Defaulted>(&["id", "more"], &[b"1", b"a"], false);
    check::<Flat>(&["id", "x"], &[b"1", b"2"], false);
    check::<Strict>(&["id", "more"], &[b"1", b"2"], false);
    check::<(u64, String)>(&["a", "b"], &[b"1", b"2"], false);
    check::<Defaulted>(&["id", "name", "note"], &[b"1", b"a", b""], true);
    check::<Strict>(&["id"], &[b"1"], true);
}

#[test]
fn a_header_with_aliased_names_of_one_field_is_not_decoded_by_position() {
    let columns = "id,number,name\n";
    let error = Csv::default().read_layout::<Aliased>(columns.as_bytes(), true).unwrap_err().to_string();
    assert!(error.contains("`id` twice"), "{error}");
}

fn refused<T: Record + Debug>(file: &str, expected: &str) {
    assert_eq!(Csv::default().read_layout::<T>(file.as_bytes(), true).unwrap_err().to_string(), expected);
}

#[test]
fn a_header_that_lacks_what_a_record_needs_is_refused() {
    let help = "; give the file a header that names every column the record needs, once";
    refused::<Plain>(
        "account,id\n",
        &format!("the csv header lacks the column `at_ms`: the header names `account`, `id`{help}"),
    );
    refused::<Plain>(
        "x\n",
        &format!("the csv header lacks the columns `id`, `account`, `at_ms`: the header names `x`{help}"),
    );
    refused::<Plain>(
        "id,account,at_ms,id\n",
        &format!("the csv header names the column `id` twice: the header names `id`, `account`, `at_ms`, `id`{help}"),
    );
    refused::<Scalars>(
        "flag,letter,real,money,at,colour",
        &format!(
            "the csv header lacks the column `inner`: the header names `flag`, `letter`, `real`, `money`, `at`, `colour`{help}"
        ),
    );
    refused::<Defaulted>("name\n", &format!("the csv header lacks the column `id`: the header names `name`{help}"));
}

#[test]
fn a_header_with_another_delimiter_is_refused_with_the_flag_that_names_it() {
    let help = |other: &str| format!("; if its fields are between {other}, say so by `delimiter` or --delimiter");
    let lacks = "the csv header lacks the columns `id`, `account`, `at_ms`: the header names";
    refused::<Plain>("id;account;at_ms\n", &format!("{lacks} `id;account;at_ms`{}", help("`;`")));
    refused::<Plain>("id\taccount\tat_ms\n", &format!("{lacks} `id\taccount\tat_ms`{}", help("tabs")));
    let csv = Csv { delimiter: '|'.into() };
    let error = csv.read_layout::<Plain>(b"id,account,at_ms\n", true).unwrap_err().to_string();
    assert_eq!(error, format!("{lacks} `id,account,at_ms`{}", help("`,`")));
}

#[test]
fn columns_are_found_by_name_whatever_is_between_them_and_quoted_as_ever() {
    for between in [',', ';', '\t', '|', '\x01'] {
        let text = "at_ms#more#\"account\"#id\n7##\"a#\"\"b\"\"\nc\"#1\n8#\"#\"#d#2".replace('#', &between.to_string());
        let rows = decode::<Plain>(Csv { delimiter: between.into() }, text.as_bytes());
        let rows: Vec<_> = rows.into_iter().map(|(_, row)| row.unwrap()).collect();
        let expected = [(1, format!("a{between}\"b\"\nc"), 7), (2, "d".to_owned(), 8)];
        assert_eq!(rows, expected.map(|(id, account, at_ms)| Plain { id, account, at_ms }));
    }
}

#[test]
fn a_state_knows_a_file_again_by_its_delimiter_and_a_wrong_one_is_refused_before_the_file_is_opened() {
    let identity = |between: char| Csv { delimiter: between.into() }.identity();
    assert_eq!(
        (identity(',').unwrap(), identity(';').unwrap()),
        ("csv file".into(), "csv file with fields between `;`".into())
    );
    let error = identity('"').unwrap_err();
    assert_eq!(error.kind(), crate::error::ErrorKind::Usage);
}

#[test]
fn a_rejected_row_names_its_column() {
    let file = b"id,account,at_ms\n1,a,x\n1,a\n1,\xff,2\n99999999999999999999,a,1\n";
    let (layout, head) = Csv::default().read_layout::<Plain>(file, true).unwrap().unwrap();
    let mut reasons = Vec::new();
    Csv::default()
        .parse::<Plain>(&layout, &mut Scratch::default(), &file[head..], |_, row| reasons.push(row.unwrap_err()));
    assert_eq!(reasons[0], "column `at_ms`: invalid digit found in string");
    assert_eq!(reasons[1], "it has 2 fields where the header names 3");
    assert_eq!(reasons[2], "column `account`: invalid utf-8 sequence of 1 bytes from index 0");
    assert_eq!(reasons[3], "column `id`: number too large to fit in target type");
}

#[test]
fn a_header_is_waited_for_until_its_line_ends() {
    assert!(Csv::default().read_layout::<Plain>(b"id,account,at_ms", false).unwrap().is_none());
    assert!(Csv::default().read_layout::<Plain>(b"\"id\",account,\"at_ms", false).unwrap().is_none());
    assert!(Csv::default().read_layout::<Plain>(b"", false).unwrap().is_none());
    for empty in [b"" as &[u8], b"\n\r\n", b"\xef\xbb\xbf"] {
        assert!(decode::<Plain>(Csv::default(), empty).is_empty());
    }
    assert_eq!(decode::<Plain>(Csv::default(), b"\r\n\"id\",account,at_ms\r\n\r\n1,a,2").len(), 1);
}

//! Finds the beginnings and ends of CSV rows and fields.
//!
//! The grammar is that of the `csv` crate. A quote opens a quoted field only at the beginning of a field; in a quoted
//! field two quotes stand for one, and after the closing quote everything up to the delimiter stands for itself. A row
//! ends with `\n` or `\r`; empty rows are skipped, so `\r\n` ends one row. A field with text behind its closing quote,
//! or without a closing quote, is split likewise and reported as [`QuoteFault`].
//!
//! The delimiter is an argument: one byte, a [`Delimiter`](super::Delimiter)'s.
//!
//! Bytes are scanned eight at a time, as most fields are short. The module does not know what fields mean.

use super::fields::RowFields;
use crate::source::file::format::ScanState;

/// `true` if the byte ends a row.
fn ends_row(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Returns the position of the next row's first byte; `None` if there is no further row.
#[inline]
pub(super) fn begin(bytes: &[u8], mut from: usize) -> Option<usize> {
    while ends_row(*bytes.get(from)?) {
        from += 1;
    }
    Some(from)
}

/// Returns the position after the last complete row of bytes that begin at a row; `None` if no row is complete.
///
/// Only quotes are examined. Outside of a quoted field, a quote opens a field if it stands where a field can begin,
/// which the byte before it tells.
pub(super) fn last_end(bytes: &[u8], delimiter: u8) -> Option<usize> {
    let (mut outside, mut at, mut end) = (0, 0, None);
    while let Some(quote) = memchr::memchr(b'"', &bytes[at..]).map(|found| at + found) {
        if quote > 0 && bytes[quote - 1] != delimiter && !ends_row(bytes[quote - 1]) {
            at = quote + 1;
            continue;
        }
        end = last_break(bytes, outside, quote).or(end);
        let Some(closed) = closing_quote(bytes, quote + 1) else { return end };
        (outside, at) = (closed + 1, closed + 1);
    }
    last_break(bytes, outside, bytes.len()).or(end)
}

/// Returns the position after the last row end between two positions that are outside of quoted fields. A `\r` that is
/// the very last byte does not count: a `\n` may follow.
fn last_break(bytes: &[u8], from: usize, to: usize) -> Option<usize> {
    let at = from + memchr::memrchr2(b'\n', b'\r', &bytes[from..to])?;
    if bytes[at] == b'\r' && at + 1 == bytes.len() {
        return memchr::memrchr2(b'\n', b'\r', &bytes[from..at]).map(|at| from + at + 1);
    }
    Some(at + 1)
}

/// Returns the position of the quote that closes a quoted field whose text begins at `from`: the first that is not
/// doubled.
fn closing_quote(bytes: &[u8], mut from: usize) -> Option<usize> {
    loop {
        let quote = from + memchr::memchr(b'"', &bytes[from..])?;
        if bytes.get(quote + 1) != Some(&b'"') {
            return Some(quote);
        }
        from = quote + 2;
    }
}

/// Returns the position in `bytes` after the end of the row, which is the byte after the first line break outside of
/// quotes. `within` is the state of the scan at the first byte. `None` if the row goes on; `within` is then the state
/// after the last byte.
pub(super) fn end_of(within: &mut ScanState, bytes: &[u8], delimiter: u8) -> Option<usize> {
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        *within = match (*within, byte) {
            (ScanState::Quoted, _) => {
                let quote = memchr::memchr(b'"', &bytes[at..])?;
                at += quote;
                ScanState::Quote
            }
            (ScanState::FieldStart, b'"') | (ScanState::Quote, b'"') => ScanState::Quoted,
            (_, byte) if byte == delimiter => ScanState::FieldStart,
            (_, byte) if ends_row(byte) => return Some(at + 1),
            _ => {
                at += memchr::memchr3(delimiter, b'\n', b'\r', &bytes[at..]).unwrap_or(bytes.len() - at) - 1;
                ScanState::Plain
            }
        };
        at += 1;
    }
    None
}

/// A fault in the quotes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuoteFault {
    /// There is text between the closing quote and the delimiter.
    TextAfter,
    /// The closing quote is missing.
    Unclosed,
}

/// Splits rows into fields.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// Start and end of each field of the last row, in the bytes it was split from or in `plain`.
    fields: Vec<(u32, u32)>,
    /// Unquoted fields of a row that had to be copied.
    plain: Vec<u8>,
    rewritten: bool,
    /// First field with wrong quotes, and its fault.
    misquoted: Option<(usize, QuoteFault)>,
}

impl Splitter {
    /// Splits the row that begins at `start`. Returns the position after its last byte.
    #[inline]
    pub(super) fn split(&mut self, bytes: &[u8], start: usize, delimiter: u8) -> usize {
        self.fields.clear();
        self.rewritten = false;
        self.misquoted = None;
        let mut from = start;
        loop {
            let stop = if bytes.get(from) == Some(&b'"') {
                match simply_quoted(bytes, from, delimiter) {
                    Some(closed) => {
                        self.fields.push((from as u32 + 1, closed as u32));
                        closed + 1
                    }
                    None => return self.rewrite(bytes, start, delimiter),
                }
            } else {
                let stop = field_end(bytes, from, delimiter);
                self.fields.push((from as u32, stop as u32));
                stop
            };
            if bytes.get(stop) != Some(&delimiter) {
                return stop;
            }
            from = stop + 1;
        }
    }

    /// Returns the fields of the row that was split last. `bytes` must be the same bytes; `text` is the same as UTF-8,
    /// if it is.
    #[inline]
    pub(super) fn row<'a>(&'a self, bytes: &'a [u8], text: Option<&'a str>) -> RowFields<'a> {
        if self.rewritten {
            RowFields::new(&self.plain, std::str::from_utf8(&self.plain).ok(), &self.fields)
        } else {
            RowFields::new(bytes, text, &self.fields)
        }
    }

    /// Returns the first fault in the quotes of the row that was split last, with the index of its field.
    #[inline]
    pub(super) fn quote_fault(&self) -> Option<(usize, QuoteFault)> {
        self.misquoted
    }

    /// Splits a row with doubled, unclosed or misplaced quotes, one byte at a time.
    #[cold]
    fn rewrite(&mut self, bytes: &[u8], start: usize, delimiter: u8) -> usize {
        self.fields.clear();
        self.plain.clear();
        self.rewritten = true;
        let (mut at, mut begin) = (start, 0);
        loop {
            let mut wrong = None;
            if bytes.get(at) == Some(&b'"') {
                (at, wrong) = self.rewrite_quoted(bytes, at + 1);
            }
            let stop = field_end(bytes, at, delimiter);
            wrong = wrong.filter(|wrong| *wrong == QuoteFault::Unclosed || stop > at);
            self.misquoted = self.misquoted.or(wrong.map(|wrong| (self.fields.len(), wrong)));
            self.plain.extend_from_slice(&bytes[at..stop]);
            self.fields.push((begin, self.plain.len() as u32));
            begin = self.plain.len() as u32;
            if bytes.get(stop) != Some(&delimiter) {
                return stop;
            }
            at = stop + 1;
        }
    }

    /// Copies the text of a quoted field, doubled quotes as one. Returns the position after the closing quote, and the
    /// fault that the field has if the closing quote is missing or text follows it.
    fn rewrite_quoted(&mut self, bytes: &[u8], from: usize) -> (usize, Option<QuoteFault>) {
        let closed = closing_quote(bytes, from);
        let end = closed.unwrap_or(bytes.len());
        let mut rest = &bytes[from..end];
        while let Some(quote) = memchr::memchr(b'"', rest) {
            self.plain.extend_from_slice(&rest[..=quote]);
            rest = rest.get(quote + 2..).unwrap_or_default();
        }
        self.plain.extend_from_slice(rest);
        let wrong = if closed.is_some() { QuoteFault::TextAfter } else { QuoteFault::Unclosed };
        (bytes.len().min(end + 1), Some(wrong))
    }
}

/// Returns the position of the closing quote of a field that opens with the quote at `from`; `None` if the field has
/// doubled, unclosed or misplaced quotes.
#[inline]
fn simply_quoted(bytes: &[u8], from: usize, delimiter: u8) -> Option<usize> {
    let closed = from + 1 + memchr::memchr(b'"', &bytes[from + 1..])?;
    bytes.get(closed + 1).is_none_or(|byte| *byte == delimiter || ends_row(*byte)).then_some(closed)
}

/// Returns the position of the first delimiter or row end from `from` on, or the end of `bytes`.
///
/// A byte of `x ^ pattern` is zero where `x` has the byte looked for; the usual bit trick marks the zero bytes, and the
/// lowest mark is exact (Hacker's Delight, 6-1).
#[inline]
fn field_end(bytes: &[u8], mut from: usize, delimiter: u8) -> usize {
    const LOW: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let zeros = |word: u64| word.wrapping_sub(LOW) & !word & HIGH;
    while let Some(eight) = bytes.get(from..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*eight);
        let found = zeros(word ^ (LOW * u64::from(delimiter)))
            | zeros(word ^ (LOW * u64::from(b'\n')))
            | zeros(word ^ (LOW * u64::from(b'\r')));
        if found != 0 {
            return from + found.trailing_zeros() as usize / 8;
        }
        from += 8;
    }
    let stop = |byte: &u8| *byte == delimiter || ends_row(*byte);
    bytes[from..].iter().position(stop).map_or(bytes.len(), |at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Delimiters that the tests try, by seed.
    fn delimiter(seed: u64) -> u8 {
        [b',', b';', b'\t', b'|'][seed as usize % 4]
    }

    /// Splits a text into rows with their positions, by this module.
    fn rows_of(bytes: &[u8], delimiter: u8) -> Vec<(usize, Vec<Vec<u8>>)> {
        let (mut splitter, mut from, mut rows) = (Splitter::default(), 0, Vec::new());
        while let Some(at) = begin(bytes, from) {
            from = splitter.split(bytes, at, delimiter);
            rows.push((at, splitter.row(bytes, None).fields().map(<[u8]>::to_vec).collect()));
        }
        rows
    }

    /// Splits a text into rows, by the csv crate.
    fn rows_of_the_crate(bytes: &[u8], delimiter: u8) -> Vec<Vec<Vec<u8>>> {
        let mut reader = csv::ReaderBuilder::new();
        reader.has_headers(false).flexible(true).delimiter(delimiter);
        let mut reader = reader.from_reader(bytes);
        reader.byte_records().map(|row| row.unwrap().iter().map(<[u8]>::to_vec).collect()).collect()
    }

    /// Returns a short text made mostly of special characters.
    fn adversarial(rng: &mut fastrand::Rng, delimiter: u8) -> Vec<u8> {
        let end = &[delimiter];
        let pieces: [&[u8]; 14] = [
            b"\"",
            b"\"",
            b"\"\"",
            end,
            end,
            b",",
            b";",
            b"\n",
            b"\r",
            b"\r\n",
            b"ab",
            b"\xff\xfe",
            b"0123456789abcdef",
            b" ",
        ];
        let length = rng.usize(0..40);
        (0..length).flat_map(|_| pieces[rng.usize(0..pieces.len())].iter().copied()).collect()
    }

    #[test]
    fn rows_and_fields_are_those_of_the_csv_crate() {
        for seed in 0..60_000 {
            let delimiter = delimiter(seed);
            let text = adversarial(&mut fastrand::Rng::with_seed(seed), delimiter);
            let rows: Vec<_> = rows_of(&text, delimiter).into_iter().map(|(_, row)| row).collect();
            assert_eq!(rows, rows_of_the_crate(&text, delimiter), "seed {seed}: {:?}", text.escape_ascii().to_string());
        }
    }

    #[test]
    fn the_end_of_a_row_is_found_in_pieces_of_any_size() {
        for seed in 0..60_000 {
            let (mut rng, delimiter) = (fastrand::Rng::with_seed(seed), delimiter(seed));
            let text = adversarial(&mut rng, delimiter);
            let Some(start) = begin(&text, 0) else { continue };
            let expected = Splitter::default().split(&text, start, delimiter);
            let (mut within, mut at, mut found) = (ScanState::FieldStart, start, None);
            while at < text.len() && found.is_none() {
                let piece = &text[at..text.len().min(at + rng.usize(1..5))];
                found = end_of(&mut within, piece, delimiter).map(|end| at + end - 1);
                at += piece.len();
            }
            assert_eq!(found.unwrap_or(text.len()), expected, "seed {seed}: {}", text.escape_ascii());
        }
    }

    #[test]
    fn text_behind_a_closing_quote_and_an_unclosed_quote_are_told() {
        for (row, expected) in [
            (&b"1,\"a\" b\",3"[..], Some((1, QuoteFault::TextAfter))),
            (b"\"a\"\"b\"c\n", Some((0, QuoteFault::TextAfter))),
            (b"1,2,\"a", Some((2, QuoteFault::Unclosed))),
            (b"1,\"a\"\"b\",\"\"\r\n", None),
            (b"1,a\"b\"c,\"\"\"\"\"\"", None),
        ] {
            let mut splitter = Splitter::default();
            splitter.split(row, 0, b',');
            assert_eq!(splitter.quote_fault(), expected, "{}", row.escape_ascii());
        }
    }

    #[test]
    fn a_text_is_cut_where_a_row_ends_whatever_follows() {
        for seed in 0..60_000 {
            let (mut rng, delimiter) = (fastrand::Rng::with_seed(seed), delimiter(seed));
            let text = adversarial(&mut rng, delimiter);
            let shown = text.escape_ascii().to_string();
            let seen = rng.usize(0..=text.len());
            let (whole, end) = (rows_of(&text, delimiter), last_end(&text[..seen], delimiter));
            let (begun, rest) = text.split_at(end.unwrap_or(0));
            let (mut cut, after) = (rows_of(begun, delimiter), rows_of(rest, delimiter));
            cut.extend(after.into_iter().map(|(at, row)| (at + end.unwrap_or(0), row)));
            assert_eq!(cut, whole, "seed {seed}: {shown}, of which {seen} are seen");
            // No later place would do: the rest of the seen bytes is at most one row that may go on.
            let left = rows_of(&text[end.unwrap_or(0)..seen], delimiter);
            assert!(left.len() <= 1, "seed {seed}: {shown}, of which {seen} are seen, cut at {end:?}");
        }
    }
}

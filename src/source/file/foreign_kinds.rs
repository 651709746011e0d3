//! Detects, by their first bytes, common kinds of files that are neither CSV nor NDJSON in UTF-8.

use crate::error::{Error, Result};

/// Number of bytes that suffice to detect a file's kind.
pub(super) const ENOUGH: usize = 6;

/// First bytes, description and remedy of each kind.
const KINDS: &[(&[u8], &str, &str)] = &[
    (b"\x1f\x8b", "is compressed (gzip)", "unpack it first: gzip -dc FILE > UNPACKED"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd)", "unpack it first: zstd -dc FILE > UNPACKED"),
    (b"\xfd7zXZ\x00", "is compressed (xz)", "unpack it first: xz -dc FILE > UNPACKED"),
    (b"BZh", "is compressed (bzip2)", "unpack it first: bzip2 -dc FILE > UNPACKED"),
    (b"PK\x03\x04", "is a zip archive, or a spreadsheet", "unpack it, or export it as CSV, first"),
    (b"PAR1", "is a Parquet file", "export it as CSV or NDJSON first"),
    (b"Obj\x01", "is an Avro file", "export it as CSV or NDJSON first"),
    (b"\xff\xfe", "is text in UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8 FILE > CONVERTED"),
    (b"\xfe\xff", "is text in UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8 FILE > CONVERTED"),
];

/// Refuses a file whose first bytes show that it is of another kind.
///
/// # Errors
/// Fails with the kind of the file, and how to convert it.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let bytes = &bytes[..bytes.len().min(ENOUGH)];
    let known = KINDS.iter().find(|(begins, ..)| bytes.starts_with(begins)).map(|(_, is, help)| (*is, *help));
    // UTF-16 without a byte order mark: Latin letters have a zero byte each.
    let wide = matches!(bytes, [first, 0, second, 0, ..] | [0, first, 0, second, ..] if *first != 0 && *second != 0);
    let known = known
        .or(wide.then_some(("is text in UTF-16", "convert it first: iconv -f UTF-16LE -t UTF-8 FILE > CONVERTED")));
    known.map_or(Ok(()), |(is, help)| Err(Error::new(format!("the input {is}")).help(help)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_other_kind_and_zero_bytes_alone_are_none() {
        for text in [&b""[..], b"i", b"id,at_ms\n", b"{\"id\":1}", b"\xef\xbb\xbfid", b"\0\0\0\0\0\0", b"PAK", b"\x1f"]
        {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
        for (bytes, is) in [(&b"{\0\"\0i\0"[..], "UTF-16"), (b"\0{\0\"\0i", "UTF-16"), (b"\x1f\x8b\x08", "gzip")] {
            let error = check(bytes).unwrap_err().to_string();
            assert!(error.contains(is) && error.contains("first: "), "{error}");
        }
    }
}

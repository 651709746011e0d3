//! Unique keys: a sink that writes the newest row of each key can hold one row of it at a time.

use std::fmt::{self, Display};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, shortened};

/// Function that returns the key of a row; `None` if the row has none.
pub type UniqueKey<D> = Arc<dyn Fn(&D) -> Option<Vec<u8>> + Send + Sync>;

/// Returns the error for a key that has more than one row at the end of an epoch.
pub(crate) fn two_rows(key: &[u8]) -> Error {
    Error::of(ErrorKind::SinkFailed, format!("the key {} has more than one row", ReadableKey(key)))
        .because("the last message of a key is its row, so a key can have one row at the end of an epoch")
        .help("choose a key that differs from row to row, or write every change")
}

/// The bytes of a key, for people.
struct ReadableKey<'a>(&'a [u8]);

impl Display for ReadableKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match str::from_utf8(self.0) {
            Ok(text) => write!(f, "{:?}", shortened(text, 100)),
            Err(_) => write!(f, "{}", self.0[..self.0.len().min(50)].escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_as_text_or_escaped() {
        assert_eq!(ReadableKey(b"\xff\x00").to_string(), "\\xff\\x00");
        assert_eq!(ReadableKey("é\n".as_bytes()).to_string(), "\"é\\n\"");
        assert!(two_rows(&[b'k'; 10_000]).to_string().len() < 500);
    }
}

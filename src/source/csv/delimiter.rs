//! The character between the fields of a row of CSV, for sources and sinks.
//!
//! Invariant: a delimiter that was checked is one byte of ASCII, can neither end a row nor quote a field, and is part of
//! no number, so that numbers need no quotes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The character between the fields of a row: any ASCII character but letters, digits, `+`, `-`, `.`, `"`, line breaks
/// and the zero byte. Another one fails the job when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delimiter(char);

impl Delimiter {
    /// The usual one.
    pub(crate) const COMMA: Delimiter = Delimiter(',');
    /// Those that are tried on a header that lacks columns.
    pub(crate) const USUAL: [Delimiter; 4] = [Delimiter(';'), Delimiter('\t'), Delimiter('|'), Delimiter::COMMA];

    /// Returns the delimiter's byte.
    #[inline]
    pub(crate) fn byte(self) -> u8 {
        self.0 as u8
    }

    /// Checks that rows can be split at the delimiter.
    ///
    /// # Errors
    /// Fails if it is not one of those that [`Delimiter`] names.
    pub(crate) fn check(self) -> Result<()> {
        let is_part_of_a_value = self.0.is_ascii_alphanumeric() || matches!(self.0, '+' | '-' | '.');
        if self.0.is_ascii() && !is_part_of_a_value && !matches!(self.0, '"' | '\n' | '\r' | '\0') {
            return Ok(());
        }
        Err(Error::usage(format!("fields of CSV cannot be between {self}"))
            .because(
                "a delimiter is one ASCII character that is no letter, no digit, and none of + - . \" and line breaks",
            )
            .help("name the character that is between the fields, such as ; or | or a tab"))
    }
}

impl Default for Delimiter {
    fn default() -> Self {
        Delimiter::COMMA
    }
}

impl From<char> for Delimiter {
    fn from(character: char) -> Self {
        Delimiter(character)
    }
}

impl FromStr for Delimiter {
    type Err = Error;

    /// Parses one character, or `tab` or `\t`.
    fn from_str(text: &str) -> Result<Self> {
        let mut characters = text.chars();
        let delimiter = match (text, characters.next(), characters.next()) {
            ("tab" | "\\t", ..) => Delimiter('\t'),
            (_, Some(character), None) => Delimiter(character),
            _ => {
                let error = Error::usage(format!("`{text}` is not one character"));
                return Err(error.help("name the character that is between the fields, such as ';' or '|', or tab"));
            }
        };
        delimiter.check().map(|()| delimiter)
    }
}

impl fmt::Display for Delimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            '\t' => f.write_str("tabs"),
            ' ' => f.write_str("spaces"),
            other => write!(f, "`{}`", other.escape_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_ends_no_row_quotes_no_field_and_is_in_no_number() {
        for good in [',', ';', '\t', '|', ':', ' ', '\x01', '\x1f', '/', '_', '~'] {
            assert_eq!(Delimiter::from(good).check(), Ok(()), "{good:?}");
        }
        for bad in ['"', '\n', '\r', '\0', '-', '+', '.', '0', '9', 'a', 'Z', 'é', '；'] {
            let error = Delimiter::from(bad).check().unwrap_err().to_string();
            assert!(error.starts_with("fields of CSV cannot be between `") && error.contains("ASCII"), "{error}");
        }
    }

    #[test]
    fn a_flag_names_a_character_or_a_tab() {
        for (text, expected) in [(";", ';'), ("|", '|'), ("tab", '\t'), ("\\t", '\t'), ("\t", '\t'), (",", ',')] {
            assert_eq!(text.parse::<Delimiter>().unwrap(), Delimiter(expected));
        }
        for bad in ["", ";;", "tabs", "\"", "x", "é"] {
            assert!(bad.parse::<Delimiter>().is_err(), "{bad}");
        }
    }
}

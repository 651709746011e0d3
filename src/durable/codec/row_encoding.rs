//! A file's description of how its rows are encoded.
//!
//! Invariant: rows are read only where codec and fingerprint are those that they were written with.

use std::fmt;

use super::schema::Schema;
use crate::error::{Error, ErrorKind, Result};

/// A codec's number in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CodecId(pub u8);

impl CodecId {
    /// [`Postcard`].
    pub(crate) const POSTCARD: CodecId = CodecId(1);
    /// `Abomonation`, available if the program was built with the cargo feature `abomonation`.
    pub(crate) const ABOMONATION: CodecId = CodecId(2);
}

impl fmt::Display for CodecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            CodecId::POSTCARD => f.pad("postcard"),
            CodecId::ABOMONATION => f.pad("abomonation"),
            CodecId(number) => write!(f, "codec {number}"),
        }
    }
}

/// A file's description of how its rows are encoded; rows are read only where it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowEncoding {
    /// The codec.
    pub codec: CodecId,
    /// The fingerprint, see [`Codec::fingerprint`].
    pub fingerprint: u64,
    /// The name of the rows' type, for users.
    pub rows: String,
    /// The structure of the rows, used to display them; [`Schema::Unknown`] if the codec does not provide it.
    pub schema: Schema,
}

impl RowEncoding {
    /// Checks that rows of coding `written` can be read with this coding.
    ///
    /// # Errors
    /// Fails if they cannot: names the difference (codec, type or shape of the type) and the remedy, but no file.
    pub(crate) fn accepts(&self, written: &RowEncoding) -> Result<()> {
        if (self.codec, self.fingerprint) == (written.codec, written.fingerprint) {
            return Ok(());
        }
        let refused = Error::of(ErrorKind::StateIncompatible, "cannot read a segment's rows");
        if self.codec != written.codec {
            let why = format!("they were written by {}, and this step reads {}", written.codec, self.codec);
            let what = format!("run the step with {}, or start from a new state directory", written.codec);
            return Err(refused.because(why).help(what));
        }
        if self.rows != written.rows {
            let why = format!("they were written as `{}`, and this step reads `{}`", written.rows, self.rows);
            return Err(refused.because(why).help("restore the step's types, or start from a new state directory"));
        }
        let why = match self.codec {
            CodecId::ABOMONATION => {
                "another build of the program, or another machine, wrote them as they lay in memory"
            }
            _ => "their type has another shape than when they were written",
        };
        let what = match self.codec {
            CodecId::ABOMONATION => "run the program that wrote them, or start from a new state directory",
            _ => "restore the step's types, or start from a new state directory",
        };
        Err(refused.because(why).help(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_differs_and_what_to_do() {
        let schema = Schema::Unknown;
        let encoding = |codec, fingerprint, rows: &str| RowEncoding {
            codec,
            fingerprint,
            rows: rows.to_owned(),
            schema: schema.clone(),
        };
        let mine = encoding(CodecId::POSTCARD, 1, "u32");
        assert_eq!(mine.accepts(&mine.clone()), Ok(()));
        assert_eq!(mine.accepts(&encoding(CodecId::POSTCARD, 1, "moved::u32")), Ok(()));
        for (written, expected) in [
            (encoding(CodecId::ABOMONATION, 1, "u32"), "written by abomonation, and this step reads postcard; run"),
            (encoding(CodecId(9), 1, "u32"), "written by codec 9, and this step reads postcard; run"),
            (encoding(CodecId::POSTCARD, 2, "u64"), "written as `u64`, and this step reads `u32`; restore"),
            (encoding(CodecId::POSTCARD, 2, "u32"), "another shape than when they were written; restore"),
        ] {
            let said = mine.accepts(&written).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
        let in_place = |build| encoding(CodecId::ABOMONATION, build, "u32");
        let said = in_place(1).accepts(&in_place(2)).unwrap_err().to_string();
        assert!(
            said.contains("another build of the program") && said.contains("run the program that wrote them"),
            "{said}"
        );
    }
}

//! The envelope of small files that are read whole: kind of file, format version, length and checksum.
//!
//! ```text
//! magic 7 | version 1 | checksum 4 | length 4 | body, in postcard
//! ```
//! The checksum is CRC-32 of everything but itself; numbers are little-endian.
//!
//! Invariant: a file is read exactly as it was written, in a known format, or it is refused.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// Number of bytes before the body.
const BEFORE_BODY: usize = 16;

/// A kind of file with its format version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    /// The first bytes of such a file.
    pub(super) magic: [u8; 7],
    /// The format version that this program writes, from 1.
    pub(super) version: u8,
    /// The name of the kind in messages, such as "manifest".
    pub(super) name: &'static str,
}

/// The reason why a file was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EnvelopeError {
    /// The bytes are not of this kind, not complete, or damaged.
    Damaged(&'static str),
    /// The file was written in another format version.
    Version(u8),
}

impl Envelope {
    /// Encodes a file with this content.
    ///
    /// # Errors
    /// Fails if the content cannot be serialised, or is longer than 4 GiB.
    pub(super) fn seal(&self, content: &impl Serialize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&self.magic);
        bytes.push(self.version);
        bytes.extend_from_slice(&[0; 8]);
        let cannot = |why: &dyn std::fmt::Display| Error::new(format!("cannot write a {}", self.name)).because(why);
        let mut bytes = postcard::to_extend(content, bytes).map_err(|why| cannot(&why))?;
        let length = u32::try_from(bytes.len() - BEFORE_BODY).map_err(|_| cannot(&"it is longer than 4 GiB"))?;
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        let sum = checksum(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        Ok(bytes)
    }

    /// Decodes the file at the beginning of `bytes`; returns its content and its length.
    pub(super) fn open_first<T: DeserializeOwned>(
        &self,
        bytes: &[u8],
    ) -> std::result::Result<(T, usize), EnvelopeError> {
        if bytes.len() < BEFORE_BODY {
            return Err(EnvelopeError::Damaged("it is too short"));
        }
        if bytes[..7] != self.magic {
            return Err(EnvelopeError::Damaged("it does not begin as such a file does"));
        }
        match bytes[7] {
            version if version == self.version => {}
            // No version is 0: after a crash only the first bytes of the file were stored.
            0 => return Err(EnvelopeError::Damaged("it is not whole")),
            version => return Err(EnvelopeError::Version(version)),
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let end = BEFORE_BODY + word(12) as usize;
        let Some(whole) = bytes.get(..end) else { return Err(EnvelopeError::Damaged("it is shorter than it says")) };
        if checksum(whole) != word(8) {
            return Err(EnvelopeError::Damaged("its checksum does not match"));
        }
        match postcard::take_from_bytes(&whole[BEFORE_BODY..]) {
            Ok((content, [])) => Ok((content, end)),
            _ => Err(EnvelopeError::Damaged("its content makes no sense")),
        }
    }

    /// Decodes a whole file.
    pub(super) fn open<T: DeserializeOwned>(&self, bytes: &[u8]) -> std::result::Result<T, EnvelopeError> {
        match self.open_first(bytes)? {
            (content, end) if end == bytes.len() => Ok(content),
            _ => Err(EnvelopeError::Damaged("it is longer than it says")),
        }
    }

    /// Decodes a whole file of this version or an earlier one of the same layout; returns its content and version.
    pub(super) fn open_any<T: DeserializeOwned>(&self, bytes: &[u8]) -> std::result::Result<(T, u8), EnvelopeError> {
        let envelope = self.as_written(bytes);
        envelope.open(bytes).map(|content| (content, envelope.version))
    }

    /// Returns the envelope of the version that a file's first bytes name, if that is an earlier one.
    pub(super) fn as_written(&self, bytes: &[u8]) -> Envelope {
        let earlier = bytes.get(7).filter(|version| (1..self.version).contains(version));
        Envelope { version: earlier.copied().unwrap_or(self.version), ..*self }
    }

    /// The error for a file of this kind at `place`.
    pub(super) fn error_for(&self, broken: EnvelopeError, place: impl std::fmt::Display) -> Error {
        match broken {
            EnvelopeError::Damaged(why) => {
                Error::of(ErrorKind::StateDamaged, format!("the {} is damaged", self.name)).at(place).because(why)
            }
            EnvelopeError::Version(version) => {
                let what = format!(
                    "the {} was written in format {version}, and this program knows format {}",
                    self.name, self.version
                );
                let error = Error::of(ErrorKind::StateIncompatible, what).at(place);
                error.help("use the version of the program that wrote it")
            }
        }
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&bytes[..8]);
    sum.update(&bytes[12..]);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Envelope = Envelope { magic: *b"TGTRIAL", version: 3, name: "trial" };

    #[test]
    fn a_file_that_is_not_as_it_was_written_is_refused() {
        let content = (7u64, "seven".to_owned(), vec![Some(1i64), None]);
        let bytes = KIND.seal(&content).unwrap();
        assert_eq!(KIND.open(&bytes), Ok(content.clone()));
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(KIND.open_first(&longer), Ok((content, bytes.len())));
        type Content = (u64, String, Vec<Option<i64>>);
        assert!(KIND.open::<Content>(&longer).is_err());
        for length in 0..bytes.len() {
            assert!(KIND.open::<Content>(&bytes[..length]).is_err(), "{length} bytes");
        }
        for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(KIND.open::<Content>(&flipped).is_err(), "bit {bit} of byte {at}");
        }
    }

    #[test]
    fn earlier_formats_of_one_layout_are_read_and_later_ones_are_not() {
        for version in 1..=3 {
            let bytes = Envelope { version, ..KIND }.seal(&7u8).unwrap();
            assert_eq!(KIND.open_any(&bytes), Ok((7u8, version)));
        }
        let later = Envelope { version: 4, ..KIND }.seal(&7u8).unwrap();
        assert_eq!(KIND.open_any::<u8>(&later), Err(EnvelopeError::Version(4)));
        assert!(matches!(KIND.open_any::<u8>(&[]), Err(EnvelopeError::Damaged(_))));
    }

    #[test]
    fn another_format_is_refused_by_its_number() {
        let bytes = Envelope { version: 9, ..KIND }.seal(&1u8).unwrap();
        let broken = KIND.open::<u8>(&bytes).unwrap_err();
        assert_eq!(
            KIND.error_for(broken, "a/b").to_string(),
            "the trial was written in format 9, and this program knows format 3 (a/b); use the version of the program \
             that wrote it"
        );
    }
}

//! Bytes of a datum that are still to be read, with the limits of reading.

use std::fmt;

use serde::de;

/// Maximum depth of nested records, arrays and maps.
pub(crate) const DEEPEST: u32 = 96;

/// Values that a datum may have beside those that its length allows: values without bytes, such as records without
/// fields and arrays of nulls.
const SPARE_VALUES: u64 = 65_536;

/// Reason why a datum is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AvroRefusal(pub(super) String);

impl fmt::Display for AvroRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AvroRefusal {}

impl de::Error for AvroRefusal {
    fn custom<M: fmt::Display>(message: M) -> Self {
        AvroRefusal(message.to_string())
    }
}

impl serde::ser::Error for AvroRefusal {
    fn custom<M: fmt::Display>(message: M) -> Self {
        AvroRefusal(message.to_string())
    }
}

pub(super) fn refused<T>(why: impl Into<String>) -> Result<T, AvroRefusal> {
    Err(AvroRefusal(why.into()))
}

/// The rest of a datum.
pub(super) struct DatumBytes<'de> {
    rest: &'de [u8],
    /// Number of values that may still be read.
    values: u64,
    depth: u32,
}

impl<'de> DatumBytes<'de> {
    pub(super) fn new(bytes: &'de [u8]) -> Self {
        DatumBytes { rest: bytes, values: SPARE_VALUES + 16 * bytes.len() as u64, depth: 0 }
    }

    /// Number of bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Counts a value that may have no bytes.
    #[inline]
    pub(super) fn count(&mut self) -> Result<(), AvroRefusal> {
        match self.values.checked_sub(1) {
            Some(left) => self.values = left,
            None => return refused("more values than its length allows"),
        }
        Ok(())
    }

    /// Enters a nested value; [`DatumBytes::leave`] leaves it.
    #[inline]
    pub(super) fn enter(&mut self) -> Result<(), AvroRefusal> {
        if self.depth == DEEPEST {
            return refused(format!("nested deeper than {DEEPEST}"));
        }
        self.depth += 1;
        self.count()
    }

    #[inline]
    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, AvroRefusal> {
        match self.rest {
            [first, rest @ ..] => {
                self.rest = rest;
                Ok(*first)
            }
            [] => refused("the data end too early"),
        }
    }

    #[inline]
    pub(super) fn long(&mut self) -> Result<i64, AvroRefusal> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        refused("an integer of more than 64 bits")
    }

    #[inline]
    pub(super) fn int(&mut self) -> Result<i32, AvroRefusal> {
        let value = self.long()?;
        i32::try_from(value).or_else(|_| refused(format!("{value} is no 32-bit integer")))
    }

    pub(super) fn boolean(&mut self) -> Result<bool, AvroRefusal> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            other => refused(format!("byte {other} is no boolean")),
        }
    }

    #[inline]
    pub(super) fn exactly(&mut self, length: usize) -> Result<&'de [u8], AvroRefusal> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => refused(format!("{length} bytes are announced, and {} are left", self.rest.len())),
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], AvroRefusal> {
        let mut array = [0; N];
        array.copy_from_slice(self.exactly(N)?);
        Ok(array)
    }

    #[inline]
    pub(super) fn bytes(&mut self) -> Result<&'de [u8], AvroRefusal> {
        let length = self.long()?;
        match usize::try_from(length) {
            Ok(length) => self.exactly(length),
            Err(_) => refused(format!("a length of {length} bytes")),
        }
    }

    #[inline]
    pub(super) fn text(&mut self) -> Result<&'de str, AvroRefusal> {
        text_of(self.bytes()?)
    }

    /// Reads the head of a block of items: their number, and the block's length in bytes if it is given.
    pub(super) fn block(&mut self) -> Result<(u64, Option<usize>), AvroRefusal> {
        let count = self.long()?;
        if count >= 0 {
            return Ok((count.unsigned_abs(), None));
        }
        let length = self.long()?;
        match usize::try_from(length) {
            Ok(length) if length <= self.rest.len() => Ok((count.unsigned_abs(), Some(length))),
            _ => refused(format!("a block of {length} bytes, and {} are left", self.rest.len())),
        }
    }
}

pub(super) fn text_of(bytes: &[u8]) -> Result<&str, AvroRefusal> {
    str::from_utf8(bytes).or_else(|why| refused(format!("not UTF-8 text: {why}")))
}

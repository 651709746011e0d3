//! The bytes of a block: under construction, and aligned to be read in place.

/// A block under construction. A codec that separates fixed-size rows from the data they own writes both parts.
#[derive(Debug, Default)]
pub(crate) struct BlockBuffer {
    /// The first part of the block.
    pub head: Vec<u8>,
    /// The second part, placed after the first.
    pub tail: Vec<u8>,
}

impl BlockBuffer {
    /// The bytes so far, of both parts.
    pub(crate) fn length(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Returns the block, and starts an empty one.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let room = self.head.capacity();
        let mut block = std::mem::replace(&mut self.head, Vec::with_capacity(room));
        block.append(&mut self.tail);
        block
    }

    /// Truncates both parts to earlier lengths.
    pub(crate) fn truncate(&mut self, (head, tail): (usize, usize)) {
        self.head.truncate(head);
        self.tail.truncate(tail);
    }
}

/// Bytes whose start is aligned to [`AlignedBytes::ALIGNMENT`], so that rows can be read in place.
#[derive(Debug, Default)]
pub(crate) struct AlignedBytes {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    /// The alignment in bytes: the greatest of any primitive type of Rust.
    pub(crate) const ALIGNMENT: usize = 16;

    /// A buffer of `length` zeros.
    pub(crate) fn zeroed(length: usize) -> Self {
        let mut aligned = AlignedBytes::default();
        aligned.resize(length);
        aligned
    }

    /// Sets the length; the contents are unspecified afterwards.
    pub(crate) fn resize(&mut self, length: usize) {
        if self.bytes.len() < length + Self::ALIGNMENT {
            self.bytes.resize(length + Self::ALIGNMENT, 0);
        }
        let address = self.bytes.as_ptr().addr();
        self.start = address.next_multiple_of(Self::ALIGNMENT) - address;
        self.length = length;
    }

    /// Returns the bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    /// Shifts the start by one byte, so that it is not aligned.
    #[cfg(all(test, feature = "abomonation"))]
    pub(super) fn shift(&mut self) {
        self.start += 1;
    }

    /// Returns the bytes, to be overwritten.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_aligned_however_often_their_length_changes() {
        let mut bytes = AlignedBytes::zeroed(5);
        for length in [0, 1, 15, 16, 17, 4_000, 3, 70_000, 0] {
            bytes.resize(length);
            assert_eq!(bytes.as_slice().len(), length);
            assert_eq!(bytes.as_mut_slice().as_ptr().addr() % AlignedBytes::ALIGNMENT, 0);
        }
    }
}

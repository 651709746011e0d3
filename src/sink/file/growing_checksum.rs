//! The checksum of a file that grows, with the checksum of a prefix of it.
//!
//! Whoever knows the checksum of a prefix verifies the file by reading what is after it. The prefix grows with the file, by
//! whole [`STEP`]s, so what is after it is bounded, however large the file is.
//!
//! Invariant: less than twice [`STEP`] bytes are after the prefix, and at least [`STEP`], or all of a file that has fewer.

/// The prefix grows by so many bytes.
pub(super) const STEP: u64 = 8 << 20;

/// The first bytes of a file, and their checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Prefix {
    /// Number of bytes.
    pub(super) length: u64,
    /// CRC-32 of those bytes.
    pub(super) checksum: u32,
}

/// The checksum of a file so far.
#[derive(Clone, Debug, Default)]
pub(super) struct GrowingChecksum {
    hasher: crc32fast::Hasher,
    length: u64,
    /// The bytes up to the last multiple of [`STEP`] but one, and up to the last one.
    prefixes: [Prefix; 2],
}

impl GrowingChecksum {
    /// Begins behind a prefix.
    pub(super) fn after(prefix: Prefix) -> Self {
        let Prefix { length, checksum } = prefix;
        let hasher = crc32fast::Hasher::new_with_initial_len(checksum, length);
        GrowingChecksum { hasher, length, prefixes: [prefix; 2] }
    }

    /// Adds the bytes that follow.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = usize::try_from(STEP - self.length % STEP).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at(left.min(bytes.len()));
            self.hasher.update(piece);
            self.length += piece.len() as u64;
            if self.length.is_multiple_of(STEP) {
                let prefix = Prefix { length: self.length, checksum: self.checksum() };
                self.prefixes = [self.prefixes[1], prefix];
            }
            bytes = rest;
        }
    }

    /// Returns the number of bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Returns the CRC-32 of all bytes.
    pub(super) fn checksum(&self) -> u32 {
        self.hasher.clone().finalize()
    }

    /// Returns the prefix from which the bytes can be verified.
    pub(super) fn prefix(&self) -> Prefix {
        self.prefixes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_after_the_prefix_is_bounded_and_verifies_all_however_it_came() {
        let bytes: Vec<u8> = (0..STEP as usize * 5 + 77).map(|at| (at * 31 % 251) as u8).collect();
        for piece in [bytes.len(), 1 << 20, STEP as usize, 3_000_017] {
            let mut sum = GrowingChecksum::default();
            for piece in bytes.chunks(piece) {
                sum.update(piece);
                let (all, Prefix { length, checksum }) = (sum.length(), sum.prefix());
                assert!(all - length < 2 * STEP && (all - length >= STEP || length == 0), "{length} of {all}");
                assert_eq!(checksum, crc32fast::hash(&bytes[..length as usize]), "{length} of {all}");
            }
            assert_eq!((sum.length(), sum.checksum()), (bytes.len() as u64, crc32fast::hash(&bytes)));
            // Who goes on behind the prefix comes to the same, now and later.
            let mut other = GrowingChecksum::after(sum.prefix());
            other.update(&bytes[sum.prefix().length as usize..]);
            assert_eq!((other.length(), other.checksum()), (sum.length(), sum.checksum()));
            let more = vec![7; STEP as usize];
            sum.update(&more);
            other.update(&more);
            assert_eq!((other.prefix(), other.checksum()), (sum.prefix(), sum.checksum()));
        }
    }
}

//! Limits of the bytes of a file that are held in memory.

/// Default length of the longest record of a file, in bytes.
pub(crate) const MAX_RECORD: usize = 16 << 20;

/// Limits of the bytes that are held in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileLimits {
    /// Number of bytes to read at a time: small enough for a chunk and its records to stay in a core's cache, large
    /// enough for the lock and the system call to cost little.
    pub block: usize,
    /// Length in bytes of the longest record that is accepted, line end included: a record must be held in memory
    /// whole.
    pub longest: usize,
    /// Seed of random delays before summaries are processed, as if workers were slow.
    #[cfg(test)]
    pub slow: Option<u64>,
}

impl FileLimits {
    /// Sets the length of the longest record; 0 is taken as 1. A block is never longer.
    #[must_use]
    pub(crate) fn with_longest(mut self, longest: u64) -> Self {
        self.longest = usize::try_from(longest).unwrap_or(usize::MAX).max(1);
        self.block = self.block.min(self.longest);
        self
    }
}

impl Default for FileLimits {
    fn default() -> Self {
        FileLimits {
            block: 128 << 10,
            longest: MAX_RECORD,
            #[cfg(test)]
            slow: None,
        }
    }
}

/// Formats a number of bytes for people.
pub(crate) fn format_bytes(bytes: usize) -> String {
    bytesize::ByteSize::b(bytes as u64).display().iec().to_string()
}

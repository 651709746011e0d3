//! Fingerprints that are written to files.

/// Hashes a list of words: the result is written to files, so it must be equal on every machine and in every version.
///
/// Algorithm: FNV-1a with 64 bits, by Fowler, Noll and Vo; each word is closed by a byte that occurs in no UTF-8 text.
pub(crate) fn fingerprint<'a>(words: impl IntoIterator<Item = &'a str>) -> u64 {
    let bytes = words.into_iter().flat_map(|word| word.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_stay_as_they_were_when_files_were_written_with_them() {
        assert_eq!(fingerprint([]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint(["a", "bc"]), fingerprint(["a", "bc"]));
        assert_ne!(fingerprint(["a", "bc"]), fingerprint(["ab", "c"]));
    }
}

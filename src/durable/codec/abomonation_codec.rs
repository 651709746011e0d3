//! The codec of rows as they lie in memory, for the very same program.
//!
//! Invariant: its fingerprint covers the executable that wrote the rows, the machine's architecture, and the type's name,
//! size and alignment: no other program, and no other type, reads them.

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;

use super::abomonation::{BorrowedBlock, InPlace, append_in_place};
use crate::durable::codec::{AlignedBytes, BlockBuffer, BlockRows, Codec, CodecId, fingerprint};
use crate::error::{Error, Result};

/// The abomonation codec of one program: only the executable that wrote a file can read it.
#[derive(Clone, Copy, Debug)]
pub struct Abomonation {
    build: u64,
}

impl Abomonation {
    /// The codec of the running program, identified by a digest of its executable file.
    ///
    /// # Errors
    /// Fails if the executable cannot be read.
    pub fn of_this_program() -> Result<Self> {
        static BUILD: OnceLock<u64> = OnceLock::new();
        if let Some(&build) = BUILD.get() {
            return Ok(Abomonation { build });
        }
        let build = digest_of_executable().map_err(|why| {
            let failed = Error::new("cannot read the program's own file, which says what its rows look like in memory");
            failed.because(why).help("use the codec postcard")
        })?;
        Ok(Abomonation { build: *BUILD.get_or_init(|| build) })
    }
}

fn digest_of_executable() -> std::io::Result<u64> {
    // On Linux this is the running file, even if another file has taken its name since.
    let running = File::open("/proc/self/exe");
    let mut file = running.or_else(|_| std::env::current_exe().and_then(File::open))?;
    let (mut piece, mut length, mut checksum) = (vec![0; 1 << 18], 0, crc32fast::Hasher::new());
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((length << 32) ^ u64::from(checksum.finalize())),
            read => {
                checksum.update(&piece[..read]);
                length += read as u64;
            }
        }
    }
}

impl<T: InPlace + Clone + Send + 'static> Codec<T> for Abomonation {
    fn id(&self) -> CodecId {
        CodecId::ABOMONATION
    }

    fn fingerprint(&self) -> u64 {
        let endian = if cfg!(target_endian = "little") { "little" } else { "big" };
        let numbers =
            [self.build as usize, (self.build >> 32) as usize, size_of::<T>(), align_of::<T>(), size_of::<usize>()];
        let numbers = numbers.map(|number| number.to_string());
        let words = [std::any::type_name::<T>(), std::env::consts::ARCH, std::env::consts::OS, endian];
        fingerprint(words.into_iter().chain(numbers.iter().map(String::as_str)))
    }

    fn encode(&self, row: &T, draft: &mut BlockBuffer) -> std::result::Result<(), String> {
        append_in_place(row, draft)
    }

    fn open(&self, block: AlignedBytes, rows: u32) -> std::result::Result<BlockRows<T>, String> {
        Ok(BlockRows::in_place(BorrowedBlock::new(block, rows)?))
    }

    fn decode(&self, block: AlignedBytes, rows: u32, out: &mut Vec<T>) -> std::result::Result<AlignedBytes, String> {
        let block = BorrowedBlock::new(block, rows)?;
        out.extend_from_slice(block.as_slice());
        Ok(block.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::EventTime;

    type Row = ((EventTime, String), (i64, Option<String>));

    #[derive(Clone, Debug, PartialEq)]
    struct Named<A> {
        key: A,
        note: Vec<u8>,
        at: i64,
    }
    crate::in_place!(Named<A> { key, note, at });

    const CODEC: Abomonation = Abomonation { build: 1 };

    fn block<T: InPlace + Clone + Send + 'static>(rows: &[T]) -> AlignedBytes {
        let mut draft = BlockBuffer::default();
        rows.iter().for_each(|row| CODEC.encode(row, &mut draft).unwrap());
        let bytes = draft.take();
        let mut block = AlignedBytes::zeroed(bytes.len());
        block.as_mut_slice().copy_from_slice(&bytes);
        block
    }

    fn open<T: InPlace + Clone + Send + 'static>(rows: &[T]) -> BlockRows<T> {
        CODEC.open(block(rows), rows.len() as u32).unwrap()
    }

    fn rows(seed: u64) -> Vec<Row> {
        let mut random = fastrand::Rng::with_seed(seed);
        let text = |random: &mut fastrand::Rng| (0..random.usize(..12)).map(|_| random.char(..)).collect::<String>();
        let row = |random: &mut fastrand::Rng| {
            let note = random.bool().then(|| text(random));
            ((EventTime::from_millis(random.i64(..)), text(random)), (random.i64(..), note))
        };
        (0..random.usize(..20)).map(|_| row(&mut random)).collect()
    }

    #[test]
    fn rows_are_read_in_place_as_they_were_written() {
        for seed in 0..if cfg!(miri) { 5 } else { 200 } {
            let rows = rows(seed);
            let mut read: Vec<Row> = Vec::new();
            let bytes = {
                let moved = Box::new(open(&rows));
                assert_eq!(moved.as_slice(), rows, "seed {seed}");
                CODEC.decode(block(&rows), rows.len() as u32, &mut read).unwrap()
            };
            // Cloned rows do not refer to the block.
            drop(bytes);
            assert_eq!(read, rows, "seed {seed}");
        }
    }

    #[test]
    fn rows_without_padding_are_bytes_that_can_be_read() {
        let block = block(&[(1u64, "abc".to_owned(), (2i64, 3u64)), (4, String::new(), (5, 6))]);
        assert_ne!(block.as_slice().iter().fold(0, |sum, byte| sum + u32::from(*byte)), 0);
    }

    #[test]
    fn structs_are_read_in_place() {
        let named = |at: i64| Named { key: format!("key {at}"), note: vec![at as u8; at as usize], at };
        let rows: Vec<_> = (0..5).map(named).collect();
        assert_eq!(open(&rows).as_slice(), rows);
    }

    #[test]
    fn rows_with_padding_are_read_as_they_were_written() {
        type Padded = ((EventTime, u32, bool), (i64, (i128, u8)));
        let rows: Vec<Padded> = (0..9)
            .map(|n| ((EventTime::from_millis(n), n as u32, n % 2 == 0), (n, (i128::from(n) << 70, 7))))
            .collect();
        assert_eq!(open(&rows).as_slice(), rows);
    }

    #[test]
    fn blocks_of_another_length_or_place_are_refused() {
        let rows = vec![(1u64, "abc".to_owned()), (2, "defg".to_owned())];
        let open = |block, rows| Codec::<(u64, String)>::open(&CODEC, block, rows).unwrap_err();
        assert!(open(block(&rows), 3).contains("ends within what") || open(block(&rows), 3).contains("too short"));
        assert!(open(block(&rows), 1).ends_with("bytes are behind the last of the block's 1 rows"));
        assert!(open(block(&rows), u32::MAX).contains("too short"));
        let whole = block(&rows);
        let mut short = AlignedBytes::zeroed(whole.as_slice().len() - 1);
        let length = short.as_slice().len();
        short.as_mut_slice().copy_from_slice(&whole.as_slice()[..length]);
        assert!(open(short, 2).contains("ends within what row 1 of 2 owns"));
        let mut shifted = block(&rows);
        shifted.shift();
        assert!(open(shifted, 2).contains("must lie at multiples of 8 bytes"));
    }

    #[test]
    fn another_build_or_type_has_another_fingerprint() {
        let of = |build| Codec::<(u64, u32)>::fingerprint(&Abomonation { build });
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert_ne!(of(1), of(1 << 32));
        assert_ne!(of(1), Codec::<(u32, u64)>::fingerprint(&CODEC));
    }

    #[test]
    fn a_program_knows_itself() {
        if cfg!(miri) {
            return;
        }
        let (one, other) = (Abomonation::of_this_program().unwrap(), Abomonation::of_this_program().unwrap());
        assert_eq!((one.build, one.build), (other.build, digest_of_executable().unwrap()));
    }
}

//! Segments are read as they were written, or refused by an error that names them.
//!
//! The tests try every byte and every length of small files rather than some, for both codecs, because one byte outside
//! the checksums would be enough to read wrong state unnoticed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::format::{self, SegmentFooter, SegmentHeader};
use super::*;
use crate::durable::codec::{Codec, CodecId, Postcard, RowEncoding};
use crate::durable::disk::{Disk, OsDisk};
use crate::durable::test_disk::{HookedDisk, OperationKind};
use crate::error::Result;

pub(in crate::durable) type Row = ((EventTime, String), (i64, (i128, i64)));

/// All codecs of this build.
pub(in crate::durable) fn codecs() -> Vec<Arc<dyn Codec<Row>>> {
    let mut codecs: Vec<Arc<dyn Codec<Row>>> = vec![Arc::new(Postcard)];
    #[cfg(feature = "abomonation")]
    codecs.push(Arc::new(crate::durable::codec::Abomonation::of_this_program().unwrap()));
    codecs.dedup_by_key(|codec| codec.id());
    codecs
}

pub(in crate::durable) fn label(number: u64) -> SegmentLabel {
    let (from, to) = (Epoch(2 * number), Epoch(2 * number + 2));
    SegmentLabel { step: "totals".into(), incarnation: 3, worker: 1, number, from, to }
}

/// Rows in order, with keys that are mostly short and sometimes not ASCII.
pub(in crate::durable) fn random_rows(random: &mut fastrand::Rng, count: usize, windows: i64) -> Vec<Row> {
    let mut rows = std::collections::BTreeMap::new();
    for _ in 0..count {
        let key = (0..random.usize(..12)).map(|_| if random.u8(..8) == 0 { random.char(..) } else { 'k' }).collect();
        let key: String = key;
        let key = (EventTime::from_millis(1_000 * random.i64(0..windows)), key + &random.u16(..).to_string());
        rows.insert(key, (random.i64(1..9), (random.i128(..) >> 70, random.i64(..))));
    }
    rows.into_iter().collect()
}

/// Writes rows as a segment; a block has `rows_of_block` rows, or as many as fit.
pub(in crate::durable) fn write(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    label: &SegmentLabel,
    codec: &Arc<dyn Codec<Row>>,
    rows: &[Row],
    rows_of_block: usize,
) -> Result<SegmentInfo> {
    let mut writer = SegmentWriter::create(disk, directory, label, &codec.encoding())?;
    let mut builder = BlockBuilder::new(Arc::clone(codec));
    for (row, number) in rows.iter().zip(1..) {
        let mut full = builder.push(row, row.0.0)?;
        if number % rows_of_block == 0 {
            full = full.or_else(|| builder.finish());
        }
        full.iter().try_for_each(|block| writer.append(block))?;
    }
    builder.finish().iter().try_for_each(|block| writer.append(block))?;
    writer.finish()
}

pub(in crate::durable) fn read(path: &Path, codec: &dyn Codec<Row>) -> Result<Vec<Row>> {
    let mut reader = SegmentReader::open(&OsDisk, path)?;
    let mut rows = Vec::new();
    for block in 0..reader.blocks().len() {
        reader.read_block(block, codec, &mut rows)?;
    }
    Ok(rows)
}

struct SegmentDir {
    directory: tempfile::TempDir,
    disk: Arc<dyn Disk>,
}

impl SegmentDir {
    fn new() -> Self {
        SegmentDir { directory: tempfile::tempdir().unwrap(), disk: OsDisk::shared() }
    }

    fn path(&self, label: &SegmentLabel) -> PathBuf {
        self.directory.path().join(label.file_name())
    }

    fn write(
        &self,
        label: &SegmentLabel,
        codec: &Arc<dyn Codec<Row>>,
        rows: &[Row],
        rows_of_block: usize,
    ) -> SegmentInfo {
        write(&self.disk, self.directory.path(), label, codec, rows, rows_of_block).unwrap()
    }
}

/// A small segment of three blocks, and its bytes.
fn small(place: &SegmentDir, codec: &Arc<dyn Codec<Row>>) -> (PathBuf, Vec<u8>, Vec<Row>) {
    let rows = random_rows(&mut fastrand::Rng::with_seed(7), 8, 3);
    place.write(&label(1), codec, &rows, 3);
    let path = place.path(&label(1));
    let bytes = fs::read(&path).unwrap();
    assert_eq!((read(&path, &**codec).unwrap(), bytes.len() < 2_000), (rows.clone(), true));
    (path, bytes, rows)
}

/// Checks that reading and verifying the file fail with errors that name it; returns the error of reading.
fn refused(path: &Path, codec: &dyn Codec<Row>, what: &dyn std::fmt::Display) -> String {
    let said = read(path, codec).map(|rows| rows.len()).expect_err(&format!("{what}: it was read")).to_string();
    let verified = verify(&OsDisk, path).expect_err(&format!("{what}: it was verified")).to_string();
    for said in [&said, &verified] {
        assert!(said.contains(path.to_str().unwrap()), "{what}: {said} does not name the file");
        assert!(said.contains("; "), "{what}: {said} does not say what to do");
    }
    said
}

#[test]
fn rows_are_read_as_they_were_written() {
    for codec in codecs() {
        for (seed, count) in (0..).zip([0, 1, 2, 50, 3_000, 20_000]) {
            let place = SegmentDir::new();
            let mut random = fastrand::Rng::with_seed(seed);
            let rows = random_rows(&mut random, count, 5);
            let info = place.write(&label(seed), &codec, &rows, usize::MAX);
            let path = place.path(&label(seed));
            assert_eq!(read(&path, &*codec).unwrap(), rows, "seed {seed}");

            let mut reader = SegmentReader::open_named(&OsDisk, place.directory.path(), &info).unwrap();
            let mut scanned = Vec::new();
            for block in 0..reader.blocks().len() {
                scanned.extend_from_slice(reader.open_block(block, &*codec).unwrap().as_slice());
            }
            assert_eq!(scanned, rows, "seed {seed}");
            assert_eq!((reader.label(), reader.blocks().len() > 5), (&label(seed), count == 20_000));

            let windows = || rows.iter().map(|row| row.0.0);
            let least = windows().min().unwrap_or(EventTime::MAX);
            assert_eq!((info.least, info.greatest), (least, windows().max().unwrap_or(EventTime::MIN)));
            assert_eq!((info.rows, info.bytes), (rows.len() as u64, fs::metadata(&path).unwrap().len()));
            assert_eq!((info.from, info.to, info.step.as_str()), (label(seed).from, label(seed).to, "totals"));
            assert_eq!(verify(&OsDisk, &path).unwrap(), info);
        }
    }
}

#[test]
fn rows_that_do_not_compress_or_are_large_are_read_as_they_were_written() {
    for codec in codecs() {
        let (place, mut random) = (SegmentDir::new(), fastrand::Rng::with_seed(3));
        let mut large = |length: usize| (0..length).map(|_| random.char(..)).collect::<String>();
        let row = |n, key| ((EventTime::from_millis(n), key), (1, (2, 3)));
        let rows = [row(0, large(10)), row(1, large(300_000)), row(2, large(0)), row(3, "z".repeat(2_000_000))];
        place.write(&label(0), &codec, &rows, usize::MAX);
        assert_eq!(read(&place.path(&label(0)), &*codec).unwrap(), rows);
        assert!(fs::metadata(place.path(&label(0))).unwrap().len() < 1_400_000, "what compresses is compressed");
    }
}

#[test]
fn a_file_with_any_byte_changed_is_refused() {
    for codec in codecs() {
        let place = SegmentDir::new();
        let (path, bytes, _) = small(&place, &codec);
        for at in 0..bytes.len() {
            for flipped in [1 << (at % 8), 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flipped;
                fs::write(&path, &damaged).unwrap();
                refused(&path, &*codec, &format!("{flipped:#x} of byte {at}"));
            }
        }
    }
}

#[test]
fn a_file_that_is_cut_or_longer_is_refused() {
    for codec in codecs() {
        let place = SegmentDir::new();
        let (path, bytes, _) = small(&place, &codec);
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            refused(&path, &*codec, &format!("{length} bytes"));
        }
        for more in [&[0][..], &bytes[bytes.len() - 24..], &bytes] {
            fs::write(&path, [&bytes, more].concat()).unwrap();
            refused(&path, &*codec, &"longer");
        }
    }
}

#[test]
fn a_file_with_blocks_of_bytes_lost_moved_or_written_over_is_refused() {
    for codec in codecs() {
        let place = SegmentDir::new();
        let (path, bytes, _) = small(&place, &codec);
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut damaged = bytes.clone();
            let (from, length) = (random.usize(..bytes.len()), random.usize(1..64));
            let hit = from..(from + length).min(bytes.len());
            match random.u8(..3) {
                0 => damaged[hit].fill_with(|| random.u8(..)),
                1 => drop(damaged.drain(hit)),
                _ => {
                    let to = random.usize(..bytes.len() - hit.len());
                    damaged.copy_within(hit, to);
                }
            }
            if damaged != bytes {
                fs::write(&path, &damaged).unwrap();
                refused(&path, &*codec, &format!("seed {seed}"));
            }
        }
    }
}

#[test]
fn a_file_of_another_version_is_refused_with_that_version() {
    let (place, codec) = (SegmentDir::new(), &codecs()[0]);
    let (path, mut bytes, _) = small(&place, codec);
    bytes[8] = 7;
    fs::write(&path, &bytes).unwrap();
    let said = refused(&path, &**codec, &"version 7");
    assert!(
        said.contains("written in version 7 of the format, and this program reads 1 to 2; run the version"),
        "{said}"
    );
    fs::write(&path, "name,count\n").unwrap();
    assert!(refused(&path, &**codec, &"csv").contains("does not begin as a segment does"));
    fs::remove_file(&path).unwrap();
    assert!(refused(&path, &**codec, &"missing").starts_with("cannot read a segment"));
}

/// A segment in version 1 of the format: two blocks, of which the first is compressed.
const VERSION_1: &str = "\
    544944452d53454701660000003940dbfa01c3fddda7848286c1c00148282874696465676174653a3a74696d653a3a45 \
    76656e7454696d652c20616c6c6f633a3a737472696e673a3a537472696e67292c20286936342c2028693132382c2069 \
    363429292906746f74616c73030104080a05302e312e3048207312100001004fd00f286b01001425028001005f0201a0 \
    1f503700140f02001612045f00608080808004034ff02e786b010064d00680808080808080808080060502299d0103ae \
    dcd5c90300a01f16880101e08ef0f604f02ef02e0400f02e1e00000000000000b2baeb7873d61a025345472d45444954";

#[test]
fn a_file_that_was_written_in_the_past_is_read() {
    let place = SegmentDir::new();
    let path = place.directory.path().join("totals.segment");
    let digits: Vec<char> = VERSION_1.chars().filter(char::is_ascii_hexdigit).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).unwrap();
    fs::write(&path, digits.chunks(2).map(byte).collect::<Vec<_>>()).unwrap();
    let row = |n: i64| {
        let key = "k".repeat(40 * n as usize);
        ((EventTime::from_millis(1_000 * n), key), (n, (i128::from(n) << 70, -n)))
    };
    assert_eq!(read(&path, &Postcard).unwrap(), (0..4).map(row).collect::<Vec<_>>());
    let reader = SegmentReader::open(&OsDisk, &path).unwrap();
    let label =
        SegmentLabel { step: "totals".into(), incarnation: 3, worker: 1, number: 4, from: Epoch(8), to: Epoch(10) };
    assert_eq!((reader.label(), reader.blocks().len(), reader.info().checksum), (&label, 2, 2_028_714_674));
}

#[test]
fn rows_of_another_type_or_codec_are_refused() {
    let place = SegmentDir::new();
    let codec: Arc<dyn Codec<Row>> = Arc::new(Postcard);
    let (path, _, _) = small(&place, &codec);
    let mut reader = SegmentReader::open(&OsDisk, &path).unwrap();
    let said = reader.read_block::<(u32, u8)>(0, &Postcard, &mut Vec::new()).unwrap_err().to_string();
    assert!(
        said.contains("String)") && said.contains("`(u32, u8)`") && said.contains(path.to_str().unwrap()),
        "{said}"
    );
    for (codec, fingerprint, expected) in
        [(codec.id(), 1, "another shape"), (CodecId::ABOMONATION, codec.fingerprint(), "written by abomonation")]
    {
        let encoding = RowEncoding { codec, fingerprint, ..Codec::<Row>::encoding(&Postcard) };
        let label = label(u64::from(codec.0) + 10);
        SegmentWriter::create(&place.disk, place.directory.path(), &label, &encoding).unwrap().finish().unwrap();
        let reader = SegmentReader::open(&OsDisk, &place.path(&label)).unwrap();
        let said = reader.check_codec::<Row>(&Postcard).unwrap_err().to_string();
        assert!(said.contains(expected) && said.contains(place.path(&label).to_str().unwrap()), "{said}");
    }
}

#[test]
fn rows_that_could_not_be_read_back_are_not_written() {
    /// Serialises two numbers, or one if the second is 0, and deserialises two.
    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    struct Pair(u8, #[serde(skip_serializing_if = "is_zero")] u8);
    fn is_zero(number: &u8) -> bool {
        *number == 0
    }
    let mut builder = BlockBuilder::new(Arc::new(Postcard));
    let said = builder.push(&Pair(1, 0), EventTime::MAX).unwrap_err().to_string();
    assert!(said.starts_with("cannot write a row of the state: it could not be read back"), "{said}");
    assert_eq!((builder.push(&Pair(1, 2), EventTime::MAX), builder.finish().unwrap().rows), (Ok(None), 1));

    let mut builder = BlockBuilder::new(Arc::new(Postcard));
    let said = builder.push(&(1, rust_decimal::Decimal::ONE), EventTime::MAX).unwrap_err().to_string();
    assert!(said.contains("asks what comes next"), "{said}");
    assert_eq!(builder.finish(), None);
}

#[test]
fn only_the_very_file_that_was_named_is_read() {
    let (place, codec) = (SegmentDir::new(), &codecs()[0]);
    let rows = random_rows(&mut fastrand::Rng::with_seed(1), 20, 3);
    let named = place.write(&label(1), codec, &rows, 7);
    let path = place.path(&label(1));
    let taken = write(&place.disk, place.directory.path(), &label(1), codec, &rows, 7).unwrap_err().to_string();
    assert!(taken.contains("never written over") && taken.contains(path.to_str().unwrap()), "{taken}");

    // A valid file of equal length and totals, under the same name.
    let mut others = rows.clone();
    others[4].1.0 ^= 1;
    fs::remove_file(&path).unwrap();
    place.write(&label(1), codec, &others, 7);
    assert_eq!(verify(&OsDisk, &path).unwrap().bytes, named.bytes);
    let said = SegmentReader::open_named(&OsDisk, place.directory.path(), &named).unwrap_err().to_string();
    assert!(said.contains("not the one that was written under this name"), "{said}");
}

#[test]
fn a_footer_that_cannot_be_is_refused_before_memory_is_asked_for() {
    let block = BlockInfo {
        stored_length: 10,
        raw_length: 20,
        rows: 2,
        checksum: 0,
        least: EventTime::from_millis(1),
        greatest: EventTime::from_millis(2),
    };
    let check = |block: BlockInfo, between| SegmentFooter::new(vec![block; 2]).check(between);
    assert_eq!(check(block, 20), Ok(()));
    assert!(check(block, 21).unwrap_err().contains("its blocks have 20 bytes, but 21 are there"));
    for wrong in [
        BlockInfo { raw_length: u32::MAX, ..block },
        BlockInfo { raw_length: 10_000, ..block },
        BlockInfo { raw_length: 9, ..block },
        BlockInfo { rows: 0, ..block },
        BlockInfo { least: EventTime::MAX, ..block },
    ] {
        assert!(check(wrong, 20).unwrap_err().contains("block 0 cannot be"), "{wrong:?}");
    }
    // Totals that are not the sum, with a valid checksum.
    let (bytes, checksum) = format::encode_footer(&SegmentFooter::new(vec![block])).unwrap();
    let mut bytes = bytes[..bytes.len() - format::END].to_vec();
    let rows = bytes.len() - 3;
    assert_eq!(format::decode_footer(&bytes, checksum, Path::new("f")).unwrap().check(10), Ok(()));
    bytes[rows] += 1;
    let footer = format::decode_footer(&bytes, crc32fast::hash(&bytes), Path::new("f")).unwrap();
    assert!(footer.check(10).unwrap_err().contains("totals"));
}

#[test]
fn a_header_says_what_it_was_given() {
    let encoding = Codec::<Row>::encoding(&Postcard);
    let bytes = format::encode_header(&SegmentHeader::new(label(4), &encoding)).unwrap();
    let (version, length) = format::decode_start(&bytes[..format::START], Path::new("f")).unwrap();
    assert_eq!(bytes.len(), format::START + length as usize + format::CHECKSUM);
    let header = format::decode_header(version, &bytes[format::START..], Path::new("f")).unwrap();
    assert_eq!((header.encoding(), header.into_label()), (encoding, label(4)));
}

#[test]
fn names_are_safe_and_each_files_own() {
    let name = |step: &str| SegmentLabel { step: step.into(), ..label(5) }.file_name();
    let steps =
        ["totals", "Totals", "../../etc/passwd", "a/b", "a_b", "", "größe 10s", &"long ".repeat(90), "a\0b", "."];
    let mut names: Vec<_> = steps.iter().map(|step| name(step)).collect();
    for name in &names {
        let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        assert!(name.chars().all(safe) && name.len() < 200 && name.ends_with(EXTENSION), "{name}");
        assert!(!name.starts_with(['.', '-']), "{name}");
    }
    names.extend([label(6).file_name(), SegmentLabel { worker: 2, ..label(5) }.file_name()]);
    names.push(SegmentLabel { incarnation: 4, ..label(5) }.file_name());
    names.sort();
    names.dedup();
    assert_eq!(names.len(), steps.len() + 3);
}

#[test]
fn a_segment_is_spoken_of_only_when_file_and_name_are_on_disk() {
    let codec = &codecs()[0];
    let rows = random_rows(&mut fastrand::Rng::with_seed(1), 20, 3);
    let directory = tempfile::tempdir().unwrap();
    let (disk, asked) = failing_disk(usize::MAX);
    write(&disk, directory.path(), &label(0), codec, &rows, 7).unwrap();
    let asked = asked.lock().unwrap().clone();
    let [OperationKind::Create, appends @ .., OperationKind::Sync, OperationKind::SyncDirectory] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert!(appends.len() == 5 && appends.iter().all(|kind| matches!(kind, OperationKind::Append(_))), "{asked:?}");
    for fail_at in 0..asked.len() {
        let (disk, _) = failing_disk(fail_at);
        let number = 1 + fail_at as u64;
        let said = write(&disk, directory.path(), &label(number), codec, &rows, 7).unwrap_err().to_string();
        assert!(said.contains(&label(number).file_name()) && said.contains("it broke"), "{said}");
    }
}

/// Operations that a disk has been asked for.
pub(in crate::durable) type AskedOperations = Arc<Mutex<Vec<OperationKind>>>;

/// Returns the operating system's disk; its writing operations are recorded, and fail from the `fail_at`-th on.
pub(in crate::durable) fn failing_disk(fail_at: usize) -> (Arc<dyn Disk>, AskedOperations) {
    use OperationKind::{CreateDirectory, List, Lock, Open, Remove, Sign};
    let asked = AskedOperations::default();
    let told = Arc::clone(&asked);
    let disk = HookedDisk::new(OsDisk::shared(), move |operation, act| {
        if matches!(operation.kind, List | Open | CreateDirectory | Remove | Lock | Sign) {
            return act();
        }
        let mut asked = told.lock().unwrap();
        asked.push(operation.kind.clone());
        if asked.len() > fail_at { Err(io::Error::other("it broke")) } else { act() }
    });
    (disk.shared(), asked)
}

//! Compaction changes no result, whatever is merged and when; segments stay few.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::plan::{CompactionPlan, MAX_MERGE};
use super::*;
use crate::durable::codec::Codec;
use crate::durable::disk::OsDisk;
use crate::durable::segment::tests::{Row, codecs, failing_disk, label, random_rows, read, write};
use crate::durable::segment::{BlockBuilder, SegmentInfo, SegmentLabel, SegmentWriter, level_of, verify};
use crate::time::{Epoch, EventTime};

static NEVER: AtomicBool = AtomicBool::new(false);

/// The rows' sums by key, without expired rows and sums of 0.
fn sums(rows: impl IntoIterator<Item = Row>, dead: EventTime) -> Vec<Row> {
    let mut sums = BTreeMap::new();
    for (key, value) in rows {
        sums.entry(key).and_modify(|sum| add_value(sum, &value)).or_insert(value);
    }
    sums.into_iter().filter(|(key, value)| key.0 > dead && *value != (0, (0, 0))).collect()
}

fn add_value(sum: &mut (i64, (i128, i64)), other: &(i64, (i128, i64))) {
    sum.0 += other.0;
    sum.1.0 += other.1.0;
    sum.1.1 = sum.1.1.wrapping_add(other.1.1);
}

fn merging(codec: &Arc<dyn Codec<Row>>, expired_through: EventTime) -> MergeOptions<'static, Row> {
    MergeOptions {
        codec: Arc::clone(codec),
        order: |a, b| a.0.cmp(&b.0),
        add: |sum, other| add_value(&mut sum.1, &other.1),
        window: |row| row.0.0,
        keep: &|row| row.1 != (0, (0, 0)),
        expired_through,
        cancelled: &NEVER,
    }
}

#[test]
fn a_merge_is_the_sum_of_any_segments_in_any_order() {
    for (codec, seed) in codecs().iter().flat_map(|codec| (0..40).map(move |seed| (codec, seed))) {
        let (directory, disk) = (tempfile::tempdir().unwrap(), OsDisk::shared());
        let mut random = fastrand::Rng::with_seed(seed);
        let mut segments = Vec::new();
        for number in 0..random.u64(1..8) {
            let count = random.usize(..if seed % 10 == 0 { 2_000 } else { 30 });
            let mut rows = random_rows(&mut random, count, 4);
            // Some rows retract, or add to, rows of other segments.
            let others = segments.iter().flat_map(|(_, rows): &(SegmentInfo, Vec<Row>)| rows);
            for row in others {
                match random.u8(..6) {
                    0 => rows.push((row.0.clone(), (-row.1.0, (-row.1.1.0, row.1.1.1.wrapping_neg())))),
                    1 => rows.push((row.0.clone(), (1, row.1.1))),
                    _ => {}
                }
            }
            rows.sort();
            rows.dedup_by(|a, b| a.0 == b.0);
            let of_block = random.usize(1..40);
            let info = write(&disk, directory.path(), &label(number), codec, &rows, of_block).unwrap();
            segments.push((info, rows));
        }
        random.shuffle(&mut segments);
        let (merged, alone) = segments.split_at(random.usize(1..=segments.len()));
        let dead = EventTime::from_millis(random.i64(-1..5) * 1_000);
        let inputs: Vec<_> = merged.iter().map(|(info, _)| info.clone()).collect();
        let sum_label = SegmentLabel::of_merge(&inputs, 4, 0, 0);
        let output = merge(&disk, directory.path(), &inputs, &sum_label, &merging(codec, dead)).unwrap().segment();
        let expected = sums(merged.iter().flat_map(|(_, rows)| rows.clone()), dead);
        let path = directory.path().join(sum_label.file_name());
        assert_eq!((output.is_some(), path.exists()), (!expected.is_empty(), !expected.is_empty()), "seed {seed}");
        let found = output.map_or(Vec::new(), |_| read(&path, &**codec).unwrap());
        assert_eq!(found, expected, "seed {seed}");
        // The step's state is the same as before the merge.
        let rest = || alone.iter().flat_map(|(_, rows)| rows.clone());
        let all = segments.iter().flat_map(|(_, rows)| rows.clone());
        assert_eq!(sums(found.into_iter().chain(rest()), dead), sums(all, dead), "seed {seed}");
    }
}

#[test]
fn inputs_that_are_not_as_they_should_be_are_refused() {
    for codec in codecs() {
        let (directory, disk) = (tempfile::tempdir().unwrap(), OsDisk::shared());
        let rows = random_rows(&mut fastrand::Rng::with_seed(1), 30, 4);
        let sound = write(&disk, directory.path(), &label(0), &codec, &rows, 7).unwrap();
        let refused = |number, inputs: &[SegmentInfo], expected: &str| {
            let sum = SegmentLabel::of_merge(inputs, 4, 0, number);
            let merging = merging(&codec, EventTime::MIN);
            let said = merge(&disk, directory.path(), inputs, &sum, &merging).unwrap_err().to_string();
            assert!(said.contains(expected) && said.contains(&inputs[1].file), "{said}");
            assert!(!directory.path().join(sum.file_name()).exists());
        };
        // Out of order within a block, across blocks, and with a key that occurs twice.
        for (number, (from, to)) in (1..).zip([(8, 9), (6, 7), (20, 12)]) {
            let mut rows = rows.clone();
            rows.swap(from, to);
            let info = write(&disk, directory.path(), &label(number), &codec, &rows, 7).unwrap();
            refused(number, &[sound.clone(), info], "its rows are not in order");
        }
        let twice = [rows[0].clone(), rows[0].clone()];
        let info = write(&disk, directory.path(), &label(5), &codec, &twice, 7).unwrap();
        refused(5, &[sound.clone(), info], "its rows are not in order");
        // A row whose window is outside the range that its block declares.
        let (mut builder, label) = (BlockBuilder::new(Arc::clone(&codec)), label(6));
        assert_eq!(builder.push(&rows[0], EventTime::from_millis(77)).unwrap(), None);
        let mut writer = SegmentWriter::create(&disk, directory.path(), &label, &codec.encoding()).unwrap();
        writer.append(&builder.finish().unwrap()).unwrap();
        refused(6, &[sound.clone(), writer.finish().unwrap()], "of a window that it should not have");
        // A file other than the one that the manifest names.
        refused(7, &[sound.clone(), SegmentInfo { checksum: 1, ..sound.clone() }], "not the one");
    }
}

#[test]
fn blocks_of_dead_rows_alone_go_unread() {
    for codec in codecs() {
        let (directory, disk) = (tempfile::tempdir().unwrap(), OsDisk::shared());
        let rows = random_rows(&mut fastrand::Rng::with_seed(1), 40, 4);
        let info = write(&disk, directory.path(), &label(0), &codec, &rows, 2).unwrap();
        let path = directory.path().join(&info.file);
        let mut bytes = fs::read(&path).unwrap();
        let dead = EventTime::from_millis(1_000);
        // The first block is damaged: only a reader of that block notices.
        let header = u32::from_le_bytes(bytes[9..13].try_into().unwrap()) as usize;
        bytes[17 + header + 4] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let run = |number, dead| {
            let sum = SegmentLabel::of_merge(std::slice::from_ref(&info), 4, 0, number);
            merge(&disk, directory.path(), std::slice::from_ref(&info), &sum, &merging(&codec, dead))
        };
        assert!(run(1, EventTime::MIN).unwrap_err().to_string().contains("block 0"));
        let merged = run(2, dead).unwrap().segment().unwrap();
        assert_eq!(read(&directory.path().join(&merged.file), &*codec).unwrap(), sums(rows, dead));
    }
}

#[test]
fn a_merge_that_is_given_up_ends_at_the_next_block_and_leaves_no_file() {
    let codec = &codecs()[0];
    let (directory, disk) = (tempfile::tempdir().unwrap(), OsDisk::shared());
    let rows = random_rows(&mut fastrand::Rng::with_seed(5), 3_000, 4);
    let inputs = [write(&disk, directory.path(), &label(0), codec, &rows, 10).unwrap()];
    let sum = SegmentLabel::of_merge(&inputs, 4, 0, 1);
    let (give_up, kept) = (AtomicBool::new(false), std::cell::Cell::new(0));
    let keep = |_: &Row| {
        kept.set(kept.get() + 1);
        give_up.store(kept.get() >= 25, std::sync::atomic::Ordering::Release);
        true
    };
    let merging = MergeOptions { keep: &keep, cancelled: &give_up, ..merging(codec, EventTime::MIN) };
    assert_eq!(merge(&disk, directory.path(), &inputs, &sum, &merging).unwrap(), MergeOutcome::Cancelled);
    assert!((25..60).contains(&kept.get()), "{} rows", kept.get());
    assert!(!directory.path().join(sum.file_name()).exists());
    // Told to stop at the very end, it leaves no file either; if it is not told, it writes all rows.
    let at_end = |told| {
        let (give_up, kept) = (AtomicBool::new(false), std::cell::Cell::new(0));
        let keep = |_: &Row| {
            kept.set(kept.get() + 1);
            give_up.store(told && kept.get() == rows.len(), std::sync::atomic::Ordering::Release);
            true
        };
        let merging = MergeOptions { keep: &keep, cancelled: &give_up, ..self::merging(codec, EventTime::MIN) };
        merge(&disk, directory.path(), &inputs, &sum, &merging).unwrap()
    };
    assert_eq!(at_end(true), MergeOutcome::Cancelled);
    assert_eq!(at_end(false).segment().unwrap().rows, rows.len() as u64);
}

#[test]
fn a_merge_that_fails_leaves_its_inputs_and_can_be_done_again() {
    let codec = &codecs()[0];
    let (directory, disk) = (tempfile::tempdir().unwrap(), OsDisk::shared());
    let mut random = fastrand::Rng::with_seed(5);
    let all: Vec<_> = (0..3).map(|_| random_rows(&mut random, 3_000, 4)).collect();
    let write = |(number, rows): (u64, &Vec<Row>)| {
        write(&disk, directory.path(), &label(number), codec, rows, usize::MAX).unwrap()
    };
    let inputs: Vec<_> = (0..).zip(&all).map(write).collect();
    let sum = SegmentLabel::of_merge(&inputs, 4, 0, 9);
    let acts = {
        let (disk, asked) = failing_disk(usize::MAX);
        let elsewhere = SegmentLabel { number: 10, ..sum.clone() };
        merge(&disk, directory.path(), &inputs, &elsewhere, &merging(codec, EventTime::MIN)).unwrap();
        asked.lock().unwrap().len()
    };
    assert!(acts > 8, "{acts} acts are too few for this test");
    for fail_at in 0..acts {
        let (disk, _) = failing_disk(fail_at);
        let said = merge(&disk, directory.path(), &inputs, &sum, &merging(codec, EventTime::MIN)).unwrap_err();
        assert!(said.to_string().contains("it broke"), "{said}");
    }
    let merged = merge(&disk, directory.path(), &inputs, &sum, &merging(codec, EventTime::MIN)).unwrap();
    let merged = merged.segment().unwrap();
    let found = read(&directory.path().join(&merged.file), &**codec).unwrap();
    assert_eq!(found, sums(all.concat(), EventTime::MIN));
    assert!(inputs.iter().all(|info| verify(&OsDisk, &directory.path().join(&info.file)).as_ref() == Ok(info)));
}

/// The description of a segment for which there is no file.
fn fake_segment(step: &str, number: u64, bytes: u64, windows: (i64, i64)) -> SegmentInfo {
    SegmentInfo {
        file: format!("{step}-{number}"),
        step: step.to_owned(),
        from: Epoch(2 * number),
        to: Epoch(2 * number + 2),
        rows: bytes / 20,
        bytes,
        least: EventTime::from_millis(windows.0),
        greatest: EventTime::from_millis(windows.1),
        level: level_of(bytes),
        checksum: 0,
    }
}

/// The segment that a merge yields if `share` of the bytes is left.
fn merged(group: &[SegmentInfo], number: u64, share: f64, dead: EventTime) -> SegmentInfo {
    let bytes = (group.iter().map(|segment| segment.bytes).sum::<u64>() as f64 * share) as u64 + 100;
    let SegmentLabel { step, from, to, .. } = SegmentLabel::of_merge(group, 1, 0, number);
    let greatest = group.iter().map(|segment| segment.greatest).max().unwrap();
    let least = group.iter().map(|segment| segment.least).min().unwrap().max(dead);
    SegmentInfo { from, to, ..fake_segment(&step, number, bytes, (least.millis(), greatest.millis())) }
}

#[test]
fn what_is_dead_is_dropped_and_the_rest_is_merged_level_by_level() {
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut segments: Vec<_> = (0..random.u64(..120))
            .map(|number| {
                let (step, from) = (if random.bool() { "a" } else { "b" }, random.i64(0..100));
                fake_segment(step, number, 1 + (random.u64(..) >> random.u32(24..56)), (from, from + random.i64(0..9)))
            })
            .collect();
        let dead = EventTime::from_millis(random.i64(0..60));
        let (mut number, mut turns) = (1_000, 0);
        loop {
            let plan = plan_compaction(&segments, dead);
            for segment in &segments {
                let in_dead = plan.expired.contains(segment);
                let groups = plan.merges.iter().filter(|group| group.inputs.contains(segment)).count();
                assert_eq!(in_dead, segment.greatest <= dead, "seed {seed}");
                assert!(groups <= usize::from(!in_dead), "seed {seed}");
            }
            for MergeGroup { inputs: group, .. } in &plan.merges {
                let alike = |other: &SegmentInfo| (&other.step, other.level) == (&group[0].step, group[0].level);
                assert!(group.iter().all(alike) && (MIN_MERGE..=MAX_MERGE).contains(&group.len()), "seed {seed}");
            }
            if plan == CompactionPlan::default() {
                break;
            }
            segments.retain(|segment| !plan.expired.contains(segment));
            segments.retain(|segment| !plan.merges.iter().any(|group| group.inputs.contains(segment)));
            for MergeGroup { inputs: group, .. } in &plan.merges {
                number += 1;
                segments.push(merged(group, number, random.f64(), dead));
            }
            turns += 1;
            assert!(turns < 40, "seed {seed}: it does not end");
        }
        let mut left = BTreeMap::<(&str, u8), usize>::new();
        segments.iter().for_each(|segment| *left.entry((&segment.step, segment.level)).or_default() += 1);
        assert!(left.values().all(|count| *count < MIN_MERGE), "seed {seed}");
    }
}

/// By key: the epoch of the latest row, and `true` if the key exists.
type Versions = BTreeMap<u64, (u64, bool)>;

/// Merges the segments of two workers as they come; the latest row of a key counts, and some rows are tombstones.
#[test]
fn rows_that_are_over_go_when_nothing_older_is_left() {
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut segments: Vec<(SegmentInfo, Versions)> = Vec::new();
        let (mut now, mut number, mut dropped) = (BTreeMap::<u64, u64>::new(), 0, 0);
        for epoch in (2..400).step_by(2) {
            for worker in 0..2 {
                let mut rows = BTreeMap::new();
                for _ in 0..random.u64(..20) {
                    // Keys belong to one worker, are updated for a while, and do not occur again.
                    let key = (epoch + random.u64(..40)) * 2 + worker;
                    let is_there = random.u8(..3) > 0;
                    let was = if is_there { now.insert(key, epoch) } else { now.remove(&key) };
                    if is_there || was.is_some() || random.bool() {
                        rows.insert(key, (epoch, is_there));
                    }
                }
                number += 1;
                let info = fake_segment("step", number, 100 + 20 * rows.len() as u64, (0, i64::MAX));
                segments.push((SegmentInfo { from: Epoch(epoch - 2), to: Epoch(epoch), ..info }, rows));
            }
            let infos: Vec<_> = segments.iter().map(|(info, _)| info.clone()).collect();
            for MergeGroup { inputs, oldest } in plan_compaction(&infos, EventTime::MIN).merges {
                let (going, staying): (Vec<_>, _) = segments.into_iter().partition(|(info, _)| inputs.contains(info));
                segments = staying;
                let mut rows = Versions::new();
                for (key, row) in going.into_iter().flat_map(|(_, rows)| rows) {
                    rows.entry(key).and_modify(|known| *known = row.max(*known)).or_insert(row);
                }
                let all = rows.len();
                rows.retain(|_, (_, is_there)| *is_there || !oldest);
                dropped += all - rows.len();
                number += 1;
                let SegmentLabel { from, to, .. } = SegmentLabel::of_merge(&inputs, 1, 0, number);
                let info = fake_segment("step", number, 100 + 20 * rows.len() as u64, (0, i64::MAX));
                segments.push((SegmentInfo { from, to, ..info }, rows));
            }
            let mut latest = BTreeMap::new();
            for (key, row) in segments.iter().flat_map(|(_, rows)| rows) {
                latest.entry(*key).and_modify(|known| *known = (*row).max(*known)).or_insert(*row);
            }
            let there = latest.into_iter().filter(|(_, (_, is_there))| *is_there);
            assert!(there.map(|(key, (epoch, _))| (key, epoch)).eq(now.clone()), "seed {seed}, epoch {epoch}");
        }
        assert!(dropped > 50, "seed {seed}: only {dropped} are dropped");
    }
}

/// Takes many snapshots; returns the write amplification (bytes written by merges for each byte of a snapshot), and
/// the greatest number of segments.
fn run(seed: u64, lifetime: Option<i64>) -> (f64, usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut segments, mut most) = (Vec::new(), 0);
    let (mut taken, mut written, mut number) = (0, 0, 0);
    for snapshot in 0..1_000 {
        let bytes = random.u64(50_000..200_000);
        taken += bytes;
        number += 1;
        segments.push(fake_segment("a", number, bytes, (snapshot, lifetime.map_or(i64::MAX, |life| snapshot + life))));
        let dead = EventTime::from_millis(snapshot);
        loop {
            let plan = plan_compaction(&segments, dead);
            if plan == CompactionPlan::default() {
                break;
            }
            segments.retain(|segment| !plan.expired.contains(segment));
            for MergeGroup { inputs: group, .. } in &plan.merges {
                number += 1;
                segments.retain(|segment| !group.contains(segment));
                let sum = merged(group, number, 1.0, dead);
                written += sum.bytes;
                segments.push(sum);
            }
        }
        most = most.max(segments.len());
    }
    (written as f64 / taken as f64, most)
}

#[test]
fn a_row_is_rewritten_about_once_a_level_and_segments_stay_few() {
    for seed in 0..5 {
        // 100 MB in snapshots of 125 kB: five levels above theirs.
        let (amplification, most) = run(seed, None);
        assert!((2.0..5.5).contains(&amplification) && most < 20, "seed {seed}: {amplification}, {most}");
        // Rows that expire after ten snapshots.
        let (amplification, most) = run(seed, Some(10));
        assert!(amplification < 3.5 && most < 16, "seed {seed}: {amplification}, {most}");
    }
}

//! Tests of the driver of merges: with many workers and steps the segments of a manifest stay few, rows are written
//! about once a level, and no file is left that nothing names.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::durable::codec::{Codec, Postcard};
use crate::durable::compaction::{MIN_MERGE, MergeOptions, merge};
use crate::durable::declared_changes::DeclaredChanges;
use crate::durable::journal::MemoryJournal;
use crate::durable::recovery::{RecoveryInput, decide};
use crate::durable::segment::{BlockBuilder, FACTOR, SegmentWriter};
use crate::durable::test_disk::CrashingDisk;

/// Time limit of each operation here.
const LIMIT: Duration = Duration::from_secs(60);

/// A row: its window's end and key, and a count.
type Row = ((i64, u32), i64);

/// An incarnation whose snapshots are taken by hand.
struct Driven {
    disk: CrashingDisk,
    dir: Arc<StateDir>,
    snapshots: Arc<Snapshots>,
    failure: Arc<JobFailure>,
    metrics: Arc<Metrics>,
    merges: Arc<MergeRegistry>,
}

impl Driven {
    fn start() -> Driven {
        let disk = CrashingDisk::new();
        let dir = Arc::new(StateDir::open(disk.shared(), "state", false).unwrap());
        let query = QueryFingerprint { build: "b".into(), flags: Vec::new(), steps: Vec::new() };
        let (incarnation, scan) = (dir.begin_incarnation().unwrap(), dir.scan_and_sync().unwrap());
        let found = RecoveryInput {
            incarnation,
            survey: &scan,
            sinks: &[],
            query: &query,
            changes: &DeclaredChanges::default(),
            accept_changed_query: false,
            accept_changed_sources: false,
        };
        let claim = dir.claim(&decide(&found).unwrap(), &query).unwrap().unwrap();
        let (failure, metrics, merges) =
            (Arc::<JobFailure>::default(), Arc::<Metrics>::default(), Arc::<MergeRegistry>::default());
        let terms = SnapshotContext { job: "job".into(), query, claim, keep: 3, metrics: Arc::clone(&metrics) };
        let journal = Arc::new(MemoryJournal::default());
        let snapshots =
            Snapshots::start(terms, Arc::clone(&dir), journal, Arc::clone(&merges), Arc::clone(&failure), None);
        Driven { disk, dir, snapshots: snapshots.unwrap(), failure, metrics, merges }
    }

    /// Waits until something holds and nothing has failed.
    #[track_caller]
    fn wait(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(self.failure.get().is_none(), "{:?}", self.failure.get());
            assert!(begun.elapsed() < LIMIT, "it is not {what} within {LIMIT:?}");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Takes a snapshot of the acknowledgements, and returns the segments that its manifest names.
    #[track_caller]
    fn snapshot(&self, epoch: Epoch, parts: Vec<SnapshotAck>) -> Vec<SegmentInfo> {
        self.snapshots.make(epoch, parts);
        self.wait("committed", || self.snapshots.committed() == epoch);
        // Files that nothing names any more are removed after that.
        let (done, is_done) = channel();
        self.snapshots.manifests.submit(move || done.send(()).unwrap());
        is_done.recv_timeout(LIMIT).unwrap();
        let ids = crate::durable::manifest::list(&**self.dir.disk(), &self.dir.manifests()).unwrap();
        let last = self.dir.manifest(*ids.last().unwrap()).unwrap();
        assert_eq!(last.epoch, epoch);
        last.steps.into_iter().flat_map(|step| step.segments).collect()
    }

    #[track_caller]
    fn wait_for_merges(&self) {
        self.wait("merged", || !self.snapshots.live_segments().merging);
    }

    /// The files of segments.
    fn files(&self) -> BTreeSet<String> {
        self.dir.disk().list(&self.dir.segments()).unwrap().into_iter().collect()
    }

    /// The segments that kept manifests name.
    fn named(&self) -> BTreeSet<String> {
        let ids = crate::durable::manifest::list(&**self.dir.disk(), &self.dir.manifests()).unwrap();
        let manifests = ids.into_iter().map(|id| self.dir.manifest(id).unwrap());
        manifests.flat_map(|manifest| manifest.segments().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Registers a real merge for the segments of a step.
    fn merge_for_real(&self, step: &str) {
        let (disk, segments) = (self.disk.shared(), self.dir.segments());
        let merge = move |group: &MergeGroup, closed: EventTime, label: &SegmentLabel, give_up: &AtomicBool| {
            merge(&disk, &segments, &group.inputs, label, &merging(closed, give_up))
        };
        self.merges.add(step, Box::new(merge));
    }
}

fn codec() -> Arc<dyn Codec<Row>> {
    Arc::new(Postcard)
}

fn merging(expired_through: EventTime, cancelled: &AtomicBool) -> MergeOptions<'_, Row> {
    MergeOptions {
        codec: codec(),
        order: |a, b| a.0.cmp(&b.0),
        add: |sum, other| sum.1 += other.1,
        window: |row| EventTime::from_millis(row.0.0),
        keep: &|row| row.1 != 0,
        expired_through,
        cancelled,
    }
}

fn label(step: &str, worker: u32, epoch: u64) -> SegmentLabel {
    SegmentLabel { step: step.into(), incarnation: 1, worker, number: epoch, from: Epoch(epoch - 2), to: Epoch(epoch) }
}

/// Writes a segment, in blocks of `of_block` rows.
fn write(disk: &CrashingDisk, directory: &Path, label: &SegmentLabel, rows: &[Row], of_block: usize) -> SegmentInfo {
    let mut writer = SegmentWriter::create(&disk.shared(), directory, label, &codec().encoding()).unwrap();
    for rows in rows.chunks(of_block) {
        let mut builder = BlockBuilder::new(codec());
        for row in rows {
            assert_eq!(builder.push(row, EventTime::from_millis(row.0.0)).unwrap(), None);
        }
        writer.append(&builder.finish().unwrap()).unwrap();
    }
    writer.finish().unwrap()
}

/// Returns the description of a segment without a file.
fn spoken_of(label: &SegmentLabel, bytes: u64) -> SegmentInfo {
    let mut level = 0;
    while 4096 * FACTOR.pow(level) < bytes {
        level += 1;
    }
    SegmentInfo {
        file: label.file_name(),
        step: label.step.clone(),
        from: label.from,
        to: label.to,
        rows: 1,
        bytes,
        least: EventTime::MAX,
        greatest: EventTime::MAX,
        level: level as u8,
        checksum: 0,
    }
}

const STEPS: [&str; 3] = ["a", "b", "c"];
const WORKERS: u32 = 8;

/// The load of a job with state over an hour, at a snapshot a second, with short merges.
#[test]
fn segments_stay_few_on_eight_workers_and_three_steps_over_3600_snapshots() {
    let driven = Driven::start();
    for step in STEPS {
        let merge = |group: &MergeGroup, _closed: EventTime, label: &SegmentLabel, _give_up: &AtomicBool| {
            Ok(MergeOutcome::Segment(spoken_of(label, group.inputs.iter().map(|input| input.bytes).sum())))
        };
        driven.merges.add(step, Box::new(merge));
    }
    let mut random = fastrand::Rng::with_seed(1);
    let (mut most, mut taken) = ([0; STEPS.len()], 0);
    for epoch in (1..=3_600).map(|number| 2 * number) {
        let mut parts = Vec::new();
        for (step, worker) in STEPS.iter().flat_map(|step| (0..WORKERS).map(move |worker| (step, worker))) {
            let segment = spoken_of(&label(step, worker, epoch), random.u64(5_000..20_000));
            taken += segment.bytes;
            parts.push(SnapshotAck::Operator((*step).into(), EventTime::MIN, Some(segment)));
        }
        let named = driven.snapshot(Epoch(epoch), parts);
        for (most, step) in most.iter_mut().zip(STEPS) {
            *most = (*most).max(named.iter().filter(|segment| segment.step == step).count());
            // Fewer than a merge needs, on each of ten levels, and those just written.
            assert!(*most <= 10 * (MIN_MERGE - 1) + WORKERS as usize, "epoch {epoch}: {most} segments of step {step}");
        }
        driven.wait_for_merges();
    }
    let amplification = driven.metrics.snapshots.merged.get() as f64 / taken as f64;
    // 1.1 GB a step, in segments of 12 kB: at most nine levels above theirs.
    assert!((2.0..9.0).contains(&amplification), "{amplification}");
}

#[test]
fn what_is_merged_while_snapshots_are_made_is_all_there_and_no_file_is_left_that_nothing_names() {
    let driven = Driven::start();
    STEPS.iter().for_each(|step| driven.merge_for_real(step));
    let mut random = fastrand::Rng::with_seed(2);
    let mut expected = BTreeMap::<(&str, (i64, u32)), i64>::new();
    let (mut named, mut closed) = (Vec::new(), EventTime::MIN);
    for number in 1..=150 {
        let epoch = 2 * number;
        closed = EventTime::from_millis(number as i64 - 1);
        let mut parts = Vec::new();
        for (step, worker) in STEPS.iter().flat_map(|step| (0..4).map(move |worker| (*step, worker))) {
            // Rows of the next windows, which expire soon, and of one that never does.
            let mut rows = BTreeMap::<(i64, u32), i64>::new();
            for _ in 0..random.usize(1..12) {
                let window = if random.bool() { number as i64 + random.i64(0..4) } else { i64::MAX };
                rows.insert((window, random.u32(..20)), random.i64(1..5));
            }
            rows.iter().for_each(|(key, count)| *expected.entry((step, *key)).or_default() += count);
            let rows: Vec<Row> = rows.into_iter().collect();
            let segment = write(&driven.disk, &driven.dir.segments(), &label(step, worker, epoch), &rows, 5);
            parts.push(SnapshotAck::Operator(step.into(), closed, Some(segment)));
        }
        named = driven.snapshot(Epoch(epoch), parts);
        // At times the next snapshot comes while merges are under way.
        if random.u8(..3) > 0 {
            driven.wait_for_merges();
        }
    }
    assert!(named.len() < 60, "{} segments", named.len());
    let mut found = BTreeMap::new();
    for info in &named {
        let reader = crate::durable::segment::SegmentReader::open_named(&driven.disk, &driven.dir.segments(), info);
        let (mut reader, mut rows) = (reader.unwrap(), Vec::new());
        for block in 0..reader.blocks().len() {
            reader.read_block(block, &*codec(), &mut rows).unwrap();
        }
        for (key, count) in rows {
            *found.entry((STEPS[STEPS.iter().position(|step| *step == info.step).unwrap()], key)).or_default() += count;
        }
    }
    let is_open = |(_, (window, _)): &(&str, (i64, u32))| EventTime::from_millis(*window) > closed;
    found.retain(|key, _: &mut i64| is_open(key));
    expected.retain(|key, _| is_open(key));
    assert_eq!(found, expected);
    assert!(driven.metrics.snapshots.merged.get() > 0);
    driven.wait_for_merges();
    driven.snapshots.finish();
    assert_eq!(driven.failure.get().map(ToString::to_string), None);
    assert_eq!(driven.files(), driven.named());
}

/// Registers a merge that reports its start, and waits for a signal before it returns.
fn held(driven: &Driven, step: &str) -> (Receiver<()>, Sender<()>) {
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel();
    let (disk, segments, held) = (driven.disk.shared(), driven.dir.segments(), Mutex::new((begun, may_go_on)));
    let merge = move |group: &MergeGroup, closed: EventTime, label: &SegmentLabel, give_up: &AtomicBool| {
        let held = held.lock().unwrap();
        held.0.send(()).unwrap();
        let merged = merge(&disk, &segments, &group.inputs, label, &merging(closed, give_up));
        held.1.recv_timeout(LIMIT).unwrap();
        merged
    };
    driven.merges.add(step, Box::new(merge));
    (has_begun, go_on)
}

/// Returns an acknowledgement with a segment of one window's row.
fn part(driven: &Driven, (worker, epoch): (u32, u64), window: i64, closed: i64) -> SnapshotAck {
    let rows = [((window, worker), 1)];
    let segment = write(&driven.disk, &driven.dir.segments(), &label("a", worker, epoch), &rows, 5);
    SnapshotAck::Operator("a".into(), EventTime::from_millis(closed), Some(segment))
}

#[test]
fn when_inputs_of_a_merge_die_meanwhile_it_takes_the_place_of_the_others_and_leaves_no_file_behind() {
    for all_die in [false, true] {
        let driven = Driven::start();
        let (has_begun, go_on) = held(&driven, "a");
        let window = |worker| if worker == 0 || all_die { 10 } else { 100 };
        driven.snapshot(Epoch(2), (0..4).map(|worker| part(&driven, (worker, 2), window(worker), 0)).collect());
        has_begun.recv_timeout(LIMIT).unwrap();
        // Window 10 closes: its segments expire while they are merged.
        driven.snapshot(Epoch(4), vec![SnapshotAck::Operator("a".into(), EventTime::from_millis(10), None)]);
        go_on.send(()).unwrap();
        driven.wait_for_merges();
        let named =
            driven.snapshot(Epoch(6), vec![SnapshotAck::Operator("a".into(), EventTime::from_millis(10), None)]);
        assert_eq!(named.iter().map(|info| info.rows).collect::<Vec<_>>(), if all_die { vec![] } else { vec![4] });
        for epoch in [8, 10] {
            driven.snapshot(Epoch(epoch), vec![SnapshotAck::Operator("a".into(), EventTime::from_millis(10), None)]);
        }
        assert_eq!(driven.files(), named.into_iter().map(|info| info.file).collect());
    }
}

#[test]
fn a_merge_that_begins_to_read_when_an_input_has_died_and_is_removed_fails_nothing() {
    let driven = Driven::start();
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let (disk, segments, held) = (driven.disk.shared(), driven.dir.segments(), Mutex::new((begun, may_go_on)));
    let merge = move |group: &MergeGroup, closed: EventTime, label: &SegmentLabel, give_up: &AtomicBool| {
        let held = held.lock().unwrap();
        held.0.send(()).unwrap();
        held.1.recv_timeout(LIMIT).unwrap();
        merge(&disk, &segments, &group.inputs, label, &merging(closed, give_up))
    };
    driven.merges.add("a", Box::new(merge));
    let window = |worker| if worker == 0 { 10 } else { 100 };
    driven.snapshot(Epoch(2), (0..4).map(|worker| part(&driven, (worker, 2), window(worker), 0)).collect());
    has_begun.recv_timeout(LIMIT).unwrap();
    // Window 10 closes, and three manifests later nothing names its segment.
    for epoch in [4, 6, 8] {
        driven.snapshot(Epoch(epoch), vec![SnapshotAck::Operator("a".into(), EventTime::from_millis(10), None)]);
    }
    assert_eq!(driven.files().len(), 3);
    go_on.send(()).unwrap();
    driven.wait_for_merges();
    assert_eq!(driven.files(), driven.named());
    // A segment that is named and cannot be read fails the job.
    driven.snapshot(Epoch(10), vec![part(&driven, (9, 10), 100, 10)]);
    has_begun.recv_timeout(LIMIT).unwrap();
    let named = driven.named();
    driven.disk.shared().remove(&driven.dir.segments().join(named.first().unwrap())).unwrap();
    go_on.send(()).unwrap();
    let begun = Instant::now();
    while driven.failure.get().is_none() {
        assert!(begun.elapsed() < LIMIT, "a segment is missing, and nothing fails");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stop_does_not_wait_for_a_merge_and_none_of_its_file_is_left() {
    let driven = Driven::start();
    let (begun, has_begun) = channel();
    let (disk, segments, begun) = (driven.disk.shared(), driven.dir.segments(), Mutex::new(begun));
    let merge = move |group: &MergeGroup, closed: EventTime, label: &SegmentLabel, give_up: &AtomicBool| {
        begun.lock().unwrap().send(()).unwrap();
        // A merge that would go on for ever, like one of many gigabytes.
        loop {
            let merged = merge(&disk, &segments, &group.inputs, label, &merging(closed, give_up))?;
            let MergeOutcome::Segment(done) = merged else { return Ok(merged) };
            disk.remove(&segments.join(&done.file)).unwrap();
        }
    };
    driven.merges.add("a", Box::new(merge));
    let parts = (0..4).map(|worker| {
        let rows: Vec<Row> = (0..2_000).map(|key| ((100, key), 1)).collect();
        let segment = write(&driven.disk, &driven.dir.segments(), &label("a", worker, 2), &rows, 10);
        SnapshotAck::Operator("a".into(), EventTime::MIN, Some(segment))
    });
    driven.snapshot(Epoch(2), parts.collect());
    has_begun.recv_timeout(LIMIT).unwrap();
    driven.snapshots.finish();
    assert_eq!(driven.failure.get().map(ToString::to_string), None);
    assert_eq!(driven.files(), driven.named());
}

#[test]
fn a_manifest_has_what_its_parts_say_of_sources_and_sinks() {
    let driven = Driven::start();
    let bound = |partition| PartitionProgress {
        source: "s".into(),
        partition,
        start_offset: None,
        next_offset: 7,
        watermark: EventTime::from_millis(5),
        idle: false,
        end_offset: None,
        ended: false,
        check: None,
        values: None,
        topic: None,
        rejected_for_now: Vec::new(),
    };
    let (watermark, activation_watermarks) = (EventTime::from_millis(5), vec![(1, EventTime::from_millis(9))]);
    let sink = SinkState { name: "out".into(), published: Some(Epoch(2)), on_change: true };
    let parts = vec![
        SnapshotAck::source("s", [bound(1)]),
        SnapshotAck::Sink(sink.clone()),
        SnapshotAck::Watermark("s".into(), watermark, activation_watermarks.clone()),
        SnapshotAck::source("s", [bound(0)]),
    ];
    driven.snapshot(Epoch(2), parts);
    let ids = crate::durable::manifest::list(&**driven.dir.disk(), &driven.dir.manifests()).unwrap();
    let manifest = driven.dir.manifest(ids[0]).unwrap();
    let progress = vec![bound(0), bound(1)];
    assert_eq!(manifest.sources, [SourceState { name: "s".into(), progress, watermark, activation_watermarks }]);
    assert_eq!(manifest.sinks, [sink]);
}

//! Workers that read a file in parallel, in any interleaving, read what one thread with a naive reader reads.
//!
//! A [`FileCase`] is a file's bytes and what a naive reader finds in them. It is read by simulated workers in random
//! turns, and by threads; then another number of workers replays the committed epochs of that reading. Blocks of a few
//! bytes make many chunks of small files, and some workers are made slow, so that others hold chunks. Assertions name
//! the seed, which repeats the run.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::*;
use crate::durable::journal::PartitionProgress;
use crate::metrics::SourceMetrics;
use crate::record::Event;
use crate::source::csv::Csv;
use crate::source::ndjson::Ndjson;
use crate::source::{EpochInput, Options, PartitionTracker, Rejected, RestoredPartition, WatermarkView};
use crate::time::watermark::PartitionClock;
use crate::time::{Epoch, EventTime};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct TestRow {
    id: u64,
    account: String,
    note: Option<String>,
    at_ms: i64,
}

/// Records that a naive reader finds: the range of each, and what it decodes to.
type Naive = Vec<(Range<usize>, Option<TestRow>)>;

const DISORDER: Duration = Duration::from_millis(40);

/// Result of reading a record: its time and data if it was accepted, its line if it was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RecordResult {
    offset: u64,
    mark: EventTime,
    accepted: Option<(EventTime, TestRow)>,
    line: u64,
    rejected: Vec<u8>,
}

struct FileCase {
    seed: u64,
    options: Options,
    file: tempfile::NamedTempFile,
    expected: Vec<RecordResult>,
    /// Length of the file in bytes.
    length: u64,
}

impl FileCase {
    fn new(seed: u64, bytes: &[u8], naive: Naive) -> FileCase {
        FileCase::with(seed, bytes, naive, until_end())
    }

    fn with(seed: u64, bytes: &[u8], naive: Naive, options: Options) -> FileCase {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut clock = PartitionClock::new(EventTime::MIN, DISORDER.into());
        let is_csv = !bytes.contains(&b'{');
        let mut greatest = None;
        let expected = naive.into_iter().map(|(place, row)| {
            let row = row.filter(|row| EventTime::from_millis(row.at_ms).is_writable());
            let ahead = options.max_ahead.as_millis() as i64;
            let is_ahead =
                |at: i64| options.max_ahead_in_files && greatest.is_some_and(|greatest| at > greatest + ahead);
            let row = row.filter(|row| !is_ahead(row.at_ms));
            let after = bytes[place.end..].iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            // A line of JSON ends with its `\n` only.
            let after = after.map(|at| at + usize::from(bytes[place.end + at..].starts_with(b"\r\n") && !is_csv));
            let length = (place.end + after.map_or(0, |at| at + 1) - place.start) as u64;
            let too_long = length > options.max_record;
            let row = row.filter(|_| !too_long);
            greatest = greatest.max(row.as_ref().map(|row| row.at_ms));
            let (line, mark) =
                (bytes[..place.start].iter().filter(|b| **b == b'\n').count() as u64 + 1, clock.watermark());
            let offset = place.start as u64;
            match row {
                Some(row) => {
                    let time = EventTime::from_millis(row.at_ms);
                    clock.observe(time);
                    RecordResult { offset, mark, accepted: Some((time, row)), line: 0, rejected: Vec::new() }
                }
                None if too_long => {
                    let kept = place.start..place.start + length.min(options.max_record).min(1024) as usize;
                    RecordResult { offset, mark, accepted: None, line, rejected: bytes[kept].to_vec() }
                }
                None => RecordResult { offset, mark, accepted: None, line, rejected: bytes[place].to_vec() },
            }
        });
        let expected = expected.collect();
        FileCase { seed, file, expected, length: bytes.len() as u64, options }
    }

    fn input<F: RecordFormat>(&self, block: usize) -> FileSource<F, TestRow> {
        let mut input = input(self.file.path(), block);
        input.sizes.slow = (!self.seed.is_multiple_of(3)).then_some(self.seed);
        input
    }

    fn watermark_at(&self, position: u64) -> EventTime {
        let mut clock = PartitionClock::new(EventTime::MIN, DISORDER.into());
        for outcome in self.expected.iter().filter(|outcome| outcome.offset < position) {
            if let Some((time, _)) = outcome.accepted {
                clock.observe(time);
            }
        }
        clock.watermark()
    }

    /// Checks the result of a run against the naive reader's, and that each epoch took the records of its range.
    fn check(&self, run: &ReadResult, what: &str) {
        let at = format!("seed {}, {what}", self.seed);
        let mut all: Vec<RecordResult> = Vec::new();
        let mut position = 0;
        for (epoch, outcomes) in &run.epochs {
            let mut outcomes = outcomes.clone();
            outcomes.sort_by_key(|outcome| outcome.offset);
            let from = position;
            position = run.bounds.get(epoch).map_or(position, |bound| bound.next_offset);
            assert!(outcomes.iter().all(|o| o.offset >= from && o.offset < position), "{at}: epoch {epoch}");
            all.extend(outcomes);
        }
        assert_eq!(all.len(), self.expected.len(), "{at}: number of records");
        for (read, expected) in all.iter().zip(&self.expected) {
            assert_eq!(read, expected, "{at}");
        }
        let mut before = 0;
        for bound in run.bounds.values() {
            assert_eq!(
                bound.watermark,
                self.watermark_at(bound.next_offset),
                "{at}: watermark at {}",
                bound.next_offset
            );
            assert!(bound.next_offset >= before, "{at}");
            assert_eq!(
                bound.start_offset,
                (before == 0 && Some(bound) == run.bounds.values().next()).then_some(0),
                "{at}"
            );
            before = bound.next_offset;
        }
        let last = run.bounds.values().last().unwrap();
        assert_eq!((last.next_offset, last.end_offset, last.ended), (self.length, Some(self.length), true), "{at}");
    }
}

fn input<F: RecordFormat>(path: &Path, block: usize) -> FileSource<F, TestRow> {
    let mut input = FileSource::new(path).event_time(|row: &TestRow| row.at_ms).out_of_order(DISORDER);
    input.sizes = FileLimits { block, longest: 16 << 20, slow: None };
    input
}

/// Result of a run: records by epoch, and committed progress by epoch.
#[derive(Default)]
struct ReadResult {
    epochs: BTreeMap<u64, Vec<RecordResult>>,
    bounds: BTreeMap<u64, PartitionProgress>,
}

/// A simulated worker.
struct SimulatedWorker {
    reader: Box<dyn Reader<TestRow>>,
    intake: PartitionTracker<TestRow>,
    epoch: Epoch,
    to_bind: VecDeque<Epoch>,
    bound: Option<Epoch>,
    ended: bool,
    /// Position to resume from before anything else; other workers may be ahead by then.
    resume: Option<(Epoch, RestoredPartition)>,
    journal: VecDeque<(Epoch, Vec<PartitionProgress>)>,
}

impl SimulatedWorker {
    fn new<F: RecordFormat>(
        input: &FileSource<F, TestRow>,
        worker: usize,
        workers: usize,
        options: &Options,
        first: Epoch,
    ) -> Self {
        let place = WorkerContext {
            worker,
            workers,
            threads: workers,
            job: String::from("test"),
            options: options.clone(),
            known_partitions: Arc::default(),
        };
        let intake = crate::source::track(
            input,
            ("s", 3),
            options,
            Rc::new(WatermarkView::default()),
            Arc::new(SourceMetrics::default()),
        );
        let (to_bind, journal) = (VecDeque::new(), VecDeque::new());
        let reader = input.open(&place).unwrap();
        SimulatedWorker { reader, intake, epoch: first, to_bind, bound: None, ended: false, resume: None, journal }
    }

    fn take(&mut self, epoch: Epoch, run: &mut ReadResult) {
        let (_bytes, events, rejects) = self.intake.finish_poll();
        assert!(self.bound < Some(epoch) || events.is_empty() && rejects.is_empty(), "records after their epoch");
        let outcomes = run.epochs.entry(epoch.0).or_default();
        outcomes.extend(events.drain(..).map(|Event { time, watermark, origin, data }| {
            assert_eq!((origin.source, origin.partition), (3, 0));
            let accepted = Some((time, data));
            RecordResult { offset: origin.offset, mark: watermark, accepted, line: 0, rejected: Vec::new() }
        }));
        outcomes.extend(rejects.drain(..).map(|Event { watermark, origin, data, .. }| {
            let Rejected { line, record, encoding, reason, .. } = data.rejected;
            assert!(!reason.is_empty());
            let rejected = if encoding == "hex" { from_hex(&record) } else { record.into_bytes() };
            RecordResult { offset: origin.offset, mark: watermark, accepted: None, line, rejected }
        }));
    }

    fn poll(&mut self, budget: usize, run: &mut ReadResult) -> bool {
        if let Some((epoch, place)) = self.resume.take() {
            self.reader.resume(epoch, &[place], &mut self.intake).unwrap();
        }
        if let Some((epoch, bounds)) = self.journal.front().cloned() {
            let done = self.reader.replay(epoch, &bounds, &mut self.intake).unwrap();
            self.take(epoch, run);
            if done {
                self.journal.pop_front();
                self.to_bind.push_back(epoch);
            }
            return true;
        }
        let polled = self.reader.poll(self.epoch, budget, &mut self.intake).unwrap();
        assert!(polled.epoch <= self.epoch);
        self.take(polled.epoch, run);
        polled.busy
    }

    /// Describes the worker's progress, for a failure.
    fn state(&self) -> String {
        let SimulatedWorker { reader, intake, epoch, to_bind, bound, ended, .. } = self;
        format!(
            "in epoch {epoch:?}, to close {:?}, closed {bound:?}, ended {ended}, {:?}, all chunks dealt: {}, {:?}",
            to_bind.front(),
            reader.initial_progress(intake),
            reader.exhausted(intake),
            reader.partitions(intake)
        )
    }

    fn turn_to(&mut self, epoch: Epoch) {
        if self.resume.is_none() && self.journal.is_empty() && epoch > self.epoch {
            self.to_bind.push_back(self.epoch);
            self.epoch = epoch;
        }
    }

    fn bind(&mut self, run: &mut ReadResult) {
        let Some(epoch) = self.to_bind.front().copied() else { return };
        let Some(EpochInput { partitions, watermark }) = self.reader.close_epoch(epoch, &mut self.intake).unwrap()
        else {
            return;
        };
        self.to_bind.pop_front();
        self.bound = Some(epoch);
        assert!(watermark.activated.is_empty() && partitions.len() <= 1);
        for bound in partitions {
            assert!((bound.source.as_str(), bound.partition, bound.idle) == ("s", 0, false));
            assert_eq!(watermark.least, (!bound.ended).then_some(bound.watermark));
            run.bounds.insert(epoch.0, bound);
        }
        self.ended = watermark.ended;
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn until_end() -> Options {
    Options { until_end: true, ..Options::default() }
}

/// Lets the workers take random turns until the file has ended and all of it is committed.
fn in_turns(workers: &mut [SimulatedWorker], seed: u64, first: Epoch) -> ReadResult {
    let (mut rng, mut run, mut now) = (fastrand::Rng::with_seed(seed), ReadResult::default(), first);
    let (advances, mut end) = (rng.usize(2..40), None);
    for turn in 0.. {
        assert!(turn < 2_000_000, "seed {seed}: it does not end");
        let at = rng.usize(0..workers.len());
        let worker = &mut workers[at];
        match rng.usize(0..advances) {
            0 => now = Epoch(now.0 + 2),
            1 => worker.turn_to(Epoch(now.0.min(worker.epoch.0 + 2))),
            2..5 => worker.bind(&mut run),
            _ => drop(worker.poll(rng.usize(0..30), &mut run)),
        }
        if advances < 6 {
            worker.poll(rng.usize(0..30), &mut run);
            worker.bind(&mut run);
        }
        if workers[0].ended && workers[0].journal.is_empty() {
            let end = *end.get_or_insert(workers[0].bound);
            if workers.iter().all(|worker| worker.bound >= end && worker.journal.is_empty()) {
                return run;
            }
        }
    }
    run
}

/// Maximum time of a run on threads; most take some milliseconds.
const AT_MOST: Duration = Duration::from_secs(120);

/// Runs each worker on a thread of its own.
fn on_threads<F: RecordFormat>(input: &FileSource<F, TestRow>, count: usize, case: &FileCase) -> ReadResult {
    let seed = case.seed;
    let (now, last, done) = (AtomicU64::new(2), AtomicU64::new(u64::MAX), AtomicBool::new(false));
    let work = |at: usize| {
        let (mut run, mut rng) = (ReadResult::default(), fastrand::Rng::with_seed(seed + at as u64));
        let mut worker = SimulatedWorker::new(input, at, count, &case.options, Epoch(2));
        let begun = Instant::now();
        while worker.bound.is_none_or(|bound| bound.0 < last.load(Ordering::SeqCst)) {
            if at == 0 && rng.u8(0..30) == 0 {
                now.fetch_add(2, Ordering::SeqCst);
            }
            worker.poll(rng.usize(1..50), &mut run);
            worker.turn_to(Epoch(now.load(Ordering::SeqCst).min(worker.epoch.0 + 2)));
            worker.bind(&mut run);
            // A thread that waits for another one yields to it: there may be fewer cores than threads.
            std::thread::yield_now();
            assert!(
                begun.elapsed() < AT_MOST,
                "seed {seed}, worker {at} of {count}: it does not end: {}",
                worker.state()
            );
            if at == 0 && worker.ended && !done.swap(true, Ordering::SeqCst) {
                last.store(worker.bound.unwrap().0, Ordering::SeqCst);
            }
        }
        run
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|at| scope.spawn(move || work(at))).collect();
        let mut all = ReadResult::default();
        for run in threads.into_iter().map(|thread| thread.join().unwrap()) {
            all.bounds.extend(run.bounds);
            for (epoch, outcomes) in run.epochs {
                all.epochs.entry(epoch).or_default().extend(outcomes);
            }
        }
        all
    })
}

/// Reads a case in every way, and compares the results.
fn check<F: RecordFormat>(case: &FileCase) {
    let mut rng = fastrand::Rng::with_seed(case.seed);
    let input = case.input::<F>(rng.usize(1..200));
    let mut recorded = ReadResult::default();
    for count in [1, 2, 4] {
        let mut workers: Vec<_> =
            (0..count).map(|at| SimulatedWorker::new(&input, at, count, &case.options, Epoch(2))).collect();
        recorded = in_turns(&mut workers, case.seed, Epoch(2));
        case.check(&recorded, &format!("{count} workers in turns"));
    }
    for count in [1, 2, 3] {
        repeat::<F>(case, &recorded, count, rng.usize(0..=recorded.bounds.len()));
    }
    // Threads that wait for each other at every chunk of a few bytes take long on a busy machine.
    let count = if case.options.max_ahead_in_files && !case.seed.is_multiple_of(4) { 1 } else { rng.usize(1..4) };
    case.check(&on_threads(&input, count, case), &format!("{count} threads"));
    go_on::<F>(case, recorded, &mut rng);
}

/// Runs incarnations one after the other, each on another number of workers. Each one resumes from a random snapshot of
/// what was read before it, replays some epochs of the journal after it, and reads on. None of them reads what is
/// appended after the end was fixed.
fn go_on<F: RecordFormat>(case: &FileCase, mut recorded: ReadResult, rng: &mut fastrand::Rng) {
    for (life, count) in [1, 2, 4, 1].into_iter().enumerate() {
        let bounds: Vec<_> = recorded.bounds.iter().map(|(epoch, bound)| (Epoch(*epoch), bound.clone())).collect();
        let taken = rng.usize(life.min(1)..=bounds.len());
        let repeated = rng.usize(taken..=bounds.len());
        if life == 1 {
            let mut file = std::fs::OpenOptions::new().append(true).open(case.file.path()).unwrap();
            file.write_all(b"\nmore, which is for another run\n").unwrap();
        }
        let (input, first) = (case.input::<F>(rng.usize(1..200)), Epoch(bounds.last().unwrap().0.0 + 2));
        let mut workers: Vec<_> =
            (0..count).map(|at| SimulatedWorker::new(&input, at, count, &case.options, first)).collect();
        let snapshot = bounds[..taken].last();
        for worker in &mut workers {
            if let Some((epoch, bound)) = snapshot {
                let progress = PartitionProgress { start_offset: None, ..bound.clone() };
                worker.resume = Some((*epoch, RestoredPartition { progress, activation_watermark: EventTime::MIN }));
            }
            worker.journal =
                bounds[taken..repeated].iter().map(|(epoch, bound)| (*epoch, vec![bound.clone()])).collect();
        }
        let run = in_turns(&mut workers, rng.u64(..), first);
        let what = format!("life {life} on {count} workers, from epoch {taken}, {repeated} known");
        assert!(run.bounds.len() >= repeated - taken, "seed {}, {what}", case.seed);
        for (epoch, bound) in &bounds[taken..repeated] {
            assert_eq!(run.bounds.get(&epoch.0), Some(bound), "seed {}, {what}", case.seed);
        }
        let kept = |epoch: &u64| snapshot.is_some_and(|(last, _)| *epoch <= last.0);
        recorded.epochs.retain(|epoch, _| kept(epoch));
        recorded.bounds.retain(|epoch, _| kept(epoch));
        recorded.epochs.extend(run.epochs);
        recorded.bounds.extend(run.bounds);
        case.check(&recorded, &what);
    }
}

/// Replays some of the recorded epochs on another number of workers, and reads on.
fn repeat<F: RecordFormat>(case: &FileCase, recorded: &ReadResult, count: usize, frames: usize) {
    let input = case.input::<F>(1 + case.seed as usize % 70);
    let journal: VecDeque<_> =
        recorded.bounds.iter().take(frames).map(|(epoch, bound)| (Epoch(*epoch), vec![bound.clone()])).collect();
    let first = Epoch(recorded.bounds.keys().last().unwrap() + 2);
    let mut workers: Vec<_> =
        (0..count).map(|at| SimulatedWorker::new(&input, at, count, &case.options, first)).collect();
    for worker in &mut workers {
        worker.journal = journal.clone();
    }
    let run = in_turns(&mut workers, case.seed, first);
    let what = format!("{count} workers that repeat {frames} epochs");
    case.check(&run, &what);
    for (epoch, bound) in recorded.bounds.iter().take(frames) {
        assert_eq!(run.bounds.get(epoch), Some(bound), "seed {}, {what}", case.seed);
        let sorted = |run: &ReadResult| {
            let mut outcomes = run.epochs.get(epoch).cloned().unwrap_or_default();
            outcomes.sort_by_key(|outcome| outcome.offset);
            outcomes
        };
        assert_eq!(sorted(&run), sorted(recorded), "seed {}, {what}, epoch {epoch}", case.seed);
    }
}

/// Reads records with the csv crate, one after the other. The crate may count the line ends before a record to it.
fn naive_csv(bytes: &[u8]) -> Naive {
    let mut reader = ::csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
    let header = reader.byte_headers().unwrap().clone();
    let (mut naive, mut record) = (Vec::new(), ::csv::ByteRecord::new());
    while reader.read_byte_record(&mut record).unwrap() {
        let ends = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let at = record.position().unwrap().byte() as usize;
        let start = at + bytes[at..].iter().take_while(|byte| ends(byte)).count();
        let after = reader.position().byte() as usize;
        let end = after - bytes[start..after].iter().rev().take_while(|byte| ends(byte)).count();
        let row = if record.len() == header.len() { record.deserialize(Some(&header)).ok() } else { None };
        match quotes(&bytes[start..after]) {
            Quotes::Good => naive.push((start..end, row)),
            Quotes::TextBehind => naive.push((start..end, None)),
            Quotes::Unclosed => naive.push((start..bytes.len(), None)),
        }
    }
    naive
}

enum Quotes {
    Good,
    TextBehind,
    Unclosed,
}

/// Judges the quotes of a row, a byte at a time.
fn quotes(row: &[u8]) -> Quotes {
    let (mut at, mut good) = (0, true);
    while at < row.len() {
        if row[at] == b'"' {
            at += 1;
            while row[at..].starts_with(b"\"\"") || row.get(at).is_some_and(|byte| *byte != b'"') {
                at += if row[at] == b'"' { 2 } else { 1 };
            }
            if at >= row.len() {
                return Quotes::Unclosed;
            }
            at += 1;
            good &= row.get(at).is_none_or(|byte| matches!(byte, b',' | b'\r' | b'\n'));
        }
        while row.get(at).is_some_and(|byte| *byte != b',') {
            at += 1;
        }
        at += 1;
    }
    if good { Quotes::Good } else { Quotes::TextBehind }
}

/// Returns a case's options: some limit the length of records, some reject event times that are far ahead.
fn options_of(seed: u64) -> Options {
    match seed % 5 {
        1 => Options { max_ahead_in_files: true, max_ahead: Duration::from_millis(30), ..until_end() },
        3 => Options { max_record: 50 + seed % 60, ..until_end() },
        _ => until_end(),
    }
}

fn naive_ndjson(bytes: &[u8]) -> Naive {
    let (mut naive, mut start) = (Vec::new(), if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 });
    for line in bytes[start..].split(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        if !text.trim_ascii().is_empty() {
            naive.push((start..start + text.len(), serde_json::from_slice(text).ok()));
        }
        start += line.len() + 1;
    }
    naive
}

fn random_time(rng: &mut fastrand::Rng, at: usize) -> i64 {
    match rng.u8(0..60) {
        0 => i64::MAX - at as i64,
        1 => 100_000_000 + at as i64,
        _ => 1_000 + 10 * at as i64 + rng.i64(-200..50),
    }
}

/// Returns a text for a field of CSV: plain, quoted, or with a fault.
fn random_text(rng: &mut fastrand::Rng) -> Vec<u8> {
    let texts: [&[u8]; 14] = [
        b"acct-1",
        b"\"a,b\"",
        b"\"a\nb\"",
        b"\"a\r\nb\"",
        b"\"say \"\"hi\"\"\"",
        b"ab\"c",
        b"\"ab\"c",
        b"\xc3\xa9t\xc3\xa9",
        b"\xff",
        b"nul\0",
        b"",
        b" ",
        b"\"\"",
        b"a rather long name that does not fit into one word",
    ];
    texts[rng.usize(0..texts.len())].to_vec()
}

fn random_csv(rng: &mut fastrand::Rng) -> Vec<u8> {
    let (mut file, mut columns) = (Vec::new(), vec!["id", "account", "note", "at_ms", "extra"]);
    rng.shuffle(&mut columns);
    let line_end: &[u8] = [b"\n" as &[u8], b"\r\n", b"\r"][rng.usize(0..3)];
    if rng.bool() {
        file.extend_from_slice(b"\xef\xbb\xbf");
    }
    file.extend_from_slice(columns.join(if rng.bool() { "," } else { "\",\"" }).as_bytes());
    if file.contains(&b'"') {
        let at = if file.starts_with(b"\xef") { 3 } else { 0 };
        file.insert(at, b'"');
        file.push(b'"');
    }
    for at in 0..rng.usize(0..120) {
        file.extend_from_slice(line_end);
        let mut fields: Vec<Vec<u8>> = columns
            .iter()
            .map(|column| match *column {
                "id" if rng.u8(0..12) > 0 => rng.u32(..).to_string().into_bytes(),
                "at_ms" if rng.u8(0..12) > 0 => random_time(rng, at).to_string().into_bytes(),
                _ => random_text(rng),
            })
            .collect();
        match rng.u8(0..40) {
            0 => drop(fields.pop()),
            1 => fields.push(b"more".to_vec()),
            2 => fields = vec![Vec::new()],
            3 => fields[0].insert(0, b'"'),
            _ => {}
        }
        file.extend(fields.join(&b','));
    }
    if rng.bool() {
        file.extend_from_slice(line_end);
    }
    file
}

fn random_ndjson(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut file = if rng.bool() { b"\xef\xbb\xbf".to_vec() } else { Vec::new() };
    for at in 0..rng.usize(0..120) {
        let (id, time) = (rng.u32(..), random_time(rng, at));
        let account: &[u8] = [b"a" as &[u8], b"\\u00e9\\n", b"\xff", b"\xc3\xa9", b"a longer name"][rng.usize(0..5)];
        let line: Vec<u8> = match rng.u8(0..30) {
            0 => b"".to_vec(),
            1 => b" \t".to_vec(),
            2 => b"{\"id\":1}".to_vec(),
            3 => b"nul\0".to_vec(),
            4 => format!("{{\"id\":-1,\"account\":\"a\",\"at_ms\":{time}}}").into_bytes(),
            5 => format!("{{\"id\":1,\"account\":\"a\",\"at_ms\":{time}}} x").into_bytes(),
            _ => {
                let mut line = format!("{{\"id\":{id},\"at_ms\":{time},\"more\":[1],\"account\":\"").into_bytes();
                line.extend_from_slice(account);
                line.extend_from_slice(b"\"}");
                line
            }
        };
        file.extend(line);
        file.extend_from_slice(if rng.bool() { b"\n" } else { b"\r\n" });
    }
    if rng.bool() {
        file.pop();
    }
    file
}

#[test]
fn workers_together_read_what_one_reads_csv() {
    for seed in 0..250 {
        let bytes = random_csv(&mut fastrand::Rng::with_seed(seed));
        check::<Csv>(&FileCase::with(seed, &bytes, naive_csv(&bytes), options_of(seed)));
    }
}

#[test]
fn workers_together_read_what_one_reads_ndjson() {
    for seed in 0..250 {
        let bytes = random_ndjson(&mut fastrand::Rng::with_seed(seed));
        check::<Ndjson>(&FileCase::with(seed, &bytes, naive_ndjson(&bytes), options_of(seed)));
    }
}

#[test]
fn records_of_many_blocks_are_read() {
    let long = "line\n\"\"".repeat(10 << 17);
    let mut csv = format!("id,account,at_ms,note\n1,a,1,\n2,\"{long}\",2,\n3,c,3,\n").into_bytes();
    csv.extend_from_slice(b"4,d,x,\n");
    check_quickly::<Csv>(&FileCase::new(1, &csv, naive_csv(&csv)));
    let long = "x".repeat(10 << 20);
    let json = [("1", "a"), ("2", &long), ("x", &long), ("4", "d")];
    let json = json.map(|(id, account)| format!("{{\"id\":{id},\"account\":\"{account}\",\"at_ms\":{id}}}\n")).concat();
    check_quickly::<Ndjson>(&FileCase::new(2, json.as_bytes(), naive_ndjson(json.as_bytes())));
}

fn check_quickly<F: RecordFormat>(case: &FileCase) {
    for (block, count) in [(128 << 10, 2), (1000, 1)] {
        let input = case.input::<F>(block);
        let mut workers: Vec<_> =
            (0..count).map(|at| SimulatedWorker::new(&input, at, count, &case.options, Epoch(2))).collect();
        case.check(&in_turns(&mut workers, case.seed, Epoch(2)), &format!("{count} workers"));
    }
}

/// A single worker of an input, driven by hand.
struct SingleWorker {
    worker: SimulatedWorker,
    run: ReadResult,
}

impl SingleWorker {
    fn resume(&mut self, bound: &PartitionProgress) -> Result<()> {
        let places = [RestoredPartition { progress: bound.clone(), activation_watermark: EventTime::MIN }];
        self.worker.epoch = Epoch(4);
        self.worker.reader.resume(Epoch(2), &places, &mut self.worker.intake)
    }

    fn new(path: &Path, options: &Options) -> SingleWorker {
        SingleWorker {
            worker: SimulatedWorker::new::<Ndjson>(&input(path, 100), 0, 1, options, Epoch(2)),
            run: ReadResult::default(),
        }
    }

    /// Returns the ids that are read within about `millis` milliseconds.
    fn ids(&mut self, millis: u64) -> Vec<u64> {
        let before: usize = self.run.epochs.values().map(Vec::len).sum();
        let end = Instant::now() + Duration::from_millis(millis);
        while self.worker.poll(100, &mut self.run) || Instant::now() < end {}
        let all = self.run.epochs.values().flatten().skip(before);
        all.map(|outcome| outcome.accepted.as_ref().map_or(0, |(_, row)| row.id)).collect()
    }

    /// Returns the next `count` ids; fails if they take longer than 20 seconds.
    fn next_ids(&mut self, count: usize) -> Vec<u64> {
        let (begun, mut ids) = (Instant::now(), Vec::new());
        while ids.len() < count {
            assert!(begun.elapsed() < Duration::from_secs(20), "only {ids:?}");
            ids.extend(self.ids(1));
        }
        ids
    }

    fn error(&mut self) -> String {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let polled = self.worker.reader.poll(self.worker.epoch, 10, &mut self.worker.intake);
            if let Err(error) = polled {
                return error.to_string();
            }
            assert!(Instant::now() < end, "no error came");
        }
    }
}

fn line(id: u64) -> String {
    format!("{{\"id\":{id},\"account\":\"a\",\"at_ms\":{id}}}\n")
}

fn file_of(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn a_file_that_grows_is_followed_by_whole_lines() {
    let mut file = file_of(&line(1));
    let mut alone = SingleWorker::new(file.path(), &Options::default());
    assert_eq!(alone.ids(1), [1]);
    let (two, rest) = (line(2), line(2).split_off(5));
    file.write_all(&two.as_bytes()[..5]).unwrap();
    assert_eq!(alone.ids(50), [0; 0]);
    file.write_all(rest.as_bytes()).unwrap();
    file.write_all(line(3).as_bytes()).unwrap();
    assert_eq!(alone.ids(100), [2, 3]);
    alone.worker.turn_to(Epoch(4));
    alone.worker.bind(&mut alone.run);
    let bound = &alone.run.bounds[&2];
    assert_eq!((bound.next_offset, bound.end_offset, bound.ended), (3 * line(1).len() as u64, None, false));
    file.as_file().set_len(10).unwrap();
    assert!(alone.error().starts_with("the file ends before what was already read of it"));
}

#[test]
fn a_followed_csv_file_may_begin_empty() {
    let mut file = file_of("");
    let mut worker = SimulatedWorker::new(&input::<Csv>(file.path(), 100), 0, 1, &Options::default(), Epoch(2));
    let mut run = ReadResult::default();
    assert!(!worker.poll(10, &mut run));
    for text in ["id,account,", "note,at_ms\n1,a,,1", "\n2,b,,2"] {
        file.write_all(text.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(25));
        while worker.poll(10, &mut run) {}
    }
    let read = run.epochs.values().flatten();
    assert_eq!(read.filter_map(|outcome| Some(outcome.accepted.as_ref()?.1.id)).collect::<Vec<_>>(), [1]);
}

#[test]
fn an_empty_file_ends_at_once() {
    for text in ["", "id,account,note,at_ms", "id,account,note,at_ms\r\n", "\n\n"] {
        check_quickly::<Csv>(&FileCase::new(3, text.as_bytes(), Vec::new()));
    }
    check_quickly::<Ndjson>(&FileCase::new(4, b"", Vec::new()));
}

#[test]
fn what_cannot_be_opened_is_named() {
    let open = |path: &str| {
        let place = WorkerContext {
            worker: 0,
            workers: 1,
            threads: 1,
            job: String::new(),
            options: until_end(),
            known_partitions: Arc::default(),
        };
        input::<Csv>(Path::new(path), 100).open(&place).err().unwrap().to_string()
    };
    assert!(open("/nowhere/a.csv").starts_with("cannot open the input (/nowhere/a.csv): "));
    assert!(open("/").contains("not a regular file"));
    let file = file_of("id,account\n");
    let path = file.path().display().to_string();
    assert!(open(&path).starts_with(&format!("the csv header lacks the column `at_ms` ({path}): ")), "{}", open(&path));
}

#[test]
fn a_record_that_is_too_long_is_rejected_when_it_ends_and_reading_goes_on() {
    let mut file = file_of(&line(1));
    let options = Options { max_record: 2_000, ..Options::default() };
    let mut alone = SingleWorker::new(file.path(), &options);
    assert_eq!(alone.ids(1), [1]);
    for _ in 0..5 {
        file.write_all(&[b'x'; 1_000]).unwrap();
        assert_eq!(alone.ids(30), [0; 0]);
    }
    file.write_all(format!("\n{}", line(2)).as_bytes()).unwrap();
    assert_eq!(alone.next_ids(2), [0, 2]);
    let rejected = alone.run.epochs[&2].iter().find(|outcome| outcome.accepted.is_none()).unwrap();
    assert_eq!((rejected.offset, rejected.line), (line(1).len() as u64, 2));
    assert_eq!(rejected.rejected, [b'x'; 1_024]);
}

#[test]
fn a_followed_file_that_is_moved_is_read_to_its_end_and_then_the_job_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("in"), folder.path().join("in.1"));
    for again in [true, false] {
        std::fs::write(&path, line(1)).unwrap();
        let mut alone = SingleWorker::new(&path, &Options::default());
        assert_eq!(alone.ids(1), [1]);
        // An editor may move a file and put the same one back: that is no other file.
        std::fs::rename(&path, &moved).unwrap();
        assert_eq!(alone.ids(100), [0; 0]);
        std::fs::rename(&moved, &path).unwrap();
        assert_eq!(alone.ids(100), [0; 0]);
        std::fs::rename(&path, &moved).unwrap();
        if again {
            std::fs::write(&path, line(7)).unwrap();
        }
        let mut old = std::fs::OpenOptions::new().append(true).open(&moved).unwrap();
        old.write_all((line(2) + "partial").as_bytes()).unwrap();
        assert_eq!(alone.next_ids(1), [2]);
        let error = alone.error();
        let place = format!("({}, offset {})", path.display(), 2 * line(1).len());
        assert!(error.starts_with("the input was moved or removed while it was followed"), "{error}");
        assert!(error.contains(&place) && error.contains("a new --state"), "{error}");
        assert_eq!(error.contains("another file has its name"), again, "{error}");
    }
}

#[test]
fn a_followed_file_says_where_it_is() {
    let mut file = file_of(&(line(90) + "{\"id\""));
    let mut alone = SingleWorker::new(file.path(), &Options::default());
    let status = |alone: &SingleWorker| alone.worker.reader.partitions(&alone.worker.intake).pop().unwrap();
    assert_eq!(status(&alone).watermark, EventTime::MIN);
    assert_eq!(alone.ids(30), [90]);
    let (one, now) = (line(90).len() as u64, status(&alone));
    assert_eq!((now.next, now.end, now.in_bytes), (one, Some(one + 5), true));
    assert_eq!((now.watermark, now.ended), (EventTime::from_millis(50), false));
    assert_eq!(now.note, Some(format!("the record at offset {one} has no end yet")));
    file.write_all(b"\n").unwrap();
    assert_eq!(alone.next_ids(1), [0]);
    assert_eq!((status(&alone).note, status(&alone).lag()), (None, Some(0)));
}

#[test]
fn files_of_other_kinds_are_told_as_such() {
    for (bytes, parts) in [
        (&b"\x1f\x8b\x08\0\0\0\0\0"[..], ["is compressed (gzip)", "gzip -dc"]),
        (b"\xff\xfei\0d\0", ["UTF-16", "iconv -f UTF-16"]),
        (b"i\0d\0,\0", ["UTF-16", "iconv -f UTF-16LE"]),
        (b"PAR1\x15\x04", ["Parquet", "export it"]),
    ] {
        let mut file = file_of("");
        file.write_all(bytes).unwrap();
        let place = WorkerContext {
            worker: 0,
            workers: 1,
            threads: 1,
            job: String::new(),
            options: until_end(),
            known_partitions: Arc::default(),
        };
        let opened = input::<Csv>(file.path(), 100).open(&place);
        let error = opened.err().unwrap().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}

#[test]
fn a_reject_can_end_the_job() {
    let file = file_of(&(line(1) + "\n{}\n"));
    let error = SingleWorker::new(file.path(), &Options { fail_on_reject: true, ..until_end() }).error();
    assert!(error.contains("line 3): missing field `id`"), "{error}");
}

fn bound(start_offset: Option<u64>, next_offset: u64, watermark: i64) -> PartitionProgress {
    let (source, watermark) = (String::from("s"), EventTime::from_millis(watermark));
    PartitionProgress {
        source,
        partition: 0,
        start_offset,
        next_offset,
        watermark,
        idle: false,
        end_offset: None,
        ended: false,
        check: None,
        values: None,
        topic: None,
        rejected_for_now: Vec::new(),
    }
}

#[test]
fn a_journal_of_another_file_is_refused() {
    let file = file_of(&(line(1) + &line(2)));
    let replay = |bound: PartitionProgress| {
        let mut alone = SingleWorker::new(file.path(), &until_end());
        for _ in 0..10 {
            if let Err(error) =
                alone.worker.reader.replay(Epoch(2), std::slice::from_ref(&bound), &mut alone.worker.intake)
            {
                return error.to_string();
            }
        }
        String::new()
    };
    let (one, name) = (line(1).len() as u64, file.path().display());
    assert_eq!(replay(bound(Some(0), one, 1 - 40)), "");
    let error = replay(bound(Some(0), 1000, 1 - 40));
    assert!(error.starts_with(&format!("the state names records that are not there ({name}, offset 1000)")), "{error}");
    let error = replay(bound(Some(0), one, 7));
    assert!(error.starts_with("the file is not what the journal was written from"), "{error}");
}

#[test]
fn reading_goes_on_behind_what_a_snapshot_holds() {
    let file = file_of(&(line(90) + &line(10) + &line(20) + "x\n"));
    let mut alone = SingleWorker::new(file.path(), &until_end());
    let at = line(90).len() as u64;
    alone.resume(&bound(None, at, 50)).unwrap();
    assert_eq!(alone.ids(1), [10, 20, 0]);
    let outcomes: Vec<_> = alone.run.epochs[&4].iter().map(|outcome| (outcome.mark.millis(), outcome.line)).collect();
    assert_eq!(outcomes, [(50, 0), (50, 0), (50, 4)]);
}

/// Returns a file of two lines that one worker has read to the end, and the progress that it committed.
fn ended() -> (tempfile::NamedTempFile, PartitionProgress) {
    let file = file_of(&(line(1) + &line(2)));
    let mut alone = SingleWorker::new(file.path(), &until_end());
    assert_eq!(alone.ids(1), [1, 2]);
    alone.worker.turn_to(Epoch(4));
    alone.worker.bind(&mut alone.run);
    let bound = PartitionProgress { start_offset: None, ..alone.run.bounds[&2].clone() };
    assert!(bound.ended && bound.check.is_some());
    (file, bound)
}

#[test]
fn a_state_that_has_ended_ends_at_once() {
    let (mut file, bound) = ended();
    file.write_all(line(3).as_bytes()).unwrap();
    let mut alone = SingleWorker::new(file.path(), &until_end());
    alone.resume(&bound).unwrap();
    assert!(alone.worker.reader.exhausted(&alone.worker.intake));
    assert!(!alone.worker.poll(10, &mut alone.run));
    alone.worker.turn_to(Epoch(6));
    alone.worker.bind(&mut alone.run);
    assert!(alone.worker.ended && alone.run.bounds.is_empty() && alone.run.epochs.values().all(Vec::is_empty));
}

#[test]
fn a_file_that_was_changed_under_a_state_is_refused() {
    let (file, bound) = ended();
    let place = WorkerContext {
        worker: 0,
        workers: 1,
        threads: 1,
        job: String::new(),
        options: until_end(),
        known_partitions: Arc::default(),
    };
    let refusals = |bound: &PartitionProgress| {
        let resumed = SingleWorker::new(file.path(), &until_end()).resume(bound).map_err(|error| error.to_string());
        let mut alone = SingleWorker::new(file.path(), &until_end());
        let journalled = PartitionProgress { start_offset: Some(0), ..bound.clone() };
        let repeated = alone.worker.reader.replay(Epoch(2), &[journalled], &mut alone.worker.intake);
        let grown = input::<Ndjson>(file.path(), 100).has_new_data(&place, std::slice::from_ref(bound));
        [resumed, repeated.map(drop).map_err(|e| e.to_string()), grown.map(drop).map_err(|e| e.to_string())]
    };
    assert_eq!(refusals(&bound), [Ok(()), Ok(()), Ok(())]);
    let name = file.path().display();
    for (text, why) in [
        (line(1) + &line(7), format!("the file was changed since the state was written ({name}, before offset ")),
        (line(7) + &line(2) + &line(3), format!("the file was changed since the state was written ({name}, ")),
        (line(1), format!("the state names records that are not there ({name}, offset {}): ", bound.next_offset)),
        (String::new(), format!("the state names records that are not there ({name}, ")),
    ] {
        std::fs::write(file.path(), &text).unwrap();
        for refusal in refusals(&bound) {
            let error = refusal.unwrap_err();
            assert!(error.starts_with(&why) && error.contains("restore the file"), "{error}");
        }
    }
    // Records that the state was still to read are missed as well.
    std::fs::write(file.path(), line(1)).unwrap();
    let half = PartitionProgress { next_offset: line(1).len() as u64, check: None, ended: false, ..bound };
    let error = SingleWorker::new(file.path(), &until_end()).resume(&half).unwrap_err().to_string();
    assert!(error.contains("records that are not there"), "{error}");
}

#[test]
fn whether_a_file_has_grown_since_its_state_ended_is_told() {
    let (mut file, bound) = ended();
    let place = WorkerContext {
        worker: 0,
        workers: 1,
        threads: 1,
        job: String::new(),
        options: until_end(),
        known_partitions: Arc::default(),
    };
    let grown = |bounds: &[PartitionProgress]| input::<Ndjson>(file.path(), 100).has_new_data(&place, bounds).unwrap();
    assert_eq!(grown(std::slice::from_ref(&bound)), None);
    assert_eq!(grown(&[]).unwrap(), "it was never read");
    file.write_all(b"{}\n").unwrap();
    let grown = input::<Ndjson>(file.path(), 100).has_new_data(&place, std::slice::from_ref(&bound)).unwrap();
    assert_eq!(grown.unwrap(), format!("it has 3 bytes more, from offset {} on", bound.next_offset));
    std::fs::remove_file(file.path()).unwrap();
    assert!(input::<Ndjson>(file.path(), 100).has_new_data(&place, &[bound]).is_err());
}

#[test]
fn a_followed_file_is_followed_again_and_may_then_be_read_to_its_end() {
    let file = file_of(&(line(90) + &line(10)));
    let mut alone = SingleWorker::new(file.path(), &Options::default());
    assert_eq!(alone.ids(1), [90, 10]);
    alone.worker.turn_to(Epoch(4));
    alone.worker.bind(&mut alone.run);
    let bound = PartitionProgress { start_offset: None, ..alone.run.bounds[&2].clone() };
    assert_eq!((bound.end_offset, bound.ended), (None, false));
    for (options, more) in [(Options::default(), vec![20, 0]), (until_end(), vec![20])] {
        file.as_file().set_len(bound.next_offset).unwrap();
        std::fs::OpenOptions::new().append(true).open(file.path()).unwrap().write_all(line(20).as_bytes()).unwrap();
        let mut again = SingleWorker::new(file.path(), &options);
        again.resume(&bound).unwrap();
        std::fs::OpenOptions::new().append(true).open(file.path()).unwrap().write_all(b"x\n").unwrap();
        assert_eq!(again.next_ids(more.len()), more, "{}", options.until_end);
        assert_eq!(again.ids(25), [0; 0]);
        again.worker.turn_to(Epoch(6));
        again.worker.bind(&mut again.run);
        assert_eq!(again.worker.ended, options.until_end);
        let outcomes = &again.run.epochs[&4];
        assert!(outcomes.iter().all(|outcome| outcome.mark.millis() == 50), "the watermark of before goes on");
        assert_eq!(outcomes.last().unwrap().line, if options.until_end { 0 } else { 4 });
    }
}

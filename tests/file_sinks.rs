//! Files as sinks with a state: an epoch is published whole, once, or not at all, whatever crashes, continues after a
//! suspension or is damaged.
//!
//! An incarnation is crashed at each of its operations on the disk; a seed decides whether what was not synced is lost,
//! kept or torn. The next incarnation resumes from what it finds published. In the end the file is the same as without
//! a crash.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tidegate::durable::disk::{Disk, DiskFile, Lock};
use tidegate::durable::journal::JournalEnds;
use tidegate::durable::{Incarnation, StateId};
use tidegate::error::{Error, Result};
use tidegate::sink::{Sink, SinkContext, SinkRows, SinkWriter};
use tidegate::testing::CrashingDisk;
use tidegate::time::Epoch;
use tidegate::{csv, ndjson};

const FILE: &str = "totals.csv";
const STATE: StateId = StateId(0xfeed);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Total {
    account: String,
    sum: u64,
}

/// Returns the rows of an epoch: some epochs have none, one has many.
fn rows_of(epoch: u64) -> Vec<(Total, isize)> {
    let count = [0, 1, 3, 40][(epoch / 2 % 4) as usize];
    (0..count).map(|n| (Total { account: format!("a{n:02}"), sum: epoch }, 1 + (n % 2) as isize)).collect()
}

const LAST: u64 = 20;

/// Returns the expected contents of the file after an epoch.
fn file_after(last: u64) -> String {
    let mut expected = String::from("account,sum\n");
    for (row, times) in (2..=last).step_by(2).flat_map(rows_of) {
        expected.push_str(&format!("{},{}\n", row.account, row.sum).repeat(times as usize));
    }
    expected
}

/// A state directory as far as sinks know it: the number of the current incarnation.
#[derive(Clone, Default)]
struct CurrentIncarnation(Arc<AtomicU64>);

impl CurrentIncarnation {
    fn claim(&self) -> Incarnation {
        let (incarnation, lives) = (self.0.fetch_add(1, Ordering::SeqCst) + 1, self.clone());
        let still_current = Arc::new(move || match lives.0.load(Ordering::SeqCst) {
            current if current == incarnation => Ok(()),
            current => Err(Error::new(format!("life {incarnation} is over: life {current} has begun"))),
        });
        Incarnation { state: Some(STATE), incarnation, resumed_from: None, still_current }
    }
}

fn shard(disk: &CrashingDisk) -> SinkContext {
    SinkContext { state: Some(STATE), disk: disk.shared(), ..SinkContext::new("job", "totals", SinkRows::Events) }
}

fn open(disk: &CrashingDisk) -> Result<Box<dyn SinkWriter<Total>>> {
    csv::Sink::new(FILE).open(&shard(disk))
}

fn take_over(disk: &CrashingDisk) -> Result<Box<dyn SinkWriter<Total>>> {
    csv::Sink::new(FILE).open(&SinkContext { take_over: true, ..shard(disk) })
}

fn begun(disk: &CrashingDisk, lives: &CurrentIncarnation) -> (Box<dyn SinkWriter<Total>>, Option<Epoch>) {
    let mut writer = open(disk).unwrap();
    let shown = writer.published().unwrap().map(|found| found.epoch);
    writer.begin(&lives.claim()).unwrap();
    (writer, shown)
}

/// Runs one incarnation: it resumes after what was published, writes the other epochs, and publishes `together` of them
/// at once. `surely` is the last epoch known to be published.
fn run_incarnation_of_sink(
    disk: &CrashingDisk,
    lives: &CurrentIncarnation,
    together: u64,
    published_at_least: &mut Option<Epoch>,
) -> Result<()> {
    let mut writer = open(disk)?;
    let shown = writer.published()?.map(|found| found.epoch);
    assert!(shown >= *published_at_least, "{shown:?} is less than {published_at_least:?}, which was shown");
    *published_at_least = shown;
    writer.begin(&lives.claim())?;
    for epoch in (2..=LAST).step_by(2).filter(|epoch| Some(Epoch(*epoch)) > shown) {
        writer.write(Epoch(epoch), &rows_of(epoch))?;
        if epoch / 2 % together == 0 || epoch == LAST {
            writer.publish(&JournalEnds::default())?;
            *published_at_least = Some(Epoch(epoch));
        }
    }
    writer.finish()
}

fn text(disk: &CrashingDisk, path: &str) -> String {
    String::from_utf8(disk.bytes(Path::new(path)).unwrap()).unwrap()
}

#[test]
fn without_a_state_what_is_shown_outlives_a_loss_of_power_where_that_is_asked_for() {
    let mut lost = 0;
    for (seed, sync_on_publish) in (0..20).flat_map(|seed| [(seed, true), (seed, false)]) {
        let disk = CrashingDisk::new();
        let shard = SinkContext { state: None, sync_on_publish, ..shard(&disk) };
        let mut writer = csv::Sink::new(FILE).open(&shard).unwrap();
        writer.begin(&Incarnation::without_state()).unwrap();
        for epoch in (2..=LAST).step_by(2) {
            writer.write(Epoch(epoch), &rows_of(epoch)).unwrap();
            writer.publish(&JournalEnds::default()).unwrap();
        }
        writer.write(Epoch(LAST + 2), &rows_of(LAST + 2)).unwrap();
        let left = disk.survivors(seed).bytes(Path::new(FILE)).unwrap_or_default();
        let kept = left.starts_with(file_after(LAST).as_bytes());
        assert!(kept || !sync_on_publish, "seed {seed}: what is left is {}", String::from_utf8_lossy(&left));
        lost += usize::from(!kept);
    }
    assert!(lost > 0, "a disk that loses nothing tells nothing");
}

/// Returns the path of the only commit file.
fn commit_file(disk: &CrashingDisk) -> String {
    let paths = disk.paths();
    let mut commits = paths.iter().map(|path| path.to_str().unwrap()).filter(|path| path.contains(".commit-"));
    let path = commits.next().unwrap().to_owned();
    assert_eq!(commits.next(), None);
    path
}

fn refused<T>(result: Result<T>) -> String {
    result.err().expect("refused").to_string()
}

#[test]
fn whenever_it_crashes_each_epoch_is_there_once_in_the_end() {
    for together in [1, 3] {
        let disk = CrashingDisk::new();
        run_incarnation_of_sink(&disk, &CurrentIncarnation::default(), together, &mut None).unwrap();
        assert_eq!(text(&disk, FILE), file_after(LAST));
        for act in 0..disk.operations() {
            for seed in 0..30 {
                check_crash(act, seed, together);
            }
        }
    }
}

/// Crashes at an operation, then twice more at operations chosen by the seed, and then runs to the end.
fn check_crash(act: usize, seed: u64, together: u64) {
    let (lives, mut published_at_least, mut disk) = (CurrentIncarnation::default(), None, CrashingDisk::new());
    for crash in [act, (act * 7 + seed as usize * 5) % 40, seed as usize] {
        disk.crash_at(crash);
        let ended = run_incarnation_of_sink(&disk, &lives, together, &mut published_at_least);
        if disk.has_crashed() {
            let why = refused(ended);
            assert!(why.contains("the disk has crashed"), "act {act}, seed {seed}: {why}");
        } else {
            ended.unwrap();
        }
        disk = disk.survivors(seed);
    }
    let ended = run_incarnation_of_sink(&disk, &lives, together, &mut published_at_least);
    assert!(ended.is_ok(), "act {act}, seed {seed}: {}", refused(ended));
    assert_eq!(text(&disk, FILE), file_after(LAST), "act {act}, seed {seed}");
    assert_eq!(disk.paths().len(), 2, "act {act}, seed {seed}: {disk:?}");
}

/// A reader that follows the newest commit file sees whole epochs at any time.
#[test]
fn up_to_where_the_commit_says_the_file_has_whole_epochs() {
    let disk = CrashingDisk::new();
    run_incarnation_of_sink(&disk, &CurrentIncarnation::default(), 2, &mut None).unwrap();
    for (act, seed) in (0..disk.operations()).flat_map(|act| (0..8).map(move |seed| (act, seed))) {
        let disk = CrashingDisk::new();
        disk.crash_at(act);
        run_incarnation_of_sink(&disk, &CurrentIncarnation::default(), 2, &mut None).unwrap_err();
        let disk = disk.survivors(seed);
        let paths = disk.paths();
        let commits = paths.iter().filter_map(|path| path.to_str()).filter(|path| path.ends_with(".commit-1"));
        for commit in commits {
            let commit: serde_json::Value = serde_json::from_str(&text(&disk, commit)).unwrap();
            let length = commit["length"].as_u64().unwrap() as usize;
            let bytes = disk.bytes(Path::new(FILE)).unwrap();
            let whole = match commit["epoch"].as_u64() {
                Some(epoch) => file_after(epoch),
                None if length == 0 => String::new(),
                None => file_after(0),
            };
            assert_eq!(String::from_utf8_lossy(&bytes[..length]), whole, "act {act}, seed {seed}");
        }
    }
}

#[test]
fn an_act_that_fails_shows_nothing_and_the_next_life_goes_on() {
    let disk = CrashingDisk::new();
    run_incarnation_of_sink(&disk, &CurrentIncarnation::default(), 1, &mut None).unwrap();
    for act in 0..disk.operations() {
        let (disk, lives, mut published_at_least) = (CrashingDisk::new(), CurrentIncarnation::default(), None);
        disk.fail_at(act);
        let why = refused(run_incarnation_of_sink(&disk, &lives, 1, &mut published_at_least));
        assert!(why.contains("the disk failed at this act") && why.contains(FILE), "{act}: {why}");
        run_incarnation_of_sink(&disk, &lives, 1, &mut published_at_least).unwrap();
        assert_eq!(text(&disk, FILE), file_after(LAST), "{act}");
    }
}

#[test]
fn epochs_without_rows_are_shown_too() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    let (mut writer, shown) = begun(&disk, &lives);
    assert_eq!(shown, None);
    writer.write(Epoch(8), &[]).unwrap();
    writer.publish(&JournalEnds::default()).unwrap();
    let acts = disk.operations();
    writer.publish(&JournalEnds::default()).unwrap();
    assert_eq!(disk.operations(), acts, "nothing was to be shown");
    drop(writer);
    assert_eq!(begun(&disk, &lives).1, Some(Epoch(8)));
    assert_eq!(text(&disk, FILE), "account,sum\n");
}

#[test]
fn what_was_written_and_not_shown_is_dropped_by_the_next_life_only() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    let (mut writer, _) = begun(&disk, &lives);
    writer.write(Epoch(2), &rows_of(2)).unwrap();
    writer.publish(&JournalEnds::default()).unwrap();
    writer.write(Epoch(4), &rows_of(4)).unwrap();
    drop(writer);
    let mut writer = open(&disk).unwrap();
    assert_eq!(writer.published().unwrap().map(|found| found.epoch), Some(Epoch(2)));
    assert_eq!(text(&disk, FILE), file_after(4), "opening changes nothing");
    writer.begin(&lives.claim()).unwrap();
    assert_eq!(text(&disk, FILE), file_after(2));
    assert_eq!(commit_file(&disk), "totals.csv.commit-2");
}

#[test]
fn on_a_full_disk_an_epoch_is_not_there_at_all_and_goes_on_when_there_is_room() {
    let room_for = |last: u64| file_after(last).len() as u64;
    for spare in 0..room_for(6) - room_for(4) {
        let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
        let (mut writer, _) = begun(&disk, &lives);
        for epoch in [2, 4] {
            writer.write(Epoch(epoch), &rows_of(epoch)).unwrap();
        }
        writer.publish(&JournalEnds::default()).unwrap();
        disk.set_room(Some(spare));
        let why = refused(writer.write(Epoch(6), &rows_of(6)));
        assert_eq!(why, "cannot write the results (totals.csv): the disk is full");
        assert_eq!(text(&disk, FILE), file_after(4));
        disk.set_room(None);
        writer.write(Epoch(6), &rows_of(6)).unwrap();
        writer.publish(&JournalEnds::default()).unwrap();
        assert_eq!(text(&disk, FILE), file_after(6));
    }
    // The commit needs disk space too.
    let (disk, lives, mut published_at_least) = (CrashingDisk::new(), CurrentIncarnation::default(), None);
    let (mut writer, _) = begun(&disk, &lives);
    writer.write(Epoch(2), &rows_of(2)).unwrap();
    disk.set_room(Some(10));
    let why = refused(writer.publish(&JournalEnds::default()));
    assert_eq!(why, "cannot write the commit file of the results (totals.csv): the disk is full");
    assert!(refused(writer.publish(&JournalEnds::default())).contains("showing earlier ones failed"));
    drop(writer);
    disk.set_room(None);
    run_incarnation_of_sink(&disk, &lives, 1, &mut published_at_least).unwrap();
    assert_eq!(text(&disk, FILE), file_after(LAST));
    assert_eq!(disk.paths().len(), 2, "{disk:?}");
}

#[test]
fn nothing_is_written_behind_a_part_of_an_epoch() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    let (mut writer, _) = begun(&disk, &lives);
    disk.set_room(Some(5));
    disk.fail_at(disk.operations() + 1);
    let why = refused(writer.write(Epoch(2), &rows_of(2)));
    assert!(why.contains("cut the file back to 12 bytes"), "{why}");
    disk.set_room(None);
    let why = refused(writer.write(Epoch(4), &rows_of(4)));
    assert!(why.contains("a part of an earlier epoch is in the way"), "{why}");
}

#[test]
fn with_a_state_a_file_that_is_not_its_own_is_refused_and_left_alone() {
    let ours = || {
        let disk = CrashingDisk::new();
        run_incarnation_of_sink(&disk, &CurrentIncarnation::default(), 1, &mut None).unwrap();
        disk
    };
    let check = |disk: CrashingDisk, shard: SinkContext, expected: &str| {
        let before = disk.bytes(Path::new(FILE));
        let opened = csv::Sink::new(FILE).open(&shard);
        let why = refused(opened.and_then(|mut writer: Box<dyn SinkWriter<Total>>| writer.published()));
        assert_eq!(why, expected);
        assert_eq!(disk.bytes(Path::new(FILE)), before);
    };
    let disk = CrashingDisk::new();
    disk.put(Path::new(FILE), b"precious");
    check(
        disk.clone(),
        shard(&disk),
        "cannot go on with the results file (totals.csv): it is there already, and was not written with this state; \
         move it away, or name another file: with a state, no file is replaced",
    );
    let disk = ours();
    check(
        disk.clone(),
        SinkContext { state: Some(StateId(7)), ..shard(&disk) },
        "cannot go on with the results file (totals.csv): it belongs to the state 000000000000feed, and this is the \
         state 0000000000000007; name another file, or move it and totals.csv.commit-1 away",
    );
    check(
        disk.clone(),
        SinkContext { name: "late".into(), ..shard(&disk) },
        "cannot go on with the results file (totals.csv): `totals` wrote it, and this is `late`; say \
         `flow.output_was(\"late\", \"totals\")` if it is the same output; otherwise name another file, or move it and \
         totals.csv.commit-1 away",
    );
    let length = file_after(LAST).len();
    disk.open(Path::new(FILE)).unwrap().truncate(length as u64 - 1).unwrap();
    check(
        disk.clone(),
        shard(&disk),
        &format!(
            "cannot go on with the results file (totals.csv): it has {} bytes, and {length} were published, as \
             totals.csv.commit-1 says; restore it, or move it and totals.csv.commit-1 away and begin anew, with a \
             new state directory",
            length - 1
        ),
    );
    disk.remove(Path::new(FILE)).unwrap();
    check(
        disk.clone(),
        shard(&disk),
        "cannot go on with the results file (totals.csv): it is missing, and its commit file totals.csv.commit-1 is \
         there; put it back, or remove totals.csv.commit-1 too and begin anew, with a new state directory",
    );
}

#[test]
fn whatever_byte_of_the_results_or_their_commit_is_damaged_it_is_refused() {
    let disk = CrashingDisk::new();
    run_incarnation_of_sink(&disk, &CurrentIncarnation::default(), 1, &mut None).unwrap();
    let commit = commit_file(&disk);
    for path in [FILE, commit.as_str()] {
        let bytes = disk.bytes(Path::new(path)).unwrap();
        for at in 0..bytes.len() {
            let disk = disk.after_kill();
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            disk.put(Path::new(path), &damaged);
            let why = refused(open(&disk).and_then(|mut writer| writer.published()));
            assert!(why.contains(path), "byte {at} of {path}: {why}");
        }
    }
}

/// A disk that counts the bytes that are read from its files.
#[derive(Clone, Debug)]
struct CountingDisk {
    disk: Arc<dyn Disk>,
    read: Arc<AtomicU64>,
}

impl CountingDisk {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(CountingFile { file, read: Arc::clone(&self.read) })
    }
}

impl Disk for CountingDisk {
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        self.disk.create_directory(directory)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.file(self.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.disk.sync_directory(directory)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.disk.lock(path)
    }
}

#[derive(Debug)]
struct CountingFile {
    file: Box<dyn DiskFile>,
    read: Arc<AtomicU64>,
}

impl DiskFile for CountingFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.read_at(position, bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.append(bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

const MIB: u64 = 1 << 20;

/// Opens a file of large rows on a disk; returns the writer, and what was published.
fn open_large(
    disk: &Arc<dyn Disk>,
    lives: &CurrentIncarnation,
) -> Result<(Box<dyn SinkWriter<String>>, Option<Epoch>)> {
    let context = SinkContext {
        state: Some(STATE),
        disk: Arc::clone(disk),
        ..SinkContext::new("job", "totals", SinkRows::Events)
    };
    let mut writer: Box<dyn SinkWriter<String>> = ndjson::Sink::new("large.ndjson").open(&context)?;
    let shown = writer.published()?.map(|found| found.epoch);
    writer.begin(&lives.claim())?;
    Ok((writer, shown))
}

/// Writes and publishes a mebibyte and a little more in each of some epochs.
fn write_large(writer: &mut Box<dyn SinkWriter<String>>, epochs: std::ops::Range<u64>) {
    for epoch in epochs {
        let row = char::from(b'a' + (epoch % 26) as u8).to_string().repeat(MIB as usize);
        writer.write(Epoch(epoch * 2), &[(row, 1)]).unwrap();
        writer.publish(&JournalEnds::default()).unwrap();
    }
}

/// A start reads what is after the prefix that the commit records, also when the incarnations before were killed, and also
/// if each of them wrote little.
#[test]
fn a_start_reads_no_more_of_large_results_than_of_small_ones() {
    let (inside, read, lives) = (CrashingDisk::new(), Arc::new(AtomicU64::new(0)), CurrentIncarnation::default());
    let disk: Arc<dyn Disk> = Arc::new(CountingDisk { disk: inside.shared(), read: Arc::clone(&read) });
    let (mut next, mut most) = (1, 0);
    for more in [3, 20, 1, 1, 30, 2, 9, 8, 0] {
        read.store(0, Ordering::Relaxed);
        let (mut writer, shown) = open_large(&disk, &lives).unwrap();
        assert_eq!(shown, (next > 1).then(|| Epoch((next - 1) * 2)));
        most = most.max(read.load(Ordering::Relaxed));
        write_large(&mut writer, next..next + more);
        next += more;
        // What is written and not published is dropped by the next start.
        writer.write(Epoch(next * 2), &[(String::from("more"), 1)]).unwrap();
    }
    let length = inside.bytes(Path::new("large.ndjson")).unwrap().len() as u64;
    assert!(length > 70 * MIB && (8 * MIB..17 * MIB).contains(&most), "{most} bytes of {length} were read by a start");
}

#[test]
fn damage_of_the_end_of_large_results_is_refused_by_a_start() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    write_large(&mut open_large(&disk.shared(), &lives).unwrap().0, 1..29);
    let whole = disk.bytes(Path::new("large.ndjson")).unwrap();
    for (before_end, is_refused) in [(1, true), (4 * MIB, true), (8 * MIB, true), (whole.len() as u64 - 40, false)] {
        let (damaged, mut bytes) = (disk.after_kill(), whole.clone());
        let at = whole.len() - before_end as usize;
        bytes[at] ^= 1;
        damaged.put(Path::new("large.ndjson"), &bytes);
        let opened = open_large(&damaged.shared(), &CurrentIncarnation(Arc::new(AtomicU64::new(7))));
        match opened.map(drop) {
            Err(why) if is_refused => assert!(why.to_string().contains("has been changed since"), "{why}"),
            opened => assert!(opened.is_ok() && !is_refused, "{before_end} bytes before the end: {opened:?}"),
        }
    }
}

/// A commit of an earlier version records no prefix: all is read once, and from then on no more than after a prefix.
#[test]
fn results_of_an_earlier_version_are_read_whole_once() {
    let (inside, read, lives) = (CrashingDisk::new(), Arc::new(AtomicU64::new(0)), CurrentIncarnation::default());
    let disk: Arc<dyn Disk> = Arc::new(CountingDisk { disk: inside.shared(), read: Arc::clone(&read) });
    write_large(&mut open_large(&disk, &lives).unwrap().0, 1..29);
    let line = text(&inside, "large.ndjson.commit-1");
    let (body, _) = line.rsplit_once(",\"check\":").unwrap();
    let (before, after) = body.split_once(",\"prefix\":[").unwrap();
    let body = format!("{before}{}", after.split_once(']').unwrap().1).replace("\"format\":3", "\"format\":2");
    let earlier = format!("{body},\"check\":\"{:08x}\"}}\n", crc32fast::hash(body.as_bytes()));
    inside.put(Path::new("large.ndjson.commit-1"), earlier.as_bytes());
    let mut reads = Vec::new();
    for _ in 0..2 {
        read.store(0, Ordering::Relaxed);
        assert_eq!(open_large(&disk, &lives).unwrap().1, Some(Epoch(56)));
        reads.push(read.load(Ordering::Relaxed) / MIB);
    }
    assert!(reads[0] >= 28 && reads[1] < 17, "{reads:?} MiB were read");
}

#[test]
fn rows_of_other_columns_are_not_appended_to_a_file() {
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    struct Wider {
        account: String,
        sum: u64,
        count: u64,
    }
    let disk = CrashingDisk::new();
    run_incarnation_of_sink(&disk, &CurrentIncarnation::default(), 1, &mut None).unwrap();
    let mut writer: Box<dyn SinkWriter<Wider>> = csv::Sink::new(FILE).open(&shard(&disk)).unwrap();
    let why = refused(writer.published());
    assert!(why.contains("its columns are not those of the rows"), "{why}");
}

/// Results may be larger than the memory that may be used for them.
#[test]
fn a_file_of_several_pieces_is_checked_and_copied() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    let sink = ndjson::Sink::new("large.ndjson");
    let mut first: Box<dyn SinkWriter<String>> = sink.open(&shard(&disk)).unwrap();
    first.begin(&lives.claim()).unwrap();
    let rows: Vec<_> = (0..3).map(|n| (format!("{n}").repeat(1_000_001), 1)).collect();
    first.write(Epoch(2), &rows).unwrap();
    first.publish(&JournalEnds::default()).unwrap();
    let before = disk.bytes(Path::new("large.ndjson")).unwrap();
    let mut second: Box<dyn SinkWriter<String>> = sink.open(&SinkContext { take_over: true, ..shard(&disk) }).unwrap();
    assert_eq!(second.published().unwrap().map(|found| found.epoch), Some(Epoch(2)));
    second.begin(&lives.claim()).unwrap();
    assert!(disk.bytes(Path::new("large.ndjson")).unwrap() == before);
    let damaged = disk.after_kill();
    let mut bytes = before;
    *bytes.last_mut().unwrap() ^= 1;
    damaged.put(Path::new("large.ndjson"), &bytes);
    let mut third: Box<dyn SinkWriter<String>> = sink.open(&shard(&damaged)).unwrap();
    assert!(refused(third.published()).contains("has been changed since"));
}

#[test]
fn a_file_that_is_written_is_refused_and_its_writer_named() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    let (_writer, _) = begun(&disk, &lives);
    let expected = format!(
        "cannot open the results file (totals.csv): it is being written by another job or output, lately by process \
         {}; end that process, or name another file",
        std::process::id()
    );
    assert_eq!(refused(open(&disk)), expected);
}

#[test]
fn a_holder_that_wakes_shows_nothing_and_disturbs_nothing() {
    // Progress of the lock's holder with an epoch when it is stopped: written, or not.
    for written in [true, false] {
        let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
        let (mut zombie, _) = begun(&disk, &lives);
        zombie.write(Epoch(2), &rows_of(2)).unwrap();
        zombie.publish(&JournalEnds::default()).unwrap();
        if written {
            zombie.write(Epoch(4), &rows_of(4)).unwrap();
        }
        let mut heir = take_over(&disk).unwrap();
        assert_eq!(heir.published().unwrap().map(|found| found.epoch), Some(Epoch(2)));
        heir.begin(&lives.claim()).unwrap();
        heir.write(Epoch(4), &rows_of(4)).unwrap();
        heir.publish(&JournalEnds::default()).unwrap();
        let ends = JournalEnds::default();
        let shown = if written { zombie.publish(&ends) } else { zombie.write(Epoch(4), &rows_of(6)) };
        assert_eq!(refused(shown), "life 1 is over: life 2 has begun");
        heir.write(Epoch(6), &rows_of(6)).unwrap();
        heir.publish(&JournalEnds::default()).unwrap();
        drop((zombie, heir));
        assert_eq!(text(&disk, FILE), file_after(6));
        assert_eq!(begun(&disk, &lives).1, Some(Epoch(6)));
        assert_eq!(disk.paths().len(), 2, "{disk:?}");
    }
}

/// Everybody gets the lock here, so both incarnations have the same file open.
#[test]
fn an_earlier_life_asks_before_it_appends_to_a_file_that_is_a_later_ones() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    disk.free_locks();
    let (mut earlier, _) = begun(&disk, &lives);
    earlier.write(Epoch(2), &rows_of(2)).unwrap();
    earlier.publish(&JournalEnds::default()).unwrap();
    let (mut later, shown) = begun(&disk, &lives);
    assert_eq!(shown, Some(Epoch(2)));
    later.write(Epoch(4), &rows_of(4)).unwrap();
    later.publish(&JournalEnds::default()).unwrap();
    assert_eq!(refused(earlier.write(Epoch(4), &rows_of(6))), "life 1 is over: life 2 has begun");
    earlier.publish(&JournalEnds::default()).unwrap();
    earlier.finish().unwrap();
    assert_eq!(text(&disk, FILE), file_after(4));
    drop((earlier, later));
    assert_eq!(begun(&disk, &lives).1, Some(Epoch(4)));
}

/// The process of an earlier incarnation is stopped after it has checked that its incarnation is current and before it
/// renames the commit file: the worst moment. `stopped` is run at that moment.
fn stopped_at_the_worst_moment(disk: &CrashingDisk, stopped: impl Fn() + Send + Sync + 'static) -> Result<()> {
    let mut zombie = open(disk).unwrap();
    zombie.published().unwrap();
    let asked = AtomicU64::new(0);
    let life = Incarnation {
        state: Some(STATE),
        incarnation: 1,
        resumed_from: None,
        // Two commits are made when a file is begun; then there is a check before each epoch is written, and before it
        // is published.
        still_current: Arc::new(move || {
            if asked.fetch_add(1, Ordering::SeqCst) == 5 {
                stopped();
            }
            Ok(())
        }),
    };
    zombie.begin(&life).unwrap();
    for epoch in [2, 4] {
        zombie.write(Epoch(epoch), &rows_of(epoch)).unwrap();
        zombie.publish(&JournalEnds::default())?;
    }
    Ok(())
}

#[test]
fn a_commit_that_was_about_to_be_swapped_in_comes_to_nothing_when_a_later_life_has_begun() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    lives.claim();
    let (its, seen) = (lives.clone(), disk.clone());
    let why = refused(stopped_at_the_worst_moment(&disk, move || {
        let mut heir = take_over(&seen).unwrap();
        assert_eq!(heir.published().unwrap().map(|found| found.epoch), Some(Epoch(2)));
        heir.begin(&its.claim()).unwrap();
        heir.write(Epoch(4), &rows_of(4)).unwrap();
        heir.publish(&JournalEnds::default()).unwrap();
    }));
    assert!(why.contains("cannot write the commit file of the results (totals.csv)"), "{why}");
    assert_eq!(text(&disk, FILE), file_after(4));
    assert_eq!(begun(&disk, &lives).1, Some(Epoch(4)));
}

#[test]
fn a_later_life_that_was_told_of_less_than_was_shown_does_not_begin() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    lives.claim();
    let heirs = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (its, seen) = (Arc::clone(&heirs), disk.clone());
    stopped_at_the_worst_moment(&disk, move || {
        let mut heir = take_over(&seen).unwrap();
        assert_eq!(heir.published().unwrap().map(|found| found.epoch), Some(Epoch(2)));
        its.lock().unwrap().push(heir);
    })
    .unwrap();
    let mut heir = heirs.lock().unwrap().pop().unwrap();
    let why = refused(heir.begin(&lives.claim()));
    assert!(why.contains("another process wrote to it meanwhile; start again"), "{why}");
    let mut heir = take_over(&disk).unwrap();
    assert_eq!(heir.published().unwrap().map(|found| found.epoch), Some(Epoch(4)));
    heir.begin(&lives.claim()).unwrap();
    assert_eq!(text(&disk, FILE), file_after(4));
}

#[test]
fn taking_over_may_crash_at_any_act() {
    let before = || {
        let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
        let (mut zombie, _) = begun(&disk, &lives);
        zombie.write(Epoch(2), &rows_of(2)).unwrap();
        zombie.publish(&JournalEnds::default()).unwrap();
        zombie.write(Epoch(4), &rows_of(4)).unwrap();
        (disk, lives, zombie)
    };
    let heir = |disk: &CrashingDisk, lives: &CurrentIncarnation| {
        let mut heir = take_over(disk)?;
        assert_eq!(heir.published()?.map(|found| found.epoch), Some(Epoch(2)));
        heir.begin(&lives.claim())
    };
    let (disk, lives, zombie) = before();
    let first = disk.operations();
    heir(&disk, &lives).unwrap();
    drop(zombie);
    for (act, seed) in (first..disk.operations()).flat_map(|act| (0..12).map(move |seed| (act, seed))) {
        let (disk, lives, _zombie) = before();
        disk.crash_at(act);
        refused(heir(&disk, &lives));
        let disk = disk.survivors(seed);
        run_incarnation_of_sink(&disk, &lives, 1, &mut Some(Epoch(2))).unwrap();
        assert_eq!(text(&disk, FILE), file_after(LAST), "{}, seed {seed}", disk.log()[act]);
        assert_eq!(disk.paths().len(), 2, "act {act}, seed {seed}: {disk:?}");
    }
}

#[test]
fn a_copy_of_a_state_does_not_go_on_where_the_other_one_did() {
    let (disk, lives) = (CrashingDisk::new(), CurrentIncarnation::default());
    drop(begun(&disk, &lives));
    let copied = CurrentIncarnation(Arc::new(AtomicU64::new(lives.0.load(Ordering::SeqCst))));
    drop(begun(&disk, &lives));
    let mut writer = open(&disk).unwrap();
    writer.published().unwrap();
    let why = refused(writer.begin(&copied.claim()));
    assert!(why.contains("incarnation 2 of the state wrote it, and this is only incarnation 2"), "{why}");
}

#[test]
fn a_job_without_state_replaces_the_file_and_the_state_knows_it_no_more() {
    let ours = || {
        let disk = CrashingDisk::new();
        run_incarnation_of_sink(&disk, &CurrentIncarnation::default(), 1, &mut None).unwrap();
        // A file that a stopped process left.
        disk.put(Path::new("totals.csv.commit-0"), b"old");
        disk
    };
    let without_state = |disk: &CrashingDisk| -> Result<()> {
        let mut writer = csv::Sink::new(FILE).open(&SinkContext { state: None, ..shard(disk) })?;
        assert_eq!(writer.published()?, None);
        writer.begin(&Incarnation::without_state())?;
        writer.write(Epoch(2), &rows_of(2))?;
        writer.publish(&JournalEnds::default())?;
        writer.finish()
    };
    let disk = ours();
    let first = disk.operations();
    without_state(&disk).unwrap();
    assert_eq!(text(&disk, FILE), file_after(2));
    assert_eq!(disk.paths(), [Path::new(FILE)]);
    for (act, seed) in (first..disk.operations()).flat_map(|act| (0..12).map(move |seed| (act, seed))) {
        let disk = ours();
        disk.crash_at(act);
        refused(without_state(&disk));
        let disk = disk.survivors(seed);
        // Until it is replaced it is the old file; after that, it is not the state's.
        let shown = open(&disk).and_then(|mut writer| writer.published());
        let whole = disk.bytes(Path::new(FILE)).unwrap() == file_after(LAST).as_bytes();
        match shown {
            Ok(Some(found)) => assert!(whole && found.epoch == Epoch(LAST), "act {act}, seed {seed}"),
            Ok(None) => assert_eq!(text(&disk, FILE), "", "act {act}, seed {seed}"),
            Err(why) => assert!(why.to_string().contains("was not written with this state"), "{why}"),
        }
    }
}

//! Memory stays bounded: in a burst that is faster than the sinks, in the silence after one, and over time.
//!
//! The measured process is this program, run again as a child for one of its jobs.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/broker.rs"]
mod broker;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use broker::Broker;
use nix::unistd::Pid;
use tidegate::durable::journal::JournalEnds;
use tidegate::durable::{Incarnation, PublishedEpoch};
use tidegate::sink::{Sink, SinkContext, SinkWriter};
use tidegate::source::generator::{Generator, GeneratorSource};
use tidegate::source::{Options, Source};
use tidegate::stream::Observer;
use tidegate::time::Epoch;
use tidegate::{Job, Record, Result, State, Transaction, Window, kafka};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MIB: u64 = 1 << 20;
/// Memory of a process besides its state and its input in flight, as stated in docs/operations.md.
const BASE: u64 = 96 * MIB;
/// Bytes of memory for each byte that may be in flight.
const FACTOR: u64 = 2;
/// Memory of a partition of a topic for records that were fetched and not yet read.
const OF_PARTITION: u64 = 40 * MIB;
/// Environment variable with the job that this program is to run as a child.
const CHILD: &str = "TIDEGATE_CHILD";

/// Returns a memory figure of a process in bytes (`VmHWM`, `VmRSS`); 0 when it has ended.
fn figure(process: Pid, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name));
    line.map_or(0, |line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024)
}

/// Returns the size of all files in a directory and below, in bytes.
fn size_of(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        metadata => metadata.map_or(0, |metadata| metadata.len()),
    });
    sizes.sum()
}

/// Runs this program as a child for one of its jobs, and calls `look` periodically; returns its peak memory in bytes.
fn measured(job: &str, mut look: impl FnMut(Pid)) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "child"]).env(CHILD, job).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let (process, mut most) = (Pid::from_raw(child.id() as i32), 0);
    loop {
        most = most.max(figure(process, "VmHWM"));
        look(process);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{job}: {status}");
            return most;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Not a test: the child that [`measured`] runs.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = job.split(' ').collect();
    match words[..] {
        ["burst", count, in_flight] => {
            let source = GeneratorSource::new(Generator::new(1), count.parse().unwrap()).partitions(4);
            burst(Job::new("burst").in_flight(in_flight.parse().unwrap()), source);
        }
        ["topic", servers, topic, in_flight] => {
            let source = kafka::Source::json(servers, topic).event_time(|t: &Transaction| t.at_ms);
            let options = Options::default().until_end(true);
            burst(Job::new("burst").options(options).in_flight(in_flight.parse().unwrap()), source);
        }
        ["soak", state, seconds] => soak(state, seconds.parse().unwrap()),
        _ => panic!("{job}"),
    }
}

/// A sink that takes nothing for [`HOLD`] and then some 200,000 rows per second, on a thread of its own, like a sink that
/// writes to a disk or a network. It is slower than any source, on any machine.
struct Slow {
    is_held: bool,
}

/// Time for which a slow sink takes nothing.
const HOLD: Duration = Duration::from_secs(6);

impl<D: Record> Sink<D> for Slow {
    fn describe(&self) -> String {
        String::from("a slow sink")
    }

    fn open(&self, _at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        Ok(Box::new(Slow { is_held: true }))
    }
}

impl<D: Record> SinkWriter<D> for Slow {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        Ok(None)
    }

    fn begin(&mut self, _life: &Incarnation) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, _epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        let hold = if std::mem::take(&mut self.is_held) { HOLD } else { Duration::ZERO };
        std::thread::sleep(hold + Duration::from_micros(rows.len() as u64 * 5));
        Ok(())
    }

    fn publish(&mut self, _ends: &JournalEnds) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_blocking(&self) -> bool {
        true
    }
}

/// Sends all records to a slow sink.
fn burst(job: Job, source: impl Source<Item = Transaction>) {
    job.run(move |flow| flow.read("transactions", &source).write("slow", &Slow { is_held: true })).unwrap();
}

/// Returns the number of records in a burst: 600,000, or the value of `BURST`.
fn records() -> u64 {
    std::env::var("BURST").map_or(600_000, |count| count.parse().unwrap())
}

#[test]
fn a_burst_into_a_slow_query_takes_no_more_memory_than_is_stated() {
    for in_flight in [4 * MIB, 16 * MIB] {
        let most = measured(&format!("burst {} {in_flight}", records()), |_| {});
        println!("{} MiB at most with {} in flight", most / MIB, in_flight / MIB);
        assert!(most <= BASE + FACTOR * in_flight, "{} MiB with {} in flight", most / MIB, in_flight / MIB);
    }
    // The limit is the cause: without it, memory is higher.
    let most = measured(&format!("burst {} {}", records(), u64::MAX / 2), |_| {});
    println!("{} MiB at most without a bound", most / MIB);
    assert!(most > BASE + FACTOR * 4 * MIB, "{} MiB without a bound: the burst is too small to tell", most / MIB);
}

#[test]
fn a_topic_that_is_behind_takes_no_more_memory_than_is_stated() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, count, in_flight) = (broker.topic(2), records() / 3, 4 * MIB);
    let rows = Generator::new(2).take(count as usize).map(|row| serde_json::to_string(&row).unwrap());
    for (partition, rows) in rows.collect::<Vec<_>>().chunks(count.div_ceil(2) as usize).enumerate() {
        broker.send(&topic, partition, rows.iter().cloned());
    }
    let most = measured(&format!("topic {} {topic} {in_flight}", broker.servers), |_| {});
    let limit = BASE + FACTOR * in_flight + 2 * OF_PARTITION;
    println!("{} MiB at most from a topic", most / MIB);
    assert!(most <= limit, "{} MiB, and {} are stated", most / MIB, limit / MIB);
}

#[test]
fn arrangements_are_merged_in_a_silence() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, accounts) = (broker.topic(1), 2_000);
    let rows = Generator::new(3).accounts(accounts).take(40_000).map(|row| serde_json::to_string(&row).unwrap());
    broker.send(&topic, 0, rows);
    let source = kafka::Source::json(&broker.servers, &topic).event_time(|t: &Transaction| t.at_ms);
    let job = Job::new("silence").epoch(Duration::from_millis(10)).profile(true);
    let (watcher, stopper, metrics) = (job.watcher(), job.stopper(), job.metrics());
    let running = std::thread::spawn(move || {
        job.run(move |flow| {
            // Each record retracts a row and inserts another.
            flow.read("transactions", &source)
                .key_by(|t| t.account.clone())
                .last_by_key("last")
                .map(|(account, t)| (account, t.id))
                .distinct()
                .count_by_key()
                .write("counts", &Observer::new(|_epoch, _rows| Ok(())));
        })
    });
    // Four arrangements, of the inputs and the outputs of both steps, and an eighth more that is not merged.
    let most = 4 * accounts as i64 * 9 / 8;
    let begun = Instant::now();
    let arranged = loop {
        std::thread::sleep(Duration::from_millis(100));
        let read = metrics.summary().sources.iter().map(|source| source.read).sum::<u64>();
        let steps = watcher.profile().map(|profile| profile.steps).unwrap_or_default();
        let arranged: i64 = steps.iter().map(|step| step.arranged).sum();
        if (read == 40_000 && (accounts as i64..=most).contains(&arranged)) || begun.elapsed().as_secs() > 20 {
            break arranged;
        }
    };
    println!("{arranged} updates are held in a silence");
    stopper.stop();
    running.join().unwrap().unwrap();
    assert!((accounts as i64..=most).contains(&arranged), "{arranged} updates, of which {most} are needed at most");
}

/// Runs a job with state for some seconds: keys come and go, and windows close.
fn soak(state: &str, seconds: u64) {
    let rate = 20_000;
    let generator = Generator::new(4).per_second(2_000);
    let source = GeneratorSource::new(generator, rate * seconds).partitions(2);
    let job = Job::new("soak").state(State::at(state).snapshot_every(Duration::from_millis(200))).in_flight(MIB);
    let report = job.run(move |flow| {
        let taken = std::cell::Cell::new(0_u64);
        flow.read("transactions", &source)
            .inspect(move |_| {
                taken.set(taken.get() + 1);
                if taken.get().is_multiple_of(200) {
                    std::thread::sleep(Duration::from_millis(1000 * 200 / rate));
                }
            })
            .key_by(|t| t.id / 20)
            .window(Window::tumbling(Duration::from_secs(10)))
            .aggregate("counts", |each| (each.count(), each.sum(|t| t.amount_cents)))
            .on_close()
            .map(|row| (row.window.end, row.key, row.value))
            .write("counts", &Observer::new(|_epoch, _rows| Ok(())));
    });
    report.unwrap();
}

#[test]
fn memory_and_state_are_flat_over_time() {
    let seconds = std::env::var("SOAK").map_or(20, |seconds| seconds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let (begun, mut samples, mut next) = (Instant::now(), Vec::new(), Duration::ZERO);
    measured(&format!("soak {} {seconds}", state.display()), |process| {
        if begun.elapsed() >= next {
            next = begun.elapsed() + Duration::from_millis(200);
            samples.push((figure(process, "VmRSS"), size_of(&state)));
        }
    });
    assert!(begun.elapsed() >= Duration::from_secs(seconds) * 3 / 4, "it was over after {:?}", begun.elapsed());
    // Warm-up and shutdown are left out.
    let calm = &samples[samples.len() / 5..samples.len() * 19 / 20];
    let (first, second) = calm.split_at(calm.len() / 2);
    for (what, of) in [("memory", (|sample| sample.0) as fn(&(u64, u64)) -> u64), ("state", |sample| sample.1)] {
        let most = |samples: &[(u64, u64)]| samples.iter().map(of).max().unwrap();
        let (before, after) = (most(first), most(second));
        println!("{what}: at most {} KiB in the first half, {} in the second", before / 1024, after / 1024);
        assert!(after <= before + before / 4 + 4 * MIB, "{what} grows from {before} to {after} bytes");
    }
}

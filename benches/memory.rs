//! Memory of a key in a window: `u64` keys, and count, sum, least and greatest of an `i64`.
//!
//! A run is a process that reads records of as many different keys in one tumbling window, which stays open, and that reports
//! its resident memory a moment after the last one. The bytes of a key are the difference to a run of a thousand keys, which
//! has everything else: the program, its threads, the buffers of epochs on their way. A hash table doubles when it is seven
//! eighths full, so numbers of keys just before that and just after it are the best and the worst; the median of the numbers
//! of keys that are measured by default, which are spread evenly between two doublings, is that of a state which grows. Peak
//! memory has the moment of growth in it, when the old table and the new one are both there.
//!
//! `cargo bench -p benches --bench memory`

#[path = "state/mod.rs"]
mod state;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use kit::{
    BenchFlags, Environment, Measured, ResultLine, RowChecksum, RunFigures, Sample, Spread, environment, measure,
};
use tidegate::{Job, Window};

use state::GeneratedSource;

/// The allocator of Tidegate's own programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Pause after all records were received.
const SETTLING: Duration = Duration::from_millis(700);

/// Keys of the run that everything else is taken from.
const FEW: u64 = 1_000;

/// Measures the memory of a key in a window
#[derive(Debug, Parser)]
struct Arguments {
    /// Numbers of keys [default: seven numbers between two doublings of a hash table]
    #[arg(long, value_delimiter = ',')]
    keys: Vec<u64>,

    /// Number of worker threads
    #[arg(long, default_value_t = 1)]
    workers: usize,

    /// Number of runs of each; medians are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,

    #[command(flatten)]
    flags: BenchFlags,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = arguments.flags.one().and_then(|run| match run {
        Some([keys]) => one(keys.parse().map_err(|_| String::from("--one takes a number"))?, arguments.workers),
        None => measure_all(&arguments),
    });
    kit::exit_code(run)
}

/// Reads as many keys, and prints the resident memory.
fn one(keys: u64, workers: usize) -> Result<(), String> {
    let begun = Instant::now();
    let workers_u32 = u32::try_from(workers).map_err(|_| String::from("too many workers"))?;
    // An odd factor permutes the numbers, so that all keys differ and none is near the one before.
    let make = |number: u64| (number.wrapping_mul(0x9E37_79B9_7F4A_7C15), number as i64);
    let records = GeneratedSource::new(workers_u32, keys, make, |_: &(u64, i64)| 1).endless();
    let job = Job::new("memory").workers(workers);
    let (metrics, stop) = (job.metrics(), job.stopper());
    let (over, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (ended, seen) = (Arc::clone(&over), Arc::clone(&bytes));
    // Bits of the peak so far: rows of the window, which closes at the end, are not in it.
    let peak_so_far = Arc::new(AtomicU64::new(0));
    let peak = Arc::clone(&peak_so_far);
    let keys = keys / workers as u64 * workers as u64;
    let watcher = std::thread::spawn(move || {
        while !ended.load(Ordering::Acquire) {
            let summary = metrics.summary();
            let received = summary.steps.first().map_or(0, |step| step.received);
            if received >= keys && seen.load(Ordering::Acquire) == 0 {
                // The last records are counted, and containers of the last epochs are freed meanwhile.
                std::thread::sleep(SETTLING);
                peak.store(environment::peak_mib().to_bits(), Ordering::Release);
                seen.store(environment::resident().unwrap_or(0), Ordering::Release);
                stop.stop();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let window = Window::tumbling(Duration::from_secs(86_400));
    let ran = job.run(move |flow| {
        let amount = |record: &(u64, i64)| record.1;
        flow.read("records", &records)
            .key_by(|record| record.0)
            .window(window)
            .aggregate("totals", |each| (each.count(), each.sum(amount), each.min(amount), each.max(amount)))
            .on_close()
            .inspect(|_| {});
    });
    over.store(true, Ordering::Release);
    watcher.join().map_err(|_| String::from("the watching thread has panicked"))?;
    ran.map_err(|error| error.to_string())?;
    let bytes = bytes.load(Ordering::Acquire);
    if bytes == 0 {
        return Err(String::from("the job ended before all keys were there"));
    }
    let (cpu_seconds, peak_mib) = (environment::cpu_seconds(), f64::from_bits(peak_so_far.load(Ordering::Acquire)));
    let sample = Sample { seconds: begun.elapsed().as_secs_f64(), cpu_seconds, peak_mib };
    println!("{}", RunFigures { sample, check: RowChecksum { rows: keys, records: bytes, hash: 0 } }.to_line());
    Ok(())
}

/// Returns numbers of keys between two doublings of a table on each worker: just after the first, evenly spread, and just
/// before the second.
fn default_keys(workers: usize) -> Vec<u64> {
    let full = (1_u64 << 20) * 7 / 8;
    let shares = [102, 115, 130, 145, 160, 175, 195].map(|percent| full * percent / 100);
    shares.map(|keys| keys * workers as u64).to_vec()
}

fn measure_all(arguments: &Arguments) -> Result<(), String> {
    let environment = Environment::now();
    let asked = if arguments.keys.is_empty() { default_keys(arguments.workers) } else { arguments.keys.clone() };
    let all: Vec<u64> = [FEW].into_iter().chain(asked).collect();
    let mut settled = vec![Vec::new(); all.len()];
    let mut peaks = vec![Vec::new(); all.len()];
    let mut samples = vec![Vec::new(); all.len()];
    for run in 1..=arguments.runs.max(1) {
        for (which, keys) in all.iter().enumerate() {
            eprint!("\rrun {run} of {}: {keys} keys   ", arguments.runs);
            let words = ["--one", &keys.to_string(), "--workers", &arguments.workers.to_string()].map(str::to_owned);
            let figures = measure::run_apart(&words)?;
            settled[which].push(figures.check.records as f64);
            peaks[which].push(figures.sample.peak_mib * 1024.0 * 1024.0);
            samples[which].push(figures);
        }
    }
    eprintln!();
    let spread = |numbers: &[Vec<f64>], which: usize| Spread::of(numbers[which].iter().copied());
    let base = [spread(&settled, 0).median, spread(&peaks, 0).median];
    if !arguments.flags.json {
        println!(
            "{}\n{} MiB without keys, medians of {}",
            environment.line(),
            (base[0] / 1048576.0).round(),
            arguments.runs
        );
        println!("  {:>12}{:>26}{:>22}", "keys", "bytes a key (range)", "at the peak");
    }
    let mut a_key = Vec::new();
    for (which, &keys) in all.iter().enumerate().skip(1) {
        let of = |numbers: &[Vec<f64>], base: f64| {
            Spread::of(numbers[which].iter().map(|bytes| (bytes - base) / keys as f64))
        };
        let (bytes, peak) = (of(&settled, base[0]), of(&peaks, base[1]));
        a_key.push(bytes.median);
        if arguments.flags.json {
            let mut measured = Measured::new("Tidegate", arguments.workers, 1);
            samples[which].iter().for_each(|figures| measured.add(*figures));
            measured.figures.extend([("bytes_per_key", bytes.median), ("bytes_per_key_least", bytes.least)].map(named));
            measured
                .figures
                .extend([("bytes_per_key_most", bytes.greatest), ("bytes_per_key_peak", peak.median)].map(named));
            let line: ResultLine = measured.line("memory", "Memory of a key", keys, &environment);
            measure::show(&[line], true)?;
        } else {
            println!("  {keys:>12}{:>26}{:>22}", bytes.text(1), peak.text(1));
        }
    }
    if !arguments.flags.json {
        let Spread { least, median, greatest } = Spread::of(a_key);
        println!("  median of all numbers of keys: {median:.1} bytes a key ({least:.1}–{greatest:.1})");
    }
    Ok(())
}

fn named((name, figure): (&str, f64)) -> (String, f64) {
    (name.to_owned(), figure)
}

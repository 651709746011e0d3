//! Duration of resuming from a snapshot, against the size of the state, the number of workers, and the codec.
//!
//! A state of a number of keys is made once and stopped cleanly; then a job resumes from it. The measured time is from
//! the start of the job until every row is loaded and on the worker of its key, sorted and indexed.
//!
//! `cargo bench -p benches --bench recovery` ; with `--features abomonation` both codecs

#[path = "state/mod.rs"]
mod state;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use kit::{BenchFlags, Environment, Measured, RowChecksum, RunFigures, Sample, environment, measure};
use tidegate::{Error, Flow, Job, Result, State, Window};

use state::{GeneratedSource, bytes_in, median};

/// The allocator that Tidegate's own programs use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the duration of resuming from a snapshot
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench -p benches --bench recovery
  cargo bench -p benches --bench recovery -- --keys 1000000 --workers 1,2,4 --json > figures.ndjson
  cargo bench -p benches --bench recovery --features abomonation")]
struct Arguments {
    /// Numbers of keys in the state
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000,10000000")]
    keys: Vec<u64>,

    /// Numbers of worker threads
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,

    /// Number of runs of each; medians are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,

    /// Directory of files [default: a temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,

    #[command(flatten)]
    flags: BenchFlags,
}

/// Codec of the stored rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowCodec {
    Postcard,
    #[cfg(feature = "abomonation")]
    Abomonation,
}

const CODECS: &[RowCodec] = &[
    RowCodec::Postcard,
    #[cfg(feature = "abomonation")]
    RowCodec::Abomonation,
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let dir = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("tidegate-recovery-{}", std::process::id()));
    let measured = arguments.flags.one::<0>().map_err(Error::new).and_then(|_| measure_all(&arguments, &dir));
    let _ = std::fs::remove_dir_all(&dir);
    kit::exit_code(measured)
}

fn measure_all(arguments: &Arguments, dir: &Path) -> Result<()> {
    let environment = Environment::now();
    if !arguments.flags.json {
        println!("recovery: from the start of the job until every row is in place, median of {}", arguments.runs);
        println!(
            "  {:<12}{:>10}{:>9}{:>14}{:>10}{:>12}{:>20}",
            "codec", "keys", "workers", "bytes", "s", "M keys/s", "M keys/s a worker"
        );
    }
    for &codec in CODECS {
        for &keys in &arguments.keys {
            let directory = dir.join(format!("{codec:?}-{keys}"));
            run(&directory, codec, keys, 1, keys)?;
            let bytes = bytes_in(&directory.join("segments"));
            for &workers in &arguments.workers {
                let (mut seconds, mut measured) = (Vec::new(), Measured::new("Tidegate", workers, 1));
                for _ in 0..arguments.runs {
                    let cpu = environment::cpu_seconds();
                    let (took, loaded) = run(&directory, codec, keys, workers, 0)?;
                    if loaded != keys {
                        return Err(Error::new(format!("{loaded} rows were loaded of {keys}")));
                    }
                    seconds.push(took);
                    let cpu_seconds = environment::cpu_seconds() - cpu;
                    let sample = Sample { seconds: took, cpu_seconds, peak_mib: environment::peak_mib() };
                    measured.add(RunFigures { sample, check: RowChecksum::default() });
                }
                let seconds = median(seconds);
                let rate = keys as f64 / 1e6 / seconds;
                let each = rate / workers as f64;
                if arguments.flags.json {
                    measured.figures.insert(String::from("bytes"), bytes as f64);
                    let title = format!("Recovery of {keys} keys, {codec:?}");
                    let line = measured.line("recovery", &title, keys, &environment);
                    measure::show(&[line], true).map_err(Error::new)?;
                } else {
                    let codec = format!("{codec:?}");
                    println!("  {codec:<12}{keys:>10}{workers:>9}{bytes:>14}{seconds:>10.3}{rate:>12.2}{each:>20.2}");
                }
            }
            let _ = std::fs::remove_dir_all(&directory);
        }
    }
    Ok(())
}

/// Runs until so many records are read and so many rows are in place; returns the seconds that it took, and the number
/// of rows loaded.
fn run(directory: &Path, codec: RowCodec, keys: u64, workers: usize, records: u64) -> Result<(f64, u64)> {
    let source = GeneratedSource::new(1, keys, |number| number, |_| 0).endless();
    let job =
        Job::new("recovery").workers(workers).state(State::at(directory).snapshot_every(Duration::from_secs(3600)));
    let (metrics, stop, over) = (job.metrics(), job.stopper(), Arc::new(AtomicBool::new(false)));
    let (watched, ended, begun) = (Arc::clone(&metrics), Arc::clone(&over), Instant::now());
    let watcher = std::thread::spawn(move || {
        let mut took = 0.0;
        while !ended.load(Ordering::Acquire) {
            let summary = watched.summary();
            let read: u64 = summary.sources.iter().map(|source| source.read).sum();
            let loaded: u64 = summary.steps.iter().map(|step| step.loaded).sum();
            let rows = if records == 0 { keys } else { 0 };
            if read >= records && loaded >= rows && took == 0.0 {
                took = begun.elapsed().as_secs_f64();
                stop.stop();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        took
    });
    let ran = job.run(move |flow| query(flow, &source, codec));
    over.store(true, Ordering::Release);
    let took = watcher.join().unwrap_or_default();
    let loaded = ran?.summary.steps.iter().map(|step| step.loaded).sum();
    Ok((took, loaded))
}

fn query(flow: &Flow<'_>, source: &GeneratedSource<u64>, codec: RowCodec) {
    let totals = flow.read("numbers", source).key_by(|number| *number).window(Window::global());
    let totals =
        totals.aggregate("totals", |each| (each.count(), each.sum(|number| *number), each.max(|number| *number)));
    let totals = match codec {
        RowCodec::Postcard => totals,
        #[cfg(feature = "abomonation")]
        RowCodec::Abomonation => match tidegate::durable::codec::Abomonation::of_this_program() {
            Ok(codec) => totals.codec(codec),
            Err(_) => totals,
        },
    };
    totals.on_close().inspect(|_| {});
}

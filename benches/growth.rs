//! Costs against sizes that should not matter: each part grows one size, does the same work at each, and lists the cost of
//! a record beside that at the smallest size. A ratio near 1 says that the size does not matter.
//!
//! * `on-change`: live rows of tumbling windows, of which 10 … 1000 are open at once.
//! * `in-order`: keyed state of one key, whose 1000 … 16,000 records all wait, and come in descending order.
//! * `sliding`: sums of windows that overlap 8 … 128 times, of keys that have records in all of them.
//! * `sliding-state`: the same with a state and a snapshot every 200 ms.
//! * `maps`: resident memory at the end of a run of small windows, against the rows of sixteen large ones at its beginning.
//!
//! Each run is a process of its own.
//!
//! `cargo bench -p benches --bench growth` ; `cargo bench -p benches --bench growth -- --parts sliding --repeat 3 --json`

#[path = "state/mod.rs"]
mod state;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kit::environment::resident;
use kit::{BenchFlags, Environment, Measured, RowChecksum, measure, timed};
use tidegate::source::Options;
use tidegate::stream::aggregate::Each;
use tidegate::{Job, Result, State, Window};

use state::{GeneratedSource, median};

/// The allocator that Tidegate's own programs use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GrowthPart {
    /// Live rows against open windows.
    OnChange,
    /// Keyed state against waiting records of one key.
    InOrder,
    /// Sliding windows against their overlap.
    Sliding,
    /// Sliding windows with a state.
    SlidingState,
    /// Memory against the rows of windows that are over.
    Maps,
}

impl GrowthPart {
    /// Returns its name, what grows, and the sizes.
    fn sizes(self) -> (&'static str, &'static str, &'static [u64]) {
        match self {
            GrowthPart::OnChange => ("on-change", "open windows", &[10, 100, 1000]),
            GrowthPart::InOrder => ("in-order", "waiting records", &[1000, 4000, 16_000]),
            GrowthPart::Sliding => ("sliding", "overlap", &[8, 32, 128]),
            GrowthPart::SlidingState => ("sliding-state", "overlap", &[8, 32, 128]),
            GrowthPart::Maps => ("maps", "rows of a window", &[1000, 50_000, 200_000]),
        }
    }

    /// Makes a run at a size. Returns the number of its records as that of rows, and of the part `maps` the bytes that are
    /// held as the number of records.
    fn run(self, size: u64, dir: &Path) -> Result<RowChecksum> {
        let (records, bytes) = match self {
            GrowthPart::OnChange => (on_change(size)?, 0),
            GrowthPart::InOrder => (in_order(size)?, 0),
            GrowthPart::Sliding => (sliding(size, None)?, 0),
            GrowthPart::SlidingState => (sliding(size, Some(dir.join("state")))?, 0),
            GrowthPart::Maps => maps(size)?,
        };
        Ok(RowChecksum { rows: records, records: bytes, hash: 0 })
    }
}

/// Measures costs that should not depend on a size
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench -p benches --bench growth
  cargo bench -p benches --bench growth -- --parts sliding,in-order --repeat 3 --scale 4
  cargo bench -p benches --bench growth -- --json > figures.ndjson")]
struct Arguments {
    /// Parts to measure
    #[arg(long, value_enum, value_delimiter = ',', default_value = "maps,on-change,in-order,sliding,sliding-state")]
    parts: Vec<GrowthPart>,

    /// Factor of the sizes
    #[arg(long, default_value_t = 1)]
    scale: u64,

    /// Number of runs of each size; medians are shown
    #[arg(long, default_value_t = 1)]
    repeat: usize,

    #[command(flatten)]
    flags: BenchFlags,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = arguments.flags.one().and_then(|run| match run {
        Some(run) => one(run),
        None => arguments.parts.iter().try_for_each(|part| measure_part(*part, &arguments)),
    });
    kit::exit_code(run)
}

/// Makes one run of a part at a size, and prints its measurements.
fn one([part, size]: &[String; 2]) -> std::result::Result<(), String> {
    let part = GrowthPart::from_str(part, true)?;
    let size: u64 = size.parse().map_err(|_| String::from("the size is no number"))?;
    let dir = std::env::temp_dir().join(format!("tidegate-growth-{}", std::process::id()));
    let ran = timed(|| part.run(size, &dir).map_err(|error| error.to_string()));
    let _ = std::fs::remove_dir_all(&dir);
    println!("{}", ran?.to_line());
    Ok(())
}

/// Measures a part at each of its sizes.
fn measure_part(part: GrowthPart, arguments: &Arguments) -> std::result::Result<(), String> {
    let environment = Environment::now();
    let (name, what, sizes) = part.sizes();
    let unit = if part == GrowthPart::Maps { "MiB" } else { "ns of CPU time a record" };
    if !arguments.flags.json {
        println!("\n{name}: {unit} against {what}; one worker");
        println!("  {:>12}{:>14}{:>10}", what, "cost", "ratio");
    }
    let mut first = None;
    for size in sizes.iter().map(|size| size * arguments.scale) {
        let (mut measured, mut costs) = (Measured::new(format!("{size} {what}"), 1, 1), Vec::new());
        let mut records = 0;
        for _ in 0..arguments.repeat.max(1) {
            let figures = measure::run_apart(&["--one", name, &size.to_string()].map(str::to_owned))?;
            records = figures.check.rows;
            costs.push(match part {
                GrowthPart::Maps => figures.check.records as f64 / f64::from(1 << 20),
                _ => figures.sample.cpu_seconds * 1e9 / records as f64,
            });
            measured.add(figures);
        }
        let cost = median(costs);
        let ratio = cost / *first.get_or_insert(cost);
        if arguments.flags.json {
            let figures = [("size", size as f64), ("cost", cost), ("ratio", ratio)];
            measured.figures.extend(figures.map(|(name, figure)| (name.to_owned(), figure)));
            let title = format!("Growth, {name}: {unit} against {what}");
            measure::show(&[measured.line("growth", &title, records, &environment)], true)?;
        } else {
            println!("  {size:>12}{cost:>14.1}{ratio:>10.2}");
        }
    }
    Ok(())
}

fn job() -> Job {
    Job::new("growth").options(Options::default().until_end(true))
}

/// A record: key, event time.
type Deal = (u64, i64);

/// Live rows of so many open windows. Returns the number of records.
fn on_change(windows: u64) -> Result<u64> {
    const RECORDS: u64 = 50_000;
    let source = GeneratedSource::new(1, RECORDS, move |n| (n % 10, (n % windows) as i64 * 1000), |deal: &Deal| deal.1);
    let ran = job().run(move |flow| {
        let deals = flow.read("deals", &source).key_by(|deal| deal.0);
        let counts = deals.window(Window::tumbling(Duration::from_secs(1)));
        let counts = counts.allowed_lateness(Duration::from_secs(1_000_000)).aggregate("counts", Each::count);
        counts.on_change().inspect(|_, _| {});
    });
    ran.map(|_report| RECORDS)
}

/// Keyed state of one key, so many records of which wait. Returns the number of records.
fn in_order(waiting: u64) -> Result<u64> {
    let source = GeneratedSource::new(1, waiting, move |n| (0, (waiting - n) as i64), |deal: &Deal| deal.1);
    let ran = job().run(move |flow| {
        let deals = flow.read("deals", &source).key_by(|deal| deal.0);
        let deals = deals.allowed_lateness(Duration::from_secs(1_000_000));
        let sums = deals.keyed_state(
            "sums",
            |at, sum: &mut Option<i64>, deal| {
                *sum = Some(sum.unwrap_or(0).wrapping_mul(31).wrapping_add(deal.1));
                at.emit(*sum);
            },
            |_, _| {},
        );
        sums.emitted().inspect(|_| {});
    });
    ran.map(|_report| waiting)
}

/// Sums of windows that overlap so many times; with a state if a directory for it is given. Returns the number of records.
fn sliding(overlap: u64, state: Option<PathBuf>) -> Result<u64> {
    const KEYS: u64 = 500;
    const SLIDES: u64 = 600;
    let make = |n| (n % KEYS, (n / KEYS) as i64 * 100);
    let source = GeneratedSource::new(1, KEYS * SLIDES, make, |deal: &Deal| deal.1);
    let job = match state {
        Some(state) => job().state(State::at(state).snapshot_every(Duration::from_millis(200))),
        None => job(),
    };
    let ran = job.run(move |flow| {
        let window = Window::sliding(Duration::from_millis(100 * overlap), Duration::from_millis(100));
        let deals = flow.read("deals", &source).key_by(|deal| deal.0).window(window);
        let sums = deals.aggregate("sums", |each| (each.count(), each.sum(|deal| deal.1)));
        sums.on_close().inspect(|_| {});
    });
    ran.map(|_report| KEYS * SLIDES)
}

/// Runs small windows that follow sixteen large ones. Returns the number of records, and the resident memory at the end
/// beyond that before it, in bytes.
fn maps(rows: u64) -> Result<(u64, u64)> {
    const LARGE: u64 = 16;
    const SMALL: u64 = 20_000;
    let before = resident().unwrap_or(0);
    let (large, held) = (rows * LARGE, Arc::new(AtomicU64::new(0)));
    let seen = Arc::clone(&held);
    let make = move |n| {
        if n + 1 == large + SMALL * 100 {
            seen.store(resident().unwrap_or(0), Ordering::Relaxed);
        }
        // A hundred rows each of the small windows; the large ones are open at once.
        if n < large {
            (n / LARGE, (n % LARGE) as i64 * 1000)
        } else {
            (n % 100, 32_000 + ((n - large) / 100) as i64 * 1000)
        }
    };
    let source = GeneratedSource::new(1, large + SMALL * 100, make, |deal: &Deal| deal.1);
    let ran = job().run(move |flow| {
        let deals = flow.read("deals", &source).key_by(|deal| deal.0).window(Window::tumbling(Duration::from_secs(1)));
        let deals = deals.allowed_lateness(Duration::from_secs(16));
        deals.aggregate("counts", Each::count).on_close().inspect(|_| {});
    });
    ran.map(|_report| (large + SMALL * 100, held.load(Ordering::Relaxed).saturating_sub(before)))
}

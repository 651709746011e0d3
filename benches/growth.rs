//! Costs against sizes that should not matter: each part grows one size, does the same work at each, and lists the cost of
//! a record beside that at the smallest size. A ratio near 1 says that the size does not matter.
//!
//! * `on-change`: live rows of tumbling windows, of which 10 … 1000 are open at once.
//! * `in-order`: keyed state of one key, whose 1000 … 16,000 records all wait, and come in descending order.
//! * `sliding`: sums of windows that overlap 8 … 128 times, of keys that have records in all of them.
//! * `sliding-state`: the same with a state and a snapshot every 200 ms.
//! * `maps`: resident memory at the end of a run of small windows, against the rows of sixteen large ones at its beginning.
//!
//! `cargo bench --bench growth` ; `cargo bench --bench growth -- --parts sliding --repeat 3 --json`

#[path = "state/mod.rs"]
mod state;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kit::environment::{cpu_seconds, resident};
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
}

/// Measures costs that should not depend on a size
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo bench --bench growth
  cargo bench --bench growth -- --parts sliding,in-order --repeat 3 --scale 4
  cargo bench --bench growth -- --json > figures.ndjson")]
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

    /// Print one JSON object a line, for plotting
    #[arg(long)]
    json: bool,

    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let dir = std::env::temp_dir().join(format!("tidegate-growth-{}", std::process::id()));
    let measured = arguments.parts.iter().try_for_each(|part| measure(*part, &arguments, &dir));
    let _ = std::fs::remove_dir_all(&dir);
    kit::exit_code(measured)
}

/// Measures a part at each of its sizes.
fn measure(part: GrowthPart, arguments: &Arguments, dir: &Path) -> Result<()> {
    let (name, what, sizes) = part.sizes();
    let unit = if part == GrowthPart::Maps { "MiB" } else { "ns of CPU time a record" };
    if !arguments.json {
        println!("\n{name}: {unit} against {what}; one worker");
        println!("  {:>12}{:>14}{:>10}", what, "cost", "ratio");
    }
    let mut first = None;
    for size in sizes.iter().map(|size| size * arguments.scale) {
        let mut costs = Vec::new();
        for _ in 0..arguments.repeat.max(1) {
            costs.push(match part {
                GrowthPart::OnChange => on_change(size)?,
                GrowthPart::InOrder => in_order(size)?,
                GrowthPart::Sliding => sliding(size, None)?,
                GrowthPart::SlidingState => sliding(size, Some(dir))?,
                GrowthPart::Maps => maps(size)?,
            });
        }
        let cost = median(costs);
        let ratio = cost / *first.get_or_insert(cost);
        if arguments.json {
            println!(
                "{{\"part\":\"{name}\",\"what\":\"{what}\",\"size\":{size},\"unit\":\"{unit}\",\"cost\":{cost:.1},\"ratio\":{ratio:.2}}}"
            );
        } else {
            println!("  {size:>12}{cost:>14.1}{ratio:>10.2}");
        }
    }
    Ok(())
}

fn job() -> Job {
    Job::new("growth").options(Options::default().until_end(true))
}

/// Runs a job, and returns its CPU time a record, in nanoseconds.
fn per_record(records: u64, run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = cpu_seconds();
    run()?;
    Ok((cpu_seconds() - before) * 1e9 / records as f64)
}

/// A record: key, event time.
type Deal = (u64, i64);

/// Live rows of so many open windows.
fn on_change(windows: u64) -> Result<f64> {
    const RECORDS: u64 = 50_000;
    let source = GeneratedSource::new(1, RECORDS, move |n| (n % 10, (n % windows) as i64 * 1000), |deal: &Deal| deal.1);
    per_record(RECORDS, || {
        let ran = job().run(move |flow| {
            let deals = flow.read("deals", &source).key_by(|deal| deal.0);
            let counts = deals.window(Window::tumbling(Duration::from_secs(1)));
            let counts = counts.allowed_lateness(Duration::from_secs(1_000_000)).aggregate("counts", Each::count);
            counts.on_change().inspect(|_, _| {});
        });
        ran.map(drop)
    })
}

/// Keyed state of one key, so many records of which wait.
fn in_order(waiting: u64) -> Result<f64> {
    let source = GeneratedSource::new(1, waiting, move |n| (0, (waiting - n) as i64), |deal: &Deal| deal.1);
    per_record(waiting, || {
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
        ran.map(drop)
    })
}

/// Sums of windows that overlap so many times.
fn sliding(overlap: u64, dir: Option<&Path>) -> Result<f64> {
    const KEYS: u64 = 500;
    const SLIDES: u64 = 600;
    let make = |n| (n % KEYS, (n / KEYS) as i64 * 100);
    let source = GeneratedSource::new(1, KEYS * SLIDES, make, |deal: &Deal| deal.1);
    let job = match dir {
        Some(dir) => {
            let _ = std::fs::remove_dir_all(dir);
            job().state(State::at(dir.join("state")).snapshot_every(Duration::from_millis(200)))
        }
        None => job(),
    };
    per_record(KEYS * SLIDES, || {
        let ran = job.run(move |flow| {
            let window = Window::sliding(Duration::from_millis(100 * overlap), Duration::from_millis(100));
            let deals = flow.read("deals", &source).key_by(|deal| deal.0).window(window);
            let sums = deals.aggregate("sums", |each| (each.count(), each.sum(|deal| deal.1)));
            sums.on_close().inspect(|_| {});
        });
        ran.map(drop)
    })
}

/// Resident memory at the end of a run of small windows that follow sixteen large ones, beyond that before it, in MiB.
fn maps(rows: u64) -> Result<f64> {
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
    ran.map(|_report| held.load(Ordering::Relaxed).saturating_sub(before) as f64 / f64::from(1 << 20))
}

//! The kinds of drawings. Each is made of the lines of one title, or not at all if they have nothing of the kind.

use std::collections::BTreeMap;

use kit::{ResultLine, Spread};

use crate::chart::{Axis, COLOURS, Chart};

/// Programs that others are compared with are named so.
const BASELINE: &str = "ByHand";

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Returns the name of a line among those of its title.
fn name(line: &ResultLine) -> String {
    match line.processes {
        0 | 1 => format!("{}, {}", line.program, line.workers),
        processes => format!("{}, {processes}×{}", line.program, line.workers),
    }
}

/// Draws million records a second as bars, with the range of the runs.
pub(crate) fn throughput(title: &str, lines: &[&ResultLine]) -> Option<String> {
    bars(title, lines, "million records a second", ResultLine::rate)
}

/// Draws CPU seconds a million records as bars, with the range of the runs.
pub(crate) fn cpu(title: &str, lines: &[&ResultLine]) -> Option<String> {
    bars(title, lines, "CPU seconds a million records", ResultLine::cpu)
}

fn bars(title: &str, lines: &[&ResultLine], unit: &str, of: impl Fn(&ResultLine) -> Spread) -> Option<String> {
    let lines: Vec<_> = lines.iter().filter(|line| line.latencies.is_empty() && !line.samples.is_empty()).collect();
    if lines.is_empty() {
        return None;
    }
    let spreads: Vec<Spread> = lines.iter().map(|line| of(line)).collect();
    let greatest = spreads.iter().map(|spread| spread.greatest).fold(0.0, f64::max);
    let mut chart =
        Chart::new(title, (Axis::places(lines.len()), "program, workers"), (Axis::from_zero(greatest), unit));
    for (place, (line, spread)) in lines.iter().zip(&spreads).enumerate() {
        let fill = if line.program == BASELINE { "#888888" } else { colour(0) };
        chart.bar(place as f64, 0.6, spread.median, [spread.least, spread.greatest], fill);
        chart.x_tick(place as f64, &name(line));
    }
    Some(chart.finish())
}

/// Draws throughput over the number of workers of all processes, and where each program passes the one by hand: its COST.
pub(crate) fn scaling(title: &str, lines: &[&ResultLine]) -> Option<String> {
    let mut programs: BTreeMap<(&str, usize), Vec<(f64, Spread)>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.latencies.is_empty() && line.program != BASELINE) {
        let workers = (line.workers * line.processes.max(1)) as f64;
        programs.entry((&line.program, line.processes.max(1))).or_default().push((workers, line.rate()));
    }
    let all = || programs.values().flatten();
    if !programs.values().any(|points| points.len() > 1) {
        return None;
    }
    let base = lines.iter().find(|line| line.program == BASELINE).map(|line| line.rate().median);
    let greatest = all().map(|(_, rate)| rate.greatest).chain(base).fold(0.0, f64::max);
    let most = all().map(|(workers, _)| *workers).fold(1.0, f64::max);
    let mut chart = Chart::new(
        title,
        (Axis::from_zero(most), "workers of all processes"),
        (Axis::from_zero(greatest), "million records a second"),
    );
    (1..=most as u32).for_each(|workers| chart.x_tick(f64::from(workers), &workers.to_string()));
    chart.legend_left();
    if let Some(base) = base {
        chart.curve(&[[0.0, base], [most * 2.0, base]], "#888888", true);
        chart.legend("by hand, one thread", "#888888");
    }
    let mut least_cost = None::<f64>;
    for (number, ((program, processes), points)) in programs.iter_mut().enumerate() {
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        let medians: Vec<_> = points.iter().map(|(workers, rate)| [*workers, rate.median]).collect();
        chart.curve(&medians, colour(number), false);
        points.iter().for_each(|(workers, rate)| chart.range(*workers, [rate.least, rate.greatest]));
        let several = if *processes > 1 { format!(", {processes} processes") } else { String::new() };
        chart.legend(&format!("{program}{several}"), colour(number));
        let faster = base.and_then(|base| medians.iter().find(|point| point[1] > base).map(|point| point[0]));
        least_cost = [least_cost, faster].into_iter().flatten().reduce(f64::min);
    }
    if base.is_some() {
        match least_cost {
            Some(workers) => chart.upright(workers, &format!("COST: {workers} workers")),
            None => chart.note([most / 2.0, base.unwrap_or_default()], "COST: more workers than measured"),
        }
    }
    Some(chart.finish())
}

/// Draws the complementary distribution of latencies, all runs of a line as one curve: the median of the runs' times at each
/// share.
pub(crate) fn latency(title: &str, lines: &[&ResultLine]) -> Option<String> {
    let mut curves = Vec::new();
    for line in lines.iter().filter(|line| line.latencies.iter().any(|run| !run.ccdf.is_empty())) {
        let shares = (0..=200).map(|step| 10_f64.powf(-f64::from(step) / 40.0));
        let points = shares.filter_map(|share| {
            // The least time that no more than this share of the records took longer than.
            let time = |ccdf: &[[f64; 2]]| ccdf.iter().find(|point| point[1] <= share).map(|point| point[0]);
            let times: Vec<f64> = line.latencies.iter().filter_map(|run| time(&run.ccdf)).collect();
            (!times.is_empty()).then(|| [Spread::of(times).median, share])
        });
        curves.push((name(line), points.collect::<Vec<_>>()));
    }
    if curves.is_empty() {
        return None;
    }
    let values = |which: usize| curves.iter().flat_map(move |(_, points)| points.iter().map(move |point| point[which]));
    let mut chart = Chart::new(
        title,
        (Axis::logarithmic(values(0)), "milliseconds"),
        (Axis::logarithmic(values(1)), "share of records that took longer"),
    );
    chart.x_ticks();
    for (number, (name, points)) in curves.iter().enumerate() {
        chart.curve(points, colour(number), false);
        chart.legend(name, colour(number));
    }
    Some(chart.finish())
}

//! No record is silently lost: every record that was read was counted, late, rejected, or dropped by the query itself.
//!
//! A record that vanishes between two operators leaves no trace in the results, so these tests add up counters that are
//! incremented in different places, and compare them with the oracle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tidegate::job::{Ending, Job, StopHandle};
use tidegate::source::memory::MemorySource;
use tidegate::stream::Observer;
use tidegate::testing::{Captured, RunOutcome, Script, TestRun};
use tidegate::{csv, ndjson};

use common::cases::{Data, Deal, for_seeds};
use common::checks::{self, StepCaptures, by_data, compare, conserved, expected, flat, totals};
use common::oracle::{self, Windows};

const WINDOWS: Windows = Windows::Tumbling { size: 50, offset: 7 };

#[test]
fn every_record_is_counted_or_late_or_rejected() {
    for_seeds(60, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 200);
        let (_, outcome) = checks::run(&data, WINDOWS, TestRun::new().workers(1 + seed as usize % 4).seed(seed))?;
        conserved(&data, &expected(&data, WINDOWS, &outcome), &outcome)?;
        let read = outcome.report.summary.sources[0].read;
        let all = data.len() as u64;
        if read == all { Ok(()) } else { Err(format!("{read} of {all} records were read")) }
    });
}

/// Returns one more copy of a deal for every unit of its key; none for key 3.
fn copies(deal: &Deal) -> Vec<Deal> {
    if deal.key == 3 { vec![] } else { vec![deal.clone(); usize::from(deal.key) + 1] }
}

#[test]
fn a_step_takes_what_the_query_leaves_and_makes() {
    for_seeds(40, |seed| {
        let data = Data::random(&mut Rng::with_seed(seed), 150);
        let (views, source) = (StepCaptures::default(), data.source());
        let shown = views.clone();
        let run = TestRun::new().workers(1 + seed as usize % 3).seed(seed).run(move |flow| {
            let deals = flow.read("deals", &source).filter(|deal| deal.key != 3);
            shown.of(deals.flat_map(|deal| copies(&deal)), WINDOWS);
        });
        let RunOutcome { report, journal } = run.map_err(|error| error.to_string())?;
        let history = data.history(0, &oracle::steps(&journal, "deals"));
        let made = history.flat_map(copies);
        let shown = oracle::windowed(&made, WINDOWS, |deal| deal.key, totals);
        compare(&views, &shown)?;
        let (source, step) = (&report.summary.sources[0], &report.summary.steps[0]);
        let late = flat(&shown.late).len() as u64;
        let got = [source.read, source.accepted, source.rejected, step.received, step.late, step.counted];
        let (accepted, rejected) = (history.records.len() as u64, history.rejected.len() as u64);
        let all = made.records.len() as u64;
        let expected = [accepted + rejected, accepted, rejected, all, late, all - late];
        if got == expected { Ok(()) } else { Err(format!("the figures are {got:?}, not {expected:?}")) }
    });
}

#[test]
fn what_is_written_in_order_has_every_record_once_in_the_order_of_its_partition() {
    for_seeds(40, |seed| {
        let mut random = Rng::with_seed(seed);
        // Records whose order differs from their natural one, many of them equal.
        let mut partition = |id: u64| (0..random.u64(0..90)).map(|_| (random.u64(..9), id)).collect::<Vec<_>>();
        let partitions: Vec<_> = (0..1 + seed % 5).map(&mut partition).collect();
        let (source, copy) = (MemorySource::new(partitions.clone(), |_record| 0), Captured::new());
        let (shown, workers) = (copy.clone(), 1 + seed as usize % 3);
        let run = TestRun::new().workers(workers).processes(1 + seed as usize % 2).seed(seed);
        let run = run.run(move |flow| flow.read("records", &source).write_in_order("copy", &shown));
        run.map_err(|error| error.to_string())?;
        let rows: Vec<_> = copy.epochs().into_values().flatten().collect();
        for (id, partition) in (0..).zip(&partitions) {
            let of_it: Vec<_> = rows.iter().filter(|(row, _)| row.1 == id).collect();
            if !of_it.iter().map(|(row, diff)| (row, *diff)).eq(partition.iter().map(|row| (row, 1))) {
                return Err(format!("partition {id} is {partition:?}, and was written as {of_it:?}"));
            }
        }
        let all: usize = partitions.iter().map(Vec::len).sum();
        if rows.len() == all { Ok(()) } else { Err(format!("{} rows of {all} records", rows.len())) }
    });
}

/// A row of a file; `b` is a column that a row may lack, as only a mistaken type does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Written {
    a: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    b: Option<u64>,
}

/// Rows of files are encoded where they are read, and the file has the bytes that its writer would make of them.
#[test]
fn files_that_are_written_in_order_have_the_lines_of_their_rows_in_order() {
    for_seeds(20, |seed| {
        let mut random = Rng::with_seed(seed);
        let mut partition = |id: u64| (0..random.u64(0..60)).map(|_| (random.u64(..9), id)).collect::<Vec<_>>();
        let partitions: Vec<_> = (0..1 + seed % 4).map(&mut partition).collect();
        let (source, copy, folder) = (MemorySource::new(partitions, |_record| 0), Captured::new(), tempfile::tempdir());
        let (folder, shown) = (folder.map_err(|error| error.to_string())?, copy.clone());
        let path = |name: &str| folder.path().join(name);
        let (in_csv, in_ndjson) = (csv::Sink::new(path("copy.csv")), ndjson::Sink::new(path("copy.ndjson")));
        let run = TestRun::new().workers(1 + seed as usize % 3).seed(seed).run(move |flow| {
            // None, one or several rows of a record.
            let rows =
                flow.read("records", &source).flat_map(|(a, id)| vec![Written { a, b: Some(id) }; a as usize % 3]);
            rows.clone().write_in_order("copy", &shown);
            rows.clone().write_in_order("csv", &in_csv);
            rows.write_in_order("ndjson", &in_ndjson);
        });
        run.map_err(|error| error.to_string())?;
        let (mut as_csv, mut as_ndjson) = (String::from("a,b\n"), String::new());
        for (row, times) in copy.epochs().into_values().flatten() {
            for _ in 0..times {
                as_csv.push_str(&format!("{},{}\n", row.a, row.b.unwrap_or_default()));
                as_ndjson.push_str(&format!("{}\n", serde_json::to_string(&row).map_err(|error| error.to_string())?));
            }
        }
        for (name, expected) in [("copy.csv", as_csv), ("copy.ndjson", as_ndjson)] {
            let found = std::fs::read_to_string(path(name)).map_err(|error| error.to_string())?;
            if found != expected {
                return Err(format!("{name} is\n{found}and not\n{expected}"));
            }
        }
        Ok(())
    });
}

/// A row that its file cannot hold fails the job by the file's name, and nothing of its epoch is written.
#[test]
fn a_row_that_cannot_be_encoded_where_it_is_read_fails_the_job_before_its_epoch_is_written() {
    let rows: Vec<_> = (0..20).map(|a| Written { a, b: (a != 13).then_some(1) }).collect();
    let source = MemorySource::new(vec![rows.clone(), rows], |_| 0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.csv");
    let sink = csv::Sink::new(&path);
    let script = Script::new().epoch(|e| e.take(0, 5)).epoch(|e| e.take(0, 15).take(1, 20).end(0).end(1));
    let run = TestRun::new().workers(2).script("rows", script);
    let error = run.run(move |flow| flow.read("rows", &source).write_in_order("copy", &sink)).unwrap_err().to_string();
    assert!(error.contains("does not write its field `b`") && error.contains("copy.csv"), "{error}");
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(["a,b\n", "a,b\n0,1\n1,1\n2,1\n3,1\n4,1\n"].contains(&&*written), "{written}");
}

#[test]
fn a_job_that_takes_one_record_at_a_time_takes_none_before_the_last_is_shown() {
    let records = |id: u64| (0..25).map(|value| (value, id)).collect::<Vec<_>>();
    let source = MemorySource::new((0..3).map(records).collect(), |record: &(u64, u64)| record.0 as i64);
    let job = Job::new("one").synchronous(true);
    let (read, shown) = (job.metrics(), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&shown);
    let see = Observer::new(move |_, rows: &[((u64, u64), isize)]| {
        let (shown, read) = (u64::from(counted.fetch_add(1, Ordering::Relaxed)), read.source("records").read.get());
        assert!(rows.len() == 1 && read == shown + 1, "{} rows, {read} read, {shown} shown before", rows.len());
        Ok(())
    });
    job.run(move |flow| flow.read("records", &source).write("shown", &see)).unwrap();
    assert_eq!(shown.load(Ordering::Relaxed), 75);
}

/// Stops a run after some epochs were published; returns how it ended.
fn check_stopped(seed: u64) -> Result<Ending, String> {
    let mut random = Rng::with_seed(seed);
    let data = Data::random(&mut random, 400);
    let (views, source, stop) = (StepCaptures::default(), data.source(), StopHandle::default());
    let (shown, asked, left) = (views.clone(), stop.clone(), Arc::new(AtomicU32::new(random.u32(1..20))));
    let run = TestRun::new().workers(1 + seed as usize % 3).stop_by(&stop);
    let run = if seed.is_multiple_of(4) { run.clock().in_flight(5_000) } else { run.seed(seed) };
    let outcome = run.run(move |flow| {
        let deals = flow.read("deals", &source);
        let (asked, left) = (asked.clone(), left.clone());
        let watch = Observer::new(move |_, _: &[(Deal, isize)]| {
            if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                asked.stop();
            }
            Ok(())
        });
        deals.clone().write("watch", &watch);
        shown.of(deals, WINDOWS);
    });
    let outcome = outcome.map_err(|error| error.to_string())?;
    // Everything that was read was counted, although many windows never closed; and the published rows are the
    // oracle's.
    let expected = expected(&data, WINDOWS, &outcome);
    compare(&views, &expected)?;
    conserved(&data, &expected, &outcome)?;
    // A result published before the stop is final.
    let all = flat(&by_data(&data, WINDOWS).closed);
    match views.closed.all().into_iter().find(|row| !all.contains(row)) {
        Some(row) => Err(format!("{row:?} is not a final result")),
        None => Ok(outcome.report.ending),
    }
}

#[test]
fn a_job_that_is_stopped_has_lost_nothing() {
    for_seeds(60, |seed| check_stopped(seed).map(drop));
    let endings: Vec<_> = (1..=10).map(|seed| check_stopped(seed).unwrap()).collect();
    assert!(endings.contains(&Ending::Stopped), "{endings:?}");
}

#[test]
fn the_summary_says_it_in_a_line_each() {
    let times = [5, 120, 20, 130, i64::MAX];
    let deal = |(id, at_ms): (u32, &i64)| Deal { id, key: 0, at_ms: *at_ms, amount: 1 };
    let data = Data { partitions: vec![(0..).zip(&times).map(deal).collect()], disorder: 0, turns: Vec::new() };
    let script = Script::new().epoch(|e| e.take(0, 2)).epoch(|e| e.take(0, 3)).epoch(|e| e.end(0));
    let (_, outcome) = checks::run(&data, WINDOWS, TestRun::new().script("deals", script)).unwrap();
    let expected = "\
        deals: 5 records read = 4 accepted + 1 rejected\n\
        totals: 4 in = 3 counted + 1 late; 2 rows closed\n\
        closed: 2 rows written in 2 of 3 epochs\n\
        live: 4 rows written in 3 of 3 epochs\n\
        fired: 2 rows written in 2 of 3 epochs\n\
        every: 1 rows written in 1 of 3 epochs\n\
        late: 1 rows written in 1 of 3 epochs\n\
        rejects: 1 rows written in 1 of 3 epochs";
    assert_eq!(outcome.report.summary.to_string(), expected);
}

/// Counts the rows of a file whose source the query makes by itself, once for each worker.
fn count_by_an_own_source(path: std::path::PathBuf, workers: usize) -> tidegate::Result<Vec<u64>> {
    let counts = Captured::<u64>::new();
    let output = counts.clone();
    Job::new("own source").workers(workers).until_end().run(move |flow| {
        let source = csv::Source::new(&path).event_time(|row: &(i64, i64)| row.0);
        let rows = flow.read("rows", &source).key_by(|_| ());
        let counted =
            rows.window(tidegate::Window::global()).aggregate("count", tidegate::stream::aggregate::Each::count);
        counted.on_close().map(|row| row.value as u64).write("counts", &output);
    })?;
    Ok(counts.all())
}

#[test]
fn a_file_whose_source_each_worker_makes_is_not_read_by_each() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.csv");
    let rows: String = (0..1_000).map(|number| format!("{number},{number}\n")).collect();
    std::fs::write(&path, format!("at,number\n{rows}")).unwrap();
    assert_eq!(count_by_an_own_source(path.clone(), 1).unwrap(), [1_000]);
    let error = count_by_an_own_source(path, 2).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let said = error.to_string();
    assert!(said.contains("each worker has a source `rows` of its own"), "{said}");
    assert!(said.contains("make the source before the query"), "{said}");
}

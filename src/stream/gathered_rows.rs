//! Rows of a sink's epoch that is not complete yet, and their order when it is.
//!
//! * [`SortedRows`] gathers rows as they come, and sorts them in the end.
//! * [`PartitionRuns`] gathers rows with the places of their records, by partition. A partition's records come in order,
//!   so that nothing is sorted: rows are moved once. Only where places repeat or go back, as those of rows that steps
//!   have made do, a partition's rows are sorted.
//!
//! Invariant: both give the consolidated rows in order, so the same ones whatever the order in which they came.

use std::collections::HashMap;

use differential_dataflow::consolidation::consolidate;
use foldhash::fast::FixedState;

use super::assign::SourcePosition;
use crate::record::Record;

/// Greatest number of rows that room is made for before they come.
const MOST_RESERVED: usize = 1 << 17;

/// Emptied memory is used again for an epoch that needs at least the part of it that this divides it by.
const LARGEST_SPARE: usize = 8;

/// The rows of an epoch.
pub(super) trait GatherRows<R>: Default + 'static {
    /// Remains of epochs for those behind them: memory, and the amount of it that they needed.
    type Room: Default;

    /// Adds a row.
    fn push(&mut self, row: R, diff: isize, room: &mut Self::Room);

    /// Consolidates and sorts the rows, and converts each by `row`. Also returns the sum of their multiplicities, whatever
    /// their signs. `emptied` is memory for the result.
    fn finish<D>(
        self,
        row: &impl Fn(R) -> D,
        room: &mut Self::Room,
        emptied: Vec<(D, isize)>,
    ) -> (Vec<(D, isize)>, u64);
}

/// Rows that are sorted when all of them are there.
pub(super) struct SortedRows<R>(Vec<(R, isize)>);

impl<R> Default for SortedRows<R> {
    fn default() -> Self {
        SortedRows(Vec::new())
    }
}

impl<R: Record> GatherRows<R> for SortedRows<R> {
    /// Number of rows of the epoch before.
    type Room = usize;

    #[inline]
    fn push(&mut self, row: R, diff: isize, room: &mut usize) {
        if self.0.is_empty() {
            self.0.reserve((*room).min(MOST_RESERVED));
        }
        self.0.push((row, diff));
    }

    fn finish<D>(mut self, row: &impl Fn(R) -> D, room: &mut usize, _: Vec<(D, isize)>) -> (Vec<(D, isize)>, u64) {
        *room = self.0.len();
        consolidate(&mut self.0);
        let mut units = 0;
        let converted = self.0.into_iter().map(|(sorted, diff)| {
            units += diff.unsigned_abs() as u64;
            (row(sorted), diff)
        });
        (converted.collect(), units)
    }
}

/// A row with the place of its record.
type PlacedRow<D> = (SourcePosition, D);

/// Rows of the records of one partition.
struct PartitionRun<D> {
    of: (u16, u32),
    rows: Vec<(PlacedRow<D>, isize)>,
    /// `true` while each row's place is behind that of the row before it.
    is_sorted: bool,
}

/// Rows with the places of their records, by source and partition.
pub(super) struct PartitionRuns<D> {
    runs: Vec<PartitionRun<D>>,
    /// Index of the run of the last row.
    last: usize,
    known: HashMap<(u16, u32), usize, FixedState>,
}

impl<D> Default for PartitionRuns<D> {
    fn default() -> Self {
        PartitionRuns { runs: Vec::new(), last: 0, known: HashMap::default() }
    }
}

/// Emptied memory of runs. New memory of the size of an epoch is a page fault for each 4 KiB: a twelfth of the time of a
/// copy.
pub(super) struct SpareRuns<D>(Vec<Vec<(PlacedRow<D>, isize)>>);

impl<D> Default for SpareRuns<D> {
    fn default() -> Self {
        SpareRuns(Vec::new())
    }
}

impl<D> PartitionRuns<D> {
    /// Makes the run of a partition that of the last row; begins it if there is none.
    fn turn_to(&mut self, of: (u16, u32), spare: &mut SpareRuns<D>) {
        let runs = &mut self.runs;
        self.last = *self.known.entry(of).or_insert_with(|| {
            runs.push(PartitionRun { of, rows: spare.0.pop().unwrap_or_default(), is_sorted: true });
            runs.len() - 1
        });
    }
}

impl<D: Record> GatherRows<PlacedRow<D>> for PartitionRuns<D> {
    type Room = SpareRuns<D>;

    #[inline]
    fn push(&mut self, row: PlacedRow<D>, diff: isize, room: &mut SpareRuns<D>) {
        let ((source, partition, _), of_last) = (row.0, self.runs.get(self.last).map(|run| run.of));
        if of_last != Some((source, partition)) {
            self.turn_to((source, partition), room);
        }
        let run = &mut self.runs[self.last];
        run.is_sorted &= diff != 0 && run.rows.last().is_none_or(|((before, _), _)| *before < row.0);
        run.rows.push((row, diff));
    }

    fn finish<D2>(
        mut self,
        row: &impl Fn(PlacedRow<D>) -> D2,
        room: &mut SpareRuns<D>,
        emptied: Vec<(D2, isize)>,
    ) -> (Vec<(D2, isize)>, u64) {
        for run in self.runs.iter_mut().filter(|run| !run.is_sorted) {
            consolidate(&mut run.rows);
        }
        self.runs.sort_unstable_by_key(|run| run.of);
        let count = self.runs.iter().map(|run| run.rows.len()).sum();
        let (mut rows, mut units) = (emptied, 0);
        if rows.capacity() / LARGEST_SPARE > count {
            rows = Vec::new();
        }
        rows.reserve(count);
        // What earlier epochs left is dropped: partitions that are quiet keep no memory.
        room.0.clear();
        for mut run in self.runs {
            let needed = run.rows.len();
            rows.extend(run.rows.drain(..).map(|(placed, diff)| {
                units += diff.unsigned_abs() as u64;
                (row(placed), diff)
            }));
            if run.rows.capacity() / LARGEST_SPARE <= needed {
                room.0.push(run.rows);
            }
        }
        (rows, units)
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// Runs give what sorting gives, whatever comes in whatever order.
    #[test]
    fn runs_of_partitions_are_what_sorting_gives() {
        let (mut unsorted, mut spare, mut room, mut emptied) = (0, SpareRuns::default(), 0, Vec::new());
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let (mut runs, mut naive) = (PartitionRuns::<u8>::default(), SortedRows::default());
            let (mut next, repeats) = ([[0_u64; 3]; 2], seed % 3 == 0);
            for _ in 0..rng.usize(0..60) {
                let (source, partition) = (rng.usize(0..2), rng.usize(0..3));
                for _ in 0..rng.usize(1..5) {
                    let offset = &mut next[source][partition];
                    *offset = if repeats { rng.u64(0..6) } else { *offset + rng.u64(1..9) };
                    let row = ((source as u16, partition as u32, *offset), rng.u8(0..3));
                    let diff = if repeats { rng.isize(-1..2) } else { 1 };
                    runs.push(row, diff, &mut spare);
                    naive.push(row, diff, &mut room);
                }
            }
            unsorted += usize::from(runs.runs.iter().any(|run| !run.is_sorted));
            let (rows, units) = runs.finish(&|row| row, &mut spare, std::mem::take(&mut emptied));
            assert_eq!((rows.clone(), units), naive.finish(&|row| row, &mut room, Vec::new()), "seed {seed}");
            assert!(spare.0.iter().all(Vec::is_empty));
            emptied = rows;
            emptied.clear();
        }
        assert!((60..70).contains(&unsorted), "{unsorted} of 200 had to be sorted");
    }

    /// Memory of a large epoch is not kept for ever.
    #[test]
    fn memory_that_epochs_no_longer_need_is_released() {
        let mut spare = SpareRuns::default();
        let mut epoch = |rows: u64, partitions: u32| {
            let mut runs = PartitionRuns::<u8>::default();
            for offset in 0..rows {
                (0..partitions).for_each(|partition| runs.push(((0, partition, offset), 1), 1, &mut spare));
            }
            let (rows, _) = runs.finish(&|row| row, &mut spare, Vec::with_capacity(1_000_000));
            (rows.capacity(), spare.0.iter().map(Vec::capacity).sum::<usize>())
        };
        assert!(epoch(100_000, 4).1 >= 400_000);
        let (of_rows, of_runs) = epoch(10, 1);
        assert!(of_rows < 1_000 && of_runs == 0, "{of_rows}, {of_runs}");
        assert!(epoch(10, 1).1 < 100);
    }
}
